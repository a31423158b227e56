"""YAML that attacks or surprises: a message that names file and line, and nothing is built."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cachedet.config.run import load_train_config
from cachedet.config.yaml_text import parse_yaml, quote_yaml
from cachedet.errors import ConfigError

NINE = [",".join([f"*{letter}"] * 9) for letter in "abcdefgh"]
BOMBS = {
    "flow depth": ("[" * 60_000, "line 1, column 33: more than 32 sections and lists"),
    "map depth": ("{a: " * 15_000, "more than 32 sections and lists"),
    "block depth": ("- " * 30_000, "more than 32 sections and lists"),
    "laughs": (
        "a: &a [x,x,x,x,x,x,x,x,x]\n"
        + "".join(f"{name}: &{name} [{NINE[n]}]\n" for n, name in enumerate("bcdefghi")),
        "line 6, .*: more than 500,000 characters, with those of aliases",
    ),
    "merged laughs": (
        "a: &a {x: 1}\n"
        + "".join(f"{name}: &{name} {{<<: [{NINE[n]}]}}\n" for n, name in enumerate("bcdefghi")),
        "with those of aliases",
    ),
    "long laughs": (f"a: &a {'x' * 30_000}\nb: [{','.join(['*a'] * 9_000)}]", "of aliases"),
    "itself": ("a: &a [*a]", r"the alias \*a stands for nothing before it"),
    "size": (" " * 70_000, "has 70,000 bytes; expected a YAML file of at most 65,536"),
}
WRONG = {
    "python": ("a: !!python/object/apply:os.system [ls]", "line 1, column 4: the tag .*os.system"),
    "tag": ("seed: !!int ''", "the tag 'tag:yaml.org,2002:int': values have none"),
    "twice": (
        "seed: 1\nviews: [base]\nseed: 2",
        "line 3, .*'seed' stands twice in one section, first in line 1",
    ),
    "tabs": ("schedule:\n\tepochs: 3", "line 2, .*indent with spaces, not tabs"),
    "control": ("seed: 1\nviews: \x00", "line 2 holds the character 0x0"),
    "two documents": ("seed: 1\n---\nseed: 2", "line 2, .*single document"),
    "list as key": ("[a]: 1", "unhashable key"),
    "no key": ("1: 2", "1: Keys should be strings"),
    "NaN": ("schedule: {lr: .nan}", "schedule.lr: expected a finite number, got nan"),
    "infinity": ("schedule: {lr: 1e999}", "schedule.lr: expected a finite number"),
    "minutes": ("schedule: {epochs: 12:30}", "expected a whole number, got '12:30'"),
    "date": ("seed: 2024-01-01", "expected a whole number, got '2024-01-01'"),
    "yes": ("seed: yes", "expected a whole number, got 'yes'"),
    "many digits": ("seed: " + "9" * 5000, "seed: expected a smaller number, got '9+…"),
    "many keys": ("".join(f"k{n}: 1\n" for n in range(50)), "unknown key 'k0'.*; 42 more$"),
}


@pytest.mark.parametrize("name", [*BOMBS, *WRONG])
def test_files_are_refused_with_their_name_and_line(name: str, tmp_path: Path) -> None:
    text, message = (BOMBS | WRONG)[name]
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=rf"^{tmp_path}/c.yaml.*{message}") as caught:
        load_train_config(tmp_path / "c.yaml")
    assert len(str(caught.value)) < 4000


@pytest.mark.parametrize("name", [name for name in BOMBS if name != "size"])
def test_values_of_set_are_bounded_too(name: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("seed: 1")
    text, message = BOMBS[name]
    with pytest.raises(ConfigError, match=message.removeprefix("line 1, ")) as caught:
        load_train_config(tmp_path / "c.yaml", [f"views={text}"])
    assert str(caught.value).startswith("--set views=")
    assert len(str(caught.value)) < 500


def test_bytes_that_are_no_utf8_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(b"seed: 3\n# caf\xe9\n")
    with pytest.raises(ConfigError, match=r"line 2 holds a byte that is no UTF-8 \(0xe9\)"):
        load_train_config(path)
    path.write_text("seed: 3", encoding="utf-16")
    with pytest.raises(ConfigError, match="line 1 holds a byte that is no UTF-8"):
        load_train_config(path)
    path.write_bytes(b"\xef\xbb\xbfseed: 3\n")
    assert load_train_config(path).seed == 3


def test_only_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    for path in (tmp_path, tmp_path / "pipe.yaml", Path("/dev/zero")):
        with pytest.raises(ConfigError, match=f"cannot read the config {path}: it is no regular"):
            load_train_config(path)
    os.symlink("loop.yaml", tmp_path / "loop.yaml")
    with pytest.raises(ConfigError, match="cannot read the config .*loop.yaml: Too many levels"):
        load_train_config(tmp_path / "loop.yaml")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["schedule.epochs=0"], "^--set schedule.epochs: expected at least 1, got 0$"),
        (
            ["seed=x", "schedule.epoch=3"],
            "^--set schedule.epoch: unknown.*; --set seed: expected a",
        ),
        (["detector={kind: retinanet, neck: {kind: fpn, size: 3}}"], "^--set detector: unknown"),
        (["seed=["], r"^--set seed=\[ is not YAML: line 1, column 2: "),
        (["trainable=classifier", "seed=1"], "c.yaml with --set trainable, --set seed: config: "),
        (["a..b=1"], "--set expects key=value, got 'a..b=1'"),
    ],
)
def test_an_override_that_is_wrong_is_named(
    overrides: list[str], message: str, tmp_path: Path
) -> None:
    (tmp_path / "c.yaml").write_text("views: [base]")
    with pytest.raises(ConfigError, match=message):
        load_train_config(tmp_path / "c.yaml", overrides)


def test_what_people_write_is_read(tmp_path: Path) -> None:
    text = (
        '{"a": 010, "b": [1_000, 1.5, ~, true, 12:30, 1:30.5, 1e-3], "c": &c {d: x}, "e": *c, '
        "f: {<<: *c}}"
    )
    assert parse_yaml(text, where="") == {
        "a": "010",  # a number where one is expected: 10
        "b": [1000, 1.5, None, True, "12:30", "1:30.5", 0.001],
        "c": {"d": "x"},
        "e": {"d": "x"},
        "f": {"d": "x"},
    }
    (tmp_path / "c.yaml").write_text("seed: 010\ncompile: yes")
    assert load_train_config(tmp_path / "c.yaml").seed == 10


@pytest.mark.parametrize("text", ["caf\udce9", "😀猫", "a: b\n\x1b[31m", "a b " * 50, "'\""])
def test_any_string_can_be_a_value_of_set(text: str) -> None:
    """`--init-from` becomes one."""
    assert parse_yaml(quote_yaml(text), where="") == text
