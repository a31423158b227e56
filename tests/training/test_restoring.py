"""Checkpoints that can be read and do not fit, and files that cannot be read: each is a message."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cachedet.config.run import TrainConfig
from cachedet.errors import CachedetError, CheckpointError, DamagedCheckpointError
from cachedet.evaluate import evaluate
from cachedet.prediction.image_detector import load_image_detector
from cachedet.train import train
from cachedet.training.checkpoint import load_checkpoint, save_checkpoint
from cachedet.training.checkpoint_writer import load_last
from cachedet.training.restoring import load_weights
from cachedet.training.run_folder import RunFolder

Values = dict[str, Any]
CONFIG = TrainConfig.model_validate(
    {
        "device": "cpu",
        "max_steps": 4,
        "detector": {
            "kind": "retinanet",
            "levels": ["C4", "C5"],
            "num_convs": 1,
            "neck": {"kind": "fpn", "channels": 8, "num_levels": 2},
        },
        "schedule": {"epochs": 2, "batch_size": 4, "ema_decay": 0.9, "optimizer": "adamw"},
        "early_stopping": {"metric": "loss", "patience": 9},
    }
)


@pytest.fixture(scope="module")
def finished(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It stands in the middle of its second epoch."""
    run = tmp_path_factory.mktemp("finished") / "run"
    train(CONFIG, train_store=tiny.train, val_store=tiny.val, run=run)
    shutil.copy(run / "weights" / "last.pt", run / "weights" / "best.pt")
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def change(path: Path, edit: Callable[[Values], object]) -> None:
    values = torch.load(path, weights_only=True)
    edit(values)
    torch.save(values, path)


def resume(tiny: Any, run: Path) -> None:
    train(CONFIG, train_store=tiny.train, val_store=tiny.val, run=run, resume=True)


def first(values: Values, part: str = "average") -> str:
    return next(iter(values[part]))


def set_first(value: torch.Tensor) -> Callable[[Values], object]:
    return lambda values: [values[part].update({first(values): value})
                           for part in ("heads", "average")]  # fmt: skip


def with_nan(values: Values) -> None:
    for part in ("heads", "average"):
        values[part][first(values)][0] = float("nan")


def drop_both(values: Values) -> None:
    name = first(values)
    for part in ("heads", "average"):
        values[part].pop(name)


OF_WEIGHTS: list[tuple[Callable[[Values], object], str]] = [
    (set_first(torch.zeros(3)), r"do not fit .* has shape \(3,\), expected \("),
    (drop_both, "do not fit .*: it lacks "),
    (lambda v: [v[p].update(other=torch.zeros(1)) for p in ("heads", "average")], "it has other"),
    (lambda v: set_first(v["heads"][first(v)].long())(v), "is torch.int64, expected torch.float32"),
    (with_nan, r"are not finite \(NaN or infinite"),
    (lambda v: set_first(v["heads"][first(v)].double() + 1e300)(v), "are not finite"),
    (set_first("text"), "that is no tensor"),  # type: ignore[arg-type]
    (lambda v: v.update(config="{"), "its config is no JSON"),
    (lambda v: v.update(config="[]"), "its config holds no keys"),
    (lambda v: v.update(config='{"seed": "x"}'), "seed"),
    (lambda v: v.update(manifest="{}"), "its manifest cannot be used"),
    (lambda v: v.update(manifest="[" * 100_000), "its manifest is no JSON"),
    (lambda v: v.pop("torch_rng"), "its torch_rng is missing"),
    (lambda v: v.update(step=-1), "its step is -1, expected 0 or more"),
    (lambda v: v.update(step=True), "its step is missing or of a wrong type"),
    (lambda v: v.update(seconds=float("nan")), "its seconds is nan"),
    (lambda v: v.update(best_ap=float("inf")), "its best_ap is inf"),
    (lambda v: v.update(format=7), "has checkpoint format 7"),
]  # fmt: skip


@pytest.mark.parametrize(("edit", "message"), OF_WEIGHTS)
def test_a_misfit_is_a_message_wherever_it_is_read(
    tiny: Any, run: Path, edit: Callable[[Values], object], message: str
) -> None:
    for name in ("best", "last"):
        change(run / "weights" / f"{name}.pt", edit)
    before = sorted(os.listdir(run / "weights"))
    with pytest.raises(CachedetError, match=message) as told:
        evaluate(run, tiny.val)
    assert "best.pt" in str(told.value)
    with pytest.raises(CachedetError, match=message) as told:
        resume(tiny, run)
    assert "last.pt" in str(told.value)
    with pytest.raises(CachedetError, match=message):
        load_image_detector(run, weights=str(tiny.weights), device="cpu")
    initial = CONFIG.model_copy(update={"init_from": str(run)})
    with pytest.raises(CachedetError, match=message):
        train(initial, train_store=tiny.train, val_store=tiny.val, run=run.with_name("next"))
    assert sorted(os.listdir(run / "weights")) == before


