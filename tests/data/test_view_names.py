from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachedet.data.views import (
    DRAWN_AFRESH,
    LEAST_TILES,
    MOST_DRAWS,
    MOST_TILES,
    View,
    is_view_name,
    parse_views,
    short_names,
    view_family,
    view_named,
)
from cachedet.errors import InputError

RULE = settings(deadline=None, max_examples=200, derandomize=True)
SCALES = st.integers(1_000, 40_000).map(lambda tenthousandths: tenthousandths / 10_000)
DRAWS = st.integers(0, MOST_DRAWS - 1)
VIEWS = st.one_of(
    st.sampled_from([View(family="base"), View(family="hflip")]),
    SCALES.filter(lambda s: s != 1).map(lambda s: View(family="scale", scales=(s, s))),
    DRAWS.map(lambda k: View(family="crop", draw=k)),
    st.builds(
        lambda family, a, b, k: View(family=family, scales=(min(a, b), max(a, b)), draw=k),
        st.sampled_from(DRAWN_AFRESH),
        SCALES,
        SCALES,
        DRAWS,
    ),
    st.builds(
        lambda n, at: View(family="tile", tiles=n, row_column=(at // 8 % n, at % n)),
        st.integers(LEAST_TILES, MOST_TILES),
        st.integers(0, 63),
    ),
)


def names(text: str) -> list[str]:
    return [view.name for view in parse_views(text)]


def test_families_expand_to_single_views() -> None:
    assert names("base,hflip,scale=0.5,crop=2,jitter=3") == [
        "base", "hflip", "scale-0.5", "crop-k0", "crop-k1", "jitter-s0", "jitter-s1", "jitter-s2",
    ]  # fmt: skip
    assert names(" jitter=2:0.5-1.5 , base,") == [
        "jitter-0.5-1.5-s0", "jitter-0.5-1.5-s1", "base",
    ]  # fmt: skip
    assert names("tile=2,tile-8-r7c0") == [
        "tile-2-r0c0", "tile-2-r0c1", "tile-2-r1c0", "tile-2-r1c1", "tile-8-r7c0",
    ]  # fmt: skip
    assert names("colour=2,colour=1:0.5-1.5") == ["colour-s0", "colour-s1", "colour-0.5-1.5-s0"]
    assert names("scale=0.50,scale=2.0,scale=4,scale=0.1234") == [
        "scale-0.5", "scale-2", "scale-4", "scale-0.1234",
    ]  # fmt: skip


def test_single_names_may_be_asked_for() -> None:
    assert names("jitter-s3,scale-1.5,crop-k0") == ["jitter-s3", "scale-1.5", "crop-k0"]


def test_the_papers_range_has_one_name_only() -> None:
    assert names("jitter=1:0.1-2.0") == ["jitter-s0"]
    with pytest.raises(InputError, match="unknown view 'jitter-0.1-2-s0'"):
        view_named("jitter-0.1-2-s0")
    assert names("colour=1:1-1.0") == ["colour-s0"]
    with pytest.raises(InputError, match="unknown view 'colour-1-1-s0'"):
        view_named("colour-1-1-s0")


def test_short_names_ask_for_the_same_views() -> None:
    text = "base,tile=8,colour=4,colour=3:0.1-4,jitter=2:0.5-1.5,crop=3,scale-1.5"
    assert ",".join(short_names(names(text))) == text
    some = ["jitter-s1", "tile-2-r0c0", "base", "crop-k0", "no view"]  # nothing whole
    assert short_names(some) == some


@given(st.lists(VIEWS, unique=True))
@RULE
def test_short_names_lose_no_view(views: list[View]) -> None:
    held = [view.name for view in views]
    assert sorted(names(",".join(short_names(held)))) == sorted(held) if held else True


def test_families() -> None:
    found = [view_family(name) for name in names("base,hflip,scale=2,crop=1,jitter=1:0.5-1.5")]
    assert found == ["base", "hflip", "scale", "crop", "jitter"]
    assert view_family("jitter-0.5-1.5-s3") == view_family("jitter-s3") == "jitter"
    with pytest.raises(InputError, match="unknown view 'jitter'"):
        view_family("jitter")


@RULE
@given(view=VIEWS)
def test_a_name_alone_gives_the_view_back(view: View) -> None:
    assert view_named(view.name) == view
    assert parse_views(view.name) == (view,)
    assert re.fullmatch(r"[a-z0-9.-]{1,40}", view.name)  # also where capitals do not count
    assert "-b" not in view.name  # where a block's name goes on
    assert not view.name.startswith(".")


@RULE
@given(text=st.text(alphabet="bascropjitterhflipou-2r1k0123456789.=٣", max_size=24))
def test_other_names_are_no_views(text: str) -> None:
    """Two names never stand for one view: folders would hold the same twice."""
    if is_view_name(text):
        assert view_named(text).name == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scale", "unknown view 'scale'; write scale=<f>; known: base, hflip, scale=<f>"),
        ("tile", "unknown view 'tile'; write tile=<n>; known: "),
        ("base,hflp", "unknown view 'hflp'; nearest: 'hflip'; known: base, hflip"),
        ("base,base", "each view once"),
        ("", "each view once"),
        ("jiter=4", "unknown view 'jiter=4'; nearest: 'jitter', 'tile'; known: "),
        ("base=1", "unknown view 'base=1'"),
        ("../x", "unknown view '../x'"),
        ("crop=2,crop=1", "each view once, got crop-k0 more than once in 'crop=2,crop=1'"),
        ("jitter=1:0.1-2,jitter-s0", "got jitter-s0 more than once"),
        ("crop=0", "crop=0: expected a number of draws from 1 to 64"),
        ("crop=1000", "crop=1000: expected a number of draws from 1 to 64"),
        ("jitter=", "jitter=: expected a number of draws from 1 to 64"),
        ("jitter=-1", "jitter=-1: expected a number of draws"),
        ("jitter=2.5", "jitter=2.5: expected a number of draws"),
        ("jitter-s64", "view jitter-s64: draws are numbered 0 to 63, got 64"),
        ("jitter-k0", "unknown view 'jitter-k0'"),
        ("crop-s0", "unknown view 'crop-s0'"),
        ("crop-k9999", "view crop-k9999: draws are numbered 0 to 63, got 9999"),
        ("tile=1", "tile=1: expected 2 to 8 tiles in a row, as tile=2 for 2 x 2 of each image"),
        ("tile=640", "tile=640: expected 2 to 8 tiles in a row"),
        ("tile=640px", "the views of a store are the same for every image: name tile=<n>, as"),
        ("tile=", "tile=: expected 2 to 8 tiles in a row"),
        ("tile-2-r2c0", "unknown view 'tile-2-r2c0'"),
        ("tile-9-r0c0", "unknown view 'tile-9-r0c0'; nearest: 'tile'"),
        ("tile=2,tile-2-r0c1", "got tile-2-r0c1 more than once"),
        ("scale=0.09", "scale=0.09: expected scales from 0.1 to 4, got 0.09"),
        ("scale=4.1", "scale=4.1: expected scales from 0.1 to 4, got 4.1"),
        ("scale=0", "scale=0: expected scales from 0.1 to 4, got 0"),
        ("scale-9", "view scale-9: expected scales from 0.1 to 4, got 9"),
        ("scale=1", "scale=1 is the view base; name that"),
        ("scale-1", "unknown view 'scale-1'"),
        (
            "scale=nan",
            "scale=nan: expected a scale such as 0.5, with at most 4 decimals, got 'nan'",
        ),
        ("scale=1e0", "at most 4 decimals, got '1e0'"),
        ("scale=0.12345", "at most 4 decimals, got '0.12345'"),
        ("jitter=4:1.5-0.5", "expected the smaller scale first, got 1.5 to 0.5; write 0.5-1.5"),
        ("jitter-1.5-0.5-s0", "view jitter-1.5-0.5-s0: expected the smaller scale first"),
        ("jitter=4:0.05-2", "jitter=4:0.05-2: expected scales from 0.1 to 4, got 0.05 to 2"),
        ("jitter=4:0.5", "expected a range of scales such as 0.5-1.5, got '0.5'"),
        ("jitter=4:", "expected a range of scales such as 0.5-1.5, got ''"),
        ("jitter=4:a-b", "expected a scale such as 0.5, with at most 4 decimals, got 'a'"),
        (
            ",".join(f"jitter=64:0.{n}-2" for n in range(2, 7)),
            "a store holds at most 256 views, .* names 320",
        ),
    ],
)
def test_wrong_views(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_views(text)
