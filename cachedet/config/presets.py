"""Presets, the YAML files of `configs/`, by name; and a training's config in any of its forms.

In a checkout `cachedet/configs` is a link to `configs/`; in a wheel it is a folder with the files.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from cachedet.config.overrides import Overrides
from cachedet.config.run import TrainConfig, load_train_config, make_train_config
from cachedet.errors import ConfigError, nearest_names

START = "cascade_rcnn_nasfpn_tiny"  # that of the README and of its results
FOLDER = Path(str(files("cachedet") / "configs"))


def preset_names() -> tuple[str, ...]:
    """The names of all presets, sorted."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


def read_preset(name: str) -> str:
    """The text of a preset's file. Raises ConfigError on an unknown name."""
    if name not in preset_names():
        raise _unknown(name, expected="the name of a preset")
    return _file_of(name).read_text(encoding="utf-8")


def describe_preset(name: str) -> str:
    """What a preset is for: the first comment of its file. Raises ConfigError as `read_preset`."""
    return read_preset(name).partition("\n")[0].removeprefix("#").strip()


def find_config(name_or_path: str | Path) -> Path:
    """The YAML file of this path or, where no such file exists, the preset of this name.

    Raises ConfigError where there is neither.
    """
    text = str(name_or_path)
    # A folder is no config: runs may be called as the preset they were trained with.
    if os.path.exists(text) and not os.path.isdir(text):
        return Path(text)
    if text not in preset_names():
        kind = "the folder " if os.path.isdir(text) else ""
        expected = "the path of a YAML file or the name of a preset"
        raise _unknown(text, expected=expected, kind=kind)
    return _file_of(text)


def load_config(
    config: str | Path | Mapping[str, Any] | TrainConfig, *, overrides: Overrides = ()
) -> TrainConfig:
    """A training's config from any of its forms, with overrides applied.

    Args:
        config: a preset's name, the path of a YAML file, the keys and values of one, or a config.
        overrides: `key.subkey=value`, as `--set` takes them (values are YAML), or a dict.

    Raises:
        ConfigError: there is no such file or preset, or a key or value is wrong.

    Examples:
        >>> config = cachedet.load_config("retinanet_fpn_tiny", overrides={"schedule.epochs": 12})
        >>> config.schedule.epochs
        12
    """
    if isinstance(config, str | Path):
        return load_train_config(find_config(config), overrides)
    if isinstance(config, TrainConfig) and not overrides:
        return config
    if isinstance(config, TrainConfig):
        values = config.model_dump(mode="json")
    elif isinstance(config, Mapping):
        values = copy.deepcopy(dict(config))
    else:
        raise ConfigError(
            "expected a preset's name, the path of a YAML file, a mapping or a TrainConfig, "
            f"got {type(config).__name__}"
        )
    return make_train_config(values, where="config", overrides=overrides)


def _file_of(name: str) -> Path:
    return FOLDER / f"{name}.yaml"


def _unknown(text: str, *, expected: str, kind: str = "") -> ConfigError:
    nearest = nearest_names(Path(text).stem, preset_names())
    return ConfigError(
        f"expected {expected}, got {kind}{text!r}{nearest}; `cachedet configs` lists the presets"
        f", {START} is a good start"
    )
