"""Where a store is written: a folder of this machine, or an object storage (`bucket`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from cachedet.errors import StoreError
from cachedet.store.files.bucket import Bucket, open_bucket
from cachedet.store.files.durable import require_space, write_durably
from cachedet.store.files.inside import remove_inside, walk_inside
from cachedet.store.files.leases import commit_lock
from cachedet.store.files.locations import is_url, shown
from cachedet.store.files.names import MANIFEST
from cachedet.store.files.places import write_files
from cachedet.store.files.schemes import OBJECT_STORAGES, scheme_of
from cachedet.store.files.source import ByteSource, LocalFiles


class Folder:
    """A store in a local folder: temp + fsync + rename, under a lock where several write.

    As a `Bucket` it has `source`, which reads what is written, and writes by key; its text is the
    location for people. Raises OSError where the system refuses (a bucket: StoreError).
    """

    def __init__(self, root: Path) -> None:
        self.folder = root
        self.source: ByteSource = LocalFiles(root)
        self._root = root

    def __str__(self) -> str:
        return str(self._root)

    def has(self, key: str) -> bool:
        """Whether there is such a file."""
        return (self._root / key).exists()

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Bytes of every file below a folder, by key."""
        return dict(self._walk(folder))

    def _walk(self, folder: str) -> Iterator[tuple[str, int]]:
        for entry in walk_inside(self._root, [folder]):
            if entry.is_file(follow_symlinks=False):
                key = Path(entry.path).relative_to(self._root).as_posix()
                yield key, entry.stat(follow_symlinks=False).st_size

    def put(self, files: Mapping[str, bytes]) -> None:
        """Write whole files, in place of any that are there."""
        write_files(self._root, files)

    def remove(self, keys: Iterable[str]) -> None:
        """Of files that are gone already nothing is said."""
        for key in keys:
            remove_inside(self._root, self._root / key)

    def changing(self) -> AbstractContextManager[None]:
        """Inside, the manifest is read and written as if nobody else did."""
        return commit_lock(self._root)

    def put_manifest(self, content: bytes) -> None:
        """Inside `changing`. A bucket raises ChangedMeanwhileError where another was faster."""
        write_durably(self._root / MANIFEST, content)

    def require_space(self, nbytes: int) -> None:
        """Raises StoreError where so many more bytes have no room; buckets have."""
        require_space(self._root, nbytes)


Depot = Folder | Bucket
Place = Path | str | Depot
"""A folder, a URL such as s3://bucket/train.zarr, or either opened already."""


def open_depot(place: Place) -> Depot:
    """Where a store is or shall be written. Raises StoreError on a place that is only read."""
    if isinstance(place, Folder | Bucket):
        return place
    if not isinstance(place, str) or not is_url(place):
        return Folder(Path(place))
    if scheme_of(place) in OBJECT_STORAGES:
        return open_bucket(place)
    raise StoreError(
        f"{shown(place)} cannot be written: cachedet writes stores into folders and to s3://, "
        "gs:// and az://. Write to one of these, and copy or mount it"
    )
