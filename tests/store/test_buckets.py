"""Stores in an object storage: the same content as in a folder, whoever dies or writes besides."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr

from cachedet.errors import RemoteStoreError, StoreError, StoreMismatchError
from cachedet.store.files.bucket import Bucket
from cachedet.store.files.depot import open_depot
from cachedet.store.files.names import truth_key
from cachedet.store.format.layout import Block, commit_key
from cachedet.store.format.manifest import load_manifest
from cachedet.store.format.plan import StorePlan
from cachedet.store.prune import prune_store
from cachedet.store.reader import FeatureStore
from cachedet.store.truth import replace_truth
from cachedet.store.verify import describe_store, verify_store
from cachedet.store.writer import StoreWriter
from cachedet.structures import Features

pytest.importorskip("obstore", reason="pip install 'cachedet[remote]'")

Kit = Any


def memory() -> Any:
    from obstore.store import MemoryStore

    return MemoryStore()


class Watched(Bucket):
    """Something may happen before each request that writes."""

    def __init__(self, storage: Any, before: Callable[[str], object] = lambda key: None) -> None:
        super().__init__(storage, location="memory://s.zarr")
        self.before = before

    def _put(self, key: str, content: bytes, **options: Any) -> Any:
        self.before(key)
        return super()._put(key, content, **options)


class DeathError(BaseException):
    """A writer ends here."""


def content_of(bucket: Bucket) -> dict[str, bytes]:
    found = {key: bucket.find(key) for key in bucket.sizes()}
    return {key: one.content for key, one in found.items() if one is not None}


def same_content(bucket: Bucket, root: Path, kit: Kit) -> bool:
    mine, its = content_of(bucket), kit.files(root)
    return {k: v for k, v in mine.items() if not k.startswith("leases/")} == {
        k: v for k, v in its.items() if not k.startswith("leases/")
    }


def others_of(block: Block, kit: Kit) -> Features:
    """What another machine computes for the same images: the last digits differ."""
    return {level: maps + 1e-3 for level, maps in kit.noise_of(block).items()}


@pytest.mark.parametrize("codec", ["fp16", "snr12"])
def test_it_holds_what_a_folder_holds(kit: Kit, tmp_path: Path, codec: str) -> None:
    """Byte for byte, shards, records, metadata and manifest; copied to a folder it is a store."""
    bucket = Watched(memory())
    kit.fill(bucket, kit.noise_of, codec=codec)
    root = kit.fill(tmp_path / "s.zarr", kit.noise_of, codec=codec)
    assert same_content(bucket, root, kit)
    for key, content in content_of(bucket).items():
        path = tmp_path / "copy.zarr" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    assert verify_store(tmp_path / "copy.zarr", deep=True).is_good
    assert kit.open_writer(tmp_path / "copy.zarr", codec=codec).missing_blocks() == []


def test_zarr_reads_it_alone(kit: Kit) -> None:
    storage = memory()
    kit.fill(Watched(storage))
    group = zarr.open_group(zarr.storage.ObjectStore(storage, read_only=True), mode="r")
    maps = group["base/b96x128/C4/values"]
    assert isinstance(maps, zarr.Array)
    assert float(np.asarray(maps[1]).mean()) == 1.0


def test_a_store_on_a_server(kit: Kit, s3: Any, tmp_path: Path) -> None:
    """Written, described, checked, read and pruned by its URL."""
    url = s3.new_url()
    kit.fill(url, kit.noise_of)
    root = kit.fill(tmp_path / "s.zarr", kit.noise_of)
    bucket = open_depot(url)
    assert isinstance(bucket, Bucket)
    assert same_content(bucket, root, kit)
    report = verify_store(url, deep=True)
    assert report.is_good
    assert report.good == 6
    assert describe_store(url)["store"] == url
    store, local = FeatureStore.open(url), FeatureStore.open(root)
    assert torch.equal(store.read(4, "hflip")["C5"], local.read(4, "hflip")["C5"])
    assert sum(len(some.paths) for some in prune_store(url, dry_run=False).waste) == 0


def test_a_writer_that_dies_at_any_request_leaves_what_the_next_takes_over(
    kit: Kit, tmp_path: Path
) -> None:
    """Nothing that is not committed is read, and nothing is left that nobody needs."""
    root = kit.fill(tmp_path / "s.zarr", kit.noise_of, codec="snr12")
    steps = next(step for step in itertools.count(1) if not dies(kit, root, step))
    assert steps > 30


def dies(kit: Kit, root: Path, step: int) -> bool:
    """A writer dies at this request, another goes on. False where there is no such request."""
    storage, count = memory(), itertools.count(1)

    def die(key: str) -> None:
        if next(count) == step:
            raise DeathError

    has_died = False
    try:
        kit.fill(Watched(storage, die), kit.noise_of, codec="snr12")
    except DeathError:
        has_died = True
    bucket = Watched(storage)
    if bucket.has("manifest.json"):
        assert not verify_store(bucket, deep=True).bad
    kit.fill(bucket, kit.noise_of, codec="snr12")
    assert same_content(bucket, root, kit), step
    assert sum(len(some.paths) for some in prune_store(bucket, dry_run=True).waste) == 0
    return has_died


def committed_of(bucket: Bucket, block: Block) -> dict[str, bytes]:
    """The record and the shards of a block."""
    plan = StorePlan.load(bucket.source)
    keys = [commit_key(block), *plan.layout.shard_keys(block).values()]
    return {key: content for key, content in content_of(bucket).items() if key in keys}


def race(kit: Kit, step: int) -> bool:
    """Two machines write one block with other bytes; the other one comes at this request.

    False where there is no such request.
    """
    storage, count = memory(), itertools.count(1)
    one, other = kit.open_writer(Watched(storage)), kit.open_writer(Watched(storage))
    block, seen = one.blocks[0], dict[str, bytes]()

    def interrupt(key: str) -> None:
        if next(count) == step:
            other.write(block, others_of(block, kit))
            seen.update(committed_of(other.depot, block))

    one.depot.before = interrupt
    one.write(block, kit.noise_of(block))
    assert not seen or committed_of(one.depot, block) == seen
    report = verify_store(one.depot, deep=True)
    assert (report.good, report.bad) == (1, ())
    assert block.name not in {missing.name for missing in other.missing_blocks()}
    return bool(seen)


def test_a_committed_block_is_never_replaced(kit: Kit) -> None:
    steps = next(step for step in itertools.count(1) if not race(kit, step))
    assert steps > 3  # two shards, the record, and none


def test_writers_that_sleep_wherever_they_are(kit: Kit) -> None:
    """Many writers with other bytes each, in threads, resumed at random: each block is whole."""
    storage = memory()
    kit.open_writer(Watched(storage))
    first: dict[str, dict[str, bytes]] = {}
    lock = threading.Lock()

    def work(seed: int) -> None:
        numbers = random.Random(seed)

        def doze(key: str) -> None:
            threading.Event().wait(numbers.random() * 0.004)

        writer = kit.open_writer(Watched(storage, doze))
        for block in writer.blocks:
            features = {k: v + seed * 1e-3 for k, v in kit.noise_of(block).items()}
            writer.write(block, features)
            with lock:
                first.setdefault(block.name, committed_of(writer.depot, block))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    bucket = Watched(storage)
    assert verify_store(bucket, deep=True).is_good
    for block in StorePlan.load(bucket.source).blocks:
        assert committed_of(bucket, block) == first[block.name]


def test_writers_that_start_together_agree_on_what_the_codec_learnt(kit: Kit) -> None:
    """Each has learnt other digits; the first that was written counts, also if its writer dies."""
    storage = memory()

    def fit_elsewhere(codec: Any) -> Any:
        fitted = kit.fit(codec)
        state = {k: v + 1e-6 if "mean" in k else v for k, v in fitted.state().items()}
        return fitted.with_state(state, spec=kit.spec)

    def die(key: str) -> None:
        if key == "manifest.json":
            raise DeathError

    with pytest.raises(DeathError):
        kit.open_writer(Watched(storage, die), codec="snr12", fit=fit_elsewhere)
    bucket = Watched(storage)
    learnt = bucket.find("codec.npz")
    kit.fill(bucket, kit.noise_of, codec="snr12")
    again = bucket.find("codec.npz")
    assert learnt is not None
    assert again is not None
    assert again.content == learnt.content
    assert verify_store(bucket, deep=True).is_good


def test_views_that_two_writers_add_at_once(kit: Kit) -> None:
    """The one whose manifest comes second compares again, and adds its own."""
    storage = memory()
    kit.fill(Watched(storage), views=("base",))
    done = []

    def interrupt(key: str) -> None:
        if key == "manifest.json" and not done:
            done.append(True)
            kit.fill(Watched(storage), views=("base", "hflip"))

    kit.fill(Watched(storage, interrupt), views=("base", "scale-0.5"))
    bucket = Watched(storage)
    assert load_manifest(bucket.source).views == ("base", "hflip", "scale-0.5")
    assert verify_store(bucket, deep=True).is_good


def test_damaged_shards_are_withdrawn_and_written_anew(kit: Kit, tmp_path: Path) -> None:
    bucket = Watched(memory())
    kit.fill(bucket, kit.noise_of)
    key = "base/b96x128/C4/values/c/0/0/0/0"
    shard = bucket.find(key)
    assert shard is not None
    bucket.put({key: shard.content[:-9] + bytes(9)})
    (bad,) = verify_store(bucket, deep=True).bad
    assert bad.withdrawn
    assert bad.path == f"memory://s.zarr/{key}"
    with pytest.raises(StoreError, match="unfinished: 1 of 6"):
        FeatureStore.open(zarr_of(bucket)).require_complete()
    kit.fill(bucket, kit.noise_of)
    root = kit.fill(tmp_path / "s.zarr", kit.noise_of)
    prune_store(bucket, dry_run=False)
    assert same_content(bucket, root, kit)


def zarr_of(bucket: Bucket) -> Any:
    return zarr.storage.ObjectStore(bucket._store, read_only=True)


def test_lost_shards_and_damaged_records_are_written_anew(kit: Kit) -> None:
    bucket = Watched(memory())
    kit.fill(bucket, kit.noise_of)
    whole = content_of(bucket)
    bucket.remove(["base/b96x128/C4/values/c/0/0/0/0"])
    key = "commits/hflip-b96x128-000001.json"
    bucket.put({key: whole[key].replace(b"image_ids", b"other_ids")})
    writer = kit.open_writer(bucket)
    assert len(writer.missing_blocks()) == 2
    kit.fill(bucket, kit.noise_of)
    assert content_of(bucket) == whole


def test_a_whole_shard_of_nobody_knows_what_is_not_guessed_about(kit: Kit) -> None:
    """As when a folder was copied before it was finished: equal bytes are taken over."""
    bucket = Watched(memory())
    kit.fill(bucket, kit.noise_of)
    keys = [key for key in bucket.sizes() if "/c/" in key or key.startswith("commits/")]
    shards = {key: content for key, content in content_of(bucket).items() if "/c/" in key}
    bucket.remove(keys)
    bucket.put(shards)  # no record, and no word of where they are from
    writer = kit.open_writer(bucket)
    writer.write(writer.blocks[0], kit.noise_of(writer.blocks[0]))
    with pytest.raises(StoreError, match="without a commit record.*cachedet prune memory://s.zarr"):
        writer.write(writer.blocks[1], others_of(writer.blocks[1], kit))
    prune_store(bucket, dry_run=False)
    kit.fill(bucket, lambda block: others_of(block, kit))
    assert verify_store(bucket, deep=True).is_good


def test_shards_of_a_withdrawn_block_stay_where_they_are_whole(kit: Kit) -> None:
    """The record that was put aside says which they are, also after a copy."""
    bucket = Watched(memory())
    kit.fill(bucket, kit.noise_of)
    bucket.put(content_of(bucket))  # as a tool copies: without what they said of themselves
    key = "base/b96x128/C4/values/c/0/0/0/0"
    bucket.put({key: b"damaged"})
    assert len(verify_store(bucket, deep=False).bad) == 1
    kit.fill(bucket, lambda block: others_of(block, kit))
    assert verify_store(bucket, deep=True).is_good


def test_labels_are_replaced_once(kit: Kit) -> None:
    bucket = Watched(memory())
    kit.fill(bucket)
    held = load_manifest(bucket.source)
    moved = replace(kit.annotations, boxes=kit.annotations.boxes + 1)
    replace_truth(bucket, held, moved)
    assert np.array_equal(FeatureStore.open(zarr_of(bucket)).annotations.boxes, moved.boxes)
    with pytest.raises(StoreError, match="was relabelled or replaced by another process"):
        replace_truth(bucket, held, kit.annotations)
    orphans = {some.kind: len(some.paths) for some in prune_store(bucket, dry_run=False).waste}
    assert orphans["orphan"] == 1
    assert verify_store(bucket, deep=True).is_good


def test_views_leave_with_their_objects(kit: Kit) -> None:
    bucket = Watched(memory())
    kit.fill(bucket)
    bucket.put({"leases/probe-1": b"1", "notes.txt": b"mine"})
    shown = prune_store(bucket, dry_run=True, keep_views=["base"])
    assert shown.left == ("notes.txt",)
    assert load_manifest(bucket.source).views == ("base", "hflip")
    report = prune_store(bucket, dry_run=False, keep_views=["base"])
    assert {some.kind: len(some.paths) for some in report.waste}["leftover"] == 1
    assert {key.partition("/")[0] for key in bucket.sizes()} == {
        "base", "commits", "leases", "images.npz", "manifest.json", "notes.txt", "zarr.json",
        truth_key(load_manifest(bucket.source).truth_digest),
    }  # fmt: skip
    assert verify_store(bucket, deep=True).is_good


def test_a_writer_of_a_view_that_left_is_told(kit: Kit) -> None:
    storage = memory()
    writer = kit.open_writer(Watched(storage))
    prune_store(Watched(storage), dry_run=False, keep_views=["base"])
    block = next(block for block in writer.blocks if block.view == "hflip")
    with pytest.raises(StoreError, match="was changed while this process wrote into it"):
        writer.write(block, kit.noise_of(block))
    prune_store(Watched(storage), dry_run=False)
    assert not [key for key in Watched(storage).sizes() if key.startswith("hflip/")]


def test_places_with_something_else(kit: Kit) -> None:
    """Nothing is written or removed there."""
    bucket = Watched(memory())
    bucket.put({"photos/cat.jpg": b"meow"})
    with pytest.raises(StoreError, match="holds 'photos' and is not a feature store"):
        kit.open_writer(bucket)
    assert content_of(bucket) == {"photos/cat.jpg": b"meow"}


def test_half_a_copy_is_no_new_store(kit: Kit) -> None:
    """Its manifest is missing, its records are there."""
    bucket = Watched(memory())
    kit.fill(bucket)
    bucket.remove(["manifest.json"])
    before = content_of(bucket)
    with pytest.raises(StoreError, match="manifest.json"):
        kit.open_writer(bucket)
    assert content_of(bucket) == before


def test_other_inputs_are_refused(kit: Kit) -> None:
    bucket = Watched(memory())
    kit.fill(bucket)
    with pytest.raises(StoreMismatchError, match="memory://s.zarr was extracted from other inputs"):
        kit.open_writer(bucket, weights_digest="e" * 64)


def test_a_server_that_fails_often_costs_nothing(kit: Kit, s3: Any, tmp_path: Path) -> None:
    """One request of seven is answered with an error, or done and then answered with an error."""
    url, count = s3.new_url(), [0]

    def some(every: int) -> Callable[[str, str], tuple[int, str] | None]:
        def fault(method: str, key: str) -> tuple[int, str] | None:
            count[0] += 1
            return (503, "SlowDown") if count[0] % every == 0 else None

        return fault

    s3.before, s3.after = some(11), some(7)
    kit.fill(url, kit.noise_of)
    s3.forget()
    root = kit.fill(tmp_path / "s.zarr", kit.noise_of)
    bucket = open_depot(url)
    assert isinstance(bucket, Bucket)
    assert same_content(bucket, root, kit)


def test_shards_are_read_beside_each_other(kit: Kit, s3: Any) -> None:
    """A server that answers nothing before it has several requests for shards."""
    url = s3.new_url()
    kit.fill(url)
    store = FeatureStore.open(url)
    together = threading.Barrier(2, timeout=20)
    broken: list[str] = []

    def wait(method: str, key: str) -> None:
        if "/c/" in key and method == "GET":
            try:
                together.wait()
            except threading.BrokenBarrierError:
                broken.append(key)

    s3.before = wait
    assert float(store.read(3, "base")["C4"].mean()) == 3.0  # an index and a chunk of two shards
    assert not broken


def test_credentials_that_expire_half_way(kit: Kit, s3: Any) -> None:
    """One message; the same command goes on with new ones."""
    url = s3.new_url()
    writer = kit.open_writer(url)
    writer.write(writer.blocks[0], kit.noise_of(writer.blocks[0]))
    s3.before = lambda method, key: (400, "ExpiredToken")
    with pytest.raises(RemoteStoreError, match="ExpiredToken.*What was committed is safe"):
        writer.write(writer.blocks[1], kit.noise_of(writer.blocks[1]))
    s3.forget()
    kit.fill(url, kit.noise_of)
    assert verify_store(url, deep=True).is_good


def test_images_that_left_and_come_back(kit: Kit) -> None:
    """Their blocks are freed; one that was written without them is never taken for one with."""
    bucket = Watched(memory())
    kit.fill(bucket, kit.noise_of, views=("base",))
    held, gone = load_manifest(bucket.source), np.array([2, 4])
    replace_truth(bucket, held, rows_without(kit.annotations, gone), withdrawn=gone)
    waste = {some.kind: len(some.paths) for some in prune_store(bucket, dry_run=False).waste}
    assert (waste["image"], waste["orphan"]) == (3, 1)  # row 2 had its block alone
    assert verify_store(bucket, deep=True).is_good
    plan = StorePlan.load(bucket.source)
    half = next(block for block in plan.blocks if {*block.rows} & {4} and len(block.rows) > 1)
    bucket.remove([commit_key(half), *plan.layout.shard_keys(half).values()])
    writer = StoreWriter(bucket, plan)
    writer.write(half, kit.noise_of(half))
    assert verify_store(bucket, deep=True).is_good
    replace_truth(bucket, load_manifest(bucket.source), kit.annotations)
    back = StoreWriter(bucket, StorePlan.load(bucket.source))
    assert half.name in {block.name for block in back.missing_blocks()}
    assert not back.is_committed(half)
    with pytest.raises(StoreError, match="written while images that are back now were out of it"):
        back.write(half, others_of(half, kit))
    assert {some.kind: len(some.paths) for some in prune_store(bucket, dry_run=False).waste}[
        "orphan"
    ] > 2
    kit.fill(bucket, kit.noise_of, views=("base",))
    assert verify_store(bucket, deep=True).is_good


def rows_without(annotations: Any, rows: Any) -> Any:
    """The same images; those of some rows have no boxes."""
    kept = ~np.isin(np.repeat(np.arange(len(annotations)), np.diff(annotations.offsets)), rows)
    counts = np.diff(annotations.offsets)
    counts[rows] = 0
    return replace(
        annotations,
        offsets=np.cumsum([0, *counts]).astype(np.int64),
        boxes=annotations.boxes[kept],
        labels=annotations.labels[kept],
        crowd=annotations.crowd[kept],
        areas=annotations.areas[kept],
    )
