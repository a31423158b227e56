"""Leases are advice without clocks (fault F7)."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cachedet.store.leases import LeaseBook, commit_lock
from cachedet.store.owner import Life, Owner

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
    return Owner(host=Owner.me().host, pid=process.pid, start=12345)


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
    assert Owner(host=me.host, pid=me.pid, start=me.start + 1).life() is Life.DEAD  # id used again
    assert dead_owner().life() is Life.DEAD
    assert ELSEWHERE.life() is Life.UNKNOWN
    assert Owner(host=me.host, pid=1, start=0).life() is Life.ALIVE


def test_the_commit_lock_lets_go_when_its_holder_dies(folder: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path\n"
        "from cachedet.store.leases import commit_lock\n"
        f"with commit_lock(Path({str(folder)!r})):\n"
        "    print('held', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        process.kill()
    with commit_lock(folder):
        pass
