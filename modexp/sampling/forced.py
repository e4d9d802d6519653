"""Decisions that are drawn, not taken: an untrained router decides anything, and its model's speed would mean nothing.

Routed blocks are told: each token goes through with probability C/T, by a seeded draw; and so are experts, each of
which takes a token with the probability of its capacity. Routers and predictors are computed all the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from modexp.models.experts import Experts
from modexp.models.init import stream
from modexp.models.routed import Choice, RoutedBlock
from modexp.models.transformer import Transformer

DRAWS = 2**20  # decisions of a block; then they repeat


class Draws:
    """Decisions with probability ``share``, drawn beforehand, as a router that decides draws nothing. Those of n tokens
    are taken n at a time; how many were is known to the device, where recorded steps move it on."""

    def __init__(self, name: str, share: float, device: torch.device) -> None:
        self.name, self.share = name, share
        self.decisions = torch.zeros(DRAWS, dtype=torch.bool, device=device)
        self.batches: dict[int, tuple[Tensor, Tensor]] = {}  # by n: decisions (.., n), and which are next (1,)

    @torch.inference_mode()
    def begin(self, seed: int) -> None:
        drawn = torch.rand(DRAWS, generator=stream(seed, f"decisions of {self.name}")) < self.share
        self.decisions.copy_(drawn)
        for _, place in self.batches.values():
            place.zero_()

    def like(self, undecided: Tensor) -> Tensor:
        n = undecided.numel()
        if n > DRAWS:
            return self.decisions.repeat(-(-n // DRAWS))[:n].view(undecided.shape)
        if n not in self.batches:
            with torch.inference_mode(False):  # or what runs outside of it could not move them on
                batches = self.decisions[: DRAWS // n * n].view(-1, n)
                self.batches[n] = batches, torch.zeros(1, dtype=torch.long, device=batches.device)
        batches, place = self.batches[n]
        found = batches.index_select(0, place).view(undecided.shape)
        place.add_(1).remainder_(len(batches))
        return found


def force_decisions(model: Transformer) -> list[Draws]:
    """From now on every routed block and every expert takes a token with probability C/T, as the draws have it."""
    found = []
    device = model.rope.device
    for name, module in model.named_modules():
        if isinstance(module, RoutedBlock):
            found.append(Draws(name, module.capacity, device))
            module.choose = forced(module, found[-1])  # type: ignore[method-assign]
        if isinstance(module, Experts):
            paths = module.config.experts + module.config.noop_experts
            found.append(Draws(name, module.config.expert_capacity / paths, device))
            module.choose = forced_experts(module, found[-1])  # type: ignore[method-assign]
    return found


def forced(block: RoutedBlock, draws: Draws) -> Any:
    def choose(x: Tensor) -> Choice:
        choice = type(block).choose(block, x)
        return choice._replace(wanted=draws.like(choice.wanted))

    return choose


def forced_experts(experts: Experts, draws: Draws) -> Any:
    def choose(x: Tensor, logits: Tensor, real: Tensor | None, used: Tensor | int) -> tuple[Tensor, Tensor | None]:
        taken, predicted = type(experts).choose(experts, x, logits, real, used)
        wanted = draws.like(taken)
        return wanted if real is None else wanted & real.unsqueeze(-1), predicted

    return choose
