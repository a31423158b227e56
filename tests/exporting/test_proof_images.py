"""Images that calibrate int8 never score it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cachedet.errors import InputError
from cachedet.exporting.proof_images import ProofImages, choose_calibration


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Forty images."""
    (tmp_path / "images").mkdir()
    for number in range(40):
        image = Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8))
        image.save(tmp_path / "images" / f"{number:02d}.png")
    return tmp_path / "images"


def annotations(folder: Path, count: int) -> Path:
    """That name the first so many images."""
    names = [f"{number:02d}.png" for number in range(count)]
    content = {
        "images": [
            {"id": number, "file_name": name, "width": 8, "height": 8}
            for number, name in enumerate(names, start=1)
        ],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 4, 4]}],
        "categories": [{"id": 1, "name": "a"}],
    }
    path = folder.parent / f"{count}.json"
    path.write_text(json.dumps(content))
    return path


def test_the_others_of_the_folder_calibrate(folder: Path) -> None:
    proof = ProofImages(folder=folder, annotations=annotations(folder, 10))
    chosen = choose_calibration(proof, None)
    assert [file.name for file in chosen.files] == [f"{n:02d}.png" for n in range(10, 40)]
    assert chosen.described == "of the folder images that the annotations do not name"
    assert chosen.truth is not None
    assert list(chosen.truth.rows) == list(range(10))


def test_halves_where_all_are_named(folder: Path) -> None:
    chosen = choose_calibration(
        ProofImages(folder=folder, annotations=annotations(folder, 40)), None
    )
    assert [file.name for file in chosen.files] == [f"{n:02d}.png" for n in range(1, 40, 2)]
    assert "every second one of the named among them" in chosen.described
    assert chosen.truth is not None
    assert list(chosen.truth.rows) == list(range(0, 40, 2))


def test_a_folder_of_their_own(folder: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    for number in range(130):
        (own / f"{number:03d}.png").touch()
    proof = ProofImages(folder=folder, annotations=annotations(folder, 40))
    chosen = choose_calibration(proof, own)
    assert len(chosen.files) == 64  # spread over the folder
    assert chosen.described == "of the folder own"
    assert chosen.truth is not None
    assert list(chosen.truth.rows) == list(range(40))
    assert choose_calibration(ProofImages(), own).truth is None
    with pytest.raises(InputError, match="no images for --int8 besides those that score it"):
        choose_calibration(proof, folder)
    Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(own / "000.png")
    assert len(chosen.read()) == 1  # the others are empty files, and passed over
    (own / "000.png").write_bytes(b"")
    with pytest.raises(InputError, match="none of the 64 images for --int8 can be read"):
        chosen.read()
    with pytest.raises(InputError, match="give --images or --calibrate"):
        choose_calibration(ProofImages(), None)
