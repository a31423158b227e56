"""What a store is made of, and how it is held against what is there already."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from cachedet.errors import StoreError, StoreMismatchError
from cachedet.store.additions import grows, split_rows
from cachedet.store.codecs.codec import Codec
from cachedet.store.files.depot import Depot
from cachedet.store.files.names import (
    images_key,
    truth_key,
)
from cachedet.store.format.annotations import (
    describe_changes,
    load_annotations,
    rows_but,
)
from cachedet.store.format.manifest import (
    NO_ROWS,
    Manifest,
    image_arrays,
    load_manifest,
    truth_arrays,
)
from cachedet.store.format.npz import dump_arrays
from cachedet.structures import Annotations

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


def require_same_inputs(depot: Depot, inputs: StoreInputs) -> Manifest:
    """The manifest that was compared. Raises StoreMismatchError."""
    source, manifest = depot.source, inputs.manifest
    stored = load_manifest(source)
    digest = stored.stages_digest and manifest.stages_digest  # one without them gets them
    stored = replace(stored, stages_digest=digest)
    same = replace(manifest, views=stored.views, stages_digest=digest)
    if gains(stored, manifest):  # the file of more images is what people say of all of them
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


def gains(held: Manifest, wanted: Manifest) -> bool:
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
