"""`extract` into an object storage on this machine: the store of a folder, come what may."""

from __future__ import annotations

import itertools
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cachedet.cli import app
from cachedet.errors import RemoteStoreError, StoreError
from cachedet.extract import extract
from cachedet.extraction.ranks import Rank, blocks_to_try
from cachedet.store.files.bucket import Bucket
from cachedet.store.files.depot import open_depot
from cachedet.store.prune import prune_store
from cachedet.store.reader import FeatureStore
from cachedet.store.verify import verify_store

pytest.importorskip("obstore", reason="pip install 'cachedet[remote]'")


def contents(url: str) -> dict[str, bytes]:
    """Everything of a store in a bucket but what writers work with."""
    bucket = open_depot(url)
    assert isinstance(bucket, Bucket)
    found = {key: bucket.find(key) for key in bucket.sizes()}
    return {
        key: one.content
        for key, one in found.items()
        if one is not None and not key.startswith("leases/")
    }


def of_folder(root: Path, kit: Any) -> dict[str, bytes]:
    return {k: v for k, v in kit.files(root).items() if not k.startswith("leases/")}


def committed(url: str) -> int:
    return len(open_depot(url).sizes("commits"))


def is_clean(url: str) -> bool:
    """Whether `prune` finds nothing that nobody needs."""
    report = prune_store(url, dry_run=True)
    return not report.left and not any(some.paths for some in report.waste)


def test_it_is_the_store_of_a_folder(tiny: Any, s3: Any, store_kit: Any) -> None:
    """And called again it has nothing to do; views are added to it; training reads it."""
    url = s3.new_url()
    report = extract(tiny.extract_config(url, views="base"))
    assert (report.store, report.blocks_missing) == (url, 0)
    report = extract(tiny.extract_config(url))
    assert report.views == ("base", "hflip")
    assert report.blocks_written == report.blocks_total // 2
    written, of_a_folder = contents(url), of_folder(tiny.train, store_kit)
    made_at_once = {k: v for k, v in of_a_folder.items() if k != "manifest.json"}
    assert {key: written[key] for key in made_at_once} == made_at_once
    assert extract(tiny.extract_config(url)).blocks_written == 0
    assert is_clean(url)
    assert FeatureStore.open(url).missing_blocks() == []


def test_several_writers_share_the_work(tiny: Any, s3: Any, store_kit: Any) -> None:
    url = s3.new_url()
    reports: list[Any] = []

    def work(rank: int) -> None:
        reports.append(extract(tiny.extract_config(url, block_size=1, rank=rank, world_size=2)))

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    total = reports[0].blocks_total
    assert [report.blocks_missing for report in reports] == [0, 0]
    assert sum(report.blocks_written for report in reports) == total
    assert verify_store(url, deep=True).is_good
    assert is_clean(url)


