"""`cachedet compare` as a user calls it: a smoke comparison, going on, adding, failing cells."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from cachedet.cli import app
from cachedet.device import choose_device
from cachedet.extract import extract
from cachedet.store.reader import FeatureStore

CONFIG = Path(__file__).parents[2] / "configs" / "retinanet_fpn_tiny.yaml"
SMALL = (
    "detector.neck.channels=16",
    "detector.num_convs=1",
    "schedule.batch_size=4",
    "eval_every=1",
    "augment.flip=0.5",
)


@pytest.fixture
def run_compare(tiny: Any, tmp_path: Path) -> Any:
    def run(
        *more: str,
        configs: tuple[Path, ...] = (CONFIG,),
        images: Path | None = None,
        train: Path | None = None,
        val: Path | None = None,
    ) -> Result:
        options = ["--images", str(images or tiny.paths.images)]
        options += ["--annotations", str(train or tiny.paths.train)]
        options += ["--val-annotations", str(val or tiny.paths.val)]
        options += ["--out", str(tmp_path / "out")]
        options += ["--backbone", "test_resnet", "--weights", str(tiny.weights)]
        options += ["--image-size", "128", "--device", "cpu", "--workers", "1"]
        options += ["--views", "base,hflip", "--codec", "fp32", "--resamples", "20"]
        for text in SMALL:
            options += ["--set", text]
        return CliRunner().invoke(app, ["compare", *map(str, configs), *options, *more])

    return run


def cells_of(result: Result) -> dict[str, Any]:
    return {
        f"{cell['key']['heads']} {cell['key']['mode']} {cell['key']['seed']}": cell
        for cell in json.loads(result.stdout)["cells"]
    }


def test_two_cells_then_more(run_compare: Any, tiny: Any, tmp_path: Path) -> None:
    result = run_compare("--modes", "cached,tuned", "--epochs", "2", "--json")
    assert result.exit_code == 0, result.stderr
    cells = cells_of(result)
    assert list(cells) == ["retinanet_fpn_tiny cached 0", "retinanet_fpn_tiny tuned 0"]
    assert all(cell["epochs"] == 2 and cell["error"] == "" for cell in cells.values())
    assert cells["retinanet_fpn_tiny cached 0"]["extraction_seconds"] > 0
    html = (tmp_path / "out" / "comparison.html").read_text()
    assert "fine-tuned" in html
    markdown = (tmp_path / "out" / "comparison.md").read_text()
    assert markdown.startswith("<!-- written by cachedet")
    assert "what augment moves in maps is moved in the images" in markdown
    kept = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert len(kept["cells"]) == 2
    assert kept["cautions"] == json.loads(result.stdout)["cautions"]  # two epochs say little
    assert kept["cautions"][0]["text"] in " ".join(html.split())
    assert all(cell["late_rise"] is not None for cell in kept["cells"])

    moved = shutil.copytree(tiny.paths.images, tmp_path / "moved")
    more = run_compare(
        "--modes", "cached", "--seeds", "0,1", "--epochs", "2", "--json", images=moved
    )
    assert more.exit_code == 0, more.stderr
    again = cells_of(more)
    assert len(again) == 3
    for name, cell in cells.items():  # read, not trained again
        assert again[name] == cell

    other = run_compare("--modes", "cached", "--epochs", "3")
    assert other.exit_code == 1
    assert "holds another comparison: epochs was 2, is 3" in other.stderr

    changed = tiny.change(
        tiny.paths.train, tmp_path / "changed.json", lambda values: values["annotations"].pop()
    )
    refused = run_compare("--modes", "cached", "--epochs", "2", train=changed)
    assert refused.exit_code == 1
    assert "has other boxes or classes for the same images" in refused.stderr
    assert "instead of another --store, or of relabelling, choose another --out" in refused.stderr

    settings = tmp_path / "out" / "settings.json"
    here = choose_device("auto").type
    settings.write_text(settings.read_text().replace('"device": "cpu"', '"device": "elsewhere"'))
    elsewhere = run_compare("--modes", "cached", "--epochs", "2", "--device", "auto")
    assert elsewhere.exit_code == 1
    assert f"heads.retinanet_fpn_tiny.device was elsewhere, is {here}" in elsewhere.stderr


@pytest.mark.thorough
def test_a_plain_vit_is_cut_between_its_blocks(run_compare: Any) -> None:
    """Its state is stored beside the map of the other modes."""
    done = run_compare(
        "--modes", "cached,partial,tuned", "--freeze-at", "L4", "--epochs", "1", "--json",
        "--backbone", "test_vit", "--weights", "none", "--set",
        "detector.neck={kind: simple, channels: 16, num_levels: 3}", "--set", "augment.flip=0",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    cells = cells_of(done)
    assert [cell["error"] for cell in cells.values()] == ["", "", ""]
    assert list(cells)[1] == "retinanet_fpn_tiny partial_L4 0"


def bytes_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_stores_that_were_there_before(run_compare: Any, tiny: Any, tmp_path: Path) -> None:
    """What they took is not known, and of their views those that are asked for are trained on."""
    store = tmp_path / "out" / "features" / "train.zarr"
    store.parent.mkdir(parents=True)
    extract(tiny.extract_config(store, block_size=16, batch_size=8, views="base,hflip,scale-0.5"))
    options = ("--modes", "cached", "--views", "base,hflip")
    refused = run_compare(*options, "--budget", "5m")
    assert refused.exit_code == 1
    assert f"how long {store} took is not known" in refused.stderr
    assert not (tmp_path / "out" / "cells").exists()

    shutil.rmtree(tmp_path / "out")  # from here on stores elsewhere
    elsewhere = shutil.copytree(tiny.train, tmp_path / "before.zarr")
    before = bytes_of(elsewhere) | bytes_of(tiny.val)
    given = ("--train-store", str(elsewhere), "--val-store", str(tiny.val), "--modes", "cached")
    refused = run_compare(*given, "--budget", "5m")
    assert refused.exit_code == 1
    assert "Compare with --epochs, or leave --train-store out" in refused.stderr
    refused = run_compare(*given, "--epochs", "1", "--views", "base,scale-0.5")
    assert "--views: base, hflip there, which lacks scale-0.5" in refused.stderr
    refused = run_compare(*given, "--epochs", "1", "--out", str(elsewhere / "out"))
    assert f"--out {elsewhere / 'out'} lies inside the feature store" in refused.stderr
    refused = run_compare(*given, "--epochs", "1", "--views", "hflip", "--weights", "none")
    assert re.search("--weights: .* there, .* here, which differ", refused.stderr)
    assert not (tmp_path / "out").exists()

    options = (*given, "--epochs", "1", "--views", "hflip")
    result = run_compare(*options, "--json")
    assert result.exit_code == 0, result.stderr
    (cell,) = cells_of(result).values()
    assert cell["extraction_seconds"] is None
    trained = tmp_path / "out" / "cells" / "retinanet_fpn_tiny-cached-0" / "config.yaml"
    assert yaml.safe_load(trained.read_text())["views"] == {"hflip": 1.0}
    markdown = (tmp_path / "out" / "comparison.md").read_text()
    assert "not known what it took" in markdown
    assert "hflip (fp32)" in markdown
    assert bytes_of(elsewhere) | bytes_of(tiny.val) == before
    assert [path.name for path in (tmp_path / "out" / "features").iterdir()] == []

    moved = elsewhere.rename(tmp_path / "moved.zarr")
    again = run_compare(*options, "--json", "--train-store", str(moved))
    assert again.exit_code == 0, again.stderr
    own = run_compare("--modes", "cached", "--epochs", "1", "--views", "hflip")
    assert own.exit_code == 1
    assert "holds another comparison: stores.train was" in own.stderr


def _drop_class(values: dict[str, Any]) -> None:
    gone = values["categories"].pop()["id"]
    values["annotations"] = [o for o in values["annotations"] if o["category_id"] != gone]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: values["annotations"].clear(), "holds no boxes (crowds aside)"),
    ],
)
def test_scored_images_that_do_not_fit_are_refused_before_training(
    run_compare: Any, tiny: Any, tmp_path: Path, change: Any, message: str
) -> None:
    val = tiny.change(tiny.paths.val, tmp_path / "val.json", change)
    result = run_compare("--modes", "cached,tuned", "--epochs", "1", val=val)
    assert result.exit_code == 1
    assert "retinanet_fpn_tiny: the validation store" in result.stderr
    assert message in result.stderr
    assert "with others, choose another --out" in result.stderr
    assert not (tmp_path / "out" / "cells").exists()


def test_other_classes_are_refused_before_any_extraction(
    run_compare: Any, tiny: Any, tmp_path: Path
) -> None:
    val = tiny.change(tiny.paths.val, tmp_path / "val.json", _drop_class)
    result = run_compare("--modes", "cached", "--epochs", "1", val=val)
    assert result.exit_code == 1
    told = " ".join(result.stderr.split())
    assert "has other classes than --annotations" in told
    assert "only there {}, only for training {30: 'crescent'}; give both files the same" in told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w, h, box: [box[0] / w, box[1] / h, box[2] / w, box[3] / h], "lie within 0..1"),
        (
            lambda w, h, box: [w - 40, h - 40, w - 1, h - 1],
            "none would as corners [x1, y1, x2, y2]",
        ),
    ],
)
def test_scored_boxes_that_are_none_are_refused_before_any_extraction(
    run_compare: Any, tiny: Any, tmp_path: Path, change: Any, message: str
) -> None:
    def spoil(values: dict[str, Any]) -> None:
        sizes = {image["id"]: (image["width"], image["height"]) for image in values["images"]}
        for entry in values["annotations"]:
            entry["bbox"] = change(*sizes[entry["image_id"]], entry["bbox"])

    val = tiny.change(tiny.paths.val, tmp_path / "val.json", spoil)
    result = run_compare("--modes", "cached", "--epochs", "1", val=val)
    assert result.exit_code == 1
    assert message in " ".join(result.stderr.split())
    assert not (tmp_path / "out").exists()


def test_images_in_both_sets_are_noted_first(run_compare: Any, tiny: Any) -> None:
    """Here a mode is refused after it."""
    result = run_compare("--modes", "partial", "--freeze-at", "C5", val=tiny.paths.train)
    assert result.exit_code == 1
    told = " ".join(result.stderr.split())
    assert f"note: 8 images of --val-annotations {tiny.paths.train} are in --annotations" in told
    assert "too (train_00000.jpg; train_00001.jpg; " in told
    assert "cannot be cut at 'C5'" in told


def test_classes_are_chosen_for_both(run_compare: Any, tmp_path: Path) -> None:
    """Also those that the annotations to score on have and the choice leaves out."""
    choice = ("--merge-classes", "star,ring=shiny", "--classes", "disc,shiny")
    result = run_compare("--modes", "cached", "--epochs", "1", "--json", *choice)
    assert result.exit_code == 0, result.output
    for kind in ("train", "val"):
        store = FeatureStore.open(tmp_path / "out" / "features" / f"{kind}.zarr")
        assert store.manifest.categories.names == ("disc", "shiny")
    again = run_compare("--modes", "cached", "--epochs", "1", "--classes", "disc,star")
    told = " ".join(again.stderr.split())
    assert again.exit_code == 1
    assert "classes: only there {12: 'shiny'}, only now {12: 'star'}" in told
    assert "choose another --out" in told


def test_a_failed_cell_leaves_the_others(run_compare: Any, tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text(CONFIG.read_text().replace("kind: retinanet", "kind: retinanet\n  levels: [C9]"))
    result = run_compare("--modes", "cached", "--epochs", "1", configs=(bad, CONFIG))
    assert result.exit_code == 1
    printed = " ".join(result.stdout.split())
    assert "detector.levels asks for 'C9'" in printed
    assert "The same command tries it again, from its start once" in printed
    assert "some cells failed" in result.stderr
    cells = json.loads((tmp_path / "out" / "comparison.json").read_text())["cells"]
    assert [bool(cell["error"]) for cell in cells] == [True, False]
    folder = tmp_path / "out" / "cells" / "bad-cached-0"
    assert f"once {folder} is removed; a changed config goes under" in cells[0]["error"]
    single = run_compare("--modes", "cached", "--epochs", "1")
    assert single.exit_code == 0, "a failed cell that this call did not ask for"

    bad.write_text(CONFIG.read_text())  # repaired
    repaired = run_compare("--modes", "cached", "--epochs", "1", "--json", configs=(bad, CONFIG))
    assert repaired.exit_code == 0, repaired.stderr
    assert [cell["error"] for cell in cells_of(repaired).values()] == ["", ""]
    assert (tmp_path / "out" / "failed" / "0-bad-cached-0" / "cell.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--modes", "frozen"), "unknown mode 'frozen'"),
        (("--seeds", "0,0"), "the seed 0 is named more than once"),
        (("--seeds", str(2**70)), "--seeds expects numbers up to 9223372036854775807"),
        (("--seeds", "x"), "--seeds expects whole numbers"),
        (("--epochs", "1", "--budget", "5m"), "--epochs and --budget are two ways"),
        (("--budget", "soon"), "--budget expects a time such as 10m"),
        (("--batch-norm", "off"), "--batch-norm expects frozen or trained"),
        (("--set", "init_from=somewhere"), "init_from is 'somewhere': all modes start"),
        (("--set", "nonsense=1"), "unknown key 'nonsense'"),
        (("--device", "cuda:77"), "device 'cuda:77' cannot be used here"),
        (
            ("--modes", "cached,partial", "--freeze-at", "C4,C5"),
            "--modes partial trains the stages behind --freeze-at C5: test_resnet cannot be cut at "
            "'C5': expected one of its levels but the last, C3, C4",
        ),
        (
            ("--modes", "partial", "--backbone", "test_vit", "--weights", "none"),
            "--freeze-at C4: test_vit cannot be cut",
        ),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    run_compare: Any, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    result = run_compare(*options)
    assert result.exit_code == 1
    assert message in result.stderr
    assert not (tmp_path / "out").exists()
