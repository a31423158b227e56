"""Leases: which block which writer works on. Only advice that saves double work.

Nothing depends on a lease for correctness (commits are serialised and checked in writer.py), and no
clock is ever compared between machines: a lease of this machine is stale when its process is dead,
one of another machine when it was not renewed for a while by our own watch.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from cachedet.store.files.durable import cannot_write
from cachedet.store.files.names import LEASES
from cachedet.store.files.owner import Life, Owner, life_of
from cachedet.store.files.source import LocalFiles

COMMIT_LOCK = f"{LEASES}/commit.lock"
RENEWAL_SECONDS = 10.0
PATIENCE_SECONDS = 60.0

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


class LeaseBook:
    """The leases of one writer in one store; a thread renews them while the book is open."""

    def __init__(
        self,
        root: Path,
        *,
        owner: Owner | None = None,  # None: this process
        patience: float = PATIENCE_SECONDS,  # without renewal makes another machine's lease stale
        watch: Callable[[], float] = time.monotonic,  # this process's own clock, in seconds
    ) -> None:
        self._root = root
        self._folder = root / LEASES
        self._owner = owner or Owner.me()
        self._patience = patience
        self._watch = watch
        self._renewals = itertools.count()
        self._held: set[str] = set()
        self._seen: dict[str, tuple[bytes, float]] = {}  # foreign leases at first sight
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._renewer = threading.Thread(target=self._keep_renewing, daemon=True, name="leases")

    def __enter__(self) -> LeaseBook:
        try:
            self._folder.mkdir(exist_ok=True)
        except OSError as error:
            raise cannot_write(self._root, error) from error
        self._renewer.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._closing.set()
        self._renewer.join()
        for block in list(self._held):
            self.release(block)

    def take(self, block: str) -> bool:
        """Whether the block is ours now; False while somebody else may be working on it.

        Raises StoreError where the system refuses to write the lease.
        """
        try:
            if self._create(block):
                return True
            if self.holder_life(block) is not Life.DEAD:
                return False
            self._path(block).unlink(missing_ok=True)
            return self._create(block)
        except OSError as error:
            raise cannot_write(self._root, error) from error

    def holder_life(self, block: str) -> Life:
        """Whether whoever holds the block lives; elsewhere they do once they were seen to renew."""
        try:
            content = LocalFiles(self._folder).read(self._path(block).name)
        except FileNotFoundError:
            self._seen.pop(block, None)
            return Life.DEAD
        except OSError:  # watched like one that says nothing
            content = b""
        life = life_of(content.decode(errors="replace"))
        if life is not Life.UNKNOWN:
            return life
        before, since = self._seen.setdefault(block, (content, self._watch()))
        if content != before:
            return Life.ALIVE
        return Life.DEAD if self._watch() - since >= self._patience else Life.UNKNOWN

    def release(self, block: str) -> None:
        """Give the block back, whether or not it was committed."""
        with self._lock:
            self._held.discard(block)
            with contextlib.suppress(OSError):  # a lease left behind is stale when we are dead
                self._path(block).unlink(missing_ok=True)

    def renew(self) -> None:
        """Show other machines that this writer is alive."""
        with self._lock:
            for block in self._held:
                with (
                    contextlib.suppress(OSError),  # advice only: the next renewal may succeed
                    self._path(block).open("r+b") as file,  # in place: a full disk empties nothing
                ):
                    file.write(self._content())

    def _create(self, block: str) -> bool:
        with self._lock:
            try:
                descriptor = os.open(self._path(block), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            except FileExistsError:
                return False
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(self._content())
            except OSError:
                self._path(block).unlink(missing_ok=True)
                raise
            self._held.add(block)
            self._seen.pop(block, None)  # the next foreign lease is another, however alike
            return True

    def _path(self, block: str) -> Path:
        return self._folder / f"{block}.lease"

    def _content(self) -> bytes:
        return f"{self._owner.token} {next(self._renewals):09d}\n".encode()

    def _keep_renewing(self) -> None:
        while not self._closing.wait(RENEWAL_SECONDS):
            self.renew()


def _flock(descriptor: int) -> None:
    if fcntl is not None:
        fcntl.flock(descriptor, fcntl.LOCK_EX)


@contextlib.contextmanager
def commit_lock(root: Path, *, acquire: Callable[[int], None] = _flock) -> Iterator[None]:
    """One commit at a time among all processes; the system lets go of it when its holder dies.

    On file systems that know no locks commits are not serialised, which is warned of: there each
    block must have one writer. `acquire` locks an open file by its descriptor, or raises OSError.

    Raises OSError where the lock file cannot be made.
    """
    (root / LEASES).mkdir(exist_ok=True)  # copying tools drop empty folders
    with (root / COMMIT_LOCK).open("ab") as file:
        try:
            acquire(file.fileno())
        except OSError as error:
            warnings.warn(
                f"{root}: this file system cannot lock files ({error.strerror or error}), so that "
                "two writers of one block could mix their shards; let one `cachedet extract` at a "
                "time write into this store",
                stacklevel=3,
            )
        yield
