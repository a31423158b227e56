"""Machines that extract into one object storage at the same time, simulated event by event.

They do with a block what `blocks_to_try`, `ExtractionPipeline` and `settle_shards` do: look for its
record, compute it while the next one is looked for, send its shards while others are computed, look
at the manifest and make its record; whoever comes second takes what is there and goes on elsewhere.
"""

from __future__ import annotations

import itertools
import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from heapq import heappop, heappush

from cachedet.extraction.block_job import UPLOADS
from cachedet.store.settling import SHARDS_AT_ONCE

_PAGE = 1000  # objects in an answer to LIST
PAUSE = 0.375  # seconds before a request is made again, on average; doubles from try to try

Action = Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class StorageRates:
    """An object storage, as machines meet it."""

    bandwidth: float = math.inf  # bytes per second of all machines together
    latency: float = 0.0  # seconds until a request is answered, beside its bytes
    failing: float = 0.0  # share of the requests that have to be made again


@dataclass(frozen=True, kw_only=True)
class ClusterJob:
    """What shall be extracted."""

    blocks: int
    block_seconds: float  # that a machine computes
    block_nbytes: float
    shards: int  # of a block
    start_seconds: float = 0.0  # of every machine, before its first block
    # where images lie in the storage too:
    files: int = 0  # that every machine looks at, before its first block
    block_files: float = 0.0  # that a block is computed of
    file_nbytes: float = 0.0


@dataclass(kw_only=True)
class Traffic:
    """Requests that were made, failed ones too, and bytes."""

    puts: int = 0
    gets: int = 0
    lists: int = 0
    sent: float = 0.0
    received: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ClusterRun:
    """What became of it."""

    seconds: float  # until the last machine has ended
    committed: float  # seconds until the last block was there
    twice: int  # blocks that were computed once more
    traffic: Traffic


def simulate(job: ClusterJob, storage: StorageRates, *, workers: int, seed: int = 0) -> ClusterRun:
    """Extract with so many machines, which start together; the same for the same arguments."""
    cluster = _Cluster(job, storage, random.Random(seed))
    machines = [_Machine(cluster) for _ in range(workers)]
    for machine in machines:
        machine.start()
    seconds = cluster.clock.run()
    return ClusterRun(
        seconds=seconds,
        committed=cluster.committed_at,
        twice=cluster.twice,
        traffic=cluster.traffic,
    )


class _Clock:
    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Action]] = []
        self._number = itertools.count()

    def after(self, seconds: float, action: Action) -> None:
        heappush(self._events, (self.now + seconds, next(self._number), action))

    def run(self) -> float:
        """Until nothing is left to happen; when that was."""
        while self._events:
            self.now, _, action = heappop(self._events)
            action()
        return self.now


class _Link:
    """Bandwidth that all transfers under way share evenly."""

    def __init__(self, clock: _Clock, bandwidth: float) -> None:
        self._clock = clock
        self._bandwidth = bandwidth
        self._each = 0.0  # bytes that a transfer from the beginning on would have got by now
        self._looked = 0.0  # when that was
        self._transfers: list[tuple[float, int, Action]] = []  # by where `each` ends them
        self._number = itertools.count()
        self._turn = 0  # of the event that counts: others came before a change

    def carry(self, nbytes: float, then: Action) -> None:
        if nbytes <= 0 or math.isinf(self._bandwidth):
            self._clock.after(0.0, then)
            return
        self._look()
        heappush(self._transfers, (self._each + nbytes, next(self._number), then))
        self._plan()

    def _look(self) -> None:
        now = self._clock.now
        if self._transfers:
            self._each += (now - self._looked) * self._bandwidth / len(self._transfers)
        self._looked = now

    def _plan(self) -> None:
        self._turn += 1
        if self._transfers:
            nbytes = max(0.0, self._transfers[0][0] - self._each) * len(self._transfers)
            self._clock.after(nbytes / self._bandwidth, partial(self._end, self._turn))

    def _end(self, turn: int) -> None:
        if turn != self._turn:
            return
        self._look()
        self._each = max(self._each, self._transfers[0][0])
        ended = []
        while self._transfers and self._transfers[0][0] <= self._each:
            ended.append(heappop(self._transfers)[2])
        self._plan()
        for then in ended:
            then()


