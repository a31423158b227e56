"""Extraction as a whole: overlap, order, bounded memory, failures, several processes."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from cachedet.backbone.compiled import CompiledBackbone
from cachedet.backbone.frozen import FrozenBackbone, load_backbone
from cachedet.cli import app
from cachedet.data.image_files import ImageFolder
from cachedet.errors import BadImageError, CodecError
from cachedet.extract import extract
from cachedet.extraction.inputs import InputLoader
from cachedet.extraction.pipeline import ExtractionPipeline, StageClock
from cachedet.store.files.leases import LeaseBook
from cachedet.store.files.owner import Owner
from cachedet.store.files.source import LocalFiles
from cachedet.store.format.commits import CommitRecord
from cachedet.store.format.layout import Block
from cachedet.store.format.plan import StorePlan
from cachedet.store.reader import FeatureStore
from cachedet.store.verify import describe_store, verify_store
from cachedet.store.writer import PackedImages, StoreWriter


def files(root: Path) -> dict[str, bytes]:
    paths = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


@pytest.mark.parametrize("codec", ["int8", "snr12"])
def test_workers_do_not_change_a_byte(tiny: Any, tmp_path: Path, codec: str) -> None:
    """Law L5: decoding threads, the order of ranks, a second process."""
    extract(tiny.extract_config(tmp_path / "a.zarr", codec=codec, workers=1))
    extract(tiny.extract_config(tmp_path / "b.zarr", codec=codec, workers=4, rank=1, world_size=3))
    assert files(tmp_path / "a.zarr") == files(tmp_path / "b.zarr")


def test_quality_is_recorded_and_shown(tiny: Any, tmp_path: Path) -> None:
    extract(tiny.extract_config(tmp_path / "s.zarr", codec="snr12"))
    quality = describe_store(tmp_path / "s.zarr")["quality"]
    assert set(quality) == {"C3", "C4", "C5"}
    assert all(10 < noise["snr_db"] < 16 for noise in quality.values())
    assert all(noise["saturation"] < 1e-3 for noise in quality.values())
    store, exact = FeatureStore.open(tmp_path / "s.zarr"), FeatureStore.open(tiny.train)
    noise = signal = 0.0
    for row in range(8):
        for view in ("base", "hflip"):
            true = exact.read(row, view)["C4"]
            noise += float((store.read(row, view)["C4"] - true).double().square().sum())
            signal += float(true.double().square().sum())
    assert store.quality["C4"].noise == pytest.approx(noise, rel=1e-4)
    assert store.quality["C4"].signal == pytest.approx(signal, rel=1e-4)


def test_the_report_names_the_slowest_stage(tiny: Any, tmp_path: Path) -> None:
    report = extract(tiny.extract_config(tmp_path / "s.zarr"))
    assert set(report.stages) == {"decode", "backbone", "encode", "write"}
    assert report.slowest_stage == min(report.stages, key=report.stages.__getitem__)
    assert report.blocks_missing == 0
    again = extract(tiny.extract_config(tmp_path / "s.zarr"))
    assert again.blocks_written == 0
    assert again.slowest_stage is None


class SlowWriter(StoreWriter):
    """Counts how many blocks' images are in memory at once."""

    held = most = 0
    lock = threading.Lock()

    def encode(self, block: Any, features: Any, *, start: int = 0) -> PackedImages:
        with self.lock:
            if start == 0:
                type(self).held += 1
            type(self).most = max(type(self).most, type(self).held)
        return super().encode(block, features, start=start)

    def commit(self, block: Any, images: Any) -> Any:
        time.sleep(0.05)
        record = super().commit(block, images)
        with self.lock:
            type(self).held -= 1
        return record


