"""Commit records: the truth about which blocks exist, and how their bytes must look."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cachedet.errors import CorruptBlockError
from cachedet.store.blocks import Block
from cachedet.store.manifest import digest_json

COMMITS = "commits"


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """One whole shard file: its path in the store, length and content digest."""

    path: str
    nbytes: int
    digest: str

    @classmethod
    def of_file(cls, root: Path, path: str) -> ShardRecord:
        file = root / path
        return cls(path=path, nbytes=file.stat().st_size, digest=digest_file(file))


@dataclass(frozen=True, kw_only=True)
class CommitRecord:
    """Written after every shard of a block is on the disk; without it the block does not exist."""

    block: str
    image_ids: tuple[int, ...]
    fingerprint: str
    shards: dict[str, ShardRecord]  # by level

    def to_bytes(self) -> bytes:
        body: dict[str, Any] = {
            "block": self.block,
            "image_ids": list(self.image_ids),
            "fingerprint": self.fingerprint,
            "shards": {level: vars(shard) for level, shard in self.shards.items()},
        }
        return json.dumps({**body, "checksum": digest_json(body)}, indent=1).encode()

    @classmethod
    def read(cls, path: Path) -> CommitRecord:
        """Raises CorruptBlockError where the record is damaged."""
        try:
            body = json.loads(path.read_bytes())
            checksum = body.pop("checksum")
            if checksum != digest_json(body):
                raise ValueError("its checksum does not match")
            return cls(
                block=body["block"],
                image_ids=tuple(body["image_ids"]),
                fingerprint=body["fingerprint"],
                shards={level: ShardRecord(**shard) for level, shard in body["shards"].items()},
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CorruptBlockError(
                f"{path}: the commit record is damaged ({error}). Remove this file and run the "
                "same `cachedet extract` again: it writes this block anew"
            ) from error


def commit_path(root: Path, block: Block) -> Path:
    return root / COMMITS / f"{block.name}.json"


def shard_path(block: Block, level: str) -> str:
    """Path of the shard that holds a block's maps of one level, relative to the store."""
    return f"{block.group}/{level}/c/{block.number}/0/0/0"


def find_fault(root: Path, record: CommitRecord, *, deep: bool) -> tuple[Path, str] | None:
    """The first shard that is not what was committed, as (path, reason); None where all are.

    Lengths are always compared; `deep` reads every byte and compares digests too.
    """
    for shard in record.shards.values():
        file = root / shard.path
        try:
            nbytes = file.stat().st_size
        except FileNotFoundError:
            return file, "the shard file is missing"
        if nbytes != shard.nbytes:
            return file, f"the shard has {nbytes} bytes, {shard.nbytes} were committed"
        if deep and digest_file(file) != shard.digest:
            return file, "the content is not what was committed"
    return None


def digest_file(path: Path) -> str:
    """128-bit blake2b of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
