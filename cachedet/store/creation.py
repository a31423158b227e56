"""Making a store, or opening one that was begun: the same inputs or a refusal.

A store is made in a hidden folder beside its place and renamed, so it exists whole or not at all,
and of several writers that start together exactly one makes it. In a folder that is there already
(a mount point, `.`, a link) it is made in place under the commit lock, and its manifest comes last.
So it is in an object storage, where the first manifest counts.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from cachedet.data.label_changes import compare_labels
from cachedet.data.views import is_view_name
from cachedet.errors import ChangedMeanwhileError, StoreError, StoreMismatchError
from cachedet.store.additions import grows, split_rows
from cachedet.store.codecs.codec import Codec, state_digest
from cachedet.store.codecs.registry import make_codec
from cachedet.store.files.bucket import Bucket
from cachedet.store.files.depot import Depot, Place, open_depot
from cachedet.store.files.durable import TEMPORARY_SUFFIX, sync_directory
from cachedet.store.files.leases import COMMIT_LOCK, commit_lock
from cachedet.store.files.names import (
    CODEC_STATE,
    COMMITS,
    LEASES,
    MANIFEST,
    METADATA,
    STAGES,
    holds_records,
    images_key,
    is_record,
    is_table_key,
    truth_key,
)
from cachedet.store.files.owner import Owner
from cachedet.store.files.places import find_obstacle, make_folder, write_files
from cachedet.store.format.annotations import (
    describe_changes,
    load_annotations,
    load_images,
    rows_but,
)
from cachedet.store.format.layout import Layout, make_metadata, metadata_digest, metadata_keys
from cachedet.store.format.manifest import (
    NO_ROWS,
    Manifest,
    encode_manifest,
    image_arrays,
    load_manifest,
    require_sane,
    truth_arrays,
)
from cachedet.store.format.npz import dump_arrays
from cachedet.store.format.plan import StorePlan, load_codec, read_codec
from cachedet.store.format.stages import load_stages
from cachedet.store.leftovers import is_dead, remove_leftovers
from cachedet.structures import Annotations

_log = logging.getLogger(__name__)

_CREATING = ".creating"
_MOST_OF_NAME = 96  # bytes of a store's name that a hidden folder keeps
_KEPT_OF_NAME = 16  # characters of longer ones, of up to 4 bytes
_MOST_RACES = 10  # with writers that add views or images at the same time

Fit = Callable[[Codec], Codec]
"""Gives the codec what it must learn; called only where that is not in the store yet."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StoreInputs:
    """What a store is made of; the digests of codec and zarr.json files are decided when it is."""

    manifest: Manifest
    annotations: Annotations
    contents: NDArray[np.uint64]  # (N,) content hash of each image file
    fit: Fit
    stages: bytes | None = None  # content of the file of stage weights
    withdrawn: NDArray[np.int64] = field(default_factory=NO_ROWS.copy)  # rows that were taken out

    def annotation_files(self) -> dict[str, bytes]:
        """Images and boxes, by key."""
        manifest, files = self.manifest, {}
        split = zip(manifest.image_digests, split_rows(manifest.starts), strict=True)
        for generation, (digest, rows) in enumerate(split):
            table = image_arrays(self.annotations, self.contents, rows)
            files[images_key(generation, digest)] = dump_arrays(table)
        truth = truth_arrays(self.annotations, self.withdrawn)
        files[truth_key(manifest.truth_digest)] = dump_arrays(truth)
        return files

    def without_withdrawn(self) -> tuple[Annotations, NDArray[np.uint64]]:
        """Images and boxes that the store shall have, with the images' content hashes."""
        rows = rows_but(len(self.annotations), self.withdrawn)
        return self.annotations.keep_rows(rows.tolist()), self.contents[rows]


def require_place(place: Place) -> None:
    """Refuse what `open_or_create` could only find out after all images were looked at.

    Raises StoreError: the place is something else than a store, or cannot be written.
    """
    depot = open_depot(place)
    if isinstance(depot, Bucket):
        depot.require_writable()
        _require_free_bucket(depot)
        return
    root = depot.folder
    obstacle = find_obstacle(root)
    if obstacle is not None:
        raise StoreError(
            f"cannot write {obstacle.filename}: {obstacle.strerror}; repair the cause and run the "
            "same command again, or choose another --store"
        )
    if root.exists() and not (root / MANIFEST).exists():
        _require_free(root)


