"""What-ifs: what is read of them, and the arithmetic by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from cachedet.errors import InputError
from cachedet.estimation.forecast import make_forecast
from cachedet.estimation.measured import Measured
from cachedet.estimation.what_if import (
    BackboneChange,
    WhatIf,
    apply_what_if,
    parse_count,
    parse_flops,
    parse_rate,
    parse_what_if,
    with_backbone,
    with_codec,
    with_device,
    with_images,
    with_pixels,
)

Make = Callable[..., Measured]


def test_parsing_all_of_it() -> None:
    changed = parse_what_if(
        "image-size=800, backbone=resnet101,disk=500MB/s,device-flops=60T,images=118k,codec=int4"
    )
    assert changed == WhatIf(
        image_size=800,
        backbone="resnet101",
        disk=5e8,
        device_flops=6e13,
        images=118_000,
        codec="int4",
    )
    assert changed.to_json() == {
        "image-size": 800,
        "backbone": "resnet101",
        "disk": 5e8,
        "device-flops": 6e13,
        "images": 118_000,
        "codec": "int4",
    }


def test_machines_and_a_storage() -> None:
    changed = parse_what_if(
        "workers=64,storage=s3,bandwidth=2GB/s,latency=30ms,failing=1%,image-file=160kB"
    )
    assert changed == WhatIf(
        workers=64, storage="s3", bandwidth=2e9, latency=0.03, failing=0.01, image_file=1.6e5
    )
    assert parse_what_if("storage=s3,bandwidth=1GB/s,failing=0.05,latency=0s").failing == 0.05
    assert parse_what_if("dataset=coco") == WhatIf(dataset="coco", images=118_287)


def test_cuts_go_with_it(measured_cut_of: Make) -> None:
    """Bytes with pixels; stages as fast as the rest of a device; of another backbone nothing."""
    measured = measured_cut_of()
    larger = make_forecast(with_pixels(measured, 4.0))
    assert larger.cuts["C4"].nbytes == pytest.approx(6.4e9)
    assert larger.modes["partial_C4"].seconds_per_epoch == pytest.approx(104.0)
    assert make_forecast(with_images(measured, 200)).cuts["C4"].nbytes == pytest.approx(3.2e9)
    quicker = with_device(measured, 2e12)  # twice what it reaches here
    stages = quicker.trainings["partial_C4"].phase.stages
    assert stages == pytest.approx({"stages and heads": 12.0, "read": 4.0})
    change = BackboneChange(seconds=2.0, flops=2.0, heads=1.0, values=1.0)
    other = with_backbone(measured, change)
    assert (other.cuts, list(other.trainings)) == ({}, ["cached", "live", "tuned"])
    assert other.uncut == "of another backbone no cut was measured"
    with pytest.raises(InputError, match="what the stages behind C4 cost in another backbone is n"):
        with_backbone(measured_cut_of(freeze_at="C4"), change)


def test_nothing_is_otherwise() -> None:
    assert parse_what_if("") == WhatIf()
    assert WhatIf().to_json() == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("imagesize=800", r"unknown name 'imagesize'; nearest: 'image-size'"),
        ("colour=red", r"unknown name 'colour'; .*known: image-size, backbone, disk"),
        ("disk", r"--what-if disk: expected disk=VALUE, got 'disk'"),
        ("disk=", r"--what-if disk: expected disk=VALUE"),
        ("disk=fast", r"--what-if disk: expected a number such as 500MB/s, got 'fast'"),
        ("disk=1GB/s,disk=2GB/s", r"--what-if names disk twice"),
        ("image-size=big", r"--what-if image-size: expected 32 to 4096 pixels, got 'big'"),
        ("image-size=0", r"--what-if image-size: expected 32 to 4096 pixels, got '0'"),
        ("workers=0", r"--what-if workers: expected 1 to 4096 machines, got '0'"),
        ("images=0", r"--what-if images: expected a whole number from 1 on, such as 118000, got"),
        ("image-size=16", r"--what-if image-size: expected 32 to 4096 pixels, got '16'"),
        ("device-flops=60X", r"--what-if device-flops: expected operations per second"),
        ("workers=4", r"--what-if workers: machines share a storage: add storage=s3 and bandw"),
        ("image-file=1MB", r"--what-if image-file: machines share a storage"),
        ("storage=s3", r"storage=s3: how much does it take .* bandwidth=2GB/s"),
        ("storage=s4", r"--what-if storage: unknown 's4'; nearest: 's3'.*known: s3, gs, az"),
        ("worker=4", r"unknown name 'worker'; nearest: 'workers'"),
        ("workers=9999", r"--what-if workers: expected 1 to 4096 machines, got '9999'"),
        ("bandwidth=2Gbit/s", r"--what-if bandwidth: expected bytes per second .*units: B/s"),
        ("latency=30", r"--what-if latency: expected a time such as 30ms, got '30'; units: us, ms"),
        ("latency=99s", r"--what-if latency: expected at most 60 s, got '99s'"),
        ("failing=50%", r"--what-if failing: expected 0 to 20% of the requests, got '50%'"),
        ("failing=often", r"--what-if failing: expected a share such as 5%, got 'often'"),
        ("image-file=160", r"--what-if image-file: expected bytes such as 160kB, got '160'"),
        ("dataset=cocoo", r"--what-if dataset: unknown 'cocoo'; nearest: 'coco'"),
        ("dataset=coco,images=5", r"dataset=coco has 118287 images, and images=5 is given too"),
    ],
)
def test_what_cannot_be(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_what_if(text)


def test_another_disk(measured_of: Make) -> None:
    changed = apply_what_if(measured_of(), WhatIf(disk=4e6))
    assert (changed.disk.read, changed.disk.write) == (4e6, 4e6)
    assert make_forecast(changed).extract_seconds == 2 + 500


def test_larger_images(measured_of: Make) -> None:
    """Four times the pixels; files are read and decoded as before."""
    changed = with_pixels(measured_of(), 4.0)
    assert changed.stored.nbytes == 8e9
    assert changed.scan.seconds == 5.0
    assert changed.extract.stages == {
        "decode": 40.0,
        "backbone": 800.0,
        "encode": 80.0,
        "write": 40.0,
    }
    assert changed.extract.seconds == pytest.approx(960.0)
    cached, live = changed.trainings["cached"], changed.trainings["live"]
    assert cached.phase.seconds == pytest.approx(80.0)
    assert live.phase.stages == {"backbone and heads": 192.0, "decode": 10.0}
    assert cached.memory.ram == pytest.approx(0.7e9 + 4 * 0.3e9)
    assert (changed.backbone_seconds, changed.heads_seconds) == (120.0, 72.0)


def test_more_images(measured_of: Make) -> None:
    changed = make_forecast(with_images(measured_of(free_ram=80e9), 1000))
    assert changed.nbytes == 2e10
    assert changed.scan_seconds == 50.0
    assert changed.extract_seconds == 2402.0
    assert changed.modes["cached"].seconds_per_epoch == 200.0
    assert changed.limit == pytest.approx(48 / 18)


def test_a_faster_device(measured_of: Make) -> None:
    """3e13 FLOPs in 30 s are 1 T: at 10 T what is computed takes a tenth.

    Extraction is then held up by decoding (40 s, 1.2 times that as before), and live training too.
    """
    changed = with_device(measured_of(), 1e13)
    assert changed.extract.stages["backbone"] == pytest.approx(20.0)
    assert changed.extract.bottleneck == "decode"
    assert changed.extract.seconds == pytest.approx(48.0)
    live, cached = changed.trainings["live"].phase, changed.trainings["cached"].phase
    assert live.bottleneck == "decode"
    assert live.seconds == pytest.approx(10 * 50 / 48)
    assert cached.stages["heads"] == pytest.approx(1.8)
    assert cached.bottleneck == "read"
    assert changed.trainings["live"].memory is None  # another machine: nobody knows
    assert make_forecast(changed).limit == pytest.approx(48 / 18)


def test_another_codec(measured_of: Make) -> None:
    changed = with_codec(measured_of(), "int4")
    assert changed.stored.nbytes == 1e9
    assert changed.extract.stages["encode"] == pytest.approx(60.0)
    assert changed.extract.stages["write"] == pytest.approx(5.0)
    assert changed.extract.seconds == pytest.approx(240.0)


def test_a_codec_that_was_not_measured(measured_of: Make) -> None:
    message = r"'int5' is not measured; nearest: 'int8', 'int4'.*as --codec"
    with pytest.raises(InputError, match=message):
        apply_what_if(measured_of(), WhatIf(codec="int5"))


def test_another_backbone(measured_of: Make) -> None:
    """B doubles, H grows by half, five times the values.

    Fine-tuning: 27 s of heads, and twice the 108 - 18 s beyond them.
    """
    change = BackboneChange(seconds=2.0, flops=3.0, heads=1.5, values=5.0)
    changed = apply_what_if(measured_of(), WhatIf(backbone="resnet101"), backbone=change)
    assert (changed.backbone_seconds, changed.heads_seconds) == (60.0, 27.0)
    assert changed.backbone_flops == 9e13
    assert changed.stored.nbytes == 1e10
    assert changed.extract.stages == {
        "decode": 40.0,
        "backbone": 400.0,
        "encode": 100.0,
        "write": 50.0,
    }
    phases = {name: training.phase for name, training in changed.trainings.items()}
    assert phases["cached"].stages == {"heads": 27.0, "read": 20.0}
    assert phases["live"].stages["backbone and heads"] == pytest.approx(48 * 87 / 48)
    assert phases["tuned"].stages["backbone and heads"] == pytest.approx(27 + 90 * 2)
    assert make_forecast(changed).limit == pytest.approx(87 / 27)


def test_what_could_not_be_run_stays_unknown(measured_of: Make) -> None:
    measured = measured_of()
    failed = replace(measured.trainings["tuned"], phase=None, memory=None, failure="no memory")
    measured = replace(measured, trainings={**measured.trainings, "tuned": failed})
    change = BackboneChange(seconds=2.0, flops=2.0, heads=1.0, values=1.0)
    for what_if in (WhatIf(device_flops=1e13), WhatIf(images=7), WhatIf(image_size=800)):
        changed = apply_what_if(measured, what_if, pixels=2.0)
        assert changed.trainings["tuned"] == failed
    changed = apply_what_if(measured, WhatIf(backbone="x"), backbone=change)
    assert changed.trainings["tuned"] == failed


@pytest.mark.parametrize(
    ("parse", "text", "expected"),
    [
        (parse_rate, "500MB/s", 5e8),
        (parse_rate, "1.5 GB/s", 1.5e9),
        (parse_rate, "800kb", 8e5),
        (parse_rate, "7B/s", 7.0),
        (parse_rate, "2e3MB/s", 2e9),
        (parse_rate, ".5GB/s", 5e8),
        (parse_flops, "60T", 6e13),
        (parse_flops, "60TFLOPS", 6e13),
        (parse_flops, "300 gflop/s", 3e11),
        (parse_flops, "1e12", 1e12),
        (parse_count, "118k", 118_000),
        (parse_count, "800", 800),
        (parse_count, "1.5k", 1500),
    ],
)
def test_numbers_with_units(parse: Callable[..., float], text: str, expected: float) -> None:
    assert parse(text, where="x") == pytest.approx(expected)


@pytest.mark.parametrize(
    ("parse", "texts", "message"),
    [
        (
            parse_rate,
            ("500", "500Mbit/s", "fast", "0MB/s", "-5MB/s", "", "nanMB/s"),
            r"^here: expected .*500MB/s|above 0",
        ),
        (parse_flops, ("60X", "T", "inf", "0T", "1e400T"), r"^here: expected .*60T|above 0"),
        (parse_count, ("0", "1.5", "many", "3 apples", "-4"), "here: expected"),
    ],
)
def test_no_numbers(parse: Callable[..., float], texts: tuple[str, ...], message: str) -> None:
    for text in texts:
        with pytest.raises(InputError, match=message):
            parse(text, where="here")
