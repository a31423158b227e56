"""Types of values from JSON against what dataclasses declare."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from cachedet.store.format.manifest import require_types


@dataclass
class Inner:
    number: int
    share: float


@dataclass
class Outer:
    name: str
    inner: tuple[Inner, ...]
    pair: tuple[str, int]
    words: dict[str, str]


def outer(**changes: Any) -> Outer:
    fields = {"name": "a", "inner": (Inner(1, 2),), "pair": ("b", 3), "words": {"c": "d"}}
    return Outer(**(fields | changes))


def test_right_values_pass() -> None:
    require_types(outer(), Outer, name="outer")
    require_types(outer(inner=(), words={}), Outer, name="outer")


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"name": 5}, TypeError, "name must be str, got 5"),
        ({"name": None}, TypeError, "name must be str, got None"),
        ({"inner": [Inner(1, 2)]}, TypeError, r"inner must be tuple.*, got \[Inner"),
        ({"inner": ({"number": 1},)}, TypeError, "inner must be Inner, got {'number': 1}"),
        ({"inner": (Inner(True, 2),)}, TypeError, "number must be int, got True"),
        ({"inner": (Inner(1.0, 2),)}, TypeError, "number must be int, got 1.0"),  # type: ignore[arg-type]
        ({"inner": (Inner(2**63, 2),)}, ValueError, "number must fit into 64 bits, got 92233"),
        ({"inner": (Inner(1, -(10**400)),)}, ValueError, "share must fit into 64 bits"),
        ({"inner": (Inner(1, float("inf")),)}, ValueError, "share must be finite, got inf"),
        ({"inner": (Inner(1, "x"),)}, TypeError, "share must be float, got 'x'"),  # type: ignore[arg-type]
        ({"pair": ("b",)}, TypeError, r"pair must be tuple.*, got \('b',\)"),
        ({"pair": (3, "b")}, TypeError, "pair must be str, got 3"),
        ({"words": [("c", "d")]}, TypeError, "words must be dict"),
        ({"words": {1: "d"}}, TypeError, "a key of words must be str, got 1"),
        ({"words": {"c": 1}}, TypeError, r"words\['c'\] must be str, got 1"),
    ],
)
def test_wrong_values_are_named(changes: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        require_types(outer(**changes), Outer, name="outer")


def test_messages_stay_short() -> None:
    with pytest.raises(TypeError) as caught:
        require_types(outer(name=["x" * 1000] * 1000), Outer, name="outer")
    assert len(str(caught.value)) < 500