def of_state(values: Values) -> Values:
    state: Values = values["optimizer"]["state"][0]
    return state


OF_STATE: list[tuple[Callable[[Values], object], str]] = [
    (lambda v: v.update(optimizer={}), r"its optimizer does not fit this run \(KeyError"),
    (lambda v: v["optimizer"].update(state={}), "it is empty after steps were taken"),
    (lambda v: v["optimizer"].update(param_groups=[]), "it has 0 groups of parameters"),
    (lambda v: v["optimizer"]["param_groups"][0].update(params=[0]), "differ in params"),
    (lambda v: v["optimizer"]["param_groups"][0].update(betas=(0, 0)), "differ in betas"),
    (lambda v: of_state(v).update(exp_avg=torch.zeros(3)), r"exp_avg .* has shape \(3,\)"),
    (lambda v: of_state(v)["exp_avg_sq"].fill_(float("nan")), "exp_avg_sq .* is not finite"),
    (lambda v: of_state(v).pop("step"), r"has \['exp_avg', 'exp_avg_sq'\], expected"),
    (lambda v: v["optimizer"]["state"].update({999: {}}), "parameter 999"),
    (lambda v: v["optimizer"]["state"].update({0: {"momentum_buffer": None}}), "parameter 0 has"),
    (lambda v: v.update(stopping={}), "its early stopping does not fit"),
    (lambda v: v.update(epoch_statistics={}), "its epoch_statistics does not fit"),
    (lambda v: v.update(epoch_statistics={"other": 1.0}), "its epoch_statistics does not fit"),
    (lambda v: v.update(torch_rng=torch.zeros(3)), "its torch_rng does not fit"),
    (lambda v: of_state(v)["exp_avg_sq"].fill_(-1.0), "exp_avg_sq of parameter 0 is negative"),
    (lambda v: of_state(v)["step"].fill_(-1.0), "step of parameter 0 is negative"),
    (lambda v: v["optimizer"]["param_groups"][0].update(lr="fast"), "lr of a group .* is 'fast'"),
    (lambda v: v["optimizer"]["param_groups"][1].update(lr=-1.0), "lr of a group .* is -1.0"),
    (lambda v: v.update(epoch=10**9), "stands in epoch 1000000000, of 2;"),
    (
        lambda v: v.update(step=10**9),
        "says step 1000000000, and epoch 1, batch .*, which is step 4",
    ),
    (lambda v: v.update(epoch=0), "says step 4, and epoch 0, batch .*, which is step"),
    (lambda v: v.update(batch=99), "stands before batch 99 of epoch 1, which has"),
]


@pytest.mark.parametrize(("edit", "message"), OF_STATE)
def test_a_state_that_does_not_fit(
    tiny: Any, run: Path, edit: Callable[[Values], object], message: str
) -> None:
    """The weights may be whole: what reads them alone goes on."""
    for name in ("best", "last"):
        change(run / "weights" / f"{name}.pt", edit)
    before = sorted(os.listdir(run / "weights"))
    with pytest.raises(CheckpointError, match=message) as told:
        resume(tiny, run)
    assert "last.pt" in str(told.value)
    assert "previous.pt" in str(told.value)
    assert sorted(os.listdir(run / "weights")) == before
    evaluate(run, tiny.val)


def test_files_of_something_else(tiny: Any, run: Path) -> None:
    """They are whole, so nothing is set aside or gone back from."""
    last = run / "weights" / "last.pt"
    shutil.copy(last, run / "weights" / "previous.pt")
    kinds: dict[str, Callable[[], object]] = {
        "no format number": lambda: torch.save({"model": torch.zeros(3)}, last),
        "other things than weights": lambda: torch.save({"format": 2, "a": nn.Linear(1, 1)}, last),
        "zip file of something else": lambda: _zip(last),
    }
    for message, write in kinds.items():
        write()
        with pytest.raises(CheckpointError, match=message) as told:
            resume(tiny, run)
        assert not isinstance(told.value, DamagedCheckpointError)
        assert not last.with_name("last.pt.damaged").exists()


