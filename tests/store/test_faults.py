"""Faults F1, F3, F6, F10, F13, F14: killed writers, full disks, two writers at once."""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cachedet.errors import MissingFeatureError, StoreError
from cachedet.store.reader import FeatureStore
from cachedet.store.verify import verify_store

WRITE_ALL = """
writer = kit.open_writer(root, codec="int8")
print("open", flush=True)
for block in writer.missing_blocks():
    writer.write(block, kit.noise_of(block))
print("done", flush=True)
"""

# One process forks a writer for each operation that could change the store and lets it die there:
# starting Python each time would take minutes.
KILL_AT_EACH_STEP = """
def prepare(folder):
    folder.mkdir(parents=True)
def write(folder):
    kit.fill(folder / "s.zarr", kit.noise_of, codec="int8")
prepare(root / "all")
assert kit.act_and_die(root / "all", write, 0) == 0
print("died", kit.die_at_each_step(root / "all", prepare, write, every=EVERY), flush=True)
"""


def uninterrupted(tmp_path: Path, kit: Any, *, images: int) -> dict[str, bytes]:
    """Files of a store whose writer nothing disturbed."""
    root = tmp_path / "uninterrupted.zarr"
    output, errors = kit.run(root, WRITE_ALL, images=images)
    assert "done" in output, errors
    files: dict[str, bytes] = kit.files(root)
    return files


def assert_only_whole_blocks(root: Path) -> None:
    """What a reader sees after a crash: committed blocks that verify, nothing else."""
    if not root.exists():
        return
    store = FeatureStore.open(root)
    missing = {block.name for block in store.missing_blocks()}
    report = verify_store(root, deep=True)
    assert not report.bad
    assert set(report.missing) == missing
    for block in store.blocks:
        for row in block.rows:
            if block.name in missing:
                with pytest.raises(MissingFeatureError):
                    store.read(row, block.view)
            else:
                store.read(row, block.view)


def test_killed_at_each_step(tmp_path: Path, kit: Any, thorough: bool) -> None:
    """Creation and two commits: dead at file operations, then finished.

    At every third, unless thorough: as files are opened and renamed in turn, both are met.
    """
    every = 1 if thorough else 3
    whole = uninterrupted(tmp_path, kit, images=2)
    body = f"EVERY = {every}\n{KILL_AT_EACH_STEP}"
    output, errors = kit.run(tmp_path / "k", body, images=2)
    *steps, last = output.splitlines()
    assert last.startswith("died"), errors
    renamed = [step for step in steps if "os.rename" in step]
    names = ("creating", "manifest.json", "images.npz", "truth-", "base-b96x128-000000.json", " 0.")
    for name in names:
        assert any(name in step for step in renamed), f"no rename of {name}"
    assert len(steps) > 60, "the hook sees what a writer does"
    for step in steps[::every]:
        root = tmp_path / "k" / step.split()[0] / "s.zarr"
        assert_only_whole_blocks(root)
        kit.blank(2).fill(root, kit.noise_of, codec="int8")
        assert kit.files(root) == whole, step
        assert [path.name for path in root.parent.iterdir()] == ["s.zarr"]


# One process forks a writer for each of 50 moments: starting Python 50 times would take minutes.
# A moment is a number of further commits and some time more, so that a slow machine sees as many.
KILL_AT_RANDOM = """
rng = __import__("random").Random(0)
import torch
torch.set_num_threads(1)
committed = lambda: len(list(root.glob("commits/*.json")))
lives = lambda child: os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
for turn in range(50):
    goal = committed() + rng.choice([0, 0, 1, 1, 2])
    child = os.fork()
    if child == 0:
        try:
            writer = kit.open_writer(root, codec="int8")
            for block in writer.missing_blocks():
                writer.write(block, kit.noise_of(block))
        finally:
            os._exit(0)
    begun = time.perf_counter()
    while committed() < goal and lives(child):
        time.sleep(0.001)
    took = time.perf_counter() - begun
    time.sleep(rng.uniform(0.0, max(0.02, took)))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    print(committed(), flush=True)
print("killed", flush=True)
"""


