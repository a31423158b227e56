"""When and where a run's state is saved, and which saved state a run goes on from."""

from __future__ import annotations

import time

from cachedet.config.run import TrainConfig
from cachedet.errors import CheckpointError, DamagedCheckpointError
from cachedet.store.format.manifest import Manifest
from cachedet.store.leftovers import remove_leftovers
from cachedet.training.checkpoint import (
    Checkpoint,
    is_there,
    load_checkpoint,
    save_checkpoint,
    save_rotating,
)
from cachedet.training.run_folder import RunFolder, set_aside
from cachedet.training.trainer import Trainer


class CheckpointWriter:
    """Saves a trainer into its run folder; of several processes only the first has one.

    Config and manifest are part of every checkpoint; this process goes on from `first_step`.
    """

    def __init__(
        self, folder: RunFolder, *, config: TrainConfig, manifest: Manifest, first_step: int
    ) -> None:
        self._folder = folder
        self._config = config
        self._manifest = manifest
        self._saved_at = time.monotonic()
        self._saved_step = first_step
        self._saved_position: tuple[int, int, int] | None = None

    def save_if_due(self, trainer: Trainer) -> None:
        """Save `last.pt` where enough steps or seconds have passed."""
        every_steps = self._config.checkpoint_every_steps
        every_seconds = self._config.checkpoint_every_seconds
        by_steps = 0 < every_steps <= trainer.step - self._saved_step
        if by_steps or 0 < every_seconds <= time.monotonic() - self._saved_at:
            self.save_last(trainer)

    def save_last(self, trainer: Trainer) -> None:
        """Write `last.pt`; the one before it becomes `previous.pt`."""
        checkpoint = trainer.checkpoint(self._config, self._manifest)
        save_rotating(self._folder.last, self._folder.previous, checkpoint)
        self._saved_at, self._saved_step = time.monotonic(), trainer.step
        self._saved_position = _position(trainer)

    def save_unsaved(self, trainer: Trainer) -> None:
        """Write `last.pt` unless this writer's last save was of the same state."""
        if self._saved_position != _position(trainer):
            self.save_last(trainer)

    def save_best(self, trainer: Trainer) -> None:
        """Write `best.pt`."""
        save_checkpoint(self._folder.best, trainer.checkpoint(self._config, self._manifest))


class NoOpCheckpointer:
    """Takes the place of `CheckpointWriter` in the other processes, and saves nothing."""

    def save_if_due(self, trainer: Trainer) -> None: ...

    def save_last(self, trainer: Trainer) -> None: ...

    def save_unsaved(self, trainer: Trainer) -> None: ...

    def save_best(self, trainer: Trainer) -> None: ...


def load_last(folder: RunFolder) -> tuple[Checkpoint, str]:
    """The newest whole state of a run, and a note where that is not `last.pt` (else "").

    A damaged `last.pt` is set aside (see `set_aside`), so that it never replaces
    `previous.pt`. Files that a killed process left half written are removed.

    Raises CheckpointError: there is no whole state, one that cannot be read now, or one of another
    format. Nothing is then set aside.
    """
    has_last, has_previous = is_there(folder.last), is_there(folder.previous)
    if not has_last and not has_previous:
        raise CheckpointError(
            f"{folder.root} has no saved state: the run ended before its first checkpoint; remove "
            "the folder and start again without --resume"
        )
    remove_leftovers(folder.last.parent)
    try:
        if has_last:
            return load_checkpoint(folder.last), ""
        reason = f"{folder.last} is missing"
    except DamagedCheckpointError as error:
        if not has_previous:
            raise DamagedCheckpointError(
                f"{error}, and there is no {folder.previous.name} before it; start again with "
                "another --run, or with --init-from where best.pt is whole"
            ) from error
        reason = str(error)
    try:
        checkpoint = load_checkpoint(folder.previous)
    except CheckpointError as error:
        raise CheckpointError(f"{reason}; nor can the one before it be used: {error}") from error
    if has_last:
        reason += f"; set aside as {set_aside(folder.last).name}"
    return checkpoint, f"{reason}; going on from {folder.previous.name}, step {checkpoint.step}"


def _position(trainer: Trainer) -> tuple[int, int, int]:
    return trainer.step, trainer.epoch, trainer.batch
