"""What a sweep may change: a key of the config, and the range or the choices it draws from."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from cachedet.config.run import TrainConfig, make_train_config
from cachedet.config.yaml_text import parse_yaml
from cachedet.detector.build import choose_read_levels
from cachedet.errors import CachedetError, ConfigError, InputError
from cachedet.loading.sampling import resolve_views
from cachedet.reporting.charts import Axis
from cachedet.store.reader import FeatureStore
from cachedet.text import shorten

Label = None | bool | int | float | str
"""How a value is kept in the study: itself, or its YAML where it is a list or a section."""

_VIEWS = "views."
_RANGE = re.compile(r"(log:)?\s*([^\s.]\S*?)\s*\.\.\s*(\S+)")
_EXAMPLES = "such as schedule.lr=log:3e-4..3e-3, augment.flip=0..0.5 or schedule.epochs=10,20,30"
_NO_PARAMETERS = {
    "seed": "the best of many seeds is luck, which the final trainings would not repeat",
    "device": "it is of the machine",
    "residency": "it changes no result",
    "max_steps": "a run that it cuts off has not come to the end of its schedule",
}


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A range from `low` to `high`, or choices."""

    key: str  # dotted, as --set takes it; views.NAME is the weight of a view
    low: float = math.nan
    high: float = math.nan
    log: bool = False
    whole: bool = False  # whole numbers only
    choices: tuple[Any, ...] = ()

    @property
    def labels(self) -> tuple[Label, ...]:
        """The choices as the study keeps them."""
        return tuple(map(_label_of, self.choices))

    def value_of(self, label: Label) -> Any:
        """The config's value of what the study keeps."""
        return dict(zip(self.labels, self.choices, strict=True))[label] if self.choices else label

    def label_of(self, value: Any) -> Label:
        return _label_of(value)

    def holds(self, value: Any) -> bool:
        """Whether the search can come to this value."""
        if self.choices:
            return value in self.choices
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and self.low <= value <= self.high

    def share(self, value: float) -> float:
        """Where a value of a range lies between its ends, 0..1."""
        low, high = self.low, self.high
        return Axis(name="", low=low, high=high, ticks=(), is_log=self.log).share(value)

    def examples(self) -> tuple[Any, ...]:
        """What has to be valid: all choices, or both ends."""
        return self.choices or (self._number(self.low), self._number(self.high))

    def describe(self) -> str:
        """As --param takes it."""
        if self.choices:
            return f"{self.key}={','.join(yaml_of(value) for value in self.choices)}"
        log = "log:" if self.log else ""
        return f"{self.key}={log}{self._number(self.low):g}..{self._number(self.high):g}"

    def _number(self, value: float) -> float:
        return int(value) if self.whole else value


def parse_parameter(text: str, config: TrainConfig) -> Parameter:
    """What one --param says. Raises InputError where it says no range and no choices."""
    key, separator, values = (part.strip() for part in text.rpartition("="))
    if not separator or not key or not values:
        raise InputError(f"--param expects key=values, {_EXAMPLES}; got {shorten(text, 80)!r}")
    if key in _NO_PARAMETERS:
        raise InputError(f"--param {key}: this is nothing to search over: {_NO_PARAMETERS[key]}")
    match = _RANGE.fullmatch(values)
    if match is None:
        return Parameter(key=key, choices=_parse_choices(text, values))
    low, high = (_parse_number(text, end) for end in match.groups()[1:])
    if low >= high:
        raise InputError(
            f"--param {text}: the range is empty; expected a first number below the second"
        )
    is_log = match[1] is not None
    if is_log and low <= 0:
        raise InputError(f"--param {text}: a log: range starts above 0, got {low:g}")
    whole = isinstance(low, int) and isinstance(high, int)
    whole = whole and not isinstance(default_of(config, key), float) and not key.startswith(_VIEWS)
    return Parameter(key=key, low=low, high=high, log=is_log, whole=whole)


