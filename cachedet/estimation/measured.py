"""What was measured, extrapolated to all images and one epoch: what a forecast is made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from cachedet.config.run import WantedResidency
from cachedet.estimation.disk import DiskRates
from cachedet.live.mode_names import partial_mode


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Seconds of the wall clock, and of each stage.

    Stages overlap, so the phase is shorter than their sum; they share cores and wait for each
    other, so it is longer than the longest of them.
    """

    seconds: float
    stages: Mapping[str, float]  # seconds each would take if nothing else held it up

    @property
    def bottleneck(self) -> str:
        """The stage that takes longest."""
        return max(self.stages, key=self.stages.__getitem__)

    def times(self, factor: float) -> Phase:
        """`factor` times as much of the same work."""
        stages = {name: seconds * factor for name, seconds in self.stages.items()}
        return Phase(seconds=self.seconds * factor, stages=stages)

    def scaled(self, factors: Mapping[str, float]) -> Phase:
        """The phase where some stages take `factors` times as long.

        How much longer it takes than its longest stage is taken to stay as it was measured.
        """
        stages = {name: s * factors.get(name, 1.0) for name, s in self.stages.items()}
        before, after = max(self.stages.values()), max(stages.values())
        return Phase(seconds=self.seconds * after / before if before > 0 else after, stages=stages)

    def at_least(self, stage: str, seconds: float) -> Phase:
        """The phase with a stage that takes these seconds, beside all others."""
        known = max(seconds, self.stages.get(stage, 0.0))
        stages = {**self.stages, stage: known}
        return replace(self, seconds=max(self.seconds, known), stages=stages)


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes a process of a mode takes, without the features that it may keep for the whole run."""

    resting: float  # before its first step
    working: float  # what the steps come to on top, in the largest batch
    device: float | None = None  # of tensors on an accelerator; None without one

    @property
    def ram(self) -> float:
        return self.resting + self.working


@dataclass(frozen=True, kw_only=True)
class Training:
    """One epoch of one mode."""

    phase: Phase | None  # None where it could not be run
    memory: Memory | None
    failure: str = ""  # why it could not be run


@dataclass(frozen=True, kw_only=True)
class CodecFigures:
    """The whole cache in one codec."""

    nbytes: float  # stored
    unpacked: float  # of these once zstd is undone: what residency `device` holds
    encode_seconds: float  # for all images and views, in one thread

    def times(self, factor: float) -> CodecFigures:
        return CodecFigures(**{name: value * factor for name, value in vars(self).items()})


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A level behind which stages of the backbone can be trained, and a store up to it."""

    trunk: float  # seconds of a forward up to the level, over those of the whole backbone
    codecs: Mapping[str, CodecFigures]  # what `extract --freeze-at` stores
    read_share: float  # of the bytes of all levels: those that are trained on
    epoch_share: float  # of the bytes of all levels: those that one epoch reads


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Everything a forecast needs."""

    images: int  # in the data set
    views: tuple[str, ...]  # of the cache
    showings: int  # of images in an epoch
    read_share: float  # of the bytes of all levels: those of the levels and views trained on
    epoch_share: float  # of the bytes of all levels: those that one epoch reads
    epochs: int  # that the config trains
    codec: str  # asked for
    codecs: Mapping[str, CodecFigures]  # of all levels; the one asked for among them
    scan: Phase  # reading and checking every image
    fit: Phase  # what the codec learns from; 0 seconds where it learns nothing
    extract: Phase  # decode, backbone, encode and write, all at the same time
    start: float  # seconds that starting the extraction takes
    trainings: Mapping[str, Training]  # by mode: cached, partial_C4 and so on, live, tuned
    backbone_seconds: float  # B: the frozen forward alone, an epoch
    heads_seconds: float  # H: the step on features that are there, an epoch
    backbone_flops: float  # that B stands for
    disk: DiskRates
    free_disk: float  # bytes
    free_ram: float  # bytes
    free_device: float | None  # bytes; None without an accelerator
    residency: WantedResidency  # that the config asks for
    cuts: Mapping[str, Cut]  # by level, the latest first
    uncut: str  # why there are none; empty where there are
    freeze_at: str | None  # that the config trains from
    stored_to: str | None  # the last level that the store shall have; None: it has all

    @property
    def mode(self) -> str:
        """The way in which the config trains."""
        return "cached" if self.freeze_at is None else partial_mode(self.freeze_at)

    @property
    def stored(self) -> CodecFigures:
        """The cache as it was asked for."""
        return self.store_to(self.stored_to)[self.codec]

    @property
    def whole(self) -> CodecFigures:
        """A cache of all levels."""
        return self.codecs[self.codec]

    def store_to(self, level: str | None) -> Mapping[str, CodecFigures]:
        """By codec: a cache up to a level that is a cut; None: of all levels."""
        return self.codecs if level is None else self.cuts[level].codecs

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
