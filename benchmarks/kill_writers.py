"""Writers of one bucket that are killed at random, and a server that goes away meanwhile.

python benchmarks/kill_writers.py --out DIR [--kills 200] [--minutes 20] [--writers 3] [--seed 0]

Each round is one store: writers extract into it until it is complete, some with their images in
the bucket; at random moments one gets SIGKILL and another takes its place, or the server is away
for up to a second (what it holds stays; connections are cut). Between, what is committed is read
deeply. At the end of a round, after `prune`, the bucket's content must be that of an uninterrupted
extraction into a folder, with nothing else. What writers say lies in DIR/kills. Prints one JSON
object, and ends with status 1 where it is not.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import sys
import time
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

from bucket_extraction import config_of, content_of, upload
from throttled_server import ServerProcess

from cachedet.config.run import ExtractConfig
from cachedet.extract import extract
from cachedet.store.files.depot import open_depot
from cachedet.store.files.leases import COMMIT_LOCK
from cachedet.store.files.names import MANIFEST
from cachedet.store.prune import prune_store
from cachedet.store.verify import verify_store

_LONGEST_ROUND = 180.0  # seconds; then nothing is killed any more
_AWAY = 0.2  # of the events


def write(config: ExtractConfig) -> None:
    """The work of a writer's process."""
    import torch

    torch.set_num_threads(1)
    log = os.open(config.weights + ".log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 2)
    extract(config)


class Round:
    """One store from its first writer to its last."""

    def __init__(
        self, server: ServerProcess, config: ExtractConfig, photos: str, dice: random.Random
    ) -> None:
        self._server, self._config, self._photos, self._dice = server, config, photos, dice
        self._context: ForkServerContext = multiprocessing.get_context("forkserver")
        self.url = server.say("new_url")
        self.kills = self.breaks = self.failures = self.looks = 0

    def run(self, *, writers: int, most_kills: int) -> None:
        """Until a writer has found nothing missing, and all have ended."""
        self._server.say("faults 0.02")
        self._server.say("latency 0.01")
        begun, is_done = time.monotonic(), False
        living = [self._start() for _ in range(writers)]
        while living:
            time.sleep(self._dice.uniform(0.02, 0.6))
            for ended in [one for one in living if not one.is_alive()]:
                living.remove(ended)
                is_done |= ended.exitcode == 0
                self.failures += ended.exitcode not in (0, None)
                if not is_done:
                    living.append(self._start())
            may_kill = self.kills < most_kills and time.monotonic() < begun + _LONGEST_ROUND
            if living and not is_done and may_kill:
                self._strike(living)
        self._server.say("faults 0")
        self._server.say("latency 0")

    def _start(self) -> ForkServerProcess:
        changes: dict[str, Any] = {"store": self.url}
        if self._dice.random() < 0.5:
            changes["images"] = self._photos
        process = self._context.Process(
            target=write, args=(self._config.model_copy(update=changes),)
        )
        process.start()
        return process

    def _strike(self, living: list[ForkServerProcess]) -> None:
        if self._dice.random() < _AWAY:
            self._server.say("down")
            time.sleep(self._dice.uniform(0.05, 1.0))
            self._server.say("up")
            self.breaks += 1
            return
        killed = living.pop(self._dice.randrange(len(living)))
        killed.kill()
        killed.join()
        self.kills += killed.exitcode == -9  # it may have ended just before
        living.append(self._start())
        if self.kills % 5 == 0 and open_depot(self.url).has(MANIFEST):
            self.looks += 1
            bad = verify_store(self.url, deep=True).bad
            assert not bad, f"{self.url}: committed blocks are damaged: {bad}"

    def faults(self, wanted: dict[str, bytes]) -> list[str]:
        """What differs from the store of a folder, after `prune`."""
        report = prune_store(self.url, dry_run=False)
        left = [key for key in open_depot(self.url).sizes() if key not in (*wanted, COMMIT_LOCK)]
        held = content_of(self.url)
        faults = [f"orphan {key}" for key in left]
        faults += [f"missing {key}" for key in wanted if key not in held]
        faults += [f"differs {key}" for key in wanted if held.get(key, wanted[key]) != wanted[key]]
        return faults + [f"prune left {one}" for one in report.left]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--writers", type=int, default=3)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.backbone = "test_resnet"
    until, dice = time.monotonic() + 60 * options.minutes, random.Random(options.seed)
    config = config_of(options.out / "kills", options.images, options).model_copy(
        update={"codec": "fp16", "image_size": 128, "block_size": 1, "views": "base,hflip"}
    )
    shutil.rmtree(config.store, ignore_errors=True)
    extract(config)
    wanted = content_of(config.store)
    rounds: list[Round] = []
    faults: list[str] = []
    with ServerProcess("--seed", str(options.seed)) as server:
        os.environ.update(server.environment)
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["cachedet.extract", "timm", "obstore", "kill_writers"])
        photos = upload(server, Path(config.images))
        while sum(one.kills for one in rounds) < options.kills and time.monotonic() < until:
            rounds.append(one := Round(server, config, photos, dice))
            left = options.kills - sum(each.kills for each in rounds)
            one.run(writers=dice.randint(2, options.writers), most_kills=left)
            faults += [f"round {len(rounds)}: {fault}" for fault in one.faults(wanted)]
            print(f"round {len(rounds)}: {one.kills} kills", file=sys.stderr, flush=True)
        counts = server.counts()
    print(
        json.dumps(
            {
                "rounds": len(rounds),
                "blocks_of_a_round": sum(key.startswith("commits/") for key in wanted),
                "kills": sum(one.kills for one in rounds),
                "times_the_server_was_away": sum(one.breaks for one in rounds),
                "writers_that_failed": sum(one.failures for one in rounds),
                "deep_looks_between": sum(one.looks for one in rounds),
                "requests": {method: count["requests"] for method, count in counts.items()},
                "faults_of_the_network": sum(count["faults"] for count in counts.values()),
                "objects_of_a_store": len(wanted),
                "faults": faults,
            },
            indent=1,
        )
    )
    if faults:
        sys.exit("a store is not that of the folder")


if __name__ == "__main__":
    main()
