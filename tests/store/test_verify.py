"""`verify` and `info`: what counts as proof of damage, and what is said about it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cachedet.cli import app
from cachedet.errors import CorruptBlockError
from cachedet.store.reader import FeatureStore
from cachedet.store.verify import describe_store, verify_store

NAME = "base-b96x128-000000"


@pytest.mark.parametrize("deep", [False, True])
def test_a_block_of_another_store_is_withdrawn_and_repaired(
    root: Path, tmp_path: Path, deep: bool, kit: Any
) -> None:
    """Record and shards are whole and fit each other, but other weights made them."""
    whole = kit.files(root)
    other = kit.fill(tmp_path / "other.zarr", kit.noise_of, weights_digest="e" * 64)
    for key in (
        f"commits/{NAME}.json",
        *(f"base/b96x128/{k}/values/c/0/0/0/0" for k in kit.spec.names),
    ):
        shutil.copy(other / key, root / key)
    with pytest.raises(CorruptBlockError, match="belongs to another store or block"):
        FeatureStore.open(root)
    report = verify_store(root, deep=deep)
    assert [(bad.name, bad.withdrawn) for bad in report.bad] == [(NAME, True)]
    assert "the record belongs to another store or block: it is of a store" in report.bad[0].reason
    FeatureStore.open(root)
    kit.fill(root)
    assert kit.files(root) == whole


def test_what_cannot_be_read_this_time_is_not_withdrawn(root: Path, kit: Any) -> None:
    """A name that is too long stands for a stale file handle, a lost network, no permission."""
    shard = root / "base/b96x128/C4/values/c/0/0/0/0"
    shard.rename(root.parent / "kept")
    shard.symlink_to("x" * 300)
    report = verify_store(root, deep=True)
    assert not report.is_good
    assert report.bad == ()
    assert [unread.name for unread in report.unreadable] == [NAME]
    assert report.good == report.planned - 1
    assert "File name too long. That proves no damage" in report.unreadable[0].reason
    assert json.loads(json.dumps(report.to_json()))["unreadable"][0]["name"] == NAME
    shown = CliRunner().invoke(app, ["verify", str(root)])
    assert shown.exit_code == 1
    assert f"unread   {NAME}: " in shown.stdout
    assert "5 of 6 blocks are good" in shown.stdout
    shard.unlink()
    (root.parent / "kept").rename(shard)
    assert verify_store(root, deep=True).is_good


@pytest.mark.parametrize("kind", ["written anew", "written anew, but not well", "gone"])
def test_a_block_put_right_while_verify_looks_is_not_withdrawn(
    root: Path, kind: str, kit: Any
) -> None:
    """The record that is put aside is the one that was found bad."""
    shard = root / "base/b96x128/C4/values/c/0/0/0/0"
    content = shard.read_bytes()
    shard.write_bytes(content[:-5])

    def interfere() -> None:
        if kind == "gone":
            (root / f"commits/{NAME}.json").unlink()
            return
        kit.fill(root)
        if kind != "written anew":
            kit.flip_bit(shard, 3)

    with kit.at_call("_flock", interfere):
        report = verify_store(root, deep=True)
    if kind == "written anew":
        assert report.is_good
    elif kind == "gone":
        assert report.missing == (NAME,)
        assert report.bad == ()
    else:
        assert "the content is not what was committed" in report.bad[0].reason
        assert report.bad[0].withdrawn


def test_a_read_only_store_is_checked_and_left(root: Path, kit: Any) -> None:
    kit.flip_bit(root / "base/b96x128/C4/values/c/0/0/0/0", 3)
    with kit.read_only(root):
        report = verify_store(root, deep=True)
        shown = CliRunner().invoke(app, ["verify", str(root), "--deep"])
    assert [(bad.name, bad.withdrawn) for bad in report.bad] == [(NAME, False)]
    assert shown.exit_code == 1
    assert "the store is read-only here: the bad blocks could not be withdrawn" in shown.stdout
    assert (root / f"commits/{NAME}.json").exists()


def test_verify_of_what_is_no_folder() -> None:
    refused = CliRunner().invoke(app, ["verify", "http://b/x"])
    assert refused.exit_code == 1
    assert "error: http://b/x cannot be written: cachedet writes stores into" in refused.stderr


def test_info_in_a_pipe_cuts_nothing(root: Path) -> None:
    """A line for each fact, however long: other programs read it."""
    shown = CliRunner().invoke(app, ["info", str(root)])
    assert shown.exit_code == 0, shown.output
    lines = shown.stdout.splitlines()
    description = describe_store(root)
    assert len(lines) == len(description)
    assert f"{'fingerprint':<28}{description['fingerprint']}" in lines
    assert f"{'store':<28}{root}" in lines
