"""What a cache costs and saves, from what was measured: pure formulas.

B is the frozen backbone's forward and H the heads' step, seconds an epoch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from cachedet.config.run import Residency, WantedResidency
from cachedet.errors import ConfigError
from cachedet.estimation.measured import CodecFigures, Measured, Memory, Phase, Training
from cachedet.loading.residency import Need, choose_residency

_PAGE_CACHE_SHARE = 0.8  # of free RAM that the system keeps files in before it lets go of them


@dataclass(frozen=True, kw_only=True)
class ModeForecast:
    """One way to train."""

    seconds_per_epoch: float | None  # None where it could not be run
    bottleneck: str  # empty where it could not be run
    ram: float | None  # bytes, of the process
    device: float | None  # bytes of tensors on an accelerator
    failure: str = ""


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What is to be expected."""

    nbytes: float  # of the cache
    nbytes_by_codec: Mapping[str, float]
    free_disk: float  # bytes
    scan_seconds: float  # of `extract`, as the next two
    fit_seconds: float
    extract_seconds: float
    extract_bottleneck: str  # its slowest stage
    modes: Mapping[str, ModeForecast]  # cached, live, tuned
    residency: Residency  # where cached features will wait
    is_disk_read: bool  # whether each epoch reads from the disk itself, and not from memory
    read_rate_needed: float | None  # bytes per second that do not hold up the cached epoch
    read_rate: float  # bytes per second that the disk gives
    break_even: float | None  # epochs after which the cache has paid for itself; None: never
    limit: float | None  # most that a cache can gain, (B + H) / H; None: H could not be measured
    heads_share: float  # H / (B + H)
    gain: float | None  # live over cached seconds; None where one of them could not be run

    @property
    def extraction_seconds(self) -> float:
        """Everything the cache costs before the first epoch."""
        return self.scan_seconds + self.fit_seconds + self.extract_seconds

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "extraction_seconds": self.extraction_seconds}


def make_forecast(measured: Measured) -> Forecast:
    """All figures."""
    stored = measured.stored
    read = stored.times(measured.read_share)
    residency = expected_residency(
        measured.residency, read, ram=measured.free_ram, device=measured.free_device
    )
    is_disk_read = reads_disk(residency, stored.nbytes, measured.free_ram)
    cached = measured.trainings["cached"]
    modes = {name: _mode(training) for name, training in measured.trainings.items()}
    if cached.phase is not None:
        phase = cached_phase(cached.phase, epoch_nbytes(measured), measured, is_disk_read)
        has_own = measured.free_device is not None
        memory = with_features(cached.memory, residency, read, has_own=has_own)
        modes["cached"] = _mode(Training(phase=phase, memory=memory))
    epoch, live_epoch = modes["cached"].seconds_per_epoch, modes["live"].seconds_per_epoch
    # The disk takes what it sustains and not what its cache takes.
    extract = measured.extract.at_least("write", stored.nbytes / measured.disk.write)
    extract_seconds = measured.start + extract.seconds
    costs = measured.scan.seconds + measured.fit.seconds + extract_seconds
    backbone, heads = measured.backbone_seconds, measured.heads_seconds
    return Forecast(
        nbytes=stored.nbytes,
        nbytes_by_codec={name: figures.nbytes for name, figures in measured.codecs.items()},
        free_disk=measured.free_disk,
        scan_seconds=measured.scan.seconds,
        fit_seconds=measured.fit.seconds,
        extract_seconds=extract_seconds,
        extract_bottleneck=extract.bottleneck,
        modes=modes,
        residency=residency,
        is_disk_read=is_disk_read,
        read_rate_needed=None
        if cached.phase is None
        else epoch_nbytes(measured) / cached.phase.seconds,
        read_rate=measured.disk.read,
        break_even=break_even(costs, live=live_epoch, cached=epoch),
        limit=gain_limit(backbone, heads),
        heads_share=heads / (backbone + heads),
        gain=None if epoch is None or live_epoch is None else live_epoch / epoch,
    )


def gain_limit(backbone: float, heads: float) -> float | None:
    """(B + H) / H: most that leaving out the backbone can gain; None: H is not known."""
    return (backbone + heads) / heads if heads > 0 else None


def break_even(extraction: float, *, live: float | None, cached: float | None) -> float | None:
    """Epochs after which the seconds of extraction are saved; None: never, or not known."""
    if live is None or cached is None or live <= cached:
        return None
    return extraction / (live - cached)


def cached_phase(phase: Phase, nbytes: float, measured: Measured, is_disk_read: bool) -> Phase:
    """An epoch: max(compute, bytes / disk rate) where the bytes come from the disk."""
    if not is_disk_read:
        return phase
    return phase.at_least("disk", nbytes / measured.disk.read)


def epoch_nbytes(measured: Measured) -> float:
    """Stored bytes that one epoch reads."""
    return measured.stored.nbytes * measured.epoch_share


def reads_disk(residency: Residency, nbytes: float, free_ram: float) -> bool:
    """Whether a store is too large for the system to keep it in memory between epochs."""
    return residency == "stream" and nbytes > _PAGE_CACHE_SHARE * free_ram


def expected_residency(
    wanted: WantedResidency, features: CodecFigures, *, ram: float, device: float | None
) -> Residency:
    """What `train-heads` will choose; as for `auto` where it would refuse what the config names.

    `features` are those that are trained on, `ram` and `device` free bytes (None without an
    accelerator).
    """
    need = Need(
        stored=round(features.nbytes),
        unpacked=round(features.unpacked),
        ram=round(ram),
        device=round(ram if device is None else device),
        device_name="the device",
    )
    try:
        return choose_residency(wanted, need, has_own_memory=device is not None)[0]
    except ConfigError:
        return choose_residency("auto", need, has_own_memory=device is not None)[0]


def with_features(
    memory: Memory | None, residency: Residency, features: CodecFigures, *, has_own: bool
) -> Memory | None:
    """Memory of a process that keeps these features as well, for the whole run.

    `has_own`: whether the device has memory besides RAM.
    """
    if memory is None or residency == "stream":
        return memory
    if residency == "ram" or not has_own:
        held = features.nbytes if residency == "ram" else features.unpacked
        return replace(memory, resting=memory.resting + held)
    device = None if memory.device is None else memory.device + features.unpacked
    return replace(memory, device=device)


def _mode(training: Training) -> ModeForecast:
    phase, memory = training.phase, training.memory
    return ModeForecast(
        seconds_per_epoch=None if phase is None else phase.seconds,
        bottleneck="" if phase is None else phase.bottleneck,
        ram=None if memory is None else memory.ram,
        device=None if memory is None else memory.device,
        failure=training.failure,
    )
