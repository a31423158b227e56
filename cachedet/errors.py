"""Everything cachedet raises on purpose.

    CachedetError
    ├── InputError            the user's arguments or files
    │   ├── UnwrittenError    all was computed, and a file of it cannot be written
    │   ├── DatasetError      annotations or a folder of images that cannot be used
    │   │   └── ForeignFileError  a file of another format
    │   ├── BadImageError     an image that cannot be decoded
    │   └── ExportError       a detector that no graph can hold, or a model that is not ours
    ├── ConfigError           a config key or value
    ├── BackboneError         an unknown backbone, or weights that do not fit it
    ├── StoreError            the feature store on disk
    │   ├── StoreMismatchError   extracted from other inputs than the ones given
    │   ├── MissingFeatureError  asked for features that were never committed
    │   ├── CorruptBlockError    committed bytes that are no longer what was written
    │   ├── CorruptMetadataError its other files, likewise
    │   ├── RemoteStoreError     a server that does not give the store's bytes
    │   ├── ChangedMeanwhileError another process changed the manifest first
    │   └── CodecError           a value the codec cannot represent
    ├── CheckpointError       a run folder or checkpoint that cannot be used
    │   └── DamagedCheckpointError   its file is no longer what was written
    ├── EngineError           Ray is not there, has no room, or lost its workers
    ├── NonFiniteLossError    training stopped before the optimiser moved
    └── RankError             the processes of one run did not meet, or lost one

A message says what was expected, what came, where, and what to do.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any


class CachedetError(Exception):
    """Parent of all errors a user can cause; the command line prints it without a traceback.

    Each argument is a line: names and paths inside of them begin no line of their own there.
    """

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))


class InputError(CachedetError, ValueError):
    """An argument or file of the user's that cannot be used."""


class UnwrittenError(InputError):
    """All was computed, and a file of it could not be written; `report` holds what was found."""

    def __init__(self, message: str, *, report: Any) -> None:
        super().__init__(message)
        self.report = report


class DatasetError(InputError):
    """Annotations or a folder of images that are no usable data set."""


class ForeignFileError(DatasetError):
    """A file of another format than the one that was expected."""


class BadImageError(InputError):
    """An image that cannot be decoded, or whose size contradicts its annotations."""


class ExportError(InputError):
    """A detector that cannot be written as a graph, one that differs, or a file that is none."""


class ConfigError(CachedetError, ValueError):
    """A config key that does not exist, or a value out of range."""


class UnreadableConfigError(ConfigError):
    """A config file whose bytes the system does not give, which says nothing about them."""


class BackboneError(CachedetError, ValueError):
    """An unknown backbone name, or weights that do not fit it."""


class DetectorError(CachedetError, ValueError):
    """A detector that lacks a method, or returns something else than losses or detections."""


class StoreError(CachedetError):
    """The feature store cannot be created, opened or written."""

    finding = ""  # of bytes that are not what was written: what is wrong, without a remedy


class StoreMismatchError(StoreError, ValueError):
    """The store was extracted from other inputs; names the fields that differ."""


class MissingFeatureError(StoreError, LookupError):
    """Features that were never committed (law L4: a hole is never zeros)."""


class CorruptBlockError(StoreError, ValueError):
    """Committed bytes that are no longer what was written; names the file."""


class CorruptMetadataError(StoreError, ValueError):
    """A manifest, annotations, codec state or zarr.json that is not what was written."""


class RemoteStoreError(StoreError):
    """A server does not give what a store holds, which says nothing about the store itself."""

    is_refusal = False  # it answered that it does not give this object


class ChangedMeanwhileError(StoreError):
    """Another process changed the store's manifest first; nothing was changed by this one."""


class CodecError(StoreError, ValueError):
    """A feature value the codec cannot represent; names the image."""


class CheckpointError(CachedetError, ValueError):
    """A run folder or checkpoint that does not exist or does not fit."""


class DamagedCheckpointError(CheckpointError):
    """The bytes of a checkpoint are not a whole one; `--resume` then takes the one before it."""


class NonFiniteLossError(CachedetError, ArithmeticError):
    """A loss or gradient is NaN or Inf; names the step, the images and the levels."""


class EngineError(CachedetError, RuntimeError):
    """Ray cannot be reached, has no room for a worker, or loses one after the other."""


class RankError(CachedetError, RuntimeError):
    """The processes of one training run did not meet, or one of them was lost."""


def nearest_names(wanted: str, known: Iterable[str], *, most: int = 3) -> str:
    """The known names closest to `wanted` as the end of a message: ``; nearest: 'a', 'b'``.

    Upper and lower case are one.
    """
    folded: dict[str, list[str]] = {}
    for name in dict.fromkeys(known):
        folded.setdefault(name.casefold(), []).append(name)
    keys = get_close_matches(wanted.casefold(), list(folded), n=most, cutoff=0.4)
    close = [name for key in keys for name in folded[key]][:most]
    return f"; nearest: {', '.join(repr(name) for name in close)}" if close else ""
