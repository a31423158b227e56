"""What every engine's process does, in this one: names go in, receipts come out."""

from __future__ import annotations

import re
import shutil
import socket
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cachedet.backbone.frozen import load_backbone
from cachedet.errors import BadImageError, StoreError
from cachedet.extract import extract
from cachedet.extraction.block_job import Job
from cachedet.extraction.block_worker import BlockWorker, Receipt, tally
from cachedet.extraction.inputs import make_inputs
from cachedet.store.files.source import LocalFiles
from cachedet.store.format.commits import read_record
from cachedet.store.format.plan import StorePlan


def job_of(tiny: Any, store: Path, *, images: Path | None = None) -> Job:
    """For a store that was made and has no blocks."""
    extract(tiny.extract_config(store))
    for path in (store / "commits").iterdir():
        path.unlink()
    plan = StorePlan.load(LocalFiles(store))
    backbone = load_backbone("test_resnet", weights=str(tiny.weights), image_size=128)
    make = partial(
        make_inputs,
        plan.annotations,
        images=images or tiny.paths.images,
        image_size=128,
        pad_multiple=plan.manifest.pad_multiple,
        preprocessing=backbone.preprocessing,
        contents=plan.contents,
    )
    return Job(
        store=store,
        backbone=backbone,
        make_inputs=make,
        device="cpu",
        batch_size=2,
        workers=1,
        fingerprint=plan.manifest.block_fingerprint(0),
    )


def test_a_receipt_says_what_lies_there(tiny: Any, tmp_path: Path, store_kit: Any) -> None:
    store = tmp_path / "s.zarr"
    job = job_of(tiny, store).to_send(cores=1.5)
    assert job.workers == 1
    blocks = StorePlan.load(LocalFiles(store)).blocks
    images = {block.name: len(block.rows) for block in blocks}
    worker = BlockWorker()
    first = list(worker.write(lambda: job, [blocks[1].name]))
    told = [*first, *worker.write(lambda: job, list(images))]
    receipts = {one.block: one for one in told if isinstance(one, Receipt) and one.checksum}
    for block in blocks:
        record, receipt = read_record(LocalFiles(store), block), receipts[block.name]
        assert (receipt.nbytes, receipt.checksum) == (record.nbytes, record.checksum)
        assert receipt.seconds > 0
    theirs = [one for one in told if isinstance(one, Receipt) and not one.checksum]
    assert [(one.block, one.nbytes) for one in theirs] == [(blocks[1].name, 0)]
    assert store_kit.files(store) == store_kit.files(tiny.train)
    written = tally(told, images, workers=[worker])
    nbytes = sum(receipt.nbytes for receipt in receipts.values())
    assert (written.blocks, written.nbytes) == (len(blocks), nbytes)
    assert written.clock.stages["backbone"].images == sum(images.values())


def test_what_a_machine_lacks_is_said_with_its_name(tiny: Any, tmp_path: Path) -> None:
    """Images, the store, or it has another one at that place."""
    images, store = tmp_path / "images", tmp_path / "s.zarr"
    shutil.copytree(tiny.paths.images, images)
    job = job_of(tiny, store, images=images)
    names = [StorePlan.load(LocalFiles(store)).blocks[0].name]
    name = re.escape(socket.gethostname())
    ending = rf"\(on the machine {name}, which needs images and store under the names that they hav"

    def write(job: Job) -> None:
        list(BlockWorker().write(lambda: job, names))

    images.rename(tmp_path / "moved")
    with pytest.raises(BadImageError, match=rf"images/.*jpg: .*No such file.* {ending}"):
        write(job)
    with pytest.raises(StoreError, match=f"none.zarr.* {ending}"):
        write(replace(job, store=tmp_path / "none.zarr"))
    with pytest.raises(StoreError, match=f"s.zarr is another store than the one .* {ending}"):
        write(replace(job, fingerprint="of another"))
    assert not list((store / "commits").iterdir())


def test_relative_names_are_those_of_the_driver(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    job = job_of(tiny, Path("s.zarr"))
    monkeypatch.chdir("/")
    list(
        BlockWorker().write(
            lambda: job, [StorePlan.load(LocalFiles(tmp_path / "s.zarr")).blocks[0].name]
        )
    )
    assert Path.cwd() == tmp_path
