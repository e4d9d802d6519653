"""Held-out loss on a fixed set of sequences: causal as the headline, top-k beside it, and what the routers did."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from modexp.models.loss import language_loss
from modexp.models.transformer import Output, Transformer
from modexp.train.hardware import autocast

EVAL_TOKENS = 8192  # tokens a forward pass, about


@dataclass
class RoutingCounts:
    """Per routed block: tokens counted by membership in the top-k and by what the predictor says."""

    hits: Tensor  # (layers,) in the top-k and predicted
    predicted: Tensor
    topk: Tensor
    taken: Tensor
    tokens: int

    @classmethod
    def of(cls, output: Output) -> RoutingCounts:
        def count(pick: Any) -> Tensor:
            return torch.stack([pick(r).sum() for r in output.routings]).double()

        first = output.routings[0]
        return cls(
            count(lambda r: (r.predicted > 0) & r.topk),
            count(lambda r: r.predicted > 0),
            count(lambda r: r.topk),
            count(lambda r: r.taken),
            first.topk.numel(),
        )

    def __add__(self, other: RoutingCounts) -> RoutingCounts:
        return RoutingCounts(
            self.hits + other.hits,
            self.predicted + other.predicted,
            self.topk + other.topk,
            self.taken + other.taken,
            self.tokens + other.tokens,
        )


@torch.no_grad()
def run_pass(
    model: Transformer, sequences: Tensor, device: torch.device, precision: str, causal: bool
) -> tuple[float, RoutingCounts | None]:
    """Mean loss in nats a token over ``sequences`` (n, T + 1), and the routing counts."""
    total, counts = 0.0, None
    per_pass = max(1, EVAL_TOKENS // (sequences.shape[1] - 1))
    for chunk in sequences.split(per_pass):
        chunk = chunk.to(device)
        with autocast(device, precision):
            output = model(chunk[:, :-1], causal=causal)
        total += language_loss(output, chunk[:, 1:]).item() * len(chunk)
        if output.routings:
            found = RoutingCounts.of(output)
            counts = found if counts is None else counts + found
    return total / len(sequences), counts


def evaluate(
    model: Transformer,
    sequences: Tensor,
    device: torch.device,
    precision: str,
    bytes_per_token: float,
    routed_layers: tuple[int, ...],
) -> dict[str, float]:
    """Rows for metrics.jsonl.

    ``val/loss`` is nats a token with causal decisions; ``val/loss_topk`` uses the future and is no headline.
    Precision and recall compare the predictor with the top-k of the pass that the top-k decides.
    """
    loss, causal = run_pass(model, sequences, device, precision, causal=True)
    row = {"val/loss": loss, "val/bits_per_byte": loss / math.log(2) / bytes_per_token}
    if causal is None:
        return row
    row["val/loss_topk"], counts = run_pass(model, sequences, device, precision, causal=False)
    assert counts is not None
    hits = counts.hits.sum().item()
    row["val/predictor_precision"] = hits / max(1.0, counts.predicted.sum().item())
    row["val/predictor_recall"] = hits / counts.topk.sum().item()
    taken = causal.taken / causal.tokens
    row["val/capacity"] = taken.mean().item()
    for layer, share in zip(routed_layers, taken.tolist(), strict=True):
        row[f"val/capacity.layer{layer}"] = share
    return row
