"""How a run starts: in a new folder, or where its last checkpoint left it."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from cachedet.collective import from_first, world_size
from cachedet.config import TrainConfig, dump_config
from cachedet.store.manifest import Manifest
from cachedet.training.checkpoint import Checkpoint
from cachedet.training.checkpoint_writer import load_last
from cachedet.training.data_parallel import describe_ranks
from cachedet.training.run_folder import RunFolder
from cachedet.training.same_run import load_initial_weights, require_same_run
from cachedet.training.trainer import Trainer


def start_or_continue(
    folder: RunFolder,
    config: TrainConfig,
    trainer: Trainer,
    manifest: Manifest,
    *,
    resume: bool,
    restarts: int,
) -> None:
    """Make the run folder or read its last state, and bring every rank's trainer there.

    Only rank 0 touches the folder: the state travels to the others, which need not see its disk.

    Args:
        folder: of the run.
        config, manifest: of the run.
        trainer: of this rank, as `make_trainer` made it.
        resume: the user wants to continue; there must be a run.
        restarts: how often torchrun has started the processes anew; then they continue the run they
            find, or start it again where it had not saved anything yet.

    Raises CheckpointError: the folder does not fit.
    """

    def open_folder() -> tuple[Checkpoint | None, Checkpoint | None]:
        again = restarts > 0 and not resume and folder.config.is_file()
        if again:
            folder.log(f"the launcher started the processes anew (restart {restarts})")
        if resume or (again and (folder.last.exists() or folder.previous.exists())):
            return _open_last(folder, config, manifest), None
        return None, _create(folder, config, trainer, manifest, again=again)

    last, initial = from_first(open_folder)
    if last is not None:
        trainer.restore(last)
    elif initial is not None:
        trainer.start_from(initial)


def _open_last(folder: RunFolder, config: TrainConfig, manifest: Manifest) -> Checkpoint:
    RunFolder.open(folder.root)
    checkpoint, remark = load_last(folder)
    require_same_run(checkpoint, config, manifest, where=folder.last)
    if remark:
        print(f"note: {remark}", file=sys.stderr)
        folder.log(remark)
    folder.log(f"resumed at step {checkpoint.step}")
    if world_size() > 1:
        folder.log(describe_ranks(config.schedule.batch_size))
    return checkpoint


def _create(
    folder: RunFolder, config: TrainConfig, trainer: Trainer, manifest: Manifest, *, again: bool
) -> Checkpoint | None:
    """Returns the weights to start from; `again`: the folder is of this run, which saved nothing"""
    initial = (
        None
        if config.init_from is None
        else load_initial_weights(Path(config.init_from), config, manifest)
    )
    text = dump_config(config)
    if not (again and folder.config.read_text(encoding="utf-8") == text):
        RunFolder.create(folder.root)
        folder.config.write_text(text, encoding="utf-8")
    folder.log(f"started; store fingerprint {manifest.fingerprint()}")
    folder.log(config.schedule.describe_lr())
    folder.log(f"on {trainer.device}, {str(trainer.autocast or torch.float32)[6:]}")
    if world_size() > 1:
        folder.log(describe_ranks(config.schedule.batch_size))
    if initial is not None:
        folder.log(f"weights of {config.init_from}, step {initial.step}")
    return initial
