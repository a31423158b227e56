"""The store on disk: what is read is what was committed, or an exception (law L4)."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from cachedet.errors import (
    CodecError,
    CorruptBlockError,
    MissingFeatureError,
    StoreError,
    StoreMismatchError,
)
from cachedet.store.blocks import Block
from cachedet.store.manifest import Manifest, pictures_digest, truth_digest
from cachedet.store.reader import FeatureStore
from cachedet.store.records import commit_path, shard_path
from cachedet.store.verify import describe_store, verify_store
from cachedet.store.writer import StoreWriter
from cachedet.structures import Features, FeatureSpec, LevelSpec, Preprocessing, Truth

SPEC = FeatureSpec(
    (LevelSpec(name="C4", channels=3, stride=16), LevelSpec(name="C5", channels=2, stride=32))
)
CONTENTS = np.arange(5, dtype=np.uint64) + 1


@pytest.fixture
def truth(truth_of: Callable[..., Truth]) -> Truth:
    boxes = [[[1, 2, 30, 40, 1, 0]], [], [[5, 5, 9, 9, 0, 1]], [], [[0, 0, 50, 60, 2, 0]]]
    return truth_of([(96, 128), (96, 128), (128, 96), (96, 128), (90, 128)], boxes)


def make_manifest(truth: Truth, **changes: object) -> Manifest:
    manifest = Manifest(
        spec=SPEC,
        preprocessing=Preprocessing(mean=(0, 0, 0), std=(1, 1, 1), interpolation="bicubic"),
        backbone="test_resnet",
        weights="random",
        weights_digest="d" * 64,
        image_size=128,
        views=("base", "hflip"),
        codec="fp16",
        block_size=2,
        batch_size=2,
        truth_digest=truth_digest(truth),
        pictures_digest=pictures_digest(CONTENTS),
        categories=truth.categories,
        skipped=(("bad.jpg", "truncated"),),
        versions={"torch": "2"},
    )
    return replace(manifest, **changes)  # type: ignore[arg-type]


def features_of(block: Block) -> Features:
    """Recognisable maps: picture, view and level in every value."""
    flip = 100.0 if block.view == "hflip" else 0.0
    return {
        level: torch.stack([torch.full(shape, row + flip + place * 0.5) for row in block.rows])
        for place, (level, shape) in enumerate(SPEC.map_shapes(block.bucket).items())
    }


def open_writer(root: Path, truth: Truth, **changes: object) -> StoreWriter:
    manifest = make_manifest(truth, **changes)
    return StoreWriter.open(root, manifest=manifest, truth=truth, contents=CONTENTS)


@pytest.fixture
def root(tmp_path: Path, truth: Truth) -> Path:
    writer = open_writer(tmp_path / "s.zarr", truth)
    for block in writer.missing_blocks():
        writer.write(block, features_of(block))
    return writer.root


def test_round_trip(root: Path, truth: Truth) -> None:
    store = FeatureStore.open(root)
    store.require_complete()
    assert len(store) == 5
    assert store.manifest == make_manifest(truth)
    for row in range(5):
        for view in ("base", "hflip"):
            features = store.read(row, view)
            shapes = SPEC.map_shapes(store.geometry(row, view).padded_hw)
            assert {level: tuple(m.shape) for level, m in features.items()} == shapes
            expected = row + (100.0 if view == "hflip" else 0.0)
            assert float(features["C4"].min()) == float(features["C4"].max()) == expected
            assert float(features["C5"].min()) == expected + 0.5
    assert store.targets(0, "hflip").boxes.tolist() == [[98.0, 2.0, 127.0, 40.0]]
    assert store.truth.file_names == truth.file_names
    assert list(store.read(0, "base", ["C5"])) == ["C5"]


def test_any_zarr_tool_reads_it(root: Path) -> None:
    group = zarr.open_group(root, mode="r")
    array = group["hflip/b96x128/C5"]
    assert isinstance(array, zarr.Array)
    assert array.shape == (4, 2, 3, 4)
    assert array.chunks == (1, 2, 3, 4)
    assert array.shards == (2, 2, 3, 4)
    np.testing.assert_array_equal(np.asarray(array[1]), np.full((2, 3, 4), 101.5))


def test_maps_of_zeros_are_written_too(tmp_path: Path, truth: Truth) -> None:
    writer = open_writer(tmp_path / "s.zarr", truth)
    for block in writer.missing_blocks():
        writer.write(block, {k: torch.zeros_like(v) for k, v in features_of(block).items()})
    assert float(FeatureStore.open(writer.root).read(3, "base")["C4"].abs().max()) == 0.0


def test_an_unfinished_store_says_so_and_continues(tmp_path: Path, truth: Truth) -> None:
    writer = open_writer(tmp_path / "s.zarr", truth)
    first = writer.missing_blocks()[0]
    writer.write(first, features_of(first))
    store = FeatureStore.open(writer.root)
    assert float(store.read(first.rows[0], "base")["C4"].max()) == first.rows[0]
    with pytest.raises(MissingFeatureError, match="5 of 6 blocks are not committed"):
        store.require_complete()
    with pytest.raises(MissingFeatureError, match="hflip-b96x128-000000 was never committed"):
        store.read(0, "hflip")
    again = open_writer(writer.root, truth)
    assert again.missing_blocks() == writer.missing_blocks() == list(writer.blocks[1:])


def test_a_reader_sees_only_what_was_committed_when_it_opened(tmp_path: Path, truth: Truth) -> None:
    writer = open_writer(tmp_path / "s.zarr", truth)
    store = FeatureStore.open(writer.root)
    block = writer.blocks[0]
    writer.write(block, features_of(block))
    with pytest.raises(MissingFeatureError):
        store.read(block.rows[0], block.view)


def test_shards_without_a_record_do_not_exist(root: Path, truth: Truth) -> None:
    block = open_writer(root, truth).blocks[1]
    commit_path(root, block).unlink()
    with pytest.raises(MissingFeatureError):
        FeatureStore.open(root).read(block.rows[0], block.view)
    writer = open_writer(root, truth)
    assert writer.missing_blocks() == [block]
    writer.write(block, features_of(block))
    FeatureStore.open(root).require_complete()


def test_leftovers_of_a_dead_writer_are_removed(root: Path, truth: Truth) -> None:
    leftovers = [root / "commits" / "x.json.77.tmp", root / "base" / "b96x128" / "0.u.partial"]
    for path in leftovers:
        path.write_bytes(b"half")
    open_writer(root, truth)
    assert not any(path.exists() for path in leftovers)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def flip_bit(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        Path.unlink,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(bytes(path.stat().st_size)),
        lambda path: flip_bit(path, 0),  # a value of the first chunk
        lambda path: flip_bit(path, -6),  # the shard's index
        lambda path: flip_bit(path, -1),  # the checksum of the index
    ],
)
def test_a_damaged_shard_is_an_error_and_can_be_mended(
    root: Path, truth: Truth, damage: Callable[[Path], object]
) -> None:
    block = open_writer(root, truth).blocks[0]
    path = root / shard_path(block, "C4")
    damage(path)
    with pytest.raises(CorruptBlockError, match=r"base/b96x128/C4/c/0/0/0/0.*verify STORE --deep"):
        FeatureStore.open(root).read(block.rows[0], block.view)
    report = verify_store(root, deep=True)
    assert [bad.path for bad in report.bad] == [path]
    assert not report.is_good
    assert report.to_json()["ok"] is False
    report.bad[0].record.unlink()
    writer = open_writer(root, truth)
    for missing in writer.missing_blocks():
        writer.write(missing, features_of(missing))
    assert verify_store(root, deep=True).is_good


def test_a_hole_in_a_shard_is_never_zeros(root: Path, truth: Truth) -> None:
    """A chunk that zarr thinks was never written reads as NaN, which the reader refuses."""
    block = open_writer(root, truth).blocks[0]
    path = root / shard_path(block, "C4")
    array = zarr.open_array(root, path=f"{block.group}/C4", mode="r+")
    array = array.with_config({"write_empty_chunks": True})
    array[0:2] = np.full((2, 3, 6, 8), np.nan)  # same bytes on disk, as a forger would leave them
    assert path.exists()
    with pytest.raises(CorruptBlockError, match="values that were never written"):
        FeatureStore.open(root).read(block.rows[0], block.view)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("manifest.json", StoreError, "is damaged|was altered|not a manifest|store format"),
        ("commits/base-b96x128-000000.json", CorruptBlockError, "commit record is damaged"),
    ],
)
@pytest.mark.parametrize("share", [0.1, 0.35, 0.6, 0.9])
def test_a_flipped_bit_in_metadata_is_noticed(
    root: Path, name: str, error: type[Exception], message: str, share: float
) -> None:
    path = root / name
    flip_bit(path, int(share * path.stat().st_size))
    with pytest.raises(error, match=message):
        FeatureStore.open(root)


@pytest.mark.parametrize("share", [0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95])
def test_a_flipped_bit_in_the_truth_is_noticed_or_harmless(
    root: Path, truth: Truth, share: float
) -> None:
    """Some bytes of a zip archive are dates and permissions; every other one is checked."""
    path = root / "truth.npz"
    flip_bit(path, int(share * path.stat().st_size))
    found = None
    with contextlib.suppress(StoreError):
        found = FeatureStore.open(root).truth
    assert found is None or truth_digest(found) == truth_digest(truth)


def test_damaged_array_metadata_is_an_error(root: Path) -> None:
    (root / "base" / "b96x128" / "C4" / "zarr.json").write_text("{")
    with pytest.raises(CorruptBlockError, match="C4"):
        FeatureStore.open(root).read(0, "base")


def test_changed_inputs_are_refused_by_name(root: Path, truth: Truth) -> None:
    with pytest.raises(StoreMismatchError, match="codec: 'fp16' in the store, 'fp32' now"):
        open_writer(root, truth, codec="fp32")
    with pytest.raises(
        StoreMismatchError, match="weights_digest: dddddddddddd in.*image_size: 128 in"
    ):
        open_writer(root, truth, image_size=256, weights_digest="e")
    contents = CONTENTS.copy()
    contents[3] = 99
    manifest = make_manifest(truth, pictures_digest=pictures_digest(contents))
    with pytest.raises(StoreMismatchError, match=r"gone: picture_3.jpg\. Extract into a new"):
        StoreWriter.open(root, manifest=manifest, truth=truth, contents=contents)
    open_writer(root, truth, weights="other words", versions={})  # not part of the identity


def test_other_folders_are_left_alone(tmp_path: Path, truth: Truth) -> None:
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(StoreError, match="is not a feature store"):
        open_writer(tmp_path, truth)
    with pytest.raises(StoreError, match=r"is not a feature store: it has no manifest.json"):
        FeatureStore.open(tmp_path)
    assert (tmp_path / "photo.jpg").exists()


def test_a_newer_format_is_refused(root: Path) -> None:
    values = json.loads((root / "manifest.json").read_text())
    (root / "manifest.json").write_text(json.dumps(values | {"format_version": 2}))
    with pytest.raises(StoreError, match="has store format 2, .* reads up to 1; upgrade"):
        FeatureStore.open(root)


def test_wrong_questions(root: Path) -> None:
    store = FeatureStore.open(root)
    with pytest.raises(MissingFeatureError, match="holds views base, hflip, not 'crop'"):
        store.read(0, "crop")
    with pytest.raises(MissingFeatureError, match="has rows 0 to 4, got row 5"):
        store.read(5, "base")
    with pytest.raises(MissingFeatureError, match="holds levels C4, C5, not 'C3'"):
        store.read(0, "base", ["C3"])


def test_wrong_maps_are_refused(tmp_path: Path, truth: Truth) -> None:
    writer = open_writer(tmp_path / "s.zarr", truth)
    block = writer.blocks[0]
    maps = features_of(block)
    with pytest.raises(StoreError, match=r"block base-b96x128-000000: expected maps"):
        writer.write(block, {"C4": maps["C4"]})
    maps["C5"][1, 0, 0, 0] = float("nan")
    with pytest.raises(CodecError, match=r"picture_1.jpg: level C5 holds nan"):
        writer.write(block, maps)
    assert block in writer.missing_blocks()


def test_a_disk_too_small_is_known_before_anything_is_written(tmp_path: Path, truth: Truth) -> None:
    giant = FeatureSpec((LevelSpec(name="C4", channels=10**12, stride=16),))
    with pytest.raises(StoreError, match=r"GB are still to be written, the disk has .* --codec"):
        open_writer(tmp_path / "s.zarr", truth, spec=giant)
    assert not (tmp_path / "s.zarr").exists()


def test_planned_bytes_are_what_is_written(tmp_path: Path, truth: Truth) -> None:
    writer = open_writer(tmp_path / "s.zarr", truth, block_size=1)
    planned = writer.planned_nbytes(writer.blocks)
    for block in writer.blocks:
        writer.write(block, features_of(block))
    per_shard_index_checksum = 4 * len(writer.blocks) * len(SPEC)
    assert writer.nbytes_written == planned + per_shard_index_checksum
    assert FeatureStore.open(writer.root).nbytes == writer.nbytes_written


def test_description(root: Path) -> None:
    description = describe_store(root)
    assert json.loads(json.dumps(description)) == description
    assert description["boxes_per_class"] == {"class 2": 1, "class 5": 1, "class 90": 1}
    assert description["buckets"] == {"96x128": 4, "128x96": 1}
    assert description["blocks_missing"] == 0
    assert description["skipped"] == [["bad.jpg", "truncated"]]


WRITE_SCRIPT = """
import sys, time, torch
sys.path.insert(0, {tests!r})
import importlib.util
from pathlib import Path
def load(name):
    spec = importlib.util.spec_from_file_location(name, Path({tests!r}) / (name + ".py"))
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
conftest, store = load("conftest"), load("store/test_store")
truth = conftest.make_truth([(96, 128)] * 40, [[] for _ in range(40)])
writer = store.StoreWriter.open(Path({root!r}), truth=truth, contents=store.CONTENTS,
    manifest=store.make_manifest(truth))
