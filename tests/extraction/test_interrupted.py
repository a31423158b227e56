"""Faults F1, F3, F10 with the whole of `extract`: leases, pipeline and command line take part."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from cachedet.data.shapes import write_shapes
from cachedet.errors import StoreError
from cachedet.extract import extract
from cachedet.store.reader import FeatureStore
from cachedet.store.verify import verify_store


class Launcher:
    """Runs `cachedet extract` again and again on the same images."""

    def __init__(self, nursery: Any, folder: Path) -> None:
        self._nursery = nursery
        self.images = folder / "shapes"
        self.weights = folder / "weights.pth"

    def start(self, store: Path, *, limit: int | None = None) -> Any:
        """A run; at most `limit` bytes in a file."""
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
        before = "" if limit is None else self._nursery.limit_files(limit)
        return self._nursery.start_command(["extract", *flat], before=before)

    def run(self, store: Path, *, limit: int | None = None) -> tuple[int, str]:
        """Exit status and what was printed."""
        with self.start(store, limit=limit) as process:
            output, errors = process.communicate()
        return process.wait(), output + errors


@pytest.fixture(scope="module")
def launcher(nursery: Any, tmp_path_factory: pytest.TempPathFactory) -> Launcher:
    import timm

    folder = tmp_path_factory.mktemp("launcher")
    torch.manual_seed(7)
    torch.save(timm.create_model("test_resnet").state_dict(), folder / "weights.pth")
    write_shapes(folder / "shapes", train=16, val=1)
    return Launcher(nursery, folder)


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
    with launcher.start(store) as process:
        while committed(store) < goal and process.poll() is None:
            time.sleep(0.001)
        time.sleep(delay)
        process.kill()
    assert process.wait() == -signal.SIGKILL
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


def test_ended_by_a_scheduler(launcher: Launcher, whole: Path, tmp_path: Path) -> None:
    """SIGTERM: it says so and gives its leases back, so that another machine need not wait."""
    store = tmp_path / "s.zarr"
    with launcher.start(store) as process:
        while committed(store) < 3:
            time.sleep(0.001)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate()
    assert process.wait() == 143
    assert "interrupted; `extract` continues with the same command" in errors
    assert "Traceback" not in errors
    assert not list(store.glob("leases/*.lease"))
    assert not list(store.rglob("*.tmp"))
    assert 3 <= committed(store) < committed(whole)


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
    with store_kit.mounted(disk, "-t tmpfs -o size=8m none"):
        store = disk / "s.zarr"
        free = os.statvfs(disk).f_bavail * 4096
        stages = (whole / "stages.safetensors").stat().st_size
        (disk / "ballast").write_bytes(bytes(free - stages - 700_000))
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
            StoreError, match=r"cannot write .*: (Read-only|Permission).* repair the cause"
        ),
    ):
        extract(config)
    assert store_kit.files(tmp_path) == before


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (
            "file/s.zarr",
            "cannot write .*file: is a file, not a folder; repair the cause .* another --store",
        ),
        ("file", "cannot write .*file: is a file, not a folder"),
        ("photos", "exists and is not a feature store"),
        ("dangling", "cannot write .*dangling: is a link to nowhere, which is not there"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused_before_any_image_is_opened(
    tiny: Any, tmp_path: Path, place: str, message: str
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("mine")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "no images").mkdir()  # they would be an error of their own
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(StoreError, match=message):
        extract(tiny.extract_config(tmp_path / place, images=tmp_path / "no images"))
    assert sorted(tmp_path.rglob("*")) == before