def open_or_create(place: Place, inputs: StoreInputs) -> StorePlan:
    """The plan of the store at this place, made now or before from the same inputs.

    Views and images that the store lacks become part of it; views it holds beside them stay.

    Raises StoreMismatchError, or StoreError where the place is something else or too full.
    """
    depot = open_depot(place)
    make_store(depot, lambda: _make_files(depot, inputs))
    if isinstance(depot, Bucket):
        _open_bucket(depot, inputs)
        return StorePlan.load(depot.source)
    compared = _require_same_inputs(depot, inputs)
    for folder in (COMMITS, LEASES):  # copying tools drop empty folders
        (depot.folder / folder).mkdir(exist_ok=True)
    _repair_and_extend(depot, inputs, compared)
    remove_leftovers(depot.folder)
    return StorePlan.load(depot.source)


def make_store(depot: Depot, make_files: Callable[[], dict[str, bytes]]) -> None:
    """Make a store without blocks where there is none, of files whose last is the manifest.

    Raises StoreError: the place is something else, or too full.
    """
    if isinstance(depot, Bucket):
        if depot.has(MANIFEST) or _holds_records(depot):
            return
        _require_free_bucket(depot)
        depot.put({COMMIT_LOCK: b""})  # so that what follows is known as a writer's
        files = make_files()
        content = files.pop(MANIFEST)
        depot.put(files)
        depot.create(MANIFEST, content)  # another's is compared like any other
        return
    _remove_unborn(depot.folder)
    if not (depot.folder / MANIFEST).exists() and not holds_records(depot.folder):
        _create(depot.folder, make_files)


def _open_bucket(bucket: Bucket, inputs: StoreInputs) -> None:
    for left in reversed(range(_MOST_RACES)):
        compared = _require_same_inputs(bucket, inputs)
        try:
            _repair_and_extend(bucket, inputs, compared)
            return
        except ChangedMeanwhileError:
            if not left:
                raise


def _repair_and_extend(depot: Depot, inputs: StoreInputs, compared: Manifest) -> None:
    with depot.changing():
        _repair_metadata(depot, inputs)
        _repair_stages(depot, inputs)
        _extend(depot, inputs, compared)


def _create(root: Path, make_files: Callable[[], dict[str, bytes]]) -> None:
    if root.exists() and not _is_free(root) and (root / MANIFEST).exists():
        return  # another writer made the store since we looked
    _require_free(root)
    files = make_files()
    if not root.exists():
        _create_beside(root, files)
        return
    with commit_lock(root):
        if not (root / MANIFEST).exists():
            write_files(root, files)


def _require_free(root: Path) -> None:
    if root.exists() and not _is_free(root) and not holds_records(root):
        raise StoreError(
            f"{root} exists and is not a feature store (it has no {MANIFEST}); "
            "choose another --store"
        )


def _require_free_bucket(bucket: Bucket) -> None:
    """Somebody else's objects are neither counted nor touched."""
    names = bucket.names()
    if MANIFEST in names or _holds_records(bucket):
        return
    others = _not_of_writers(names, was_begun=bucket.has(COMMIT_LOCK))
    if others:
        raise StoreError(
            f"{bucket} holds {sorted(others)[0]!r} and is not a feature store (it has no "
            f"{MANIFEST}); nothing was written or removed. Choose another --store"
        )


def _holds_records(bucket: Bucket) -> bool:
    return any(is_record(key.rpartition("/")[2]) for key in bucket.sizes(COMMITS))


def _is_free(root: Path) -> bool:
    """Whether a folder is empty, or holds what a writer wrote who died before the manifest."""
    if not root.is_dir():
        return False
    names = {path.name for path in root.iterdir() if path.suffix != TEMPORARY_SUFFIX}
    return not _not_of_writers(names, was_begun=(root / COMMIT_LOCK).exists())


