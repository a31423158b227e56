"""`extract --engine ray`: a real Ray on this machine, whose workers write the store of a folder."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cachedet.cli import app
from cachedet.errors import BadImageError, ConfigError, EngineError
from cachedet.extract import extract
from cachedet.extraction import ray_engine
from cachedet.store.prune import prune_store
from cachedet.store.verify import verify_store

ray = pytest.importorskip("ray", reason="pip install 'cachedet[ray]'")
ONE = {"kind": "ray", "workers": 1}


@pytest.fixture(scope="module")
def cluster(s3_session: Any) -> Iterator[None]:
    """Two cores of Ray, which know the S3 server."""
    ray.init(
        "local",
        num_cpus=2,
        object_store_memory=100 << 20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    yield
    ray.shutdown()


def words_of(tiny: Any, store: object, **changes: object) -> list[str]:
    values = tiny.extract_config(store).model_dump(mode="json") | changes
    names = (
        "images", "annotations", "store", "backbone", "weights", "image_size", "views", "codec",
        "block_size", "batch_size", "device", *changes,
    )  # fmt: skip
    pairs = ((f"--{name.replace('_', '-')}", str(values[name])) for name in names)
    return ["extract", *itertools.chain.from_iterable(pairs)]


def refused(tiny: Any, store: object, **changes: object) -> str:
    """The message of a call that ends before the backbone is opened."""
    words = words_of(tiny, store, **changes)
    words[words.index("--backbone") + 1] = "there_is_no_such_network"
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 1
    assert "there_is_no_such_network" not in result.stderr
    return str(result.stderr)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine": "rya"}, "--engine: expected local, ray, got 'rya'; nearest: 'ray'"),
        ({"ray_address": "auto"}, "--ray-address: of --engine ray; add it, or leave them out"),
        (
            {"engine": "ray", "rank": 0, "world_size": 2},
            "ray gives out the blocks itself: leave ra",
        ),
        ({"engine": "ray", "ray_address": "ray://a:1"}, "expected auto, HOST:PORT or local"),
        ({"engine": "ray", "ray_workers": 0}, "--ray-workers: expected at least 1"),
        ({"engine": "ray", "gpus_per_worker": -1}, "--gpus-per-worker: expected at least 0"),
        ({"engine": "ray", "cpus_per_worker": 0}, "--cpus-per-worker: expected more than 0"),
        ({"engine": "ray", "ray_address": "127.0.0.1:9"}, "no Ray at 127.0.0.1:9 .*refused"),
        ({"engine": "ray", "ray_address": "127.0.0.1:x"}, "no Ray at 127.0.0.1:x .*invalid"),
    ],
)
def test_what_cannot_be_is_one_message(
    tiny: Any, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    said = refused(tiny, tmp_path / "s.zarr", **changes)
    assert said.startswith("error: ")
    with pytest.raises(ConfigError, match=message):
        raise ConfigError(said)
    assert not (tmp_path / "s.zarr").exists()


def test_without_ray_the_message_names_the_extra(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "pip install 'cachedet[ray]'" in refused(tiny, tmp_path / "s.zarr", engine="ray")


def test_it_writes_the_store_of_one_process(
    tiny: Any, tmp_path: Path, store_kit: Any, cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And says what there is where there is no room; called again it has nothing to do."""
    monkeypatch.setattr(ray_engine, "_PATIENCE", 0.2)
    monkeypatch.setenv("SLURM_PROCID", "1")  # one driver, whatever started it
    monkeypatch.setenv("SLURM_NTASKS", "2")
    for wants, words in {
        "cpus_per_worker": r"9 CPU, 0 GPU on one machine\): free are 2 of 2 CPU, 0 of 0 GPU",
        "gpus_per_worker": r"1 CPU, 9 GPU on one machine\): free are 2 of 2 CPU, 0 of 0 GPU",
    }.items():
        with pytest.raises(EngineError, match=rf"^Ray at auto has no room for a worker \({words}"):
            extract(tiny.extract_config(tmp_path / "s.zarr", engine={"kind": "ray", wants: 9}))
    monkeypatch.chdir(tmp_path)
    report = extract(tiny.extract_config(Path("s.zarr"), engine=ONE))
    assert (report.blocks_written, report.blocks_missing) == (report.blocks_total, 0)
    assert report.nbytes_written == extract(tiny.extract_config(tmp_path / "t.zarr")).nbytes_written
    assert report.stages.keys() == {"decode", "backbone", "encode", "write"}
    assert report.slowest_stage in report.stages
    assert store_kit.files(tmp_path / "s.zarr") == store_kit.files(tiny.train)
    assert extract(tiny.extract_config(Path("s.zarr"), engine=ONE)).blocks_written == 0


