"""Views: named, deterministic geometries of an image, and the buckets their sizes fall into.

    base                 long side = image_size
    hflip                its mirror image
    scale-0.5            long side = 0.5 image_size
    crop-k0              window 0: aspect kept, side 0.5 to 0.9 of the image, placed at random,
                         enlarged to the size of the base view
    jitter-s3            draw 3 of PAPER 2.2's scale jitter: a factor in [0.1, 2.0], flipped or not,
                         a random window where it is larger than the base view's bucket
    jitter-0.5-1.5-s3    the same with another range of factors
    colour-s3            draw 3 of other colours (see `colours`): the base view, mirrored or not
    colour-0.5-1.5-s3    other colours of such a jitter
    tile-2-r0c1          row 0, column 1 of 2 x 2 windows that overlap by a fifth of their side,
                         enlarged to the size of the base view

What is drawn depends on the view and the image id alone: never on other images, on what else is
drawn, the batch or the process. All but `scale` views share the bucket of the base view.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import torch

from cachedet.data.colours import Colour
from cachedet.data.geometry import Geometry
from cachedet.errors import InputError, nearest_names
from cachedet.structures import Annotations, SizeHW, TargetMasks, Targets

Family = Literal["base", "hflip", "scale", "crop", "jitter", "colour", "tile"]

TRAINING_VIEWS = "base,hflip,jitter=2:0.5-1.5"  # of a new store; docs/benchmarks/ablation_*.md
DRAWN_AFRESH: tuple[Family, ...] = ("jitter", "colour")  # by training without a cache
DEFAULT_SCALES = {"jitter": (0.1, 2.0), "colour": (1.0, 1.0)}  # PAPER 2.2, and the base view's
CROP_SIDES = (0.5, 0.9)  # of a window over those of the image
TILE_OVERLAP = 0.2  # of neighbours, over their side
LEAST_TILES, MOST_TILES = 2, 8  # in a row and in a column
LEAST_SCALE, MOST_SCALE = 0.1, 4.0
MOST_DRAWS = 64  # of one family and range
MOST_VIEWS = 256  # of a store
LEAST_VISIBLE = 0.25  # share of a box; with less in sight it is neither object nor background
_NUMBER = r"([0-9]{1,2}(?:\.[0-9]{1,4})?)"
_NAME = re.compile(
    rf"(base|hflip)|scale-{_NUMBER}|crop-k([0-9]{{1,4}})"
    rf"|(jitter|colour)-(?:{_NUMBER}-{_NUMBER}-)?s([0-9]{{1,4}})"
    r"|tile-([2-8])-r([0-7])c([0-7])"
)
_KNOWN = (
    "base", "hflip", "scale=<f>", "crop=<K>", "jitter=<K>[:<low>-<high>]",
    "colour=<K>[:<low>-<high>]", "tile=<n>",
)  # fmt: skip
_STREAMS = {"crop": 1, "jitter": 3, "colour": 4}  # each family has random numbers of its own
# From one draw to the next, of 2^64: the golden ratio's fraction for the factor, a half for the
# mirror, those of the plastic number for the window, and for the six numbers of a colour those of
# the square roots of 31, 2, 7, 19, 11 and 13. Any few draws in a row are far apart.
_STEPS = (0x9E3779B97F4A7C15, 1 << 63, 0xC13FA9A902A6328F, 0x91E10DA5C79E7B1C)
_COLOUR_STEPS = (
    0x9159015A3070DD17, 0x6A09E667F3BCC908, 0xA54FF53A5F1D36F1, 0x5BE0CD19137E2179,
    0x510E527FADE682D1, 0x9B05688C2B3E6C1F,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class View:
    """A deterministic variant of an image; its features are cached under `name`."""

    family: Family
    scales: tuple[float, float] = (1.0, 1.0)  # a range; of `scale` twice its factor
    draw: int = 0  # number of the draw, of `crop`, `jitter` and `colour`
    tiles: int = 1  # in a row and in a column
    row_column: tuple[int, int] = (0, 0)  # of a tile

    @property
    def name(self) -> str:
        """Safe as the name of a folder; `view_named` gives the view back."""
        if self.family == "scale":
            return f"scale-{_text(self.scales[0])}"
        if self.family == "crop":
            return f"crop-k{self.draw}"
        if self.family in DEFAULT_SCALES:
            low, high = map(_text, self.scales)
            own_range = "" if self.scales == DEFAULT_SCALES[self.family] else f"{low}-{high}-"
            return f"{self.family}-{own_range}s{self.draw}"
        if self.family == "tile":
            row, column = self.row_column
            return f"tile-{self.tiles}-r{row}c{column}"
        return self.family


def parse_views(text: str) -> tuple[View, ...]:
    """``"base,scale=0.5,jitter=2:0.5-1.5"`` -> base, scale-0.5, jitter-0.5-1.5-s0 and -s1.

    Single names such as ``jitter-s3`` may stand there too. Raises InputError on an unknown,
    repeated or missing name, and a number out of range.
    """
    items = [item.strip() for item in text.split(",") if item.strip()]
    views = [view for item in items for view in _expand(item)]
    names = [view.name for view in views]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if not views or repeated:
        got = f"{', '.join(repeated)} more than once in {text!r}" if repeated else repr(text)
        raise InputError(f"views must name each view once, got {got}; known: {', '.join(_KNOWN)}")
    if len(views) > MOST_VIEWS:
        raise InputError(f"a store holds at most {MOST_VIEWS} views, {text!r} names {len(views)}")
    return tuple(views)


def view_named(name: str) -> View:
    """The view whose `name` this is. Raises InputError."""
    match = _NAME.fullmatch(name)
    view = _view_of(match) if match else None
    if view is None or view.name != name:
        raise _unknown(name)
    if view.draw >= MOST_DRAWS:
        raise InputError(f"view {name}: draws are numbered 0 to {MOST_DRAWS - 1}, got {view.draw}")
    _require_scales(view.scales, where=f"view {name}")
    return view


def is_view_name(name: str) -> bool:
    """Whether a folder of this name can be that of a view."""
    try:
        view_named(name)
    except InputError:
        return False
    return True


def short_names(names: Sequence[str]) -> list[str]:
    """Views as `--views` takes them: draws in a row as ``jitter=4``, a whole grid as ``tile=2``."""
    left, result = list(names), []
    while left:
        item, members = _widest_item(left[0], {*left})
        result.append(item)
        left = [name for name in left if name not in members]
    return result


def view_family(name: str) -> Family:
    """``"jitter-0.5-1.5-s3"`` -> ``"jitter"``. Raises InputError."""
    return view_named(name).family


def make_geometry(
    view: View, *, image_hw: SizeHW, image_id: int, image_size: int, pad_multiple: int
) -> Geometry:
    """The geometry of `view` for one upright image, whose aspect is kept.

    `image_size` is the long side of the base view in pixels; `image_id` seeds what is drawn.
    """
    padded_hw = padded_size(
        view, image_hw=image_hw, image_size=image_size, pad_multiple=pad_multiple
    )
    at, mirror, at_y, at_x, *others = _numbers(view, image_id)
    low, high = _range_of(view)
    factor = low + (high - low) * at
    if view.family in ("crop", "tile"):  # the factor is the share that fills the base view
        scale, room_hw = 1 / factor, _scaled(image_hw, image_size)
    else:
        scale, room_hw = factor, padded_hw
    scaled_hw = _scaled(image_hw, image_size * scale)
    valid_hw = min(scaled_hw[0], room_hw[0]), min(scaled_hw[1], room_hw[1])
    rest_y, rest_x = scaled_hw[0] - valid_hw[0], scaled_hw[1] - valid_hw[1]
    return Geometry(
        image_hw=image_hw,
        scaled_hw=scaled_hw,
        offset_yx=(min(int(at_y * (rest_y + 1)), rest_y), min(int(at_x * (rest_x + 1)), rest_x)),
        valid_hw=valid_hw,
        padded_hw=padded_hw,
        flip=view.family == "hflip" or (view.family in DRAWN_AFRESH and mirror < 0.5),
        colour=Colour.drawn(others) if others else None,
    )


def padded_size(view: View, *, image_hw: SizeHW, image_size: int, pad_multiple: int) -> SizeHW:
    """The bucket of `view`: the same for all images of one size, whatever is drawn for them."""
    scale = view.scales[0] if view.family == "scale" else 1.0
    height, width = _scaled(image_hw, image_size * scale)
    return round_up(height, pad_multiple), round_up(width, pad_multiple)


def make_targets(annotations: Annotations, row: int, geometry: Geometry) -> Targets:
    """The boxes of one image in pixels of its view.

    Boxes clipped to nothing are left out. A box of which a window shows less than a quarter becomes
    a crowd region, which losses ignore.
    """
    where = annotations.boxes_of(row)
    boxes = geometry.boxes_to_view(annotations.boxes[where])
    hidden = geometry.visible_fraction(annotations.boxes[where]) < LEAST_VISIBLE
    kept = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    masks = None
    if annotations.masks is not None:
        rows = where.start + kept.nonzero()[:, 0]
        scale_xy, origin_xy = geometry.affine_to_image()
        masks = TargetMasks(
            codes=tuple(annotations.masks[int(box_row)] for box_row in rows),
            image_hw=geometry.image_hw,
            scale_xy=scale_xy,
            origin_xy=origin_xy,
        )
    return Targets(
        image_id=int(annotations.image_ids[row]),
        size_hw=geometry.valid_hw,
        boxes=boxes[kept],
        labels=torch.from_numpy(annotations.labels[where])[kept],
        crowd=torch.from_numpy(annotations.crowd[where] | hidden)[kept],
        masks=masks,
    )


def round_up(value: int, multiple: int) -> int:
    """The least multiple that is not smaller."""
    return -(-value // multiple) * multiple


def enlargement(tiles: int) -> float:
    """How many times as large as in the base view an object is in one of tiles x tiles windows."""
    return tiles - TILE_OVERLAP * (tiles - 1)


def _range_of(view: View) -> tuple[float, float]:
    """Of the factor."""
    if view.family == "crop":
        return CROP_SIDES
    if view.family == "tile":
        share = 1 / enlargement(view.tiles)
        return share, share
    return view.scales


def _numbers(view: View, image_id: int) -> tuple[float, ...]:
    """Where in its range the factor is, a flip, the window's place; six more of a colour."""
    if view.family in _STREAMS:
        return tuple(_uniform(view, image_id))
    if view.family == "tile":
        last, (row, column) = view.tiles - 1, view.row_column
        return 0.0, 1.0, row / last, column / last
    return 0.0, 1.0, 0.0, 0.0


