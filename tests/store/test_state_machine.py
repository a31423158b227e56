"""A hypothesis machine drives a store through writes, crashes, damage, repair, and images that
leave and come back, beside a model.

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

import numpy as np
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

from cachedet.errors import CorruptBlockError, MissingFeatureError, StoreError
from cachedet.store.additions import order_as_stored
from cachedet.store.files.durable import temporary_path
from cachedet.store.files.leases import LeaseBook
from cachedet.store.files.owner import Life, Owner
from cachedet.store.files.source import LocalFiles
from cachedet.store.format.layout import commit_key, shard_key
from cachedet.store.format.manifest import load_manifest, truth_digest, withdrawn_digest
from cachedet.store.format.plan import StorePlan
from cachedet.store.prune import prune_store
from cachedet.store.reader import FeatureStore
from cachedet.store.truth import replace_truth
from cachedet.store.verify import verify_store

RANDOM_EXAMPLES = int(os.environ.get("CACHEDET_EXAMPLES", "0"))
DEAD = replace(Owner.me(), pid=2**22 + 1, start=1)  # above the largest process id
ELSEWHERE = Owner(host="another-machine", pid=1, start=1)


class StoreMachine(RuleBasedStateMachine):
    """The model: which blocks are committed, of which images, which of those are damaged, who holds
    a lease, and which images left.
    """

    kit: Any

    @initialize(codec=st.sampled_from(["fp16", "int8", "int8+zstd", "snr12"]))
    def create(self, codec: str) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.root = self.folder / "s.zarr"
        self.codec = codec
        self.gone: set[int] = set()  # rows
        self.writer = self.open_writer()
        self.blocks = {block.name: block for block in self.writer.blocks}
        self.committed: set[str] = set()
        self.blank: dict[str, set[int]] = {}  # rows that a committed block was written without
        self.damaged: set[str] = set()
        self.leased: dict[str, Owner] = {}
        self.watch = 0.0
        self.leases = LeaseBook(self.root, patience=60, watch=lambda: self.watch)

    def open_writer(self) -> Any:
        """As `extract` does with the images that are in the store."""
        every = self.kit.annotations
        rows = [row for row in range(len(every)) if row not in self.gone]
        order = order_as_stored(self.root, every, self.kit.contents_of(every), rows)
        return self.kit.open_writer(
            self.root,
            codec=self.codec,
            withdrawn=order.withdrawn,
            truth_digest=truth_digest(order.annotations, order.withdrawn),
            withdrawn_digest=withdrawn_digest(order.withdrawn),
        )

    def needed(self) -> set[str]:
        return {k for k, block in self.blocks.items() if not self.gone.issuperset(block.rows)}

    def whole(self, gone: Any = None) -> set[str]:
        """Committed with all images but those that left, as one sees it who knows of `gone`."""
        lost = self.gone if gone is None else gone
        return {name for name in self.committed if self.blank.get(name, set()) <= {*lost}}

    def note(self, block: Any) -> None:
        self.committed.add(block.name)
        self.blank[block.name] = {*self.writer.gone.intersection(block.rows)}

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)

    numbers = st.integers(0, 5)

    def block(self, number: int) -> Any:
        return list(self.blocks.values())[number % len(self.blocks)]

    @rule(number=numbers)
    def write(self, number: int) -> None:
        block = self.block(number)
        if not self.writer.gone.intersection(block.rows) <= self.gone:
            with pytest.raises(StoreError, match="images came back to the store while"):
                self.writer.write(block, self.kit.noise_of(block))
            return
        is_ours = self.writer.write(block, self.kit.noise_of(block))
        if block.name in self.damaged:  # seen at once where a length or the record is wrong
            self.damaged -= {block.name} if is_ours else set()
        else:
            assert is_ours == (block.name not in self.whole(self.writer.gone))
        if is_ours:
            self.note(block)

    @rule(row=numbers)
    def withdraw(self, row: int) -> None:
        if len(self.gone | {row}) < len(self.kit.annotations):
            self.gone.add(row)
            self.replace_truth()

    def replace_truth(self, back: Any = ()) -> None:
        gone, returned = (np.array(sorted(rows), dtype=np.int64) for rows in (self.gone, back))
        manifest = load_manifest(LocalFiles(self.root))
        truth = self.kit.annotations  # its images have no boxes
        replace_truth(self.root, manifest, truth, withdrawn=gone, back=returned)

    @precondition(lambda self: self.gone and not self.damaged)
    @rule(number=numbers)
    def relabel_back(self, number: int) -> None:
        """An image is back where every block of it is there with its features."""
        row = sorted(self.gone)[number % len(self.gone)]
        self.gone.remove(row)
        if all(name in self.whole() for name, block in self.blocks.items() if row in block.rows):
            self.replace_truth([row])
            return
        with pytest.raises(StoreError, match="features of images that come back were freed"):
            self.replace_truth([row])
        self.gone.add(row)

    @precondition(lambda self: self.gone and not self.damaged)
    @rule()
    def extract_back(self) -> None:
        self.gone.clear()
        self.start_again()

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
        candidates = sorted(self.whole() - self.damaged)
        if not candidates:
            return
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
        seen = self.damaged & self.needed()
        assert {bad.name for bad in report.bad} == seen
        assert set(report.missing) == self.needed() - self.whole()
        assert all(bad.withdrawn for bad in report.bad)
        self.committed -= seen
        self.damaged -= seen

    @rule()
    def start_again(self) -> None:
        self.writer = self.open_writer()
        assert not list(self.root.rglob("*.tmp"))
        self.leased = {k: owner for k, owner in self.leased.items() if owner != DEAD}

    @precondition(lambda self: not self.damaged)
    @rule()
    def prune(self) -> None:
        """Leases of the dead go, those of others for blocks that are committed, and blocks of
        nobody that nobody works on.
        """
        leased = {path.stem for path in (self.root / "leases").glob("*.lease")}
        prune_store(self.root, dry_run=False)
        self.leased = {
            name: owner
            for name, owner in self.leased.items()
            if owner != DEAD and name not in self.committed
        }
        self.committed &= self.needed() | leased
        assert all(
            waste.kind in ("orphan", "image") or not waste.paths
            for waste in prune_store(self.root, dry_run=True).waste
        )

    @rule()
    def finish(self) -> None:
        verify_store(self.root, deep=True)
        self.committed -= self.damaged & self.needed()
        self.damaged -= self.needed()
        self.writer = self.open_writer()
        for block in self.writer.missing_blocks():
            assert self.writer.write(block, self.kit.noise_of(block))
            self.note(block)
        assert self.needed() <= self.whole()
        self.leased = {k: owner for k, owner in self.leased.items() if owner != DEAD}
        assert verify_store(self.root, deep=True).is_good

    @invariant()
    def what_is_read_is_what_was_committed(self) -> None:
        if not hasattr(self, "root"):
            return
        try:
            store = FeatureStore.open(self.root)
        except CorruptBlockError:
            seen = self.damaged & self.needed()
            assert seen, "only a damaged record of a block that is needed may keep it from opening"
            return
        assert len(store) == len(self.kit.annotations) - len(self.gone)
        codec = StorePlan.load(LocalFiles(self.root)).codec
        for name, block in self.blocks.items():
            if name not in self.needed():
                continue
            if name not in self.whole():
                with pytest.raises(MissingFeatureError):
                    store.read(self.rows_now(block)[0][1], block.view)
            elif name not in self.damaged:
                self.check_features(store, block, codec)
            else:
                self.check_damaged(store, block)

    def rows_now(self, block: Any) -> list[tuple[int, int]]:
        """Slot, and row in an open store, of its images that did not leave."""
        return [
            (slot, row - sum(lost < row for lost in self.gone))
            for slot, row in enumerate(block.rows)
            if row not in self.gone
        ]

    def check_features(self, store: FeatureStore, block: Any, codec: Any) -> None:
        true = self.kit.noise_of(block)
        for index, row in self.rows_now(block):
            for level, maps in store.read(row, block.view).items():
                exact = true[level][index : index + 1]
                bound = codec.error_bound(exact, level=level).expand_as(exact) * (1 + 1e-5)
                saturates = self.codec.startswith("snr")
                assert saturates or ((maps[None] - exact).abs() <= bound).all()
                encoded = codec.encode(exact, level=level, images=["x"])
                shape = (exact.shape[1], exact.shape[2], exact.shape[3])
                again = codec.decode(encoded.parts, level=level, shape=shape)[0]
                torch.testing.assert_close(maps, again, rtol=1e-5, atol=1e-5)

    def check_damaged(self, store: FeatureStore, block: Any) -> None:
        """Each image is either right or an exception."""
        for index, row in self.rows_now(block):
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
