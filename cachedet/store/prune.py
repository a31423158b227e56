"""What in a store nobody needs: leftovers, orphans, withdrawn records, views and images gone.

Only files that a writer makes are ever removed: regular ones of its names, in the store itself.
What else lies there, and all that links lead to, is left alone.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from cachedet.data.views import is_view_name, parse_views, short_names
from cachedet.errors import InputError
from cachedet.store.files.bucket import Bucket
from cachedet.store.files.depot import Depot, Folder, Place, open_depot
from cachedet.store.files.durable import cannot_write
from cachedet.store.files.inside import remove_empty_folders, remove_inside, walk_inside
from cachedet.store.files.leases import COMMIT_LOCK, commit_lock
from cachedet.store.files.names import (
    CODEC_STATE,
    COMMITS,
    LEASES,
    MANIFEST,
    METADATA,
    STAGES,
    WITHDRAWN_SUFFIX,
    is_table_key,
)
from cachedet.store.files.owner import Owner
from cachedet.store.files.source import LocalFiles
from cachedet.store.format.commits import lacks_images
from cachedet.store.format.layout import Block, commit_key, metadata_digest, metadata_keys
from cachedet.store.format.listing import with_listing
from cachedet.store.format.manifest import encode_manifest, load_manifest
from cachedet.store.format.plan import StorePlan
from cachedet.store.leftovers import LEASE_SUFFIX, dead_leftovers, spent_leftovers
from cachedet.store.settling import origin_of
from cachedet.store.truth import named_tables, unnamed_tables

Kind = Literal["leftover", "withdrawn", "orphan", "view", "image"]

# Of what writers make, below a view's folder and in commits/; docs/disk-format.md names them all.
_IN_VIEW = re.compile(rf"({METADATA}|b\d+x\d+(g\d+)?/([^/]+/){{0,2}}({METADATA}|[^/]+/c(/\d+)+))")
_AT_ONCE = 16  # records that are read
_RECORD = re.compile(rf"[^/]+-b\d+x\d+(g\d+)?-\d{{6,}}\.json({re.escape(WITHDRAWN_SUFFIX)})?")


@dataclass(frozen=True, kw_only=True)
class Waste:
    """Files of one kind."""

    kind: Kind
    paths: tuple[Path | str, ...]  # keys of an object storage
    nbytes: int


@dataclass(frozen=True, kw_only=True)
class PruneReport:
    """What `prune` found, and whether it was removed."""

    waste: tuple[Waste, ...]
    left: tuple[Path | str, ...]  # links and files of others where only waste could lie
    removed: bool

    def to_json(self) -> dict[str, Any]:
        return {
            "removed": self.removed,
            "left": [str(path) for path in self.left],
            "waste": [
                {"kind": w.kind, "files": len(w.paths), "bytes": w.nbytes} for w in self.waste
            ],
        }


def prune_store(
    place: Place, *, dry_run: bool, keep_views: Sequence[str] | None = None
) -> PruneReport:
    """Find what nobody needs and, without `dry_run`, remove it.

    - leftover: temporary files and leases of dead writers of this machine, and of writers
      elsewhere for blocks that are committed;
    - withdrawn: commit records that `verify` put aside;
    - orphan: shards without a commit record, and shards, zarr.json files and records in the folders
      of views (also of views that left the store) and commits that belong to no planned block; and
      files of boxes that the store had before it was relabelled, or of images it never got;
    - view: everything of the views not in `keep_views` (they leave the store for good);
    - image: blocks of which every image was taken out (`relabel --withdraw`).

    Nobody commits while it looks and removes, and what a living writer works on is never touched:
    it may run beside any number of writers, and be killed and run again. What it has to leave in a
    folder of which nothing is wanted, it names.

    In an object storage it keeps the shards of planned blocks that have no record yet, which the
    next writer takes over. There nobody shall change the store's views or labels meanwhile.

    Raises StoreError where the store cannot be opened or written, InputError on an unknown view.
    """
    depot = open_depot(place)
    if isinstance(depot, Bucket):
        return _prune_bucket(depot, dry_run=dry_run, keep_views=keep_views)
    root = depot.folder
    try:
        return _prune(root, dry_run=dry_run, keep_views=keep_views)
    except OSError as error:
        raise cannot_write(root, error) from error


def _prune(root: Path, *, dry_run: bool, keep_views: Sequence[str] | None) -> PruneReport:
    source = LocalFiles(root)
    plan = StorePlan.load(source)
    plan.require_metadata()
    kept = _kept_views(plan, keep_views)
    if dry_run:
        waste, left = _find_waste(root, plan, kept)
        return PruneReport(waste=waste, left=left, removed=False)
    with commit_lock(root):
        if load_manifest(source) != plan.manifest:  # another `prune` was at work
            plan = StorePlan.load(source)
            kept = _kept_views(plan, keep_views)
        waste, left = _find_waste(root, plan, kept)
        if kept != plan.manifest.views:
            _drop_views(Folder(root), plan, kept)
        paths = [Path(path) for some in waste for path in some.paths]
        for path in sorted(paths, key=lambda path: path.parent != root / COMMITS):  # records first
            remove_inside(root, path)
        for view in _view_folders(root, plan) - {*kept}:
            remove_empty_folders(root / view)
    return PruneReport(waste=waste, left=left, removed=True)


def _prune_bucket(
    bucket: Bucket, *, dry_run: bool, keep_views: Sequence[str] | None
) -> PruneReport:
    with bucket.changing():
        plan = StorePlan.load(bucket.source)
        plan.require_metadata()
        kept = _kept_views(plan, keep_views)
        waste, left = _find_objects(bucket, plan, kept)
        if not dry_run:
            if kept != plan.manifest.views:
                _drop_views(bucket, plan, kept)
            keys = [str(key) for some in waste for key in some.paths]
            records = [key for key in keys if key.startswith(COMMITS)]
            bucket.remove(records)  # first: what is half removed is not there
            bucket.remove(key for key in keys if not key.startswith(COMMITS))
    return PruneReport(waste=waste, left=left, removed=not dry_run)


def _find_objects(
    bucket: Bucket, plan: StorePlan, kept: tuple[str, ...]
) -> tuple[tuple[Waste, ...], tuple[str, ...]]:
    """Waste by kind, and what is left where nothing is wanted."""
    sizes = bucket.sizes()
    wanted = {COMMIT_LOCK, MANIFEST, CODEC_STATE, STAGES, *named_tables(plan.manifest)}
    wanted.update(metadata_keys(plan.blocks, plan.layout))
    recorded = [block for block in plan.blocks if commit_key(block) in sizes]
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        lacking = list(threads.map(partial(lacks_images, plan), recorded))
    held = {block.name for block, lacks in zip(recorded, lacking, strict=True) if not lacks}
    gone: set[str] = set()
    for block in plan.blocks:
        shards = plan.layout.shard_keys(block)
        if block.name in held:
            is_gone = plan.gone.issuperset(block.rows)
            (gone if is_gone else wanted).update({commit_key(block), *shards.values()})
        elif commit_key(block) not in sizes:
            wanted.update(_of_writers_at_work(bucket, plan, block, sizes))
    kinds: dict[Kind, list[str]] = {
        "leftover": [], "withdrawn": [], "view": [], "image": [], "orphan": [],
    }  # fmt: skip
    left = []
    for key in sorted(sizes, key=lambda key: (not key.startswith(COMMITS), key)):
        kind = _kind_of(key, is_wanted=key in wanted, kept=kept)
        if kind == "other":
            left += [key] if key.partition("/")[0] not in kept else []
        elif kind is not None:
            kinds["image" if key in gone else kind].append(key)
    return tuple(
        Waste(kind=kind, paths=tuple(keys), nbytes=sum(sizes[key] for key in keys))
        for kind, keys in kinds.items()
    ), tuple(left)


def _of_writers_at_work(
    bucket: Bucket, plan: StorePlan, block: Block, sizes: Mapping[str, int]
) -> Iterator[str]:
    """Shards without a record that the next writer takes over."""
    for array, key in plan.layout.shard_keys(block).items():
        found = bucket.find(key) if key in sizes else None
        if found is not None and found.of == origin_of(plan, block, array):
            yield key


def _kind_of(key: str, *, is_wanted: bool, kept: tuple[str, ...]) -> Kind | Literal["other"] | None:
    """What an object is; None: it is wanted, "other": it is not of a writer's names."""
    folder, _, below = key.partition("/")
    if is_wanted:
        view = below.partition("-b")[0] if folder == COMMITS else folder
        return "view" if is_view_name(view) and view not in kept else None
    if folder == LEASES:
        return "leftover"
    if not below:
        return "orphan" if is_table_key(key) else "other"
    if folder != COMMITS and not is_view_name(folder):
        return "other"
    if not (_RECORD if folder == COMMITS else _IN_VIEW).fullmatch(below):
        return "other"
    return "withdrawn" if below.endswith(WITHDRAWN_SUFFIX) else "orphan"


