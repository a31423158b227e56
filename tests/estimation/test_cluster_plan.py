"""Plans for machines and a bucket, by hand from figures by hand."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from cachedet.errors import InputError
from cachedet.estimation.cluster_plan import StoreShape, epoch_requests, plan_cluster
from cachedet.estimation.measured import Measured
from cachedet.estimation.what_if import WhatIf, parse_what_if
from cachedet.store.files.source import file_limit
from cachedet.store.reader import FeatureStore

Make = Callable[..., Measured]
SHAPE = StoreShape(blocks=20, shards=6, read_shards=4, block_images=10.0)


def test_one_machine(measured_of: Make) -> None:
    """Scan 5 s, start 2 s, extraction 240 s; 2 GB at 1 GB/s is on its way meanwhile."""
    plan = plan_cluster(measured_of(), WhatIf(storage="s3", bandwidth=1e9), SHAPE)
    assert plan.seconds == pytest.approx(5 + 2 + 240 + 0.1)
    assert plan.parts == pytest.approx(
        {"looking at all images": 7, "computing": 240, "bandwidth": 2, "requests for records": 0}
    )
    assert (plan.bottleneck, plan.objects, plan.nbytes) == ("computing", 140, 2e9)
    assert (plan.traffic.puts, plan.traffic.gets, plan.twice) == (140, 40, 0)
    assert plan.epoch is not None
    assert (plan.epoch.seconds, plan.epoch.bottleneck) == (20.0, "computing")
    assert plan.epoch.nbytes == 1e9
    assert json.loads(json.dumps(plan.to_json()))["bottleneck"] == "computing"


def test_the_disk_here_holds_nobody_up_there(measured_of: Make) -> None:
    measured = measured_of()
    stages = {**measured.extract.stages, "write": 400.0}
    measured = replace(measured, extract=replace(measured.extract, seconds=480.0, stages=stages))
    plan = plan_cluster(measured, WhatIf(storage="s3", bandwidth=1e12), SHAPE)
    assert plan.parts["computing"] == pytest.approx(240.0)


def test_a_slow_storage(measured_of: Make) -> None:
    """An epoch reads 1 GB at 10 MB/s; extraction sends 2 GB."""
    change = parse_what_if("workers=4,storage=gs,bandwidth=10MB/s")
    plan = plan_cluster(measured_of(), change, SHAPE)
    assert plan.bottleneck == "bandwidth"
    assert plan.seconds >= 200
    assert plan.epoch is not None
    assert (plan.epoch.seconds, plan.epoch.bottleneck) == (100.0, "bandwidth")


def test_a_storage_that_answers_late(measured_of: Make) -> None:
    """20 records, 100 images of 4 arrays, 80 indices and 80 lengths, 16 at once."""
    change = parse_what_if("storage=az,bandwidth=1TB/s,latency=1s")
    epoch = plan_cluster(measured_of(), change, SHAPE).epoch
    assert epoch is not None
    assert (epoch.gets, epoch.heads, epoch.lists) == (20 + 400 + 80, 80, 1)
    assert (epoch.seconds, epoch.bottleneck) == (580 / 16, "requests")
    failing = plan_cluster(measured_of(), replace(change, failing=0.2), SHAPE).epoch
    assert failing is not None
    assert (failing.gets, failing.heads) == (625, 100)


def test_images_in_the_storage(measured_of: Make) -> None:
    """Each of 3 machines looks at all 100 of them, and reads those of its blocks."""
    change = parse_what_if("workers=3,storage=s3,bandwidth=1GB/s,image-file=100kB")
    plan = plan_cluster(measured_of(), change, SHAPE)
    images = 3 * 100 + 10 * (20 + plan.twice)
    assert plan.traffic.received == pytest.approx(1e5 * images + 2 * 1e8 * plan.twice)


def test_training_that_could_not_be_tried(measured_of: Make) -> None:
    measured = measured_of()
    failed = replace(measured.trainings["cached"], phase=None, memory=None, failure="no memory")
    measured = replace(measured, trainings={**measured.trainings, "cached": failed})
    assert plan_cluster(measured, WhatIf(storage="s3", bandwidth=1e9), SHAPE).epoch is None


def test_more_than_can_be_simulated(measured_of: Make) -> None:
    shape = replace(SHAPE, blocks=10_000_000)
    message = r"storage=s3: 10,000,000 blocks are more than the 2,000,000 .* larger --block-size"
    with pytest.raises(InputError, match=message):
        plan_cluster(measured_of(), WhatIf(storage="s3", bandwidth=1e9), shape)


def test_shards_that_cannot_all_stay_open_are_asked_for_again() -> None:
    shape = replace(SHAPE, blocks=1_000_000)
    gets, heads = epoch_requests(16_000_000, shape)
    shards, chunks = 4_000_000, 64_000_000
    assert heads == round(shards + (chunks - shards) * (1 - file_limit() / shards))
    assert gets == round(1e6 + chunks + shards + (chunks - shards) * (1 - 65_536 / shards))


def test_a_real_epoch_makes_these_requests(store_kit: Any, s3: Any) -> None:
    url, kit = s3.new_url(), store_kit.blank(8)
    kit.fill(url)
    s3.forget()
    store = FeatureStore.open(url)
    for row in range(8):
        store.read(row, "base" if row % 2 else "hflip")
    is_ours = [
        method
        for method, key in s3.requests
        if ("/commits/" in key or "/base/" in key or "/hflip/" in key) and "zarr.json" not in key
    ]
    shape = StoreShape(blocks=8, shards=2, read_shards=2, block_images=2.0)
    made = Counter(is_ours)
    assert (made["GET"], made["HEAD"]) == epoch_requests(8, shape)