def default_of(config: TrainConfig, key: str, *, store: FeatureStore | None = None) -> Any:
    """The config's own value; None too where it has no such key."""
    if key.startswith(_VIEWS):
        return None if store is None else view_weights(config, store).get(_view(key))
    node: Any = config.model_dump(mode="json")
    for part in key.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return node


def view_weights(config: TrainConfig, store: FeatureStore) -> dict[str, float]:
    """The weight of each view that the config trains on, 1 in the mean."""
    shares = resolve_views(config.views, held=store.views, where=store.location)
    return {view: share * len(shares) for view, share in shares.items()}


def configure(
    config: TrainConfig, values: Mapping[str, Any], *, store: FeatureStore
) -> TrainConfig:
    """The config with these values by dotted key; itself where it has them. Raises ConfigError."""
    values = {
        key: value for key, value in values.items() if value != default_of(config, key, store=store)
    }
    dumped: dict[str, Any] = config.model_dump(mode="json")
    weights = {_view(key): value for key, value in values.items() if key.startswith(_VIEWS)}
    if weights:
        dumped["views"] = {**view_weights(config, store), **weights}
    others = {key: value for key, value in values.items() if not key.startswith(_VIEWS)}
    try:
        return make_train_config(dumped, where="config", overrides=others)
    except ConfigError as error:
        raise ConfigError(str(error).replace("--set ", "--param ")) from error


def require_possible(parameter: Parameter, config: TrainConfig, store: FeatureStore) -> None:
    """Try both ends of a range, or all choices. Raises ConfigError where the config refuses one."""
    for value in parameter.examples():
        try:
            changed = configure(config, {parameter.key: value}, store=store)
        except ConfigError as error:
            if not parameter.key.endswith(".kind"):
                raise
            raise ConfigError(
                f"--param {parameter.key}: {value!r} has other keys than the config's kind "
                f"({error}); give a config of each kind: `sweep A B` searches both"
            ) from error
        try:
            resolve_views(changed.views, held=store.views, where=store.location)
            choose_read_levels(changed, store.manifest)
        except CachedetError as error:
            raise ConfigError(f"--param {parameter.describe()}: {error}") from error


def require_distinct(parameters: Sequence[Parameter]) -> None:
    """Raises InputError where a key stands twice."""
    keys = [parameter.key for parameter in parameters]
    twice = [key for key in keys if keys.count(key) > 1]
    if twice:
        raise InputError(f"--param {twice[0]} is given twice; give one range or list of it")


def yaml_of(value: Any) -> str:
    """A value as YAML on one line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=math.inf)
    return text.removesuffix("...\n").strip()


def short_key(key: str) -> str:
    """``schedule.lr`` -> ``lr``; a name that several sections have keeps its section."""
    parts = key.split(".")
    return ".".join(parts[-2:]) if parts[-1] in ("box_weight", "channels", "base") else parts[-1]


def short_value(value: Any) -> str:
    """A number with three digits."""
    return f"{value:.3g}" if isinstance(value, float) else yaml_of(value)


def _label_of(value: Any) -> Label:
    return value if isinstance(value, None | bool | int | float | str) else yaml_of(value)


def _view(key: str) -> str:
    return key.removeprefix(_VIEWS)


def _parse_choices(text: str, values: str) -> tuple[Any, ...]:
    choices = parse_yaml(f"[{values}]", where=f"--param {shorten(text, 80)}")
    if len(choices) < 2:
        raise InputError(
            f"--param {text}: expected a range or two choices or more, {_EXAMPLES}; one value "
            "alone is given with --set"
        )
    if len({yaml_of(choice) for choice in choices}) < len(choices):
        raise InputError(f"--param {text}: a choice stands there twice; give each once")
    return tuple(choices)


def _parse_number(text: str, end: str) -> float:
    value = parse_yaml(end, where=f"--param {shorten(text, 80)}")
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value):
        raise InputError(f"--param {text}: a range has numbers at its ends, got {end!r}")
    number: float = value
    return number
