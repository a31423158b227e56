"""Which images of a data set go into a store, in which order, and what their codec learns from."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from cachedet.backbone.frozen import FrozenBackbone
from cachedet.config.run import ExtractConfig
from cachedet.data.coco import CocoDataset
from cachedet.data.colours import is_grey
from cachedet.data.images import DecodedImage
from cachedet.data.sections import listed
from cachedet.data.survey import Scan, require_good
from cachedet.data.views import View
from cachedet.errors import StoreError, StoreMismatchError
from cachedet.extraction.codec_sample import fit_codec, fitted_rows
from cachedet.extraction.inputs import InputLoader
from cachedet.store.additions import StoredOrder, order_as_stored
from cachedet.store.codecs.codec import Codec
from cachedet.store.files.depot import Depot
from cachedet.store.format.manifest import Manifest
from cachedet.structures import Annotations

_LOOKED_AT = 64  # images, for colours


def order_rows(
    dataset: CocoDataset,
    scan: Scan,
    config: ExtractConfig,
    depot: Depot,
    *,
    add_images: bool,
) -> tuple[StoredOrder, tuple[tuple[str, str], ...]]:
    """The images to extract as the store keeps them, and the skipped (file name, reason) pairs."""
    kept, skipped = _split_bad(dataset, scan, on_bad_image=config.on_bad_image)
    data = dataset.annotations, scan.contents, kept
    order = order_as_stored(depot, *data)
    if order.returned and not add_images:
        raise StoreMismatchError(
            f"{config.store} lacks images of {config.annotations} that `cachedet relabel "
            f"--withdraw` took out of it: {order.returned}. `cachedet extract` brings them back; "
            "else give annotations without them"
        )
    if order.added and not add_images:  # opening the store will refuse them by name
        order = StoredOrder.as_given(*data)
    return order, skipped


def kept_images(scan: Scan, order: StoredOrder) -> dict[int, DecodedImage]:
    """What was decoded when images were checked, by rows of the store."""
    given = ((row, known) for row, known in enumerate(order.rows) if known is not None)
    return {row: scan.images[known] for row, known in given if known in scan.images}


def fit_to_first(
    codec: Codec,
    loader: InputLoader,
    backbone: FrozenBackbone,
    order: StoredOrder,
    manifest: Manifest,
    *,
    store: str,
) -> Codec:
    """Show the codec the first images of a store: when it was made there were no others."""
    first = manifest.added[0][0] if manifest.added else len(order.annotations)
    _require_sample(store, order, first)
    return fit_codec(codec, loader, backbone, view=manifest.views[0], images=first)


def _require_sample(store: str, order: StoredOrder, images: int) -> None:
    """Raises StoreError where images that the codec learns from were taken out."""
    lost = [row for row in fitted_rows(images).tolist() if order.rows[row] is None]
    if lost:
        names = listed([order.annotations.file_names[row] for row in lost])
        raise StoreError(
            f"{store}: what its codec learnt (codec.npz) is lost, and of the images that it learnt "
            f"from {len(lost)} were taken out of the store ({names}). Give annotations that have "
            "them again, copy codec.npz from a backup, or extract into a new --store"
        )


def _split_bad(
    dataset: CocoDataset, scan: Scan, *, on_bad_image: str
) -> tuple[list[int], tuple[tuple[str, str], ...]]:
    """Rows to extract, and the skipped (file name, reason) pairs."""
    bad_rows = {row for row, _ in scan.bad}
    kept = [row for row in range(len(dataset.annotations)) if row not in bad_rows]
    if on_bad_image == "fail" or not kept:
        require_good(dataset, scan)
    return kept, named_files(dataset.annotations, scan.bad)


def named_files(
    annotations: Annotations, findings: Sequence[tuple[int, str]]
) -> tuple[tuple[str, str], ...]:
    """What was found of rows, by the names of their files."""
    return tuple((annotations.file_names[row], reason) for row, reason in findings)


def note_greys(views: Sequence[View], scan: Scan) -> list[str]:
    """Say that colours have little to change, where the first images have none."""
    if not any(view.family == "colour" for view in views):
        return []
    first = list(itertools.islice(scan.images.values(), _LOOKED_AT))
    if not first or not all(is_grey(image.pixels) for image in first):
        return []
    seen = "the first image is" if len(first) == 1 else f"the first {len(first)} images are"
    return [
        f"{seen} grey: of a colour view's changes saturation, hue and grey do nothing to them; "
        "jitter may be the better use of the bytes"
    ]