def _not_of_writers(names: set[str], *, was_begun: bool) -> set[str]:
    """What at the top is not of a store whose manifest was never written."""
    names = names - {LEASES, "lost+found"}  # the root of a disk has lost+found
    if was_begun:
        names -= {METADATA, CODEC_STATE, STAGES}
        names -= {name for name in names if is_view_name(name) or is_table_key(name)}
    return names


def _make_files(depot: Depot, inputs: StoreInputs) -> dict[str, bytes]:
    """Every file of a store without blocks, the manifest last. Raises StoreError: too full."""
    manifest = inputs.manifest
    blocks = manifest.plan(inputs.annotations)
    codec = make_codec(manifest.codec)
    files: dict[str, bytes] = {}
    if codec.needs_fit:
        codec = inputs.fit(codec)
        if isinstance(depot, Bucket):
            codec = _agree_on(depot, codec, manifest)
        else:
            files[CODEC_STATE] = dump_arrays(codec.state())
    layout = Layout(spec=manifest.spec, codec=codec)
    depot.require_space(layout.least_nbytes(blocks) + len(inputs.stages or b""))
    metadata = make_metadata(blocks=blocks, layout=layout, block_size=manifest.block_size)
    decided = replace(
        manifest,
        codec_digest=state_digest(codec.state()),
        metadata_digest=metadata_digest(metadata),
    )
    files |= metadata | inputs.annotation_files()
    if inputs.stages is not None:
        files[STAGES] = inputs.stages
    files[MANIFEST] = encode_manifest(decided)
    return files


def _agree_on(bucket: Bucket, codec: Codec, manifest: Manifest) -> Codec:
    """What the first of the writers that start together has learnt, also if it died since.

    Another machine may learn other digits of the same images.
    """
    of = manifest.block_fingerprint()
    bucket.settle(
        CODEC_STATE, dump_arrays(codec.state()), of=of, stays=lambda found: found.of == of
    )
    return read_codec(bucket.source, manifest)


def _create_beside(root: Path, files: dict[str, bytes]) -> None:
    target = Path(os.path.realpath(root))
    unborn = target.with_name(f"{_unborn_prefix(target)}{Owner.me().token}{_CREATING}")
    try:
        for folder in (COMMITS, LEASES):
            make_folder(unborn / folder)
        write_files(unborn, files)
        os.rename(unborn, target)
    except OSError as error:
        was_slower = error.errno in (errno.ENOTEMPTY, errno.EEXIST) and error.filename2 is not None
        if not was_slower or not (root / MANIFEST).exists():
            raise
        return  # the store of the faster writer is checked like any other
    finally:
        shutil.rmtree(unborn, ignore_errors=True)
    sync_directory(target.parent)


def _remove_unborn(root: Path) -> None:
    target = Path(os.path.realpath(root))
    try:
        names = os.listdir(target.parent)
    except OSError:  # not there yet, or not for us to see
        return
    prefix = _unborn_prefix(target)
    for name in names:
        if name.startswith(prefix) and name.endswith(_CREATING) and is_dead(name):
            shutil.rmtree(target.parent / name, ignore_errors=True)


def _unborn_prefix(target: Path) -> str:
    """With the owner's token and the ending a name has no more than 255 bytes."""
    name = target.name
    if len(os.fsencode(name)) > _MOST_OF_NAME:
        name = f"{name[:_KEPT_OF_NAME]}-{xxhash.xxh3_64(os.fsencode(name)).hexdigest()}"
    return f".{name}."


