"""Numbers with units as people write them: 500MB/s, 60T, 1.5 GB/s."""

from __future__ import annotations

import math
import re

from cachedet.errors import InputError

_NUMBER = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:e([+-]?[0-9]+))?\s*(.*?)\s*")
_PREFIXES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "p": 1e15}


def parse_rate(text: str, *, where: str) -> float:
    """``500MB/s`` -> 5e8 bytes per second; the unit must be there, the ``/s`` need not.

    Raises InputError; `where` names the option.
    """
    value, unit = _split(text, where=where, example="500MB/s")
    prefix = unit.removesuffix("/s").strip()
    if prefix[-1:].lower() != "b" or prefix[:-1].lower() not in _PREFIXES:
        raise InputError(
            f"{where}: expected bytes per second such as 500MB/s, got {text!r}; units: B/s, kB/s, "
            "MB/s, GB/s"
        )
    return _positive(value * _PREFIXES[prefix[:-1].lower()], text, where=where)


def parse_flops(text: str, *, where: str) -> float:
    """``60T`` or ``60TFLOPS`` -> 6e13 floating-point operations per second. Raises InputError."""
    value, unit = _split(text, where=where, example="60T")
    prefix = re.sub(r"(flops?)?(/s)?$", "", unit.lower())
    if prefix not in _PREFIXES:
        raise InputError(
            f"{where}: expected operations per second such as 60T, got {text!r}; units: G, T, P"
        )
    return _positive(value * _PREFIXES[prefix], text, where=where)


def parse_count(text: str, *, where: str) -> int:
    """``118000`` or ``118k`` -> a whole number from 1 on. Raises InputError."""
    value, unit = _split(text, where=where, example="118000")
    number = value * _PREFIXES.get(unit.lower(), math.nan)
    if not (number >= 1 and number == int(number)):
        raise InputError(f"{where}: expected a whole number such as 118000, got {text!r}")
    return int(number)


def _split(text: str, *, where: str, example: str) -> tuple[float, str]:
    found = _NUMBER.fullmatch(text)
    if found is None:
        raise InputError(f"{where}: expected a number such as {example}, got {text!r}")
    return float(f"{found[1]}e{found[2] or 0}"), found[3]


def _positive(value: float, text: str, *, where: str) -> float:
    if not 0 < value < math.inf:
        raise InputError(f"{where}: expected a number above 0, got {text!r}")
    return value