def test_killed_at_50_random_moments(tmp_path: Path, kit: Any) -> None:
    whole = uninterrupted(tmp_path, kit, images=300)
    root = tmp_path / "r" / "s.zarr"
    root.parent.mkdir()
    output, errors = kit.run(root, KILL_AT_RANDOM, images=300)
    assert "killed" in output, errors
    committed = [int(line) for line in output.splitlines()[:-1]]
    assert len(set(committed)) > 15, (
        f"{committed}: the kills fall into different moments of the work"
    )
    assert_only_whole_blocks(root)
    kit.blank(300).fill(root, kit.noise_of, codec="int8")
    assert kit.files(root) == whole
    assert [path.name for path in root.parent.iterdir()] == ["s.zarr"]


@pytest.mark.parametrize("limit", [400, 1500])
def test_a_full_disk_is_one_clear_message_and_can_be_continued(
    tmp_path: Path, limit: int, kit: Any
) -> None:
    """A limit on file sizes fails like a full disk: 400 bytes in creation, 1,500 in a commit."""
    root = tmp_path / "d" / "s.zarr"
    root.parent.mkdir()
    body = WRITE_ALL.replace('"int8"', '"fp32", block_size=16')
    _, errors = kit.run(root, body, file_limit=limit)
    assert "StoreError: cannot write" in errors
    assert re.search(r"File too large.*B are free. What was committed is safe", errors)
    assert not list(root.parent.rglob("*.tmp"))
    output, errors = kit.run(root, body)
    assert "done" in output, errors
    assert verify_store(root, deep=True).is_good


def test_a_small_disk(tmp_path: Path, kit: Any) -> None:
    """A real file system that is full, and then is not."""
    disk = tmp_path / "disk"
    disk.mkdir()
    with kit.mounted(disk, "-t tmpfs -o size=1m none"):
        body = "writer = kit.open_writer(root)\n" + WRITE_ALL.replace("int8", "fp16")
        (disk / "ballast").write_bytes(bytes(400_000))
        _, errors = kit.run(disk / "s.zarr", body, images=60)
        assert re.search(r"the disk has|No space left on device", errors), errors
        assert not list(disk.rglob("*.tmp"))
        (disk / "ballast").unlink()
        output, errors = kit.run(disk / "s.zarr", body, images=60)
        assert "done" in output, errors
        assert verify_store(disk / "s.zarr", deep=True).is_good


WRITE_TOGETHER = """
from cachedet.store.files.leases import LeaseBook
writer = kit.open_writer(root, codec="int8")
gate = root.parent / "gate"
gate.mkdir(exist_ok=True)
(gate / str(os.getpid())).touch()
while len(list(gate.iterdir())) < 3:
    time.sleep(0.001)
ours = sum(writer.write(block, kit.noise_of(block)) for block in writer.blocks)
print("done", ours, flush=True)
"""


def test_three_writers_on_the_same_blocks_at_once(tmp_path: Path, kit: Any) -> None:
    """Without leases: commits are serialised, the first wins, every hash matches its bytes."""
    whole = uninterrupted(tmp_path, kit, images=20)
    root = tmp_path / "t" / "s.zarr"
    root.parent.mkdir()
    processes = [kit.start(root, WRITE_TOGETHER) for _ in range(3)]
    outputs = [process.communicate() for process in processes]
    assert all("done" in output for output, _ in outputs), outputs
    counts = [int(output.split()[-1]) for output, _ in outputs]
    assert sum(counts) == 20, counts
    assert verify_store(root, deep=True).is_good
    assert kit.files(root) == whole


def test_a_reader_beside_a_writer_sees_only_committed_blocks(tmp_path: Path, kit: Any) -> None:
    root = tmp_path / "s.zarr"
    writer = kit.open_writer(root)
    stop = threading.Event()
    seen: list[int] = []

    def read_again_and_again() -> None:
        while not stop.is_set():
            store = FeatureStore.open(root)
            missing = {block.name for block in store.missing_blocks()}
            seen.append(len(store.blocks) - len(missing))
            for block in store.blocks:
                if block.name not in missing:
                    for row in block.rows:
                        expected = row + (100.0 if block.view == "hflip" else 0.0)
                        assert float(store.read(row, block.view)["C4"].max()) == expected

    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(read_again_and_again)
        try:
            for block in writer.blocks:
                writer.write(block, kit.features_of(block))
                time.sleep(0.02)
            time.sleep(0.05)
        finally:
            stop.set()
        reader.result()
    assert seen == sorted(seen)
    assert seen[-1] == len(writer.blocks)


