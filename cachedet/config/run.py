"""What a user decides about a run: validated once, unknown keys refused with the nearest name.

One YAML file is one training run. Only the stage functions and `build` see a config; everything
below them takes explicit arguments. The defaults are PAPER section 2 (RetinaNet, 72 epochs).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    PlainSerializer,
    PlainValidator,
    model_validator,
)

from cachedet.config.detector import Config, Count, DetectorConfig, Fraction, RetinaNetConfig
from cachedet.config.engine import Engine, LocalEngine
from cachedet.config.overrides import Overrides, apply_overrides
from cachedet.config.problems import validated
from cachedet.config.schedule import ScheduleConfig
from cachedet.config.yaml_text import read_yaml
from cachedet.errors import ConfigError

Metric = Literal["ap", "ap50", "ap75", "loss"]
VALIDATED: tuple[str, ...] = tuple(name for name in get_args(Metric) if name != "loss")
"""Figures of CocoScores that every validation gives: they are logged, and can stop a run."""
Precision = Literal["fp32", "bf16", "fp16", "auto"]
Residency = Literal["stream", "disk", "ram", "device"]
Rotated = Literal["refuse", "outer"]
"""What becomes of rotated boxes: an error, or the upright box around each."""
WantedResidency = Literal[Residency, "auto"]
Names = Annotated[
    tuple[str, ...], BeforeValidator(lambda one: (one,) if isinstance(one, str) else one)
]

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_LARGEST_WEIGHT = 1e6  # of a view


def _nbytes(value: Any) -> Any:
    """``"200GB"`` -> 200,000,000,000; a number stays one. Raises ValueError."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?b|)\s*", value, re.IGNORECASE)
    if match is None:
        raise ValueError("expected bytes such as 200GB or 1.5TB")
    return round(float(match[1]) * _UNITS[match[2].lower()])


Nbytes = Annotated[int, BeforeValidator(_nbytes), Field(ge=1)]


def _place(store: Any) -> Any:
    """A URL stays text: as a path it would quietly become the name of a folder."""
    return store if isinstance(store, str) and "://" in store else Path(store)


_Place = Annotated[Path | str, PlainValidator(_place)]


class ClassChoice(Config):
    """Which classes of a data set are used, as the options of the command line say it."""

    classes: Names = ()  # only these, such as ("cat,dog",) or ("cat", "dog"); none: all
    ignore: Names = ()  # all but these; both are names after merging
    merge: Names = ()  # such as ("car,truck=vehicle", "cat,dog=pet")
    background: bool = True  # images without a box of these classes are kept


ALL_CLASSES = ClassChoice()


def parse_taps(taps: Any) -> Any:
    """How many blocks, evenly spaced, or which, counted from 1; also as text: 4, 3,6,9 or L9.

    Raises ValueError.
    """
    if isinstance(taps, str):
        names = [name.strip() for name in taps.split(",")]
        blocks: list[Any] = [_block_of(name.removeprefix("L")) for name in names]
        is_count = len(blocks) == 1 and not names[0].startswith("L")
        taps = blocks[0] if is_count and blocks[0] else blocks
    elif taps is None:
        return None
    if _is_block(taps):
        return taps
    if not isinstance(taps, list | tuple) or not taps or not all(map(_is_block, taps)):
        raise ValueError(
            "expected how many blocks, such as 4, or which ones, counted from 1, such as 3,6,9,12 "
            "(a single one: L12)"
        )
    if len(set(taps)) != len(taps):
        raise ValueError("taps must name each block once")
    return tuple(sorted(taps))


def _block_of(name: str) -> int | None:
    return int(name) if name.isascii() and name.isdigit() and len(name) < 4 else None


def _is_block(value: Any) -> bool:
    return type(value) is int and 1 <= value < 1000


Taps = Annotated[int | tuple[int, ...] | None, PlainValidator(parse_taps)]


