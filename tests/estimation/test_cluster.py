"""Simulated machines: sums by hand, bounds, and the requests that real writers make."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachedet.estimation.cluster import ClusterJob, ClusterRun, StorageRates, simulate
from cachedet.extraction.ranks import Rank, blocks_to_try

JOB = ClusterJob(blocks=100, block_seconds=2.0, block_nbytes=30e6, shards=6, start_seconds=7.0)


def run(job: ClusterJob = JOB, workers: int = 1, **rates: float) -> ClusterRun:
    return simulate(job, StorageRates(**rates), workers=workers)


def job_of(**changes: Any) -> ClusterJob:
    return ClusterJob(**{**vars(JOB), **changes})


def test_one_machine_takes_the_sum() -> None:
    """Of each block 6 shards and a record are put; two records and a manifest are looked at."""
    result = run()
    assert result.seconds == result.committed == pytest.approx(7 + 100 * 2)
    assert (result.twice, result.traffic.puts, result.traffic.gets) == (0, 700, 200)
    assert result.traffic.sent == pytest.approx(100 * 30e6)
    assert result.traffic.received == 0


def test_what_the_bandwidth_holds_up_takes_bytes_over_bandwidth() -> None:
    """Four blocks are on their way while one is computed, so that only the first is waited for."""
    assert run(bandwidth=10e6).seconds == pytest.approx(7 + 2 + 100 * 3)
    assert run(job_of(block_seconds=0.0), bandwidth=10e6).seconds == pytest.approx(7 + 300)


def test_latency_of_one_machine() -> None:
    """It looks for a record before each block; the last one then needs shards, manifest, record."""
    result = run(latency=0.5)
    assert result.committed == pytest.approx(7 + 100 * (2 + 0.5) + 3 * 0.5)
    assert result.seconds == pytest.approx(result.committed + 0.5)  # one listing


def test_late_answers_hold_up_who_looks_for_blocks() -> None:
    """4 s for each look; sending a block takes three such times, but four are sent at once."""
    result = run(job_of(block_seconds=0.1, start_seconds=0.0, blocks=400), latency=4.0)
    assert result.seconds == pytest.approx(400 * (4.0 + 0.1), rel=0.02)


def test_requests_that_fail_are_made_again() -> None:
    result = run(job_of(blocks=2000), failing=0.1)
    assert result.traffic.puts == pytest.approx(2000 * 7 / 0.9, rel=0.02)
    assert result.traffic.gets == pytest.approx(2000 * 2 / 0.9, rel=0.02)
    assert result.traffic.sent == pytest.approx(2000 * 30e6 / 0.9, rel=0.02)
    assert result.seconds > 7 + 4000


def test_images_that_lie_in_the_storage_are_read_by_every_machine_and_again_for_blocks() -> None:
    job = job_of(files=800, block_files=16.0, file_nbytes=1e5)
    result = run(job, workers=2, bandwidth=1e9)
    computed = 100 + result.twice
    received = 1e5 * (2 * 800 + 16 * computed) + 2 * 30e6 * result.twice
    assert result.traffic.received == pytest.approx(received)


@pytest.mark.parametrize("workers", [2, 8, 64])
def test_many_machines_lie_between_bounds(workers: int) -> None:
    """Some log(N) blocks a machine are computed twice."""
    blocks = 3000
    result = run(job_of(blocks=blocks, start_seconds=0.0), workers)
    assert 0 < result.twice < 2 * workers * math.log(blocks)
    least = blocks * 2.0 / workers
    assert least <= result.committed <= least * (1 + 2 * workers * math.log(blocks) / blocks)
    doubles = result.twice * (2 + 2 * 6 + 2)
    met = result.traffic.gets - 2 * blocks - doubles  # somebody else's record
    assert 0 < met < 2 * workers * math.log(blocks)
    assert result.traffic.lists < 3 * (2 * workers * math.log(blocks)) + 3 * workers
    assert result.traffic.puts == 7 * (blocks + result.twice)


def test_it_is_the_same_every_time() -> None:
    rates = {"bandwidth": 5e7, "latency": 0.02, "failing": 0.05}
    assert run(workers=8, **rates) == run(workers=8, **rates)


def test_a_hundred_thousand_blocks_are_soon_simulated() -> None:
    assert run(job_of(blocks=100_000), 64, bandwidth=2e9).traffic.puts > 700_000


@settings(max_examples=40, deadline=None)
@given(
    blocks=st.integers(1, 60),
    workers=st.integers(1, 9),
    bandwidth=st.floats(1e6, 1e9),
    latency=st.floats(0, 0.5),
    failing=st.sampled_from([0.0, 0.05]),
    more=st.floats(1, 10),
)
def test_every_run_ends_between_its_bounds(
    blocks: int, workers: int, bandwidth: float, latency: float, failing: float, more: float
) -> None:
    """What it computed and sent takes at least so long; one after the other it is the most."""
    job = job_of(blocks=blocks)
    rates = {"bandwidth": bandwidth, "latency": latency, "failing": failing}
    result = run(job, workers, **rates)
    moved = (result.traffic.sent + result.traffic.received) / bandwidth
    least = max(7 + blocks * 2.0 / workers, moved)
    requests = result.traffic.puts + result.traffic.gets + result.traffic.lists
    waits = requests * (latency + 0.4 * bool(failing))
    assert least - 1e-6 <= result.seconds
    assert result.seconds <= 7 + 2.0 * (blocks + result.twice) + moved + waits + 1e-6
    assert result.traffic.puts >= 7 * (blocks + result.twice)
    alone, quicker = run(job, bandwidth=bandwidth), run(job, bandwidth=bandwidth * more)
    assert quicker.seconds <= alone.seconds + 1e-6
    assert run(job, latency=latency).seconds <= run(job, latency=latency * more).seconds + 1e-6


def requests_of(server: Any, *, kinds: tuple[str, ...] = ("commits", "base", "hflip")) -> Counter:
    """By method, of what is asked for each block."""
    keys = [(method, key.removeprefix("some/s.zarr/")) for method, key in server.requests]
    return Counter(
        method for method, key in keys if key.split("/")[0] in kinds and "zarr.json" not in key
    )


def test_one_real_writer_makes_these_requests(store_kit: Any, s3: Any) -> None:
    """8 blocks of 2 shards; that of the manifest is one GET of each."""
    url, kit = s3.new_url(), store_kit.blank(8)
    writer = kit.open_writer(url)
    s3.forget()
    for block in blocks_to_try(writer, Rank(), writer.missing_blocks()):
        writer.write(block, kit.noise_of(block))
    assert writer.missing_blocks() == []
    made, manifests = requests_of(s3), sum(key.endswith("manifest.json") for _, key in s3.requests)
    result = run(job_of(blocks=8, shards=2))
    assert (made["PUT"], made["GET"] + manifests) == (result.traffic.puts, result.traffic.gets)
    assert made["HEAD"] == 0


def test_a_real_block_that_was_there_already_costs_these_requests(store_kit: Any, s3: Any) -> None:
    """Each shard is refused and read twice, its record too."""
    url, kit = s3.new_url(), store_kit.blank(2)
    first, second = kit.open_writer(url), kit.open_writer(url)
    block = first.blocks[0]
    assert first.write(block, kit.noise_of(block))
    s3.forget()
    assert not second.write(block, kit.noise_of(block))
    made, manifests = requests_of(s3), sum(key.endswith("manifest.json") for _, key in s3.requests)
    assert (made["PUT"], made["GET"], manifests) == (2 + 1, 2 * 2 + 2, 1)
