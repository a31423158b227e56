"""Writing the blocks of a store on Ray: names of blocks go out, receipts come back, no features."""

from __future__ import annotations

import contextlib
import importlib
import os
import socket
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from cachedet.config.engine import RayEngine
from cachedet.errors import EngineError
from cachedet.extraction.block_job import Job, Write, Written
from cachedet.extraction.block_worker import BlockWorker, Receipt, Told, tally
from cachedet.store.format.layout import Block

_MOST_BLOCKS, _MOST_LOSSES = 64, 5  # of a call; for each worker, without a block in between
_PATIENCE = 5.0  # seconds for an answer, and between looks for room that came


@contextlib.contextmanager
def ray_cluster(engine: RayEngine) -> Iterator[Write]:
    """Connected to a Ray that has room for a worker. Raises EngineError."""
    for name, value in (("RAY_USAGE_STATS_ENABLED", "0"), ("RAY_DEDUP_LOGS_AGG_WINDOW_S", "600")):
        os.environ.setdefault(name, value)
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError as error:
        raise EngineError(f"Ray is missing ({error}): pip install 'cachedet[ray]'") from error
    with _connect(ray, engine.address), contextlib.redirect_stdout(sys.stderr):
        gpus, has_any = engine.gpus_per_worker, ray.cluster_resources().get("GPU", 0) >= 1
        wanted = {"CPU": engine.cpus_per_worker, "GPU": float(has_any) if gpus is None else gpus}
        _require_room(ray, wanted, engine.address)
        yield lambda job, _, __, missing: _Crew(ray, job, wanted, engine.workers).write(missing)


def _connect(ray: Any, address: str) -> Any:
    if ray.is_initialized():  # by the program that calls us
        return contextlib.nullcontext()
    known = os.environ.get("RAY_ADDRESS", address) if address == "auto" else address
    host, _, port = known.rpartition(":")
    try:
        if host:  # Ray itself would ask for minutes
            socket.create_connection((host, int(port)), timeout=_PATIENCE).close()
        return ray.init(known, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    except (OSError, ValueError, RuntimeError) as error:
        raise EngineError(
            f"no Ray at {known} ({error}): `ray start --head`, or --ray-address HOST:PORT or local"
        ) from error


def _room(ray: Any, wanted: Mapping[str, float]) -> int:
    """For how many workers; for fewer where what is free is scattered."""
    machines = [machine["Resources"] for machine in ray.nodes() if machine["Alive"]]
    has_one = any(all(one.get(n, 0) >= wanted[n] for n in wanted) for one in machines)
    free = ray.available_resources()
    return int(min(free.get(n, 0) // count for n, count in wanted.items() if count)) * has_one


def _require_room(ray: Any, wanted: Mapping[str, float], address: str) -> None:
    until = time.monotonic() + 2 * _PATIENCE  # what another call held becomes free
    while not (room := _room(ray, wanted)) and time.monotonic() < until:
        time.sleep(0.5)
    if room:
        return
    free, total = ray.available_resources(), ray.cluster_resources()
    there = (f"{free.get(n, 0):g} of {total.get(n, 0):g} {n}" for n in wanted)
    raise EngineError(
        f"Ray at {address} has no room for a worker ({wanted['CPU']:g} CPU, {wanted['GPU']:g} GPU "
        f"on one machine): free are {', '.join(there)}. See --cpus-per-worker"
    )


class _Crew:
    """Workers that come and go, and what they are at."""

    def __init__(self, ray: Any, job: Job, wanted: Mapping[str, float], most: int | None) -> None:
        self._ray, self._wanted, self._most = ray, wanted, most
        self._fetch = partial(ray.get, ray.put(job.to_send(cores=wanted["CPU"])))
        options = {"num_cpus": wanted["CPU"], "num_gpus": wanted["GPU"], "max_restarts": -1}
        self._kind = ray.remote(**options)(BlockWorker)
        self._workers, self._idle = list[Any](), list[Any]()
        self._calls: dict[Any, tuple[Any, list[str] | None]] = {}  # worker, blocks without receipt
        self._left = deque[str]()
        self._losses, self._looks_at = 0, 0.0  # since the last receipt; when room is looked for

    def write(self, missing: Sequence[Block]) -> Written:
        """All blocks that are missing; the workers end with it, whatever ends it."""
        images = {block.name: len(block.rows) for block in missing}
        self._left.extend(images)
        try:
            return tally(self._told(), images, workers=self._workers)
        finally:
            for worker in self._workers:
                self._ray.kill(worker)

    def _told(self) -> Iterator[Told]:
        while self._left or any(names is not None for _, names in self._calls.values()):
            while self._left and self._idle:
                self._call(self._idle.pop())
            if self._left and time.monotonic() >= self._looks_at:
                self._hire()
            for call in self._ray.wait(list(self._calls), timeout=_PATIENCE)[0]:
                yield from self._hear(call)

    def _hire(self) -> None:
        """As many as were asked for, else as have room; none while others wait for theirs."""
        self._looks_at = time.monotonic() + _PATIENCE
        if self._workers and (self._most or None in (names for _, names in self._calls.values())):
            return
        most = self._most or max(1 - len(self._workers), _room(self._ray, self._wanted))
        for _ in range(min(most, len(self._left))):
            self._workers.append(self._kind.remote())
            self._call(self._workers[-1], is_new=True)

    def _call(self, worker: Any, *, is_new: bool = False) -> None:
        """Give it blocks; one that is new, or was lost, none before it has a process again."""
        share = min(_MOST_BLOCKS, 1 + len(self._left) // (2 * len(self._workers)))
        names = None if is_new else [self._left.popleft() for _ in range(share)]
        method = worker.write.options(num_returns="streaming", max_task_retries=-1 if is_new else 0)
        self._calls[method.remote(self._fetch, names or [])] = worker, names

    def _hear(self, call: Any) -> Iterator[Told]:
        worker, names = self._calls.pop(call)
        try:
            told = self._ray.get(next(call))
            self._calls[call] = worker, names  # behind the others
            if isinstance(told, Receipt) and names:
                names.remove(told.block)
                self._losses = 0
            yield told
        except StopIteration:
            self._idle.append(worker)
        except self._ray.exceptions.RayTaskError as error:  # raised by our code there
            raise error.cause from error
        except self._ray.exceptions.RayError as error:  # its process or machine is gone
            self._left.extend(names or [])
            self._losses += 1
            if self._losses > _MOST_LOSSES * len(self._workers):
                raise EngineError(
                    f"Ray loses worker after worker; remove the cause and run it again ({error})"
                ) from error
            self._call(worker, is_new=True)
