"""Whether values that came from JSON are of the types their dataclass declares."""

from __future__ import annotations

import math
import reprlib
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

_BEYOND_INT64 = 2**63  # whole numbers go into arrays and tensors


def require_types(value: Any, declared: Any, *, name: str) -> None:
    """Compare `value`, and everything inside it, with a type hint.

    Args:
        value: read from JSON; lists already as tuples, objects already as dataclasses.
        declared: a hint made of str, int, float, tuple, dict and dataclasses.
        name: of the value, for people.

    Raises:
        TypeError: a value of another type; names it.
        ValueError: a number that is not finite, or beyond int64.
    """
    origin, inner = get_origin(declared), get_args(declared)
    if is_dataclass(declared):
        _require(type(value) is declared, value, declared, name)
        hints = get_type_hints(declared)
        for field in fields(declared):
            require_types(getattr(value, field.name), hints[field.name], name=field.name)
    elif origin is dict:
        _require(isinstance(value, dict), value, declared, name)
        for key, item in value.items():
            require_types(key, inner[0], name=f"a key of {name}")
            require_types(item, inner[1], name=f"{name}[{reprlib.repr(key)}]")
    elif origin is tuple:
        _require(isinstance(value, tuple), value, declared, name)
        each = (inner[0],) * len(value) if inner[-1] is Ellipsis else inner
        _require(len(value) == len(each), value, declared, name)
        for item, hint in zip(value, each, strict=True):
            if not (hint is str and type(item) is str):  # most are: millions need no call each
                require_types(item, hint, name=name)
    else:
        _require(
            type(value) is declared or (declared is float and type(value) is int),
            value,
            declared,
            name,
        )
        _require_sane_number(value, name)


def _require(fits: bool, value: Any, declared: Any, name: str) -> None:
    if not fits:
        expected = getattr(declared, "__name__", declared)
        raise TypeError(f"{name} must be {expected}, got {reprlib.repr(value)}")


def _require_sane_number(value: Any, name: str) -> None:
    if isinstance(value, int) and not -_BEYOND_INT64 <= value < _BEYOND_INT64:
        raise ValueError(f"{name} must fit into 64 bits, got {reprlib.repr(value)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")