class ExtractConfig(Config):
    """Stage 1: which features of which images go into the store."""

    images: _Place  # or such as s3://bucket/photos
    annotations: Path  # of any format of docs/data.md; a split behind a colon: data.yaml:train
    store: _Place  # or such as s3://bucket/train.zarr
    backbone: str = "tf_efficientnet_lite0"
    weights: str = "auto"  # auto | none | a file
    levels: tuple[str, ...] | None = None  # None: C3-C5, or the one level a plain ViT has
    freeze_at: str | None = None  # a level such as C4: those above it are left out
    taps: Taps = None  # in the place of levels: maps of one stride, of a plain ViT
    global_token: bool = False  # with the last tap its class token
    precision: Literal["fp32", "bf16"] = "fp32"  # in which the backbone computes
    compile: bool = False  # torch.compile the backbone
    image_size: Annotated[int, Field(ge=32, le=4096)] = 512  # long side of the view in pixels
    views: str | None = None  # None: those the store has; of a new one data.views.TRAINING_VIEWS
    codec: str = "int8"
    block_size: Annotated[int, Field(ge=1, le=256)] = 16  # images per shard and commit
    batch_size: Count = 8  # images per backbone forward; part of what a block is (law L5)
    device: str = "auto"
    workers: Annotated[int, Field(ge=1, le=256)] = 2  # threads that read and decode images
    on_bad_image: Literal["fail", "skip"] = "fail"
    follow_links: bool = False  # out of the folder of the images
    rotated: Rotated = "refuse"
    choose: ClassChoice = ALL_CLASSES
    rank: Annotated[int, Field(ge=0)] | None = None  # of the processes that share the work
    world_size: Count | None = None  # None: what torchrun or SLURM say, else one
    engine: Engine = LocalEngine()  # "ray": on a cluster

    @model_validator(mode="after")
    def _fits_together(self) -> ExtractConfig:
        if self.taps is None and self.global_token:
            raise ValueError("global_token is the class token of the last tap: set taps (--taps)")
        if self.taps is not None and self.levels is not None:
            raise ValueError("levels and taps both say what is stored: give one of them")
        if self.engine.kind != "local" and (self.rank, self.world_size) != (None, None):
            raise ValueError(
                f"engine {self.engine.kind} gives out the blocks itself: leave rank and world_size "
                "(--rank, --world-size) out, and start it once"
            )
        return self

    def require_image_folder(self) -> Path:
        """It. Raises ConfigError where the images lie in an object storage."""
        if isinstance(self.images, str):
            raise ConfigError(
                f"images must be a folder here, got {self.images}: only `extract` reads images "
                "from s3://, gs:// and az://. Mount or copy them"
            )
        return self.images

    @property
    def folder(self) -> Path:
        """The store's folder. Raises ConfigError where it lies in an object storage."""
        if isinstance(self.store, str):
            raise ConfigError(f"store must be a folder here, got {self.store}")
        return self.store


class EarlyStoppingConfig(Config):
    """Stop when a metric has not improved for `patience` validations (of `loss`: epochs)."""

    metric: Metric = "ap"  # loss: mean of an epoch's training loss
    patience: Count = 5
    min_delta: Annotated[float, Field(ge=0)] = 0.0  # what counts as an improvement is more than it


def _check_views(views: Any) -> Any:
    """Names, equally likely, or their weights; see `resolve_views`."""
    if views is None:
        return None
    if not isinstance(views, list | tuple | dict) or not all(isinstance(v, str) for v in views):
        raise ValueError("expected names of views as [base, hflip], or weights as {base: 1}")
    if not views:
        raise ValueError("views must name at least one view")
    if not isinstance(views, dict):
        if len(set(views)) != len(views):
            raise ValueError("views must name each view once; for other probabilities give weights")
        return tuple(views)
    for name, weight in views.items():
        is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not is_number or not 0 < weight <= _LARGEST_WEIGHT:  # NaN is neither
            raise ValueError(
                f"the weight of view {name!r} must be above 0 and at most {_LARGEST_WEIGHT:g} "
                "(leave a view out that is not wanted)"
            )
    return {name: float(weight) for name, weight in views.items()}


def _dump_views(views: Any) -> Any:
    return list(views) if isinstance(views, tuple) else views


ViewsConfig = Annotated[
    tuple[str, ...] | dict[str, float] | None,
    PlainValidator(_check_views),
    PlainSerializer(_dump_views),
]


class UniformConfig(Config):
    """Every image once an epoch."""

    kind: Literal["uniform"] = "uniform"


class RepeatFactorConfig(Config):
    """Images of rare classes more often (LVIS, arXiv 1908.03195)."""

    kind: Literal["repeat_factor"]
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.001  # share of images: rarer is repeated


class ClassBalancedConfig(Config):
    """Each draw picks a class, all equally likely, then an image that has it."""

    kind: Literal["class_balanced"]


SamplingConfig = Annotated[
    UniformConfig | RepeatFactorConfig | ClassBalancedConfig, Field(discriminator="kind")
]


class AugmentConfig(Config):
    """Feature-space augmentation, in the order it is applied; 0 switches a step off.

    Each is the probability of an image, `crop` that of a whole batch. See docs/augmentation.md.
    """

    translate: Fraction = 0.0
    translate_by: Annotated[float, Field(gt=0, le=1)] = 0.25  # of each side, at most
    crop: Fraction = 0.0
    crop_to: Annotated[float, Field(gt=0, le=1)] = 0.75  # of each side, at least
    flip: Fraction = 0.0


class StagesConfig(Config):
    """How the backbone's stages behind `freeze_at` learn."""

    lr_scale: Annotated[float, Field(gt=0, le=10)] = (
        0.1  # their learning rate, a share of the heads'
    )
    batch_norm: Literal["frozen", "trained"] = "frozen"
    train: Literal["all", "norms", "adapters"] = "all"

    def describe(self, cut: str) -> str:
        """For a person: what learns behind the level `cut`, and how."""
        only = "" if self.train == "all" else f", {self.train} alone"
        norms = f"{self.batch_norm} batch norms"
        return f"stages behind {cut}{only}, rate {self.lr_scale:g}, {norms}"


