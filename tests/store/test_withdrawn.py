"""Images that leave a store and come back: no shard changes, and nobody reads what left."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr

from cachedet.errors import MissingFeatureError, StoreError, StoreMismatchError
from cachedet.loading.loader import FeatureLoader
from cachedet.loading.residency import make_source
from cachedet.store.additions import digest_generations, order_as_stored
from cachedet.store.files.source import LocalFiles
from cachedet.store.format.annotations import rows_but, spread_rows
from cachedet.store.format.commits import find_held, read_record
from cachedet.store.format.manifest import (
    Manifest,
    load_manifest,
    truth_arrays,
    truth_digest,
    withdrawn_digest,
)
from cachedet.store.format.npz import dump_arrays
from cachedet.store.format.plan import StorePlan
from cachedet.store.prune import prune_store
from cachedet.store.reader import FeatureStore
from cachedet.store.truth import replace_truth
from cachedet.store.verify import describe_store, verify_store
from cachedet.structures import Annotations

VIEWS = (("base", 0), ("hflip", 100))


def manifest_of(root: Path) -> Manifest:
    return load_manifest(LocalFiles(root))


def plan_of(root: Path) -> StorePlan:
    return StorePlan.load(LocalFiles(root))


def withdraw(
    root: Path, annotations: Annotations, *rows: int, back: tuple[int, ...] = ()
) -> Annotations:
    """Take images out as `relabel` does; what the store has then, by its own rows."""
    gone = np.array(rows, dtype=np.int64)
    kept = rows_but(len(annotations), gone)
    now = spread_rows(annotations, kept, annotations.keep_rows(kept.tolist()))
    returned = np.array(back, dtype=np.int64)
    replace_truth(root, manifest_of(root), now, withdrawn=gone, back=returned)
    return now


def extract_again(kit: Any, root: Path, given: Annotations, **changes: Any) -> Any:
    """As `extract` of these images opens a store; the content of image n is n + 1."""
    contents = [int(name.split("_")[1].split(".")[0]) + 1 for name in given.file_names]
    hashes = changes.pop("contents", np.array(contents, dtype=np.uint64))
    order = order_as_stored(root, given, hashes, list(range(len(given))))
    digest, added = digest_generations(order.annotations, order.contents, order.starts)
    return kit.of(order.annotations).open_writer(
        root,
        contents=order.contents,
        withdrawn=order.withdrawn,
        images_digest=digest,
        added=added,
        truth_digest=truth_digest(order.annotations, order.withdrawn),
        withdrawn_digest=withdrawn_digest(order.withdrawn),
        **changes,
    )


def finish(kit: Any, writer: Any) -> set[str]:
    """Names of the blocks that were written."""
    missing = writer.missing_blocks()
    for block in missing:
        writer.write(block, kit.features_of(block))
    return {block.name for block in missing}


def values(store: FeatureStore, level: str = "C4") -> list[tuple[float, ...]]:
    """Of each image the number that the kit wrote into its features: the row it was written as."""
    return [
        tuple(float(store.read(row, view)[level].max()) - add for view, add in VIEWS)
        for row in range(len(store))
    ]


def rows_read(root: Path) -> list[int]:
    found = values(FeatureStore.open(root))
    assert all(one == other for one, other in found)
    return [int(one) for one, _ in found]


def test_readers_see_the_others_alone(root: Path, annotations: Annotations, kit: Any) -> None:
    before = kit.files(root)
    open_before = FeatureStore.open(root)
    withdraw(root, annotations, 1, 3)
    after = kit.files(root)
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed == {"manifest.json", kit.truth(root).name}
    assert before.items() >= {k: v for k, v in after.items() if k not in changed}.items()
    store = FeatureStore.open(root)
    assert (len(store), store.images_withdrawn) == (3, 2)
    assert store.annotations.file_names == ("image_0.jpg", "image_2.jpg", "image_4.jpg")
    assert store.annotations.image_ids.tolist() == [7, 27, 47]
    assert store.contents.tolist() == [1, 3, 5]
    assert rows_read(root) == [0, 2, 4]
    assert {k: v.tolist() for k, v in store.buckets("hflip").items()} == {
        (96, 128): [0, 2],
        (128, 96): [1],
    }
    assert store.missing_blocks() == []
    assert sorted(row for block in store.blocks for row in block.rows) == [0, 0, 1, 1, 2, 2]
    with pytest.raises(MissingFeatureError, match="has rows 0 to 2, got row 3"):
        store.read(3, "base")
    assert verify_store(root, deep=True).is_good
    assert [int(one) for one, _ in values(open_before)] == [0, 1, 2, 3, 4]
    assert values(FeatureStore.open(f"file://{root}")) == values(store)


def test_it_is_read_as_a_store_that_never_had_them(
    root: Path, tmp_path: Path, annotations: Annotations, kit: Any
) -> None:
    """The batches of every epoch, from everywhere (law L6); bucket 128x96 now comes first."""
    withdraw(root, annotations, 0, 1, 3)
    made = FeatureStore.open(kit.of(annotations.keep_rows([2, 4])).fill(tmp_path / "made.zarr"))
    store = FeatureStore.open(root)
    levels, device = store.spec.names, torch.device("cpu")
    assert truth_digest(store.annotations) == truth_digest(made.annotations)
    loaders = [
        FeatureLoader(each, views=("base", "hflip"), levels=levels, batch_size=2, seed=3)
        for each in (store, made)
    ]
    for epoch in range(4):
        ours, theirs = (loader.plan(epoch) for loader in loaders)
        assert [keys.tolist() for keys in ours] == [keys.tolist() for keys in theirs]
    keys = [(1, "base"), (1, "hflip")]
    wanted = [[4, 104], [4, 104]]
    for residency in ("stream", "ram", "device"):
        source = make_source(residency, store, views=store.views, levels=levels, device=device)
        maps = source.read(keys)["C4"]
        assert [maps.amax((1, 2, 3)).tolist(), maps.amin((1, 2, 3)).tolist()] == wanted
    whole, _ = FeatureStore.open(kit.of(annotations).fill(tmp_path / "all.zarr")).encoded_nbytes(
        store.views, levels
    )
    stored, unpacked = store.encoded_nbytes(store.views, levels)
    assert 0 < stored < whole
    assert unpacked == made.encoded_nbytes(store.views, levels)[1]


def test_blocks_of_nobody_are_not_missed_and_freed(
    root: Path, annotations: Annotations, kit: Any
) -> None:
    withdraw(root, annotations, 1, 2)
    described = describe_store(root)
    assert (described["images"], described["images_withdrawn"]) == (3, 2)
    assert described["blocks"] == len(FeatureStore.open(root).blocks) == 4
    (record,) = root.glob("commits/base-b128x96-*.json")
    record.write_bytes(b"{")  # what nobody needs keeps nothing from opening
    assert verify_store(root, deep=True).is_good
    assert 0 < describe_store(root)["bytes_of_withdrawn"] < described["bytes_of_withdrawn"]
    shown = {w.kind: len(w.paths) for w in prune_store(root, dry_run=True).waste}
    assert shown == {"leftover": 0, "withdrawn": 0, "orphan": 1, "view": 0, "image": 6}
    prune_store(root, dry_run=False)
    assert not [*root.glob("commits/*b128x96*")]
    assert not [path for path in root.glob("*/b128x96/**/c/**/*") if path.is_file()]
    assert zarr.open_group(root, mode="r")["base/b128x96/C4/values"].shape == (1, 3, 8, 6)
    assert rows_read(root) == [0, 3, 4]
    assert verify_store(root, deep=True).is_good
    left = describe_store(root)["bytes_of_withdrawn"]
    assert left == FeatureStore.open(root).nbytes // 4  # one of four images in the blocks that stay
    assert finish(kit, extract_again(kit, root, annotations.keep_rows([0, 3, 4]))) == set()


def test_dead_at_each_step(root: Path, annotations: Annotations, kit: Any) -> None:
    """The images of before or those of after; the same call again puts all in order."""

    def prepare(folder: Path) -> None:
        shutil.copytree(root, folder)

    def act(folder: Path) -> None:
        withdraw(folder, annotations, 1, 2)
        withdraw(folder, annotations, 2, back=(1,))
        prune_store(folder, dry_run=False)

    steps = kit.die_at_each_step(root, prepare, act)
    assert steps > 10
    seen = []
    for step in range(1, steps + 1):
        folder = root.parent / str(step)
        assert FeatureStore.open(folder).missing_blocks() == []
        seen.append(rows_read(folder))
        withdraw(folder, annotations, 2)
        prune_store(folder, dry_run=False)
        assert rows_read(folder) == [0, 1, 3, 4]
        assert verify_store(folder, deep=True).is_good
        assert not [*folder.glob("commits/*b128x96*")]
    order = [[0, 1, 2, 3, 4], [0, 3, 4], [0, 1, 3, 4]]
    assert [each for n, each in enumerate(seen) if n == 0 or each != seen[n - 1]] == order


def test_the_same_extraction_goes_on(root: Path, annotations: Annotations, kit: Any) -> None:
    """With a file that lacks what was taken out; other labels and other images are told."""
    withdraw(root, annotations, 1, 2)
    before = kit.files(root)
    kept = annotations.keep_rows([0, 3, 4])
    assert finish(kit, extract_again(kit, root, kept)) == set()
    assert kit.files(root) == before
    with pytest.raises(StoreMismatchError, match=r"images gone: image_3.jpg\. `cachedet relabel"):
        extract_again(kit, root, annotations.keep_rows([0, 4]))
    with pytest.raises(StoreMismatchError, match="has other boxes or classes for the same images"):
        extract_again(kit, root, replace(kept, boxes=kept.boxes + 1))


def test_given_again_they_are_there_without_extraction(
    root: Path, annotations: Annotations, kit: Any
) -> None:
    withdraw(root, annotations, 1, 2)
    shards = {k: v for k, v in kit.files(root).items() if "/" in k}
    assert finish(kit, extract_again(kit, root, annotations.keep_rows([0, 2, 3, 4]))) == set()
    assert rows_read(root) == [0, 2, 3, 4]
    assert finish(kit, extract_again(kit, root, annotations)) == set()
    assert rows_read(root) == [0, 1, 2, 3, 4]
    after = kit.files(root)
    assert {k: v for k, v in after.items() if "/" in k} == shards
    assert "withdrawn_digest" not in manifest_of(root).to_json()
    assert verify_store(root, deep=True).is_good


def test_what_was_freed_is_extracted_again(root: Path, annotations: Annotations, kit: Any) -> None:
    whole = kit.files(root)
    withdraw(root, annotations, 2)
    prune_store(root, dry_run=False)
    assert find_held(plan_of(root), np.array([1, 2])).tolist() == [1]
    with pytest.raises(StoreError, match="features of images that come back were freed"):
        withdraw(root, annotations, back=(2,))
    names = {"base-b128x96-000000", "hflip-b128x96-000000"}
    assert finish(kit, extract_again(kit, root, annotations)) == names
    prune_store(root, dry_run=False)
    assert kit.files(root) == whole


def test_blocks_are_written_without_them(root: Path, annotations: Annotations, kit: Any) -> None:
    """A view that comes later, and a block that was damaged: nobody needs files that left."""
    views = ("base", "hflip", "scale-2")
    withdraw(root, annotations, 1, 2)
    kit.flip_bit(root / "base/b96x128/C4/values/c/0/0/0/0", 3)
    assert len(verify_store(root, deep=True).bad) == 1
    kept = annotations.keep_rows([0, 3, 4])
    written = finish(kit, extract_again(kit, root, kept, views=views))
    assert written == {
        "base-b96x128-000000",
        "scale-2-b192x256-000000",
        "scale-2-b192x256-000001",
    }
    assert rows_read(root) == [0, 3, 4]
    assert FeatureStore.open(root).missing_blocks() == []
    assert verify_store(root, deep=True).is_good
    plan = plan_of(root)
    by_name = {block.name: read_record(plan.source, block).image_ids for block in plan.needed}
    assert by_name["base-b96x128-000000"] == (7, None)
    assert by_name["hflip-b96x128-000000"] == (7, 17)
    assert by_name["scale-2-b192x256-000001"] == (37, 47)
    assert find_held(plan, np.array([0, 1, 2, 3])).tolist() == [0, 3]
    # who comes back where a slot is blank, or a block was never written, has to be extracted
    with pytest.raises(StoreError, match="features of images that come back were freed"):
        withdraw(root, annotations, 2, back=(1,))
    writer = extract_again(kit, root, annotations, views=views)
    assert {block.name for block in FeatureStore.open(root).missing_blocks()} == {
        "base-b96x128-000000",
        "scale-2-b192x256-000000",
        "scale-2-b256x192-000000",
    }
    assert verify_store(root, deep=True).bad == ()
    assert len(finish(kit, writer)) == 3
    assert rows_read(root) == [0, 1, 2, 3, 4]
    assert verify_store(root, deep=True).is_good


def test_other_content_under_an_old_name_is_another_image(
    root: Path, annotations: Annotations, kit: Any
) -> None:
    """Its features are extracted, and those of before stay out; back with the old content too."""
    withdraw(root, annotations, 1)
    contents = np.array([1, 99, 3, 4, 5], dtype=np.uint64)
    written = finish(kit, extract_again(kit, root, annotations, contents=contents))
    assert written == {"base-b96x128g1-000000", "hflip-b96x128g1-000000"}
    store = FeatureStore.open(root)
    names = [f"image_{number}.jpg" for number in (0, 2, 3, 4, 1)]
    assert [*store.annotations.file_names] == names
    assert store.contents.tolist() == [1, 3, 4, 5, 99]
    assert rows_read(root) == [0, 2, 3, 4, 5]
    assert finish(kit, extract_again(kit, root, annotations, contents=contents)) == set()
    held = plan_of(root).annotations
    withdraw(root, held, 1, 5)
    assert finish(kit, extract_again(kit, root, annotations)) == set()
    assert rows_read(root) == [0, 1, 2, 3, 4]


def test_a_writer_goes_on_while_images_leave(
    tmp_path: Path, annotations: Annotations, kit: Any
) -> None:
    root = tmp_path / "half.zarr"
    writer = kit.open_writer(root)
    writer.write(writer.blocks[0], kit.features_of(writer.blocks[0]))
    withdraw(root, annotations, 2, 3)
    assert len(FeatureStore.open(root).missing_blocks()) == 3
    for block in writer.blocks[1:]:
        assert writer.write(block, kit.features_of(block))
    assert rows_read(root) == [0, 1, 4]
    assert prune_store(root, dry_run=False).waste[3].kind == "image"
    assert verify_store(root, deep=True).is_good


def test_a_writer_that_left_an_image_out_does_not_write_over_it(
    root: Path, annotations: Annotations, kit: Any
) -> None:
    withdraw(root, annotations, 1)
    (record,) = root.glob("commits/base-b96x128-000000.json")
    content = record.read_bytes()
    record.unlink()
    writer = extract_again(kit, root, annotations.keep_rows([0, 2, 3, 4]))
    (block,) = writer.missing_blocks()
    record.write_bytes(content)
    extract_again(kit, root, annotations)
    record.unlink()
    with pytest.raises(StoreError, match=r"images came back .*\(block base-b96x128-000000\)"):
        writer.write(block, kit.features_of(block))
    assert not record.exists()


def test_others_at_the_same_time(root: Path, annotations: Annotations, kit: Any) -> None:
    """What was compared before another process changed the images counts no more."""
    held = manifest_of(root)
    withdraw(root, annotations, 1)
    with pytest.raises(StoreError, match="was relabelled or replaced by another process meanwhile"):
        replace_truth(root, held, annotations)
    kept = annotations.keep_rows([0, 2, 3, 4])
    message = "was given other images by another process meanwhile"
    with (
        kit.at_call("commit_lock", lambda: withdraw(root, annotations, back=(1,))),
        pytest.raises(StoreMismatchError, match=message),
    ):
        extract_again(kit, root, kept)
    assert rows_read(root) == [0, 1, 2, 3, 4]


def test_damaged_tables_are_written_anew(root: Path, annotations: Annotations, kit: Any) -> None:
    withdraw(root, annotations, 1)
    whole = kit.files(root)
    kept = annotations.keep_rows([0, 2, 3, 4])
    kit.truth(root).write_bytes(b"")
    extract_again(kit, root, kept)
    assert kit.files(root) == whole
    kit.truth(root).write_bytes(b"")
    with pytest.raises(StoreError, match=r"truth-.*`cachedet extract` or `cachedet relabel`"):
        extract_again(kit, root, annotations)
    (root / kit.truth(root).name).write_bytes(whole[kit.truth(root).name])
    (root / "images.npz").write_bytes(b"")
    extract_again(kit, root, annotations)  # images that left are in no other file: all come back
    assert rows_read(root) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([-1], "withdrawn must be rising rows up to 4"),
        ([5], "withdrawn must be rising rows up to 4"),
        ([3, 1], "withdrawn must be rising rows up to 4"),
        ([1, 1], "withdrawn must be rising rows up to 4"),
        ([0, 1, 2, 3, 4], "every image was withdrawn"),
        ([0], "images that were withdrawn have boxes"),
        ([1, 2**62], "withdrawn must be rising rows up to 4"),
        ([0.5], "withdrawn is float64"),
        ([[1]], r"withdrawn is int64 \(1, 1\)"),
        ([1], "is not the one the manifest names"),
    ],
)
def test_forged_rows(
    root: Path, annotations: Annotations, rows: Any, message: str, kit: Any, forger: Any
) -> None:
    forged = np.array(rows)
    arrays = {**truth_arrays(annotations), "withdrawn": forged}
    digest = truth_digest(annotations, forged)
    known = "f" * 64 if rows == [1] else withdrawn_digest(forged)
    forger.manifest(root, truth_digest=digest, withdrawn_digest=known)
    (root / f"truth-{digest[:16]}.npz").write_bytes(dump_arrays(arrays))
    with pytest.raises(StoreError, match=message):
        FeatureStore.open(root)


def test_blank_slots_are_of_images_that_left(
    root: Path, annotations: Annotations, kit: Any, forger: Any
) -> None:
    """A record that names no image is no block of one that the store has."""
    path = root / "commits/base-b96x128-000000.json"
    record = kit.read_json(path)
    forger.seal(path, record | {"image_ids": [7, None]})
    store = FeatureStore.open(root)
    assert [block.name for block in store.missing_blocks()] == ["base-b96x128-000000"]
    assert verify_store(root, deep=True).missing == ("base-b96x128-000000",)
    forger.seal(path, record | {"image_ids": [8, None]})
    with pytest.raises(StoreError, match="it lists other images than images.npz has"):
        FeatureStore.open(root)
    forger.seal(path, record | {"image_ids": [7, None]})
    withdraw(root, annotations, 1)
    assert rows_read(root) == [0, 2, 3, 4]


def test_a_reader_that_knows_nothing_of_it_refuses(
    root: Path, annotations: Annotations, forger: Any
) -> None:
    """No version of cachedet takes a manifest with a field that it does not know."""
    known = manifest_of(root).to_json().keys()
    withdraw(root, annotations, 1)
    assert manifest_of(root).to_json().keys() - known == {"withdrawn_digest"}
    forger.manifest(root, a_field_of_the_future="x")
    with pytest.raises(StoreError, match="its fields do not give its own checksum"):
        FeatureStore.open(root)


@pytest.mark.parametrize("codec", ["int8", "int8+zstd", "snr12"])
def test_every_codec_leaves_slots_blank(
    tmp_path: Path, codec: str, annotations: Annotations, kit: Any
) -> None:
    root = kit.fill(tmp_path / "s.zarr", kit.noise_of, codec=codec, views=("base",))
    before = FeatureStore.open(root).read(4, "base")
    withdraw(root, annotations, 3)
    (root / "commits/base-b96x128-000001.json").unlink()
    writer = extract_again(
        kit, root, annotations.keep_rows([0, 1, 2, 4]), codec=codec, views=("base",)
    )
    (block,) = writer.missing_blocks()
    features = kit.noise_of(block)
    seen = torch.tensor([0.0, 1.0])[:, None, None, None]
    blank = {level: maps * seen for level, maps in features.items()}
    assert writer.write(block, blank)
    after = FeatureStore.open(root).read(3, "base")
    for level, maps in before.items():
        torch.testing.assert_close(after[level], maps, rtol=0, atol=0)


def test_some_rows_of_an_open_store(tiny: Any) -> None:
    """As if only these images had been left in it; rows count those that are there."""
    store = FeatureStore.open(tiny.train)
    part = store.keep_rows([1, 4, 6]).keep_rows([0, 2])
    assert list(part.annotations.image_ids) == list(store.annotations.image_ids[[1, 6]])
    assert torch.equal(part.read(1, "hflip")["C4"], store.read(6, "hflip")["C4"])
    assert part.manifest.truth_digest != store.manifest.truth_digest
    assert (len(store), FeatureStore.open(part)) == (8, part)
    part.require_complete()
