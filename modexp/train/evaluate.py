"""Held-out loss on a fixed set of sequences: causal as the headline, top-k beside it, and what the routers did."""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import mean
from typing import NamedTuple

import torch
from torch import Tensor

from modexp.config.model import ModelConfig
from modexp.config.routing import LayersConfig
from modexp.models.stochastic import part_of
from modexp.models.transformer import Output, Transformer
from modexp.plan.memory import EVAL_TOKENS
from modexp.train.hardware import autocast, trim
from modexp.train.world import ALONE, World


class RoutingCounts(NamedTuple):
    """Per routed block, tokens (with experts: tokens times experts) that went through, were predicted to, or both; the
    last two NaN where nothing is predicted."""

    slots: Tensor  # (layers,) all there are
    taken: Tensor
    predicted: Tensor
    hits: Tensor

    @property
    def shares(self) -> Tensor:
        """Of all tokens, that went through; 0 where there was none, as in the experts of a block that all bypass."""
        return self.taken / self.slots.clamp(min=1)


def count(output: Output) -> RoutingCounts:
    rows = []
    for routing in output.routings:
        taken, predicted = routing.taken, routing.predicted
        # the fullest row of a batch sets how far others are filled up: fillings are no slots
        slots = torch.ones_like(taken) if routing.real is None else routing.real.unsqueeze(-1).expand_as(taken)
        nothing = torch.full_like(taken, math.nan, dtype=torch.float)
        said = (nothing, nothing) if predicted is None else (predicted > 0, (predicted > 0) & taken)
        rows.append(torch.stack([part.sum(dtype=torch.double) for part in (slots, taken, *said)]))
    return RoutingCounts(*torch.stack(rows, dim=1).cpu())


@torch.no_grad()
def run_pass(
    model: Transformer,
    batches: Iterable[Tensor],
    device: torch.device,
    precision: str,
    causal: bool,
    world: World = ALONE,
) -> tuple[float, RoutingCounts | None]:
    """Mean loss in nats a token over the sequences in ``batches`` (B, T + 1), and the routing counts.

    Of each batch a process takes its share: FSDP needs all of them in every pass, so they may as well do some of it.
    """
    total, sequences, counts = 0.0, 0, None
    torch.manual_seed(0)  # of a router that draws its weights: the same ones at every validation
    for batch in batches:
        mine = world.share(len(batch))
        chunk = (batch[mine.start : mine.stop] if mine else batch[:1]).to(device)
        with autocast(device, precision), part_of(len(batch), mine.start if mine else 0, device):
            output = model(chunk[:, :-1], chunk[:, 1:], causal)
        total += output.loss.item() * len(mine)
        sequences += len(batch)
        if output.routings:
            found = RoutingCounts(*(part * bool(mine) for part in count(output)))
            counts = found if counts is None else RoutingCounts(*(a + b for a, b in zip(counts, found, strict=True)))
    mean = world.sum(torch.tensor(total, dtype=torch.float64)).item() / sequences
    return mean, None if counts is None else RoutingCounts(*map(world.sum, counts))


def evaluate(
    model: Transformer,
    config: ModelConfig,
    sequences: Tensor,
    device: torch.device,
    precision: str,
    bytes_per_token: float,
    world: World = ALONE,
) -> dict[str, float]:
    """Rows for metrics.jsonl.

    ``val/loss`` is nats a token with causal decisions. Where training decides otherwise, ``val/loss_topk`` is the loss
    with those decisions: it uses the future and is no headline. Precision and recall compare what is predicted
    with what the top-k takes, in the pass that the top-k decides.
    """
    row: dict[str, float] = {}
    trim(device)  # a step's blocks are of other sizes, here and behind
    batches = sequences.split(max(1, EVAL_TOKENS // (sequences.shape[1] - 1)))
    if config.can_be_causal:
        loss, counts = run_pass(model, batches, device, precision, causal=True, world=world)
        row |= {"val/loss": loss, "val/bits_per_byte": loss / math.log(2) / bytes_per_token}
        if counts is not None:
            assert isinstance(config, LayersConfig)
            shares = dict(zip(config.routing_places(), counts.shares.tolist(), strict=True))
            of_blocks = [share for place, share in shares.items() if not place.endswith(".experts")] or shares.values()
            row["val/capacity"] = mean(of_blocks)
            row |= {f"val/capacity.{place}": share for place, share in shares.items()}
    if config.sees_future:
        row["val/loss_topk"], counts = run_pass(model, batches, device, precision, causal=False, world=world)
        if counts is not None and config.predicts:
            _, taken, predicted, hits = (part[~counts.hits.isnan()].sum().item() for part in counts)
            row["val/predictor_precision"] = hits / max(1.0, predicted)
            row["val/predictor_recall"] = hits / taken
    trim(device)
    return row