class TrainConfig(Config):
    """Stage 2: one run of `train-heads`."""

    detector: DetectorConfig = RetinaNetConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    augment: AugmentConfig = AugmentConfig()
    views: ViewsConfig = None  # None: all the store has; one is drawn per image and epoch
    sampling: SamplingConfig = UniformConfig()
    residency: WantedResidency = "auto"  # where features wait
    disk_cache: Nbytes | None = None  # most bytes of a copy of remote stores, such as 200GB
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    eval_every: Annotated[int, Field(ge=0)] = 1  # epochs between validations; 0: only at the end
    device: str = "auto"
    compile: bool = False  # torch.compile the neck and heads
    precision: Precision = "fp32"  # auto: the fast one of the device
    init_from: str | None = None  # a run folder or checkpoint whose weights training starts from
    trainable: Literal["all", "classifier"] = "all"  # classifier: its last layer (PAPER 1.7)
    freeze_at: str | None = None  # a level such as C4: what the backbone has behind it learns too
    stages: StagesConfig = StagesConfig()
    early_stopping: EarlyStoppingConfig | None = None
    checkpoint_every_seconds: Annotated[float, Field(ge=0)] = 600.0  # 0: not by the clock
    checkpoint_every_steps: Annotated[int, Field(ge=0)] = 0  # 0: not by steps
    tensorboard: bool = False  # besides metrics.csv; needs cachedet[tensorboard]
    max_steps: Count | None = None  # stop early; the schedule keeps its full length

    @model_validator(mode="after")
    def _fits_together(self) -> TrainConfig:
        if self.trainable == "classifier" and self.init_from is None:
            raise ValueError(
                "trainable: classifier keeps everything else as it is, which needs weights: set "
                "init_from (--init-from) to the run of stage 1"
            )
        if self.disk_cache is not None and self.residency not in ("disk", "auto"):
            raise ValueError(
                f"disk_cache is the room of residency disk, residency is {self.residency}: leave "
                "one of them out"
            )
        if self.freeze_at is not None and self.trainable == "classifier":
            raise ValueError(
                f"freeze_at {self.freeze_at} trains stages of the backbone, trainable: classifier "
                "nothing but the last layer; leave one of them out"
            )
        stages_are_set = self.freeze_at is None and self.stages != StagesConfig()
        if stages_are_set:
            raise ValueError("stages are trained behind a level: set freeze_at, such as C4")
        stopping = self.early_stopping
        if stopping is not None and stopping.metric != "loss" and self.eval_every == 0:
            raise ValueError(
                f"early_stopping on {stopping.metric} needs validations, eval_every is 0; set "
                "eval_every: 1"
            )
        return self


ONLY_CACHED: Mapping[str, object] = {
    "trainable": "all", "init_from": None, "early_stopping": None, "freeze_at": None,
    "stages": StagesConfig(),
}  # fmt: skip
"""Keys that only runs on a cache can set, with their value in all modes (`compare`, `estimate`)."""


class EvalConfig(Config):
    """Stage 3: how a run is scored."""

    weights: Literal["best", "last"] = "best"
    views: str = "base"  # detections of several are merged
    batch_size: Count = 8
    device: str = "auto"


def load_train_config(path: Path, overrides: Overrides = ()) -> TrainConfig:
    """Read one YAML file and apply `overrides`.

    Raises ConfigError: no such file, not a mapping, unknown key (with the nearest), bad value.
    """
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected `key: value` lines, got {type(values).__name__}")
    return make_train_config(values, where=str(path), overrides=overrides)


def make_train_config(
    values: dict[str, Any], *, where: str, overrides: Overrides = ()
) -> TrainConfig:
    """Apply `overrides` to `values` and validate; `where` names their source in messages.

    Raises ConfigError.
    """
    changed = apply_overrides(values, overrides)
    return validated(TrainConfig, values, where=where, changed=changed)


def make_extract_config(values: dict[str, Any], *, is_typed: bool = False) -> ExtractConfig:
    """Validate the options of `extract`; where a person typed them, messages name them so.

    Raises ConfigError.
    """
    return validated(ExtractConfig, values, where="extract", is_typed=is_typed)


def make_class_choice(values: ClassChoice | Mapping[str, Any], *, where: str) -> ClassChoice:
    """Validate what `where` says of classes. Raises ConfigError."""
    if isinstance(values, ClassChoice):
        return values
    return validated(ClassChoice, dict(values), where=where)


def make_eval_config(values: dict[str, Any]) -> EvalConfig:
    """Validate the options of `eval` that a person typed. Raises ConfigError."""
    return validated(EvalConfig, values, where="eval", is_typed=True)


def dump_config(config: BaseModel) -> str:
    """The fully resolved config as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
