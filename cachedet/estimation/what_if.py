"""Forecasts for a machine, a backbone or data that are not here: arithmetic on measurements."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

from cachedet.errors import InputError, nearest_names
from cachedet.estimation.measured import CodecFigures, Measured, Memory, Training

_NUMBER = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:e([+-]?[0-9]+))?\s*(.*?)\s*")
_PREFIXES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "p": 1e15}
_DURATIONS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_MACHINES = range(1, 4097)
_LONGEST_LATENCY = 60.0  # seconds
_MOST_FAILING = 0.2  # of requests; beyond it some fail again and again, until they are given up
_SIDES = range(32, 4097)  # pixels, as `--image-size` takes them
# stages that a device computes:
_COMPUTED = ("backbone", "heads", "stages and heads", "backbone and heads")


@dataclass(frozen=True, kw_only=True)
class KnownDataset:
    """Training images that many have, in numbers."""

    images: int
    size_hw: tuple[int, int]  # that most of them have, about; only the ratio matters much


DATASETS = {
    "coco": KnownDataset(images=118_287, size_hw=(480, 640)),
    "objects365": KnownDataset(images=1_742_292, size_hw=(480, 640)),
}
STORAGES = ("s3", "gs", "az")
_OF_STORAGE = ("workers", "bandwidth", "latency", "failing", "image_file")


@dataclass(frozen=True, kw_only=True)
class WhatIf:
    """What shall be otherwise; None: as it is here."""

    image_size: int | None = None  # long side of an image in pixels
    backbone: str | None = None
    disk: float | None = None  # bytes per second, read and written
    device_flops: float | None = None  # per second, that a device sustains on this backbone
    images: int | None = None  # in the data set, of the same kind
    codec: str | None = None  # one of those that were measured
    dataset: str | None = None  # one of DATASETS, in the place of `images`
    storage: str | None = None  # where `workers` machines like this one write
    workers: int | None = None
    bandwidth: float | None = None  # bytes per second, of the storage to all machines together
    latency: float | None = None  # seconds of a request
    failing: float | None = None  # share of the requests
    image_file: float | None = None  # bytes of an image file that lies in the storage too

    def to_json(self) -> dict[str, Any]:
        """Only what is otherwise, as it is written."""
        return {
            name.replace("_", "-"): value for name, value in vars(self).items() if value is not None
        }


@dataclass(frozen=True, kw_only=True)
class BackboneChange:
    """Another backbone over the one that was measured: quotients."""

    seconds: float  # of a forward
    flops: float  # of a forward
    heads: float  # FLOPs of the heads' step, whose neck meets other channels
    values: float  # cached


def parse_what_if(text: str) -> WhatIf:
    """``image-size=800,disk=500MB/s``.

    Raises InputError on an unknown name (with the nearest), a repeated one, or no number.
    """
    known = [field.name.replace("_", "-") for field in fields(WhatIf)]
    values: dict[str, Any] = {}
    for item in filter(None, map(str.strip, text.split(","))):
        name, equals, value = (part.strip() for part in item.partition("="))
        if name not in known:
            raise InputError(
                f"--what-if: unknown name {name!r}{nearest_names(name, known)}; known: "
                f"{', '.join(known)}"
            )
        if not equals or not value:
            raise InputError(f"--what-if {name}: expected {name}=VALUE, got {item!r}")
        if name in values:
            raise InputError(f"--what-if names {name} twice")
        values[name] = _parse(name, value)
    change = WhatIf(**{name.replace("-", "_"): value for name, value in values.items()})
    _require_storage(change)
    return _with_dataset(change)


def _require_storage(change: WhatIf) -> None:
    """Raises InputError where what is said of machines and storage is half of it."""
    said = [name for name in _OF_STORAGE if getattr(change, name) is not None]
    if change.storage is None and said:
        name = said[0].replace("_", "-")
        raise InputError(
            f"--what-if {name}: machines share a storage: add storage={STORAGES[0]} and bandwidth="
            "2GB/s (a faster disk of one machine is disk=)"
        )
    if change.storage is not None and change.bandwidth is None:
        raise InputError(
            f"--what-if storage={change.storage}: how much does it take from all machines "
            "together? Add such as bandwidth=2GB/s"
        )


def _with_dataset(change: WhatIf) -> WhatIf:
    """With the number of its images. Raises InputError where another is given too."""
    if change.dataset is None:
        return change
    images = DATASETS[change.dataset].images
    if change.images is not None:
        raise InputError(
            f"--what-if dataset={change.dataset} has {images} images, and images={change.images} "
            "is given too: leave one of them out"
        )
    return replace(change, images=images)


def _parse(name: str, value: str) -> Any:
    where = f"--what-if {name}"
    if name in _PARSERS:
        return _PARSERS[name](value, where=where)
    if name in ("backbone", "codec"):
        return value
    return parse_count(value, where=where)


def parse_rate(text: str, *, where: str) -> float:
    """``500MB/s`` -> 5e8 bytes per second; the unit must be there, the ``/s`` need not.

    Raises InputError; `where` names the option.
    """
    such_as, units = "bytes per second such as 500MB/s", "B/s, kB/s, MB/s, GB/s"
    return _parse_speed(text, r"(.*?)b\s*(?:/s)?", where=where, such_as=such_as, units=units)


def parse_flops(text: str, *, where: str) -> float:
    """``60T`` or ``60TFLOPS`` -> 6e13 floating-point operations per second. Raises InputError."""
    such_as = "operations per second such as 60T"
    unit = r"(.*?)(?:flops?)?(?:/s)?"
    return _parse_speed(text, unit, where=where, such_as=such_as, units="G, T, P")


def parse_nbytes(text: str, *, where: str) -> float:
    """``160kB`` -> 160,000 bytes; the unit must be there. Raises InputError."""
    return _parse_speed(
        text, "(.*?)b", where=where, such_as="bytes such as 160kB", units="B, kB, MB"
    )


def parse_seconds(text: str, *, where: str) -> float:
    """``30ms`` -> 0.03, from nothing to a minute; the unit must be there. Raises InputError."""
    match = _NUMBER.fullmatch(text)
    if match is None or match[2] or match[3].lower() not in _DURATIONS:
        raise InputError(f"{where}: expected a time such as 30ms, got {text!r}; units: us, ms, s")
    seconds = float(match[1]) * _DURATIONS[match[3].lower()]
    if seconds > _LONGEST_LATENCY:
        raise InputError(f"{where}: expected at most {_LONGEST_LATENCY:.0f} s, got {text!r}")
    return seconds


def parse_failing(text: str, *, where: str) -> float:
    """``5%`` or ``0.05``. Raises InputError."""
    match = _NUMBER.fullmatch(text)
    if match is None or match[3] not in ("", "%"):
        raise InputError(f"{where}: expected a share such as 5%, got {text!r}")
    share = float(f"{match[1]}e{match[2] or 0}") / (100 if match[3] else 1)
    if share > _MOST_FAILING:
        raise InputError(
            f"{where}: expected 0 to {_MOST_FAILING:.0%} of the requests, got {text!r}"
        )
    return share


def _one_of(text: str, known: Iterable[str], *, where: str) -> str:
    known = tuple(known)
    if text in known:
        return text
    near = nearest_names(text, known)
    raise InputError(f"{where}: unknown {text!r}{near}; known: {', '.join(known)}")


def parse_count(text: str, *, where: str) -> int:
    """``118000`` or ``118k`` -> a whole number from 1 on. Raises InputError."""
    value, prefix = _split(text, r"(.*)", where=where, example="118000")
    number = value * _PREFIXES.get(prefix, math.nan)
    if not (number >= 1 and number == int(number)):
        raise InputError(
            f"{where}: expected a whole number from 1 on, such as 118000, got {text!r}"
        )
    return int(number)


def _parse_within(text: str, known: range, unit: str, *, where: str) -> int:
    """A whole number within bounds. Raises InputError."""
    with suppress(InputError):
        if (number := parse_count(text, where=where)) in known:
            return number
    raise InputError(f"{where}: expected {known.start} to {known.stop - 1} {unit}, got {text!r}")


def _split(text: str, unit: str, *, where: str, example: str) -> tuple[float, str]:
    """The number and the prefix of its unit, which a group of the pattern `unit` matches."""
    match = _NUMBER.fullmatch(text)
    if match is None:
        raise InputError(f"{where}: expected a number such as {example}, got {text!r}")
    in_unit = re.fullmatch(unit, match[3].lower())
    return float(f"{match[1]}e{match[2] or 0}"), in_unit[1] if in_unit else "?"


def _parse_speed(text: str, unit: str, *, where: str, such_as: str, units: str) -> float:
    """A positive number; `such_as` ends with an example."""
    value, prefix = _split(text, unit, where=where, example=such_as.split()[-1])
    if prefix not in _PREFIXES:
        raise InputError(f"{where}: expected {such_as}, got {text!r}; units: {units}")
    if not 0 < value * _PREFIXES[prefix] < math.inf:
        raise InputError(f"{where}: expected a number above 0, got {text!r}")
    return value * _PREFIXES[prefix]


_PARSERS: dict[str, Callable[..., Any]] = {
    "disk": parse_rate,
    "bandwidth": parse_rate,
    "device-flops": parse_flops,
    "latency": parse_seconds,
    "failing": parse_failing,
    "image-file": parse_nbytes,
    "storage": partial(_one_of, known=STORAGES),
    "dataset": partial(_one_of, known=DATASETS),
    "image-size": partial(_parse_within, known=_SIDES, unit="pixels"),
    "workers": partial(_parse_within, known=_MACHINES, unit="machines"),
}


def apply_what_if(
    measured: Measured,
    change: WhatIf,
    *,
    pixels: float = 1.0,
    backbone: BackboneChange | None = None,
) -> Measured:
    """What would have been measured.

    `pixels` are the padded pixels of an image at the other size over those here, `backbone` says
    what the other backbone changes.

    Raises InputError on a codec that was not measured.
    """
    if change.codec is not None:
        measured = with_codec(measured, change.codec)
    if backbone is not None:
        measured = with_backbone(measured, backbone)
    if pixels != 1.0:
        measured = with_pixels(measured, pixels)
    if change.images is not None:
        measured = with_images(measured, change.images)
    if change.device_flops is not None:
        measured = with_device(measured, change.device_flops)
    if change.disk is not None:
        disk = replace(measured.disk, read=change.disk, write=change.disk)
        measured = replace(measured, disk=disk)
    return measured


def with_codec(measured: Measured, codec: str) -> Measured:
    """Another codec: its bytes are written, and encoding takes as it was measured alone."""
    require_measured(codec, tuple(measured.codecs))
    before, after = measured.whole, measured.codecs[codec]
    factors = {
        "encode": after.encode_seconds / before.encode_seconds,
        "write": after.nbytes / before.nbytes,
    }
    return replace(measured, codec=codec, extract=measured.extract.scaled(factors))


def require_measured(codec: str, measured: Sequence[str]) -> None:
    """Raises InputError where the codec of a what-if is none of those that are measured."""
    if codec not in measured:
        raise InputError(
            f"--what-if codec: {codec!r} is not measured{nearest_names(codec, measured)}; "
            f"measured: {', '.join(measured)}. Give it as --codec to measure it"
        )


def with_pixels(measured: Measured, factor: float) -> Measured:
    """Larger or smaller images: all but reading files goes with the pixels."""
    factors = dict.fromkeys((*_COMPUTED, "encode", "write", "read"), factor)
    return replace(
        _with_bytes(_with_work(measured, factor), factor),
        fit=measured.fit.times(factor),
        extract=measured.extract.scaled(factors),
        trainings=_scale_all(measured, factors, working=factor),
    )


def with_images(measured: Measured, images: int) -> Measured:
    """More or fewer images like these."""
    factor = images / measured.images
    return replace(
        _with_bytes(_with_work(measured, factor), factor),
        images=images,
        showings=round(measured.showings * factor),
        scan=measured.scan.times(factor),
        extract=measured.extract.times(factor),
        trainings={
            name: replace(training, phase=training.phase and training.phase.times(factor))
            for name, training in measured.trainings.items()
        },
    )


def with_device(measured: Measured, flops: float) -> Measured:
    """A device that reaches `flops` per second on the backbone.

    The heads are taken to become faster as much as the backbone: they are as far from a device's
    peak there as they are here. What needs no device stays as it is.
    """
    factor = measured.backbone_flops / flops / measured.backbone_seconds
    factors = dict.fromkeys(_COMPUTED, factor)
    return replace(
        _with_work(measured, factor),
        fit=measured.fit.scaled(factors),
        extract=measured.extract.scaled(factors),
        trainings=_scale_all(measured, factors, working=None),
        backbone_flops=measured.backbone_flops,
    )


def with_backbone(measured: Measured, change: BackboneChange) -> Measured:
    """Another backbone: B, the heads' part of H, and the bytes change; memory is then unknown.

    Raises InputError where stages shall be trained: nothing of its cuts was measured.
    """
    if measured.freeze_at is not None or measured.stored_to is not None:
        raise InputError(
            f"--what-if backbone: what the stages behind {measured.freeze_at or measured.stored_to}"
            " cost in another backbone is not measured here; give it as --backbone, or leave "
            "freeze_at out"
        )
    before = measured.backbone_seconds, measured.heads_seconds
    after = before[0] * change.seconds, before[1] * change.heads
    encoded = {"backbone": change.seconds, "encode": change.values, "write": change.values}
    cached, live = measured.trainings["cached"], measured.trainings["live"]
    return replace(
        measured,
        codecs=_times(measured.codecs, change.values),
        fit=measured.fit.times(change.seconds),
        extract=measured.extract.scaled(encoded),
        trainings={
            "cached": _scale(cached, {"heads": change.heads, "read": change.values}),
            "live": _scale(live, {"backbone and heads": sum(after) / sum(before)}),
            "tuned": _tuned(measured, after[1], change.seconds),
        },
        backbone_seconds=after[0],
        heads_seconds=after[1],
        backbone_flops=measured.backbone_flops * change.flops,
        cuts={},
        uncut="of another backbone no cut was measured",
    )


def _tuned(measured: Measured, heads: float, factor: float) -> Training:
    """All of a fine-tuning step beyond the heads goes with the backbone."""
    tuned = measured.trainings["tuned"]
    if tuned.phase is None:
        return tuned
    before = tuned.phase.stages["backbone and heads"]
    after = heads + max(0.0, before - measured.heads_seconds) * factor
    return _scale(tuned, {"backbone and heads": after / before})


def _with_bytes(measured: Measured, factor: float) -> Measured:
    """`factor` times as many bytes in a cache of any levels."""
    cuts = measured.cuts.items()
    return replace(
        measured,
        codecs=_times(measured.codecs, factor),
        cuts={name: replace(cut, codecs=_times(cut.codecs, factor)) for name, cut in cuts},
    )


def _with_work(measured: Measured, factor: float) -> Measured:
    """`factor` times as much to compute in an epoch."""
    return replace(
        measured,
        backbone_seconds=measured.backbone_seconds * factor,
        heads_seconds=measured.heads_seconds * factor,
        backbone_flops=measured.backbone_flops * factor,
    )


def _scale_all(
    measured: Measured, factors: Mapping[str, float], *, working: float | None
) -> dict[str, Training]:
    trainings = measured.trainings.items()
    return {name: _scale(training, factors, working=working) for name, training in trainings}


def _scale(
    training: Training, factors: Mapping[str, float], *, working: float | None = None
) -> Training:
    """Other seconds of some stages; `working` times the memory of the steps, None: not known."""
    memory: Memory | None = None
    if training.memory is not None and working is not None:
        device = training.memory.device
        memory = replace(
            training.memory,
            working=training.memory.working * working,
            device=None if device is None else device * working,
        )
    return replace(training, phase=training.phase and training.phase.scaled(factors), memory=memory)


def _times(codecs: Mapping[str, CodecFigures], factor: float) -> dict[str, CodecFigures]:
    return {name: figures.times(factor) for name, figures in codecs.items()}
