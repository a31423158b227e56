"""What a store that was begun still needs: damaged files again, and views and images it lacks."""

from __future__ import annotations

import logging
from dataclasses import replace

from cachedet.data.label_changes import compare_labels
from cachedet.errors import StoreError, StoreMismatchError
from cachedet.store.additions import grows
from cachedet.store.codecs.codec import state_digest
from cachedet.store.codecs.registry import make_codec
from cachedet.store.files.depot import Depot
from cachedet.store.files.names import (
    CODEC_STATE,
    METADATA,
    STAGES,
    images_key,
)
from cachedet.store.format.annotations import (
    load_annotations,
    load_images,
    rows_but,
)
from cachedet.store.format.layout import make_metadata, metadata_digest, metadata_keys
from cachedet.store.format.listing import lists_all, with_listing
from cachedet.store.format.manifest import (
    Manifest,
    encode_manifest,
    load_manifest,
    require_sane,
)
from cachedet.store.format.npz import dump_arrays
from cachedet.store.format.plan import StorePlan, load_codec
from cachedet.store.format.stages import load_stages
from cachedet.store.store_inputs import StoreInputs, gains

_log = logging.getLogger(__name__)


def repair_and_extend(depot: Depot, inputs: StoreInputs, compared: Manifest) -> None:
    with depot.changing():
        _repair_metadata(depot, inputs)
        _repair_stages(depot, inputs)
        _extend(depot, inputs, compared)


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
    _repair_listing(depot, plan)


def _repair_listing(depot: Depot, plan: StorePlan) -> None:
    """List all in the root's zarr.json where a writer died before, or an older one did not."""
    keys = metadata_keys(plan.blocks, plan.layout)
    if not lists_all(plan.source.read(METADATA), keys):
        depot.put({METADATA: with_listing({key: plan.source.read(key) for key in keys})})


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
    if gains(held, wanted):
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
    depot.put({METADATA: with_listing({**kept, **new})})  # of what the manifest names by now


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