class _Cluster:
    """What all machines share."""

    def __init__(self, job: ClusterJob, storage: StorageRates, dice: random.Random) -> None:
        self.job = job
        self.storage = storage
        self.dice = dice
        self.clock = _Clock()
        self.link = _Link(self.clock, storage.bandwidth)
        self.traffic = Traffic()
        self.has_shards = bytearray(job.blocks)
        self.open = list(range(job.blocks))  # blocks that are not committed, in any order
        self.place = list(range(job.blocks))  # of each block in `open`; -1: committed
        self.committed_at = 0.0
        self.twice = 0

    def is_committed(self, block: int) -> bool:
        return self.place[block] < 0

    def commit(self, block: int) -> bool:
        """False where another machine was faster."""
        place = self.place[block]
        if place < 0:
            self.twice += 1
            return False
        last = self.open.pop()
        if last != block:
            self.open[place] = last
            self.place[last] = place
        self.place[block] = -1
        self.committed_at = self.clock.now
        return True

    def failures(self, requests: int) -> int:
        """How many of so many requests fail, those that are made again too."""
        failing = self.storage.failing
        if not failing:
            return 0
        if requests > _PAGE:
            return round(requests * failing / (1 - failing))
        failed, left = 0, requests
        while left:
            left = sum(self.dice.random() < failing for _ in range(left))
            failed += left
        return failed

    def waits(self, requests: int, failed: int) -> float:
        """Seconds of requests that are made one after the other."""
        return (requests + failed) * self.storage.latency + failed * PAUSE


