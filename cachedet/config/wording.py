"""What is wrong with a value, in words for those who never saw pydantic."""

from __future__ import annotations

from typing import Any

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


def describe_problem(problem: Any) -> str:
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