def _require_same_inputs(depot: Depot, inputs: StoreInputs) -> Manifest:
    """The manifest that was compared. Raises StoreMismatchError."""
    source, manifest = depot.source, inputs.manifest
    stored = load_manifest(source)
    digest = stored.stages_digest and manifest.stages_digest  # one without them gets them
    stored = replace(stored, stages_digest=digest)
    same = replace(manifest, views=stored.views, stages_digest=digest)
    if _gains(stored, manifest):  # the file of more images is what people say of all of them
        if stored.categories != manifest.categories:
            raise StoreMismatchError(
                f"{depot} has other classes than the annotations of more images: "
                f"{manifest.categories.unlike(stored.categories)}. Give annotations of the same "
                f"classes{_CHOICE}, or `cachedet relabel` the store first"
            )
        same = replace(
            same,
            added=stored.added,
            truth_digest=stored.truth_digest,
            withdrawn_digest=stored.withdrawn_digest,
        )
    fields = stored.differing_fields(same)
    if not fields:
        return stored
    if fields and _differ_in_cut(stored, manifest):
        there, asked = (", ".join(each.spec.names) for each in (stored, manifest))
        raise StoreMismatchError(
            f"{depot} holds {there} of the network, and {asked} are asked for: --freeze-at is "
            "another. A store with all levels serves every cut; extract into a new --store, or "
            "give the same --freeze-at"
        )
    identities = [(each.image_digests, each.truth_digest) for each in (stored, manifest)]
    if identities[0] != identities[1]:
        with contextlib.suppress(StoreError):  # damaged: the digests alone must do
            held = load_annotations(source, stored)
            in_words = ("added: ", "withdrawn_digest: ")
            fields = [text for text in fields if not text.startswith(in_words)]
            fields += describe_changes(held, inputs.without_withdrawn())
    choice = _CHOICE if stored.categories != manifest.categories else ""
    if _differ_in_truth(stored, manifest):
        raise StoreMismatchError(
            f"{depot} has other boxes or classes for the same images. {'; '.join(fields)}. Its "
            f"features fit both: `cachedet relabel {depot} --annotations FILE` takes the new ones "
            f"without extracting; else give the annotations that it has{choice}"
        )
    lacks = any(text.startswith(("images gone: ", "image files changed: ")) for text in fields)
    leave = _LEAVE.format(root=depot) if lacks else ""
    raise StoreMismatchError(
        f"{depot} was extracted from other inputs. {'; '.join(fields)}. {leave}Extract into a new "
        f"--store, or give the same inputs{choice}"
    )


_LEAVE = (
    "`cachedet relabel {root} --annotations FILE --withdraw` takes images out that FILE lacks; "
    "`extract` then adds them as they are now. "
)
_CHOICE = " (the classes are also those of --classes, --ignore-classes and --merge-classes)"


def _gains(held: Manifest, wanted: Manifest) -> bool:
    """Whether a store of `wanted` has the images of `held` and more, or some that had left it."""
    if held.image_digests == wanted.image_digests:
        return held.withdrawn_digest != wanted.withdrawn_digest
    return grows(held, wanted)


def _differ_in_truth(stored: Manifest, manifest: Manifest) -> bool:
    """Whether features are the same, and no more than boxes or classes differs."""
    same = replace(manifest, truth_digest=stored.truth_digest, categories=stored.categories)
    same = replace(same, views=stored.views, stages_digest=stored.stages_digest)
    return not stored.differing_fields(same)


def _differ_in_cut(stored: Manifest, manifest: Manifest) -> bool:
    """Whether a store holds more or fewer levels of the same network, and no more differs."""
    same = replace(manifest, spec=stored.spec, views=stored.views)
    same = replace(same, stages_digest=stored.stages_digest, network=stored.network)
    return stored.network == manifest.network and not stored.differing_fields(same)


def _repair_metadata(depot: Depot, inputs: StoreInputs) -> None:
    """Write damaged images.npz, truth, codec.npz and zarr.json files anew.

    Raises StoreError where the codec would not learn the same again, or the store was relabelled
    since its inputs were compared and is damaged.
    """
    source = depot.source
    manifest = load_manifest(source)
    _repair_tables(depot, inputs, manifest)
    try:
        load_codec(source, manifest)
    except StoreError:
        state = inputs.fit(make_codec(manifest.codec)).state()
        if state_digest(state) != manifest.codec_digest:
            raise
        depot.put({CODEC_STATE: dump_arrays(state)})
    plan = StorePlan.load(source)
    try:
        plan.require_metadata()
    except StoreError:
        files = plan.make_metadata()
        depot.put(files)
        # another zarr version may write other bytes, so the manifest takes the new digest
        decided = replace(manifest, metadata_digest=metadata_digest(files))
        if decided != manifest:
            depot.put_manifest(encode_manifest(decided))