def _uniform(view: View, image_id: int) -> list[float]:
    """Numbers in [0, 1), drawn by view and image alone.

    Geometries are not stored, so this must be the same for ever: numpy keeps SeedSequence and the
    raw output of PCG64, but not what its Generator makes of it (NEP 19).
    """
    words = image_id & 0xFFFFFFFF, (image_id >> 32) & 0xFFFFFFFF
    scales = (round(scale * 10_000) for scale in view.scales)
    draw = (view.draw,) if view.family == "crop" else ()
    seed = np.random.SeedSequence([_STREAMS[view.family], *words, *draw, *scales])
    steps = (*_STEPS, *_COLOUR_STEPS) if view.family == "colour" else _STEPS
    raw = [int(number) for number in np.random.PCG64(seed).random_raw(len(steps))]
    if view.family in DRAWN_AFRESH:  # the draws of an image keep apart from each other
        raw = [(at + view.draw * by) % 2**64 for at, by in zip(raw, steps, strict=True)]
    return [(number >> 11) / 2**53 for number in raw]


def _scaled(image_hw: SizeHW, long_side: float) -> SizeHW:
    """Each side in proportion, at least one pixel."""
    factor = long_side / max(image_hw)
    return max(1, round(image_hw[0] * factor)), max(1, round(image_hw[1] * factor))


