"""Fault F14: an open store in a forked process, and one sent to another process."""

from __future__ import annotations

import multiprocessing
import pickle
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from cachedet.store.reader import FeatureStore
from cachedet.structures import FeatureSpec, LevelSpec

# A child that waits for ever is killed by its alarm; status 14 is that alarm.
FORK = """
import threading
import warnings
import torch
from zarr.storage import LocalStore
from cachedet.errors import StoreError
from cachedet.store.reader import FeatureStore
torch.set_num_threads(1)
# From Python 3.12 on; being read from by threads during the fork is what is tested.
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)

def in_a_child(work):
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        print(work(), flush=True)
        sys.exit(0)  # with the exit handlers of the parent
    assert os.waitpid(child, 0)[1] == 0, "the child failed or hung"

def first_value(store):
    return float(store.read(1, "base")["C4"][0, 0, 0])
"""

FORK_LOCAL = """
store = FeatureStore.open(root)
store._chunks._most_files = 1
stop = threading.Event()

def read_all_the_time():  # so that locks are held when the fork comes
    buffers = store.make_buffers(store.bucket_of(0, "base"), 1, ["C5"])
    while not stop.is_set():
        store.read_encoded([(0, "base")], out=buffers)
        store.read_encoded([(1, "base")], out=buffers)

threads = [threading.Thread(target=read_all_the_time, daemon=True) for _ in range(2)]
for thread in threads:
    thread.start()
print(first_value(store), flush=True)
for turn in range(4):
    in_a_child(lambda: first_value(store))
stop.set()
for thread in threads:
    thread.join()
print(first_value(store), "done")
"""

FORK_STORAGE = """
store = FeatureStore.open(LocalStore(root, read_only=True))
print(first_value(store), flush=True)

def refused():
    try:
        return first_value(store)
    except StoreError as error:
        return error

in_a_child(refused)
in_a_child(lambda: first_value(FeatureStore.open(LocalStore(root, read_only=True))))
print(first_value(store), "done")
"""


@pytest.fixture
def wide_root(tmp_path: Path, kit: Any) -> Path:
    """Two images of 1.4 MB: a fork comes while one is read."""
    levels = (LevelSpec(name=f"C{n}", channels=12_000, stride=1 << n) for n in (4, 5))
    spec = FeatureSpec(tuple(levels))
    writer = kit.blank(2).open_writer(tmp_path / "s.zarr", spec=spec, views=("base",), block_size=1)
    for block in writer.blocks:
        shapes = {"C4": (1, 12_000, 6, 8), "C5": (1, 12_000, 3, 4)}
        writer.write(block, {k: torch.full(s, block.rows[0] + 0.5) for k, s in shapes.items()})
    return Path(writer.root)


def run(root: Path, body: str, kit: Any) -> list[str]:
    with kit.start(root, FORK + body) as process:
        try:
            output, errors = process.communicate(timeout=300)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    assert process.returncode == 0, errors
    assert not errors
    return list(output.splitlines())


def test_a_store_that_was_used_before_a_fork_is_read_in_the_child(
    wide_root: Path, kit: Any
) -> None:
    assert run(wide_root, FORK_LOCAL, kit) == ["1.5"] * 5 + ["1.5 done"]


def test_another_storage_refuses_in_the_child_and_can_be_opened_there(
    wide_root: Path, kit: Any
) -> None:
    before, refused, opened, after = run(wide_root, FORK_STORAGE, kit)
    assert (before, opened, after) == ("1.5", "1.5", "1.5 done")
    assert "was opened before this process was forked" in refused
    assert "open the store in the child, or start it with `spawn`" in refused


def test_a_pickled_store_stays_at_the_moment_it_was_opened(tmp_path: Path, kit: Any) -> None:
    writer = kit.open_writer(tmp_path / "s.zarr")
    first, second = writer.blocks[:2]
    writer.write(first, kit.features_of(first))
    content = pickle.dumps(FeatureStore.open(writer.root))
    writer.write(second, kit.features_of(second))
    store = pickle.loads(content)
    assert [block.name for block in store.missing_blocks()] == [b.name for b in writer.blocks[1:]]


def test_a_store_is_sent_to_a_spawned_process(root: Path) -> None:
    store = FeatureStore.open(root)
    store.read(0, "base")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        features = pool.apply_async(FeatureStore.read, (store, 3, "base")).get(timeout=120)
    assert float(features["C4"].max()) == 3.0
