"""The ways to train, by name, for those who need no backbone: this module imports nothing."""

from __future__ import annotations

from typing import Literal, get_args

Mode = Literal["cached", "live", "tuned", "scratch"]
MODES: tuple[Mode, ...] = get_args(Mode)
FROZEN: tuple[Mode, ...] = ("cached", "live")
LEARNED: tuple[Mode, ...] = ("tuned", "scratch")
MODE_LABELS: dict[Mode, str] = {
    "cached": "cached",
    "live": "live frozen",
    "tuned": "fine-tuned",
    "scratch": "from scratch",
}
