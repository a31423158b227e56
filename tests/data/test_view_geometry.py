"""Windows and draws: where the pixels and boxes of each view lie."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cachedet.data.backbone_input import make_input
from cachedet.data.colours import BRIGHTNESS, HUE, SATURATION
from cachedet.data.geometry import Geometry
from cachedet.data.views import View, make_geometry, make_targets, parse_views, view_named
from cachedet.structures import Detections, Preprocessing

RULE = settings(deadline=None, max_examples=100, derandomize=True)
PLAIN = Preprocessing(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), interpolation="bicubic")
NAMES = [
    view.name
    for view in parse_views(
        "base,hflip,scale=0.1,scale=3.7,crop=6,jitter=6,jitter=4:0.5-4,colour=2,colour=2:0.2-2,"
        "tile=2,tile-8-r3c7"
    )
]
SIDES = st.integers(1, 900)
IDS = st.integers(-(2**63), 2**63 - 1)


def geometry_of(name: str, height: int, width: int, **changes: Any) -> Geometry:
    values = {"image_id": 7, "image_size": 256, "pad_multiple": 32} | changes
    return make_geometry(view_named(name), image_hw=(height, width), **values)


def test_geometry_keeps_aspect_and_pads_to_the_multiple() -> None:
    geometry = geometry_of("base", 480, 640, image_size=384)
    assert geometry.valid_hw == (288, 384)
    assert geometry.padded_hw == (288, 384)
    assert geometry_of("base", 333, 500, image_size=384).valid_hw == (256, 384)
    assert geometry_of("base", 1, 5000, image_size=384).valid_hw == (1, 384)


def test_hflip_by_hand() -> None:
    geometry = geometry_of("hflip", 100, 200, image_size=100)
    mapped = geometry.boxes_to_view(np.array([[20.0, 10.0, 60.0, 30.0]]))
    torch.testing.assert_close(mapped, torch.tensor([[70.0, 5.0, 90.0, 15.0]]))


@RULE
@given(name=st.sampled_from(NAMES), height=SIDES, width=SIDES, image_id=IDS)
def test_every_geometry_is_sound(name: str, height: int, width: int, image_id: int) -> None:
    geometry = geometry_of(name, height, width, image_id=image_id)
    assert geometry == geometry_of(name, height, width, image_id=image_id)
    for axis in range(2):
        assert 1 <= geometry.valid_hw[axis] <= geometry.padded_hw[axis]
        assert geometry.padded_hw[axis] >= 32
        assert geometry.padded_hw[axis] % 32 == 0
        room = geometry.scaled_hw[axis] - geometry.valid_hw[axis]
        assert 0 <= geometry.offset_yx[axis] <= room
    if view_named(name).family in ("crop", "jitter", "colour", "tile"):
        assert geometry.padded_hw == geometry_of("base", height, width).padded_hw
    x1, y1, x2, y2 = geometry.window_in_image()
    assert 0 <= x1 < x2 <= width
    assert 0 <= y1 < y2 <= height


def corners_in(window: tuple[float, ...], corners: list[float]) -> np.ndarray:
    """A box inside the window, from four numbers in [0, 1]."""
    (x1, x2), (y1, y2) = sorted(corners[:2]), sorted(corners[2:])
    left, top, right, bottom = window
    x, y = right - left, bottom - top
    return np.array([[left + x1 * x, top + y1 * y, left + x2 * x, top + y2 * y]])


@RULE
@given(
    name=st.sampled_from(NAMES),
    height=st.integers(20, 900),
    width=st.integers(20, 900),
    corners=st.lists(st.floats(0, 1), min_size=4, max_size=4),
)
def test_boxes_of_the_window_return_and_others_are_clipped(
    name: str, height: int, width: int, corners: list[float]
) -> None:
    geometry = geometry_of(name, height, width)
    window = geometry.window_in_image()
    inside = corners_in(window, corners)
    back = geometry.boxes_to_image(geometry.boxes_to_view(inside))
    torch.testing.assert_close(back, torch.from_numpy(inside).float(), rtol=1e-4, atol=2e-3)
    anywhere = corners_in((0, 0, width, height), corners)
    clipped = anywhere.clip([*window[:2]] * 2, [*window[2:]] * 2)
    back = geometry.boxes_to_image(geometry.boxes_to_view(anywhere))
    torch.testing.assert_close(back, torch.from_numpy(clipped).float(), rtol=1e-4, atol=2e-3)


@RULE
@given(name=st.sampled_from(NAMES), corners=st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_the_affine_map_is_the_way_back(name: str, corners: list[float]) -> None:
    geometry = geometry_of(name, 333, 500)
    box = geometry.boxes_to_view(corners_in(geometry.window_in_image(), corners)).double()
    (scale_x, scale_y), (origin_x, origin_y) = geometry.affine_to_image()
    xs, ys = box[0, [0, 2]] * scale_x + origin_x, box[0, [1, 3]] * scale_y + origin_y
    expected = geometry.boxes_to_image(box).double()[0]
    torch.testing.assert_close(xs.sort().values, expected[[0, 2]], rtol=1e-6, atol=1e-4)
    torch.testing.assert_close(ys, expected[[1, 3]], rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("name", ["crop-k0", "crop-k1", "jitter-0.5-4-s1", "jitter-2-4-s0"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "lanczos", "nearest"])
@pytest.mark.parametrize("image_hw", [(333, 500), (60, 41), (1, 1)])
def test_pixels_of_a_window_are_those_of_resizing_and_cutting(
    name: str, interpolation: str, image_hw: tuple[int, int]
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*image_hw, 3), dtype=np.uint8)
    geometry = geometry_of(name, *image_hw)
    assert geometry.is_window
    preprocessing = Preprocessing(mean=(0,) * 3, std=(1,) * 3, interpolation=interpolation)
    pixels = make_input(noise, geometry, preprocessing)
    assert torch.equal(pixels, make_input(noise, geometry, preprocessing))
    (tall, wide), (top, left), (height, width) = (
        geometry.scaled_hw,
        geometry.offset_yx,
        geometry.valid_hw,
    )
    whole = Image.fromarray(noise).resize((wide, tall), Image.Resampling[interpolation.upper()])
    cut = np.asarray(whole)[top : top + height, left : left + width]
    cut = cut[:, ::-1] if geometry.flip else cut
    levels = (pixels[:, :height, :width] * 255).round().permute(1, 2, 0).numpy()
    difference = np.abs(levels - cut.astype(np.float64))
    if interpolation == "nearest":  # where a centre lies on an edge, it may go either way
        assert (difference > 0).mean() < 0.02
    else:
        assert difference.max() <= 2  # each of the two passes rounds
        assert (difference > 0).mean() < 0.01
    assert not pixels[:, height:].any()
    assert not pixels[:, :, width:].any()


def test_boxes_lie_on_their_pixels_in_every_view() -> None:
    """A bright square is where its box says, to two pixels of the view."""
    image = np.zeros((300, 400, 3), dtype=np.uint8)
    image[130:170, 180:240] = 255
    box = np.array([[180.0, 130, 240, 170]])
    seen = 0
    for name in NAMES:
        geometry = geometry_of(name, 300, 400)
        bright = make_input(image, geometry, PLAIN)[0] > 0.5
        x1, y1, x2, y2 = geometry.boxes_to_view(box)[0].tolist()
        if x2 - x1 < 4 or y2 - y1 < 4:
            continue
        rows, columns = bright.any(1).nonzero()[:, 0], bright.any(0).nonzero()[:, 0]
        edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert np.abs(np.array([x1, y1, x2, y2]) - [float(edge) for edge in edges]).max() < 2, name
        seen += 1
    assert seen >= 12


def test_what_is_drawn_depends_on_view_and_image_alone() -> None:
    views = parse_views("crop=8,jitter=8,jitter=8:0.5-1.5,colour=8")
    drawn = {(view.name, n): geometry_of(view.name, 480, 640, image_id=n) for view in views
             for n in (0, 1, -1, 2**32, 2**40 + 1)}  # fmt: skip
    assert len(set(drawn.values())) > 0.95 * len(drawn)
    for (name, image_id), geometry in reversed(drawn.items()):  # any order, any process
        assert geometry_of(name, 480, 640, image_id=image_id) == geometry
    assert parse_views("jitter=9")[:8] == parse_views("jitter=8")


def test_draws_are_the_same_for_ever() -> None:
    """Geometries are not in the store: another numpy must draw what this one drew."""
    drawn = {
        (name, image_id): geometry_of(name, 480, 640, image_id=image_id)
        for name, image_id in (("crop-k0", 7), ("jitter-s0", 7), ("jitter-s5", 2**40 + 3))
    }
    assert {key: (g.scaled_hw, g.offset_yx, g.flip) for key, g in drawn.items()} == {
        ("crop-k0", 7): ((377, 502), (167, 98), False),
        ("jitter-s0", 7): ((335, 447), (58, 154), False),
        ("jitter-s5", 2**40 + 3): ((380, 506), (42, 133), True),
    }


def by_the_page(
    name: str, image_hw: tuple[int, int], image_id: int
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], bool]:
    """Section 3 of docs/disk-format.md, from its text alone: scaled size, place, window, mirror."""
    family, *numbers, (_, *digits) = name.split("-")
    draw = int("".join(digits))
    low, high = map(float, numbers or (("0.1", "2") if family == "jitter" else ("1", "1")))
    words = [image_id % 2**32, image_id // 2**32 % 2**32]
    first = {"crop": [1, *words, draw], "jitter": [3, *words], "colour": [4, *words]}[family]
    entropy = [*first, round(10_000 * low), round(10_000 * high)]
    raw = [int(n) for n in np.random.PCG64(np.random.SeedSequence(entropy)).random_raw(4)]
    if family != "crop":
        steps = (0x9E3779B97F4A7C15, 2**63, 0xC13FA9A902A6328F, 0x91E10DA5C79E7B1C)
        raw = [(n + draw * step) % 2**64 for n, step in zip(raw, steps, strict=True)]
    u1, u2, u3, u4 = (number // 2**11 / 2**53 for number in raw)

    def scaled_by(factor: float) -> tuple[int, ...]:
        factor = 256 * factor / max(image_hw)
        return tuple(max(1, round(side * factor)) for side in image_hw)

    room = scaled_by(1)
    if family == "crop":
        scaled = scaled_by(1 / (0.5 + 0.4 * u1))
    else:
        scaled = scaled_by(low + (high - low) * u1)
        room = tuple(-(-side // 32) * 32 for side in room)
    window = tuple(min(pair) for pair in zip(scaled, room, strict=True))
    places = zip((u3, u4), scaled, window, strict=True)
    offset = tuple(int(u * (whole - part + 1)) for u, whole, part in places)
    return scaled, offset, window, family != "crop" and u2 < 0.5


@RULE
@given(
    name=st.sampled_from([name for name in NAMES if "-k" in name or "-s" in name]),
    height=SIDES,
    width=SIDES,
    image_id=IDS,
)
def test_the_page_of_the_disk_format_says_what_is_drawn(
    name: str, height: int, width: int, image_id: int
) -> None:
    geometry = geometry_of(name, height, width, image_id=image_id)
    numbers = geometry.scaled_hw, geometry.offset_yx, geometry.valid_hw, geometry.flip
    assert numbers == by_the_page(name, (height, width), image_id)


@pytest.mark.parametrize("name", ["jitter-s0", "jitter-s3"])
def test_factors_flips_and_places_are_uniform(name: str) -> None:
    jitter = [geometry_of(name, 480, 640, image_id=n) for n in range(2000)]
    factors = np.array([g.scaled_hw[1] / 256 for g in jitter])
    assert 0.1 <= factors.min() < 0.12
    assert 1.98 < factors.max() <= 2.0
    assert np.histogram(factors, 10, (0.1, 2.0))[0].min() > 150
    assert 0.45 < np.mean([g.flip for g in jitter]) < 0.55
    crops = [geometry_of("crop-k0", 480, 640, image_id=n) for n in range(2000)]
    assert all(g.valid_hw == (192, 256) and not g.flip for g in crops)
    sides = np.array([256 / g.scaled_hw[1] for g in crops])
    assert 0.5 <= sides.min() < 0.51
    assert 0.89 < sides.max() < 0.901
    for axis in range(2):
        places = [g.offset_yx[axis] / (g.scaled_hw[axis] - g.valid_hw[axis]) for g in crops]
        assert np.histogram(places, 5, (0, 1))[0].min() > 300


@RULE
@given(height=SIDES, width=SIDES, tiles=st.integers(2, 8))
def test_tiles_cover_the_image_and_overlap(height: int, width: int, tiles: int) -> None:
    grid = {
        view.row_column: geometry_of(view.name, height, width)
        for view in parse_views(f"tile={tiles}")
    }
    for axis in range(2):
        line = [grid[(n, 0) if axis == 0 else (0, n)] for n in range(tiles)]
        ends = [g.offset_yx[axis] + g.valid_hw[axis] for g in line]
        starts = [g.offset_yx[axis] for g in line]
        assert starts[0] == 0
        assert ends[-1] == line[-1].scaled_hw[axis]
        overlaps = [end - start for end, start in zip(ends, starts[1:], strict=False)]
        side = line[0].valid_hw[axis]
        assert min(overlaps) >= 0.2 * side - 2  # pixels are whole
        assert max(overlaps) <= 0.2 * side + 2 or side < 20


def test_tiles_by_hand() -> None:
    """Of 2 x 2 each has 1 / 1.8 of the sides."""
    geometry = geometry_of("tile-2-r1c0", 480, 640, image_size=360)
    assert geometry.scaled_hw == (486, 648)
    assert geometry.valid_hw == (270, 360)
    assert geometry.offset_yx == (216, 0)
    assert not geometry.flip
    middle = geometry_of("tile-3-r1c1", 300, 300, image_size=100)
    assert middle.scaled_hw == (260, 260)
    assert middle.offset_yx == (80, 80)


def test_colours_are_drawn_and_nothing_else_is_coloured() -> None:
    """Uniform in their ranges; two draws of one image keep apart."""
    drawn = [geometry_of("colour-s3", 480, 640, image_id=n).colour for n in range(2000)]
    colours = [colour for colour in drawn if colour is not None]
    assert len(colours) == 2000
    for limits, values in {
        BRIGHTNESS: [c.brightness for c in colours],
        HUE: [c.hue for c in colours],
        SATURATION: [c.saturation for c in colours if c.saturation > 0],
    }.items():
        found = np.histogram(values, 10, limits)[0]
        assert found.sum() == len(values)
        assert found.min() > 140
    assert 0.08 < np.mean([c.saturation == 0 for c in colours]) < 0.12
    assert 0.46 < np.mean([c.blur == 0 for c in colours]) < 0.54
    assert all(geometry_of(name, 480, 640).colour is None for name in NAMES if "colour" not in name)
    first, second = (geometry_of(f"colour-s{k}", 480, 640).colour for k in (0, 1))
    assert first is not None
    assert second is not None
    assert abs(first.hue - second.hue) > 0.2 * (HUE[1] - HUE[0])
    assert geometry_of("colour-s0", 480, 640).valid_hw == geometry_of("base", 480, 640).valid_hw


@pytest.mark.parametrize(("draws", "apart"), [(2, 0.38), (3, 0.23), (4, 0.14), (8, 0.09)])
def test_spread_draws_of_a_image_keep_apart(draws: int, apart: float) -> None:
    """The least difference of their factors, of the range and round it; and both mirrorings."""
    views = parse_views(f"jitter={draws}:0.5-1.5")
    for image_id in range(50):
        drawn = [geometry_of(view.name, 7500, 10_000, image_id=image_id) for view in views]
        factors = sorted(g.scaled_hw[1] / 256 - 0.5 for g in drawn)
        ahead = [*factors[1:], factors[0] + 1]
        assert min(b - a for a, b in zip(factors, ahead, strict=True)) > apart - 0.01
        assert {g.flip for g in drawn} == {True, False}


def test_draws_beyond_those_a_store_holds() -> None:
    """A live reference draws afresh in every step."""
    views = [View(family="jitter", scales=(0.1, 2.0), draw=10**6 + n) for n in range(3)]
    drawn = {
        make_geometry(v, image_hw=(480, 640), image_id=7, image_size=256, pad_multiple=32)
        for v in views
    }
    assert len(drawn) == 3


def window(**changes: Any) -> Geometry:
    """Of an image of 100 x 100, x 20 to 70 and y 0 to 50 at twice the size."""
    values: dict[str, Any] = {
        "image_hw": (100, 100), "scaled_hw": (200, 200), "offset_yx": (0, 40),
        "valid_hw": (100, 100), "padded_hw": (128, 128), "flip": False,
    }  # fmt: skip
    return Geometry(**values | changes)


def test_windows_by_hand() -> None:
    assert window().window_in_image() == (20, 0, 70, 50)
    boxes = np.array([[30.0, 10, 60, 40]])
    assert window().boxes_to_view(boxes).tolist() == [[20, 20, 80, 80]]
    assert window(flip=True).boxes_to_view(boxes + np.array([5, 0, 5, 0])).tolist() == [
        [10, 20, 70, 80]
    ]
    assert window().affine_to_image() == ((0.5, 0.5), (20, 0))
    assert window(flip=True).affine_to_image() == ((-0.5, 0.5), (70, 0))


def test_targets_are_clipped_and_empty_ones_left_out(annotations_of: Any) -> None:
    annotations = annotations_of(
        [(100, 100)], [[[-20, 10, 30, 40, 1, 0], [99.99, 0, 180, 50, 0, 0], [0, 0, 5, 5, 2, 1]]]
    )
    geometry = geometry_of("base", 100, 100, image_size=100)
    targets = make_targets(annotations, 0, geometry)
    torch.testing.assert_close(targets.boxes[0], torch.tensor([0.0, 10.0, 30.0, 40.0]))
    assert targets.labels.tolist() == [1, 0, 2]
    assert targets.crowd.tolist() == [False, False, True]
    beyond = annotations_of([(100, 100)], [[[100.0, 0, 180, 50, 0, 0]]])
    assert len(make_targets(beyond, 0, geometry).boxes) == 0


def test_a_box_mostly_hidden_is_a_crowd_region(annotations_of: Any) -> None:
    boxes = [
        [30, 10, 60, 40, 0, 0],  # all in view
        [60, 10, 100, 40, 1, 0],  # a quarter: 10 of 40
        [60, 10, 100.5, 40, 1, 0],  # beyond the image nothing counts: still a quarter
        [61, 10, 100, 40, 2, 0],  # less
        [80, 10, 90, 40, 2, 0],  # nothing
        [70, 10, 90, 40, 2, 0],  # touches only
        [60, 10, 80, 40, 0, 1],  # a crowd before
        [30, 10, 30, 40, 0, 0],  # without area
    ]
    annotations = annotations_of([(100, 100)], [boxes])
    targets = make_targets(annotations, 0, window())
    assert targets.boxes[:, [0, 2]].tolist() == [
        [20, 80],
        [80, 100],
        [80, 100],
        [82, 100],
        [80, 100],
    ]
    assert targets.labels.tolist() == [0, 1, 1, 2, 0]
    assert targets.crowd.tolist() == [False, False, False, True, True]
    mirrored = make_targets(annotations, 0, window(flip=True))
    assert torch.equal(mirrored.crowd, targets.crowd)
    assert mirrored.size_hw == (100, 100)


@pytest.mark.parametrize("name", ["base", "hflip", "scale-0.5"])
def test_whole_images_have_no_hidden_boxes(annotations_of: Any, name: str) -> None:
    """Also where the annotation lies mostly outside of the image."""
    annotations = annotations_of([(100, 100)], [[[90, 0, 400, 50, 0, 0]]])
    targets = make_targets(annotations, 0, geometry_of(name, 100, 100))
    assert targets.crowd.tolist() == [False]


def test_what_a_window_cuts() -> None:
    boxes = torch.tensor([[1.0, 40, 50, 60], [30, 1, 50, 60], [30, 40, 99, 60], [30, 40, 50, 99]])
    corner, middle = window(offset_yx=(0, 0)), window()
    assert corner.cut_by_window(boxes, margin=2).tolist() == [False, False, True, True]
    assert middle.cut_by_window(boxes, margin=2).tolist() == [True, False, True, True]
    mirrored = window(offset_yx=(0, 0), flip=True)
    assert mirrored.cut_by_window(boxes, margin=2).tolist() == [True, False, False, True]
    assert not middle.cut_by_window(boxes, margin=0.5).any()


def test_masks_of_a_mirrored_view_are_mirrored_back() -> None:
    masks = torch.rand(2, 4, 4)
    detections = Detections(
        image_id=1, boxes=torch.tensor([[10.0, 0, 30, 20], [0, 0, 5, 5]]),
        scores=torch.ones(2), labels=torch.zeros(2, dtype=torch.int64), masks=masks,
    )  # fmt: skip
    plain = window().detections_to_image(detections)
    assert plain.boxes.tolist() == [[25, 0, 35, 10], [20, 0, 22.5, 2.5]]
    assert torch.equal(plain.masks, masks)
    mirrored = window(flip=True).detections_to_image(detections)
    assert mirrored.boxes.tolist() == [[55, 0, 65, 10], [67.5, 0, 70, 2.5]]
    assert torch.equal(mirrored.masks, masks.flip(2))
