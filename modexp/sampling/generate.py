"""Autoregressive generation for a batch of prompts, one token a row and step. B rows."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from modexp.models.init import stream
from modexp.models.transformer import Transformer
from modexp.sampling.decode import Decoder, padded
from modexp.sampling.filters import Sampling, draw, probabilities


def generate(
    model: Transformer,
    prompts: list[list[int]],
    max_tokens: int,
    sampling: Sampling,
    seed: int = 0,
    separator: int | None = None,
    vocabulary: int | None = None,
) -> Iterator[list[int | None]]:
    """Yield the next token of each row; None for a row that has ended, which it does at ``separator``.

    Token ids from ``vocabulary`` on, which only the embedding knows, are never drawn. Row i draws from a stream of its
    own, seeded by (seed, i): its text does not depend on what else is in the batch, but for the noise of a stochastic
    router. The longest prompt and ``max_tokens`` must fit into the model's sequence length.
    """
    device = model.rope.device
    uniform = torch.stack(
        [
            torch.rand(max_tokens, generator=stream(seed, f"sample {row}"), dtype=torch.float64)
            for row in range(len(prompts))
        ]
    ).to(device)  # (B, max_tokens)
    tokens, valid = padded(prompts, device)
    decoder = Decoder(model, len(prompts), tokens.shape[1] + max_tokens)
    alive = torch.ones(len(prompts), dtype=torch.bool, device=device)
    torch.manual_seed(seed)  # of a router that draws its weights
    for step in range(max_tokens):
        logits = decoder.logits(tokens, valid)[:, :vocabulary]
        token = draw(probabilities(logits, sampling), uniform[:, step])  # (B,)
        if separator is not None:
            alive = alive & (token != separator)
        ids = zip(token.tolist(), alive.tolist(), strict=True)
        yield [id if going else None for id, going in ids]
        if not alive.any():
            return
        tokens, valid = token[:, None], alive[:, None]
