"""TensorBoard event files, where the package is installed and the config asks for them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cachedet.errors import ConfigError


def require_tensorboard() -> None:
    """Raises ConfigError where the package is missing."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"tensorboard: true needs the tensorboard package ({error}); "
            "pip install 'cachedet[tensorboard]', or set tensorboard: false (metrics.csv has all)"
        ) from error


class TensorBoardLog:
    """Scalars of a run; events after the resumed step are purged.

    Raises ConfigError where the package is missing.
    """

    def __init__(self, folder: Path, *, first_step: int) -> None:
        require_tensorboard()
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=first_step)

    def append(self, values: Mapping[str, float], *, step: int) -> None:
        """`val_ap` becomes validation/ap, everything else training/<name>."""
        for name, value in values.items():
            section = "validation" if name.startswith("val_") else "training"
            self._writer.add_scalar(f"{section}/{name.removeprefix('val_')}", value, step)

    def close(self) -> None:
        self._writer.close()
