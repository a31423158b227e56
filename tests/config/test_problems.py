from __future__ import annotations

import pytest

from cachedet.config.problems import keys_named
from cachedet.config.run import TrainConfig, make_train_config
from cachedet.errors import ConfigError


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("schedule.epochs=1.5", "a whole number, got 1.5"),
        ("schedule.lr=x", "a number, got 'x'"),
        ("schedule.lr=-1", "more than 0, got -1"),
        ("tensorboard=maybe", "true or false, got 'maybe'"),
        ("device=3", "a text, got 3"),
        ("schedule=3", "a section, got 3"),
        ("schedule.drops=3", "a list, got 3"),
        ("--residency=tape", "stream, disk, ram, device or auto, got 'tape'"),
        ("--disk-cache=lots", "bytes such as 200GB or 1.5TB, got 'lots'"),
    ],
)
def test_plain_words_name_what_was_typed(override: str, words: str) -> None:
    with pytest.raises(ConfigError) as wrong:
        make_train_config({}, where="c.yaml", overrides=[override])
    typed = override.partition("=")[0]
    name = typed if typed.startswith("--") else f"--set {typed}"
    assert str(wrong.value) == f"{name}: expected {words}"


def test_keys_are_found_by_their_last_part() -> None:
    assert keys_named("lr", TrainConfig) == ["schedule.lr"]
    assert keys_named("seed", TrainConfig)[0] == "seed"
    assert "detector.neck.channels" in keys_named("channels", TrainConfig)
    assert keys_named("sed", TrainConfig) == []
    assert keys_named("name", TrainConfig) == []  # of a detector that was given as an object
