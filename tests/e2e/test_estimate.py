"""`estimate`, then the same extraction and training: one pass over eight images."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cachedet.backbone.frozen import load_backbone
from cachedet.cli import app
from cachedet.commands.estimate_tables import print_estimate
from cachedet.config.run import TrainConfig, dump_config
from cachedet.errors import InputError
from cachedet.estimate import (
    EstimateReport,
    change_measured,
    estimate,
    find_cuts,
    open_inputs,
    shape_store,
)
from cachedet.estimation.cluster_plan import plan_cluster
from cachedet.estimation.forecast import make_forecast
from cachedet.estimation.prediction import compare_extraction, compare_training
from cachedet.estimation.what_if import WhatIf, parse_what_if
from cachedet.extract import extract
from cachedet.store.codecs.registry import make_codec
from cachedet.train import train

HEADS = TrainConfig.model_validate(
    {
        "detector": {"kind": "retinanet", "neck": {"kind": "fpn", "channels": 16}, "num_convs": 1},
        "schedule": {"epochs": 1, "batch_size": 3, "optimizer": "adamw", "lr": 1e-4},
        "device": "cpu",
    }
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("estimate")


@pytest.fixture(scope="module")
def report(tiny: Any, folder: Path) -> EstimateReport:
    config = tiny.extract_config(folder / "train.zarr", codec="int8+zstd")
    return estimate(config, HEADS, seconds=0.3)


def test_nothing_stays_but_the_prediction(report: EstimateReport, folder: Path) -> None:
    assert [path.name for path in folder.iterdir()] == ["train.zarr.estimate.json"]
    assert report.prediction == folder / "train.zarr.estimate.json"


def test_every_figure_is_there(report: EstimateReport) -> None:
    assert report.sample == 8  # fewer images than the sample
    forecast = report.forecast
    assert list(forecast.modes) == ["cached", "partial_C4", "partial_C3", "live", "tuned"]
    for cut in forecast.cuts.values():
        assert cut.of_cached is not None
        assert cut.of_tuned is not None
        assert cut.trunk_seconds + cut.stages_seconds == pytest.approx(
            report.measured.backbone_seconds
        )
    assert forecast.cuts["C3"].nbytes < forecast.cuts["C4"].nbytes < forecast.nbytes
    for mode in forecast.modes.values():
        assert mode.failure == ""
        assert mode.seconds_per_epoch is not None
        assert mode.seconds_per_epoch > 0
        assert mode.ram is not None
        assert mode.ram > 50e6
    assert forecast.limit is not None
    assert forecast.limit > 1
    assert forecast.residency == "ram"
    assert forecast.extract_seconds > 0
    assert json.loads(json.dumps(report.to_json()))["forecast"]["nbytes"] == forecast.nbytes


def test_a_codec_that_is_not_measured_is_refused_at_once(report: EstimateReport) -> None:
    nowhere = report.extract.model_copy(update={"images": Path("/nowhere")})
    with pytest.raises(InputError, match=r"'int9' is not measured; nearest: 'int8'.*as --codec"):
        estimate(nowhere, report.heads, what_if=WhatIf(codec="int9"))


def test_what_a_person_reads(report: EstimateReport, capsys: pytest.CaptureFixture[str]) -> None:
    print_estimate(report, heads="small")
    shown = capsys.readouterr().out
    for words in ("8 images in 2 views", "int8+zstd (asked for)", "live frozen",
                  "; sparing the whole backbone would be ",
                  "last stages trained (from C4)", "cut at C3, the backbone is",
                  "repaid: live"):  # fmt: skip
        assert words in shown
    assert shown.startswith("is a cache worth it? ")
    assert "B + H" not in shown
    assert "what if" not in shown


def test_extract_and_train_heads_compare_with_it(
    report: EstimateReport, tiny: Any, folder: Path, options: list[str]
) -> None:
    store, heads = folder / "train.zarr", folder / "heads.yaml"
    config = tiny.extract_config(store, codec="int8+zstd")
    how = ["--views", "base,hflip", "--codec", config.codec, "--workers", str(config.workers)]
    how += ["--block-size", "3", "--batch-size", "2", "--json"]
    written = run_json("extract", *options[1:], *how, "--store", str(store))
    assert set(written["predicted"]) == {"bytes", "extraction seconds"}
    size = written["predicted"]["bytes"]
    assert size["predicted"] == report.forecast.nbytes
    assert size["actual"] == written["nbytes_written"]
    assert size["predicted"] == pytest.approx(size["actual"], rel=0.05)
    assert compare_extraction(extract(config), config) == {}  # nothing was written this time
    heads.write_text(dump_config(HEADS))
    training = ["train-heads", str(heads), "--train", str(store), "--run"]
    done = run_json(*training, str(folder / "run"), "--json")
    assert set(done["predicted"]) == {"seconds per epoch", "peak memory"}
    assert done["predicted"]["seconds per epoch"]["actual"] == done["step_seconds_per_epoch"]
    assert done["step_seconds_per_epoch"] <= done["seconds_per_epoch"]
    shown = CliRunner().invoke(app, [*training, str(folder / "shown")]).output
    assert re.search(r"^peak memory: .*B predicted, .*B actual \([+-]\d+%\)$", shown, re.M)
    other = HEADS.model_copy(update={"seed": 1, "precision": "bf16"})
    again = train(other, train_store=store, run=folder / "other")
    assert compare_training(again, other, store=store) == {}


def run_json(*words: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    values: dict[str, Any] = json.loads(result.stdout)
    return values


@pytest.fixture
def options(tiny: Any, tmp_path: Path) -> list[str]:
    return [
        "estimate",
        *("--images", str(tiny.paths.images), "--annotations", str(tiny.paths.train)),
        *("--store", str(tmp_path / "x.zarr"), "--image-size", "128", "--device", "cpu"),
        *("--backbone", "test_resnet", "--weights", str(tiny.weights)),
    ]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--what-if", "imge-size=800"], "unknown name 'imge-size'; nearest: 'image-size'"),
        (["--what-if", "disk=quick"], "--what-if disk: expected a number such as 500MB/s"),
        (["--codec", "int9"], "unknown codec 'int9'; nearest: 'int8'"),
        (["--views", "base,base"], "each view once"),
        (["--set", "detector.levels=[C9]"], "detector.levels asks for 'C9', the store holds C3"),
        (["--set", "views=[hflop]"], "has no 'hflop'; nearest: 'hflip'"),
        (["--set", "freeze_at=C9"], "test_resnet has no level 'C9'; it offers C1 (stride 2), C2"),
        (["--freeze-at", "C4"], "extracted with --freeze-at C4 lacks the levels above it: train"),
        (["--freeze-at", "C3", "--set", "freeze_at=C4"], "freeze_at: C3 (`--set freeze_at=C3`)"),
        (
            ["--backbone", "test_vit", "--weights", "none", "--set", "freeze_at=C4"],
            "test_vit cannot be cut",
        ),
        (["--store", "s3://bucket/x"], "`cachedet estimate` needs a local folder"),
    ],
)
def test_bad_input_is_one_message(options: list[str], more: list[str], message: str) -> None:
    done = CliRunner().invoke(app, [*options, *more])
    assert done.exit_code == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.thorough
def test_a_config_that_trains_stages_is_estimated_as_it_is(tiny: Any, tmp_path: Path) -> None:
    """And compared with it, on a store that ends at its cut."""
    heads = HEADS.model_copy(update={"freeze_at": "C4"})
    config = tiny.extract_config(tmp_path / "t.zarr", views="base", freeze_at="C4")
    report = estimate(config, heads, seconds=0.1)
    forecast = report.forecast
    assert (forecast.mode, forecast.rival) == ("partial_C4", "tuned")
    assert forecast.nbytes == pytest.approx(forecast.cuts["C4"].nbytes)
    done = compare_extraction(extract(config), config)
    assert done["bytes"]["predicted"] == pytest.approx(done["bytes"]["actual"], rel=0.05)
    trained = train(heads, train_store=config.store, run=tmp_path / "run")
    assert set(compare_training(trained, heads, store=config.store)) == {
        "seconds per epoch", "peak memory",
    }  # fmt: skip
    plain = train(heads.model_copy(update={"freeze_at": "C3"}), train_store=config.store,
                  run=tmp_path / "other")  # fmt: skip
    other = heads.model_copy(update={"freeze_at": "C3"})
    assert compare_training(plain, other, store=config.store) == {}


def test_cuts_that_there_are() -> None:
    """All levels but the last that the heads use; else why there are none."""
    hierarchical = load_backbone("test_resnet", weights="none")
    assert find_cuts(hierarchical, HEADS, stored_to=None) == (("C4", "C3"), "")
    detector = HEADS.detector.model_copy(update={"levels": ("C3", "C4")})
    fine = HEADS.model_copy(update={"detector": detector})
    assert find_cuts(hierarchical, fine, stored_to=None) == (("C3",), "")
    one = HEADS.model_copy(update={"detector": detector.model_copy(update={"levels": ("C3",)})})
    assert find_cuts(hierarchical, one, stored_to=None) == ((), "the heads use no level above C3")
    cuts, why = find_cuts(load_backbone("test_vit", weights="none"), HEADS, stored_to=None)
    assert cuts == ()
    assert why


def test_ctrl_c_leaves_nothing_behind(nursery: Any, options: list[str], tmp_path: Path) -> None:
    words = [*options, "--seconds", "60"]
    with nursery.start_command(words, before="import os; os.setsid()") as process:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob(".*/trial.zarr/commits/*.json")):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.5)  # into the trials of training
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []


def test_a_what_if_is_arithmetic(
    report: EstimateReport, tiny: Any, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bytes go with padded pixels and values a pixel; both backbones are timed on one noise."""
    text = "image-size=256,backbone=test_efficientnet,device-flops=1T,disk=1GB/s"
    change = parse_what_if(text)
    inputs = open_inputs(report.extract, HEADS, 8, 0.1)
    measured = change_measured(report.measured, inputs, change)
    assert measured.disk.read == 1e9
    specs = [load_backbone(f"test_{n}", weights="none").spec for n in ("resnet", "efficientnet")]
    values = [sum(level.channels / level.stride**2 for level in spec) for spec in specs]
    sizes = inputs.dataset.annotations.sizes_hw.tolist()
    pixels = [
        sum(math.prod(-(-round(a * side / max(size)) // 32) * 32 for a in size) for size in sizes)
        for side in (128, 256)
    ]
    factor = pixels[1] / pixels[0] * values[1] / values[0]
    assert measured.stored.nbytes == pytest.approx(report.measured.stored.nbytes * factor)
    forecast = make_forecast(measured)
    print_estimate(
        replace(report, measured=measured, forecast=forecast, what_if=change.to_json()),
        heads="small",
    )
    shown = capsys.readouterr().out
    assert "what if image-size=256, backbone=test_efficientnet" in shown
    assert "arithmetic on what was measured here" in shown
    assert "unknown" in shown  # its memory


def test_machines_and_a_bucket_are_planned(
    report: EstimateReport, tiny: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """COCO's images at 128 px: 96 x 128, two views; blocks of `block_size`, one size."""
    change = parse_what_if("dataset=coco,workers=8,storage=s3,bandwidth=1GB/s,latency=30ms")
    inputs = open_inputs(report.extract, HEADS, 8, 0.1)
    measured = change_measured(report.measured, inputs, change)
    pixels = sum(h * w for view in inputs.padded_sizes() for h, w in view.tolist())
    views, images = len(inputs.views), len(inputs.dataset.annotations)
    factor = 96 * 128 * views * images / pixels * 118_287 / images
    assert measured.stored.nbytes == pytest.approx(report.measured.stored.nbytes * factor)
    shape = shape_store(inputs, measured, change, codec=make_codec("fp16"), read=("C3", "C4"))
    assert shape.blocks == views * math.ceil(118_287 / report.extract.block_size)
    assert (shape.shards, shape.read_shards) == (len(inputs.backbone.spec), 2)
    here = shape_store(
        inputs, report.measured, WhatIf(), codec=make_codec("fp16"), read=("C3", "C4")
    )
    assert here.blocks * here.block_images == pytest.approx(images * views)
    plan = plan_cluster(measured, change, shape)
    changed = replace(report, what_if=change.to_json(), measured=measured, cluster=plan)
    print_estimate(changed, heads="small")
    shown = capsys.readouterr().out
    assert "8 machines and a bucket, simulated" in shown
    assert f"beside {shape.blocks:,} blocks" in shown
    assert changed.to_json()["cluster"]["traffic"]["puts"] == plan.traffic.puts
