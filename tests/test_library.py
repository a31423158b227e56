"""What `import cachedet` gives, and that every snippet of its page runs as it stands."""

from __future__ import annotations

import inspect
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import cachedet
from cachedet.errors import BackboneError, ConfigError, DatasetError
from cachedet.prediction.image_detector import load_image_detector
from cachedet.structures import LevelSpec

CANNOT_FAIL = ("collate", "count_over_ranks", "show_progress")
PAGE = Path(__file__).parents[1] / "docs" / "python.md"
TUTORIAL = PAGE.parent / "tutorials" / "own-head.md"  # its first snippet is the head of the page


def test_public_names_are_sorted_and_there() -> None:
    assert cachedet.__all__ == sorted(cachedet.__all__)
    assert dir(cachedet) == cachedet.__all__
    assert all(getattr(cachedet, name) is not None for name in cachedet.__all__)


@pytest.mark.parametrize("name", [name for name in cachedet.__all__ if name != "__version__"])
def test_public_names_explain_themselves(name: str) -> None:
    public = getattr(cachedet, name)
    text = inspect.getdoc(public) or ""
    assert text.splitlines()[0].endswith("."), name
    if inspect.isfunction(public):
        assert ">>> " in text, name
        assert "Raises" in text or name in CANNOT_FAIL, name


def test_verbs_stay_functions_once_their_modules_are_loaded() -> None:
    import cachedet.convert
    import cachedet.evaluate
    import cachedet.export
    import cachedet.extract
    import cachedet.predict
    import cachedet.train

    for name in ("train", "convert", "extract", "evaluate", "export", "predict"):
        assert inspect.isfunction(getattr(cachedet, name)), name


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(AttributeError, match=r"has no attribute 'evalute'; nearest: 'evaluate'"):
        cachedet.evalute  # noqa: B018


