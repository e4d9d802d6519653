"""From documents to shards: only as many tokens as are needed; where one call stops, the next goes on."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable

import numpy as np

from modexp.config.data import DataConfig
from modexp.data import shards
from modexp.data.shards import Store
from modexp.data.sources import Source, refusal
from modexp.data.tokenizers import Tokenizer

BATCH_BYTES = 2**20  # of text to tokenise at once


def split_of(digest: bytes, validation_share: float) -> str:
    """The split of a document, by the hash of its content alone.

    The last eight bytes decide, because the first ones order local documents.
    """
    return "validation" if int.from_bytes(digest[-8:], "big") < validation_share * 2**64 else "train"


class Writer:
    """Tokens of one split on their way to the store."""

    def __init__(self, store: Store, split: str, config: DataConfig, tokenizer: Tokenizer, need: int) -> None:
        self.store, self.split, self.config, self.tokenizer, self.need = store, split, config, tokenizer, need
        self.position = store.splits[split].position
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._reset()

    def _reset(self) -> None:
        self._tokens: list[np.ndarray] = []
        self._lengths: list[tuple[int, int]] = []  # tokens and bytes of each document
        self._num_tokens = 0
        self._left_out: Counter[str] = Counter()

    @property
    def missing(self) -> int:
        return self.need - self.store.splits[self.split].tokens - self._num_tokens

    def add(self, position: int, text: bytes) -> None:
        """Take document number ``position`` of the source."""
        self.position = position + 1
        reason = refusal(text, self.config)
        if reason:
            self._left_out[reason] += 1
            return
        self._waiting.append(text)
        self._waiting_bytes += len(text)
        # a token is a byte or more, so less text than this cannot be enough
        if self._waiting_bytes >= min(BATCH_BYTES, self.missing):
            self._encode()
            if self._num_tokens >= shards.SHARD_TOKENS:
                self.flush()

    def _encode(self) -> None:
        if not self._waiting:
            return
        documents = self.tokenizer.encode(self._waiting)
        self._lengths += ((len(tokens), len(text)) for tokens, text in zip(documents, self._waiting, strict=True))
        self._tokens.append(np.concatenate(documents).astype(self.store.dtype, copy=False))
        self._num_tokens += len(self._tokens[-1])
        self._waiting, self._waiting_bytes = [], 0

    def flush(self) -> None:
        """Bring everything taken so far to disk."""
        self._encode()
        if self._tokens:
            tokens = np.concatenate(self._tokens)
            self.store.append(self.split, tokens, np.array(self._lengths), self._left_out, self.position)
        elif self.store.splits[self.split].shards:  # only documents left out came after the last shard
            last = self.store.splits[self.split].shards[-1]
            last.left_out = dict(Counter(last.left_out) + self._left_out)
            last.position = self.position
        self._reset()


def tokenise(
    store: Store,
    config: DataConfig,
    source: Source,
    tokenizer: Tokenizer,
    needs: dict[str, int],
    report: Callable[[str], None],
) -> None:
    """Extend ``store`` until each split holds the tokens that ``needs`` names, or the source has no more.

    Each split keeps its own place in the source, so that a small need of one does not tokenise the other.
    """
    writers = {
        name: Writer(store, name, config, tokenizer, needs[name])
        for name, split in store.splits.items()
        if split.tokens < needs[name] and not split.exhausted
    }
    if not writers:
        return
    start = min(writer.position for writer in writers.values())
    with contextlib.closing(source.read(start, scratch=store.folder)) as documents:
        for position, (digest, text) in enumerate(documents, start):
            split = split_of(digest, config.validation_share)
            writer = writers.get(split)
            if writer is None or position < writer.position:
                continue
            shards_before = len(store.splits[split].shards)
            writer.add(position, text)
            if writer.missing <= 0:
                writer.flush()
                del writers[split]
            if len(store.splits[split].shards) > shards_before:
                report(f"{split}: {store.splits[split].tokens:,} of {needs[split]:,} tokens")
            if not writers:
                return
    for writer in writers.values():
        writer.flush()
        store.splits[writer.split].exhausted = True
    store.save()
