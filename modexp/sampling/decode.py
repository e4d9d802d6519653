"""Incremental decoding: each token passes the model once, and blocks keep what later tokens look at.

B rows (sequences), n tokens each, D width, V vocabulary. What a block does here is described in modexp/models/cache.py.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from modexp.models.cache import one_each, packed
from modexp.models.experts import Experts
from modexp.models.fused import Linear
from modexp.models.transformer import Block, Fresh, Rope, Transformer
from modexp.sampling.steps import Steps, can_be_static

FEW = 3  # rows up to which a product with a matrix is as many products with a vector


class Decoder:
    """``batch`` sequences of up to ``length`` tokens, decoded together; none influences another.

    What one token a row takes is computed for the rows that take part, once the host knows them; or, where that
    costs more than it saves, in ``static`` shapes (steps.py): by default, on a GPU, if all blocks can.
    """

    def __init__(self, model: Transformer, batch: int, length: int, static: bool | None = None) -> None:
        assert length <= model.rope.shape[1], "positions beyond the trained sequence length"
        self.model, self.length = model, length
        self.blocks = cast("list[Block]", list(model.blocks))
        lay_out(model, batch)
        self.states = [block.new_state(batch, length) for block in self.blocks]
        self.lengths = torch.zeros(batch, dtype=torch.long, device=model.rope.device)  # tokens met, by row
        is_static = model.rope.is_cuda and can_be_static(self.blocks) if static is None else static
        self.steps = Steps(model, self.blocks, self.states, self.lengths) if is_static else None

    @torch.inference_mode()
    def clear(self) -> None:
        """As before the first token; the caches and what is recorded stay."""
        self.lengths.zero_()
        for state in self.states:
            state.clear()

    @torch.inference_mode()
    def extend(self, tokens: Tensor, valid: Tensor | None = None) -> Tensor:
        """The residual stream (B, n, D) behind the last norm for ``tokens`` (B, n), which follow those met before.

        ``valid`` (B, n) marks the tokens of each row, the rest behind them is padding: it is computed where that is
        cheaper than leaving it out, and means nothing. Decisions are as in ``model(tokens, causal=True)``.
        """
        if self.steps is not None:
            self.steps.forget()
        table = self.model.rope
        positions = self.lengths[:, None] + torch.arange(tokens.shape[1], device=tokens.device)
        positions = positions.clamp(max=table.shape[1] - 1)  # of padding, which may hang over the end
        if valid is None and tokens.shape[1] == 1:
            arrived = one_each(slice(None), self.lengths)
        else:
            valid = torch.ones_like(tokens, dtype=torch.bool) if valid is None else valid
            arrived = packed(slice(None), valid, self.lengths)
        assert arrived.longest <= self.length, "more tokens than the decoder was made for"
        fresh = Fresh(arrived, Rope(table).at(positions))
        x = self.model.embedding(tokens)  # (B, n, D)
        for block, state in zip(self.blocks, self.states, strict=True):
            x = block.extend(x, fresh, state)
        self.lengths.copy_(fresh.tokens.held)
        return self.model.norm(x)

    @torch.inference_mode()
    def logits(self, tokens: Tensor, valid: Tensor | None = None) -> Tensor:
        """What follows the last of ``tokens`` (B, n) in each row: (B, V). A row without any means nothing."""
        if self.steps is not None and tokens.shape[1] == 1:
            return self.steps.logits(tokens, valid)
        x = self.extend(tokens, valid)
        last = -1 if valid is None else valid.sum(dim=1).clamp(min=1) - 1
        return self.model.head(x[torch.arange(len(x), device=x.device), last]).float()

    def cache_bytes(self) -> tuple[int, int]:
        """Allocated, and taken up by tokens."""
        caches = [state.cache for state in self.states]
        return sum(c.bytes_allocated for c in caches), sum(c.bytes_held for c in caches)


def in_bf16(model: Transformer) -> Transformer:
    """The same model, its matrices rounded to bf16 for good: half the bytes to read, in caches too.

    What decides stays as it is, routers and predictors; so do the residual stream, norms and the embedding.
    """
    for module in model.modules():
        if isinstance(module, Linear | Experts):
            for name, matrix in list(module.named_parameters(recurse=False)):
                setattr(module, name, nn.Parameter(matrix.detach().bfloat16(), requires_grad=False))
    return model


def lay_out(model: Transformer, batch: int) -> None:
    """Lay each weight in memory as ``batch`` rows read it fastest; values and shapes stay.

    A CPU multiplies few rows by an fp32 matrix at twice the speed where the matrix lies along its longer side.
    """
    if model.rope.device.type != "cpu":
        return
    shares = [(block, cast(Block, block).share) for block in model.blocks]
    if model.head.weight is not model.embedding.weight:
        shares.append((model.head, 1.0))
    for part, share in shares:
        for linear in part.modules():
            if isinstance(linear, nn.Linear):
                weight, (out, into) = linear.weight.data, linear.weight.shape
                by_input = out > into and share * batch <= FEW and weight.dtype is torch.float32
                linear.weight.data = weight.t().contiguous().t() if by_input else weight.contiguous()


def padded(prompts: list[list[int]], device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Prompts of different lengths as one batch: tokens and what is valid of them, (B, n) each."""
    longest = max(map(len, prompts))
    tokens = torch.tensor([[*p, *[0] * (longest - len(p))] for p in prompts], device=device)
    lengths = torch.tensor([len(p) for p in prompts], device=device)
    return tokens, torch.arange(longest, device=device) < lengths[:, None]
