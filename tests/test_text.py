from __future__ import annotations

import os
import subprocess
import sys

import pytest

from cachedet.text import printable, shell_line, shorten


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cat é 猫 \N{CAT FACE}", "cat é 猫 \N{CAT FACE}"),
        ("a\x1b[31mb\x9b2J\x07\x7f", r"a\x1b[31mb\x9b2J\x07\x7f"),
        ("a\r\n\tb\u2028c\x85", r"a\r\n\tb\u2028c\x85"),
        ("a\u202egpj.exe\u2066", r"a\u202egpj.exe\u2066"),  # what follows would run backwards
        (os.fsdecode(b"caf\xe9"), r"caf\xe9"),
        ("\ud800", r"\ud800"),
        ("a\u200b\ufeff\U000e0041", r"a\u200b\ufeff\U000e0041"),  # nobody would see them
        ("نمی\u200cخواهم", "نمی\u200cخواهم"),  # Persian needs its joiners
        ("[bold]x[/] :cat:", "[bold]x[/] :cat:"),
    ],
)
def test_what_a_terminal_would_obey_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(shown) == shown
    shown.encode("utf-8")  # everywhere


def test_line_breaks_can_be_kept() -> None:
    assert printable("a\nb\x1b", keep="\n") == "a\nb\\x1b"


def test_long_names_of_one_prefix_or_of_equal_ends_stay_distinct() -> None:
    names = ["x" * 300, "x" * 299 + "y", "y" + "x" * 299, "x" * 150 + "y" + "x" * 149]
    short = [shorten(name, 20) for name in names]
    assert len(set(short)) == len(names)
    assert {len(name) for name in short} == {20}
    assert shorten("a_class_of_a_long_name", 12) == "a_clas…_name"
    assert shorten("cat", 12) == "cat"
    assert len(shorten("\ud800" * 99, 8)) == 8


def test_a_line_that_a_shell_takes_back(tmp_path: os.PathLike[str]) -> None:
    words = ["a b", "it's", os.fsdecode(b"caf\xe9\\'"), "\x1b[31m\n", "\u202e\x85$HOME", "plain"]
    line = shell_line(words)
    assert printable(line) == line
    assert line.startswith("'a b' ")
    program = "import os, sys; print([os.fsencode(word) for word in sys.argv[1:]])"
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -c '{program}' {line}"], capture_output=True, text=True
    )
    assert done.stdout.strip() == str([os.fsencode(word) for word in words])
