"""README and docs: links lead somewhere, pages are short and plain, commands are right."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
import re
import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
import typer
import yaml
from PIL import Image
from typer.testing import CliRunner

import cachedet
from cachedet.cli import app
from cachedet.commands.options import read_taps, split_names
from cachedet.config.presets import load_config
from cachedet.config.run import ExtractConfig, make_extract_config
from cachedet.data.pixel_windows import parse_file_views
from cachedet.data.shapes import write_shapes
from cachedet.data.views import parse_views
from cachedet.errors import CachedetError
from cachedet.store.codecs.registry import make_codec

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
REFERENCE = "api.md"  # generated from docstrings
MOST_WORDS = {"README.md": 800, "docs/index.md": 150, "docs": 15_000}
LEAST_EASE = 50

_FENCED = re.compile(r"^(```|~~~)(\w*)\n(.*?)^\1 *$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`(cachedet [^`]+)`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
_USAGE_ERROR: type[Exception] = next(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"
)
# Words of the pages that stand for something.
_MEANT = dict.fromkeys(("CONFIG", "NAME", "PRESET"), "cascade_rcnn_nasfpn_tiny") | {
    "STORE": "train.zarr"
}


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


of_pages = pytest.mark.parametrize("page", PAGES, ids=name_of)


# Links, words, navigation


@of_pages
def test_links_and_images_lead_to_files_and_headings(page: Path) -> None:
    lost = []
    for target in _LINK.findall(_FENCED.sub("", page.read_text())):
        place, _, anchor = unquote(target).partition("#")
        if "://" in place:
            continue
        file = (page.parent / place).resolve() if place else page
        if not file.is_file() or (anchor and anchor not in anchors(file)):
            lost.append(target)
        elif page.is_relative_to(DOCS) and not file.is_relative_to(DOCS):
            lost.append(f"{target} leaves docs/, where the site ends")
    assert not lost


@cache
def anchors(page: Path) -> set[str]:
    """Of the headings, as GitHub makes them."""
    found: set[str] = set()
    seen: Counter[str] = Counter()
    for heading in _HEADING.findall(_FENCED.sub("", page.read_text())):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


def test_the_site_shows_every_page_and_every_public_name() -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    shown = sorted(re.findall(r"[\w/.-]+\.md", str(yaml.safe_load(text)["nav"])))
    assert shown == sorted(page.relative_to(DOCS).as_posix() for page in PAGES[1:])
    names = re.findall(r"^::: cachedet\.(\w+)$", (DOCS / REFERENCE).read_text(), re.MULTILINE)
    assert names == [name for name in cachedet.__all__ if name != "__version__"]


def test_readme_and_docs_are_short() -> None:
    """Words have a letter or a digit: the bars of a table are none."""
    words = {
        name_of(page): sum(any(map(str.isalnum, word)) for word in page.read_text().split())
        for page in PAGES
        if page.name != REFERENCE
    }
    docs = sum(count for name, count in words.items() if name.startswith("docs/"))
    counted = {name: {**words, "docs": docs}[name] for name in MOST_WORDS}
    assert all(count <= MOST_WORDS[name] for name, count in counted.items()), counted


@of_pages
def test_pages_are_easy_to_read(page: Path) -> None:
    if page.name != REFERENCE:
        assert reading_ease().measure(page.read_text()).flesch >= LEAST_EASE


@cache
def reading_ease() -> ModuleType:
    """benchmarks/reading_ease.py; a folder of scripts is no package."""
    file = ROOT / "benchmarks" / "reading_ease.py"
    spec = importlib.util.spec_from_file_location("reading_ease", file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Commands


@dataclass(frozen=True)
class Command:
    """A command of a page, and whether it leaves out what does not matter there."""

    text: str
    is_abridged: bool = False

    @property
    def words(self) -> list[str]:
        """What follows `cachedet`; of `[--option]` the option, of CONFIG a preset,
        of $RANK a number."""
        found = shlex.split(re.sub(r" \[(--[^\]]+)\]", r" \1", self.text), comments=True)[1:]
        end = next((n for n, word in enumerate(found) if word in (">", "|", "&&")), len(found))
        return [
            _MEANT.get(word, re.sub(r"^\$\w+$", "0", word)) for word in found[:end] if word != "..."
        ]


def commands_of(text: str) -> list[Command]:
    """Lines of blocks that begin with `cachedet`, as they come; a backslash continues a line."""
    lines = re.sub(r"\\\n\s*", "", "\n".join(lines_of_blocks(text))).splitlines()
    return [Command(line, is_abridged="..." in line) for line in lines if _is_command(line)]


def _is_command(line: str) -> bool:
    return line.startswith("cachedet ")


def lines_of_blocks(text: str) -> Iterator[str]:
    """Those of shell, fenced without a language or indented."""
    fence, before = None, ""
    for line in text.splitlines():
        if line.startswith("```"):
            fence = line if fence is None else None
        elif fence == "```" or (fence is None and line.startswith("    ") and not before.strip()):
            yield line if fence else line.removeprefix("    ")
        in_block = fence is None and line.startswith("    ") and not before.strip()
        before = "" if in_block else line


@of_pages
def test_commands_are_spelled_right(page: Path) -> None:
    """Verbs and options exist and take such values; so do the keys of configs."""
    text = page.read_text()
    spans = [Command(" ".join(span.split()), is_abridged=True) for span in _SPAN.findall(text)]
    faults = {
        command.text: fault
        for command in [*commands_of(text), *spans]
        if (fault := fault_of(command)) is not None
    }
    assert not faults


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("cachedet trian runs/a", "No such command"),
        ("cachedet configs shwo NAME", "No such command"),
        ("cachedet --verison", "No such option"),
        ("cachedet eval runs/a --stoer val.zarr", "No such option"),
        ("cachedet predict runs/a photos/ --every often", "valid integer"),
        ("cachedet eval --detections", "requires an argument"),
        ("cachedet train-heads CONFIG --train a.zarr", "Missing parameter: run"),
        ("cachedet model retinanet_fpn_tyni", "nearest: 'retinanet_fpn_tiny'"),
        ("cachedet model CONFIG --set schedule.epoch=3", "epoch"),
        ("cachedet model CONFIG --set detector.neck.channels=few", "channels"),
        ("cachedet eval runs/a --views hflop", "hflop"),
        ("cachedet extract --images a --annotations b --store c --codec int9", "int9"),
        ("cachedet extract --images a --annotations b --store c --on-bad-image skpi", "skip"),
    ],
)
def test_misspelled_commands_are_found(line: str, fault: str) -> None:
    assert fault in str(fault_of(Command(line)))
    assert fault_of(Command("cachedet train-heads ...", is_abridged=True)) is None


def fault_of(command: Command) -> str | None:
    """What is wrong with it, found without running it."""
    try:
        verb, values = parse(command)
        check_values(verb, values)
    except _USAGE_ERROR as error:
        is_open = command.is_abridged and "Missing " in str(error)
        return None if is_open else f"{type(error).__name__}: {error}"
    except CachedetError as error:
        return str(error)
    return None


def parse(command: Command) -> tuple[str, dict[str, Any]]:
    """Verb and values of its options. Raises the errors of typer."""
    group: Any = typer.main.get_command(app)
    words = command.words
    while hasattr(group, "commands") and words and not words[0].startswith("-"):
        if words[0] not in group.commands:
            raise typer.BadParameter(f"No such command: {words[0]}")
        group, words = group.commands[words[0]], words[1:]
    if hasattr(group, "commands"):  # its options act as soon as they are parsed
        known = {name for option in group.params for name in option.opts}
        if unknown := set(words) - known:
            raise typer.BadParameter(f"No such option: {unknown}")
        return "", {}
    parsed = group.make_context(group.name, words)
    return str(group.name), parsed.params


def check_values(verb: str, values: dict[str, Any]) -> None:
    """What options of text mean. Raises CachedetError."""
    named = values.get("config") or values.get("configs") or values.get("preset") or ()
    changes = [change for change in values.get("overrides") or () if "..." not in change]
    for config in [named] if isinstance(named, str) else named:
        load_config(config, overrides=changes)
    for name in ("views", "keep_views"):
        if values.get(name):
            (parse_file_views if verb == "predict" else parse_views)(values[name])
    for codec in filter(None, [values.get("codec"), *str(values.get("codecs") or "").split(",")]):
        make_codec(codec)
    if verb == "extract":
        keys = ExtractConfig.model_fields.keys() & {key for key in values if values[key]}
        texts = {"levels": split_names(values["levels"]), "taps": read_taps(values["taps"])}
        make_extract_config({key: values[key] for key in keys} | texts)


# The guide at work

# What makes a command quick: appended, so that the last one given counts.
_SMALLER = {
    "extract": "--image-size 128",
    "estimate": "--image-size 128 --sample 4 --seconds 0.3",
    "compare": "--image-size 128 --epochs 1 --seeds 0",
    "train-heads": "--set schedule.epochs=1",
}
_NOT_RUN = re.compile(r"^<!-- not run: .+ -->\n+(```.*?^```|(?: {4}.*\n|\n(?= {4}))+)", re.M | re.S)
GUIDE = [page for page in PAGES[1:] if page.parent == DOCS and commands_of(page.read_text())]


def runnable(page: Path) -> list[list[str]]:
    """Words of the commands that can run here.

    A block under `<!-- not run: REASON -->` cannot, nor what names a bucket or ends in `...`.
    """
    found = []
    for command in commands_of(_NOT_RUN.sub("", page.read_text())):
        words = command.words
        if command.is_abridged or "://" in command.text:
            continue
        if (words[0], page.name) != ("train-heads", "README.md"):  # so that its run finds something
            words += _SMALLER.get(words[0], "").split()
        words += ["--weights", "none"] if "--backbone" in words else []  # the others' are far away
        found.append(words)
    return found


@pytest.fixture(scope="module")
def first(exports: ModuleType, write_video: Any, tmp_path_factory: Any) -> Path:
    """A folder with all that the pages speak of, in which the README's commands ran."""
    root: Path = tmp_path_factory.mktemp("docs")
    paths = write_shapes(root, train=8, val=4)
    paths.images.rename(root / "photos")
    photos = sorted((root / "photos").iterdir())
    for name in ("new-photos", "aerial"):
        (root / name).mkdir()
        shutil.copy(photos[0], root / name)
    write_video(root / "clip.mp4", [np.asarray(Image.open(photos[0]).resize((128, 96)))] * 6)
    write_lists(root)
    write_zoo(root, exports)
    with contextlib.chdir(root):
        for words in runnable(PAGES[0]):
            run(words)
    return root


