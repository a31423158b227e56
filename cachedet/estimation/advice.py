"""Advice that follows from a forecast, in words: one rule, one function."""

from __future__ import annotations

import math
from collections.abc import Callable

from cachedet.data.views import view_family
from cachedet.estimation.forecast import (
    Forecast,
    cached_phase,
    epoch_nbytes,
    mode_nbytes,
    reads_disk,
)
from cachedet.estimation.measured import Measured
from cachedet.live.mode_names import cut_of, mode_label
from cachedet.progress import count_of, format_seconds
from cachedet.store.files.durable import readable_nbytes

_WORTH_IT = 1.15  # times as fast an epoch from which on a cache is worth its disk
_FAR_FROM_TUNED = 0.7  # of its epoch, up to which stages are worth training from a cache
_FULL = 0.9  # of the disk
_NOTICEABLE = 0.9  # of the epoch that is left, so that another codec is worth a line
_FEW_IMAGES = 1000  # that heads learn by heart
_DRAWS = 4  # of jitter, as good as live ones in docs/benchmarks/ablation_*.md
_SPARE = 0.1  # of the disk


def advise(measured: Measured, forecast: Forecast) -> list[str]:
    """Every rule that has something to say, the weightiest first."""
    return [line for rule in RULES if (line := rule(measured, forecast)) is not None]


def give_verdict(measured: Measured, forecast: Forecast) -> str:
    """Whether to cache, in one sentence."""
    modes, rival = forecast.modes, mode_label(forecast.rival)
    cached, live = (modes[name].seconds_per_epoch for name in (forecast.mode, forecast.rival))
    if cached is None or live is None:
        return f"no verdict: cached or {rival} could not be tried"
    if forecast.nbytes > forecast.free_disk:
        return "no: the cache does not fit on the disk"
    ours = format_seconds(forecast.extraction_seconds + cached * measured.epochs)
    theirs = format_seconds(live * measured.epochs)
    times = f"{ours}, extraction included, instead of {theirs} {rival}"
    run = f"{times}, for {count_of(measured.epochs, 'epoch')}"
    if forecast.break_even is None:
        return f"no: {run}; the cache never pays"
    from_epoch = f"it pays from epoch {max(1, math.ceil(forecast.break_even))}"
    if forecast.break_even > measured.epochs:
        return f"not for one run: {run}; {from_epoch}, so in several runs"
    if not_worth_it(measured, forecast) is not None:
        return f"hardly: {run}; {from_epoch}, but saves little"
    return f"yes: {run}; {from_epoch}"


def disk_too_small(measured: Measured, forecast: Forecast) -> str | None:
    """Name what fits, where the cache does not."""
    if forecast.nbytes <= forecast.free_disk:
        return None
    needed, free = readable_nbytes(round(forecast.nbytes)), readable_nbytes(int(forecast.free_disk))
    fitting = [
        f"--codec {name} ({readable_nbytes(round(nbytes))})"
        for name, nbytes in forecast.nbytes_by_codec.items()
        if nbytes <= forecast.free_disk
    ]
    views = int(forecast.free_disk / (forecast.nbytes / len(measured.views)))
    ways = fitting + ([f"{views} of the {len(measured.views)} views"] if views else [])
    way = f"It has room for {' or '.join(ways)}" if ways else "Smaller images, or another disk"
    return f"the disk is too small: the cache needs {needed}, {free} are free. {way}"


def disk_nearly_full(measured: Measured, forecast: Forecast) -> str | None:
    share = forecast.nbytes / max(forecast.free_disk, 1)
    if not _FULL < share <= 1:
        return None
    return f"the cache takes {share:.0%} of what is free on the disk"


def not_worth_it(measured: Measured, forecast: Forecast) -> str | None:
    """Advise against a cache that saves little, as where heads are nearly all of a step."""
    if forecast.gain is None or forecast.gain >= _WORTH_IT:
        return None
    if measured.freeze_at is not None:
        return (
            f"do not train from {measured.freeze_at} like this: an epoch takes "
            f"{1 / forecast.gain:.2f} of fine-tuning's; a later cut, or leaner heads"
        )
    if forecast.limit is None:
        return None
    if forecast.limit < _WORTH_IT:
        return (
            f"do not cache: the heads are {forecast.heads_share:.0%} of the step, so that no cache "
            f"gains more than {forecast.limit:.2f}; train live, or take leaner heads"
        )
    mode = forecast.modes[measured.mode]
    return (
        f"do not cache like this: an epoch gains {forecast.gain:.2f} of at most "
        f"{forecast.limit:.2f}; what holds it up is {mode.bottleneck}"
    )


def pays_late(measured: Measured, forecast: Forecast) -> str | None:
    if forecast.break_even is None or forecast.break_even <= measured.epochs:
        return None
    fewer = ", with fewer --views" if len(measured.views) > 1 else ""
    return (
        f"the cache pays for itself after {forecast.break_even:.1f} epochs, the config trains for "
        f"{count_of(measured.epochs, 'epoch')}: it pays only in several runs{fewer} or with a "
        "larger backbone"
    )


