"""Frames of video files, by PyAV (the extra `video`)."""

from __future__ import annotations

import importlib
import os
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cachedet.data.images import MAX_PIXELS
from cachedet.data.regular_files import open_regular
from cachedet.device import single_core_threads
from cachedet.errors import BadImageError, InputError
from cachedet.text import printable

SUFFIXES = frozenset(
    (
        ".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts",
        ".ogv", ".ts", ".webm", ".wmv",
    )
)  # fmt: skip
_AHEAD = 8  # frames
# A playlist in a file that calls itself a video would have other files and URLs opened.
_NO_OTHER_FILES = {"protocol_whitelist": "none"}


def is_video(file: Path) -> bool:
    """By the ending of its name."""
    return file.suffix.lower() in SUFFIXES


def require_videos_are_read(file: Path) -> None:
    """Raises InputError where PyAV is missing."""
    try:
        importlib.import_module("av")
    except ImportError as error:
        raise InputError(
            f"{printable(file)} is a video: reading it needs pip install 'cachedet[video]'"
        ) from error


@dataclass(frozen=True, kw_only=True, eq=False)
class Frame:
    """One decoded frame; its pixels are made when they are asked for."""

    number: int  # from 0, of all frames of the file
    time: float  # seconds
    content: Any  # av.VideoFrame

    def pixels(self) -> NDArray[np.uint8]:
        """(H, W, 3) RGB, upright."""
        pixels = self.content.to_ndarray(format="rgb24")
        turns = round((self.content.rotation or 0) / 90) % 4  # counterclockwise, as rot90 turns
        return np.ascontiguousarray(np.rot90(pixels, turns))


def read_frames(file: Path, *, every: int = 1) -> Generator[Frame, None, None]:
    """Every so many frames of a video, from the first one on, decoded ahead in a thread.

    Raises BadImageError, with the file's name: no video, none of a frame, or damaged; the frames in
    front of the damage have come then.
    """
    pool = single_core_threads(1, "video")
    frames = _decode(file, every)
    ahead: deque[Future[Frame | None]] = deque()
    try:
        while True:
            while len(ahead) < _AHEAD:
                ahead.append(pool.submit(next, frames, None))  # one thread: in their order
            frame = ahead.popleft().result()
            if frame is None:
                return
            yield frame
    finally:
        for waiting in ahead:
            waiting.cancel()
        pool.submit(frames.close)
        pool.shutdown()


def _decode(file: Path, every: int) -> Generator[Frame, None, None]:
    count = 0
    try:
        for count, frame in enumerate(_all_frames(file), start=1):
            if (count - 1) % every == 0:
                yield Frame(number=count - 1, time=_time_of(frame, count - 1), content=frame)
    except (OSError, ValueError) as error:  # PyAV's own are among them
        reason = getattr(error, "strerror", None) or str(error)
        where = f"damaged behind frame {count - 1}: " if count else ""
        raise BadImageError(f"{printable(file)}: {where}{reason}") from error
    if not count:
        raise BadImageError(f"{printable(file)}: a video without frames")


def _all_frames(file: Path) -> Iterator[Any]:
    av = importlib.import_module("av")
    with open(open_regular(file), "rb") as content:
        if not os.fstat(content.fileno()).st_size:
            raise ValueError("the file is empty")
        with av.open(content, options=_NO_OTHER_FILES) as container:
            if not container.streams.video:
                return
            stream = container.streams.video[0]
            if stream.width * stream.height > MAX_PIXELS:
                raise ValueError(f"{stream.width}x{stream.height} pixels are more than the limit")
            stream.thread_type = "AUTO"
            yield from container.decode(stream)


def _time_of(frame: Any, number: int) -> float:
    """Of files without times by their rate."""
    if frame.time is not None:
        return float(frame.time)
    rate = frame.time_base
    return float(number * rate) if rate else 0.0
