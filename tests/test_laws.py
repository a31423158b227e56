"""The laws of the design that concern the whole tree: L1, L2 and the shape of the layout."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "cachedet"
# Each room may import those before it; verbs come last. What one does to train a detector:
MAIN_JOB = (
    "version", "allocator", "errors", "text", "structures", "progress", "device", "compiler",
    "flops", "distributed", "config", "data", "backbone", "store", "outputs", "extraction",
    "detector", "augmentation", "loading", "training", "drawing", "evaluation", "prediction",
    "exporting", "train", "evaluate", "extract", "predict", "export", "convert", "relabel",
)  # fmt: skip
# What one does to learn about it; nothing of the main job knows these.
LABORATORY = (
    "inspection", "live", "series", "estimation", "reporting", "serving", "comparison",
    "sweeping", "check", "report", "serve", "model", "estimate", "compare", "sweep", "demo",
)  # fmt: skip
ORDER = (*MAIN_JOB, *LABORATORY, "commands", "cli", "__main__")


def modules() -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if path.name != "__init__.py"]


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "version"


def imports_of(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.append(node.module or "")
            found.extend(f"{node.module}.{alias.name}" for alias in node.names)
        if isinstance(node, ast.Import):
            found.extend(alias.name for alias in node.names)
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    """Law L2."""
    own = path.relative_to(PACKAGE).with_suffix("").parts
    for name in imports_of(path):
        if name == "timm" or name.startswith("timm."):
            assert own[0] == "backbone", f"{path} imports timm"
        if name.split(".")[0] == "hotcoco":  # so that another evaluator could take its place
            assert own == ("evaluation", "metrics"), f"{path} imports hotcoco"
        if name.split(".")[0] in ("starlette", "uvicorn"):  # the extra `serve`
            assert own[0] == "serving", f"{path} imports {name}"
        if name.split(".")[0] == "optuna" and own != ("sweep",):  # which asks whether it is there
            assert own == ("sweeping", "study"), f"{path} imports {name}"
        if not name.startswith("cachedet."):
            continue
        room = room_of(name)
        if room != own[0]:
            assert ORDER.index(room) < ORDER.index(own[0]), f"{path} imports {name}"


def test_the_main_job_does_not_know_the_laboratory() -> None:
    """It follows from the order; said once more, as it is the one line that people remember."""
    for path in modules():
        if path.relative_to(PACKAGE).with_suffix("").parts[0] in MAIN_JOB:
            rooms = {room_of(name) for name in imports_of(path) if name.startswith("cachedet.")}
            assert not rooms & set(LABORATORY), path
            assert "cachedet" not in imports_of(path), f"{path} imports the public names"


def test_nobody_outside_asks_which_detector_it_is() -> None:
    """A detector is what its methods make it: detector/protocol.py."""
    asks = re.compile(r"isinstance\([^)]*\b(RetinaNet|RCNN)\b")
    for path in modules():
        if path.parent.name != "detector":
            assert not asks.search(path.read_text()), path


def test_the_library_never_prints() -> None:
    for path in modules():
        if path.relative_to(PACKAGE).parts[0] in ("commands", "cli.py", "__main__.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            is_print = isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"
            assert not is_print or path.stem == "progress", f"{path} prints"


@pytest.mark.parametrize(
    "path",
    sorted((PACKAGE / "store").rglob("*.py")),
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_the_store_knows_nothing_of_detection(path: Path) -> None:
    rooms = {room_of(name) for name in imports_of(path) if name.startswith("cachedet.")}
    assert not rooms & {"detector", "loading", "evaluation"}
    assert "Targets" not in path.read_text()


def test_no_cycles_inside_a_room() -> None:
    """Law L2 within rooms: repeatedly take away modules that import nothing that is left."""
    left = {
        "cachedet." + ".".join(path.relative_to(PACKAGE).with_suffix("").parts): set(
            imports_of(path)
        )
        for path in modules()
    }
    while left:
        free = [name for name, imported in left.items() if not imported & left.keys()]
        assert free, f"these import each other: {sorted(left)}"
        for name in free:
            del left[name]


def test_training_and_scoring_need_no_backbone() -> None:
    """Law L1, on a machine where timm and the images' decoder cannot be imported at all."""
    modules = (
        "cachedet.train", "cachedet.evaluate", "cachedet.model", "cachedet.predict",
        "cachedet.exporting.model_scores", "cachedet.report", "cachedet.store.reader",
        "cachedet.store.verify", "cachedet.estimation.mode_trials",
    )  # fmt: skip
    script = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] == 'timm' or name.startswith('cachedet.backbone'):\n"
        "            raise ImportError('refused ' + name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        f"import {', '.join(modules)}\n"
        "assert not any(name.split('.')[0] == 'timm' for name in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_files_and_functions_stay_readable() -> None:
    for path in modules():
        text = path.read_text()
        assert text.count("\n") <= 600, path
        assert path.stem not in {"utils", "common", "helpers", "base", "misc"}, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 80, f"{path}: {node.name}"


def test_no_two_files_have_one_name() -> None:
    names = [path.stem for path in modules()]
    assert sorted(set(names)) == sorted(names)


def test_errors_inherit_one_parent() -> None:
    from cachedet import errors

    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    kinds = [kind for kind in kinds if kind.__module__ == errors.__name__]
    assert len(kinds) >= 12
    assert all(issubclass(kind, errors.CachedetError) for kind in kinds)