def test_a_server_that_fails_and_is_ended_and_comes_back(
    tiny: Any, s3: Any, store_kit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One answer of 20 is an error or gets lost; in the midst the server is away for a second."""
    monkeypatch.setenv("CACHEDET_REMOTE_PATIENCE", "30")
    url, count = s3.new_url(), itertools.count(1)

    def away() -> None:
        s3.stop()
        time.sleep(1.0)
        s3.start()

    breaks: list[threading.Thread] = []

    def before(method: str, key: str) -> tuple[int, str] | None:
        if method == "PUT" and "/c/" in key and not breaks:
            breaks.append(threading.Thread(target=away))
            breaks[0].start()
        return (503, "SlowDown") if next(count) % 20 == 0 else None

    s3.before = before
    s3.after = lambda method, key: (500, "InternalError") if next(count) % 20 == 0 else None
    report = extract(tiny.extract_config(url))
    breaks[0].join()
    s3.forget()
    assert report.blocks_missing == 0
    assert contents(url) == of_folder(tiny.train, store_kit)
    assert is_clean(url)


def words_of(tiny: Any, url: str) -> list[str]:
    values = tiny.extract_config(url, block_size=1).model_dump(mode="json")
    names = (
        "images", "annotations", "store", "backbone", "weights", "image_size", "views", "codec",
        "block_size", "batch_size", "device",
    )  # fmt: skip
    pairs = ((f"--{name.replace('_', '-')}", str(values[name])) for name in names)
    return ["extract", *itertools.chain.from_iterable(pairs)]


@pytest.mark.parametrize(
    "sent", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.thorough)]
)
def test_writers_that_are_ended_lose_no_block(
    tiny: Any, s3: Any, nursery: Any, store_kit: Any, tmp_path: Path, sent: signal.Signals
) -> None:
    """The next call goes on, and in the end nothing is left that nobody needs."""
    url = s3.new_url()
    s3.before = lambda method, key: time.sleep(0.02) if "/c/" in key else None
    for wanted in (1, 5):
        with nursery.start_command(words_of(tiny, url)) as process:
            while process.poll() is None and committed(url) < wanted:
                time.sleep(0.02)
            process.send_signal(sent)
            process.communicate()
        if open_depot(url).has("manifest.json"):
            assert not verify_store(url, deep=True).bad
    s3.forget()
    extract(tiny.extract_config(url, block_size=1))
    extract(tiny.extract_config(tmp_path / "s.zarr", block_size=1))
    assert contents(url) == of_folder(tmp_path / "s.zarr", store_kit)
    assert is_clean(url)


def refused(tiny: Any, url: str) -> str:
    """The message of a call that ends before any image or weight is opened."""
    words = words_of(tiny, url)
    words[words.index("--backbone") + 1] = "there_is_no_such_network"
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 1
    assert "there_is_no_such_network" not in result.stderr
    assert "S3CRET" not in result.stderr
    return str(result.stderr)


def test_places_are_refused_before_the_backbone_is_opened(
    tiny: Any, s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CACHEDET_REMOTE_PATIENCE", "0.5")
    url = s3.new_url()
    assert "there is no such bucket" in refused(tiny, "s3://no-such-bucket/s.zarr")
    for fault, words in {
        (403, "AccessDenied"): "refuses the credentials (AccessDenied)",
        (400, "ExpiredToken"): "refuses the credentials (ExpiredToken)",
        (501, "NotImplemented"): "501 Not Implemented",
        (503, "SlowDown"): "the server answered SlowDown (tried",
    }.items():
        s3.before = lambda method, key, fault=fault: fault if method == "PUT" else None
        assert words in refused(tiny, url)
    s3.forget()
    other = open_depot(url)
    other.put({"photos/cat.jpg": b"meow"})
    assert "holds 'photos' and is not a feature store" in refused(tiny, url)
    assert other.sizes() == {"photos/cat.jpg": 4}
    s3.stop()
    try:
        assert "the server refused the connection (tried" in refused(tiny, url)
    finally:
        s3.start()


def test_credentials_that_expire_half_way_end_it_with_one_message(tiny: Any, s3: Any) -> None:
    url, count = s3.new_url(), itertools.count()
    s3.before = lambda method, key: (
        (400, "ExpiredToken") if "/c/" in key and next(count) > 3 else None
    )
    with pytest.raises(RemoteStoreError, match="ExpiredToken.*What was committed is safe"):
        extract(tiny.extract_config(url))
    s3.forget()
    assert not verify_store(url, deep=True).bad
    assert extract(tiny.extract_config(url)).blocks_missing == 0


def test_other_inputs_of_a_store_in_a_bucket(tiny: Any, s3: Any) -> None:
    url = s3.new_url()
    extract(tiny.extract_config(url, views="base"))
    with pytest.raises(StoreError, match="s3://.* was extracted from other inputs.*image_size"):
        extract(tiny.extract_config(url, views="base", image_size=96))


class FakeWriter:
    """Of which only is known what is committed."""

    def __init__(self, blocks: list[Any]) -> None:
        self.blocks = blocks
        self.blocks_lost = 0
        self.done: set[str] = set()
        self.asked = self.listed = 0

    def is_committed(self, block: Any) -> bool:
        self.asked += 1
        return block.name in self.done

    def recorded_blocks(self) -> set[str]:
        self.listed += 1
        return set(self.done)


def test_without_leases_few_blocks_are_computed_twice(store_kit: Any, tmp_path: Path) -> None:
    """Two that were started alike, step by step: whoever is second at a block goes elsewhere."""
    import random

    blocks = list(store_kit.blank(400).open_writer(tmp_path / "s.zarr", block_size=1).blocks)
    shared: set[str] = set()
    writers = [FakeWriter(blocks) for _ in range(2)]
    for writer in writers:
        writer.done = shared
    draws = [random.Random(seed).randrange for seed in range(2)]
    work = [
        blocks_to_try(writer, Rank(), list(blocks), draw=draw)  # type: ignore[arg-type]
        for writer, draw in zip(writers, draws, strict=True)
    ]
    computed = 0
    while True:
        taken = [next(each, None) for each in work]
        if taken == [None, None]:
            break
        for writer, block in zip(writers, taken, strict=True):
            if block is None:
                continue
            computed += 1
            writer.blocks_lost += block.name in shared
            shared.add(block.name)
    assert len(shared) == len(blocks)
    assert computed - len(blocks) < 40
    assert sum(writer.asked for writer in writers) - computed < 40  # nobody asks for each record
    assert sum(writer.listed for writer in writers) < 80


def test_ranks_begin_with_their_own(store_kit: Any, tmp_path: Path) -> None:
    blocks = list(store_kit.blank(12).open_writer(tmp_path / "s.zarr", block_size=1).blocks)
    writer = FakeWriter(blocks)
    order = list(blocks_to_try(writer, Rank(number=1, world=2), blocks))  # type: ignore[arg-type]
    ours = {block.name for block in blocks[1::2]}
    assert {block.name for block in order[: len(ours)]} == ours
    assert len(order) == len(blocks)