def _zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("thesis.txt", "hello")


@pytest.mark.parametrize("target", ["itself", "/proc/self/mem"])
def test_what_cannot_be_read_is_not_damaged(run: Path, target: str) -> None:
    """A loop of links, and a file whose reading is an I/O error."""
    if target != "itself" and not Path(target).exists():
        pytest.skip("no such file here")
    folder = RunFolder(run)
    shutil.copy(folder.last, folder.previous)
    folder.last.unlink()
    folder.last.symlink_to(folder.last if target == "itself" else target)
    with pytest.raises(
        CheckpointError, match="cannot read .*last.pt: .* that is no damage"
    ) as told:
        load_last(folder)
    assert not isinstance(told.value, DamagedCheckpointError)
    assert folder.last.is_symlink()
    assert folder.previous.is_file()


@pytest.mark.parametrize("cause", ["input/output", "permission"])
def test_a_config_that_cannot_be_read_is_not_damaged(tiny: Any, run: Path, cause: str) -> None:
    """Nothing is renamed or written anew, with or without a whole state beside it."""
    config = run / "config.yaml"
    if cause == "permission":
        config.chmod(0)
        if os.access(config, os.R_OK):
            pytest.skip("this user reads all files")
    else:
        config.unlink()
        config.symlink_to("/proc/self/mem")
        if not config.exists():
            pytest.skip("no such file here")
    (run / "weights" / "last.pt").write_bytes(b"torn")
    shutil.copy(run / "weights" / "best.pt", run / "weights" / "previous.pt")
    before = sorted(map(str, run.rglob("*")))
    with pytest.raises(CheckpointError, match=r"cannot read .*config.yaml: .* that is no damage"):
        resume(tiny, run)
    assert sorted(map(str, run.rglob("*"))) == before


def test_what_was_set_aside_before_stays(tiny: Any, run: Path) -> None:
    weights = run / "weights"
    for times in (1, 2, 3):
        shutil.copy(weights / "best.pt", weights / "previous.pt")
        (run / "config.yaml").write_text(f"{times}")
        (weights / "last.pt").write_text(f"{times}")
        resume(tiny, run)
        for times_before in range(1, times + 1):
            more = "" if times_before == 1 else f"-{times_before}"
            for path in (run / "config.yaml", weights / "last.pt"):
                aside = path.with_name(f"{path.name}.damaged{more}")
                assert aside.read_text() == f"{times_before}"
    assert "set aside as last.pt.damaged-3" in (run / "log.txt").read_text()


def test_memory_that_does_not_suffice_is_no_damage(run: Path, nursery: Any) -> None:
    folder = RunFolder(run)
    large = load_checkpoint(folder.last)
    save_checkpoint(folder.last, dataclasses.replace(large, heads={"w": torch.zeros(40_000_000)}))
    script = (
        "import resource\nfrom pathlib import Path\n"
        "from cachedet.training.checkpoint import load_checkpoint\n"
        "used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + {room}, used + {room}))\n"
        f"load_checkpoint(Path({str(folder.last)!r}))\n"
    )
    for room in (100 << 20, 250 << 20):  # too little for the file, and for its tensors
        with nursery.start(script.format(room=room)) as process:
            _, errors = process.communicate()
        assert "cannot read" in errors, errors
        assert "DamagedCheckpointError" not in errors


def test_buffers_that_are_infinite_from_the_start_are_meant() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2)
            self.register_buffer("mask", torch.tensor([0.0, float("-inf")]))

    trained = Masked()
    sparse = {**trained.state_dict(), "linear.bias": torch.zeros(2).to_sparse()}
    with pytest.raises(CheckpointError, match="linear.bias is no plain tensor"):
        load_weights(Masked(), sparse, where="last.pt")
    load_weights(Masked(), trained.state_dict(), where="last.pt")
    trained.linear.bias.data[0] = float("inf")
    with pytest.raises(CheckpointError, match=r"not finite \(NaN or infinite: linear.bias\)"):
        load_weights(Masked(), trained.state_dict(), where="last.pt")


def test_numbers_of_the_manifest(run: Path, tiny: Any) -> None:
    def edit(values: Values) -> None:
        manifest = json.loads(values["manifest"])
        manifest["image_size"] = 7
        values["manifest"] = json.dumps(manifest)

    change(run / "weights" / "best.pt", edit)
    with pytest.raises(CheckpointError, match=r"its manifest cannot be used: .* was altered"):
        evaluate(run, tiny.val)
