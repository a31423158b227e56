"""The table of a training run: one line an epoch, on the terminal and in log.txt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_GAP = "  "
_REPEAT_HEADER = 25  # lines


@dataclass(frozen=True, kw_only=True)
class EpochFigures:
    """What an epoch reached."""

    epoch: int  # epochs done
    epochs: int  # of the run
    learning_rate: float  # of its last step
    losses: Mapping[str, float]  # "loss" and "loss_*", means over its pictures
    ap: float | None  # None: not validated
    ap50: float | None
    pictures_per_second: float  # of training, without validation
    waiting_share: float  # of the training time, for data


class EpochTable:
    """Lines of equal columns.

    Args:
        parts: names of the loss parts.
        width: characters of a line; where the parts do not fit, the total alone is shown.
    """

    def __init__(self, parts: Sequence[str], *, width: int) -> None:
        self._parts = tuple(parts)
        if len(self.header()) > width:
            self._parts = ()
        self._lines = 0

    def header(self) -> str:
        parts = [f"{name:>{_width_of(name)}}" for name in self._parts]
        columns = ["  epoch", "     lr", "  loss", *parts, "   AP", " AP50", " pict/s", "wait"]
        return _GAP.join(columns)

    def lines(self, figures: EpochFigures) -> list[str]:
        """The line of an epoch, with the header before it from time to time."""
        parts = [
            f"{_short(figures.losses.get(f'loss_{name}')):>{_width_of(name)}}"
            for name in self._parts
        ]
        line = _GAP.join(
            [
                f"{f'{figures.epoch}/{figures.epochs}':>7}",
                f"{figures.learning_rate:>7.1e}",
                f"{_short(figures.losses.get('loss')):>6}",
                *parts,
                f"{_score(figures.ap):>5}",
                f"{_score(figures.ap50):>5}",
                f"{figures.pictures_per_second:>7.1f}",
                f"{figures.waiting_share:>4.0%}",
            ]
        )
        header = [self.header()] if self._lines % _REPEAT_HEADER == 0 else []
        self._lines += 1
        return [*header, line]


def _width_of(name: str) -> int:
    return max(len(name), 6)


def _short(value: float | None) -> str:
    """Six characters at most for what is between 0.001 and 99999."""
    if value is None:
        return "-"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.0f}"


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
