"""Making a store, or opening one that was begun: the same inputs or a refusal.

A store is made in a hidden folder beside its place and renamed, so it exists whole or not at all,
and of several writers that start together exactly one makes it. In a folder that is there already
(a mount point, `.`, a link) it is made in place under the commit lock, and its manifest comes last.
So it is in an object storage, where the first manifest counts.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import xxhash

from cachedet.data.views import is_view_name
from cachedet.errors import ChangedMeanwhileError, StoreError
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
    is_record,
    is_table_key,
)
from cachedet.store.files.owner import Owner
from cachedet.store.files.places import find_obstacle, make_folder, write_files
from cachedet.store.format.layout import Layout, make_metadata, metadata_digest
from cachedet.store.format.manifest import Manifest, encode_manifest
from cachedet.store.format.npz import dump_arrays
from cachedet.store.format.plan import StorePlan, read_codec
from cachedet.store.leftovers import is_dead, remove_leftovers
from cachedet.store.store_inputs import StoreInputs, require_same_inputs
from cachedet.store.upkeep import repair_and_extend

_CREATING = ".creating"
_MOST_OF_NAME = 96  # bytes of a store's name that a hidden folder keeps
_KEPT_OF_NAME = 16  # characters of longer ones, of up to 4 bytes
_MOST_RACES = 10  # with writers that add views or images at the same time


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
    compared = require_same_inputs(depot, inputs)
    for folder in (COMMITS, LEASES):  # copying tools drop empty folders
        (depot.folder / folder).mkdir(exist_ok=True)
    repair_and_extend(depot, inputs, compared)
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
        compared = require_same_inputs(bucket, inputs)
        try:
            repair_and_extend(bucket, inputs, compared)
            return
        except ChangedMeanwhileError:
            if not left:
                raise


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