def _expand(item: str) -> tuple[View, ...]:
    """One item of ``--views``. Raises InputError."""
    kind, equals, value = item.partition("=")
    if not equals:
        return (view_named(item),)
    if kind == "scale":
        scale = _parse_number(value, where=item)
        _require_scales((scale, scale), where=item)
        if scale == 1:
            raise InputError(f"{item} is the view base; name that")
        return (View(family="scale", scales=(scale, scale)),)
    if kind == "crop":
        return tuple(View(family="crop", draw=k) for k in _parse_draws(value, where=item))
    if kind == "tile":
        if re.fullmatch(r"[0-9]{1,9}px", value):
            raise InputError(
                f"{item}: only predict cuts windows of a size in pixels, whose number depends on "
                "the image; the views of a store are the same for every image: name tile=<n>, as "
                "tile=2 for 2 x 2 of each image"
            )
        tiles = int(value) if re.fullmatch(r"[0-9]{1,9}", value) else 0
        if not LEAST_TILES <= tiles <= MOST_TILES:
            raise InputError(
                f"{item}: expected {LEAST_TILES} to {MOST_TILES} tiles in a row, as tile=2 for 2 x "
                "2 of each image; in predict, tile=640px for windows of 640 pixels"
            )
        places = itertools.product(range(tiles), range(tiles))
        return tuple(View(family="tile", tiles=tiles, row_column=place) for place in places)
    for family in DRAWN_AFRESH:
        if kind == family:
            count, colon, span = value.partition(":")
            scales = _parse_range(span, where=item) if colon else DEFAULT_SCALES[family]
            draws = _parse_draws(count, where=item)
            return tuple(View(family=family, scales=scales, draw=k) for k in draws)
    raise _unknown(item)


