"""What changes single keys of a config: `--set key=value`, and the options that are keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cachedet.config.yaml_text import parse_yaml
from cachedet.errors import ConfigError
from cachedet.text import shorten

Overrides = Sequence[str] | Mapping[str, Any]
"""`key.subkey=value`, as `--set` takes them (values are YAML), or values by their dotted keys.

The command line gives the options that are keys as they are typed: `--disk-cache=2TB`.
"""


def apply_overrides(values: dict[str, Any], overrides: Overrides) -> dict[tuple[str, ...], str]:
    """Set keys of nested `values`; returns what set each key, for messages.

    Raises ConfigError where a value stands in a section's place.
    """
    pairs = overrides.items() if isinstance(overrides, Mapping) else map(_parse_override, overrides)
    changed = {}
    for key, value in pairs:
        name = key.strip()
        is_option = name.startswith("--")
        *parents, last = parts = (name[2:].replace("-", "_") if is_option else name).split(".")
        changed[tuple(parts)] = name if is_option else f"--set {name}"
        node = values
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ConfigError(f"--set {key}: {parent!r} is a value, not a section")
        node[last] = value
    return changed


def _parse_override(text: str) -> tuple[str, Any]:
    key, separator, value = text.partition("=")
    if not separator or not all(part.strip() for part in key.split(".")):
        raise ConfigError(f"--set expects key=value, got {text!r}; e.g. schedule.epochs=12")
    return key, parse_yaml(value, where=f"--set {shorten(text, 80)}")
