"""The times of the stages."""

from __future__ import annotations

import time

from cachedet.extraction.pipeline import StageClock


def test_rates_are_of_busy_time_and_all_workers() -> None:
    clock = StageClock({"decode": 2, "backbone": 1})
    assert clock.slowest is None
    assert clock.describe() == ""
    for _ in range(2):
        with clock.busy("decode", 1) as work:
            time.sleep(0.02)
            work.nbytes = 500
    time.sleep(0.05)  # idle time does not count
    with clock.busy("backbone", 4):
        time.sleep(0.08)
    decode, backbone = clock.stages["decode"], clock.stages["backbone"]
    assert 0.04 <= decode.seconds < 0.09
    assert decode.pictures_per_second == 2 * 2 / decode.seconds
    assert decode.bytes_per_second == 1000 * 2 / decode.seconds
    slow = min(("decode", "backbone"), key=lambda name: clock.stages[name].pictures_per_second)
    assert clock.slowest == slow
    assert f"{backbone.pictures_per_second:.0f}/s 0 MB/s; slowest: {slow}" in clock.describe()
