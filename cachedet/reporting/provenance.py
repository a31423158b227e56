"""Where the figures come from: data, weights, store, config, versions, hours, bytes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from cachedet.config.detector import describe_detector
from cachedet.reporting.content import Cell, Fold, Row, Section, Table, count, duration
from cachedet.reporting.scored_run import ScoredRun
from cachedet.store.files.durable import readable_nbytes
from cachedet.store.reader import FeatureStore
from cachedet.training.same_run import flatten

NOT_RECORDED = "not recorded"

Fact = Callable[[ScoredRun, FeatureStore], str]


def provenance_section(runs: Sequence[ScoredRun], stores: Sequence[FeatureStore]) -> Section:
    """One column a run."""
    rows = []
    for group, facts in _FACTS.items():
        rows.append(Row(name=group, cells=(), group=True))
        for name, fact in facts.items():
            texts = [fact(run, store) for run, store in zip(runs, stores, strict=True)]
            rows.append(_row(name, texts))
    differing = differing_keys([run.checkpoint.config.model_dump(mode="json") for run in runs])
    if differing:
        rows.append(Row(name="Keys of the config that differ", cells=(), group=True))
        rows += [_row(key, values) for key, values in differing.items()]
    return Section(
        key="provenance",
        title="Where it comes from",
        short="Provenance",
        tables=(
            Table(
                caption="What the run folders and stores record; nothing here is estimated.",
                corner="",
                columns=tuple(run.name for run in runs),
                rows=tuple(rows),
                numeric=False,
            ),
        ),
        folds=tuple(Fold(title=f"{run.name}: config.yaml", text=run.config_text) for run in runs),
    )


def _row(name: str, texts: Sequence[str]) -> Row:
    cells = tuple(
        Cell(text=text, tone="faint" if text.startswith(NOT_RECORDED) else "") for text in texts
    )
    return Row(name=name, cells=cells, same=len(texts) > 1 and len(set(texts)) == 1)


def differing_keys(configs: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """Dotted key -> each config's value, of the keys that are not the same in all."""
    flat = [flatten(config) for config in configs]
    keys = dict.fromkeys(key for config in flat for key in config)
    values = {
        key: [json.dumps(config[key]) if key in config else "-" for config in flat] for key in keys
    }
    return {key: of_runs for key, of_runs in values.items() if len(set(of_runs)) > 1}


def spared_passes(run: ScoredRun) -> int:
    """Images that training read, each a forward pass that a live backbone would have taken."""
    steps = max((point.step for point in run.metrics), default=0)
    return steps * run.checkpoint.config.schedule.step_images


def bytes_per_image(store: FeatureStore) -> float:
    """Stored bytes of an image in one view."""
    return store.nbytes / max(len(store) * len(store.manifest.views), 1)


def _text(value: object) -> str:
    return NOT_RECORDED if value is None else str(value)


def _versions(store: FeatureStore) -> str:
    versions = store.manifest.versions
    return ", ".join(f"{name} {version}" for name, version in versions.items()) or NOT_RECORDED


def _trained_on(run: ScoredRun, _: FeatureStore) -> str:
    if run.trained_on is None:
        return NOT_RECORDED
    boxes = sum(run.trained_on.boxes.values())
    return f"{run.trained_on.store}: {count(run.trained_on.images)} images, {count(boxes)} boxes"


def _hours(run: ScoredRun, _: FeatureStore) -> str:
    seconds = run.training_seconds
    return NOT_RECORDED if seconds is None else f"{duration(seconds)} (wall clock of log.txt)"


def _spared(run: ScoredRun, _: FeatureStore) -> str:
    passes = spared_passes(run)
    return f"at most {count(passes)} (steps times images of a step)" if passes else NOT_RECORDED


def _detector(run: ScoredRun, _: FeatureStore) -> str:
    return describe_detector(run.checkpoint.config.detector)


def _eval_seconds(run: ScoredRun, _: FeatureStore) -> str:
    seconds = run.results.get("seconds")
    return duration(seconds) if isinstance(seconds, int | float) else NOT_RECORDED


def _views_scored(run: ScoredRun, _: FeatureStore) -> str:
    views = run.results.get("views")
    return ", ".join(map(str, views)) if isinstance(views, list) and views else NOT_RECORDED


def _same_store(run: ScoredRun, store: FeatureStore) -> str:
    recorded = run.results.get("store_fingerprint")
    now = store.manifest.fingerprint()
    if recorded is None or recorded == now:
        return now
    return f"{now} (scored on {recorded}: the same images, other features)"


_FACTS: dict[str, dict[str, Fact]] = {
    "Data": {
        "Trained on": _trained_on,
        "Scored on": lambda run, store: f"{store.location}: {count(len(store))} images",
        "Boxes scored against": lambda run, _: run.annotations or "those of the store",
        "Views scored": _views_scored,
        "Fingerprint of the store scored on": _same_store,
        "Fingerprint of the store trained on": lambda run, _: run.checkpoint.manifest.fingerprint(),
        "Digest of its annotations": lambda run, _: run.checkpoint.manifest.annotations_digest,
        "Digest of its images": lambda run, _: run.checkpoint.manifest.images_digest,
    },
    "Backbone": {
        "Network": lambda run, _: run.checkpoint.manifest.backbone,
        "Weights": lambda run, _: run.checkpoint.manifest.weights,
        "Digest of the weights": lambda run, _: run.checkpoint.manifest.weights_digest,
        "Long side of an image": lambda run, _: f"{run.checkpoint.manifest.image_size} pixels",
        "Views and codec": lambda run, _: (
            f"{', '.join(run.checkpoint.manifest.views)}; {run.checkpoint.manifest.codec}"
        ),
    },
    "Training": {
        "Run": lambda run, _: str(run.folder),
        "Detector": _detector,
        "Seed": lambda run, _: str(run.checkpoint.config.seed),
        "Epochs": lambda run, _: str(run.checkpoint.config.schedule.epochs),
        "Step of the scored checkpoint": lambda run, _: _text(run.results.get("step")),
    },
    "Cost": {
        "Time of training": _hours,
        "Time of scoring": _eval_seconds,
        "Cached bytes an image and view": lambda _, store: readable_nbytes(
            round(bytes_per_image(store))
        ),
        "Passes of the backbone spared": _spared,
        "Time saved against the live backbone": lambda *_: (
            f"{NOT_RECORDED}: neither run nor store holds the seconds of a pass of the backbone"
        ),
    },
    "Versions": {
        "Scored with cachedet": lambda run, _: _text(run.results.get("cachedet")),
        "Extracted with": lambda _, store: _versions(store),
    },
}
