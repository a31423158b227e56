"""Making a store, or opening one that was begun: the same inputs or a refusal.

A store is made in a hidden folder beside its place and renamed, so it exists whole or not at all,
and of several writers that start together exactly one makes it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cachedet.errors import CorruptBlockError, StoreError, StoreMismatchError
from cachedet.store.codec import Codec, state_digest
from cachedet.store.codecs import make_codec
from cachedet.store.durable import (
    TEMPORARY_SUFFIX,
    encode_json,
    sync_directory,
    write_durably,
)
from cachedet.store.layout import (
    CODEC_STATE,
    COMMITS,
    LEASES,
    MANIFEST,
    TRUTH,
    Layout,
    make_metadata,
    metadata_digest,
)
from cachedet.store.leases import commit_lock
from cachedet.store.manifest import (
    Manifest,
    digest_json,
    dump_arrays,
    load_arrays,
    load_manifest,
    load_truth,
    truth_arrays,
)
from cachedet.store.owner import Life, Owner
from cachedet.store.plan import StorePlan, load_codec
from cachedet.store.records import CommitRecord
from cachedet.store.source import LocalFiles
from cachedet.structures import Truth

_CREATING = ".creating"

Fit = Callable[[Codec], Codec]
"""Gives the codec what it must learn; called only where that is not in the store yet."""


def open_or_create(
    root: Path, *, manifest: Manifest, truth: Truth, contents: NDArray[np.uint64], fit: Fit
) -> StorePlan:
    """The plan of the store at `root`, made now or before from the same inputs.

    Args:
        root: folder of the store.
        manifest: what it shall hold; its `codec_digest` and `metadata_digest` are decided here.
        truth: pictures and boxes.
        contents: (N,) content hash of each picture file.
        fit: learns what the codec needs from a sample.

    Raises StoreMismatchError, or StoreError where the folder is something else or too full.
    """
    _remove_unborn(root)
    if not (root / MANIFEST).exists() and not (root / COMMITS).is_dir():
        _create(root, manifest=manifest, truth=truth, contents=contents, fit=fit)
    _restore_manifest(root, manifest, truth)
    _require_same_inputs(root, manifest, truth, contents)
    (root / LEASES).mkdir(exist_ok=True)
    with commit_lock(root):
        mend_metadata(root, truth=truth, contents=contents, fit=fit)
    remove_leftovers(root)
    return StorePlan.load(LocalFiles(root))


def mend_metadata(root: Path, *, truth: Truth, contents: NDArray[np.uint64], fit: Fit) -> None:
    """Write damaged truth.npz, codec.npz and zarr.json files anew.

    Raises StoreError where the codec would not learn the same again.
    """
    source = LocalFiles(root)
    manifest = load_manifest(source)
    try:
        load_truth(source, manifest)
    except StoreError:
        write_durably(root / TRUTH, _truth_content(truth, contents))
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


def remove_leftovers(root: Path) -> int:
    """Remove what dead writers of this machine left behind; returns how many files."""
    found = dead_leftovers(root)
    for path in found:
        path.unlink(missing_ok=True)
    return len(found)


def dead_leftovers(root: Path) -> list[Path]:
    """Temporary files and leases whose owner ran on this machine and is dead."""
    leases = [path for path in (root / LEASES).glob("*.lease") if _is_dead(_read_text(path))]
    temporary = [p for p in root.rglob(f"*{TEMPORARY_SUFFIX}") if _is_dead(p.name)]
    return sorted([*leases, *temporary])


def require_space(root: Path, needed: int) -> None:
    """Raises StoreError where the disk is too small for `needed` more bytes."""
    free = _free_nbytes(root)
    if needed > free:
        raise StoreError(
            f"{root}: {needed / 1e9:.2f} GB are still to be written, the disk has "
            f"{free / 1e9:.2f} GB free. Free space, choose another --store, "
            "a smaller --image-size, fewer --views or a smaller --codec"
        )


def cannot_write(root: Path, error: OSError, *, needed: int | None = None) -> StoreError:
    """What to tell the user when the system refuses to write."""
    wanted = f"; this block needs {needed / 1e6:.1f} MB" if needed is not None else ""
    return StoreError(
        f"cannot write {error.filename or root}: {error.strerror}{wanted}, "
        f"{_free_nbytes(root) / 1e6:.1f} MB are free. What was committed is safe: mend the cause "
        "and run the same command again"
    )


def _create(
    root: Path, *, manifest: Manifest, truth: Truth, contents: NDArray[np.uint64], fit: Fit
) -> None:
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise StoreError(
            f"{root} exists and is not a feature store (it has no {MANIFEST}); "
            "choose another --store"
        )
    blocks = manifest.plan(truth)
    codec = make_codec(manifest.codec)
    if codec.needs_fit:
        codec = fit(codec)
    layout = Layout(spec=manifest.spec, codec=codec)
    require_space(root, sum(len(b.rows) * layout.least_picture_nbytes(b.bucket) for b in blocks))
    unborn = root.with_name(f".{root.name}.{Owner.me().token}{_CREATING}")
    for folder in (COMMITS, LEASES):
        (unborn / folder).mkdir(parents=True)
    metadata = make_metadata(blocks=blocks, layout=layout, block_size=manifest.block_size)
    _write_metadata(unborn, metadata)
    if codec.needs_fit:
        write_durably(unborn / CODEC_STATE, dump_arrays(codec.state()))
    write_durably(unborn / TRUTH, _truth_content(truth, contents))
    decided = replace(
        manifest,
        codec_digest=state_digest(codec.state()),
        metadata_digest=metadata_digest(metadata),
    )
    write_durably(unborn / MANIFEST, encode_json(decided.to_json()))
    _give_birth(unborn, root)


def _give_birth(unborn: Path, root: Path) -> None:
    try:
        os.rename(unborn, root)
    except OSError as error:
        shutil.rmtree(unborn, ignore_errors=True)
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or not (root / MANIFEST).exists():
            raise
        return  # another writer was faster; its store is checked like any other
    sync_directory(root.parent)


def _remove_unborn(root: Path) -> None:
    if root.parent.is_dir():
        for path in root.parent.glob(f".{root.name}.*{_CREATING}"):
            if _is_dead(path.name):
                shutil.rmtree(path, ignore_errors=True)


def _write_metadata(root: Path, metadata: dict[str, bytes]) -> None:
    for key, content in metadata.items():
        (root / key).parent.mkdir(parents=True, exist_ok=True)
        write_durably(root / key, content)


def _rewrite_metadata(root: Path, plan: StorePlan) -> None:
    """Another zarr version may write other bytes, so the manifest takes the new digest."""
    block_size = plan.manifest.block_size
    metadata = make_metadata(blocks=plan.blocks, layout=plan.layout, block_size=block_size)
    _write_metadata(root, metadata)
    decided = replace(plan.manifest, metadata_digest=metadata_digest(metadata))
    if decided != plan.manifest:
        write_durably(root / MANIFEST, encode_json(decided.to_json()))


def _restore_manifest(root: Path, manifest: Manifest, truth: Truth) -> None:
    """Write a damaged manifest anew where the commit records prove that it said the same.

    Raises StoreError where it is whole but of another format, or nothing proves it.
    """
    source = LocalFiles(root)
    try:
        load_manifest(source)
    except StoreError as error:
        if _is_whole(root / MANIFEST):
            raise
        codec = make_codec(manifest.codec)
        state = load_arrays(source, CODEC_STATE) if codec.needs_fit else {}
        decided = replace(manifest, codec_digest=state_digest(state))
        if not _is_proven(root, decided):
            raise StoreError(
                f"{error}. No commit record shows that it held what is asked for now; give the "
                "same inputs, copy the file from a backup, or extract into a new --store"
            ) from error
        layout = Layout(spec=decided.spec, codec=codec.with_state(state))
        metadata = make_metadata(
            blocks=decided.plan(truth), layout=layout, block_size=decided.block_size
        )
        decided = replace(decided, metadata_digest=metadata_digest(metadata))
        write_durably(root / MANIFEST, encode_json(decided.to_json()))


def _is_whole(path: Path) -> bool:
    """Whether a JSON object fits its own checksum, whatever its format."""
    try:
        body = json.loads(path.read_bytes())
        checksum = body.pop("checksum")
    except (OSError, ValueError, AttributeError, KeyError, RecursionError):
        return False
    return bool(checksum == digest_json(body))


def _is_proven(root: Path, manifest: Manifest) -> bool:
    """Whether every whole commit record is of a store like this one, and there is one at least."""
    records = []
    for path in (root / COMMITS).glob("*.json"):
        with contextlib.suppress(CorruptBlockError):
            records.append(CommitRecord.from_bytes(path.read_bytes(), where=str(path)))
    views = {record.block.partition("-b")[0] for record in records}
    fingerprints = {record.fingerprint for record in records}
    return fingerprints == {manifest.block_fingerprint()} and views <= set(manifest.views)


def _require_same_inputs(
    root: Path, manifest: Manifest, truth: Truth, contents: NDArray[np.uint64]
) -> None:
    source = LocalFiles(root)
    stored = load_manifest(source)
    fields = stored.differing_fields(manifest)
    if not fields:
        return
    message = f"{root} was extracted from other inputs. " + "; ".join(fields)
    if stored.pictures_digest != manifest.pictures_digest:
        old_truth, old_contents = load_truth(source, stored)
        before = dict(zip(old_truth.file_names, old_contents.tolist(), strict=True))
        now = dict(zip(truth.file_names, contents.tolist(), strict=True))
        changed = sorted(name for name in before.keys() | now if before.get(name) != now.get(name))
        message += f"; pictures changed, added or gone: {', '.join(changed[:10])}"
        message += f" and {len(changed) - 10} more" if len(changed) > 10 else ""
    raise StoreMismatchError(f"{message}. Extract into a new --store, or give the same inputs")


def _truth_content(truth: Truth, contents: NDArray[np.uint64]) -> bytes:
    return dump_arrays({**truth_arrays(truth), "contents": contents})


def _is_dead(text: str) -> bool:
    owner = Owner.parse(text)
    return owner is not None and owner.life() is Life.DEAD


def _read_text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _free_nbytes(root: Path) -> int:
    existing = next(path for path in (root, *root.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free
