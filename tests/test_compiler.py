from __future__ import annotations

import pytest
from torch._inductor.exc import InvalidCxxCompiler

from cachedet.compiler import compiling
from cachedet.errors import ConfigError


def test_a_machine_without_a_compiler_is_one_message() -> None:
    message = (
        r"^torch cannot compile neck and heads here: .*It needs a C\+\+ compiler.*, or leave it$"
    )
    with (
        pytest.raises(ConfigError, match=message),
        compiling("neck and heads", error=ConfigError, otherwise="leave it"),
    ):
        raise InvalidCxxCompiler


def test_other_errors_stay() -> None:
    with (
        pytest.raises(RuntimeError, match="shapes"),
        compiling("it", error=ConfigError, otherwise="leave it"),
    ):
        raise RuntimeError("shapes")
