"""Forecasts for a machine, a backbone or data that are not here: arithmetic on measurements."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from cachedet.errors import InputError, nearest_names
from cachedet.estimation.measured import CodecFigures, Measured, Memory, Phase, Training

_NUMBER = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:e([+-]?[0-9]+))?\s*(.*?)\s*")
_PREFIXES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "p": 1e15}


def parse_rate(text: str, *, where: str) -> float:
    """``500MB/s`` -> 5e8 bytes per second; the unit must be there, the ``/s`` need not.

    Raises InputError; `where` names the option.
    """
    value, unit = _split(text, where=where, example="500MB/s")
    prefix = unit.removesuffix("/s").strip()
    if prefix[-1:].lower() != "b" or prefix[:-1].lower() not in _PREFIXES:
        raise InputError(
            f"{where}: expected bytes per second such as 500MB/s, got {text!r}; units: B/s, kB/s, "
            "MB/s, GB/s"
        )
    return _positive(value * _PREFIXES[prefix[:-1].lower()], text, where=where)


def parse_flops(text: str, *, where: str) -> float:
    """``60T`` or ``60TFLOPS`` -> 6e13 floating-point operations per second. Raises InputError."""
    value, unit = _split(text, where=where, example="60T")
    prefix = re.sub(r"(flops?)?(/s)?$", "", unit.lower())
    if prefix not in _PREFIXES:
        raise InputError(
            f"{where}: expected operations per second such as 60T, got {text!r}; units: G, T, P"
        )
    return _positive(value * _PREFIXES[prefix], text, where=where)


def parse_count(text: str, *, where: str) -> int:
    """``118000`` or ``118k`` -> a whole number from 1 on. Raises InputError."""
    value, unit = _split(text, where=where, example="118000")
    number = value * _PREFIXES.get(unit.lower(), math.nan)
    if not (number >= 1 and number == int(number)):
        raise InputError(f"{where}: expected a whole number such as 118000, got {text!r}")
    return int(number)


def _split(text: str, *, where: str, example: str) -> tuple[float, str]:
    found = _NUMBER.fullmatch(text)
    if found is None:
        raise InputError(f"{where}: expected a number such as {example}, got {text!r}")
    return float(f"{found[1]}e{found[2] or 0}"), found[3]


def _positive(value: float, text: str, *, where: str) -> float:
    if not 0 < value < math.inf:
        raise InputError(f"{where}: expected a number above 0, got {text!r}")
    return value


_SIDES = range(32, 4097)  # pixels, as `--image-size` takes them
_COMPUTED = ("backbone", "heads", "backbone and heads")  # stages that a device computes


@dataclass(frozen=True, kw_only=True)
class WhatIf:
    """What shall be otherwise; None: as it is here.

    Attributes:
        image_size: long side of an image in pixels.
        backbone: another one.
        disk: bytes per second, read and written.
        device_flops: that a device sustains on this backbone.
        images: of the data set, of the same kind.
        codec: one of those that were measured.
    """

    image_size: int | None = None
    backbone: str | None = None
    disk: float | None = None
    device_flops: float | None = None
    images: int | None = None
    codec: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Only what is otherwise, as it is written."""
        return {
            name.replace("_", "-"): value for name, value in vars(self).items() if value is not None
        }


@dataclass(frozen=True, kw_only=True)
class BackboneChange:
    """Another backbone over the one that was measured: quotients.

    Attributes:
        seconds: of a forward.
        flops: of a forward.
        heads: FLOPs of the heads' step, whose neck meets other channels.
        values: cached.
    """

    seconds: float
    flops: float
    heads: float
    values: float


def parse_what_if(text: str) -> WhatIf:
    """``image-size=800,disk=500MB/s``.

    Raises InputError on an unknown name (with the nearest), a repeated one, or no number.
    """
    known = [field.name.replace("_", "-") for field in fields(WhatIf)]
    found: dict[str, Any] = {}
    for item in filter(None, map(str.strip, text.split(","))):
        name, equals, value = (part.strip() for part in item.partition("="))
        if name not in known:
            raise InputError(
                f"--what-if: unknown name {name!r}{nearest_names(name, known)}; known: "
                f"{', '.join(known)}"
            )
        if not equals or not value:
            raise InputError(f"--what-if {name}: expected {name}=VALUE, got {item!r}")
        if name in found:
            raise InputError(f"--what-if names {name} twice")
        found[name] = _parse(name, value)
    return WhatIf(**{name.replace("-", "_"): value for name, value in found.items()})


def apply_what_if(
    measured: Measured,
    change: WhatIf,
    *,
    pixels: float = 1.0,
    backbone: BackboneChange | None = None,
) -> Measured:
    """What would have been measured.

    Args:
        measured: here.
        change: what is otherwise.
        pixels: padded pixels at the other image size over those here.
        backbone: what the other backbone changes.

    Raises InputError on a codec that was not measured.
    """
    if change.codec is not None:
        measured = with_codec(measured, change.codec)
    if backbone is not None:
        measured = with_backbone(measured, backbone)
    if change.image_size is not None:
        measured = with_pixels(measured, pixels)
    if change.images is not None:
        measured = with_images(measured, change.images)
    if change.device_flops is not None:
        measured = with_device(measured, change.device_flops)
    if change.disk is not None:
        measured = replace(
            measured, disk=replace(measured.disk, read=change.disk, write=change.disk)
        )
    return measured


