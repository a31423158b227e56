"""What a wheel holds must do without the checkout it was built from."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked wheel, built from a copy of what it is made of, without the network."""
    pytest.importorskip("setuptools", minversion="77", reason="builds the wheel")
    root = tmp_path_factory.mktemp("wheel")
    source = root / "source"
    source.mkdir()
    for name in ("cachedet", "configs"):
        shutil.copytree(
            ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = f"from setuptools import build_meta; build_meta.build_wheel({str(root)!r})"
    done = subprocess.run(
        [sys.executable, "-c", build], cwd=source, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = root.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(root / "installed")
    return root / "installed"


def run(installed: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return run_python(installed, folder, "-m", "cachedet", *words)


def run_python(installed: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_presets_are_inside(installed: Path, tmp_path: Path) -> None:
    script = "from cachedet.config.presets import preset_names; print(*preset_names())"
    listed = run_python(installed, tmp_path, "-c", script)
    assert listed.returncode == 0, listed.stderr
    names = listed.stdout.split()
    assert names == sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))
    shown = run(installed, tmp_path, "configs", "show", names[0])
    assert shown.stdout == (ROOT / "configs" / f"{names[0]}.yaml").read_text()


def test_commands_find_presets_and_name_the_nearest(installed: Path, tmp_path: Path) -> None:
    options = ("--train", "train.zarr", "--run", "run")
    known = run(installed, tmp_path, "train-heads", "retinanet_fpn_tiny", *options)
    assert known.returncode == 1
    assert "train.zarr" in known.stderr  # the config was read, the store does not exist
    unknown = run(installed, tmp_path, "train-heads", "configs/retinanet_fpn_tiny.yml", *options)
    assert unknown.returncode == 1
    assert "nearest: 'retinanet_fpn_tiny'" in unknown.stderr


def test_everything_of_the_package_is_inside(installed: Path) -> None:
    """Templates, the demo's config and the mark of typed packages too."""

    def names(root: Path) -> set[str]:
        paths = (path for path in (root / "cachedet").glob("**/*") if path.is_file())
        return {str(path.relative_to(root)) for path in paths if path.suffix != ".pyc"}

    assert names(ROOT) <= names(installed)
