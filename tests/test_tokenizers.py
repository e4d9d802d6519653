"""A tokenizer.json of one's own as a corpus' tokenizer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from modexp.data.corpus import prepare
from tests.texts import (
    DOCUMENTS,
    files_data,
    sentence,
    write_texts,
)

pytestmark = pytest.mark.usefixtures("own_cache")


def bpe(path: Path, special: str = "<|endoftext|>") -> Path:
    """A byte-level BPE of 300 tokens, saved with limits that training must not heed."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(DOCUMENTS, trainer)
    tokenizer.enable_truncation(max_length=5)
    tokenizer.enable_padding(length=7)
    tokenizer.save(str(path))
    return path


def test_a_tokenizer_file_tokenises_whole_documents(tmp_path: Path, small_blocks: None) -> None:
    from tokenizers import Tokenizer

    path = bpe(tmp_path / "tokenizer.json")
    texts = [*DOCUMENTS, "a text that spells <|endoftext|> out", "naïve café ☕"]
    write_texts(tmp_path / "texts", texts)
    config = files_data(tmp_path, tokenizer=str(path), vocab_size=300)
    corpus = prepare(config, 10**9, 10**9)
    library = Tokenizer.from_file(str(path))
    separator = library.token_to_id("<|endoftext|>")
    decoded: list[str] = []
    for name in ("train", "validation"):
        reader = corpus._readers[name]
        stream = reader.gather(np.zeros(1, np.int64), corpus.manifest[f"{name}_tokens"])[0]
        assert stream[-1] == separator
        pieces = np.split(stream, np.flatnonzero(stream == separator) + 1)[:-1]
        decoded += [library.decode(piece[:-1].tolist(), skip_special_tokens=False) for piece in pieces]
        num_bytes = sum(len(text.encode()) for text in decoded[-len(pieces) :])
        assert corpus.manifest[f"{name}_bytes_per_token"] == num_bytes / len(stream)
    assert sorted(decoded) == sorted(texts)
    assert {int(shard.dtype.itemsize) for shard in corpus._readers["train"]._shards} == {2}
    assert corpus.manifest["train_bytes_per_token"] > 1.5


def test_the_tokenizer_is_part_of_the_content(tmp_path: Path) -> None:
    one, two = bpe(tmp_path / "one.json"), bpe(tmp_path / "two.json", special="</s>")
    hashes = {
        prepare(files_data(tmp_path, tokenizer=name, vocab_size=300), 1, 1).manifest["content_hash"]
        for name in ("bytes", str(one), str(two))
    }
    assert len(hashes) == 3


def test_tokenizer_errors_are_sentences(tmp_path: Path) -> None:
    path = bpe(tmp_path / "tokenizer.json")

    def message(name: Path, vocab_size: int = 300) -> str:
        config = files_data(tmp_path, tokenizer=str(name), vocab_size=vocab_size)
        return sentence(lambda: prepare(config, 1, 1))

    too_small = message(path, 256)
    assert "data.vocab_size=256 is below the 300 tokens" in too_small
    assert "use data.vocab_size=300" in too_small
    prepare(files_data(tmp_path, tokenizer=str(path), vocab_size=300), 1, 1)
    assert "data.vocab_size=299" in message(path, 299)  # from the cache, too
    assert "has no end-of-text token" in message(bpe(tmp_path / "none.json", special="[PAD]"))
    assert "is not a file" in message(tmp_path / "gone.json")
    (tmp_path / "broken.json").write_text("{")
    assert "cannot be read" in message(tmp_path / "broken.json")
