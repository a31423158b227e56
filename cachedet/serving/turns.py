"""One detection at a time, in a thread of its own: the page answers meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from starlette.exceptions import HTTPException

MOST_WAITING = 8
GONE = 499  # as nginx says of a client that did not wait
Answer = TypeVar("Answer")


class Turns:
    """Who comes first is served first; where too many wait already one is turned away."""

    def __init__(self, *, most_waiting: int = MOST_WAITING) -> None:
        self._most = most_waiting
        self._inside = 0
        self._turn = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, "detect")

    async def take(
        self, job: Callable[[], Answer], *, is_gone: Callable[[], Awaitable[bool]]
    ) -> Answer:
        """What `job` gives; it is not begun where who asked has gone.

        Raises HTTPException: 503 where too many wait, 499 where nobody does any more.
        """
        if self._inside > self._most:
            raise HTTPException(
                503,
                f"{self._most} images are waiting for the detector already; try again in a moment",
                headers={"Retry-After": "2"},
            )
        self._inside += 1
        try:
            async with self._turn:
                if await is_gone():
                    raise HTTPException(GONE, "nobody waits for this image any more")
                return await asyncio.get_running_loop().run_in_executor(self._thread, job)
        finally:
            self._inside -= 1
