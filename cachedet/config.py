"""What a user decides about a run: validated once, unknown keys refused with the nearest name.

One YAML file is one training run. Only the stage functions and `build` see a config; everything
below them takes explicit arguments. The defaults are PAPER section 2 (RetinaNet, 72 epochs).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cachedet.errors import ConfigError, nearest_names

Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


class _Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


C = TypeVar("C", bound=_Config)


class ExtractConfig(_Config):
    """Stage 1: which features of which pictures go into the store."""

    images: Path
    annotations: Path
    store: Path
    backbone: str = "tf_efficientnet_lite0"
    weights: str = "auto"  # auto | none | a file
    levels: tuple[str, ...] | None = None  # None: C3-C5, or the one level a plain ViT has
    image_size: Annotated[int, Field(ge=32, le=4096)] = 512  # long side of the view in pixels
    views: str = "base"
    codec: str = "int8"
    block_size: Annotated[int, Field(ge=1, le=256)] = 16  # pictures per shard and commit
    batch_size: Count = 8  # pictures per backbone forward; part of what a block is (law L5)
    device: str = "auto"
    workers: Annotated[int, Field(ge=1, le=256)] = 2  # threads that read and decode pictures
    on_bad_image: Literal["fail", "skip"] = "fail"
    rank: Annotated[int, Field(ge=0)] | None = None  # of the processes that share the work
    world_size: Count | None = None  # None: what torchrun or SLURM say, else one


class AnchorConfig(_Config):
    """PAPER 2.2: 9 anchors per cell, the smallest 4 strides wide."""

    size_factor: Positive = 4.0  # side of the smallest square anchor, in strides of its level
    scales_per_octave: Count = 3
    aspect_ratios: tuple[Positive, ...] = (0.5, 1.0, 2.0)  # height / width
    foreground_iou: Fraction = 0.5
    background_iou: Fraction = 0.5


class DetectorConfig(_Config):
    """What is trained: neck and heads."""

    kind: Literal["retinanet"] = "retinanet"
    neck: Literal["fpn"] = "fpn"
    levels: tuple[str, ...] | None = None  # backbone levels to use; None: all the store has
    num_levels: Annotated[int, Field(ge=1, le=8)] = 5  # P3-P7
    channels: Count = 256
    num_convs: Annotated[int, Field(ge=0, le=16)] = 4  # depth of each head tower
    norm: Literal["batch", "group", "none"] = "batch"
    activation: Literal["relu", "silu"] = "relu"
    anchors: AnchorConfig = AnchorConfig()
    focal_alpha: Fraction = 0.25
    focal_gamma: Annotated[float, Field(ge=0)] = 1.5
    huber_delta: Positive = 0.1
    box_weight: Positive = 50.0
    score_threshold: Fraction = 0.05
    pre_nms: Count = 5000
    nms_iou: Fraction = 0.5
    max_detections: Count = 100


class ScheduleConfig(_Config):
    """How the heads are optimised. `lr` belongs to `batch_size` pictures a step."""

    epochs: Count = 72
    batch_size: Count = 256
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: Positive = 0.32
    momentum: Fraction = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4  # kernels only, as in PAPER 2.2
    kind: Literal["step", "cosine"] = "step"
    drops: tuple[Fraction, ...] = (48 / 72, 68 / 72)  # of all steps; each multiplies lr by 0.1
    warmup_steps: Annotated[int, Field(ge=0)] = 500
    clip_norm: Annotated[float, Field(ge=0)] = 0.0  # 0: no gradient clipping


class TrainConfig(_Config):
    """Stage 2: one run of `train-heads`."""

    detector: DetectorConfig = DetectorConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    views: tuple[str, ...] | None = None  # None: all the store has; one is drawn per picture
    seed: int = 0
    eval_every: Annotated[int, Field(ge=0)] = 1  # epochs between validations; 0: only at the end
    device: str = "auto"
    max_steps: Count | None = None  # stop early; the schedule keeps its full length

    @model_validator(mode="after")
    def _names_a_view(self) -> TrainConfig:
        if self.views is not None and not self.views:
            raise ValueError("views must name at least one view, got an empty list")
        return self


class EvalConfig(_Config):
    """Stage 3: how a run is scored."""

    weights: Literal["best", "last"] = "best"
    batch_size: Count = 8
    device: str = "auto"


def load_train_config(path: Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read one YAML file and apply `key.subkey=value` overrides (values are YAML).

    Raises ConfigError: no such file, not a mapping, unknown key (with the nearest), bad value.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the config {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected `key: value` lines, got {type(values).__name__}")
    for override in overrides:
        _apply_override(values, override)
    return make_train_config(values, where=str(path))


def make_train_config(values: dict[str, Any], *, where: str) -> TrainConfig:
    """Validate; `where` names the source in messages. Raises ConfigError."""
    return _validated(TrainConfig, values, where=where)


def make_extract_config(values: dict[str, Any]) -> ExtractConfig:
    """Validate the options of `extract`. Raises ConfigError."""
    return _validated(ExtractConfig, values, where="extract")


def make_eval_config(values: dict[str, Any]) -> EvalConfig:
    """Validate the options of `eval`. Raises ConfigError."""
    return _validated(EvalConfig, values, where="eval")


def dump_config(config: BaseModel) -> str:
    """The fully resolved config as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"--set expects key=value, got {override!r}; e.g. schedule.epochs=12")
    *parents, last = key.strip().split(".")
    node = values
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise ConfigError(f"--set {override}: {parent!r} is a value, not a section")
    node[last] = yaml.safe_load(text)


def _validated(kind: type[C], values: dict[str, Any], *, where: str) -> C:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        problems = [_describe(kind, problem) for problem in error.errors()]
        raise ConfigError(f"{where}: " + "; ".join(problems)) from error


def _describe(kind: type[BaseModel], problem: Any) -> str:
    location = [str(part) for part in problem["loc"]]
    key = ".".join(location) or "config"
    if problem["type"] == "extra_forbidden":
        known = _keys_at(kind, location[:-1])
        return f"unknown key {key!r}{nearest_names(location[-1], known)}; known: {', '.join(known)}"
    message = str(problem["msg"]).removeprefix("Value error, ")
    return f"{key}: {message}, got {problem['input']!r}"


def _keys_at(kind: type[BaseModel], parents: Sequence[str]) -> list[str]:
    for parent in parents:
        annotation = kind.model_fields[parent].annotation
        assert isinstance(annotation, type)
        assert issubclass(annotation, BaseModel)
        kind = annotation
    return list(kind.model_fields)
