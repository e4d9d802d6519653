"""How fast a routed model decodes beside the dense model of its shape, both with the same code and caches.

An untrained router decides anything, so routed blocks are told: each token goes through with probability C/T, by a
seeded draw. The router and its predictor are computed all the same. Weights are random; what is generated is noise.
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
from modexp.models.init import stream
from modexp.models.routed import Choice, RoutedBlock
from modexp.models.transformer import Transformer
from modexp.sampling.decode import Decoder
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


def force_decisions(model: Transformer, seed: int) -> None:
    """From now on every routed block takes a token with probability C/T; the draws start at ``seed``."""
    for layer, block in enumerate(model.blocks):
        if isinstance(block, RoutedBlock):
            draw = stream(seed, f"decisions of block {layer}")
            block.choose = forced(block, draw)  # type: ignore[method-assign]


def forced(block: RoutedBlock, draw: torch.Generator) -> Any:
    drawn = torch.rand(DRAWS, generator=draw) < block.capacity  # beforehand: a router that decides draws nothing
    drawn = drawn.to(block.attention.qkv.weight.device)
    used = 0

    def choose(x: Tensor) -> Choice:
        nonlocal used
        B, n = x.shape[:2]
        if used + B * n > DRAWS:
            used = 0
        used += B * n
        return type(block).choose(block, x)._replace(wanted=drawn[used - B * n : used].view(B, n))

    return choose


def timed(model: Transformer, prompts: Tensor, new_tokens: int) -> Timing:
    """Decode ``new_tokens`` after each of ``prompts`` (B, n), the likeliest each time."""
    B, n = prompts.shape
    device = prompts.device
    wait(device)
    begin = time.perf_counter()
    decoder = Decoder(model, B, n + new_tokens)
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
) -> list[dict[str, Any]]:
    """One row a batch size: medians over ``repeats``, in which the two models take turns after one turn to warm up."""
    configs = {"model": model, "dense": dense_twin(model)}
    models = {name: build(config, data, seed).to(device).eval() for name, config in configs.items()}
    flops = {name: ledger(config, data).forward("causal") for name, config in configs.items()}
    context = prompt_length + new_tokens / 2
    machine = measured(device, sum(p.nbytes for p in models["dense"].parameters()))
    rows = []
    for batch in batches:
        prompts = torch.randint(data.vocab_size, (batch, prompt_length), generator=stream(seed, "prompts")).to(device)
        timings: dict[str, list[Timing]] = {name: [] for name in models}
        for repeat in range(repeats + 1):
            for name, built in models.items():
                force_decisions(built, seed + repeat)
                timings[name].append(timed(built, prompts, new_tokens))
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
