"""A corpus: the tokens that a plan asked for, as training batches in a fixed order and a validation set.

``T`` tokens a sequence, ``B`` sequences. Sequence j covers tokens [jT, jT + T]: inputs and targets, so that
each token is a target once and neighbours share one token.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from modexp.config.data import DataConfig
from modexp.data import bpe, order
from modexp.data.shards import SPLITS, Split, Store, locked, writing
from modexp.data.sources import Source, describe, make_source
from modexp.data.tokenise import tokenise
from modexp.data.tokenizers import FILE, HFTokenizer, Tokenizer, check_vocabulary, identity_of, make_tokenizer
from modexp.errors import UserError
from modexp.files import write_bytes, write_text

FORMAT = 1  # of the shards; a change makes every cache anew
Report = Callable[[str], None]


class Corpus:
    """Opened by :func:`prepare` or :func:`open_corpus`."""

    def __init__(self, config: DataConfig, store: Store, validation_tokens: int) -> None:
        self.bytes_per_token = store.bytes_per_token
        self.sequence_length = config.sequence_length
        self._tokenizer = store.folder / FILE if config.tokenizer == "bpe" else None
        self._block = order.block_sequences(config.sequence_length)
        self._splits = store.splits
        self._readers = {name: store.reader(name) for name in SPLITS}
        self.manifest = manifest(config, store, validation_tokens)

    def _sequences(self, split: str) -> int:
        return max(0, self._splits[split].tokens - 1) // self.sequence_length

    @property
    def num_sequences(self) -> int | None:
        """Training sequences of one epoch; None while the source holds more than was prepared."""
        return self._sequences("train") if self._splits["train"].exhausted else None

    def batch(self, seed: int, start: int, stop: int) -> np.ndarray:
        """Training sequences ``start`` .. ``stop`` of a run; int64 (B, T + 1).

        The same for any corpus that was prepared for at least ``stop`` sequences. Past the end of an
        exhausted corpus the next epoch begins, in another order.
        """
        epoch = self.num_sequences
        prepared = self._sequences("train") // self._block * self._block
        if epoch is None and stop > prepared:
            raise UserError(
                f"training sequence {stop} lies beyond the {prepared} that were prepared",
                "prepare the data for the whole run",
            )
        chosen = order.indices(seed, start, stop, self._block, epoch)
        return self._readers["train"].gather(chosen * self.sequence_length, self.sequence_length + 1)

    @property
    def num_held_out(self) -> int:
        """Sequences held out and prepared."""
        return self._sequences("validation")

    def validation(self, n: int, start: int = 0) -> np.ndarray:
        """Sequences ``start`` .. ``n`` of those held out, fewer where there are no more; int64 (B, T + 1)."""
        held = self.num_held_out
        if n > held and not self._splits["validation"].exhausted:
            raise UserError(
                f"validation sequence {n} lies beyond the {held} that were prepared",
                "prepare the data for the whole validation",
            )
        starts = np.arange(start, min(n, held), dtype=np.int64) * self.sequence_length
        return self._readers["validation"].gather(starts, self.sequence_length + 1)

    def keep_tokenizer(self, folder: Path) -> None:
        """Copy a tokenizer that was trained on this text into ``folder``, whose weights mean nothing without it, unless
        it is there."""
        if self._tokenizer and not (folder / FILE).exists():
            write_bytes(folder / FILE, self._tokenizer.read_bytes())


def prepare(
    config: DataConfig,
    train_tokens: int,
    validation_tokens: int,
    report: Report | None = None,
    expected: str | None = None,
) -> Corpus:
    """Tokenise what is missing for that many tokens of training and validation, and open the corpus.

    ``train_tokens`` may exceed the corpus: then it is prepared whole and repeated in epochs. Sources are
    read, checksums compared; a damaged shard is made again. Raises :class:`UserError` where the data cannot
    be had, or where their content hash is not the ``expected`` one.
    """
    report = report or (lambda line: None)
    named = None if config.tokenizer == "bpe" else make_tokenizer(config)
    source = make_source(config)
    tokenizer = named or trained(config, source, report, expected)
    content_hash = hash_of(config, source, tokenizer.identity)
    if expected not in (None, content_hash):
        library = " or the tokenizers library" if config.tokenizer == "bpe" else ""
        raise UserError(
            f"the data{library} changed: {describe(config)} now has content {content_hash}, expected was {expected}",
            f"bring the old data{library} or their token cache back, or plan anew under another name",
        )
    folder = cache_root(config) / content_hash
    with locked(folder, report):
        store = Store.open(folder) or Store(folder, tokenizer.vocabulary)
        check_vocabulary(config, store.vocabulary)
        for name in store.drop_damaged(checksum=True):
            report(f"{folder / name} is damaged: making it again")
        store.facts = source.facts
        with writing(folder):
            store.save()
            needs = needed_tokens(config, train_tokens, validation_tokens)
            tokenise(store, config, source, tokenizer, needs, report)
    check_size(config, store)
    return Corpus(config, store, validation_tokens)


def open_corpus(
    config: DataConfig,
    content_hash: str,
    train_tokens: int,
    validation_tokens: int,
    report: Report | None = None,
) -> Corpus:
    """The corpus that was prepared as ``content_hash``, from its shards alone.

    Only where they are lost, damaged or too few is it prepared again, and refused where the text has changed.
    """
    store = Store.open(cache_root(config) / content_hash)
    is_whole = config.tokenizer != "bpe" or (cache_root(config) / content_hash / FILE).exists()
    if store and is_whole and not store.drop_damaged(checksum=False):
        needs = needed_tokens(config, train_tokens, validation_tokens)
        if all(split.exhausted or split.tokens >= needs[name] for name, split in store.splits.items()):
            check_vocabulary(config, store.vocabulary)
            check_size(config, store)
            return Corpus(config, store, validation_tokens)
    return prepare(config, train_tokens, validation_tokens, report, expected=content_hash)


def trained(config: DataConfig, source: Source, report: Report, expected: str | None) -> Tokenizer:
    """The tokenizer of data.tokenizer=bpe, trained once a text and kept beside its shards.

    They lie under the ``expected`` content hash, or that which a small file under the hash of text and settings names.
    What lies there is used if it has the content of which that hash was made; otherwise it is trained again.
    """
    recipe = cache_root(config) / hash_of(config, source, f"bpe of {config.vocab_size}, {bpe.SAMPLE_BYTES}")
    pointer = recipe / "content_hash"
    with locked(recipe, report):
        for known in (expected, pointer.read_text().strip() if pointer.exists() else None):
            if known and (file := cache_root(config) / known / FILE).is_file():
                tokenizer = HFTokenizer(str(file))
                if hash_of(config, source, tokenizer.identity) == known:
                    return tokenizer
        report(f"training a BPE of {config.vocab_size:,} tokens on the training text")
        with writing(recipe):
            content = bpe.train(config, source, scratch=recipe).encode()
            content_hash = hash_of(config, source, identity_of(content))
            write_bytes(cache_root(config) / content_hash / FILE, content)
            write_text(pointer, f"{content_hash}\n")
    return HFTokenizer(str(cache_root(config) / content_hash / FILE))


def hash_of(config: DataConfig, source: Source, tokenizer: str) -> str:
    """Sixteen hex digits that stand for the token streams of both splits; ``tokenizer`` is its identity."""
    basis = {
        "format": FORMAT,
        "kind": config.kind,
        "source": source.identity,
        "tokenizer": tokenizer,
        "validation_share": config.validation_share,
    }
    return hashlib.sha256(json.dumps(basis, sort_keys=True).encode()).hexdigest()[:16]


def cache_root(config: DataConfig) -> Path:
    """Where token shards lie: data.cache_dir, else $MODEXP_CACHE, else ~/.cache/modexp."""
    chosen = config.cache_dir or os.environ.get("MODEXP_CACHE") or "~/.cache/modexp"
    return Path(chosen).expanduser().absolute()


def needed_tokens(config: DataConfig, train_tokens: int, validation_tokens: int) -> dict[str, int]:
    """Tokens to hold for a run: training in whole blocks of the shuffle, so that its order is final."""
    length = config.sequence_length
    block = order.block_sequences(length) * length
    num_blocks = max(1, -(-train_tokens // block))
    return {"train": num_blocks * block + 1, "validation": max(length, validation_tokens) + 1}


def check_size(config: DataConfig, store: Store) -> None:
    """Both splits need a sequence at least."""
    documents = sum(split.documents for split in store.splits.values())
    share = f"data.validation_share={config.validation_share}"
    validation = store.splits["validation"]
    for name, split in store.splits.items():
        if split.tokens > config.sequence_length:
            continue
        if name == "validation" and not validation.documents:
            sentence = f"{share} holds out none of the {documents} documents of {describe(config)}"
        else:
            sentence = (
                f"the {name} split of {describe(config)} holds {split.tokens} tokens in {split.documents} of "
                f"{documents} documents ({share}), too few for data.sequence_length={config.sequence_length}"
            )
        if documents < 2:
            cure = "add text: a single document cannot be both trained on and held out"
        else:
            cure = "add documents, shorten data.sequence_length, or change data.validation_share"
        raise UserError(sentence, cure)


def manifest(config: DataConfig, store: Store, validation_tokens: int) -> dict[str, Any]:
    """What the corpus is and holds; ``exhausted`` says that ``train_tokens`` are all there are. Bytes a token are of
    the first ``validation_tokens`` of each split, whatever else is there: a cache grows by what others ask for."""
    train, validation = (store.splits[name] for name in SPLITS)
    return {
        "kind": config.kind,
        "name": describe(config),
        "documents": train.documents + validation.documents,
        "bytes": train.bytes + validation.bytes,
        "left_out": left_out(train, validation),
        **store.facts,  # a local source knows the whole, a stream only what was read
        "train_tokens": train.tokens,
        "validation_tokens": validation.tokens,
        "exhausted": train.exhausted,
        **{f"{name}_bytes_per_token": store.bytes_per_token(name, validation_tokens) for name in SPLITS},
        "tokenizer": config.tokenizer,
        "content_hash": store.folder.name,
    }


def left_out(*splits: Split) -> dict[str, int]:
    """How many documents were left out, by reason."""
    total: Counter[str] = Counter()
    for split in splits:
        for shard in split.shards:
            total.update(shard.left_out)
    return dict(total)
