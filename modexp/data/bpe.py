"""``data.tokenizer=bpe``: a byte-level BPE of exactly ``data.vocab_size`` tokens, trained on the text itself.

It sees the first ``SAMPLE_BYTES`` of the training text in the order of the source, which is a random sample of a
local one, and nothing of what is held out. What comes out is an ordinary tokenizer.json: its content, and so all it
was trained on, is part of the corpus' content hash, and training it again gives the same bytes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from modexp.config.base import require
from modexp.config.data import DataConfig
from modexp.data.sources import Source, describe, refusal
from modexp.data.tokenise import split_of

SAMPLE_BYTES = 10 * 2**20
END_OF_TEXT = "<|endoftext|>"


def sample(config: DataConfig, source: Source, scratch: Path) -> Iterator[str]:
    """The training text to learn from."""
    left = SAMPLE_BYTES
    with contextlib.closing(source.read(0, scratch)) as documents:
        for digest, text in documents:
            if split_of(digest, config.validation_share) == "train" and not refusal(text, config):
                yield text[:left].decode(errors="ignore")  # the last one may end within a character
                left -= len(text)
                if left <= 0:
                    return


def train(config: DataConfig, source: Source, scratch: Path) -> str:
    """The content of a tokenizer.json: GPT-2's pre-tokenizer and byte alphabet, merges that occur at least twice,
    and an end-of-text token. UserError where the text holds too few merges."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        min_frequency=2,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator(sample(config, source, scratch), trainer)
    tokens = library.get_vocab_size()
    require(
        tokens == config.vocab_size,
        "data.vocab_size",
        config.vocab_size,
        f"is more than the {tokens} tokens that a BPE finds in the training text of {describe(config)}",
        f"use data.vocab_size={tokens} or fewer, add text, or use data.tokenizer=bytes data.vocab_size=256",
    )
    return library.to_str()