print("open", flush=True)
for block in writer.missing_blocks():
    writer.write(block, store.features_of(block))
print("done", flush=True)
"""


def run_writer(root: Path, *, limit_bytes: int | None = None) -> subprocess.Popen[str]:
    script = WRITE_SCRIPT.format(tests=str(Path(__file__).parents[1]), root=str(root))

    def limit() -> None:
        if limit_bytes is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))

    return subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=limit,
    )


def test_killed_at_random_moments_it_still_finishes_whole(tmp_path: Path) -> None:
    root = tmp_path / "s.zarr"
    rng = np.random.default_rng(0)
    for _ in range(4):
        with run_writer(root) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(float(rng.uniform(0.0, 0.25)))
            process.send_signal(signal.SIGKILL)
    with run_writer(root) as process:
        output, errors = process.communicate()
    assert "done" in output, errors
    assert verify_store(root, deep=True).is_good
    store = FeatureStore.open(root)
    for row in range(40):
        assert float(store.read(row, "hflip")["C5"].max()) == row + 100.5
    assert not [p for p in root.rglob("*") if p.name.endswith((".tmp", ".partial"))]


def test_a_full_disk_is_one_clear_message(tmp_path: Path) -> None:
    root = tmp_path / "s.zarr"
    with run_writer(root, limit_bytes=400) as process:
        _, errors = process.communicate()
    assert "StoreError: cannot write" in errors
    assert "MB are free. What was committed is safe" in errors
    shutil.rmtree(root, ignore_errors=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_no_permission_is_one_clear_message(tmp_path: Path, truth: Truth) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match="cannot write"):
        open_writer(tmp_path / "s.zarr", truth)
    tmp_path.chmod(0o700)
