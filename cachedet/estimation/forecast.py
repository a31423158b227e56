"""What a cache costs and saves, from what was measured: pure formulas.

B is the frozen backbone's forward and H the heads' step, seconds an epoch. Cut behind a level, B is
that of the trunk and that of the stages behind it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from cachedet.config.run import Residency, WantedResidency
from cachedet.errors import ConfigError
from cachedet.estimation.measured import CodecFigures, Measured, Memory, Phase, Training
from cachedet.live.mode_names import cut_of, needs_cache, partial_mode
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
class CutForecast:
    """Training of the stages behind a level, from a store up to it."""

    trunk_seconds: float  # of B, an epoch: what the cache spares
    stages_seconds: float  # of B, an epoch: what every step computes, and its gradients besides
    of_cached: float | None  # its epoch over that of the cached heads alone
    of_tuned: float | None  # its epoch over that of fine-tuning
    nbytes: float  # of the store
    extraction_seconds: float  # of the store, all that it costs before the first epoch
    break_even_live: float | None  # epochs after which the store has paid for itself; None: never
    break_even_tuned: float | None


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What is to be expected."""

    mode: str  # the way in which the config trains: cached, or partial_C4 and so on
    nbytes: float  # of the cache
    nbytes_by_codec: Mapping[str, float]
    free_disk: float  # bytes
    scan_seconds: float  # of `extract`, as the next two
    fit_seconds: float
    extract_seconds: float
    extract_bottleneck: str  # its slowest stage
    modes: Mapping[str, ModeForecast]  # cached, partial_C4 and so on, live, tuned
    cuts: Mapping[str, CutForecast]  # by level, the latest first
    uncut: str  # why there are none; empty where there are
    residency: Residency  # where cached features will wait
    is_disk_read: bool  # whether each epoch reads from the disk itself, and not from memory
    read_rate_needed: float | None  # bytes per second that do not hold up the epoch
    read_rate: float  # bytes per second that the disk gives
    rival: str  # what the config's way is held against: live or, where stages learn, tuned
    break_even: float | None  # epochs after which the cache has paid for itself; None: never
    limit: (
        float | None
    )  # (B + H) / H, the most a cache can gain; None: H not known, or stages learn
    heads_share: float  # H / (B + H)
    gain: float | None  # rival's over the config's seconds; None where one could not be run

    @property
    def extraction_seconds(self) -> float:
        """Everything the cache costs before the first epoch."""
        return self.scan_seconds + self.fit_seconds + self.extract_seconds

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "extraction_seconds": self.extraction_seconds}


def make_forecast(measured: Measured) -> Forecast:
    """All figures."""
    modes = {
        name: forecast_mode(name, training, measured)
        for name, training in measured.trainings.items()
    }
    mode, phase = measured.mode, measured.trainings[measured.mode].phase
    rival = "live" if measured.freeze_at is None else "tuned"
    ours, theirs = modes[mode].seconds_per_epoch, modes[rival].seconds_per_epoch
    fit_seconds, extract = forecast_extraction(measured, measured.stored_to)
    costs = measured.scan.seconds + fit_seconds + extract.seconds
    backbone, heads = measured.backbone_seconds, measured.heads_seconds
    residency = residency_of(mode, measured)
    return Forecast(
        mode=mode,
        nbytes=measured.stored.nbytes,
        nbytes_by_codec={
            name: figures.nbytes for name, figures in measured.store_to(measured.stored_to).items()
        },
        free_disk=measured.free_disk,
        scan_seconds=measured.scan.seconds,
        fit_seconds=fit_seconds,
        extract_seconds=extract.seconds,
        extract_bottleneck=extract.bottleneck,
        modes=modes,
        cuts={cut: _forecast_cut(cut, modes, measured) for cut in measured.cuts},
        uncut=measured.uncut,
        residency=residency,
        is_disk_read=reads_disk(residency, mode_nbytes(mode, measured), measured.free_ram),
        read_rate_needed=None if phase is None else epoch_nbytes(measured) / phase.seconds,
        read_rate=measured.disk.read,
        rival=rival,
        break_even=break_even(costs, live=theirs, cached=ours),
        limit=gain_limit(backbone, heads) if rival == "live" else None,
        heads_share=heads / (backbone + heads),
        gain=_quotient(theirs, ours),
    )


