"""Files that writers left behind: of dead ones, and of any whose work somebody else has done."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from cachedet.store.files.durable import TEMPORARY_SUFFIX
from cachedet.store.files.inside import remove_inside, walk_inside
from cachedet.store.files.names import COMMITS, LEASES
from cachedet.store.files.owner import Life, Owner, life_of
from cachedet.store.files.source import LocalFiles
from cachedet.store.format.layout import Block, Layout

LEASE_SUFFIX = ".lease"


def remove_leftovers(root: Path) -> None:
    """Remove what dead writers of this machine left behind."""
    for path in dead_leftovers(root):
        remove_inside(root, path)


def dead_leftovers(root: Path) -> list[Path]:
    """Temporary files and leases whose owner ran on this machine and is dead."""
    return [path for path in _of_writers(root) if _life_of(path) is Life.DEAD]


def spent_leftovers(root: Path, committed: Iterable[Block], layout: Layout) -> list[Path]:
    """What writers of other machines and containers left of blocks that are committed.

    Only under the commit lock: a writer that lives drops its work when it finds the block there,
    and a commit record that has its temporary name now belongs to nobody.
    """
    names: set[str] = set()
    folders = {root / COMMITS}
    for block in committed:
        names.add(block.name)
        folders.update((root / key).parent for key in layout.shard_keys(block).values())
    return [
        path
        for path in _of_writers(root)
        if (path.parent in folders or path.name.removesuffix(LEASE_SUFFIX) in names)
        and _life_of(path) is Life.UNKNOWN
    ]


def is_dead(text: str) -> bool:
    """Whether the writer named in `text` ran on this machine and is dead."""
    return life_of(text) is Life.DEAD


def _of_writers(root: Path) -> list[Path]:
    """Temporary files with the name of their owner, and leases; sorted, none behind a link."""
    with os.scandir(root) as entries:
        top = list(entries)
    folders = [entry.name for entry in top if entry.is_dir(follow_symlinks=False)]
    leases = root / LEASES
    return sorted(
        path
        for entry in (*top, *walk_inside(root, folders))
        if entry.is_file(follow_symlinks=False)
        and (
            ((path := Path(entry.path)).name.endswith(TEMPORARY_SUFFIX) and Owner.parse(path.name))
            or (path.parent == leases and path.name.endswith(LEASE_SUFFIX))
        )
    )


def _life_of(path: Path) -> Life:
    """Life of the owner named in a file's name or, for a lease, in its content."""
    text = path.name
    if path.name.endswith(LEASE_SUFFIX):
        try:
            text = LocalFiles(path.parent).read(path.name).decode(errors="replace")
        except OSError:
            text = ""
    return life_of(text)
