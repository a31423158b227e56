"""What the streams of a GPU do is nothing on a CPU; tests/cuda has the rest."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from cachedet.extraction.block_job import committers_to
from cachedet.extraction.device_work import Stretch, Uploads, take_own_stream
from cachedet.store.files.depot import Folder

CPU = torch.device("cpu")


def test_a_cpu_gets_the_batch_itself() -> None:
    images = torch.rand(2, 3, 8, 8)
    take_own_stream(CPU)
    assert Uploads(CPU).send(images) is images


def test_a_stretch_is_as_long_as_its_block_whoever_asks_and_when() -> None:
    began = time.perf_counter()
    with Stretch(CPU) as computing:
        time.sleep(0.01)
    most = time.perf_counter() - began
    with ThreadPoolExecutor(1) as thread:
        seconds = thread.submit(computing.wait).result()
    assert 0.01 <= seconds <= most
    assert computing.wait() == seconds


def test_a_cpu_writes_one_block_at_a_time_and_a_gpu_waits_for_no_disk(tmp_path: Path) -> None:
    assert committers_to(Folder(tmp_path), CPU) == 1
    assert committers_to(Folder(tmp_path), torch.device("cuda")) == 3