def _kept_views(plan: StorePlan, keep_views: Sequence[str] | None) -> tuple[str, ...]:
    if keep_views is None:
        return plan.manifest.views
    wanted = [name for view in keep_views for name in _expanded(view)]
    unknown = [view for view in wanted if view not in plan.manifest.views]
    if unknown or not wanted:
        held = ", ".join(short_names(plan.manifest.views))
        raise InputError(f"--keep-views expects some of {held}, got {', '.join(keep_views)!r}")
    return tuple(view for view in plan.manifest.views if view in wanted)


def _expanded(view: str) -> list[str]:
    """``"jitter=2"`` -> jitter-s0, jitter-s1; a name that is no view stays as it is."""
    try:
        return [each.name for each in parse_views(view)]
    except InputError:
        return [view]


def _view_folders(root: Path, plan: StorePlan) -> set[str]:
    """Folders of the store's views, and of any that left it or never came to be part of it."""
    return {*filter(is_view_name, os.listdir(root)), *plan.manifest.views}


def _find_waste(
    root: Path, plan: StorePlan, kept: tuple[str, ...]
) -> tuple[tuple[Waste, ...], tuple[Path, ...]]:
    """Waste by kind, and what is left where nothing is wanted."""
    committed = [block for block in plan.blocks if (root / commit_key(block)).exists()]
    leftover = {*dead_leftovers(root), *spent_leftovers(root, committed, plan.layout)}
    needed = [block for block in committed if not plan.gone.issuperset(block.rows)]
    wanted = _wanted_files(root, plan, needed)
    folders = sorted({*_view_folders(root, plan), COMMITS})
    links = [root / folder for folder in (*folders, LEASES) if (root / folder).is_symlink()]
    files: set[Path] = set()
    for entry in walk_inside(root, folders):
        if entry.is_file(follow_symlinks=False):
            files.add(Path(entry.path))
        else:
            links.append(Path(entry.path))
    ours = {path for path in files if _is_of_writers(root, path)}
    withdrawn = {path for path in ours if path.name.endswith(WITHDRAWN_SUFFIX)}
    view = {path for path in ours & wanted if _view_of(root, path) not in {*kept, None}}
    image = (ours & _files_of(root, plan, committed)) - wanted
    others = {path for path in files - ours - leftover if Owner.parse(path.name) is None}
    read = {root / view for view in kept}  # what lies there may be anything
    return (
        _waste("leftover", leftover),
        _waste("withdrawn", withdrawn),
        _waste("view", view),
        _waste("image", image),
        _waste("orphan", (ours - wanted - withdrawn - image) | unnamed_tables(root, plan.manifest)),
    ), tuple(sorted(path for path in {*links, *others} if read.isdisjoint((path, *path.parents))))


