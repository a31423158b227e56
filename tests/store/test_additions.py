"""Images that come to a store later: no block it has is written again, whenever a writer dies."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from cachedet.errors import StoreError, StoreMismatchError
from cachedet.store.additions import digest_generations, order_as_stored
from cachedet.store.files.source import LocalFiles
from cachedet.store.format.manifest import load_manifest, truth_digest
from cachedet.store.prune import prune_store
from cachedet.store.reader import FeatureStore
from cachedet.store.truth import replace_truth
from cachedet.store.verify import verify_store
from cachedet.structures import Annotations

EVERY = 0.5  # between values of two levels


@pytest.fixture
def more(annotations_of: Any, annotations: Annotations) -> Annotations:
    """The five images, two more of sizes that are there, one of another size; boxes corrected."""
    boxes = [[[1, 2, 31, 40, 1, 0]], [], [[5, 5, 9, 9, 0, 1]], [], [], [[2, 2, 9, 9, 1, 0]], [], []]
    made: Annotations = annotations_of(
        [*map(tuple, annotations.sizes_hw.tolist()), (96, 128), (128, 96), (64, 128)], boxes
    )
    return made


def grow(kit: Any, root: Path, annotations: Annotations, starts: tuple[int, ...] = (0, 5)) -> Any:
    images_digest, added = digest_generations(annotations, kit.contents_of(annotations), starts)
    return kit.of(annotations).open_writer(root, images_digest=images_digest, added=added)


def finish(kit: Any, writer: Any) -> list[str]:
    """Names of the blocks that were written."""
    missing = writer.missing_blocks()
    for block in missing:
        writer.write(block, kit.features_of(block))
    return [block.name for block in missing]


def test_only_blocks_of_new_images_are_written(root: Path, more: Annotations, kit: Any) -> None:
    before = kit.files(root)
    open_before = FeatureStore.open(root)
    written = finish(kit, grow(kit, root, more))
    assert sorted(written) == sorted(
        f"{view}-{bucket}g1-000000"
        for view in ("base", "hflip")
        for bucket in ("b64x128", "b96x128", "b128x96")
    )
    after = kit.files(root)
    changed = {k for k, content in before.items() if after[k] != content}
    assert changed == {"manifest.json", "zarr.json"}
    store = FeatureStore.open(root)
    assert store.missing_blocks() == []
    assert truth_digest(store.annotations) == truth_digest(more)
    for row in range(8):
        for view, flip in (("base", 0), ("hflip", 100)):
            maps = store.read(row, view)
            assert (float(maps["C4"].max()), float(maps["C5"].max())) == (
                row + flip,
                row + flip + EVERY,
            )
    assert store.buckets("base")[96, 128].tolist() == [0, 1, 3, 4, 5]
    assert verify_store(root, deep=True).is_good
    assert zarr.open_group(root, mode="r")["base/b96x128g1/C4/values"].shape == (1, 3, 6, 8)
    assert float(open_before.read(4, "base")["C4"].max()) == 4.0
    assert len(open_before) == 5
    grow(kit, root, more)  # the same again: nothing to do
    # the old truth
    unneeded = {w.kind: len(w.paths) for w in prune_store(root, dry_run=False).waste}
    assert unneeded == {"leftover": 0, "withdrawn": 0, "orphan": 1, "view": 0, "image": 0}


def test_again_and_with_views(root: Path, more: Annotations, kit: Any) -> None:
    """A third generation; a view that is added later is of all images."""
    finish(kit, grow(kit, root, more.keep_rows(range(6))))
    written = finish(kit, grow(kit, root, more, (0, 5, 6)))
    assert {name.partition("g")[2][:1] for name in written if "g2" in name} == {"2"}
    images_digest, added = digest_generations(more, kit.contents_of(more), (0, 5, 6))
    writer = kit.of(more).open_writer(
        root, images_digest=images_digest, added=added, views=("base", "hflip", "scale-2")
    )
    blocks = [block for block in writer.missing_blocks() if block.view == "scale-2"]
    assert sorted(row for block in blocks for row in block.rows) == list(range(8))
    assert FeatureStore.open(f"file://{root}").annotations.file_names == more.file_names
    prune_store(root, dry_run=False, keep_views=["base"])
    assert verify_store(root, deep=True).is_good


def test_dead_at_each_step(root: Path, more: Annotations, kit: Any) -> None:
    """The old store or the larger one, and the same call again goes on."""

    def prepare(folder: Path) -> None:
        shutil.copytree(root, folder)

    def act(folder: Path) -> None:
        grow(kit, folder, more)

    steps = kit.die_at_each_step(root, prepare, act, every=3)
    assert steps > 10
    for step in range(1, steps, 3):
        folder = root.parent / str(step)
        assert len(FeatureStore.open(folder)) in (5, 8)
        finish(kit, grow(kit, folder, more))
        assert verify_store(folder, deep=True).is_good
        assert len(FeatureStore.open(folder)) == 8


def test_what_one_began_another_does_not_take_for_its_own(
    root: Path, more: Annotations, kit: Any
) -> None:
    writer = grow(kit, root, more)
    others = replace(more, file_names=(*more.file_names[:5], "a.jpg", "b.jpg", "c.jpg"))
    with pytest.raises(StoreMismatchError, match="images gone: image_5.jpg.*images added: a.jpg"):
        grow(kit, root, others)
    with pytest.raises(StoreMismatchError, match="images gone: image_5.jpg"):
        kit.open_writer(root)
    finish(kit, writer)


def test_relabelled_and_added_at_the_same_time(root: Path, more: Annotations, kit: Any) -> None:
    """A writer that compared before another added images finds out under the lock."""
    others = replace(more, file_names=(*more.file_names[:5], "a.jpg", "b.jpg", "c.jpg"))
    with (
        kit.at_call("commit_lock", lambda: grow(kit, root, others)),
        pytest.raises(StoreMismatchError, match="was given other images by another process"),
    ):
        grow(kit, root, more)


def test_a_grown_store_is_relabelled(root: Path, more: Annotations, kit: Any) -> None:
    finish(kit, grow(kit, root, more))
    moved = replace(more, boxes=more.boxes + 1)
    replace_truth(root, load_manifest(LocalFiles(root)), moved)
    assert truth_digest(FeatureStore.open(root).annotations) == truth_digest(moved)


def test_damaged_tables_are_written_anew(root: Path, more: Annotations, kit: Any) -> None:
    finish(kit, grow(kit, root, more))
    whole = kit.files(root)
    (added,) = root.glob("images-*.npz")
    added.write_bytes(b"")
    with pytest.raises(StoreError, match=r"images-[0-9a-f]{16}.npz is missing or damaged"):
        FeatureStore.open(root)
    grow(kit, root, more)
    assert kit.files(root) == whole


@pytest.mark.parametrize(
    ("added", "message"),
    [
        ([[0, "f" * 64]], "added must name rising rows"),
        ([[5, "../x"]], "a digest is '../x', no sha256"),
        ([[row + 1, "f" * 64] for row in range(10_001)], "added more than 10,000 times"),
        ([[4, "f" * 64]], "there are 5 images before it, 4 by the manifest"),
        ([[5, "f" * 64]], "images-ffffffffffffffff.npz is missing or damaged"),
    ],
)
def test_forged_manifests(root: Path, added: Any, message: str, forger: Any) -> None:
    forger.manifest(root, added=added)
    with pytest.raises(StoreError, match=message):
        FeatureStore.open(root)


def test_the_order_in_which_a_store_keeps_images(
    root: Path, tmp_path: Path, annotations_of: Any
) -> None:
    held = [f"image_{n}.jpg" for n in range(5)]
    mixed = ["new.jpg", *reversed(held), "bad.jpg", "other.jpg"]

    def order_of(root: Path, names: list[str], rows: list[int]) -> Any:
        given = replace(annotations_of([(96, 128)] * len(names)), file_names=tuple(names))
        return order_as_stored(root, given, np.zeros(len(names), dtype=np.uint64), rows)

    order = order_of(root, mixed, [0, 1, 2, 3, 4, 5, 7])
    assert order.annotations.file_names == (*held, "new.jpg", "other.jpg")
    assert [mixed[row] for row in order.rows] == [*held, "new.jpg", "other.jpg"]
    assert (order.starts, order.added) == ((0, 5), 2)
    same = order_of(root, held[::-1], list(range(5)))
    assert (same.rows, same.starts, same.added) == ([4, 3, 2, 1, 0], (0,), 0)
    fewer = order_of(root, held, [1, 2])
    assert (fewer.rows, fewer.starts) == ([1, 2], (0,))
    none = order_of(tmp_path / "none.zarr", held, [3, 1])
    assert (none.rows, none.starts) == ([3, 1], (0,))
    (root / "images.npz").write_bytes(b"")
    assert order_of(root, held, [0, 1]).rows == [0, 1]


def test_generations_share_no_digest(more: Annotations, kit: Any) -> None:
    contents = np.arange(8, dtype=np.uint64)
    first, added = digest_generations(more, contents, (0, 5, 6))
    assert [row for row, _ in added] == [5, 6]
    assert len({first, *(digest for _, digest in added)}) == 3
