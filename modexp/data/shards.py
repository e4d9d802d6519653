"""Token shards on disk: raw little-endian arrays, and one index.json that says what they hold.

A shard is written whole before the index names it, and not changed while it is whole: readers need no lock, and a
process that is killed leaves a shorter store, never a broken one. Stores grow by more shards. Beside each lies how many
tokens and bytes each of its documents has.
"""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from modexp.files import Unwritable, exclusive, unwritable, write_bytes, write_json

SHARD_TOKENS = 2**24
LENGTH = "<i8"  # of a document
SPLITS = ("train", "validation")


@dataclass
class Shard:
    file: str
    tokens: int
    crc32: int
    documents: int
    documents_crc32: int  # of the file of their lengths
    bytes: int  # of the documents, without separators
    left_out: dict[str, int]
    position: int  # number of the source's document after this shard's last


@dataclass
class Split:
    """The tokens of one split, documents in the order of the source."""

    shards: list[Shard] = field(default_factory=list)
    exhausted: bool = False  # the source holds no more

    @property
    def tokens(self) -> int:
        return sum(shard.tokens for shard in self.shards)

    @property
    def position(self) -> int:
        return self.shards[-1].position if self.shards else 0

    @property
    def documents(self) -> int:
        return sum(shard.documents for shard in self.shards)

    @property
    def bytes(self) -> int:
        return sum(shard.bytes for shard in self.shards)


@dataclass
class Store:
    """One corpus as tokens, in one folder of the cache."""

    folder: Path
    vocabulary: int
    facts: dict[str, Any] = field(default_factory=dict)
    splits: dict[str, Split] = field(default_factory=lambda: {name: Split() for name in SPLITS})

    @property
    def dtype(self) -> np.dtype:
        """The narrowest unsigned type that holds every token."""
        return np.min_scalar_type(self.vocabulary - 1).newbyteorder("<")

    @classmethod
    def open(cls, folder: Path) -> Store | None:
        """The store in ``folder``; None where there is none, or its index cannot be read."""
        try:
            index = json.loads((folder / "index.json").read_text())
            splits = {
                name: Split([Shard(**shard) for shard in split["shards"]], split["exhausted"])
                for name, split in index["splits"].items()
            }
            return cls(folder, index["vocabulary"], index["facts"], splits)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def save(self) -> None:
        splits = {name: asdict(split) for name, split in self.splits.items()}
        index = {"vocabulary": self.vocabulary, "facts": self.facts, "splits": splits}
        write_json(self.folder / "index.json", index)

    def append(
        self,
        split: str,
        tokens: np.ndarray,
        lengths: np.ndarray,
        left_out: Counter[str],
        position: int,
    ) -> None:
        """Write one more shard, then name it in the index. ``lengths`` (documents, 2): tokens, separators among them,
        and bytes of each document."""
        shards = self.splits[split].shards
        content = tokens.astype(self.dtype, copy=False).data  # no copy: a shard is large
        name = f"{split}-{len(shards):05d}.bin"
        write_bytes(self.folder / name, content)
        of_documents = lengths.astype(LENGTH).tobytes()
        write_bytes(lengths_of(self.folder / name), of_documents)
        shards.append(
            Shard(
                file=name,
                tokens=len(tokens),
                crc32=zlib.crc32(content),
                documents=len(lengths),
                documents_crc32=zlib.crc32(of_documents),
                bytes=int(lengths[:, 1].sum()),
                left_out=dict(left_out),
                position=position,
            )
        )
        self.save()

    def bytes_per_token(self, split: str, tokens: int) -> float:
        """Bytes of text over tokens, separators among them, of the first ``tokens``, or of all, where there are fewer;
        a document that ends later counts in proportion. Nats a token over this and ln 2 are bits a byte."""
        left, found = tokens, 0.0
        for shard in self.splits[split].shards:
            if shard.tokens <= left:
                found, left = found + shard.bytes, left - shard.tokens
                continue
            lengths = np.fromfile(lengths_of(self.folder / shard.file), LENGTH).reshape(-1, 2)
            before = lengths[:, 0].cumsum() - lengths[:, 0]
            found += float((lengths[:, 1] * ((left - before) / lengths[:, 0]).clip(0, 1)).sum())
            left = 0
            break
        return found / max(1, tokens - left)

    def drop_damaged(self, checksum: bool) -> list[str]:
        """Forget every shard from the first damaged one of each split on; the damaged ones' names.

        Sizes are always compared, tokens only where ``checksum`` asks for it.
        """
        damaged = []
        for split in self.splits.values():
            for number, shard in enumerate(split.shards):
                if not self._is_whole(shard, checksum):
                    damaged.append(shard.file)
                    split.shards, split.exhausted = split.shards[:number], False
                    break
        return damaged

    def _is_whole(self, shard: Shard, checksum: bool) -> bool:
        path = self.folder / shard.file
        try:
            if path.stat().st_size != shard.tokens * self.dtype.itemsize:
                return False
            if zlib.crc32(lengths_of(path).read_bytes()) != shard.documents_crc32:
                return False
            return not checksum or zlib.crc32(np.memmap(path, np.uint8, mode="r").data) == shard.crc32
        except OSError:
            return False

    def reader(self, split: str) -> Reader:
        return Reader([np.memmap(self.folder / s.file, self.dtype, mode="r") for s in self.splits[split].shards])


class Reader:
    """Tokens of one split as if they were one array."""

    def __init__(self, shards: list[np.ndarray]) -> None:
        self._shards = [shard.view(np.ndarray) for shard in shards]  # indexing a memmap itself is slow
        self._ends = np.cumsum([len(shard) for shard in shards], dtype=np.int64).tolist()

    def gather(self, starts: np.ndarray, length: int) -> np.ndarray:
        """Tokens [start, start + length) for each of ``starts`` (B,); int64 (B, length)."""
        tokens = np.empty((len(starts), length), np.int64)
        owners = np.searchsorted(self._ends, starts, side="right").tolist()
        for row, start, owner in zip(tokens, starts.tolist(), owners, strict=True):
            filled = 0
            while filled < length:  # a sequence may begin in one shard and end in the next
                shard, end = self._shards[owner], self._ends[owner]
                piece = shard[start + filled - end :][: length - filled]  # counted from the end, so below zero
                row[filled : filled + len(piece)] = piece
                filled, owner = filled + len(piece), owner + 1
        return tokens


def lengths_of(shard: Path) -> Path:
    """The file with the lengths of a shard's documents."""
    return shard.with_suffix(".documents")


@contextmanager
def locked(folder: Path, report: Callable[[str], None]) -> Iterator[None]:
    """Only one process at a time adds to the store in ``folder``, which is made where it is missing."""
    with ExitStack() as stack:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            waiting = "another process is preparing the same data: waiting for it"
            stack.enter_context(exclusive(folder / "lock", lambda: report(waiting)))
        yield


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """What cannot be written here is the token cache, and is told so."""
    try:
        yield
    except (OSError, Unwritable) as failed:
        error = failed.error if isinstance(failed, Unwritable) else failed
        cure = "choose another place: data.cache_dir=DIR or MODEXP_CACHE=DIR"
        raise unwritable(folder, error, "the token cache ", cure) from None