def test_importing_it_imports_nothing_large() -> None:
    script = (
        "import sys, cachedet\n"
        "print(sorted({'torch', 'zarr', 'timm', 'numpy', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


@pytest.fixture(scope="module")
def folder(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the page speaks of: two stores, photos, annotations and weights."""
    root = tmp_path_factory.mktemp("page")
    shutil.copytree(tiny.paths.images, root / "photos")
    for name in ("train", "val"):
        shutil.copy(getattr(tiny.paths, name), root / f"{name}.json")
        shutil.copytree(getattr(tiny, name), root / f"{name}.zarr")
    shutil.copy(tiny.weights, root / "weights.pth")
    return root


def snippets_of(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # where there is one core
def test_every_snippet_of_the_page_runs_word_for_word(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """One after the other, in one script; what they print is all that is printed."""
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {"__name__": "page"}
    snippets = [*snippets_of(TUTORIAL)[:1], *snippets_of(PAGE)]
    assert len(snippets) >= 7
    for number, snippet in enumerate(snippets):
        exec(compile(snippet, f"python.md, snippet {number}", "exec"), names)
    shown, complaints = capfd.readouterr()
    assert len(shown.splitlines()) == 6, shown
    assert complaints == ""
    assert (folder / "runs" / "mine" / "weights" / "best.pt").is_file()
    assert names["scores"].ap >= 0


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_a_data_set_in_workers(tiny: Any, start: str) -> None:
    """The same items, whichever process decodes them."""
    dataset = cachedet.FeatureDataset(cachedet.open_store(tiny.train), views=["base", "hflip"])
    assert len(dataset) == 16
    dataset[3]  # files are open before the workers are forked
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_size=3,
        num_workers=1,
        multiprocessing_context=start,
        collate_fn=cachedet.collate,
    )
    for number, batch in enumerate(loader):
        expected = cachedet.collate([dataset[n] for n in range(3 * number, len(dataset))][:3])
        assert batch.image_ids == expected.image_ids
        for level, maps in batch.features.items():
            assert torch.equal(maps, expected.features[level])


def test_what_a_loader_and_a_prediction_refuse(tiny: Any, tmp_path: Path) -> None:
    store = cachedet.open_store(tiny.train)
    with pytest.raises(ConfigError, match="batch_size must be at least 1, got 0"):
        cachedet.make_loader(store, batch_size=0)
    names = cachedet.make_loader(store, views="base,hflip").plan(0)
    listed = cachedet.make_loader(store, views=["base", "hflip"]).plan(0)
    assert [keys.tolist() for keys in names] == [keys.tolist() for keys in listed]
    with pytest.raises(BackboneError, match=r"what cachedet\.wrap_backbone.* got Identity"):
        load_image_detector(tiny_run(tiny, tmp_path), backbone=nn.Identity())  # type: ignore[arg-type]


def tiny_run(tiny: Any, tmp_path: Path) -> Path:
    options = {"schedule.epochs": 1, "device": "cpu"}
    cachedet.train(
        "retinanet_fpn_tiny", overrides=options, train_store=tiny.train, run=tmp_path / "run"
    )
    return tmp_path / "run"


def test_batches_of_one_size(tiny: Any) -> None:
    dataset = cachedet.FeatureDataset(cachedet.open_store(tiny.train), views=["base", "hflip"])
    batches = dataset.batches(batch_size=3, seed=1)
    first, second = list(batches), list(batches)
    assert len(first) == len(batches)
    assert first != second, "each epoch has an order of its own"
    for chosen in (first, second):
        rows = [index // 2 for indices in chosen for index in indices]
        assert sorted(rows) == list(range(8)), "each image once"
    for indices in first:
        sizes = {tuple(dataset[n].features["C3"].shape) for n in indices}
        assert len(sizes) == 1


def test_what_a_data_set_refuses(tiny: Any) -> None:
    store = cachedet.open_store(tiny.train)
    with pytest.raises(ConfigError, match="hflop"):
        cachedet.FeatureDataset(store, views=["hflop"])
    dataset = cachedet.FeatureDataset(store)
    with pytest.raises(IndexError, match="expected an item from 0 to 15, got 16"):
        dataset[16]
    with pytest.raises(ConfigError, match="batch_size must be at least 1, got 0"):
        dataset.batches(batch_size=0)


def test_collating_pads_with_zeros() -> None:
    def item(height: int, width: int) -> Any:
        features = {"C3": torch.ones(2, height, width)}
        targets = cachedet.Targets(
            image_id=1,
            size_hw=(8 * height, 8 * width),
            boxes=torch.zeros(0, 4),
            labels=torch.zeros(0, dtype=torch.int64),
            crowd=torch.zeros(0, dtype=torch.bool),
        )
        return features, targets

    from cachedet.loading.dataset import Item

    batch = cachedet.collate([Item(*item(2, 3)), Item(*item(4, 1))])
    maps = batch.features["C3"]
    assert maps.shape == (2, 2, 4, 3)
    assert maps[0].sum() == 2 * 6
    assert maps[1].sum() == 2 * 4
    assert maps[0, :, 2:].sum() == 0
    assert batch.sizes_hw == [(16, 24), (32, 8)]


class Gives(nn.Module):
    """Returns what a function makes of the images."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, images: Any) -> Any:
        return self.answer(images)


def maps_of(stride: int, channels: int = 2) -> Any:
    return lambda images: [images[:, :1, ::stride, ::stride].expand(-1, channels, -1, -1)]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (maps_of(16), r"gave C3 of shape \(2, \d+, \d+\) for input .*, expected \(2, \d+, \d+\)"),
        (maps_of(8, channels=3), r"gave C3 of shape \(3, "),
        (lambda images: [], r"declares 1 levels \(C3\), .* got 0 maps"),
        (lambda images: images, "got Tensor"),
        (lambda images: {"C4": images}, "returned a dict with 'C4': 'C3' is missing"),
        (lambda images: [images[0]], r"expected C3 as a map \(N, C, h, w\), got torch.Size"),
        (lambda images: ["C3"], r"expected C3 as a map \(N, C, h, w\), got str"),
    ],
)
def test_a_backbone_that_is_not_what_it_declares(
    folder: Path, tmp_path: Path, answer: Any, message: str
) -> None:
    level = LevelSpec(name="C3", channels=2, stride=8)
    backbone = cachedet.wrap_backbone(Gives(answer), name="gives", levels=[level])
    with pytest.raises(BackboneError, match=message):
        cachedet.extract(
            images=folder / "photos",
            annotations=folder / "val.json",
            store=tmp_path / "s.zarr",
            backbone=backbone,
            views="base",
            image_size=64,
        )


def test_what_can_be_no_backbone() -> None:
    level = LevelSpec(name="C3", channels=2, stride=8)
    with pytest.raises(BackboneError, match=r"a torch\.nn\.Module, got str; the name of a timm mo"):
        cachedet.wrap_backbone("resnet50", name="x", levels=[level])  # type: ignore[arg-type]
    with pytest.raises(BackboneError, match="backbone 'x': levels must be ordered fine to coarse"):
        cachedet.wrap_backbone(nn.Identity(), name="x", levels=[])
    with pytest.raises(BackboneError, match=r"or what cachedet\.wrap_backbone\(.*got Identity"):
        cachedet.extract(backbone=nn.Identity())  # type: ignore[arg-type]


def test_a_config_or_plain_arguments(tiny: Any, tmp_path: Path) -> None:
    config = tiny.extract_config(tmp_path / "s.zarr")
    with pytest.raises(ConfigError, match="takes a config or plain arguments, got both: .* codec"):
        cachedet.extract(config, codec="fp16")
    with pytest.raises(ConfigError, match=r"extract: images: is missing$"):
        cachedet.extract(annotations="a.json", store=tmp_path / "s.zarr")
    with pytest.raises(DatasetError, match="nowhere"):
        cachedet.extract(images="nowhere", annotations="no.json", store=tmp_path / "s.zarr")