def _repair_tables(depot: Depot, inputs: StoreInputs, manifest: Manifest) -> None:
    """Write tables of images and boxes anew where the inputs are those that they were made of."""
    source = depot.source
    try:
        load_images(source, manifest)
    except StoreError:
        digests = manifest.image_digests
        if inputs.manifest.image_digests[: len(digests)] != digests:
            raise
        named = {images_key(*pair) for pair in enumerate(digests)}
        tables = inputs.annotation_files().items()
        depot.put({key: content for key, content in tables if key in named})
    try:
        load_annotations(source, manifest)
    except StoreError:
        if manifest.truth_digest != inputs.manifest.truth_digest:
            raise
        depot.put(inputs.annotation_files())


def _repair_stages(depot: Depot, inputs: StoreInputs) -> None:
    """Write the stages' weights where they are damaged, or were not kept when it was made."""
    source = depot.source
    manifest = load_manifest(source)
    if inputs.stages is None:
        return
    try:
        load_stages(source, manifest)
    except StoreError:
        depot.put({STAGES: inputs.stages})
        _log.info("wrote %s: the weights of the backbone's last stages", STAGES)
        decided = replace(manifest, stages_digest=inputs.manifest.stages_digest)
        if decided != manifest:
            depot.put_manifest(encode_manifest(decided))


def _extend(depot: Depot, inputs: StoreInputs, compared: Manifest) -> None:
    """Make the store one that holds these views and images beside its own; under the commit lock.

    What its codec learnt stays, and its blocks. Where images come, or come back, what is said of
    all of them is taken. Raises StoreError where the metadata is damaged or the disk cannot hold
    what is to be extracted; the store then is as it was.
    """
    plan = StorePlan.load(depot.source)
    held, wanted = plan.manifest, inputs.manifest
    views = tuple(view for view in wanted.views if view not in held.views)
    larger, annotations = replace(held, views=(*held.views, *views)), plan.annotations
    tables: dict[str, bytes] = {}
    is_same = held.withdrawn_digest == compared.withdrawn_digest
    is_same = is_same and plan.gone.issuperset(inputs.withdrawn.tolist())
    if not is_same or not (grows(held, wanted) or held.image_digests == wanted.image_digests):
        raise StoreMismatchError(
            f"{depot} was given other images by another process meanwhile; run the same command "
            "again: it compares with what the store has now"
        )
    if _gains(held, wanted):
        annotations, tables = inputs.annotations, inputs.annotation_files()
        _tell_other_labels(plan, inputs)
        larger = replace(
            larger,
            added=wanted.added,
            truth_digest=wanted.truth_digest,
            withdrawn_digest=wanted.withdrawn_digest,
            skipped=wanted.skipped,
        )
    if larger == held:
        return
    _require_readable(depot, larger)
    there = {block.name for block in plan.blocks}
    blocks = [block for block in larger.plan(annotations) if block.name not in there]
    gone = {*inputs.withdrawn.tolist()}
    needed = [block for block in blocks if not gone.issuperset(block.rows)]
    depot.require_space(plan.layout.least_nbytes(needed))
    kept = {key: plan.source.read(key) for key in metadata_keys(plan.blocks, plan.layout)}
    made = make_metadata(blocks=blocks, layout=plan.layout, block_size=larger.block_size)
    new = {key: content for key, content in made.items() if key not in kept}
    decided = replace(larger, metadata_digest=metadata_digest({**kept, **new}))
    content = encode_manifest(decided)
    named = {images_key(*pair) for pair in enumerate(held.image_digests)}
    depot.put(new | {k: v for k, v in tables.items() if k not in named})
    depot.put_manifest(content)


def _require_readable(depot: Depot, larger: Manifest) -> None:
    """Raises StoreError where no reader would take what the store is to become."""
    try:
        require_sane(larger)
    except ValueError as error:
        raise StoreError(
            f"{depot} cannot grow so far: {error}. Nothing was changed: remove views "
            "(`cachedet prune --keep-views`), or extract into a new --store"
        ) from error


def _tell_other_labels(plan: StorePlan, inputs: StoreInputs) -> None:
    """Log what the inputs say otherwise of the images that the store has and keeps."""
    rows = rows_but(len(plan.annotations), plan.withdrawn).tolist()
    before, now = (each.keep_rows(rows) for each in (plan.annotations, inputs.annotations))
    if changes := compare_labels(before, now).lines():
        _log.info("note: of the images it had, other labels: %s", "; ".join(changes))
