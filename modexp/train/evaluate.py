"""Held-out loss on a fixed set of sequences: causal as the headline, top-k beside it, and what the routers did."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from modexp.config.model import ModelConfig
from modexp.config.routing import LayersConfig
from modexp.models.loss import language_loss
from modexp.models.transformer import Output, Transformer
from modexp.plan.memory import EVAL_TOKENS
from modexp.train.hardware import autocast


class RoutingCounts(NamedTuple):
    """Per routed block, tokens (with experts: tokens times experts) that went through, were predicted to, or both."""

    slots: Tensor  # (layers,) all there are
    taken: Tensor
    predicted: Tensor
    hits: Tensor


def count(output: Output) -> RoutingCounts:
    rows = []
    for routing in output.routings:
        predicted = routing.taken if routing.predicted is None else routing.predicted > 0
        parts = (torch.ones_like(predicted), routing.taken, predicted, predicted & routing.taken)
        rows.append(torch.stack([part.sum() for part in parts]))
    return RoutingCounts(*torch.stack(rows, dim=1).double().cpu())


@torch.no_grad()
def run_pass(
    model: Transformer, batches: Iterable[Tensor], device: torch.device, precision: str, causal: bool
) -> tuple[float, RoutingCounts | None]:
    """Mean loss in nats a token over the sequences in ``batches`` (B, T + 1), and the routing counts."""
    total, sequences, counts = 0.0, 0, None
    torch.manual_seed(0)  # of a router that draws its weights: the same ones at every validation
    for batch in batches:
        chunk = batch.to(device)
        with autocast(device, precision):
            output = model(chunk[:, :-1], causal=causal)
        total += language_loss(output, chunk[:, 1:]).item() * len(chunk)
        sequences += len(chunk)
        if output.routings:
            found = count(output)
            counts = found if counts is None else RoutingCounts(*(a + b for a, b in zip(counts, found, strict=True)))
    return total / sequences, counts


def evaluate(
    model: Transformer,
    config: ModelConfig,
    sequences: Tensor,
    device: torch.device,
    precision: str,
    bytes_per_token: float,
) -> dict[str, float]:
    """Rows for metrics.jsonl.

    ``val/loss`` is nats a token with causal decisions. Where training decides otherwise, ``val/loss_topk`` is the loss
    with those decisions: it uses the future and is no headline. Precision and recall compare what is predicted
    with what the top-k takes, in the pass that the top-k decides.
    """
    row: dict[str, float] = {}
    batches = sequences.split(max(1, EVAL_TOKENS // (sequences.shape[1] - 1)))
    if config.can_be_causal:
        loss, counts = run_pass(model, batches, device, precision, causal=True)
        row |= {"val/loss": loss, "val/bits_per_byte": loss / math.log(2) / bytes_per_token}
        if counts is not None:
            shares = counts.taken / counts.slots
            row["val/capacity"] = shares.mean().item()
            assert isinstance(config, LayersConfig)
            places = zip(config.routing_places(), shares.tolist(), strict=True)
            row |= {f"val/capacity.{place}": share for place, share in places}
    if config.sees_future:
        row["val/loss_topk"], counts = run_pass(model, batches, device, precision, causal=False)
        if counts is not None and config.predicts:
            hits = counts.hits.sum().item()
            row["val/predictor_precision"] = hits / max(1.0, counts.predicted.sum().item())
            row["val/predictor_recall"] = hits / counts.taken.sum().item()
    return row
