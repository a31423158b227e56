"""The views of a run: decided when it starts, so that views added to its store change nothing."""

from __future__ import annotations

from collections.abc import Collection

from cachedet.config import TrainConfig, load_train_config
from cachedet.errors import CheckpointError
from cachedet.store.reader import FeatureStore
from cachedet.training.run_folder import RunFolder
from cachedet.training.sampling import resolve_views


def pin_views(
    config: TrainConfig, store: FeatureStore, folder: RunFolder, *, goes_on: bool
) -> TrainConfig:
    """The config with the chance of each single view.

    Families, and "all there are" (no `views`), mean the views the store held when the run started:
    a run that goes on finds those in its folder.

    Raises ConfigError: views the store lacks or, for a run that goes on, that it did not start
    with; CheckpointError: the store no longer holds those of the run.
    """
    started = load_train_config(folder.config, []).views if _has_config(folder, goes_on) else None
    held, where = store.manifest.views, store.location
    if started is not None:
        _require_held(started, store, folder)
        held, where = tuple(started), f"{where} as the run found it"
    return config.model_copy(update={"views": resolve_views(config.views, held=held, where=where)})


def _require_held(started: Collection[str], store: FeatureStore, folder: RunFolder) -> None:
    gone = [view for view in started if view not in store.manifest.views]
    if gone:
        raise CheckpointError(
            f"cannot resume {folder.root}: it trains on views {', '.join(started)}, and "
            f"{store.location} has no {', '.join(gone)}: they were pruned, or it is another store. "
            "Give the store of the run, or add the views with `cachedet extract --views`"
        )


def _has_config(folder: RunFolder, goes_on: bool) -> bool:
    return goes_on and folder.config.is_file()
