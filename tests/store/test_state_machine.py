"""A hypothesis machine drives a store through writes, crashes, damage and repair beside a model.

`make test` runs the same few examples every time. For a long run of random ones, whose failures
hypothesis keeps in .hypothesis/ and tries again first:

    CACHEDET_EXAMPLES=300 pytest tests/store/test_state_machine.py
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from cachedet.errors import CorruptBlockError, MissingFeatureError
from cachedet.store.files.durable import temporary_path
from cachedet.store.files.leases import LeaseBook
from cachedet.store.files.owner import Life, Owner
from cachedet.store.files.source import LocalFiles
from cachedet.store.format.layout import commit_key, shard_key
from cachedet.store.format.plan import StorePlan
from cachedet.store.prune import prune_store
from cachedet.store.reader import FeatureStore
from cachedet.store.verify import verify_store

RANDOM_EXAMPLES = int(os.environ.get("CACHEDET_EXAMPLES", "0"))
DEAD = replace(Owner.me(), pid=2**22 + 1, start=1)  # above the largest process id
ELSEWHERE = Owner(host="another-machine", pid=1, start=1)


class StoreMachine(RuleBasedStateMachine):
    """The model: which blocks are committed, which of those are damaged, who holds a lease."""

    kit: Any

    @initialize(codec=st.sampled_from(["fp16", "int8", "int8+zstd", "snr12"]))
    def create(self, codec: str) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.root = self.folder / "s.zarr"
        self.codec = codec
        self.writer = self.open_writer()
        self.blocks = {block.name: block for block in self.writer.blocks}
        self.committed: set[str] = set()
        self.damaged: set[str] = set()
        self.leased: dict[str, Owner] = {}
        self.watch = 0.0
        self.leases = LeaseBook(self.root, patience=60, watch=lambda: self.watch)

    def open_writer(self) -> Any:
        return self.kit.open_writer(self.root, codec=self.codec)

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)

    numbers = st.integers(0, 5)

    def block(self, number: int) -> Any:
        return list(self.blocks.values())[number % len(self.blocks)]

    @rule(number=numbers)
    def write(self, number: int) -> None:
        block = self.block(number)
        is_ours = self.writer.write(block, self.kit.noise_of(block))
        if block.name in self.damaged:  # seen at once where a length or the record is wrong
            self.damaged -= {block.name} if is_ours else set()
        else:
            assert is_ours == (block.name not in self.committed)
        self.committed.add(block.name)

    @rule(number=numbers, renamed=st.integers(0, 2))
    def crash_in_a_commit(self, number: int, renamed: int) -> None:
        """Dead after writing the temporary files and renaming some of them."""
        block = self.block(number)
        if block.name in self.committed:
            return
        for index, (array, part) in enumerate(self.parts(block)):
            path = self.root / shard_key(block, array, part)
            path.parent.mkdir(parents=True, exist_ok=True)
            half = temporary_path(path)
            half = half.with_name(half.name.replace(Owner.me().token, DEAD.token))
            (path if index < renamed else half).write_bytes(b"half of a shard")

    def parts(self, block: Any) -> Any:
        return StorePlan.load(LocalFiles(self.root)).layout.parts(block.bucket).items()

    @rule(number=numbers, owner=st.sampled_from([DEAD, ELSEWHERE]))
    def somebody_takes_a_lease(self, number: int, owner: Owner) -> None:
        name = self.block(number).name
        if name not in self.leased:
            LeaseBook(self.root, owner=owner).take(name)
            self.leased[name] = owner

    @rule(number=numbers)
    def take_a_lease(self, number: int) -> None:
        name = self.block(number).name
        holder = self.leased.get(name)
        if holder is None or holder == DEAD:
            assert self.leases.take(name)
            self.leases.release(name)
            self.leased.pop(name, None)
        else:
            assert not self.leases.take(name)
            assert self.leases.holder_life(name) is Life.UNKNOWN

    @rule()
    def wait_long(self) -> None:
        """Leases that were seen before and not renewed since count as stale, others do not."""
        for name in self.leased:
            self.leases.take(name)
        for name in list(self.leased):
            if not (self.root / "leases" / f"{name}.lease").exists():
                continue
            if self.leased[name] == DEAD:
                self.leases.release(name)
                del self.leased[name]
        self.watch += 61
        for name in list(self.leased):
            assert self.leases.take(name)
            self.leases.release(name)
            del self.leased[name]

    @precondition(lambda self: self.committed - self.damaged)
    @rule(number=numbers, kind=st.sampled_from(["flip", "truncate", "remove", "record"]))
    def corrupt(self, number: int, kind: str) -> None:
        candidates = sorted(self.committed - self.damaged)
        block = self.blocks[candidates[number % len(candidates)]]
        array, part = next(iter(self.parts(block)))
        path = self.root / (
            commit_key(block) if kind == "record" else shard_key(block, array, part)
        )
        content = bytearray(path.read_bytes())
        if kind == "remove":
            path.unlink()
        elif kind == "truncate":
            path.write_bytes(content[:-3])
        else:
            content[len(content) // 2] ^= 16
            path.write_bytes(bytes(content))
        self.damaged.add(block.name)

    @rule()
    def verify(self) -> None:
        report = verify_store(self.root, deep=True)
        assert {bad.name for bad in report.bad} == self.damaged
        assert set(report.missing) == self.blocks.keys() - self.committed
        assert all(bad.withdrawn for bad in report.bad)
        self.committed -= self.damaged
        self.damaged.clear()

    @rule()
    def start_again(self) -> None:
        self.writer = self.open_writer()
        assert not list(self.root.rglob("*.tmp"))
        self.leased = {k: owner for k, owner in self.leased.items() if owner != DEAD}

    @precondition(lambda self: not self.damaged)
    @rule()
    def prune(self) -> None:
        """Leases of the dead go, and those of others for blocks that are committed."""
        prune_store(self.root, dry_run=False)
        self.leased = {
            name: owner
            for name, owner in self.leased.items()
            if owner != DEAD and name not in self.committed
        }
        assert all(
            waste.kind == "orphan" or not waste.paths
            for waste in prune_store(self.root, dry_run=True).waste
        )

    @rule()
    def finish(self) -> None:
        verify_store(self.root, deep=True)
        writer = self.open_writer()
        for block in writer.missing_blocks():
            assert writer.write(block, self.kit.noise_of(block))
        self.committed = set(self.blocks)
        self.damaged.clear()
        self.leased = {k: owner for k, owner in self.leased.items() if owner != DEAD}
        assert verify_store(self.root, deep=True).is_good

    @invariant()
    def what_is_read_is_what_was_committed(self) -> None:
        if not hasattr(self, "root"):
            return
        try:
            store = FeatureStore.open(self.root)
        except CorruptBlockError:
            assert self.damaged, "only a damaged record may keep a store from opening"
            return
        for name, block in self.blocks.items():
            if name not in self.committed:
                with pytest.raises(MissingFeatureError):
                    store.read(block.rows[0], block.view)
            elif name not in self.damaged:
                self.check_features(store, block)
            else:
                self.check_damaged(store, block)

    def check_features(self, store: FeatureStore, block: Any) -> None:
        true = self.kit.noise_of(block)
        codec = StorePlan.load(LocalFiles(self.root)).codec
        for index, row in enumerate(block.rows):
            for level, maps in store.read(row, block.view).items():
                exact = true[level][index : index + 1]
                bound = codec.error_bound(exact, level=level).expand_as(exact) * (1 + 1e-5)
                saturates = self.codec.startswith("snr")
                assert saturates or ((maps[None] - exact).abs() <= bound).all()
                encoded = codec.encode(exact, level=level, images=["x"])
                stored = {k: torch.from_numpy(v) for k, v in encoded.parts.items()}
                shape = (exact.shape[1], exact.shape[2], exact.shape[3])
                again = codec.decode(stored, level=level, shape=shape)[0]
                torch.testing.assert_close(maps, again, rtol=1e-5, atol=1e-5)

    def check_damaged(self, store: FeatureStore, block: Any) -> None:
        """Each image is either right or an exception."""
        for index, row in enumerate(block.rows):
            try:
                features = store.read(row, block.view)
            except CorruptBlockError:
                continue
            assert features["C4"].isfinite().all(), index


def test_the_store_agrees_with_its_model(annotations_of: Any, kit: Any) -> None:
    StoreMachine.kit = kit.of(annotations_of([(96, 128)] * 5 + [(128, 96)]))
    run_state_machine_as_test(
        StoreMachine,
        settings=settings(
            max_examples=RANDOM_EXAMPLES or 20,
            derandomize=not RANDOM_EXAMPLES,
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
