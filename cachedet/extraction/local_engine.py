"""Writing the blocks of a store in this process, which may be one of many that do."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

from cachedet.extraction.block_job import Job, Written
from cachedet.extraction.inputs import InputLoader
from cachedet.extraction.ranks import Rank, blocks_to_try, blocks_to_write
from cachedet.progress import StageProgress, count_of
from cachedet.store.files.leases import LeaseBook
from cachedet.store.format.commits import CommitRecord
from cachedet.store.format.layout import Block
from cachedet.store.writer import StoreWriter


def write_here(
    job: Job, writer: StoreWriter, loader: InputLoader, missing: Sequence[Block], *, rank: Rank
) -> Written:
    """Write what is missing and no other process writes: first what is this rank's."""
    lacking = {block.name for block in missing}
    ours = [block for number, block in enumerate(writer.blocks) if rank.owns(number)]
    total = sum(len(block.rows) for block in ours if block.name in lacking)
    committed: list[Block] = []
    folder = writer.depot.folder
    with (
        StageProgress("extract", total=total, unit="images") as progress,
        nullcontext() if folder is None else LeaseBook(folder) as leases,
    ):

        def on_block(block: Block, record: CommitRecord | None) -> None:
            if leases is not None:
                leases.release(block.name)
            if record is not None:
                committed.append(block)
                moved = writer.nbytes_written - progress.nbytes
                progress.advance(len(block.rows), nbytes=moved, detail=pipeline.clock.describe())

        def on_wait(blocks: Sequence[Block]) -> None:
            held = f"waiting for another machine, which holds {count_of(len(blocks), 'block')}"
            progress.note(held if blocks else "")

        pipeline = job.make_pipeline(writer, loader, on_block)
        if leases is None:
            pipeline.run(blocks_to_try(writer, rank, missing))
        else:
            pipeline.run(blocks_to_write(writer, leases, rank, on_wait=on_wait))
        others = progress.total - sum(len(block.rows) for block in committed)
        if others > 0:
            progress.settle(f"{count_of(others, 'more image')} by other writers")
    return Written(blocks=len(committed), nbytes=writer.nbytes_written, clock=pipeline.clock)
