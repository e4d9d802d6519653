"""From logits to tokens, against a slow reference, and from tokens to text."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from modexp.data.tokenizers import ByteTokenizer, HFTokenizer
from modexp.errors import UserError
from modexp.sampling.filters import Sampling, draw, probabilities
from modexp.sampling.text import TextStream


def slow(logits: list[float], temperature: float, top_k: int | None, top_p: float | None) -> list[float]:
    weights = {i: math.exp(x / temperature) for i, x in enumerate(logits)}
    ranked = sorted(weights, key=lambda i: -weights[i])[: top_k or len(weights)]
    if top_p is not None:
        total, kept, reached = sum(weights[i] for i in ranked), [], 0.0
        for i in ranked:
            kept.append(i)
            reached += weights[i] / total
            if reached >= top_p:
                break
        ranked = kept
    total = sum(weights[i] for i in ranked)
    return [weights[i] / total if i in ranked else 0.0 for i in range(len(logits))]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("top_k", [None, 1, 3, 100])
@pytest.mark.parametrize("top_p", [None, 1e-6, 0.3, 0.8, 1.0])
def test_filters_equal_a_slow_reference(temperature: float, top_k: int | None, top_p: float | None) -> None:
    logits = torch.randn(6, 17, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 2
    found = probabilities(logits, Sampling(temperature, top_k, top_p))
    wanted = torch.tensor([slow(row.tolist(), temperature, top_k, top_p) for row in logits], dtype=torch.float64)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


def test_temperature_zero_takes_the_likeliest() -> None:
    logits = torch.randn(6, 17, generator=torch.Generator().manual_seed(3))
    p = probabilities(logits, Sampling(temperature=0))
    assert torch.equal(p.argmax(-1), logits.argmax(-1))
    for u in (0.0, 0.5, 1 - 2**-53):
        assert torch.equal(draw(p, torch.full((6,), u, dtype=torch.float64)), logits.argmax(-1))


def test_draws_follow_the_probabilities_and_never_leave_them() -> None:
    p = torch.tensor([0.0, 0.25, 0.0, 0.5, 0.25, 0.0], dtype=torch.float64)
    uniform = (torch.arange(400, dtype=torch.float64) + 0.5) / 400
    counts = draw(p.expand(400, 6), uniform).bincount(minlength=6).tolist()
    assert counts == [0, 100, 0, 200, 100, 0]
    edges = torch.tensor([0.0, 0.25, 0.75, 1 - 2**-53], dtype=torch.float64)
    assert draw(p.expand(4, 6), edges).tolist() == [1, 3, 4, 4]


@pytest.mark.parametrize("wrong", [{"temperature": -1.0}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_impossible_filters_are_sentences(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="--"):
        Sampling(**wrong)


# ---- text -----------------------------------------------------------------------------------------------------------


def test_characters_wait_for_their_bytes() -> None:
    stream = TextStream(ByteTokenizer())
    said = [stream.push(byte) for byte in "aß€".encode()]
    assert said == ["a", "", "ß", "", "", "€"]
    assert stream.push("ß".encode()[0]) == ""
    assert stream.rest() == "�"
    assert stream.rest() == ""
    broken = TextStream(ByteTokenizer())
    assert broken.push(0xFF) + broken.push(ord("a")) == "�a"


def test_a_tokenizer_of_the_library_goes_there_and_back(tmp_path: Path) -> None:
    import tokenizers

    library = tokenizers.Tokenizer(tokenizers.models.BPE())
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=280, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    library.train_from_iterator(["the cat sat on the mat " * 20], trainer)
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer = HFTokenizer(str(tmp_path / "tokenizer.json"))
    text = "the cat €uro\n  ß"
    tokens = tokenizer.encode([text.encode()])[0].tolist()
    assert tokens[-1] == tokenizer.separator
    assert tokenizer.decode(tokens) == text
    stream = TextStream(tokenizer)
    parts = [stream.push(token) for token in tokens]
    assert "".join(parts) + stream.rest() == text
    assert "" in parts[:-1], "half a character was said"
    assert "�" not in "".join(parts)
