"""From image files to backbone input, and from there to features."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cachedet.backbone.frozen import FrozenBackbone
from cachedet.config.run import ExtractConfig
from cachedet.data.backbone_input import make_input
from cachedet.data.geometry import Geometry
from cachedet.data.image_files import ImageFiles, as_files
from cachedet.data.images import DecodedImage, decoded
from cachedet.data.survey import content_hash_of
from cachedet.data.views import View, make_geometry, view_named
from cachedet.errors import BadImageError
from cachedet.store.additions import digest_generations
from cachedet.store.format.manifest import (
    NO_ROWS,
    Manifest,
    library_versions,
    truth_digest,
    withdrawn_digest,
)
from cachedet.structures import Annotations, FeatureSpec, Preprocessing
from cachedet.text import printable

_CHANGED = (
    "its bytes are not those that were checked: the file was changed since. Leave the images alone "
    "while they are read, then give the same command again"
)


@dataclass(frozen=True, kw_only=True, eq=False)
class InputLoader:
    """Loads rows of one data set as backbone input: of the very bytes that were checked."""

    files: ImageFiles
    names: Sequence[str]  # by row
    image_ids: Sequence[int]  # by row
    image_size: int  # long side of the base view in pixels
    pad_multiple: int
    preprocessing: Preprocessing
    contents: NDArray[np.uint64] | None = None  # (N,) digests the files must have; None: any
    kept: Mapping[int, DecodedImage] = field(default_factory=dict)  # decoded already, by row

    def expect(self, rows: Iterable[int]) -> None:
        """Say which rows will be loaded next."""
        self.files.expect(self.names[row] for row in rows if row not in self.kept)

    def load(self, row: int, view: str) -> Tensor:
        """One image in one view: (3, H, W), normalised and padded.

        Raises BadImageError, also where the file is no longer the one that was checked.
        """
        kept = self.kept.get(row)
        if kept is not None and kept.suffices(geometry := self._geometry(kept, row, view)):
            return make_input(kept.pixels, geometry, self.preprocessing)
        name = self.names[row]
        try:
            with self.files.opened(name) as content:
                if self.contents is not None and content_hash_of(content) != self.contents[row]:
                    raise BadImageError(_CHANGED)
                with decoded(content, image_size=self.image_size) as image:
                    geometry = self._geometry(image, row, view)
                    if image.suffices(geometry):
                        return make_input(image.pixels, geometry, self.preprocessing)
                with decoded(content) as image:
                    return make_input(image.pixels, geometry, self.preprocessing)
        except BadImageError as error:
            raise BadImageError(f"{printable(self.files.where(name))}: {error}") from error

    def _geometry(self, image: DecodedImage, row: int, view: str) -> Geometry:
        return make_geometry(
            view_named(view),
            image_hw=image.image_hw,
            image_id=self.image_ids[row],
            image_size=self.image_size,
            pad_multiple=self.pad_multiple,
        )


def make_inputs(
    annotations: Annotations,
    *,
    images: Path | ImageFiles,
    image_size: int,
    pad_multiple: int,
    preprocessing: Preprocessing,
    contents: NDArray[np.uint64],
    kept: Mapping[int, DecodedImage] | None = None,
) -> InputLoader:
    """A loader of the images that `annotations` describe, in `images`.

    `contents` (N,) are digests of the image files, `kept` what some of them hold, by row.
    """
    return InputLoader(
        files=as_files(images),
        names=annotations.file_names,
        image_ids=annotations.image_ids.tolist(),
        image_size=image_size,
        pad_multiple=pad_multiple,
        preprocessing=preprocessing,
        contents=contents,
        kept=kept or {},
    )


def make_manifest(
    config: ExtractConfig,
    backbone: FrozenBackbone,
    *,
    network: FeatureSpec,
    stages_digest: str,
    views: Sequence[View],
    annotations: Annotations,
    contents: NDArray[np.uint64],
    skipped: tuple[tuple[str, str], ...],
    starts: Sequence[int] = (0,),
    withdrawn: NDArray[np.int64] = NO_ROWS,
) -> Manifest:
    """What a store of these features says of itself.

    `network` are all levels of the backbone, `stages_digest` is that of the file of its weights
    behind the first ("": it cannot be cut); `contents` (N,) are digests of the image files;
    `skipped` are the file names and reasons of images that were left out; `starts` the first rows
    of images that came to the store later, `withdrawn` the rows of those that were taken out.
    """
    images_digest, added = digest_generations(annotations, contents, starts)
    return Manifest(
        spec=backbone.spec,
        preprocessing=backbone.preprocessing,
        backbone=backbone.name,
        weights=backbone.weights,
        weights_digest=backbone.digest,
        image_size=config.image_size,
        views=tuple(view.name for view in views),
        codec=config.codec,
        block_size=config.block_size,
        batch_size=config.batch_size,
        images_digest=images_digest,
        added=added,
        truth_digest=truth_digest(annotations, withdrawn),
        withdrawn_digest=withdrawn_digest(withdrawn),
        categories=annotations.categories,
        skipped=skipped,
        versions=library_versions(),
        network=network,
        stages_digest=stages_digest,
    )
