"""What each preset gives on each data set: AP, seconds, memory and bytes, as tables in a page.

python benchmarks/results.py --data DIR --out DIR [--page FILE] [--seeds 1] [--epochs 20]

--data holds a folder for each set, with images/, train.json and val.json as COCO writes them. Each
preset is trained on each set with all frozen (cached); the first one also with the last stage
trained from the cache (partial) where the backbone can be cut, and fine-tuned (tuned). That is
`cachedet compare` with one folder of --out a set: what is there already is not trained again, so
the same command goes on after an interruption, or with more presets, modes and seeds.

The page is written after each training: what stands between its two marks is replaced. A --page
that does not exist is begun, for a table of other hardware. All trainings have the same epochs, by
default those of the presets, so AP does not depend on the machine. Seconds are of the processor,
so that other work on the machine adds nothing to them; on CUDA of the clock. With the defaults and
two sets of a few hundred images it all takes about an hour of one core.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch

from cachedet.backbone.frozen import load_backbone
from cachedet.backbone.split import split_backbone
from cachedet.compare import compare, extract_stores
from cachedet.comparison.cell import ComparisonConfig
from cachedet.comparison.folder import ComparisonFolder
from cachedet.comparison.results import RESULT, CellKey, CellResult
from cachedet.comparison.summary import Group, Summary, summarise
from cachedet.config.presets import load_config, preset_names
from cachedet.config.run import make_extract_config
from cachedet.device import choose_device
from cachedet.errors import BackboneError
from cachedet.extract import open_dataset
from cachedet.live.mode_names import kind_of, partial_mode
from cachedet.store.format.manifest import library_versions
from cachedet.store.reader import FeatureStore
from cachedet.training.stopping import STOPPED_STATUS

PAGE = Path(__file__).parents[1] / "docs" / "results.md"
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
PRESETS = (  # as docs/detectors.md recommends them
    "cascade_rcnn_nasfpn_tiny", "cascade_rcnn_fpn_tiny", "retinanet_fpn_tiny",
    "faster_rcnn_fpn_tiny", "cascade_rcnn_fpn_small", "faster_rcnn_nasfpn_tiny",
    "retinanet_nasfpn_tiny",
)  # fmt: skip
TRAINED = {"cached": "frozen", "partial": "last stage", "tuned": "fine-tuned"}
HEADER = "|preset|trained|AP|extraction, s|training, s|memory, GB|store, MB|"


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """A folder of --data."""

    root: Path
    out: Path  # of all results

    @property
    def name(self) -> str:
        return self.root.name

    @property
    def folder(self) -> ComparisonFolder:
        return ComparisonFolder(self.out / self.name)

    @property
    def extraction(self) -> Path:
        """What writing both stores took."""
        return self.out / f"{self.name}-extraction.json"


def main() -> None:
    parser = make_parser()
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)  # of the processes that train
    torch.set_num_threads(options.threads)
    sets = find_sets(options)
    replace_block(options.page, read_block(options.page))  # before hours of work
    keys = list(plan(options))
    for key in keys:
        for data in sets:
            report = train(data, key, options)
            replace_block(options.page, describe(sets, keys, options, command_of(parser, options)))
            if report is not None:
                sys.exit(report)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of sets")
    parser.add_argument("--out", type=Path, required=True, help="stores and runs, to go on with")
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--sets", help="such as bccd,kangaroo; default: all, the smallest first")
    parser.add_argument("--presets", default=",".join(PRESETS))
    parser.add_argument("--modes", default="cached,partial,tuned", help="of the first preset")
    parser.add_argument("--other-modes", default="cached", help="of the other presets")
    parser.add_argument("--freeze-at", default="C4", help="the level behind which partial trains")
    parser.add_argument("--seeds", type=int, default=1, help="how many")
    parser.add_argument("--epochs", type=int, help="default: those of the presets")
    parser.add_argument("--backbone", default="tf_efficientnet_lite0")
    parser.add_argument("--weights", default="auto")
    parser.add_argument("--image-size", type=int, default=384)
    parser.add_argument("--views", default="base,hflip,jitter=8:0.5-1.5")
    parser.add_argument("--codec", default="int8")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    return parser


def find_sets(options: argparse.Namespace) -> list[DataSet]:
    wanted = options.sets.split(",") if options.sets else None
    found = sorted(options.data.glob("*/train.json"), key=lambda path: path.stat().st_size)
    names = wanted or [path.parent.name for path in found]
    if not names:
        sys.exit(f"{options.data} has no folder with images/, train.json and val.json")
    return [DataSet(root=options.data / name, out=options.out) for name in names]


def plan(options: argparse.Namespace) -> Iterator[CellKey]:
    """The trainings of a set: a seed of all first, the presets in their order."""
    presets = options.presets.split(",")
    if unknown := set(presets) - set(preset_names()):
        sys.exit(f"unknown presets: {', '.join(sorted(unknown))}")
    first, others = (modes.split(",") for modes in (options.modes, options.other_modes))
    cuts = "partial" in (*first, *others) and can_cut(options)
    for seed in range(options.seeds):
        for preset in presets:
            for mode in first if preset == presets[0] else others:
                if mode != "partial":
                    yield CellKey(heads=preset, mode=mode, seed=seed)
                elif cuts:
                    yield CellKey(heads=preset, mode=partial_mode(options.freeze_at), seed=seed)


def can_cut(options: argparse.Namespace) -> bool:
    size = options.image_size
    try:
        network = load_backbone(options.backbone, weights="none", image_size=size)
        split_backbone(network, options.freeze_at)
    except BackboneError as error:
        print(f"without last stages trained: {error}", file=sys.stderr)
        return False
    return True


def train(data: DataSet, key: CellKey, options: argparse.Namespace) -> int | None:
    """One training, unless it is there; the exit status where a signal came."""
    if data.folder.result_of(key) is not None:
        return None
    config = make_config(data, key, options)
    if not data.extraction.exists():
        extract_timed(data, config)
    report = compare(config)
    cell = next((cell for cell in report.cells if cell.key == key), None)
    if cell is not None:
        what = cell.error or f"AP {cell.ap:.3f} after {seconds_of(cell):.0f} s"
        print(f"{data.name} {key.folder}: {what}", file=sys.stderr, flush=True)
    return None if report.interrupted_by is None else STOPPED_STATUS


def make_config(data: DataSet, key: CellKey, options: argparse.Namespace) -> ComparisonConfig:
    train = {
        "images": data.root / "images", "annotations": data.root / "train.json",
        "store": data.folder.train, "views": options.views, "backbone": options.backbone,
        "weights": options.weights, "image_size": options.image_size, "codec": options.codec,
        "device": options.device, "workers": options.threads, "on_bad_image": "skip",
    }  # fmt: skip
    val = {"annotations": data.root / "val.json", "store": data.folder.val, "views": "base"}
    changes = [f"device={options.device}", "eval_every=0"]
    return ComparisonConfig(
        heads={key.heads: load_config(key.heads, overrides=changes)},
        train=make_extract_config(train),
        val=make_extract_config(train | val),
        out=data.folder.root,
        modes=(key.mode,),
        seeds=(key.seed,),
        epochs=options.epochs,
    )


def extract_timed(data: DataSet, config: ComparisonConfig) -> None:
    """Write both stores in one go; what an earlier call left half done is written again."""
    features = data.folder.train.parent
    shutil.rmtree(features, ignore_errors=True)
    features.mkdir(parents=True)
    clock = time.process_time if is_cpu(config.train.device) else time.perf_counter
    started = clock()
    extract_stores(
        (config.train, open_dataset(config.train)),
        (config.val, open_dataset(config.val)),
        data.folder,
    )
    data.extraction.write_text(json.dumps({"seconds": clock() - started}))


def is_cpu(device: str) -> bool:
    return choose_device(device).type == "cpu"


def seconds_of(cell: CellResult) -> float:
    return cell.processor_seconds if is_cpu(cell.device) else cell.seconds


def describe(
    sets: Sequence[DataSet], keys: Sequence[CellKey], options: argparse.Namespace, command: str
) -> str:
    """What stands between the marks."""
    begun = [data for data in sets if data.folder.results()]
    sections = [describe_set(data, options) for data in begun]
    if begun:
        sections.append(describe_conditions(begun, options))
    left = sum(data.folder.result_of(key) is None for data in sets for key in keys)
    if left:
        of = len(keys) * len(sets)
        sections.append(f"{left} of {of} trainings are still to come. This command adds them:")
    return "\n\n".join([*sections, f"    {command}"])


def describe_set(data: DataSet, options: argparse.Namespace) -> str:
    train, val = FeatureStore.open(data.folder.train), FeatureStore.open(data.folder.val)
    classes = len(train.manifest.categories)
    extraction = json.loads(data.extraction.read_text())["seconds"]
    summary = summarise(data.folder.results())
    return "\n".join(
        [
            f"### {data.name}",
            "",
            f"{len(train)} images to train on, {len(val)} to score on; "
            f"{'one class' if classes == 1 else f'{classes} classes'}.",
            "",
            *table(summary, extraction=extraction, presets=options.presets.split(",")),
        ]
    )


def table(summary: Summary, *, extraction: float, presets: Sequence[str]) -> list[str]:
    """A line for each preset and mode that was scored; `presets` first, in their order."""
    groups = [group for group in summary.groups if group.ap.count]
    order = {name: place for place, name in enumerate(presets)}
    groups.sort(key=lambda group: order.get(group.heads, len(order)))  # modes stay in order
    best = max((group.ap.mean for group in groups), default=0.0)
    rows = [row(group, extraction=extraction, is_best=group.ap.mean == best) for group in groups]
    return [HEADER, "|---" * (HEADER.count("|") - 1) + "|", *rows]


def row(group: Group, *, extraction: float, is_best: bool) -> str:
    kind = kind_of(group.mode)
    ap = f"{group.ap.mean:.3f}"
    ap = f"**{ap}**" if is_best else ap
    ap += f" ({group.ap.width:.3f})" if group.ap.count > 1 else ""
    training = sum(map(seconds_of, group.cells)) / len(group.cells)
    store = group.over_seeds("cache_nbytes").mean
    cells = [f"`{group.heads}`", TRAINED[kind], ap]
    cells += [f"{extraction:.0f}" if store else "-", f"{training:.0f}"]
    cells += [f"{group.peak_memory / 1e9:.1f}", f"{store / 1e6:.0f}" if store else "-"]
    return f"|{'|'.join(cells)}|"


def describe_conditions(begun: Sequence[DataSet], options: argparse.Namespace) -> str:
    versions = library_versions()
    own = {load_config(name).schedule.epochs for name in options.presets.split(",")}
    epochs = options.epochs or " or ".join(map(str, sorted(own)))
    seeds = "one seed" if options.seeds == 1 else f"{options.seeds} seeds, their spread in brackets"
    clock = "of the processor" if is_cpu(options.device) else "of the clock"
    return (
        f"{options.backbone}, {options.image_size} px, `{options.codec}`, views "
        f"`{options.views}`, {epochs} epochs, {seeds}. Seconds are {clock}, per training. "
        f"{machine(options)}, {last_day(begun)}, cachedet {versions['cachedet']}, torch "
        f"{versions['torch']}."
    )


def machine(options: argparse.Namespace) -> str:
    device = choose_device(options.device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.partition(": ")[2] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{'One core' if options.threads == 1 else f'{options.threads} cores'} of {name}"


def last_day(begun: Sequence[DataSet]) -> date:
    """On which the latest training ended."""
    ends = [
        path.stat().st_mtime
        for data in begun
        for path in data.folder.root.glob(f"cells/*/{RESULT}")
    ]
    return date.fromtimestamp(max(ends))


def command_of(parser: argparse.ArgumentParser, options: argparse.Namespace) -> str:
    """The command without what is as it would be anyway, and without places."""
    given: Mapping[str, Any] = vars(options)
    places = ("data", "out", "page")
    changed = [
        f"--{name.replace('_', '-')} {value}"
        for name, value in given.items()
        if name not in places and value != parser.get_default(name)
    ]
    return " ".join(["python benchmarks/results.py --data DIR --out DIR", *changed])


def read_block(page: Path) -> str:
    """What stands between the marks of a page; empty where there is no page."""
    if not page.exists():
        return ""
    _, block, _ = split_page(page)
    return block.strip("\n")


def replace_block(page: Path, block: str) -> None:
    if page.exists():
        before, _, after = split_page(page)
    else:
        before, after = "# Results\n\n", "\n"
    page.write_text(f"{before}{BEGIN}\n\n{block}\n\n{END}{after}")


def split_page(page: Path) -> tuple[str, str, str]:
    """Before, between and behind the marks."""
    text = page.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        sys.exit(f"{page} should have the lines {BEGIN} and {END} once each")
    before, _, rest = text.partition(BEGIN)
    between, _, after = rest.partition(END)
    return before, between, after


if __name__ == "__main__":
    main()