@dataclass(eq=False)
class _Machine:
    """One process of `extract`: it looks for blocks and computes in one thread, sends in others."""

    cluster: _Cluster
    following: int | None = None  # the block it looks at next; None: any
    ahead: int | None = None  # the block that is decoded while one is computed
    wanted: int | None = None  # the block that is computed as soon as that is possible
    is_through: bool = False  # nothing is left to be looked for
    lost: bool = False  # somebody else has been where it works
    own: int = 0  # blocks that it committed
    busy: int = 0  # blocks in its memory
    sending: int = 0
    mine: set[int] = field(default_factory=set)  # chosen, and not committed yet
    read: set[int] = field(default_factory=set)  # blocks whose images are there
    queue: deque[int] = field(default_factory=deque)  # computed, and not being sent yet

    def start(self) -> None:
        """Every machine looks at all images before it begins."""
        job, clock = self.cluster.job, self.cluster.clock

        def look() -> None:
            clock.after(max(0.0, job.start_seconds - clock.now), self._look)

        self._read_files(job.files, look)

    def _read_files(self, files: float, then: Action) -> None:
        job, traffic = self.cluster.job, self.cluster.traffic
        again = self.cluster.failures(round(files))
        traffic.gets += round(files) + again
        traffic.received += files * job.file_nbytes
        self.cluster.link.carry(files * job.file_nbytes, then)

    def _look(self) -> None:
        """Ask for the record of the next block; where it is there, list all and go elsewhere."""
        cluster, block, asked = self.cluster, self.following, 1
        lists = self.lost or self._free() == 0
        if lists or block is None or block in self.mine:
            block = None
        elif cluster.is_committed(block):
            block, asked, lists = None, 2, True
        if self.own + len(self.mine) == cluster.job.blocks:  # nobody else has been here
            asked, lists = 0, False
        self.lost = False
        pages = math.ceil(cluster.job.blocks / _PAGE) if lists else 0
        failed = cluster.failures(asked)
        cluster.traffic.gets += asked + failed
        cluster.traffic.lists += pages
        cluster.clock.after(cluster.waits(asked + pages, failed), partial(self._found, block))

    def _free(self) -> int:
        """How many blocks are neither committed nor its own."""
        held = sum(not self.cluster.is_committed(block) for block in self.mine)
        return len(self.cluster.open) - held

    def _found(self, block: int | None) -> None:
        cluster = self.cluster
        if block is None and self._free() > 0:
            block = cluster.dice.choice(cluster.open)
            while block in self.mine:
                block = cluster.dice.choice(cluster.open)
        if block is not None and not cluster.is_committed(block):
            self.mine.add(block)
            self.following = (block + 1) % cluster.job.blocks
            self._read_files(cluster.job.block_files, partial(self._have_read, block))
            self._decode(block)
        elif self._free() > 0:
            self._look()
        else:
            self._end_looking()

    def _decode(self, block: int) -> None:
        """Decode a block; the one before it is computed now."""
        self.wanted, self.ahead = self.ahead, block
        if self.wanted is None:
            self._look()
        else:
            self._compute()

    def _end_looking(self) -> None:
        self.is_through = True
        self.wanted, self.ahead = self.ahead, None
        if self.wanted is None:
            self._end()
        else:
            self._compute()

    def _have_read(self, block: int) -> None:
        self.read.add(block)
        self._compute()

    def _compute(self) -> None:
        """Compute what is wanted, if its images and a place in memory are there."""
        block = self.wanted
        if block is None or block not in self.read or self.busy > UPLOADS:
            return
        self.wanted = None
        self.read.discard(block)
        self.busy += 1
        self.cluster.clock.after(self.cluster.job.block_seconds, partial(self._computed, block))

    def _computed(self, block: int) -> None:
        self.queue.append(block)
        self._send()
        if self.is_through:
            self._end_looking()
        else:
            self._look()

    def _send(self) -> None:
        """Send the shards of a block; those that fail once more."""
        if not self.queue or self.sending == UPLOADS:
            return
        block = self.queue.popleft()
        self.sending += 1
        cluster, job = self.cluster, self.cluster.job
        failed = cluster.failures(job.shards)
        cluster.traffic.puts += job.shards + failed
        nbytes = job.block_nbytes * (1 + failed / job.shards)
        cluster.traffic.sent += nbytes
        turns = math.ceil(job.shards / SHARDS_AT_ONCE)
        seconds = cluster.waits(turns, math.ceil(failed / SHARDS_AT_ONCE))
        sent = partial(cluster.link.carry, nbytes, partial(self._sent, block))
        cluster.clock.after(seconds, sent)

    def _sent(self, block: int) -> None:
        """Where shards were there already, they are read: once to compare, once to describe."""
        cluster, job = self.cluster, self.cluster.job
        if not cluster.has_shards[block]:
            cluster.has_shards[block] = 1
            self._record(block)
            return
        failed = cluster.failures(2 * job.shards)
        cluster.traffic.gets += 2 * job.shards + failed
        cluster.traffic.received += 2 * job.block_nbytes
        cluster.link.carry(2 * job.block_nbytes, partial(self._record, block))

    def _record(self, block: int) -> None:
        """Read the manifest, make the record."""
        cluster = self.cluster
        failed = cluster.failures(1), cluster.failures(1)
        cluster.traffic.gets += 1 + failed[0]
        cluster.traffic.puts += 1 + failed[1]
        cluster.clock.after(cluster.waits(2, sum(failed)), partial(self._commit, block))

    def _commit(self, block: int) -> None:
        cluster = self.cluster
        if cluster.commit(block):
            self.own += 1
        else:
            cluster.traffic.gets += 2  # the record that is there, to compare
            self.lost = True
        self.mine.discard(block)
        self.sending -= 1
        self.busy -= 1
        self._send()
        self._compute()
        if self.is_through:
            self._end()

    def _end(self) -> None:
        """Count what is missing: a listing of the records."""
        if self.busy or self.wanted is not None or self.ahead is not None:
            return
        cluster, job = self.cluster, self.cluster.job
        pages = math.ceil(job.blocks / _PAGE)
        cluster.traffic.lists += pages
        cluster.clock.after(cluster.waits(pages, 0), _nothing)


def _nothing() -> None:
    """The clock ends here."""
