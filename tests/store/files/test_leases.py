"""Leases are advice without clocks (fault F7)."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cachedet.errors import StoreError
from cachedet.store.files.leases import LeaseBook, commit_lock
from cachedet.store.files.owner import Life, Owner
from cachedet.store.leftovers import dead_leftovers

ELSEWHERE = Owner(host="another-machine", pid=1, start=1)


class Watch:
    """A clock that moves when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "leases").mkdir()
    return tmp_path


def dead_owner() -> Owner:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return replace(Owner.me(), pid=process.pid, start=12345)


def test_one_of_two_gets_a_block(folder: Path) -> None:
    one, other = LeaseBook(folder), LeaseBook(folder)
    assert one.take("a")
    assert not other.take("a")
    assert other.holder_life("a") is Life.ALIVE
    assert other.take("b")
    one.release("a")
    assert other.take("a")


def test_leases_of_a_dead_process_of_this_machine_are_stale_at_once(folder: Path) -> None:
    assert LeaseBook(folder, owner=dead_owner()).take("a")
    assert LeaseBook(folder).take("a")


def test_another_machine_is_watched_with_our_own_clock(folder: Path) -> None:
    watch = Watch()
    elsewhere = LeaseBook(folder, owner=ELSEWHERE)
    here = LeaseBook(folder, patience=60, watch=watch)
    assert elsewhere.take("a")
    assert not here.take("a")
    watch.now += 59
    assert not here.take("a")
    assert here.holder_life("a") is Life.UNKNOWN
    watch.now += 2
    assert here.holder_life("a") is Life.DEAD
    assert here.take("a")


def test_patience_starts_anew_with_the_next_foreign_lease(folder: Path) -> None:
    """Another machine's later lease reads like its first one, byte for byte."""
    watch = Watch()
    here = LeaseBook(folder, patience=60, watch=watch)
    assert LeaseBook(folder, owner=ELSEWHERE).take("a")
    assert not here.take("a")
    watch.now += 61
    assert here.take("a")
    here.release("a")
    assert LeaseBook(folder, owner=ELSEWHERE).take("a")
    assert not here.take("a")
    (folder / "leases" / "a.lease").unlink()  # it came back and was released
    assert here.holder_life("a") is Life.DEAD
    watch.now += 61
    assert LeaseBook(folder, owner=ELSEWHERE).take("a")
    assert not here.take("a")


def test_a_renewal_shows_life(folder: Path) -> None:
    watch = Watch()
    elsewhere = LeaseBook(folder, owner=ELSEWHERE)
    here = LeaseBook(folder, patience=60, watch=watch)
    assert elsewhere.take("a")
    assert here.holder_life("a") is Life.UNKNOWN
    watch.now += 50
    elsewhere.renew()
    watch.now += 50
    assert here.holder_life("a") is Life.ALIVE
    assert not here.take("a")


@pytest.mark.parametrize("seconds", [-(10**8), 10**8])
def test_moved_clocks_change_nothing(folder: Path, seconds: int) -> None:
    """Neither the time in a file's name nor its date is ever looked at."""
    watch = Watch()
    elsewhere = LeaseBook(folder, owner=ELSEWHERE)
    here = LeaseBook(folder, patience=60, watch=watch)
    assert elsewhere.take("a")
    path = folder / "leases" / "a.lease"
    os.utime(path, (time.time() + seconds, time.time() + seconds))
    assert not here.take("a")
    watch.now += 61
    assert here.take("a")


@pytest.mark.parametrize("content", [b"", b"\xff\xfe not an owner", b"~host"])
def test_an_unreadable_lease_is_watched_like_a_strangers(folder: Path, content: bytes) -> None:
    watch = Watch()
    (folder / "leases" / "a.lease").write_bytes(content)
    here = LeaseBook(folder, patience=60, watch=watch)
    assert not here.take("a")
    watch.now += 61
    assert here.take("a")


def test_a_closed_book_leaves_nothing_behind(tmp_path: Path) -> None:
    with LeaseBook(tmp_path) as book:
        assert book.take("a")
        assert book.take("b")
        book.renew()
        assert Owner.parse((tmp_path / "leases/a.lease").read_text()) == Owner.me()
    assert list((tmp_path / "leases").iterdir()) == []


def test_owners() -> None:
    me = Owner.me()
    assert me.life() is Life.ALIVE
    assert Owner.parse(f"0.{me.token}.17.tmp") == me
    assert Owner.parse("0.0.tmp") is None
    assert replace(me, start=me.start + 1).life() is Life.DEAD  # id used again
    assert dead_owner().life() is Life.DEAD
    assert ELSEWHERE.life() is Life.UNKNOWN
    assert replace(me, pid=1, start=0).life() is Life.ALIVE


def test_another_container_of_the_same_host_name_is_another_machine() -> None:
    """Its process ids are others, so that looking for them here says nothing."""
    me = Owner.me()
    there = replace(dead_owner(), namespace=me.namespace + 1)
    assert Owner.parse(there.token) == there
    assert there.life() is Life.UNKNOWN


