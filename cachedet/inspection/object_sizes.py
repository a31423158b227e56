"""How large objects are in the backbone's input, and which image size they want."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cachedet.config.detector import AnchorConfig
from cachedet.data.images import MAX_PIXELS
from cachedet.data.views import LEAST_TILES, MOST_TILES, enlargement
from cachedet.inspection.annotated_set import AnnotatedSet
from cachedet.inspection.finding import Finding, count_words

STRIDE = 8  # pixels of a cell of the finest level that heads take where none are named
_SHARES = (5, 25, 50, 75, 95)
_FEW = 0.05  # of the objects may be small
_MULTIPLE = 32  # of image sizes


@dataclass(frozen=True, kw_only=True)
class ObjectSizes:
    """Sides of objects, as square roots of their areas, at one size of the images."""

    image_size: int
    objects: int
    percentiles: dict[int, float]  # sides in pixels of the input
    small: int  # objects below STRIDE
    small_in_images: int  # objects below it in pixels of their images
    wanted_size: int  # image size at which 95 % of the objects are STRIDE or more
    long_side: int  # of the middle one of the images
    oblong: int  # objects whose shape no anchor has (IoU below that of a match)
    most_oblong: float  # ratio of sides that 1 % of the objects exceed

    def to_json(self) -> dict[str, Any]:
        return {
            **vars(self),
            "percentiles": {str(share): side for share, side in self.percentiles.items()},
            "stride": STRIDE,
        }


def measure_objects(
    annotated: AnnotatedSet, *, image_size: int, without: Iterable[int] = ()
) -> ObjectSizes | None:
    """Of the boxes that teach, as far as they lie in their images; None where there are none.

    Not of the images `without`, whose annotated sizes are known to be wrong, nor of sizes that no
    image can have.
    """
    if annotated.dataset is None:
        return None
    known = annotated.dataset.annotations
    rows = np.repeat(np.arange(len(known)), np.diff(known.offsets))
    limits = known.sizes_hw[rows][:, [1, 0, 1, 0]]
    boxes = known.boxes.clip(0, limits)
    sides = (boxes[:, 2:] - boxes[:, :2])[~known.crowd]
    long_sides = known.sizes_hw.max(axis=1)
    of_box = long_sides[rows][~known.crowd]
    is_good = known.sizes_hw.astype(np.float64).prod(axis=1) <= MAX_PIXELS
    is_good[list(without)] = False
    solid = (sides >= 1).all(axis=1) & is_good[rows][~known.crowd]  # the others are no objects
    sides, of_box = sides[solid], of_box[solid]
    if not len(sides):
        return None
    roots = np.sqrt(sides.prod(axis=1)) / of_box  # in long sides of the image
    at_size = roots * image_size
    needed = STRIDE / float(np.quantile(roots, _FEW))
    ratios = sides[:, 1] / sides[:, 0]
    elongation = np.maximum(ratios, 1 / ratios)
    percentiles = np.percentile(at_size, _SHARES).round(1).tolist()
    return ObjectSizes(
        image_size=image_size,
        objects=len(sides),
        percentiles=dict(zip(_SHARES, percentiles, strict=True)),
        small=int((at_size < STRIDE).sum()),
        small_in_images=int((roots * of_box < STRIDE).sum()),
        wanted_size=int(np.ceil(needed / _MULTIPLE - 1e-9)) * _MULTIPLE,
        long_side=int(np.median(long_sides[is_good])),
        oblong=int((_best_ious(ratios) < AnchorConfig().foreground_iou).sum()),
        most_oblong=round(float(np.quantile(elongation, 0.99)), 1),
    )


def _best_ious(ratios: NDArray[np.float64]) -> NDArray[np.float64]:
    """IoU of each box, height / width, with an anchor of its place and area."""
    anchors = np.array(AnchorConfig().aspect_ratios)
    apart = np.exp(np.abs(np.log(ratios[:, None] / anchors)).min(axis=1))
    ious: NDArray[np.float64] = 1 / (2 * np.sqrt(apart) - 1)
    return ious


def size_findings(name: str, sizes: ObjectSizes) -> Iterator[Finding]:
    """Whether objects are large enough, and of shapes that anchors have."""
    middle, low = sizes.percentiles[50], sizes.percentiles[5]
    at = f"at --image-size {sizes.image_size}"
    if sizes.small > _FEW * sizes.objects:
        words = count_words(sizes.small, sizes.objects, "objects", f"are under {STRIDE} pixels")
        text = f"{name}: {words} {at}, half of all under {middle:.0f}"
        yield Finding(
            rank="look at", kind="small", text=text, advice=_advise(sizes), count=sizes.small
        )
    else:
        text = f"{name}: objects {at}: half over {middle:.0f} pixels, 95 % over {low:.0f}"
        yield Finding(rank="fine", kind="sizes", text=text)
    if sizes.oblong > _FEW * sizes.objects:
        words = count_words(
            sizes.oblong, sizes.objects, "objects", "are longer than any anchor matches"
        )
        ratios = ", ".join(f"{ratio:g}" for ratio in AnchorConfig().aspect_ratios)
        yield Finding(
            rank="look at",
            kind="oblong",
            text=f"{name}: {words} (1 % over {sizes.most_oblong:g} : 1; anchors have {ratios})",
            advice=f"Give anchors such shapes, too: --set detector.anchors.aspect_ratios="
            f"[0.2,{ratios.replace(' ', '')},5] (of R-CNNs detector.rpn.aspect_ratios).",
            count=sizes.oblong,
        )


def _advise(sizes: ObjectSizes) -> str:
    """An object below a cell of the finest level shares its cell with what surrounds it."""
    why = f"Below a cell of the finest level (C3, stride {STRIDE}) little is found."
    if sizes.wanted_size > sizes.long_side:
        share = sizes.small_in_images / sizes.objects
        return (
            f"{why} In the images themselves, of {sizes.long_side} pixels, {share:.0%} are: larger "
            "photographs are needed."
        )
    factor = (sizes.wanted_size / sizes.image_size) ** 2
    return (
        f"{why} --image-size {sizes.wanted_size} brings 95 % above it, at {factor:.1f} times the "
        f"work and disk{_or_tiles(sizes.wanted_size / sizes.image_size)}."
    )


def _or_tiles(wanted: float) -> str:
    """The least grid whose windows enlarge objects so many times."""
    for tiles in range(LEAST_TILES, MOST_TILES + 1):
        if enlargement(tiles) >= wanted:
            return (
                f"; or --views base,tile={tiles} beside the size you have, which enlarges them "
                f"{enlargement(tiles):.1f} times in {tiles * tiles} windows"
            )
    return "; or cut images and boxes into tiles before"