def test_a_record_is_gone_for_good_before_its_shards_change(root: Path, kit: Any) -> None:
    """After a power cut the old record must not stand over new shards."""
    (root / "base/b96x128/C4/values/c/0/0/0/0").write_bytes(b"short")
    writer = kit.open_writer(root)
    steps: list[tuple[str, str]] = []

    def watch(frame: Any, event: str, _: object) -> None:
        name = frame.f_code.co_name
        if event == "call" and name in ("unlink", "replace", "sync_directory"):
            path = frame.f_locals.get("self", frame.f_locals.get("path"))
            steps.append((name, str(path.relative_to(root))))

    sys.setprofile(watch)
    try:
        assert writer.write(writer.blocks[0], kit.features_of(writer.blocks[0]))
    finally:
        sys.setprofile(None)
    gone = steps.index(("unlink", "commits/base-b96x128-000000.json"))
    assert steps[gone + 1] == ("sync_directory", "commits")
    assert gone < min(step for step, (name, _) in enumerate(steps) if name == "replace")


def test_a_block_written_anew_is_not_mixed_into_an_open_store(root: Path, kit: Any) -> None:
    store = FeatureStore.open(root)
    store._chunks._most_files = 1
    store.read(0, "base", ["C4"])
    (root / "commits/base-b96x128-000000.json").unlink()
    kit.fill(root, kit.noise_of)
    assert float(store.read(0, "base", ["C4"])["C4"].max()) == 0.0  # still the open, old file
    store.read(2, "base", ["C4"])  # now the only open file is another one
    with pytest.raises(StoreError, match=r"was written anew while this store was open; open the"):
        store.read(0, "base", ["C4"])


def test_a_read_only_store(root: Path, kit: Any) -> None:
    before = kit.files(root)
    with kit.read_only(root):
        store = FeatureStore.open(root)
        assert float(store.read(4, "base")["C4"].max()) == 4.0
        assert verify_store(root, deep=True).is_good
        message = r"cannot write .*: (Read-only|Permission).*repair the"
        with pytest.raises(StoreError, match=message):
            kit.open_writer(root)
    assert kit.files(root) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_no_permission_is_one_clear_message(tmp_path: Path, kit: Any) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match="cannot write"):
        kit.open_writer(tmp_path / "s.zarr")
    tmp_path.chmod(0o700)


READ_WITH_FEW_FILES = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
from cachedet.store.reader import FeatureStore
store = FeatureStore.open(root)
for turn in range(3):
    for row in range(len(store)):
        for view in ("base", "hflip"):
            store.read(row, view)
print("done", len(os.listdir("/proc/self/fd")), flush=True)
held = []
try:
    while True:
        held.append(open("/dev/null"))
except OSError:
    pass
try:
    FeatureStore.open(root)
except Exception as error:
    text = f"{type(error).__name__}: {error}"
for file in held:
    file.close()
print(text, flush=True)
"""


def test_open_files_are_bounded(tmp_path: Path, kit: Any) -> None:
    """80 shards of two parts, 64 files allowed."""
    root = tmp_path / "s.zarr"
    kit.blank(80).fill(root, kit.noise_of, codec="int8", block_size=2)
    output, errors = kit.run(root, READ_WITH_FEW_FILES, images=80)
    assert "done" in output, errors
    assert int(output.split()[1]) < 40
    assert "StoreError" in output
    assert "Too many open files" in output or "too many files open" in output


def test_reading_from_many_threads_gives_the_same(root: Path) -> None:
    """Files are closed and opened under the readers' hands."""
    store = FeatureStore.open(root)
    store._chunks._most_files = 1

    def read(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(300):
            row = int(rng.integers(5))
            assert float(store.read(row, "hflip")["C5"].max()) == row + 100.5

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(read, range(4)))