def pipeline_of(tiny: Any, root: Path, kind: type[StoreWriter], **changes: Any) -> Any:
    extract(tiny.extract_config(root))
    for path in (root / "commits").iterdir():
        path.unlink()
    backbone = load_backbone("test_resnet", weights=str(tiny.weights), image_size=128)
    plan = StorePlan.load(LocalFiles(root))
    writer = kind(root, plan)
    loader = InputLoader(
        files=ImageFolder(tiny.paths.images),
        names=list(plan.annotations.file_names),
        image_ids=plan.annotations.image_ids.tolist(),
        image_size=128,
        pad_multiple=32,
        preprocessing=backbone.preprocessing,
    )
    values = {"loader": loader, "backbone": backbone, "batch_size": 2, "workers": 2} | changes
    done: list[str] = []
    pipeline = ExtractionPipeline(
        writer=writer, on_block=lambda block, _: done.append(block.name), **values
    )
    return pipeline, writer, done


def test_no_more_than_two_blocks_are_held(tiny: Any, tmp_path: Path) -> None:
    pipeline, writer, done = pipeline_of(tiny, tmp_path / "s.zarr", SlowWriter)
    pipeline.run(writer.blocks)
    assert done == [block.name for block in writer.blocks]
    assert SlowWriter.most == 2
    assert files(tmp_path / "s.zarr") == files(tiny.train)


def test_encoding_threads_do_not_change_a_byte(tiny: Any, tmp_path: Path) -> None:
    """Law L5: batches that finish out of order, as on CUDA, where several threads encode."""
    pipeline, writer, done = pipeline_of(tiny, tmp_path / "s.zarr", UnevenWriter, encoders=3)
    pipeline.run(writer.blocks)
    assert done == [block.name for block in writer.blocks]
    assert files(tmp_path / "s.zarr") == files(tiny.train)
    assert pipeline.clock.stages["encode"].workers == 3


def test_blocks_written_at_once_do_not_change_a_byte(tiny: Any, tmp_path: Path) -> None:
    """As on CUDA, where one thread that writes is slower than the backbone."""
    pipeline, writer, done = pipeline_of(tiny, tmp_path / "s.zarr", PatientWriter, committers=3)
    pipeline.run(writer.blocks)
    assert sorted(done) == sorted(block.name for block in writer.blocks)
    assert files(tmp_path / "s.zarr") == files(tiny.train)


def test_a_compiled_backbone_fills_the_same_store(tiny: Any, tmp_path: Path) -> None:
    """Blocks of three in batches of two: the last image of each is not compiled for anew."""
    plain = load_backbone("test_resnet", weights=str(tiny.weights), image_size=128)
    compiled = CompiledBackbone(plain, batch_size=2, compiler="eager")
    pipeline, writer, _ = pipeline_of(tiny, tmp_path / "s.zarr", StoreWriter, backbone=compiled)
    pipeline.run(writer.blocks)
    require_alike(tmp_path / "s.zarr", tiny.train)


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_what_was_begun_compiled_goes_on_without(tiny: Any, tmp_path: Path) -> None:
    store = tmp_path / "s.zarr"
    extract(tiny.extract_config(store, compile=True))
    next((store / "commits").iterdir()).unlink()
    report = extract(tiny.extract_config(store))
    assert (report.blocks_written, report.blocks_missing) == (1, 0)
    require_alike(store, tiny.train)


def require_alike(store: Path, other: Path) -> None:
    """Of the same inputs, and in every feature within what law L5 allows another batch."""
    found, expected = FeatureStore.open(store), FeatureStore.open(other)
    assert found.manifest.fingerprint() == expected.manifest.fingerprint()
    for row in range(len(expected)):
        for view in expected.manifest.views:
            for level, maps in expected.read(row, view).items():
                torch.testing.assert_close(found.read(row, view)[level], maps, rtol=1e-5, atol=1e-5)


class PatientWriter(StoreWriter):
    """Commits its first block when another one has been."""

    other = threading.Event()

    def commit(self, block: Block, images: Sequence[PackedImages]) -> CommitRecord | None:
        is_first = block is self.blocks[0]
        assert not is_first or self.other.wait(timeout=60)
        record = super().commit(block, images)
        self.other.set()
        return record


class UnevenWriter(StoreWriter):
    """Takes longest for the first batch of a block."""

    def encode(self, block: Any, features: Any, *, start: int = 0) -> PackedImages:
        time.sleep(0.05 if start == 0 else 0.0)
        return super().encode(block, features, start=start)


