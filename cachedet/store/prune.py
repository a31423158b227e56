"""What in a store nobody needs: leftovers, orphans, withdrawn records, views no longer wanted."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from cachedet.errors import InputError
from cachedet.store.creation import dead_leftovers
from cachedet.store.durable import TEMPORARY_SUFFIX, encode_json, write_durably
from cachedet.store.layout import (
    COMMITS,
    LEASES,
    MANIFEST,
    WITHDRAWN_SUFFIX,
    commit_key,
    metadata_digest,
    metadata_keys,
    shard_key,
)
from cachedet.store.leases import commit_lock
from cachedet.store.plan import StorePlan
from cachedet.store.source import LocalFiles

Kind = Literal["leftover", "withdrawn", "orphan", "view"]


@dataclass(frozen=True, kw_only=True)
class Waste:
    """Files of one kind."""

    kind: Kind
    paths: tuple[Path, ...]
    nbytes: int


@dataclass(frozen=True, kw_only=True)
class PruneReport:
    """What `prune` found, and whether it was removed."""

    waste: tuple[Waste, ...]
    removed: bool

    def to_json(self) -> dict[str, Any]:
        return {
            "removed": self.removed,
            "waste": [
                {"kind": w.kind, "files": len(w.paths), "bytes": w.nbytes} for w in self.waste
            ],
        }


def prune_store(
    root: Path, *, dry_run: bool, keep_views: Sequence[str] | None = None
) -> PruneReport:
    """Find what nobody needs and, without `dry_run`, remove it.

    - leftover: temporary files and leases of dead writers of this machine;
    - withdrawn: commit records that `verify` put aside;
    - orphan: shards without a commit record, and files in the folders of views, commits and leases
      that belong to no planned block (other files beside them are nobody's business);
    - view: everything of the views not in `keep_views` (they leave the store for good).

    Files of writers that are alive, or ran on another machine, are never touched.
    Raises StoreError where the store cannot be opened, InputError on an unknown view.
    """
    plan = StorePlan.load(LocalFiles(root))
    plan.require_metadata()
    kept = _kept_views(plan, keep_views)
    dropped = [view for view in plan.manifest.views if view not in kept]
    found: dict[Kind, list[Path]] = {"leftover": dead_leftovers(root)}
    found["withdrawn"] = sorted((root / COMMITS).glob(f"*{WITHDRAWN_SUFFIX}"))
    wanted = _wanted_files(root, plan)
    of_views = {path for path in wanted if _view_of(root, path) in dropped}
    found["view"] = sorted(path for path in of_views if path.exists())
    known = wanted | set(found["leftover"]) | set(found["withdrawn"])
    files = _files(root, (*plan.manifest.views, COMMITS, LEASES))
    found["orphan"] = [path for path in files if path not in known and not _in_use(path)]
    waste = tuple(_waste(kind, paths) for kind, paths in found.items())
    if not dry_run:
        with commit_lock(root):
            if dropped:
                _drop_views(root, plan, kept)
            for path in (path for some in waste for path in some.paths):
                path.unlink(missing_ok=True)
        for view in dropped:
            shutil.rmtree(root / view, ignore_errors=True)
    return PruneReport(waste=waste, removed=not dry_run)


def _kept_views(plan: StorePlan, keep_views: Sequence[str] | None) -> tuple[str, ...]:
    if keep_views is None:
        return plan.manifest.views
    unknown = [view for view in keep_views if view not in plan.manifest.views]
    if unknown or not keep_views:
        held = ", ".join(plan.manifest.views)
        raise InputError(f"--keep-views expects some of {held}, got {', '.join(keep_views)!r}")
    return tuple(view for view in plan.manifest.views if view in keep_views)


def _wanted_files(root: Path, plan: StorePlan) -> set[Path]:
    """Metadata, and what is committed or being written by somebody."""
    keys = {f"{LEASES}/commit.lock", *metadata_keys(plan.blocks, plan.layout)}
    for block in plan.blocks:
        key = commit_key(block)
        if (root / key).exists() or (root / LEASES / f"{block.name}.lease").exists():
            keys.add(key)
            keys.update(shard_key(block, a, p) for a, p in plan.layout.parts(block.bucket).items())
    return {root / key for key in keys}


def _view_of(root: Path, path: Path) -> str:
    """The view a file of the store belongs to: its folder, or the start of its record's name."""
    first, *rest = path.relative_to(root).parts
    return rest[0].partition("-b")[0] if first == COMMITS else first


def _drop_views(root: Path, plan: StorePlan, kept: tuple[str, ...]) -> None:
    """The smaller manifest first: what it no longer plans is an orphan if we die after it."""
    smaller = replace(plan.manifest, views=kept)
    blocks = smaller.plan(plan.truth)
    contents = {key: (root / key).read_bytes() for key in metadata_keys(blocks, plan.layout)}
    decided = replace(smaller, metadata_digest=metadata_digest(contents))
    write_durably(root / MANIFEST, encode_json(decided.to_json()))


def _files(root: Path, folders: Iterable[str]) -> list[Path]:
    paths = (path for folder in folders for path in (root / folder).rglob("*"))
    return sorted(path for path in paths if path.is_symlink() or not path.is_dir())


def _in_use(path: Path) -> bool:
    """Of a writer that lives, or whose life cannot be known from here."""
    return path.name.endswith((TEMPORARY_SUFFIX, ".lease"))


def _waste(kind: Kind, paths: Sequence[Path]) -> Waste:
    nbytes = sum(path.lstat().st_size for path in paths)
    return Waste(kind=kind, paths=tuple(paths), nbytes=nbytes)