def with_codec(measured: Measured, codec: str) -> Measured:
    """Another codec: its bytes are written, and encoding takes as it was measured alone."""
    if codec not in measured.codecs:
        raise InputError(
            f"--what-if codec: {codec!r} was not measured{nearest_names(codec, measured.codecs)}; "
            f"measured: {', '.join(measured.codecs)}. Give it as --codec to measure it"
        )
    before, after = measured.stored, measured.codecs[codec]
    factors = {
        "encode": after.encode_seconds / before.encode_seconds,
        "write": after.nbytes / before.nbytes,
    }
    return replace(measured, codec=codec, extract=measured.extract.scaled(factors))


def with_pixels(measured: Measured, factor: float) -> Measured:
    """Larger or smaller images: all but reading files goes with the pixels."""
    return replace(
        measured,
        codecs={name: _times(figures, factor) for name, figures in measured.codecs.items()},
        fit=measured.fit.times(factor),
        extract=measured.extract.scaled(dict.fromkeys(("backbone", "encode", "write"), factor)),
        trainings={
            name: _training(training, {**dict.fromkeys(_COMPUTED, factor), "read": factor}, factor)
            for name, training in measured.trainings.items()
        },
        backbone_seconds=measured.backbone_seconds * factor,
        heads_seconds=measured.heads_seconds * factor,
        backbone_flops=measured.backbone_flops * factor,
    )


def with_images(measured: Measured, images: int) -> Measured:
    """More or fewer images like these."""
    factor = images / measured.images
    return replace(
        measured,
        images=images,
        showings=round(measured.showings * factor),
        codecs={name: _times(figures, factor) for name, figures in measured.codecs.items()},
        scan=measured.scan.times(factor),
        extract=measured.extract.times(factor),
        trainings={
            name: replace(
                training, phase=None if training.phase is None else training.phase.times(factor)
            )
            for name, training in measured.trainings.items()
        },
        backbone_seconds=measured.backbone_seconds * factor,
        heads_seconds=measured.heads_seconds * factor,
        backbone_flops=measured.backbone_flops * factor,
    )


def with_device(measured: Measured, flops: float) -> Measured:
    """A device that reaches `flops` per second on the backbone.

    The heads are taken to become faster as much as the backbone: they are as far from a device's
    peak there as they are here. What needs no device stays as it is.
    """
    factor = measured.backbone_flops / flops / measured.backbone_seconds
    factors = dict.fromkeys(_COMPUTED, factor)
    return replace(
        measured,
        fit=measured.fit.scaled(factors),
        extract=measured.extract.scaled(factors),
        trainings={
            name: _training(training, factors, None)
            for name, training in measured.trainings.items()
        },
        backbone_seconds=measured.backbone_seconds * factor,
        heads_seconds=measured.heads_seconds * factor,
    )


def with_backbone(measured: Measured, change: BackboneChange) -> Measured:
    """Another backbone: B, the heads' part of H, and the bytes change; memory is then unknown."""
    before = measured.backbone_seconds, measured.heads_seconds
    after = before[0] * change.seconds, before[1] * change.heads
    live = sum(after) / sum(before)
    encoded = {"backbone": change.seconds, "encode": change.values, "write": change.values}
    return replace(
        measured,
        codecs={name: _times(figures, change.values) for name, figures in measured.codecs.items()},
        fit=measured.fit.times(change.seconds),
        extract=measured.extract.scaled(encoded),
        trainings={
            "cached": _training(
                measured.trainings["cached"], {"heads": change.heads, "read": change.values}, None
            ),
            "live": _training(measured.trainings["live"], {"backbone and heads": live}, None),
            "tuned": _tuned(measured, after[1], change.seconds),
        },
        backbone_seconds=after[0],
        heads_seconds=after[1],
        backbone_flops=measured.backbone_flops * change.flops,
    )


def _tuned(measured: Measured, heads: float, factor: float) -> Training:
    """All of a fine-tuning step beyond the heads goes with the backbone."""
    tuned = measured.trainings["tuned"]
    if tuned.phase is None:
        return tuned
    before = tuned.phase.stages["backbone and heads"]
    after = heads + max(0.0, before - measured.heads_seconds) * factor
    return _training(tuned, {"backbone and heads": after / before}, None)


def _training(training: Training, factors: Mapping[str, float], working: float | None) -> Training:
    """Other seconds of some stages; `working` times the memory of the steps, None: not known."""
    phase: Phase | None = None if training.phase is None else training.phase.scaled(factors)
    memory: Memory | None = None
    if training.memory is not None and working is not None:
        device = training.memory.device
        memory = replace(
            training.memory,
            working=training.memory.working * working,
            device=None if device is None else device * working,
        )
    return replace(training, phase=phase, memory=memory)


def _times(figures: CodecFigures, factor: float) -> CodecFigures:
    return CodecFigures(
        nbytes=figures.nbytes * factor,
        unpacked=figures.unpacked * factor,
        encode_seconds=figures.encode_seconds * factor,
    )


def _parse(name: str, value: str) -> Any:
    where = f"--what-if {name}"
    if name == "disk":
        return parse_rate(value, where=where)
    if name == "device-flops":
        return parse_flops(value, where=where)
    if name in ("backbone", "codec"):
        return value
    number = parse_count(value, where=where)
    if name == "image-size" and number not in _SIDES:
        raise InputError(
            f"{where}: expected {_SIDES.start} to {_SIDES.stop - 1} pixels, got {value!r}"
        )
    return number
