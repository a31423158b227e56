"""Adding views to a store: new folders and a new manifest; nothing that is there is touched.

The zarr.json files of the new views come first and the manifest last, in one step: a reader sees
the store without the views or with them, and what was written before a crash is an orphan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cachedet.store.durable import sync_directory, write_durably, write_files
from cachedet.store.layout import MANIFEST, make_metadata, metadata_digest, metadata_keys
from cachedet.store.manifest import encode_manifest
from cachedet.store.plan import StorePlan
from cachedet.store.source import LocalFiles
from cachedet.store.space import require_space


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
    blocks = [block for block in larger.plan(plan.truth) if block.view in added]
    require_space(
        root, sum(len(b.rows) * plan.layout.least_picture_nbytes(b.bucket) for b in blocks)
    )
    kept = {key: plan.source.read(key) for key in metadata_keys(plan.blocks, plan.layout)}
    made = make_metadata(blocks=blocks, layout=plan.layout, block_size=larger.block_size)
    new = {key: content for key, content in made.items() if key not in kept}
    decided = replace(larger, metadata_digest=metadata_digest({**kept, **new}))
    content = encode_manifest(decided)
    write_files(root, new)
    for folder in sorted({(root / key).parent for key in new}):
        sync_directory(folder)
    write_durably(root / MANIFEST, content)
