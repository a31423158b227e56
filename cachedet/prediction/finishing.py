"""What is made of an image once its detections are known, beside the detection of the next ones."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future

from cachedet.device import single_core_threads


class Finisher:
    """Does jobs in threads; of those that wait there are few, so that memory is bounded."""

    def __init__(self, workers: int) -> None:
        self._pool = single_core_threads(workers, "finish")
        self._most = 4 * workers
        self._begun: deque[Future[None]] = deque()

    def __enter__(self) -> Finisher:
        return self

    def __exit__(self, kind: object, *exception: object) -> None:
        """Wait for all; where nothing has failed yet, raise what a job raised."""
        try:
            while self._begun and kind is None:
                self._begun.popleft().result()
        finally:
            for job in self._begun:
                job.cancel()
            self._pool.shutdown()

    def do(self, job: Callable[[], None]) -> None:
        """Begin the job, or wait for room. Raises what an earlier one raised."""
        while self._begun and (len(self._begun) >= self._most or self._begun[0].done()):
            self._begun.popleft().result()
        self._begun.append(self._pool.submit(job))
