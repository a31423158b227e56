"""What ranks other than the first have in the place of records and checkpoints: nothing."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType

from cachedet.training.statistics import StepStatistics
from cachedet.training.trainer import Trainer


class NoRecords:
    """Takes what `RunRecords` takes, and writes and shows nothing."""

    def __enter__(self) -> NoRecords:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return

    def after_step(self, trainer: Trainer, row: Mapping[str, float], taken: StepStatistics) -> None:
        """See RunRecords."""

    def after_validation(
        self, trainer: Trainer, scores: Mapping[str, float], *, seconds: float
    ) -> None:
        """See RunRecords."""

    def after_epoch(self, trainer: Trainer, scores: Mapping[str, float] | None) -> None:
        """See RunRecords."""

    def remark(self, line: str) -> None:
        """See RunRecords."""


class NoCheckpoints:
    """Takes what `CheckpointWriter` takes, and saves nothing."""

    def save_if_due(self, trainer: Trainer) -> None:
        """See CheckpointWriter."""

    def save_last(self, trainer: Trainer) -> None:
        """See CheckpointWriter."""

    def save_unsaved(self, trainer: Trainer) -> None:
        """See CheckpointWriter."""

    def save_best(self, trainer: Trainer) -> None:
        """See CheckpointWriter."""
