"""A sweep made ready: stores opened, images dealt out, space and rules known."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cachedet.config.run import TrainConfig
from cachedet.detector.build import choose_read_levels
from cachedet.device import choose_device, usable_cores
from cachedet.errors import ConfigError, InputError
from cachedet.evaluation.metrics import score_detections
from cachedet.loading.sampling import resolve_views
from cachedet.store.reader import FeatureStore
from cachedet.structures import Annotations
from cachedet.sweeping.holdout import Split, split_images
from cachedet.sweeping.job import Job
from cachedet.sweeping.parameters import (
    Parameter,
    configure,
    default_of,
    parse_parameter,
    require_distinct,
    require_possible,
    yaml_of,
)
from cachedet.sweeping.spaces import shipped_space
from cachedet.sweeping.sweep_plan import Rules, Space, SweepConfig, figure_name
from cachedet.training.start import require_fit
from cachedet.version import __version__


@dataclass(frozen=True, kw_only=True)
class SweepTask:
    """What every part of a sweep needs."""

    config: SweepConfig
    store: FeatureStore  # to train on
    validation: FeatureStore
    split: Split
    space: Space
    rules: Rules

    @classmethod
    def of(cls, config: SweepConfig) -> SweepTask:
        """Raises InputError, ConfigError, CheckpointError, StoreError: what does not fit."""
        store, validation = FeatureStore.open(config.train), FeatureStore.open(config.val)
        store.require_complete()
        validation.require_complete(["base"])
        for name, heads in config.heads.items():
            try:
                require_fit(heads, store, validation)
                resolve_views(heads.views, held=store.views, where=store.location)
                choose_read_levels(heads, store.manifest)
            except ConfigError as error:
                raise ConfigError(f"{name}: {error}") from error
        if not np.any(~store.annotations.crowd):
            raise InputError(f"{store.location} holds no box to learn from (crowds aside)")
        split = split_images(validation.annotations, holdout=config.holdout, seed=config.seed)
        _require_figure(validation.annotations.keep_rows(split.choosing), config.objective.figure)
        space = _make_space(config, store)
        epochs = [heads.schedule.epochs for heads in config.heads.values()]
        for parameters in space.of_config.values():
            for each in parameters:
                epochs += each.examples() if each.key == "schedule.epochs" else ()
        rules = Rules(
            sampler=config.sampler,
            pruner=config.pruner,
            seed=config.seed,
            directions=config.objective.directions,
            most_epochs=max(epochs),
            parallel=config.parallel,
        )
        return cls(
            config=config, store=store, validation=validation, split=split, space=space, rules=rules
        )

    @property
    def default(self) -> str:
        """Name of the config that the winner is held against."""
        return next(iter(self.config.heads))

    def defaults(self) -> dict[str, Any]:
        """The default's own values of what is searched."""
        heads = self.config.heads[self.default]
        return {
            each.key: default_of(heads, each.key, store=self.store)
            for each in self.space.of_config[self.default]
        }

    def notes(self) -> list[str]:
        """What a person should know before it begins."""
        notes = [self.split.note] if self.split.note else []
        notes += self._notes_on_default()
        if self.store.manifest.image_digests == self.validation.manifest.image_digests:
            notes.append(
                "--train and --val are the same images: nothing here tells how well others are "
                "detected"
            )
        if self.config.objective.figure != "ap":
            name = figure_name(self.config.objective.figure)
            notes.append(f"the search chooses by {name}; winner and default are compared by AP")
        if self.config.parallel > 1 and any(
            heads.residency in ("ram", "device") for heads in self.config.heads.values()
        ):
            notes.append(
                "residency is stream in all trials: processes that each held the features would "
                "hold them as often; read from the store, they are in memory once, in the system's "
                "cache of files"
            )
        return notes

    def _notes_on_default(self) -> list[str]:
        """Of values that the search cannot come to."""
        defaults = self.defaults()
        return [
            f"the default's {each.key}={yaml_of(defaults[each.key])} is not among what is searched "
            f"({each.describe()}): trial 0 is trained with it all the same"
            for each in self.space.of_config[self.default]
            if not each.holds(defaults[each.key])
        ]

    def settings(self, *, optuna: str) -> dict[str, Any]:
        """What all calls of one folder share; trials, budget and processes may differ."""
        config = self.config
        return {
            "train": self.store.manifest.fingerprint(),
            "train_labels": self.store.manifest.truth_digest,
            "val": self.validation.manifest.fingerprint(),
            "val_labels": self.validation.manifest.truth_digest,
            "heads": {
                name: heads.model_dump(mode="json") | {"device": choose_device(heads.device).type}
                for name, heads in config.heads.items()
            },
            "space": self.space.describe(),
            "objective": ",".join(config.objective.names),
            "sampler": config.sampler,
            "pruner": config.pruner,
            "holdout": config.holdout,
            "seed": config.seed,
            "optuna": optuna,
            "cachedet": __version__,
        }

    def configured(self, name: str, values: Mapping[str, Any]) -> TrainConfig:
        """A config with what was drawn. Raises ConfigError where the values do not go together."""
        return configure(self.config.heads[name], values, store=self.store)

    def job(self, config: TrainConfig, folder: Path, *, final: bool = False) -> Job:
        """A training of it in this folder."""
        device = choose_device(config.device).type
        if self.config.parallel > 1 or (device == "cpu" and config.residency == "auto"):
            # Else each process would hold the features; the system's cache of files does it once.
            config = config.model_copy(update={"residency": "stream"})
        return Job(
            config=config,
            folder=folder,
            train=self.config.train,
            val=self.config.val,
            choosing=self.split.choosing,
            reporting=self.split.reporting if final else (),
            figure=self.config.objective.figure,
            is_watched=not final,
            threads=self._threads() if device == "cpu" else None,
        )

    def _threads(self) -> int | None:
        """Of each process; alone it takes what torch gives it."""
        if self.config.parallel == 1:
            return None
        return max(1, (usable_cores() or 1) // self.config.parallel)


def _make_space(config: SweepConfig, store: FeatureStore) -> Space:
    if not config.params:
        return Space(
            of_config={
                name: [
                    each
                    for each in shipped_space(heads, store)
                    if not _is_fixed(each, config.fixed)
                ]
                for name, heads in config.heads.items()
            }
        )
    of_config: dict[str, list[Parameter]] = {name: [] for name in config.heads}
    for text in config.params:
        refused: list[ConfigError] = []
        for name, heads in config.heads.items():
            parameter = parse_parameter(text, heads)
            try:
                require_possible(parameter, heads, store)
            except ConfigError as error:  # another of the configs may have the key
                refused.append(error)
                continue
            of_config[name].append(parameter)
        if len(refused) == len(config.heads):
            raise refused[0]
    for parameters in of_config.values():
        require_distinct(parameters)
    _require_searched(of_config)
    return Space(of_config=of_config)


def _is_fixed(parameter: Parameter, keys: Sequence[str]) -> bool:
    return any(parameter.key == key or parameter.key.startswith(f"{key}.") for key in keys)


def _require_figure(choosing: Annotations, figure: str) -> None:
    """Raises InputError where no detection could have this figure, as of boxes of another size."""
    if math.isnan(getattr(score_detections(choosing, []), figure)):
        raise InputError(
            f"--objective {figure}: the validation images that choose have no such boxes, so that "
            "no trial could have the figure; choose by AP, or validate on other images"
        )


def _require_searched(of_config: Mapping[str, Sequence[Parameter]]) -> None:
    """Raises InputError where nothing of a config would change, and it is the only one."""
    if not any(of_config.values()):
        raise InputError("a sweep needs a parameter to search over; give --param")
