"""How fast a routed model decodes beside the dense model of its shape, both with the same code and caches.

An untrained router decides anything, so routed blocks are told: each token goes through with probability C/T, by a
seeded draw; and so are experts, of which each takes a token with the probability of its capacity. Routers and
predictors are computed all the same. Weights are random; what is generated is noise.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from modexp.config.data import DataConfig
from modexp.config.model import ModelConfig
from modexp.flops.transformer import dense_twin
from modexp.kinds import ledger
from modexp.models.build import build
from modexp.models.experts import Experts
from modexp.models.init import stream
from modexp.models.routed import Choice, RoutedBlock
from modexp.models.transformer import Transformer
from modexp.sampling.decode import Decoder, in_bf16
from modexp.sampling.roofline import measured, step_seconds
from modexp.train.hardware import wait

DRAWS = 2**20  # decisions of a block; then they repeat


@dataclass(frozen=True)
class Timing:
    """One generation: seconds until the first token of each row, tokens a second after it, bytes of the caches."""

    first_token_seconds: float
    tokens_per_second: float
    cache_bytes_allocated: int
    cache_bytes_held: int


class Draws:
    """Decisions with probability ``share``, drawn beforehand, as a router that decides draws nothing. How many are used
    up is known to the device, where recorded steps move it on."""

    def __init__(self, name: str, share: float, device: torch.device) -> None:
        self.name, self.share = name, share
        self.decisions = torch.zeros(DRAWS, dtype=torch.bool, device=device)
        self.used = torch.zeros((), dtype=torch.long, device=device)
        self.count = torch.arange(DRAWS, device=device)

    def begin(self, seed: int) -> None:
        drawn = torch.rand(DRAWS, generator=stream(seed, f"decisions of {self.name}")) < self.share
        self.decisions.copy_(drawn)
        self.used.zero_()

    def like(self, undecided: Tensor) -> Tensor:
        n = undecided.numel()
        found = self.decisions[(self.count[:n] + self.used) % DRAWS]
        self.used += n
        return found.view(undecided.shape)


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


def timed(decoder: Decoder, prompts: Tensor, new_tokens: int) -> Timing:
    """Decode ``new_tokens`` after each of ``prompts`` (B, n), the likeliest each time."""
    B, device = len(prompts), prompts.device
    decoder.clear()
    wait(device)
    begin = time.perf_counter()
    token = decoder.logits(prompts).argmax(dim=-1, keepdim=True)
    wait(device)
    first = time.perf_counter()
    for _ in range(new_tokens - 1):
        token = decoder.logits(token).argmax(dim=-1, keepdim=True)
    wait(device)
    seconds = time.perf_counter() - first
    return Timing(first - begin, B * (new_tokens - 1) / seconds, *decoder.cache_bytes())


def compare(
    model: ModelConfig,
    data: DataConfig,
    batches: list[int],
    prompt_length: int,
    new_tokens: int,
    repeats: int,
    seed: int,
    device: torch.device,
    precision: str,
) -> list[dict[str, Any]]:
    """One row a batch size: medians over ``repeats``, in which the two models take turns after one turn to warm up."""
    configs = {"model": model, "dense": dense_twin(model)}
    models = {name: build(config, data, seed).to(device).eval() for name, config in configs.items()}
    if precision == "bf16":
        models = {name: in_bf16(built) for name, built in models.items()}
    flops = {name: ledger(config, data).forward("causal") for name, config in configs.items()}
    context = prompt_length + new_tokens / 2
    machine = measured(device, sum(p.numel() for p in models["dense"].parameters()), precision)
    rows = []
    for batch in batches:
        prompts = torch.randint(data.vocab_size, (batch, prompt_length), generator=stream(seed, "prompts")).to(device)
        draws = {name: force_decisions(built) for name, built in models.items()}
        length = prompt_length + new_tokens
        decoders = {name: Decoder(built, batch, length) for name, built in models.items()}
        timings: dict[str, list[Timing]] = {name: [] for name in models}
        for repeat in range(repeats + 1):
            for name, decoder in decoders.items():
                for blocks in draws[name]:
                    blocks.begin(seed + repeat)
                timings[name].append(timed(decoder, prompts, new_tokens))
        row: dict[str, Any] = {"batch": batch}
        for name, found in timings.items():
            row[name] = {
                key: median(getattr(timing, key) for timing in found[1:]) for key in Timing.__dataclass_fields__
            }
        pairs = zip(timings["model"][1:], timings["dense"][1:], strict=True)
        row["speedup"] = median(one.tokens_per_second / other.tokens_per_second for one, other in pairs)
        row["flops_ratio"] = flops["model"] / flops["dense"]
        row["efficiency"] = row["speedup"] * row["flops_ratio"]
        least = {name: step_seconds(config, data, batch, context, machine) for name, config in configs.items()}
        row["roofline_speedup"] = least["dense"] / least["model"]
        row["of_roofline"] = row["speedup"] / row["roofline_speedup"]
        row |= {"flops_per_second": machine.flops_per_second, "bytes_per_second": machine.bytes_per_second}
        rows.append(row)
    return rows
