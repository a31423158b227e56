"""YAML as people write it, read within bounds: no file or `--set` value takes long or much memory.

Of YAML 1.1 those readings are left out that nobody means in a config: 12:30 as 750, 010 as 8, 1e-3
as words, 2024-01-01 as a date, no and on as false and true. A key that stands twice in a section is
an error.
"""

from __future__ import annotations

import re
import stat
from pathlib import Path
from typing import Any

import yaml

from cachedet.errors import ConfigError, UnreadableConfigError
from cachedet.text import printable, shorten

_MOST_NBYTES = 64 << 10  # of a file
_MOST_EXPANDED = 500_000  # values and their characters, with those that aliases stand for
_MOST_DEPTH = 32  # sections and lists in one another
_READ_ANEW = {  # by the type of the value: the pattern, and the characters that it starts with
    "timestamp": None,
    "int": (r"[-+]?(?:0|[1-9][0-9_]{0,30})", "-+0123456789"),
    "float": (
        r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*|[0-9][0-9_]*(?=[eE]))(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
}


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader without its surprises."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag.endswith(":merge"):
                continue
            if key.value in lines:
                raise yaml.constructor.ConstructorError(
                    None,
                    None,
                    f"the key {key.value!r} stands twice in one section, first in line "
                    f"{lines[key.value]}",
                    key.start_mark,
                )
            lines[key.value] = key.start_mark.line + 1
        return node


_TAG = "tag:yaml.org,2002:"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in each if tag.removeprefix(_TAG) not in _READ_ANEW]
    for first, each in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _name, _anew in _READ_ANEW.items():
    if _anew is not None:
        _Loader.add_implicit_resolver(_TAG + _name, re.compile(f"^(?:{_anew[0]})$"), list(_anew[1]))


def read_yaml(path: Path, *, most_nbytes: int = _MOST_NBYTES) -> Any:
    """What a YAML file of at most so many bytes holds.

    Raises ConfigError, which names the file and the line. Where the file cannot be read at all,
    that is an UnreadableConfigError.
    """
    try:
        status = path.stat()
        if stat.S_ISREG(status.st_mode):  # a pipe or device may never end
            with path.open("rb") as file:
                content = file.read(most_nbytes + 1)
    except OSError as error:
        reason = error.strerror or error
        raise UnreadableConfigError(f"cannot read the config {path}: {reason}") from error
    except ValueError as error:  # of the path
        raise ConfigError(f"cannot read the config {path}: {error}") from error
    if not stat.S_ISREG(status.st_mode):
        raise ConfigError(f"cannot read the config {path}: it is no regular file")
    if len(content) > most_nbytes:
        raise ConfigError(
            f"{path} has {status.st_size:,} bytes; expected a YAML file of at most {most_nbytes:,}"
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{path} is not YAML: line {line} holds a byte that is no UTF-8 "
            f"({content[error.start]:#04x}); save it as UTF-8"
        ) from error
    most = max(_MOST_EXPANDED, 2 * most_nbytes)
    return parse_yaml(text, where=str(path), most_expanded=most)


def parse_yaml(text: str, *, where: str, most_expanded: int = _MOST_EXPANDED) -> Any:
    """The value of a YAML text. Raises ConfigError, which begins with `where`."""
    try:
        _require_bounds(text, most_expanded)
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        raise ConfigError(f"{where} is not YAML: {_describe(error)}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(
            f"{where} is not YAML: line {line} holds the character {error.character:#x}, which "
            "YAML does not allow"
        ) from error
    except (ValueError, TypeError, OverflowError) as error:  # values that Python cannot hold
        raise ConfigError(f"{where} is not YAML: {shorten(printable(error), 200)}") from error


def quote_yaml(text: str) -> str:
    """A string as YAML on one line, in quotes."""
    return yaml.safe_dump(text, default_style='"', width=float("inf")).strip()


def _require_bounds(text: str, most_expanded: int) -> None:
    """Raises MarkedYAMLError before anything is built that is too deep or too much."""
    size = 0  # values and their characters so far, those of aliases included
    began: list[tuple[str | None, int]] = []  # anchor of each open section, and the size before it
    sizes: dict[str, int] = {}  # of what has an anchor
    for event in yaml.parse(text, _Loader):
        mark = event.start_mark
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise _error(f"the alias *{event.anchor} stands for nothing before it", mark)
            size += sizes[event.anchor]
        elif isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent):
            if event.tag is not None:
                raise _error(f"the tag {event.tag!r}: values have none in a config", mark)
            if isinstance(event, yaml.CollectionStartEvent):
                began.append((event.anchor, size))
                size += 1
            else:
                weight = 1 + len(event.value)
                size += weight
                if event.anchor is not None:
                    sizes[event.anchor] = weight
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = began.pop()
            if anchor is not None:
                sizes[anchor] = size - before
        if len(began) > _MOST_DEPTH:
            raise _error(f"more than {_MOST_DEPTH} sections and lists in one another", mark)
        if size > most_expanded:
            raise _error(f"more than {most_expanded:,} characters, with those of aliases", mark)


def _error(problem: str, mark: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


def _describe(error: yaml.MarkedYAMLError) -> str:
    """Line, column and problem on one line."""
    mark = error.problem_mark or error.context_mark
    place = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
    words = [word for word in (error.context, error.problem) if word]
    tab = "; indent with spaces, not tabs" if "'\\t'" in " ".join(words) else ""
    return place + shorten(", ".join(words), 200) + tab