def write_lists(root: Path) -> None:
    """Fewer annotations, and what programs found."""
    content = json.loads((root / "train.json").read_text())
    (root / "new.json").write_text(json.dumps(without_first(content)))
    val = json.loads((root / "val.json").read_text())
    keys = ("image_id", "category_id", "bbox")
    found = [{key: one[key] for key in keys} | {"score": 0.5} for one in val["annotations"]]
    for name in ("results.json", "a/detections.json", "b/detections.json"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(json.dumps(found))


def write_zoo(root: Path, exports: ModuleType) -> None:
    """A data set as YOLO, and files of its images for later."""
    shots = exports.SHOTS
    val = [replace(shot, name=f"val_{shot.name}") for shot in shots]
    file = exports.write_yolo(root / "zoo", {"train": shots, "val": val})
    cachedet.convert(f"{file}:val", root / "zoo" / "val.json")
    cachedet.convert(f"{file}:train", root / "all.json")
    content = json.loads((root / "all.json").read_text())
    (root / "corrected.json").write_text(json.dumps(content | {"annotations": []}))
    (root / "clean.json").write_text(json.dumps(without_first(content)))


def without_first(content: dict[str, Any]) -> dict[str, Any]:
    """Annotations without the first image."""
    first, *images = content["images"]
    kept = [one for one in content["annotations"] if one["image_id"] != first["id"]]
    return content | {"images": images, "annotations": kept}


def run(words: list[str]) -> None:
    """In this process."""
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, f"cachedet {shlex.join(words)}\n{done.output}\n{done.exception!r}"


@pytest.mark.thorough
def test_the_commands_of_the_readme_run(first: Path) -> None:
    assert (first / "runs" / "first" / "report.html").is_file()


@pytest.mark.thorough
@pytest.mark.parametrize("page", GUIDE, ids=name_of)
def test_the_commands_of_a_page_run(
    page: Path, first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One after the other, beside what the README's commands left."""
    root = tmp_path / "here"
    shutil.copytree(first, root)
    monkeypatch.chdir(root)
    made: set[str] = set()
    for words in runnable(page):
        options = dict(itertools.pairwise(words))
        target = options.get({"extract": "--store", "train-heads": "--run"}.get(words[0], ""))
        if target is not None and target not in made:  # the page makes its own
            shutil.rmtree(root / target, ignore_errors=True)
            made.add(target)
        run(words)
