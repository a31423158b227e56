"""Configs by name, by path and by value."""

from __future__ import annotations

from pathlib import Path

import pytest

from cachedet.config.presets import (
    describe_preset,
    find_config,
    load_config,
    preset_names,
    read_preset,
)
from cachedet.config.run import TrainConfig, load_train_config
from cachedet.errors import ConfigError

CONFIGS = Path(__file__).parents[2] / "configs"
NAME = "retinanet_fpn_tiny"


def test_presets_are_the_files_of_the_folder_people_edit() -> None:
    paths = sorted(CONFIGS.glob("*.yaml"))
    assert preset_names() == tuple(path.stem for path in paths)
    for path in paths:
        assert find_config(path.stem).resolve() == path
        assert read_preset(path.stem) == path.read_text()


@pytest.mark.parametrize("name", preset_names())
def test_what_a_preset_is_for_is_one_short_sentence(name: str) -> None:
    purpose = describe_preset(name)
    assert purpose.endswith(".")
    assert 20 < len(purpose) <= 38  # a row of `cachedet configs` has 80 columns
    assert f"cachedet train-heads {name} --train STORE" in read_preset(name)


def test_a_file_wins_over_a_preset_and_a_folder_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / NAME).mkdir()
    assert find_config(NAME).name == f"{NAME}.yaml"
    (tmp_path / NAME).rmdir()
    (tmp_path / NAME).write_text("seed: 5")
    assert find_config(NAME) == Path(NAME)
    assert load_config(NAME).seed == 5


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("retinanet_tiny", "or the name of a preset, got 'retinanet_tiny'; nearest: 'retinanet_"),
        (Path("configs/retinanet_fpn_tinny.yaml"), "nearest: 'retinanet_fpn_tiny'"),
        ("", "got ''; `cachedet configs` lists the presets"),
        ("x" * 5000, "xx'; `cachedet configs` lists the presets"),
        ("/tmp", "expected the path of a YAML file .*, got the folder '/tmp'"),
        ("../configs/retinanet_fpn", "nearest: 'retinanet_fpn'"),
    ],
)
def test_what_is_neither_file_nor_preset_is_refused(given: str | Path, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_config(given)


def test_only_presets_are_read_by_name() -> None:
    with pytest.raises(ConfigError, match="expected the name of a preset, got 'demo'"):
        read_preset("demo")


def test_every_form_of_a_config_gives_the_same() -> None:
    config = load_train_config(CONFIGS / f"{NAME}.yaml")
    assert load_config(NAME) == config
    assert load_config(CONFIGS / f"{NAME}.yaml") == config
    assert load_config(config.model_dump()) == config
    assert load_config(config) is config
    assert load_config({}) == TrainConfig()


def test_overrides_change_every_form_and_not_what_was_given() -> None:
    values = {"schedule": {"epochs": 3}}
    config = TrainConfig.model_validate(values)
    for form in (NAME, values, config):
        changed = load_config(form, overrides=["schedule.epochs=7", "views=[base]"])
        assert (changed.schedule.epochs, changed.views) == (7, ("base",))
    assert values == {"schedule": {"epochs": 3}}
    assert config.schedule.epochs == 3


def test_other_types_and_wrong_keys_are_refused() -> None:
    with pytest.raises(ConfigError, match="a mapping or a TrainConfig, got NoneType"):
        load_config(None)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="config: unknown key 'sed'; nearest: 'seed'"):
        load_config({"sed": 1})
