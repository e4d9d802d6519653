"""Where text comes from, how it becomes tokens, and what planning must know of it without reading it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from modexp.config.base import require, unscientific


@dataclass(frozen=True)
class DataConfig:
    """What every source shares. ``vocab_size`` and ``num_tokens`` stand here so that plans need no data."""

    kind: str = "python"
    tokenizer: str = "bytes"  # bytes, bpe (trained on the text itself), a tokenizer.json, or a name on the HF hub
    vocab_size: int = 256  # rows of the embedding; at least the tokenizer's vocabulary
    sequence_length: int = 256
    validation_share: float = 0.02  # share of the documents held out, chosen by the hash of their content
    num_tokens: float | None = unscientific(None)  # training tokens the corpus holds, about; None: not known
    cache_dir: str | None = unscientific(None)  # None: $MODEXP_CACHE, else ~/.cache/modexp

    def __post_init__(self) -> None:
        known = self.num_tokens is None or self.num_tokens > 0
        require(known, "data.num_tokens", self.num_tokens, "is not positive", "null says that it is not known")
        require(self.vocab_size >= 2, "data.vocab_size", self.vocab_size, "is below 2")
        require(
            self.tokenizer != "bytes" or self.vocab_size >= 256,
            "data.vocab_size",
            self.vocab_size,
            "is below the 256 values of a byte",
            "use data.vocab_size=256",
        )
        require(
            self.tokenizer != "bpe" or self.vocab_size > 256,
            "data.vocab_size",
            self.vocab_size,
            "is below the 257 of a byte-level BPE, 256 bytes and an end-of-text token",
            "try data.vocab_size=4096",
        )
        require(self.sequence_length >= 2, "data.sequence_length", self.sequence_length, "is below 2")
        require(
            0 < self.validation_share < 1,
            "data.validation_share",
            self.validation_share,
            "is not a share in (0, 1)",
        )


@dataclass(frozen=True)
class PythonData(DataConfig):
    """Sources of the running interpreter's standard library: real text on every machine."""

    kind: str = "python"


@dataclass(frozen=True)
class FilesData(DataConfig):
    """The user's own files: txt and md (a document every 8 KiB), py (a document each), jsonl and parquet (a row)."""

    kind: str = "files"
    validation_share: float = 0.05  # a user's text is often small
    paths: list[str] = field(default_factory=list)  # globs; ** descends
    text_column: str = "text"  # of jsonl and parquet

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.paths), "data.paths", "[]", "names no file", "try 'data.paths=[my_text/**/*.txt]'")


@dataclass(frozen=True)
class HubData(DataConfig):
    """A data set of the Hugging Face hub (or a local folder in a hub layout), streamed."""

    kind: str = "hf"
    path: str = ""  # owner/name on the hub, or a local folder
    subset: str | None = None
    split: str = "train"
    revision: str | None = None  # a commit of the hub repository; None: its newest
    text_column: str = "text"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.path), "data.path", "''", "names no data set", "try data=tinystories")


DATA_KINDS: dict[str, Any] = {"python": PythonData, "files": FilesData, "hf": HubData}