class CountingWriter(StoreWriter):
    """Notes how many threads torch may use where it encodes."""

    counts: set[int] = set()  # noqa: RUF012

    def encode(self, block: Any, features: Any, *, start: int = 0) -> PackedImages:
        self.counts.add(torch.get_num_threads())
        return super().encode(block, features, start=start)


def test_only_the_backbone_uses_several_cores(tiny: Any, tmp_path: Path) -> None:
    """A team of torch's threads in each decoding thread is 256 threads on 16 cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        pipeline, writer, _ = pipeline_of(tiny, tmp_path / "s.zarr", CountingWriter)
        seen = []
        pipeline._backbone.register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
        pipeline.run(writer.blocks)
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {2}
    assert CountingWriter.counts == {1}


class Broken(FrozenBackbone):
    """Gives NaN from the fifth image on."""

    seen = 0

    def forward(self, images: torch.Tensor) -> Any:
        features = super().forward(images)
        type(self).seen += len(images)
        if type(self).seen > 4:
            features["C4"][0, 0, 0, 0] = float("nan")
        return features


def test_a_bad_feature_stops_the_run_and_names_the_image(tiny: Any, tmp_path: Path) -> None:
    good = load_backbone("test_resnet", weights=str(tiny.weights), image_size=128)
    same = {name: getattr(good, name) for name in ("name", "model", "spec", "preprocessing")}
    broken = Broken(**same, is_nhwc=False, weights="random")
    pipeline, writer, done = pipeline_of(tiny, tmp_path / "s.zarr", StoreWriter, backbone=broken)
    with pytest.raises(CodecError, match=r"train_\d+.jpg: level C4 holds nan"):
        pipeline.run(writer.blocks)
    assert len(done) <= 2
    assert verify_store(tmp_path / "s.zarr", deep=True).bad == ()


def test_a_image_that_vanishes_stops_the_run(tiny: Any, tmp_path: Path) -> None:
    pipeline, writer, done = pipeline_of(tiny, tmp_path / "s.zarr", StoreWriter)
    pipeline._loader.names[4] = "gone.jpg"
    with pytest.raises(BadImageError, match=r"gone.jpg: No such file"):
        pipeline.run(writer.blocks)
    assert len(done) < len(writer.blocks)


def words_of(tiny: Any, store: Path, *more: str) -> list[str]:
    """The command without its first word."""
    inputs = ["--images", tiny.paths.images, "--annotations", tiny.paths.train, "--store", store]
    model = ["--backbone", "test_resnet", "--weights", tiny.weights, "--image-size", 128]
    rest = [
        "--views",
        "base,hflip",
        "--codec",
        "fp32",
        "--block-size",
        "3",
        "--batch-size",
        "2",
        "--device",
        "cpu",
    ]
    return ["extract", *map(str, [*inputs, *model, *rest]), *more]


def test_ranks_started_together_fill_one_store(tiny: Any, nursery: Any, tmp_path: Path) -> None:
    """As torchrun would start them; the same rank twice does no harm (fault F6)."""
    store = tmp_path / "s.zarr"
    processes = [
        nursery.start_command(
            words_of(tiny, store, "--json"), environment={"RANK": rank, "WORLD_SIZE": "2"}
        )
        for rank in ("0", "1", "1")
    ]
    outputs = [process.communicate() for process in processes]
    reports = [json.loads(output) for output, _ in outputs]
    total = reports[0]["blocks_total"]
    assert sum(report["blocks_written"] for report in reports) == total, outputs
    last = extract(tiny.extract_config(store))  # whatever a rank left to a living one is there
    assert last.blocks_missing == 0
    assert files(store) == files(tiny.train)


def test_ctrl_c_is_one_line_and_the_same_command_continues(
    tiny: Any, nursery: Any, tmp_path: Path
) -> None:
    store = tmp_path / "s.zarr"
    with nursery.start_command(words_of(tiny, store, "--block-size", "1")) as process:
        while process.poll() is None and len(list(store.glob("commits/*.json"))) < 2:
            time.sleep(0.002)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate()
    if process.returncode != 0:  # it may have been quicker than we
        assert process.returncode == 130
        assert "interrupted; `extract` continues with the same command" in errors
        assert "Traceback" not in errors
    report = extract(tiny.extract_config(store, block_size=1))
    assert not list(store.glob("leases/*.lease"))  # nor of one that was cut off while it was made
    assert report.blocks_missing == 0
    assert verify_store(store, deep=True).is_good
    assert not list(store.rglob("*.tmp"))


def without_records(tiny: Any, store: Path, count: int) -> list[Path]:
    """A store that lacks some blocks; where their records would be."""
    extract(tiny.extract_config(store))
    records = sorted((store / "commits").iterdir())[:count]
    for record in records:
        record.rename(store.parent / record.name)
    return records


def test_blocks_left_to_others_are_said_last(tiny: Any, tmp_path: Path) -> None:
    """The exit status is 0: nothing is wrong, but the store is unfinished."""
    store = tmp_path / "s.zarr"
    held, _ = without_records(tiny, store, 2)
    arguments = words_of(tiny, store)
    assert LeaseBook(store).take(held.stem)
    report = CliRunner().invoke(app, [*arguments, "--json"])
    assert json.loads(report.stdout)["blocks_missing"] == 1
    (store / "commits" / sorted(p.name for p in (store / "commits").iterdir())[-1]).unlink()
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 0
    total = json.loads(report.stdout)["blocks_total"]
    assert shown.stdout.splitlines()[-2:] == [
        f"UNFINISHED: 1 block of {total} left to other writers that are at work.",
        "When they have ended, run the same `cachedet extract` again: it writes what is still "
        "missing, or says that nothing is.",
    ]
    last = shown.stderr.splitlines()[-1]
    assert last.startswith("extract: ")
    assert "more images by other writers" in last
    assert "left, ends" not in last


def test_waiting_for_another_machine_is_said_and_holds_nothing_back(
    tiny: Any, tmp_path: Path
) -> None:
    store = tmp_path / "s.zarr"
    theirs, ours = without_records(tiny, store, 2)
    assert LeaseBook(store, owner=Owner(host="another", pid=1, start=1)).take(theirs.stem)
    notes: list[str] = []

    def watch(frame: Any, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_name == "note":
            notes.append(frame.f_locals["note"])
            patience = time.monotonic() + 20
            while not ours.exists() and time.monotonic() < patience:
                time.sleep(0.01)
            if not theirs.exists():
                (tmp_path / theirs.name).rename(theirs)  # the other machine commits

    sys.setprofile(watch)
    try:
        report = extract(tiny.extract_config(store))
    finally:
        sys.setprofile(None)
    assert notes[:2] == ["waiting for another machine, which holds 1 block", ""]
    assert (report.blocks_written, report.blocks_missing) == (1, 0)


def test_a_store_is_no_url(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refused = CliRunner().invoke(app, words_of(tiny, Path("x"), "--store", "http://b/x"))
    assert refused.exit_code == 1
    assert "error: http://b/x cannot be written: cachedet writes stores into" in refused.stderr
    assert list(tmp_path.iterdir()) == []


def test_rates_are_of_busy_time_and_all_workers() -> None:
    clock = StageClock({"decode": 2, "backbone": 1})
    assert clock.slowest is None
    assert clock.describe() == ""
    most = 0.0
    for _ in range(2):
        began = time.perf_counter()
        with clock.busy("decode", 1) as work:
            time.sleep(0.02)
            work.nbytes = 500
        most += time.perf_counter() - began
        time.sleep(0.03)  # idle time does not count
    with clock.busy("backbone", 4):
        time.sleep(0.08)
    decode, backbone = clock.stages["decode"], clock.stages["backbone"]
    assert 0.04 <= decode.seconds <= most
    assert decode.images_per_second == 2 * 2 / decode.seconds
    assert decode.bytes_per_second == 1000 * 2 / decode.seconds
    slow = min(("decode", "backbone"), key=lambda name: clock.stages[name].images_per_second)
    assert clock.slowest == slow
    assert f"{backbone.images_per_second:.0f}/s 0 MB/s; slowest: {slow}" in clock.describe()