def _is_of_writers(root: Path, path: Path) -> bool:
    """Whether a writer gives a file this name; temporary files and leases are looked for apart."""
    folder, _, below = path.relative_to(root).as_posix().partition("/")
    return (_RECORD if folder == COMMITS else _IN_VIEW).fullmatch(below) is not None


def _wanted_files(root: Path, plan: StorePlan, committed: Sequence[Block]) -> set[Path]:
    """Metadata, and what is committed or being written by somebody."""
    keys = {COMMIT_LOCK, *metadata_keys(plan.blocks, plan.layout)}
    leased = [b for b in plan.blocks if (root / LEASES / f"{b.name}{LEASE_SUFFIX}").exists()]
    return {root / key for key in keys} | _files_of(root, plan, (*committed, *leased))


def _files_of(root: Path, plan: StorePlan, blocks: Iterable[Block]) -> set[Path]:
    """Records and shards."""
    return {
        root / key
        for block in blocks
        for key in (commit_key(block), *plan.layout.shard_keys(block).values())
    }


def _view_of(root: Path, path: Path) -> str | None:
    """The view a file of the store belongs to: its folder, or the start of its record's name."""
    first, *rest = path.relative_to(root).parts
    if first in (LEASES, METADATA):
        return None
    return rest[0].partition("-b")[0] if first == COMMITS and rest else first


def _drop_views(depot: Depot, plan: StorePlan, kept: tuple[str, ...]) -> None:
    """The smaller manifest before files go: what it no longer plans is an orphan if we die then.

    What zarr lists gets smaller even before.
    """
    smaller = replace(plan.manifest, views=kept)
    blocks = smaller.plan(plan.annotations)
    contents = {key: plan.source.read(key) for key in metadata_keys(blocks, plan.layout)}
    decided = replace(smaller, metadata_digest=metadata_digest(contents))
    depot.put({METADATA: with_listing(contents)})
    depot.put_manifest(encode_manifest(decided))


def _waste(kind: Kind, paths: Iterable[Path]) -> Waste:
    sizes = {}
    for path in sorted(paths):
        with contextlib.suppress(FileNotFoundError):  # its writer removed it while we looked
            sizes[path] = path.lstat().st_size
    return Waste(kind=kind, paths=tuple(sizes), nbytes=sum(sizes.values()))
