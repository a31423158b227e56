"""The section that says where figures come from: data, weights, store, config, hours, bytes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from cachedet.config.detector import describe_detector
from cachedet.reporting.content import Cell, Fold, Row, Section, Table
from cachedet.reporting.figures import count, duration
from cachedet.reporting.scored_run import ScoredRun
from cachedet.store.files.durable import readable_nbytes
from cachedet.store.reader import FeatureStore
from cachedet.training.same_run import flatten

NOT_RECORDED = "not recorded"


def provenance_section(runs: Sequence[ScoredRun], stores: Sequence[FeatureStore]) -> Section:
    """One column a run."""
    facts = [_facts(run, store) for run, store in zip(runs, stores, strict=True)]
    rows = []
    for group, names in facts[0].items():
        rows.append(Row(name=group, cells=(), group=True))
        rows += [_row(name, [of_run[group][name] for of_run in facts]) for name in names]
    differing = differing_keys([run.checkpoint.config.model_dump(mode="json") for run in runs])
    if differing:
        rows.append(Row(name="Keys of the config that differ", cells=(), group=True))
        rows += [_row(key, values) for key, values in differing.items()]
    table = Table(
        caption="What the run folders and stores record; nothing here is estimated.",
        corner="",
        columns=tuple(run.name for run in runs),
        rows=tuple(rows),
        numeric=False,
    )
    return Section(
        key="provenance",
        title="Where it comes from",
        short="Provenance",
        tables=(table,),
        folds=tuple(Fold(title=f"{run.name}: config.yaml", text=run.config_text) for run in runs),
    )


def _row(name: str, texts: Sequence[str]) -> Row:
    """Nothing is recorded where a text is empty."""
    texts = [text or NOT_RECORDED for text in texts]
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


def _facts(run: ScoredRun, store: FeatureStore) -> dict[str, dict[str, str]]:
    """What is recorded of a run, by group and name; empty where nothing is."""
    manifest, config, results = run.checkpoint.manifest, run.checkpoint.config, run.results
    seconds, passes, step = run.training_seconds, spared_passes(run), results.get("step")
    scoring, views, version = (results.get(key) for key in ("seconds", "views", "cachedet"))
    trained_on = ""
    if (data := run.trained_on) is not None:
        boxes = count(sum(data.boxes.values()))
        trained_on = f"{data.store}: {count(data.images)} images, {boxes} boxes"
    wall_clock = "" if seconds is None else f"{duration(seconds)} (wall clock of log.txt)"
    spared = f"at most {count(passes)} (steps times images of a step)" if passes else ""
    versions = (f"{name} {number}" for name, number in store.manifest.versions.items())
    return {
        "Data": {
            "Trained on": trained_on,
            "Scored on": f"{store.location}: {count(len(store))} images",
            "Boxes scored against": run.annotations or "those of the store",
            "Views scored": ", ".join(map(str, views)) if isinstance(views, list) else "",
            "Fingerprint of the store scored on": _store_fingerprint(run, store),
            "Fingerprint of the store trained on": manifest.fingerprint(),
            "Digest of its boxes and classes": _describe_truth(run),
            "Digest of its images": manifest.images_digest,
        },
        "Backbone": {
            "Network": manifest.backbone,
            "Weights": manifest.weights,
            "Digest of the weights": manifest.weights_digest,
            "Long side of an image": f"{manifest.image_size} pixels",
            "Views and codec": f"{', '.join(manifest.views)}; {manifest.codec}",
        },
        "Training": {
            "Run": str(run.folder),
            "Detector": describe_detector(config.detector),
            "Trained of the backbone": _describe_stages(run),
            "Seed": str(config.seed),
            "Epochs": str(config.schedule.epochs),
            "Step of the scored checkpoint": "" if step is None else str(step),
        },
        "Cost": {
            "Time of training": wall_clock,
            "Time of scoring": duration(scoring) if isinstance(scoring, int | float) else "",
            "Cached bytes an image and view": readable_nbytes(round(bytes_per_image(store))),
            "Passes of the backbone spared": spared,
            "Time saved against the live backbone": f"{NOT_RECORDED}: neither run nor store holds "
            "the seconds of a pass of the backbone",
        },
        "Versions": {
            "Scored with cachedet": "" if version is None else str(version),
            "Extracted with": ", ".join(versions),
        },
    }


def _describe_truth(run: ScoredRun) -> str:
    """The labels of the scored checkpoint, and those that the run saw before them."""
    truth = run.checkpoint.manifest.truth_digest
    past = () if run.trained_on is None else run.trained_on.relabelled
    seen = [f"{digest} until step {step}" for step, digest in past]
    return f"{truth} ({', '.join(seen)}: the store was relabelled)" if seen else truth


def _describe_stages(run: ScoredRun) -> str:
    config = run.checkpoint.config
    if config.freeze_at is None:
        return "nothing"
    return run.stages or f"{config.stages.describe(config.freeze_at)}; parameters: {NOT_RECORDED}"


def _store_fingerprint(run: ScoredRun, store: FeatureStore) -> str:
    recorded = run.results.get("store_fingerprint")
    now = store.manifest.fingerprint()
    if recorded is None or recorded == now:
        return now
    return f"{now} (scored on {recorded}: the same images, other features)"
