"""Replacing the boxes of a store: old or new, whole, and no byte of a feature is written."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from cachedet.errors import StoreError, StoreMismatchError
from cachedet.store.files.source import LocalFiles
from cachedet.store.format.manifest import Manifest, load_manifest, truth_digest
from cachedet.store.prune import prune_store
from cachedet.store.reader import FeatureStore
from cachedet.store.truth import replace_truth
from cachedet.store.verify import verify_store
from cachedet.structures import Annotations, CategoryMap


@pytest.fixture
def corrected(annotations: Annotations) -> Annotations:
    """A box moved, one of another class, and a class more."""
    boxes = annotations.boxes.copy()
    boxes[0] += 1
    return replace(
        annotations,
        boxes=boxes,
        labels=np.array([0, 3, 2]),
        categories=CategoryMap(ids=(2, 5, 90, 91), names=("a", "b", "c", "d")),
    )


def manifest_of(root: Path) -> Manifest:
    return load_manifest(LocalFiles(root))


def features(files: dict[str, bytes]) -> dict[str, bytes]:
    """All that is not labels."""
    return {k: v for k, v in files.items() if k != "manifest.json" and not k.startswith("truth-")}


def test_only_the_manifest_and_a_new_file_are_written(
    root: Path, corrected: Annotations, kit: Any
) -> None:
    before, old = kit.files(root), kit.truth(root)
    replace_truth(root, manifest_of(root), corrected)
    after = kit.files(root)
    assert features(after) == features(before)
    assert after[old.name] == before[old.name]  # for who is opening the store just now
    assert kit.truth(root) != old
    store = FeatureStore.open(root)
    assert truth_digest(store.annotations) == truth_digest(corrected)
    assert store.class_names == ("a", "b", "c", "d")
    assert store.missing_blocks() == []
    assert verify_store(root, deep=True).is_good
    assert zarr.open_group(root, mode="r")["base/b96x128/C4/values"].shape == (4, 3, 6, 8)


def test_it_is_the_store_that_extraction_would_have_made(
    root: Path, tmp_path: Path, corrected: Annotations, kit: Any
) -> None:
    replace_truth(root, manifest_of(root), corrected)
    assert {w.kind: len(w.paths) for w in prune_store(root, dry_run=False).waste}["orphan"] == 1
    made = kit.of(corrected).fill(tmp_path / "made.zarr")
    assert kit.files(root) == kit.files(made)


def test_the_next_time_removes_what_the_last_one_left(
    root: Path, annotations: Annotations, corrected: Annotations, kit: Any
) -> None:
    first = kit.truth(root)
    replace_truth(root, manifest_of(root), corrected)
    second = kit.truth(root)
    third = replace(corrected, boxes=corrected.boxes + 1)
    replace_truth(root, manifest_of(root), third)
    assert not first.exists()
    assert {path.name for path in root.glob("truth-*")} == {second.name, kit.truth(root).name}
    replace_truth(root, manifest_of(root), corrected)  # back to a name that is there
    assert truth_digest(FeatureStore.open(root).annotations) == truth_digest(corrected)


def test_dead_at_each_step(
    root: Path, annotations: Annotations, corrected: Annotations, kit: Any
) -> None:
    """The store opens with the old boxes or the new ones, and the next call puts all in order."""
    digests = [truth_digest(annotations), truth_digest(corrected)]
    held = manifest_of(root)

    def prepare(folder: Path) -> None:
        shutil.copytree(root, folder)

    def act(folder: Path) -> None:
        replace_truth(folder, held, corrected)

    steps = kit.die_at_each_step(root, prepare, act)
    assert steps > 4, "the hook sees what it does"
    for step in range(1, steps + 1):
        folder = root.parent / str(step)
        store = FeatureStore.open(folder)
        assert store.missing_blocks() == []
        is_done = step == steps  # the last one ran to its end
        assert truth_digest(store.annotations) == digests[is_done]
        replace_truth(folder, manifest_of(folder), corrected)
        assert truth_digest(FeatureStore.open(folder).annotations) == truth_digest(corrected)
        prune_store(folder, dry_run=False)
        assert len([*folder.glob("truth-*")]) == 1


def test_an_open_store_reads_on(root: Path, corrected: Annotations, kit: Any) -> None:
    store = FeatureStore.open(root)
    for shift in (0, 1, 2):
        replace_truth(root, manifest_of(root), replace(corrected, boxes=corrected.boxes + shift))
    assert float(store.read(4, "base")["C4"].max()) == 4.0
    assert store.class_names == ("class 2", "class 5", "class 90")


def test_a_store_relabelled_twice_while_it_is_opened(
    root: Path, annotations: Annotations, corrected: Annotations, kit: Any
) -> None:
    """The boxes that the manifest named are gone when they are read: it is read again."""

    def relabel() -> None:
        for each in (replace(corrected, boxes=corrected.boxes + 1), corrected):
            replace_truth(root, manifest_of(root), each)

    with kit.at_call("load_truth", relabel):
        store = FeatureStore.open(root)
    assert truth_digest(store.annotations) == truth_digest(corrected)


def test_a_writer_goes_on(tmp_path: Path, corrected: Annotations, kit: Any) -> None:
    root = tmp_path / "half.zarr"
    writer = kit.open_writer(root)
    first, *rest = writer.blocks
    writer.write(first, kit.features_of(first))
    replace_truth(root, manifest_of(root), corrected)
    for block in rest:
        assert writer.write(block, kit.features_of(block))
    store = FeatureStore.open(root)
    assert store.missing_blocks() == []
    assert store.num_classes == 4
    message = (
        r"has other boxes or classes for the same images\. .*classes changed in the annotations "
        r"of: image_0.jpg, image_2.jpg.*`cachedet relabel .*half.zarr --annotations FILE` takes"
    )
    with pytest.raises(StoreMismatchError, match=message):
        kit.open_writer(root)
    kit.of(corrected).open_writer(root)


def test_an_unfinished_store_is_relabelled_and_then_finished(
    tmp_path: Path, corrected: Annotations, kit: Any
) -> None:
    root = tmp_path / "half.zarr"
    writer = kit.open_writer(root)
    writer.write(writer.blocks[0], kit.features_of(writer.blocks[0]))
    replace_truth(root, manifest_of(root), corrected)
    kit.of(corrected).fill(root, views=("base",))
    assert verify_store(root, deep=True).missing == ()


def test_two_at_once(root: Path, corrected: Annotations, kit: Any) -> None:
    held = manifest_of(root)
    replace_truth(root, held, corrected)
    before = kit.files(root)
    with pytest.raises(StoreError, match="was relabelled or replaced by another process meanwhile"):
        replace_truth(root, held, replace(corrected, boxes=corrected.boxes + 1))
    assert kit.files(root) == before


def test_views_may_be_added_meanwhile(tmp_path: Path, corrected: Annotations, kit: Any) -> None:
    root = kit.fill(tmp_path / "s.zarr", views=("base",))
    held = manifest_of(root)
    kit.fill(root, views=("base", "hflip"))
    replace_truth(root, held, corrected)
    assert FeatureStore.open(root).views == ("base", "hflip")


def test_a_read_only_store(root: Path, corrected: Annotations, kit: Any) -> None:
    with kit.read_only(root), pytest.raises(StoreError, match="cannot write .*s.zarr"):
        replace_truth(root, manifest_of(root), corrected)


def test_links_are_left_alone(root: Path, tmp_path: Path, corrected: Annotations, kit: Any) -> None:
    (tmp_path / "mine.npz").write_bytes(b"mine")
    link = root / "truth-0123456789abcdef.npz"
    link.symlink_to(tmp_path / "mine.npz")
    replace_truth(root, manifest_of(root), corrected)
    prune_store(root, dry_run=False)
    assert link.read_bytes() == b"mine"


@pytest.mark.parametrize("named", ["../../victim", "f" * 63, "F" * 64])
def test_a_manifest_names_no_file_elsewhere(root: Path, named: str, forger: Any) -> None:
    forger.manifest(root, truth_digest=named)
    with pytest.raises(StoreError, match=r"a digest is .*, no sha256"):
        FeatureStore.open(root)


def test_through_a_url(root: Path, corrected: Annotations) -> None:
    replace_truth(root, manifest_of(root), corrected)
    store = FeatureStore.open(f"file://{root}")
    assert truth_digest(store.annotations) == truth_digest(corrected)
    assert float(store.read(4, "base")["C4"].max()) == 4.0


def test_a_file_that_is_damaged(root: Path, corrected: Annotations, kit: Any) -> None:
    replace_truth(root, manifest_of(root), corrected)
    kit.flip_bit(kit.truth(root), 200)
    message = r"truth-[0-9a-f]{16}.npz is .*`cachedet extract` or `cachedet relabel` with the"
    with pytest.raises(StoreError, match=message):
        verify_store(root, deep=False)
    replace_truth(root, manifest_of(root), corrected)
    assert verify_store(root, deep=False).is_good
