"""Documents to token ids and back: bytes as they are, or any tokenizer of the Hugging Face ``tokenizers`` library,
which encodes on every core (TOKENIZERS_PARALLELISM=false: on one)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from modexp.config.base import require
from modexp.config.data import DataConfig
from modexp.errors import UserError

FILE = "tokenizer.json"  # of a tokenizer trained on the spot
SEPARATORS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "<EOS>", "[EOS]")


class Tokenizer(Protocol):
    @property
    def identity(self) -> str:
        """What stands for the tokenizer in a content hash; known without loading it."""

    @property
    def vocabulary(self) -> int:
        """Token ids are below this."""

    @property
    def separator(self) -> int:
        """The token that ends a document."""

    def encode(self, documents: Sequence[bytes]) -> list[np.ndarray]:
        """Token ids of each UTF-8 document, its separator last."""

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Each token as text, for eyes: U+FFFD where it is a part of a character."""

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of token ids; bytes that are no UTF-8, such as half a character at the end, become U+FFFD."""


class ByteTokenizer:
    """A token is a byte; byte 0 separates documents, so no document may hold it."""

    identity = "bytes"
    vocabulary = 256
    separator = 0

    def encode(self, documents: Sequence[bytes]) -> list[np.ndarray]:
        return [np.frombuffer(document + b"\0", np.uint8) for document in documents]

    def pieces(self, ids: Sequence[int]) -> list[str]:
        return [bytes([i]).decode(errors="replace") for i in ids]

    def decode(self, tokens: Sequence[int]) -> str:
        return bytes(tokens).decode(errors="replace")


class HFTokenizer:
    """A tokenizer.json, or a name on the Hugging Face hub; loaded when first used."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.file = Path(name).expanduser()
        if name.endswith(".json") and not self.file.is_file():
            raise UserError(f"data.tokenizer={name} is not a file", "name a tokenizer.json or use bytes")

    @cached_property
    def identity(self) -> str:
        if self.file.is_file():
            return identity_of(self.file.read_bytes())
        return "hub:" + self.name

    @cached_property
    def _library(self) -> Any:
        import tokenizers

        try:
            if self.file.is_file():
                library = tokenizers.Tokenizer.from_file(str(self.file))
            else:
                from modexp.data.rows import quieten

                quieten()
                library = tokenizers.Tokenizer.from_pretrained(self.name)
        except Exception as error:  # the library raises bare Exception
            if self.file.is_file():
                raise UserError(
                    f"data.tokenizer={self.name} cannot be read: {first_line(error)}",
                    "name a tokenizer.json that the tokenizers library has saved",
                ) from None
            raise UserError(
                f"data.tokenizer={self.name} is neither a file nor within reach on the Hugging Face hub "
                f"({type(error).__name__})",
                "go online once to fill its cache, or name a file (data.tokenizer=DIR/tokenizer.json), "
                "or use data.tokenizer=bytes data.vocab_size=256",
            ) from None
        library.no_truncation()  # a tokenizer.json may carry the limits of the model it was made for
        library.no_padding()
        library.encode_special_tokens = True  # a separator written out in a text is text
        return library

    @cached_property
    def vocabulary(self) -> int:
        return max(self._library.get_vocab(with_added_tokens=True).values()) + 1

    @cached_property
    def separator(self) -> int:
        for name in SEPARATORS:
            token = self._library.token_to_id(name)
            if token is not None:
                return token
        raise UserError(
            f"data.tokenizer={self.name} has no end-of-text token among {', '.join(SEPARATORS)}",
            "add one of them to the tokenizer as a special token",
        )

    def encode(self, documents: Sequence[bytes]) -> list[np.ndarray]:
        texts = [document.decode() for document in documents]
        encodings = self._library.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array([*encoding.ids, self.separator], np.uint32) for encoding in encodings]

    def pieces(self, ids: Sequence[int]) -> list[str]:
        return [self._library.decode([int(i)], skip_special_tokens=False) for i in ids]

    def decode(self, tokens: Sequence[int]) -> str:
        return self._library.decode(list(tokens), skip_special_tokens=True)


def identity_of(content: bytes) -> str:
    """Of a tokenizer.json."""
    return "sha256:" + hashlib.sha256(content).hexdigest()


def first_line(error: Exception) -> str:
    """What a library's error says, in one line that fits into a sentence of ours."""
    lines = str(error).strip().splitlines()
    return lines[0][:300].rstrip(".") if lines else type(error).__name__


def make_tokenizer(config: DataConfig) -> Tokenizer:
    """The tokenizer that a configuration names; data.tokenizer=bpe names none before it is trained."""
    return ByteTokenizer() if config.tokenizer == "bytes" else HFTokenizer(config.tokenizer)


def check_vocabulary(config: DataConfig, vocabulary: int) -> None:
    """Every token needs a row of the embedding."""
    require(
        vocabulary <= config.vocab_size,
        "data.vocab_size",
        config.vocab_size,
        f"is below the {vocabulary} tokens of data.tokenizer={config.tokenizer}",
        f"use data.vocab_size={vocabulary}",
    )
