"""How this process keeps memory that it has freed."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt, as malloc.h numbers them
_LARGEST_INT = 2**31 - 1


def keep_freed_memory() -> None:
    """Let glibc use freed memory again, where by default it hands large pieces back at once.

    A backbone on a CPU frees maps of megabytes after each layer: asking the system for them anew
    means a page fault for every 4 kB, which may take longer than the layer. No-op elsewhere.
    """
    _call("mallopt", _MMAP_THRESHOLD, 1 << 30)
    _call("mallopt", _TRIM_THRESHOLD, _LARGEST_INT)


def return_free_memory() -> None:
    """Hand freed memory back: else each thread keeps what a giant image took there."""
    _call("malloc_trim", 0)


def _call(name: str, *arguments: int) -> None:
    """A function of glibc; no-op where the C library has none of that name, or is another."""
    if sys.platform.startswith("linux"):
        with suppress(AttributeError, OSError):
            getattr(ctypes.CDLL(None), name)(*arguments)