def forecast_extraction(measured: Measured, level: str | None) -> tuple[float, Phase]:
    """Seconds of fitting the codec, and the extraction, of a store up to `level` (None: all)."""
    fit_seconds, extract = compute_extraction(measured, level)
    # The disk takes what it sustains and not what its cache takes.
    nbytes = measured.store_to(level)[measured.codec].nbytes
    extract = extract.at_least("write", nbytes / measured.disk.write)
    return fit_seconds, replace(extract, seconds=measured.start + extract.seconds)


def compute_extraction(measured: Measured, level: str | None) -> tuple[float, Phase]:
    """The same without starting, and with a disk that takes everything at once."""
    if level is None:
        return measured.fit.seconds, measured.extract
    trunk = measured.cuts[level].trunk
    share = measured.store_to(level)[measured.codec].nbytes / measured.whole.nbytes
    factors = {"backbone": trunk, "encode": share, "write": share}
    return measured.fit.seconds * trunk, measured.extract.scaled(factors)


def forecast_mode(mode: str, training: Training, measured: Measured) -> ModeForecast:
    """One way to train; a store's bytes come from the disk, or wait in memory."""
    if training.phase is None or not needs_cache(mode):
        return _mode(training)
    residency = residency_of(mode, measured)
    is_disk_read = reads_disk(residency, mode_nbytes(mode, measured), measured.free_ram)
    nbytes = epoch_nbytes(measured, mode)
    memory = with_features(
        training.memory,
        residency,
        measured.whole.times(_shares(mode, measured)[0]),
        has_own=measured.free_device is not None,
    )
    phase = cached_phase(training.phase, nbytes, measured, is_disk_read)
    return _mode(Training(phase=phase, memory=memory))


def _forecast_cut(cut: str, modes: Mapping[str, ModeForecast], measured: Measured) -> CutForecast:
    cached, live, tuned, ours = (
        modes[mode].seconds_per_epoch for mode in ("cached", "live", "tuned", partial_mode(cut))
    )
    fit_seconds, extract = forecast_extraction(measured, cut)
    costs = measured.scan.seconds + fit_seconds + extract.seconds
    trunk = measured.cuts[cut].trunk
    return CutForecast(
        trunk_seconds=measured.backbone_seconds * trunk,
        stages_seconds=measured.backbone_seconds * (1 - trunk),
        of_cached=_quotient(ours, cached),
        of_tuned=_quotient(ours, tuned),
        nbytes=measured.store_to(cut)[measured.codec].nbytes,
        extraction_seconds=costs,
        break_even_live=break_even(costs, live=live, cached=ours),
        break_even_tuned=break_even(costs, live=tuned, cached=ours),
    )


def _quotient(above: float | None, below: float | None) -> float | None:
    return None if above is None or below is None else above / below


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


def epoch_nbytes(measured: Measured, mode: str | None = None) -> float:
    """Stored bytes that one epoch reads, of a way to train; None: the config's."""
    return measured.whole.nbytes * _shares(mode or measured.mode, measured)[1]


def mode_nbytes(mode: str, measured: Measured) -> float:
    """Bytes of the store that holds no more than a way to train needs."""
    return measured.store_to(cut_of(mode))[measured.codec].nbytes


def residency_of(mode: str, measured: Measured) -> Residency:
    """Where the features of a way to train will wait."""
    return expected_residency(
        measured.residency,
        measured.whole.times(_shares(mode, measured)[0]),
        ram=measured.free_ram,
        device=measured.free_device,
    )


def _shares(mode: str, measured: Measured) -> tuple[float, float]:
    """Of the bytes of all levels: those that are trained on, and those that an epoch reads."""
    cut = cut_of(mode)
    of = measured if cut is None else measured.cuts[cut]
    return of.read_share, of.epoch_share


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
    if wanted == "disk":  # after the first epoch
        return "stream"
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
