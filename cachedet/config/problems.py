"""A config from its values, or what is wrong with them, in words that do not need pydantic."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from cachedet.config.detector import Config
from cachedet.errors import ConfigError, nearest_names
from cachedet.text import shorten

C = TypeVar("C", bound=Config)

_MOST_PROBLEMS = 8  # in one message
_KNOWN = "; known: "
_OPTIONS: Mapping[tuple[str, ...], str] = {  # of the command line, whose keys lie deeper
    ("engine", "workers"): "ray-workers",
    ("engine", "address"): "ray-address",
    ("engine", "cpus_per_worker"): "cpus-per-worker",
    ("engine", "gpus_per_worker"): "gpus-per-worker",
}
_EXPECTED = {
    "greater_than_equal": "at least {ge}",
    "greater_than": "more than {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "less than {lt}",
    "literal_error": "{expected}",
    "finite_number": "a finite number",
    "too_short": "at least {min_length} of them",
    "too_long": "at most {max_length} of them",
    "int_parsing_size": "a smaller number",
}
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "a text",
    "tuple": "a list",
    "model": "a section",
    "dict": "a section",
}


def validated(
    kind: type[C],
    values: dict[str, Any],
    *,
    where: str,
    changed: Mapping[tuple[str, ...], str] = MappingProxyType({}),
    is_typed: bool = False,
) -> C:
    """`values` as a config of this kind.

    Args:
        where: the source of the values, for messages.
        changed: what set a key, by its parts; messages name that instead.
        is_typed: on the command line, whose options messages name.

    Raises ConfigError with what is wrong with each key, the first eight of them.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        problems = [_describe(kind, problem) for problem in error.errors()]
    by_source: dict[str, list[str]] = {}
    told: set[str] = set()
    for location, key, words in problems[:_MOST_PROBLEMS]:
        words, _, known = words.partition(_KNOWN)
        words += f"{_KNOWN}{known}" if known and known not in told else ""
        told.add(known)
        is_option = is_typed and location
        source = _option_of(location) if is_option else _source_of(location, where, changed)
        says_key = is_option or not key or source == changed.get(location)
        by_source.setdefault(source, []).append(words if says_key else f"{key}: {words}")
    if len(problems) > _MOST_PROBLEMS:
        by_source.setdefault(where, []).append(f"{len(problems) - _MOST_PROBLEMS} more")
    raise ConfigError("; ".join(f"{name}: {'; '.join(each)}" for name, each in by_source.items()))


def _source_of(
    location: tuple[str, ...], where: str, changed: Mapping[tuple[str, ...], str]
) -> str:
    """The overrides that set what is wrong, its section or a part of it, else `where`."""
    sources = [
        text for key, text in changed.items() if key[: len(location)] == location[: len(key)]
    ]
    if sources and not location:  # of what does not fit together
        return f"{where} with {', '.join(sources)}"
    return ", ".join(sources) or where


def _option_of(location: tuple[str, ...]) -> str:
    """The option of the command line that sets a key."""
    name = _OPTIONS.get(location[:2], location[0])
    return f"--{name.replace('_', '-')}"


def _describe(kind: type[BaseModel], problem: Any) -> tuple[tuple[str, ...], str, str]:
    """Where a problem is, its key ("" where the words name it), and what it is."""
    location, section = _locate(kind, [str(part) for part in problem["loc"]])
    return tuple(location), *_describe_at(kind, location, section, problem)


def _describe_at(
    kind: type[BaseModel], location: list[str], section: type[BaseModel] | None, problem: Any
) -> tuple[str, str]:
    key = shorten(".".join(location), 100) or "config"
    got = shorten(repr(problem["input"]), 200)
    if problem["type"] == "extra_forbidden":
        known = list(section.model_fields) if section else []
        deeper = keys_named(location[-1], kind)[:3]
        if deeper and key not in deeper:  # there it is of another `kind:`
            return "", f"unknown key {key!r}; it is {' or '.join(deeper)}"
        near = nearest_names(location[-1], known)
        name, colon, value = location[-1].partition(":")
        if colon and name in known:  # YAML takes {seed:1} for one long name
            near = f"; a space after the colon is missing: {name}: {value}"
        return "", f"unknown key {key!r}{near}{_KNOWN}{', '.join(known)}"
    if problem["type"] == "union_tag_invalid":
        known = re.findall(r"'([^']+)'", problem["ctx"]["expected_tags"])
        tag = problem["ctx"]["tag"]
        near = nearest_names(tag, known)
        return f"{key}.kind", f"expected {', '.join(known)}, got {tag!r}{near}"
    if problem["type"] == "union_tag_not_found":
        return key, f"expected a section with `kind:`, got {got}"
    if problem["type"] == "missing":
        return key, "is missing"
    message = _describe_value(problem)
    return key, f"{message}, got {got}" if location else message


def _locate(
    kind: type[BaseModel], parts: Sequence[str]
) -> tuple[list[str], type[BaseModel] | None]:
    """The key as a user writes it, without pydantic's tags, and the section it stands in."""
    key: list[str] = []
    section: type[BaseModel] | None = kind
    choices: dict[str, type[BaseModel]] = {}
    for part in parts:
        if choices:  # pydantic names the chosen kind between a section and its keys
            section, choices = choices[part], {}
            continue
        key.append(part)
        field = section.model_fields.get(part) if section else None
        if field is None:
            continue
        kinds = _sections_in(field.annotation)
        section = kinds[0] if len(kinds) == 1 else section
        choices = {_tag_of(one): one for one in kinds} if len(kinds) > 1 else {}
    return key, section


def keys_named(name: str, kind: type[BaseModel]) -> list[str]:
    """The dotted keys of a config that end in `name`, those of few parts first."""
    found = [name] if name in kind.model_fields else []
    for key, field in kind.model_fields.items():
        sections = (each for each in _sections_in(field.annotation) if _can_be_set(each))
        inner = (keys_named(name, section) for section in sections)
        found += [f"{key}.{each}" for keys in inner for each in keys]
    return sorted(dict.fromkeys(found), key=lambda each: each.count("."))


def _can_be_set(section: type[BaseModel]) -> bool:
    """Not so the notes on a detector that was given as an object."""
    return "kind" not in section.model_fields or _tag_of(section) != "custom"


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for part in get_args(annotation) for section in _sections_in(part)]


def _tag_of(section: type[BaseModel]) -> str:
    tag: str = get_args(section.model_fields["kind"].annotation)[0]
    return tag


def _describe_value(problem: Any) -> str:
    """``expected at least 1``; of our own checks, what they say."""
    kind = str(problem["type"])
    if kind in _EXPECTED:
        bounds = problem.get("ctx", {}).items()
        plain = {key: f"{at:g}" if isinstance(at, float) else at for key, at in bounds}
        words = _EXPECTED[kind].format(**plain)
        return f"expected {words.replace(chr(39), '')}"
    first, _, rest = kind.partition("_")
    if first in _KINDS and (
        rest in ("type", "attributes_type") or rest.startswith(("pars", "from"))
    ):
        return f"expected {_KINDS[first]}"
    return str(problem["msg"]).removeprefix("Value error, ")
