"""Faults F1, F3, F10 with the whole of `extract`: leases, pipeline and command line take part."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cachedet.data.shapes import write_shapes
from cachedet.errors import StoreError
from cachedet.extract import extract
from cachedet.store.reader import FeatureStore
from cachedet.store.verify import verify_store

# One process imports everything and forks for each run: starting Python each time takes seconds.
LAUNCHER = """
import json, os, resource, runpy, signal, sys, traceback
import torch
import cachedet.extract
torch.set_num_threads(1)

def run(request):
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if request["limit"] is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["limit"],) * 2)
    sys.argv = request["arguments"]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        return end.code or 0
    except BaseException:
        traceback.print_exc()
        return 99
    return 0

for line in sys.stdin:
    request = json.loads(line)
    child = os.fork()
    if child == 0:
        status = run(request)
        sys.stdout.flush()
        os._exit(status)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Launcher:
    """Runs `python cli.py extract` again and again on the same pictures."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._ask, self._answers = process.stdin, process.stdout
        self.log = folder / "log.txt"
        self.images = folder / "shapes"
        self.weights = folder / "weights.pth"

    def start(self, store: Path, *, limit: int | None = None) -> int:
        """Process id of a run; at most `limit` bytes in a file."""
        options = {
            "images": self.images / "images",
            "annotations": self.images / "train.json",
            "store": store,
            "backbone": "test_resnet",
            "weights": self.weights,
            "image-size": 128,
            "views": "base,hflip",
            "codec": "int8+zstd",
            "block-size": 1,
            "batch-size": 2,
            "device": "cpu",
        }
        flat = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
        launcher = str(Path(__file__).parents[2] / "cli.py")
        request = {"arguments": [launcher, "extract", *flat], "limit": limit, "log": str(self.log)}
        print(json.dumps(request), file=self._ask, flush=True)
        return int(self._answers.readline())

    def wait(self) -> int:
        """Exit status of the run, negative where a signal ended it."""
        return int(self._answers.readline())

    def run(self, store: Path, *, limit: int | None = None) -> tuple[int, str]:
        """Exit status and what was printed."""
        self.start(store, limit=limit)
        return self.wait(), self.log.read_text()


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    import timm

    folder = tmp_path_factory.mktemp("launcher")
    torch.manual_seed(7)
    torch.save(timm.create_model("test_resnet").state_dict(), folder / "weights.pth")
    write_shapes(folder / "shapes", train=16, val=1)
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", LAUNCHER], stdin=pipe, stdout=pipe, text=True
    ) as process:
        yield Launcher(process, folder)
        process.kill()


@pytest.fixture(scope="module")
def whole(launcher: Launcher, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of a run that nothing interrupted."""
    store = tmp_path_factory.mktemp("whole") / "s.zarr"
    status, output = launcher.run(store)
    assert status == 0, output
    return store


def committed(store: Path) -> int:
    return len(list(store.glob("commits/*.json")))


def kill_after(launcher: Launcher, store: Path, *, commits: int, delay: float) -> bool:
    """Kill a run when it has committed that much more; whether it was at work on a block."""
    goal = committed(store) + commits
    process = launcher.start(store)
    while committed(store) < goal and Path(f"/proc/{process}").exists():
        time.sleep(0.001)
    time.sleep(delay)
    os.kill(process, signal.SIGKILL)
    assert launcher.wait() == -signal.SIGKILL
    return bool(list(store.glob("leases/*.lease")))


