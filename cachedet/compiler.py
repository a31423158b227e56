"""What `torch.compile` needs of a machine, said where it is missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from cachedet.errors import CachedetError


@contextmanager
def compiling(what: str, *, error: type[CachedetError], otherwise: str) -> Iterator[None]:
    """Around what torch may compile when it is first called. Raises `error` where it cannot."""
    try:
        yield
    except RuntimeError as fault:
        if not type(fault).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        cause = getattr(fault, "inner_exception", fault)
        reason = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        raise error(
            f"torch cannot compile {what} here: {reason}. It needs a C++ compiler (g++), and on "
            f"CUDA Triton. Install them, or {otherwise}"
        ) from fault