@pytest.mark.skipif(not Path("/proc/sys/kernel/random/boot_id").exists(), reason="Linux only")
def test_owners_before_the_last_boot_are_dead_where_the_machine_is_known() -> None:
    me = Owner.me()
    before = replace(me, boot="0123abcd", namespace=0xEFFFFFFC)
    assert before.life() is (Life.DEAD if me.namespace == 0xEFFFFFFC else Life.UNKNOWN)
    in_a_container = replace(me, boot="0123abcd", namespace=me.namespace + 1)
    assert in_a_container.life() is Life.UNKNOWN


TAKE_IN_ANOTHER_NAMESPACE = """
import sys, time
from pathlib import Path
from cachedet.store.files.durable import temporary_path
from cachedet.store.files.leases import LeaseBook
root = Path(sys.argv[1])
LeaseBook(root).take("a")
temporary_path(root / "shard").write_bytes(b"x")
print("taken", flush=True)
"""


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare")
def test_a_real_container_is_left_alone(folder: Path) -> None:
    """Its writer has ended, but from outside its namespace nobody can know that."""
    python = [sys.executable, "-c", TAKE_IN_ANOTHER_NAMESPACE, str(folder)]
    ended = subprocess.run(
        ["unshare", "--pid", "--fork", *python], capture_output=True, text=True, check=False
    )
    if ended.stderr.startswith("unshare:"):
        pytest.skip(f"no namespaces here: {ended.stderr.strip()}")
    assert "taken" in ended.stdout, ended.stderr
    assert LeaseBook(folder).holder_life("a") is Life.UNKNOWN
    assert not LeaseBook(folder).take("a")
    assert dead_leftovers(folder) == []
    assert len(list(folder.glob("shard*.tmp"))) == 1


def test_a_zombie_is_dead(folder: Path) -> None:
    """A container without an init never reaps the children of a killed process."""
    script = (
        "import sys; from pathlib import Path\n"
        "from cachedet.store.files.leases import LeaseBook\n"
        f"LeaseBook(Path({str(folder)!r})).take('a')\n"
        "print('taken', flush=True); sys.stdin.read()\n"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", script], stdin=pipe, stdout=pipe) as process:
        assert process.stdout.readline() == b"taken\n"
        assert LeaseBook(folder).holder_life("a") is Life.ALIVE
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it has ended, unreaped
        assert LeaseBook(folder).holder_life("a") is Life.DEAD
        assert LeaseBook(folder).take("a")


TAKE = """
from pathlib import Path
from cachedet.store.files.leases import LeaseBook
with LeaseBook(Path({folder!r})) as leases:
    leases.take("a")
"""


def test_a_full_disk_refuses_a_lease_in_words(folder: Path, nursery: Any) -> None:
    script = nursery.limit_files(10) + TAKE.format(folder=str(folder))
    with nursery.start(script) as process:
        _, errors = process.communicate()
    assert "StoreError: cannot write" in errors
    assert "File too large" in errors
    assert "What was committed is safe" in errors
    assert list((folder / "leases").iterdir()) == []


def test_a_folder_of_leases_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "leases").write_bytes(b"")
    with pytest.raises(StoreError, match=r"cannot write .*leases: File exists. What was committed"):
        LeaseBook(tmp_path).__enter__()
    with pytest.raises(StoreError, match=r"cannot write .*a.lease: Not a directory"):
        LeaseBook(tmp_path).take("a")


def test_a_lease_that_is_a_folder_is_watched_and_then_named(folder: Path) -> None:
    watch = Watch()
    (folder / "leases" / "a.lease").mkdir()
    here = LeaseBook(folder, patience=60, watch=watch)
    assert not here.take("a")
    watch.now += 61
    with pytest.raises(StoreError, match=r"cannot write .*a.lease: (Is a dir|Operation not perm)"):
        here.take("a")


def test_a_renewal_takes_nothing_back(folder: Path) -> None:
    """Whoever found our lease stale and removed it shall not find it again."""
    book = LeaseBook(folder)
    assert book.take("a")
    path = folder / "leases" / "a.lease"
    length = path.stat().st_size
    book.renew()
    assert path.stat().st_size == length
    path.unlink()
    book.renew()
    assert not path.exists()
    book.release("a")


def test_the_commit_lock_lets_go_when_its_holder_dies(folder: Path, nursery: Any) -> None:
    script = (
        "import time; from pathlib import Path\n"
        "from cachedet.store.files.leases import commit_lock\n"
        f"with commit_lock(Path({str(folder)!r})):\n"
        "    print('held', flush=True); time.sleep(60)\n"
    )
    with nursery.start(script) as process:
        assert process.stdout.readline() == "held\n"
        process.kill()
    with commit_lock(folder):
        pass


def test_the_commit_lock_makes_the_folder_that_copying_dropped(tmp_path: Path) -> None:
    with commit_lock(tmp_path):
        assert (tmp_path / "leases" / "commit.lock").exists()


def test_a_file_system_without_locks_is_warned_of(folder: Path) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    with (
        pytest.warns(UserWarning, match=r"cannot lock files \(No locks available\), so that two"),
        commit_lock(folder, acquire=refuse),
    ):
        pass