def test_killed_at_random_moments(
    launcher: Launcher, whole: Path, tmp_path: Path, store_kit: Any
) -> None:
    """Fault F1: nothing of a half-done block is ever seen, and the end is the same."""
    store = tmp_path / "r" / "s.zarr"
    rng = random.Random(0)
    was_at_work = 0
    for _ in range(6):
        commits, delay = rng.randint(1, 3), rng.uniform(0.0, 0.02)
        was_at_work += kill_after(launcher, store, commits=commits, delay=delay)
        assert verify_store(store, deep=True).bad == ()
        assert len(FeatureStore.open(store).missing_blocks()) == 32 - committed(store)
    assert was_at_work >= 3
    status, output = launcher.run(store)
    assert status == 0, output
    assert store_kit.files(store) == store_kit.files(whole)
    assert [path.name for path in store.parent.iterdir()] == ["s.zarr"]


def test_files_that_may_not_grow(
    launcher: Launcher, whole: Path, tmp_path: Path, store_kit: Any
) -> None:
    """Fault F3 where nothing can be mounted: writing fails as on a full disk."""
    store = tmp_path / "s.zarr"
    kill_after(launcher, store, commits=3, delay=0.0)
    sizes = sorted(path.stat().st_size for path in whole.rglob("c/*/0/0/0"))
    status, output = launcher.run(store, limit=sizes[len(sizes) // 2])
    assert status == 1
    assert "error: cannot write" in output
    assert "File too large; this block needs" in output
    assert "Traceback" not in output
    assert not list(store.rglob("*.tmp"))
    assert not list(store.glob("leases/*.lease"))
    status, output = launcher.run(store)
    assert status == 0, output
    assert store_kit.files(store) == store_kit.files(whole)


def test_a_full_disk(launcher: Launcher, whole: Path, tmp_path: Path, store_kit: Any) -> None:
    """Fault F3 on a real file system: one message, and the same command when there is room."""
    disk = tmp_path / "disk"
    disk.mkdir()
    with store_kit.mounted(disk, "-t tmpfs -o size=4m none"):
        store = disk / "s.zarr"
        free = os.statvfs(disk).f_bavail * 4096
        (disk / "ballast").write_bytes(bytes(free - 700_000))
        status, output = launcher.run(store)
        assert status == 1, output
        assert "error: cannot write" in output
        assert "No space left on device" in output
        assert "Traceback" not in output
        assert 0 < committed(store) < 32
        assert verify_store(store, deep=True).bad == ()
        assert not list(disk.rglob("*.tmp"))
        (disk / "ballast").unlink()
        status, output = launcher.run(store)
        assert status == 0, output
        assert store_kit.files(store) == store_kit.files(whole)


def test_a_disk_without_room_for_a_lease(tiny: Any, tmp_path: Path, store_kit: Any) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    with store_kit.mounted(disk, "-t tmpfs -o size=4m none"):
        config = tiny.extract_config(disk / "s.zarr")
        extract(config)
        block = next((disk / "s.zarr/commits").iterdir())
        block.unlink()

        def fill_the_disk() -> None:
            with (disk / "ballast").open("wb", buffering=0) as file:
                while file.write(bytes(4096)):
                    pass

        def when_the_lease_is_taken() -> None:
            with pytest.raises(OSError, match="No space left"):
                fill_the_disk()

        with (
            pytest.raises(StoreError, match=r"cannot write .*: No space left .*; \d+ bytes are fr"),
            store_kit.at_call("take", when_the_lease_is_taken),
        ):
            extract(config)
        assert not list(disk.glob("s.zarr/leases/*.lease"))
        (disk / "ballast").unlink()
        extract(config)
        assert store_kit.files(disk / "s.zarr") == store_kit.files(tiny.train)


def test_a_read_only_disk(tiny: Any, tmp_path: Path, store_kit: Any) -> None:
    """Fault F10."""
    config = tiny.extract_config(tmp_path / "s.zarr")
    extract(config)
    next((tmp_path / "s.zarr/commits").iterdir()).unlink()
    before = store_kit.files(tmp_path)
    with (
        store_kit.read_only(tmp_path),
        pytest.raises(
            StoreError, match=r"cannot write .*: (Read-only|Permission).* mend the cause"
        ),
    ):
        extract(config)
    assert store_kit.files(tmp_path) == before