def _widest_item(name: str, held: set[str]) -> tuple[str, set[str]]:
    """The item of ``--views`` that asks for this view and as many others of those held."""
    if not is_view_name(name):
        return name, {name}
    view, item = view_named(name), name
    if view.family == "tile":
        item = f"tile={view.tiles}"
    elif view.family in _STREAMS:
        count = next(k for k in range(MOST_DRAWS + 1) if replace(view, draw=k).name not in held)
        low, high = map(_text, view.scales)
        is_default = view.scales == DEFAULT_SCALES.get(view.family, (1.0, 1.0))
        if count > 1:
            item = f"{view.family}={count}" + ("" if is_default else f":{low}-{high}")
    members = {each.name for each in _expand(item)}
    return (item, members) if name in members and members <= held else (name, {name})


def _view_of(match: re.Match[str]) -> View | None:
    plain, scale, window, drawn, low, high, draw, *grid = match.groups()
    if plain:
        return View(family="hflip" if plain == "hflip" else "base")
    if scale:
        return View(family="scale", scales=(float(scale), float(scale))) if scale != "1" else None
    if window:
        return View(family="crop", draw=int(window))
    if grid[0]:
        tiles, *place = map(int, grid)
        row_column = (place[0], place[1])
        return (
            View(family="tile", tiles=tiles, row_column=row_column) if max(place) < tiles else None
        )
    (family,) = (family for family in DRAWN_AFRESH if family == drawn)
    scales = (float(low), float(high)) if low else DEFAULT_SCALES[family]
    return View(family=family, scales=scales, draw=int(draw))


def _unknown(text: str) -> InputError:
    nearest = nearest_names(re.split("[-=]", text)[0], get_args(Family))
    if full := [known for known in _KNOWN if known.startswith(f"{text}=")]:
        nearest = f"; write {full[0]}"
    return InputError(f"unknown view {text!r}{nearest}; known: {', '.join(_KNOWN)}")


def _parse_draws(text: str, *, where: str) -> range:
    count = int(text) if re.fullmatch(r"[0-9]{1,9}", text) else 0
    if not 1 <= count <= MOST_DRAWS:
        raise InputError(f"{where}: expected a number of draws from 1 to {MOST_DRAWS}")
    return range(count)


def _parse_range(text: str, *, where: str) -> tuple[float, float]:
    low, dash, high = text.partition("-")
    if not dash:
        raise InputError(f"{where}: expected a range of scales such as 0.5-1.5, got {text!r}")
    scales = _parse_number(low, where=where), _parse_number(high, where=where)
    _require_scales(scales, where=where)
    return scales


def _parse_number(text: str, *, where: str) -> float:
    if not re.fullmatch(_NUMBER, text):
        raise InputError(
            f"{where}: expected a scale such as 0.5, with at most 4 decimals, got {text!r}"
        )
    return float(text)


def _require_scales(scales: tuple[float, float], *, where: str) -> None:
    low, high = scales
    if not (LEAST_SCALE <= low <= MOST_SCALE and LEAST_SCALE <= high <= MOST_SCALE):
        raise InputError(
            f"{where}: expected scales from {LEAST_SCALE:g} to {MOST_SCALE:g}, got "
            + (f"{low:g}" if low == high else f"{low:g} to {high:g}")
        )
    if low > high:
        raise InputError(
            f"{where}: expected the smaller scale first, got {low:g} to {high:g}; "
            f"write {_text(high)}-{_text(low)}"
        )


def _text(scale: float) -> str:
    """The shortest text of a number of at most 4 decimals."""
    return f"{scale:.4f}".rstrip("0").rstrip(".")
