"""Where encoded features wait for their batch: in their store, on disk, in RAM or on the device.

    stream   read from the store, batch by batch
    disk     likewise, of a remote store; what was read once is read from a disk of this machine
    ram      bytes as they are stored; what is entropy-coded is decompressed with its batch
    device   decompressed arrays, dequantised where they are

Each image's checksums are checked when it is read from the store. All end in the same
decoding of the same bytes, so their batches are bit-identical.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from cachedet.config.run import Residency, WantedResidency
from cachedet.errors import ConfigError, CorruptBlockError, StoreError
from cachedet.loading.decoding import BatchDecoder, map_parts
from cachedet.progress import StageProgress
from cachedet.store.files.disk_cache import DiskCache, default_folder
from cachedet.store.files.durable import readable_nbytes
from cachedet.store.format.chunks import EncodedFeatures
from cachedet.store.format.fetching import Fetched
from cachedet.store.format.layout import Block
from cachedet.store.format.shards import unpack_zstd
from cachedet.store.reader import FeatureStore, Key, PackedParts
from cachedet.structures import Features, SizeHW

_SHARE = 0.5  # of what is free that `auto` takes: the step, validation and others need the rest
_TOGETHER = 8  # images of a server that are loaded into RAM with one read
_WORTH_A_LINE = 256 << 20  # bytes to load below which no progress is shown


class FeatureSource(Protocol):
    """Gives decoded maps from any thread."""

    def read(self, keys: Sequence[Key]) -> Features:
        """Maps (n, C, h, w) float32, channels last, of (row, view) pairs of one bucket."""
        ...


@dataclass(frozen=True, kw_only=True)
class Need:
    """Bytes that the views and levels of a run take, and what is free for them."""

    stored: int  # in RAM
    unpacked: int  # on the device: nothing decompresses there
    ram: int  # free for this process
    device: int  # free
    device_name: str
    disk: str = ""  # the disk cache that the features go through, and its bound; "": none


def choose_residency(
    wanted: WantedResidency, need: Need, *, has_own_memory: bool
) -> tuple[Residency, str]:
    """The residency, and one line that says why.

    `auto` takes the first of device (where it has memory besides RAM), ram and stream that fits
    into half of what is free; instead of stream disk, where there is a disk cache.

    Raises ConfigError where what was named does not fit; says by how much.
    """
    in_ram = f"encoded features need {readable_nbytes(need.stored)}"
    on_device = f"decompressed codes need {readable_nbytes(need.unpacked)}"
    free_ram = f"{readable_nbytes(need.ram)} of RAM"
    free_device = f"{readable_nbytes(need.device)} of {need.device_name}"
    if wanted == "stream":
        return wanted, f"residency stream: {in_ram}, read from disk in every epoch"
    if wanted == "disk":
        return wanted, f"residency disk: {in_ram}; {need.disk}"
    if wanted == "ram":
        _require_room(need.stored, need.ram, what=in_ram, free=free_ram, other="stream")
        return wanted, f"residency ram: {in_ram}; {free_ram} are free"
    if wanted == "device":
        _require_room(need.unpacked, need.device, what=on_device, free=free_device, other="ram")
        return wanted, f"residency device: {on_device}; {free_device} are free"
    if has_own_memory and need.unpacked <= _SHARE * need.device:
        return "device", f"residency auto: device, as {on_device} and half of {free_device} is free"
    tried = f"{on_device}, more than half of {free_device}; " if has_own_memory else ""
    if need.stored <= _SHARE * need.ram:
        return "ram", f"residency auto: ram, as {tried}{in_ram} and at most half of {free_ram} goes"
    why = f"as {tried}{in_ram}, more than half of {free_ram}"
    if need.disk:
        return "disk", f"residency auto: disk, {why}; {need.disk}"
    return "stream", f"residency auto: stream, {why}"


def _require_room(need: int, room: int, *, what: str, free: str, other: Residency) -> None:
    if need > room:
        raise ConfigError(
            f"residency: {what}, only {free} are free: {readable_nbytes(need - room)} too little. "
            f"Use --residency {other} (or auto), fewer views, or a store of a smaller codec"
        )


def make_source(
    residency: Residency,
    store: FeatureStore,
    *,
    views: Sequence[str],
    levels: Sequence[str],
    device: torch.device,
    threads: int = 1,
) -> FeatureSource:
    """Loads all now, except for `stream` and `disk`. Raises what `FeatureStore.read` raises."""
    if residency in ("stream", "disk"):  # a store that has a disk cache uses it by itself
        return StreamedFeatures(store, levels=levels, device=device)
    if residency == "ram":
        return RamFeatures(store, views=views, levels=levels, device=device, threads=threads)
    return DeviceFeatures(store, views=views, levels=levels, device=device)


def with_disk_cache(
    store: FeatureStore, residency: WantedResidency, most: int | None
) -> FeatureStore:
    """The store, read through copies on this machine where the residency or its room says so.

    Raises ConfigError where the store is no remote one, or nothing can be written.
    """
    if residency != "disk" and most is None:
        return store
    if not store.is_remote:
        raise ConfigError(
            f"residency disk keeps copies of a store in a bucket, {store.location} lies on this "
            "machine: use --residency stream, ram or auto, without --disk-cache"
        )
    return store.cached_in(DiskCache.make(default_folder(), most))


class StreamedFeatures:
    """Reads each batch from the store."""

    def __init__(self, store: FeatureStore, *, levels: Sequence[str], device: torch.device) -> None:
        self._store = store
        self._levels = tuple(levels)
        self._decoder = BatchDecoder(store, levels=levels, device=device)

    def fetch(self, keys: Sequence[Key]) -> Fetched:
        """Ask the server of a remote store for a batch before its turn."""
        return self._store.fetch(keys, self._levels)

    def read(self, keys: Sequence[Key], fetched: Fetched | None = None) -> Features:
        encoded = self._decoder.make_buffers(self._store.bucket_of(*keys[0]), len(keys))
        with _tell_if_gone(self._store):
            self._store.read_encoded(keys, out=encoded, fetched=fetched)
        _require_finite(self._store, encoded, keys)
        return self._decoder.decode(encoded)


class RamFeatures:
    """Keeps the stored bytes of its views; each block is read once, when this is made."""

    def __init__(
        self,
        store: FeatureStore,
        *,
        views: Sequence[str],
        levels: Sequence[str],
        device: torch.device,
        threads: int = 1,
    ) -> None:
        self._store = store
        self._decoder = BatchDecoder(store, levels=levels, device=device)
        self._packed: dict[Key, PackedParts] = {}

        together = _TOGETHER if store.is_remote else 1  # neighbours are one request

        def load(block: Block) -> dict[Key, PackedParts]:
            images: dict[Key, PackedParts] = {}
            room: EncodedFeatures | None = None
            for start in range(0, len(block.rows), together):
                keys = [(row, block.view) for row in block.rows[start : start + together]]
                if room is None or room.count != len(keys):
                    room = store.make_buffers(block.bucket, len(keys), levels)
                images.update(zip(keys, store.read_packed(keys, out=room), strict=True))
            return images

        blocks = [block for block in store.blocks if block.view in views]
        nbytes, _ = store.encoded_nbytes(views, levels)
        pool = ThreadPoolExecutor(threads, thread_name_prefix="feature-loader")
        try:
            with _loading(store, len(blocks), nbytes) as progress:
                for images in pool.map(load, blocks):
                    self._packed.update(images)
                    progress.advance(nbytes=sum(map(_packed_nbytes, images.values())))
        finally:
            pool.shutdown(cancel_futures=True)

    def read(self, keys: Sequence[Key]) -> Features:
        encoded = self._decoder.make_buffers(self._store.bucket_of(*keys[0]), len(keys))
        outs = [out for arrays in encoded.arrays.values() for out in arrays.values()]
        for index, key in enumerate(keys):
            for packed, out in zip(self._packed[key], outs, strict=True):
                if isinstance(packed, bytes):
                    unpack_zstd(packed, out[index], where="features in memory")
                else:
                    out[index] = packed
        _require_finite(self._store, encoded, keys)
        return self._decoder.decode(encoded)


class DeviceFeatures:
    """Keeps the decompressed arrays of its views on the device."""

    def __init__(
        self,
        store: FeatureStore,
        *,
        views: Sequence[str],
        levels: Sequence[str],
        device: torch.device,
    ) -> None:
        self._store = store
        self._device = device
        self._decoder = BatchDecoder(store, levels=levels, device=device)
        self._slots: dict[Key, int] = {}  # of each image in the arrays of its bucket
        blocks = [block for block in store.blocks if block.view in views]
        images: Counter[SizeHW] = Counter()
        for block in blocks:
            images[block.bucket] += len(block.rows)
        self._held = {
            bucket: map_parts(store.make_buffers(bucket, count, levels).arrays, self._make_room)
            for bucket, count in images.items()
        }
        _, nbytes = store.encoded_nbytes(views, levels)
        loaded: Counter[SizeHW] = Counter()
        with _loading(store, len(blocks), nbytes) as progress:
            for block in blocks:
                progress.advance(nbytes=self._load(block, start=loaded[block.bucket]))
                loaded[block.bucket] += len(block.rows)
        if device.type == "cuda":  # batches are made in another stream
            torch.cuda.synchronize(device)

    def read(self, keys: Sequence[Key]) -> Features:
        bucket = self._store.bucket_of(*keys[0])
        slots = torch.tensor([self._slots[key] for key in keys]).to(self._device)
        parts = map_parts(self._held[bucket], lambda held: _pick(held, slots))
        return self._decoder.decode_parts(bucket, parts)

    def _make_room(self, array: np.ndarray) -> Tensor:
        return torch.empty_like(torch.from_numpy(array), device=self._device)

    def _load(self, block: Block, *, start: int) -> int:
        """Copy the images of a block to their slots from `start` on; returns their bytes."""
        keys = [(row, block.view) for row in block.rows]
        encoded = self._decoder.make_buffers(block.bucket, len(keys))
        self._store.read_encoded(keys, out=encoded)
        _require_finite(self._store, encoded, keys)
        self._slots.update((key, start + n) for n, key in enumerate(keys))
        moved = 0
        for level, arrays in encoded.arrays.items():
            for name, array in arrays.items():
                held = self._held[block.bucket][level][name]
                held[start : start + len(keys)].copy_(torch.from_numpy(array))
                moved += array.nbytes
        return moved


def _pick(held: Tensor, slots: Tensor) -> Tensor:
    """Select slots; their bytes keep their order."""
    if held.dtype == torch.uint16:  # which few operators of torch know
        return _pick(held.view(torch.int16), slots).view(torch.uint16)
    if held.ndim == 4 and held.is_contiguous(memory_format=torch.channels_last):
        return held.permute(0, 2, 3, 1).index_select(0, slots).permute(0, 3, 1, 2)
    return held.index_select(0, slots)


def _packed_nbytes(packed: PackedParts) -> int:
    return sum(len(part) if isinstance(part, bytes) else part.nbytes for part in packed)


def _require_finite(store: FeatureStore, encoded: EncodedFeatures, keys: Sequence[Key]) -> None:
    """Raises StoreError at the first scale that is NaN or Inf.

    Maps stored as floats are not searched: a loss that is not finite stops the training and names
    their level.
    """
    for level, arrays in encoded.arrays.items():
        for name, array in arrays.items():
            if array.dtype.kind != "f" or array.ndim == 4 or np.isfinite(array).all():
                continue
            index = int(np.argmin(np.isfinite(array).reshape(len(array), -1).all(axis=1)))
            row, view = keys[index]
            image = store.annotations.file_names[row]
            raise StoreError(
                f"{store.location}: the {name} of level {level} of {image} (view {view}) is "
                "not a finite number, which cachedet never writes: something else wrote or altered "
                "this store. Extract again into a new --store"
            )


@contextmanager
def _tell_if_gone(store: FeatureStore) -> Iterator[None]:
    """Say that the whole store is gone, where it is, instead of damage of one file."""
    try:
        yield
    except CorruptBlockError:
        store.require_present()
        raise


@contextmanager
def _loading(store: FeatureStore, blocks: int, nbytes: int) -> Iterator[StageProgress]:
    progress = StageProgress("load features", total=blocks, unit="blocks")
    with _tell_if_gone(store), progress if nbytes >= _WORTH_A_LINE else nullcontext():
        yield progress
