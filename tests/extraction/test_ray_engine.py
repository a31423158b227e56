"""`extract --engine ray`: a real Ray on this machine, whose workers write the store of a folder."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cachedet.cli import app
from cachedet.errors import ConfigError, EngineError
from cachedet.extract import extract
from cachedet.extraction import ray_engine

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
        ({"engine": "rya"}, "engine.kind: expected local, ray, got 'rya'; nearest: 'ray'"),
        ({"ray_address": "auto"}, "--ray-address: of --engine ray; add it, or leave them out"),
        (
            {"engine": "ray", "rank": 0, "world_size": 2},
            "ray gives out the blocks itself: leave ra",
        ),
        ({"engine": "ray", "ray_address": "ray://a:1"}, "expected auto, HOST:PORT or local"),
        ({"engine": "ray", "ray_workers": 0}, "engine.workers: .*greater than or equal to 1"),
        ({"engine": "ray", "gpus_per_worker": -1}, "engine.gpus_per_worker: .*greater than or eq"),
        ({"engine": "ray", "cpus_per_worker": 0}, "engine.cpus_per_worker: .*greater than 0"),
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
