"""The workshop in which commands are run, and what is looked at afterwards."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cachedet.text import shell_line

SECONDS = 120  # that a command may take on a busy machine
BEFORE = """
import os, resource
os.chdir({cwd!r})
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (2 << 30), -1))
"""
SMALL = """
detector: {kind: retinanet, norm: batch, num_convs: 1, neck: {kind: fpn, channels: 8}}
schedule: {epochs: 1, batch_size: 4, optimizer: adamw, lr: 0.001}
device: cpu
"""
State = dict[Path, tuple[object, ...]]


@dataclass(frozen=True)
class Fuzz:
    """Runs cases, each in a copy of the workshop."""

    nursery: Any
    cases: Any  # the module
    template: Path
    folder: Path
    weights: Path

    def check(self, kind: str, seed: int) -> str | None:
        """What is wrong after a case; None: nothing."""
        root = self.folder / f"{kind}{seed}"
        shutil.copytree(self.template, root, symlinks=True)
        os.mkfifo(root / "user" / "pipe")
        shop = self.cases.Workshop(root, self.weights)
        case = self.cases.KINDS[kind](random.Random(f"{kind} {seed}"), shop)
        before = state_of(root)
        started = self.nursery.start_command(
            case.words,
            before=BEFORE.format(cwd=str(root / "cwd")),
            environment={"COLUMNS": "80"},
        )
        faults = []
        with started as process:
            try:
                out, err = process.communicate(timeout=SECONDS)
                faults += faults_of_output(process.returncode, out, err)
            except subprocess.TimeoutExpired:
                process.kill()
                out, err = "", ""
                faults.append(f"it took more than {SECONDS} s")
        faults += harm_between(before, state_of(root), case, shop)
        shutil.rmtree(root)
        if not faults:
            return None
        return (
            f"{kind}, seed {seed}: {'; '.join(faults[:4])}\n  cachedet {shell_line(case.words)}\n"
            f"  again: pytest tests/fuzz -k {kind} --fuzz-seed {seed}\n{(out + err)[-1500:]}"
        )


def faults_of_output(status: int, out: str, err: str) -> Iterator[str]:
    if "Traceback" in out + err:
        lines = [line for line in err.splitlines() if line and not line.startswith(" ")]
        yield f"a traceback: {lines[-1] if lines else ''}"
    if status not in (0, 1, 2):
        yield f"the exit status is {status}"
    if status != 0 and not (out + err).strip():
        yield f"status {status} and not a word"
    raw = re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", out + err)
    if raw:
        yield f"{raw[0]!r} is printed raw"


def state_of(root: Path) -> State:
    """Type, size, time and content of every file, link and folder; links are not followed."""
    found: State = {}
    for folder, names, files in os.walk(root):
        for name in [*names, *files]:
            path = Path(folder, name)
            status = path.lstat()
            if path.is_symlink():
                found[path] = ("link", os.readlink(path), status.st_mtime_ns)
            elif not path.is_file():
                found[path] = ("folder" if path.is_dir() else "pipe",)
            else:
                digest = hashlib.blake2b(path.read_bytes()).hexdigest()
                found[path] = ("file", status.st_size, status.st_mtime_ns, digest)
    return found


def harm_between(before: State, after: State, case: Any, shop: Any) -> Iterator[str]:
    """What was changed that is somebody's, and what appeared where nothing was asked for."""
    theirs = (shop.user, shop.elsewhere, shop.given)
    allowed = [path for output in case.outputs for path in (output, Path(os.path.realpath(output)))]
    for path in sorted(before.keys() | after.keys()):
        was, is_now = before.get(path), after.get(path)
        if was == is_now:
            continue
        place = Path(os.path.realpath(path.parent), path.name)
        is_asked_for = any(
            place.is_relative_to(output)
            or (place.parent == output.parent and place.stem == output.stem)  # of a report
            or output.is_relative_to(place)  # a folder on the way
            for output in allowed
        )
        is_theirs = any(path.is_relative_to(folder) for folder in theirs)
        if was is not None and (is_theirs or not is_asked_for):
            yield f"{path.relative_to(shop.root)} was {'changed' if is_now else 'deleted'}"
        elif was is None and not is_asked_for:
            yield f"{path.relative_to(shop.root)} has appeared"


@pytest.fixture(scope="session")
def cases() -> Any:
    """cases.py."""
    return load_cases()


@pytest.fixture(scope="module")
def fuzz(tiny: Any, nursery: Any, tmp_path_factory: pytest.TempPathFactory) -> Fuzz:
    from cachedet.evaluate import evaluate
    from cachedet.train import train

    folder = tmp_path_factory.mktemp("fuzz")
    template = folder / "template"
    for name in ("user", "elsewhere", "given", "made", "out", "cwd"):
        (template / name).mkdir(parents=True)
    shutil.copytree(tiny.paths.images, template / "user" / "photos")
    shutil.copy(tiny.paths.train, template / "user" / "annotations.json")
    shutil.copytree(tiny.train, template / "made" / "store.zarr")
    (folder / "small.yaml").write_text(SMALL)
    run = template / "made" / "run"
    train(str(folder / "small.yaml"), run=run, train_store=tiny.train)
    evaluate(run, store=tiny.train)
    entries = json.loads(tiny.paths.train.read_text())["annotations"]
    found = [
        {key: entry[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.5}
        for entry in entries
    ]
    (template / "user" / "results.json").write_text(json.dumps(found))
    _add_belongings(template / "user", template / "elsewhere")
    cases = load_cases()
    return Fuzz(nursery, cases, template, folder, tiny.weights)


def load_cases() -> Any:
    """cases.py: tests cannot import each other."""
    import importlib.util

    path = Path(__file__).with_name("cases.py")
    spec = importlib.util.spec_from_file_location("tests_fuzz_cases", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _add_belongings(user: Path, elsewhere: Path) -> None:
    """What lies about in people's folders, with the names that cachedet's own files have."""
    for name in ("notes.txt", "detections.json", "report.html", "report.md", "report.json",
                 "x.md", "x.json", "config.yaml", "best.pt", "metrics.csv"):  # fmt: skip
        (user / name).write_text(f"{name} is mine\n")
    (elsewhere / "thesis.tmp").write_text("years of work\n")
    (elsewhere / "manifest.json").write_text("{}\n")
    (user / "folder").mkdir()
    (user / "folder" / "kept.json").write_text("[]\n")
    for name, target in {
        "link to photos": "photos", "link to a file": "notes.txt", "dangling": "nowhere",
        "loop": "loop", "link elsewhere": "../elsewhere", "link.html": "notes.txt",
    }.items():  # fmt: skip
        (user / name).symlink_to(target)