def workers_of_ray() -> list[int]:
    """Processes of ours: children of the daemon that this process started."""
    parents, found = {}, []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat, words = (folder / "stat").read_text(), (folder / "cmdline").read_bytes()
        except OSError:
            continue
        pid = int(folder.name)
        parents[pid] = int(stat.rpartition(")")[2].split()[1])
        if words.startswith(b"ray::BlockWorker"):
            found.append(pid)
    return [pid for pid in found if parents.get(parents[pid]) == os.getpid()]


@pytest.mark.parametrize("place", ["folder", "bucket"])
def test_workers_that_are_killed_lose_no_block(
    tiny: Any, tmp_path: Path, s3: Any, store_kit: Any, cluster: None, thorough: bool, place: str
) -> None:
    if not thorough:
        pytest.skip("takes 20 s each: pytest --thorough")
    store = tmp_path / "s.zarr" if place == "folder" else s3.new_url()
    kills: list[int] = []
    is_over = threading.Event()

    def kill() -> None:
        while not is_over.wait(1.0) and len(kills) < 6:
            for pid in workers_of_ray()[:1]:
                os.kill(pid, signal.SIGKILL)
                kills.append(pid)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        s3.before = lambda method, key: time.sleep(0.1) if method == "PUT" else None
        config = tiny.extract_config(store, block_size=1, engine={"kind": "ray", "workers": 2})
        report = extract(config)
    finally:
        is_over.set()
        thread.join()
    assert kills
    assert report.blocks_missing == 0
    s3.forget()
    extract(tiny.extract_config(tmp_path / "whole.zarr", block_size=1))
    assert verify_store(store, deep=True).good == report.blocks_total
    prune_store(store, dry_run=False)
    if place == "folder":
        assert store_kit.files(tmp_path / "s.zarr") == store_kit.files(tmp_path / "whole.zarr")
    report = prune_store(store, dry_run=True)
    assert not any(some.paths for some in report.waste)


def test_images_that_a_worker_cannot_read_end_it_with_one_message(
    tiny: Any, tmp_path: Path, cluster: None, thorough: bool
) -> None:
    """They are there while the driver checks them."""
    if not thorough:
        pytest.skip("takes 5 s: pytest --thorough")
    shutil.copytree(tiny.paths.images, tmp_path / "images")
    config = tiny.extract_config(tmp_path / "s.zarr", images=tmp_path / "images", engine=ONE)

    def fit_then_move() -> None:
        while not (tmp_path / "s.zarr/manifest.json").exists():
            time.sleep(0.001)
        (tmp_path / "images").rename(tmp_path / "moved")

    thread = threading.Thread(target=fit_then_move)
    thread.start()
    with pytest.raises(BadImageError, match=r"images/.* \(on the machine .*, which needs images"):
        extract(config)
    thread.join()
    until = time.monotonic() + 20
    while workers_of_ray() and time.monotonic() < until:
        time.sleep(0.05)
    assert workers_of_ray() == []


def test_ctrl_c_ends_it_and_the_next_call_goes_on(
    tiny: Any, tmp_path: Path, store_kit: Any, nursery: Any, thorough: bool
) -> None:
    """With a Ray of its own, which ends with it."""
    if not thorough:
        pytest.skip("takes 30 s: pytest --thorough")
    store = tmp_path / "s.zarr"
    words = words_of(tiny, store, engine="ray", ray_address="local", ray_workers=1)
    words[words.index("--block-size") + 1] = "1"
    with nursery.start_command([*words, "--json"]) as process:
        while process.poll() is None and len(list(store.glob("commits/*.json"))) < 2:
            time.sleep(0.001)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate()
    assert process.wait() == 130
    assert output == ""
    assert "Traceback" not in errors
    assert not verify_store(store, deep=True).bad
    extract(tiny.extract_config(store, block_size=1))
    extract(tiny.extract_config(tmp_path / "whole.zarr", block_size=1))
    prune_store(store, dry_run=False)
    assert store_kit.files(store) == store_kit.files(tmp_path / "whole.zarr")
