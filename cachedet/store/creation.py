"""Making a store, or opening one that was begun: the same inputs or a refusal.

A store is made in a hidden folder beside its place and renamed, so it exists whole or not at all,
and of several writers that start together exactly one makes it. In a folder that is there already
(a mount point, `.`, a link) it is made in place under the commit lock, and its manifest comes last.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cachedet.data.views import is_view_name
from cachedet.errors import StoreError, StoreMismatchError
from cachedet.store.codecs.codec import Codec, state_digest
from cachedet.store.codecs.registry import make_codec
from cachedet.store.files.durable import (
    TEMPORARY_SUFFIX,
    require_space,
    sync_directory,
    write_durably,
    write_files,
)
from cachedet.store.files.leases import COMMIT_LOCK, commit_lock
from cachedet.store.files.names import ANNOTATIONS, CODEC_STATE, COMMITS, LEASES, MANIFEST, METADATA
from cachedet.store.files.owner import Owner
from cachedet.store.files.source import LocalFiles
from cachedet.store.format.annotations import load_annotations
from cachedet.store.format.layout import make_metadata, metadata_digest, metadata_keys
from cachedet.store.format.manifest import (
    Manifest,
    annotation_arrays,
    encode_manifest,
    load_manifest,
)
from cachedet.store.format.npz import dump_arrays
from cachedet.store.format.plan import StorePlan, load_codec
from cachedet.store.leftovers import is_dead, remove_leftovers
from cachedet.structures import Annotations

_CREATING = ".creating"

Fit = Callable[[Codec], Codec]
"""Gives the codec what it must learn; called only where that is not in the store yet."""


def open_or_create(
    root: Path,
    *,
    manifest: Manifest,
    annotations: Annotations,
    contents: NDArray[np.uint64],
    fit: Fit,
) -> StorePlan:
    """The plan of the store at `root`, made now or before from the same inputs.

    Views that `manifest` names and the store lacks become part of it; those it holds beside them
    stay.

    Args:
        root: folder of the store.
        manifest: what it shall hold; its `codec_digest` and `metadata_digest` are decided here.
        annotations: images and boxes.
        contents: (N,) content hash of each image file.
        fit: learns what the codec needs from a sample.

    Raises StoreMismatchError, or StoreError where the folder is something else or too full.
    """
    _remove_unborn(root)
    if not (root / MANIFEST).exists() and not (root / COMMITS).is_dir():
        _create(root, manifest=manifest, annotations=annotations, contents=contents, fit=fit)
    _require_same_inputs(root, manifest, annotations, contents)
    for folder in (COMMITS, LEASES):  # copying tools drop empty folders
        (root / folder).mkdir(exist_ok=True)
    with commit_lock(root):
        repair_metadata(root, annotations=annotations, contents=contents, fit=fit)
        add_views(root, manifest.views)
    remove_leftovers(root)
    return StorePlan.load(LocalFiles(root))


def repair_metadata(
    root: Path, *, annotations: Annotations, contents: NDArray[np.uint64], fit: Fit
) -> None:
    """Write damaged annotations.npz, codec.npz and zarr.json files anew.

    Raises StoreError where the codec would not learn the same again.
    """
    source = LocalFiles(root)
    manifest = load_manifest(source)
    try:
        load_annotations(source, manifest)
    except StoreError:
        write_durably(root / ANNOTATIONS, _annotations_content(annotations, contents))
    try:
        load_codec(source, manifest)
    except StoreError:
        state = fit(make_codec(manifest.codec)).state()
        if state_digest(state) != manifest.codec_digest:
            raise
        write_durably(root / CODEC_STATE, dump_arrays(state))
    plan = StorePlan.load(source)
    try:
        plan.require_metadata()
    except StoreError:
        _rewrite_metadata(root, plan)


def _create(
    root: Path,
    *,
    manifest: Manifest,
    annotations: Annotations,
    contents: NDArray[np.uint64],
    fit: Fit,
) -> None:
    if root.exists() and not _is_free(root):
        if (root / MANIFEST).exists():  # another writer made the store since we looked
            return
        raise StoreError(
            f"{root} exists and is not a feature store (it has no {MANIFEST}); "
            "choose another --store"
        )
    files = _make_files(
        root, manifest=manifest, annotations=annotations, contents=contents, fit=fit
    )
    if not root.exists():
        _create_beside(root, files)
        return
    with commit_lock(root):
        if not (root / MANIFEST).exists():
            write_files(root, files)


def _is_free(root: Path) -> bool:
    """Whether a folder is empty, or holds what a writer wrote who died before the manifest."""
    if not root.is_dir():
        return False
    names = {path.name for path in root.iterdir() if path.suffix != TEMPORARY_SUFFIX}
    names -= {LEASES, "lost+found"}  # the root of a disk has lost+found
    if (root / COMMIT_LOCK).exists():
        names -= {METADATA, ANNOTATIONS, CODEC_STATE, *filter(is_view_name, names)}
    return not names


def _make_files(
    root: Path,
    *,
    manifest: Manifest,
    annotations: Annotations,
    contents: NDArray[np.uint64],
    fit: Fit,
) -> dict[str, bytes]:
    """Every file of a store without blocks, the manifest last. Raises StoreError: too full."""
    blocks = manifest.plan(annotations)
    codec = make_codec(manifest.codec)
    if codec.needs_fit:
        codec = fit(codec)
    layout = manifest.layout(codec)
    require_space(root, sum(len(b.rows) * layout.least_image_nbytes(b.bucket) for b in blocks))
    metadata = make_metadata(blocks=blocks, layout=layout, block_size=manifest.block_size)
    decided = replace(
        manifest,
        codec_digest=state_digest(codec.state()),
        metadata_digest=metadata_digest(metadata),
    )
    state = {CODEC_STATE: dump_arrays(codec.state())} if codec.needs_fit else {}
    annotations_content = _annotations_content(annotations, contents)
    return {
        **metadata,
        **state,
        ANNOTATIONS: annotations_content,
        MANIFEST: encode_manifest(decided),
    }


def _create_beside(root: Path, files: dict[str, bytes]) -> None:
    place = Path(os.path.realpath(root))
    unborn = place.with_name(f".{place.name}.{Owner.me().token}{_CREATING}")
    try:
        for folder in (COMMITS, LEASES):
            (unborn / folder).mkdir(parents=True)
        write_files(unborn, files)
        os.rename(unborn, place)
    except OSError as error:
        was_slower = error.errno in (errno.ENOTEMPTY, errno.EEXIST) and error.filename2 is not None
        if not was_slower or not (root / MANIFEST).exists():
            raise
        return  # the store of the faster writer is checked like any other
    finally:
        shutil.rmtree(unborn, ignore_errors=True)
    sync_directory(place.parent)


def _remove_unborn(root: Path) -> None:
    place = Path(os.path.realpath(root))
    try:
        names = os.listdir(place.parent)
    except OSError:  # not there yet, or not for us to see
        return
    for name in names:
        if name.startswith(f".{place.name}.") and name.endswith(_CREATING) and is_dead(name):
            shutil.rmtree(place.parent / name, ignore_errors=True)


def _rewrite_metadata(root: Path, plan: StorePlan) -> None:
    """Another zarr version may write other bytes, so the manifest takes the new digest."""
    block_size = plan.manifest.block_size
    metadata = make_metadata(blocks=plan.blocks, layout=plan.layout, block_size=block_size)
    write_files(root, metadata)
    decided = replace(plan.manifest, metadata_digest=metadata_digest(metadata))
    if decided != plan.manifest:
        write_durably(root / MANIFEST, encode_manifest(decided))


def _require_same_inputs(
    root: Path, manifest: Manifest, annotations: Annotations, contents: NDArray[np.uint64]
) -> None:
    source = LocalFiles(root)
    stored = load_manifest(source)
    fields = stored.differing_fields(replace(manifest, views=stored.views))
    if not fields:
        return
    message = f"{root} was extracted from other inputs. " + "; ".join(fields)
    if stored.images_digest != manifest.images_digest:
        old_annotations, old_contents = load_annotations(source, stored)
        before = dict(zip(old_annotations.file_names, old_contents.tolist(), strict=True))
        now = dict(zip(annotations.file_names, contents.tolist(), strict=True))
        changed = sorted(name for name in before.keys() | now if before.get(name) != now.get(name))
        message += f"; images changed, added or gone: {', '.join(changed[:10])}"
        message += f" and {len(changed) - 10} more" if len(changed) > 10 else ""
    raise StoreMismatchError(f"{message}. Extract into a new --store, or give the same inputs")


def _annotations_content(annotations: Annotations, contents: NDArray[np.uint64]) -> bytes:
    return dump_arrays({**annotation_arrays(annotations), "contents": contents})


def add_views(root: Path, views: Sequence[str]) -> None:
    """Make the store one that holds these views beside its own; only under the commit lock.

    What its codec learnt stays. Raises StoreError where the metadata is damaged or the disk cannot
    hold what is to be extracted; the store then is as it was.
    """
    plan = StorePlan.load(LocalFiles(root))
    held = plan.manifest.views
    added = tuple(view for view in views if view not in held)
    if not added:
        return
    larger = replace(plan.manifest, views=(*held, *added))
    blocks = [block for block in larger.plan(plan.annotations) if block.view in added]
    require_space(root, sum(len(b.rows) * plan.layout.least_image_nbytes(b.bucket) for b in blocks))
    kept = {key: plan.source.read(key) for key in metadata_keys(plan.blocks, plan.layout)}
    made = make_metadata(blocks=blocks, layout=plan.layout, block_size=larger.block_size)
    new = {key: content for key, content in made.items() if key not in kept}
    decided = replace(larger, metadata_digest=metadata_digest({**kept, **new}))
    content = encode_manifest(decided)
    write_files(root, new)
    for folder in sorted({(root / key).parent for key in new}):
        sync_directory(folder)
    write_durably(root / MANIFEST, content)