def train_stages(measured: Measured, forecast: Forecast) -> str | None:
    """Name the latest cut, which costs least, where its epoch is far from fine-tuning's."""
    cut, figures = next(iter(forecast.cuts.items()), (None, None))
    if cut is None or figures is None or figures.of_cached is None or cut == measured.freeze_at:
        return None
    costs = f"{figures.of_cached:.2g} of the cached step"
    if figures.of_tuned is None:
        return f"train from {cut} (freeze_at: {cut}): {costs}; fine-tuning could not be tried"
    both = f"{costs}, {figures.of_tuned:.2g} of fine-tuning's"
    if figures.of_tuned > _FAR_FROM_TUNED:
        return f"training from {cut} spares little: {both}"
    return f"train from {cut} (freeze_at: {cut}): {both}"


def disk_bound_epoch(measured: Measured, forecast: Forecast) -> str | None:
    """The codec that shortens an epoch most, where the disk holds it up."""
    now = forecast.modes[measured.mode]
    phase = measured.trainings[measured.mode].phase
    if now.bottleneck != "disk" or phase is None or now.seconds_per_epoch is None:
        return None
    best, seconds = measured.codec, now.seconds_per_epoch
    for name, figures in measured.store_to(cut_of(measured.mode)).items():
        nbytes = epoch_nbytes(measured) * figures.nbytes / mode_nbytes(measured.mode, measured)
        is_read = reads_disk(forecast.residency, figures.nbytes, measured.free_ram)
        with_codec = cached_phase(phase, nbytes, measured, is_read).seconds
        if with_codec < seconds:
            best, seconds = name, with_codec
    if seconds > _NOTICEABLE * now.seconds_per_epoch:
        return "the disk is the bottleneck of the cached epoch, and no other codec helps"
    share = seconds / now.seconds_per_epoch
    change = "halves the epoch" if 0.45 < share < 0.55 else f"brings the epoch to {share:.0%}"
    return f"codec {best} {change}: the disk is the bottleneck"


def few_draws(measured: Measured, forecast: Forecast) -> str | None:
    """A small data set wants more views than the default ones, and can afford them."""
    draws = sum(view_family(name) == "jitter" for name in measured.views)
    if measured.images > _FEW_IMAGES or draws >= _DRAWS:
        return None
    more = forecast.nbytes / len(measured.views) * (_DRAWS - draws)
    if more > _SPARE * forecast.free_disk:
        return None
    return (
        f"{count_of(measured.images, 'image')} are few: {_DRAWS} jittered views in place "
        f"of {draws} take {readable_nbytes(round(more))} more and may bring an AP or more "
        f"(--views base,hflip,jitter={_DRAWS}:0.5-1.5)"
    )


def slow_extraction(measured: Measured, forecast: Forecast) -> str | None:
    """Name the knob, where it is not the backbone that extraction waits for."""
    ways = {
        "decode": "reading and decoding the images: more --workers, or smaller files",
        "encode": f"the codec {measured.codec}: a simpler one encodes faster",
        "write": "the disk: a codec that writes less",
    }
    way = ways.get(forecast.extract_bottleneck)
    return None if way is None else f"extraction waits not for the backbone but for {way}"


def does_not_fit(measured: Measured, forecast: Forecast) -> str | None:
    """Ways to train that need more memory than there is, or could not be tried."""
    failed = [name for name, mode in forecast.modes.items() if mode.failure]
    short = [
        name
        for name, mode in forecast.modes.items()
        if mode.ram is not None and mode.ram > measured.free_ram
    ]
    lines = [f"{name}: {forecast.modes[name].failure}" for name in failed]
    if short:
        free = readable_nbytes(round(measured.free_ram))
        lines.append(f"{', '.join(short)} may need more memory than the {free} that are free")
    of_memory = bool(short) or any("memory" in forecast.modes[name].failure for name in failed)
    hint = ": a smaller schedule.batch_size takes less" if of_memory else ""
    return "; ".join(lines) + hint if lines else None


def where_features_wait(measured: Measured, forecast: Forecast) -> str | None:
    if forecast.residency == "stream":
        kept = "not all of it stays" if forecast.is_disk_read else "which keeps it in memory"
        return f"the cache is read from the disk in every epoch, through the system's cache, {kept}"
    memory = "RAM" if forecast.residency == "ram" else "the memory of the device"
    return f"the cache fits into {memory} (residency {forecast.residency}): epochs read no disk"


Rule = Callable[[Measured, Forecast], str | None]
RULES: tuple[Rule, ...] = (
    disk_too_small,
    not_worth_it,
    pays_late,
    train_stages,
    disk_bound_epoch,
    does_not_fit,
    disk_nearly_full,
    slow_extraction,
    few_draws,
    where_features_wait,
)
