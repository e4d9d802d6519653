"""How fast a routed model decodes beside the dense model of its shape, both with the same code and caches.

Weights are random and decisions forced (forced.py); what is generated is noise.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
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
from modexp.sampling.decode import Decoder, in_bf16
from modexp.sampling.forced import Draws, force_decisions
from modexp.sampling.roofline import measured, step_seconds
from modexp.train.hardware import wait
from modexp.train.trace import write_trace

STEPS = 8  # in a profile, of each model: some of them go through a routed block


@dataclass(frozen=True)
class Timing:
    """One generation: seconds until the first token of each row, tokens a second after it, bytes of the caches."""

    first_token_seconds: float
    tokens_per_second: float
    cache_bytes_allocated: int
    cache_bytes_held: int


@dataclass(frozen=True)
class Pair:
    """A routed model and its dense twin, which decode ``new_tokens`` after prompts of ``prompt_length``."""

    model: ModelConfig
    data: DataConfig
    prompt_length: int
    new_tokens: int
    seed: int
    device: torch.device
    precision: str

    @property
    def configs(self) -> dict[str, ModelConfig]:
        return {"model": self.model, "dense": dense_twin(self.model)}

    def prompts(self, batch: int) -> Tensor:
        drawn = torch.randint(self.data.vocab_size, (batch, self.prompt_length), generator=stream(self.seed, "prompts"))
        return drawn.to(self.device)

    def decoders(self, batch: int) -> dict[str, tuple[Decoder, list[Draws]]]:
        """Of both, each with the draws that decide in it."""
        found = {}
        for name, config in self.configs.items():
            built = build(config, self.data, self.seed).to(self.device).eval()
            if self.precision == "bf16":
                in_bf16(built)
            draws = force_decisions(built)
            for blocks in draws:
                blocks.begin(self.seed)
            found[name] = Decoder(built, batch, self.prompt_length + self.new_tokens), draws
        return found


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


def compare(pair: Pair, batches: list[int], repeats: int) -> list[dict[str, Any]]:
    """One row a batch size: medians over ``repeats``, in which the two models take turns after one turn to warm up."""
    flops = {name: ledger(config, pair.data).forward("causal") for name, config in pair.configs.items()}
    context = pair.prompt_length + pair.new_tokens / 2
    rows = []
    for batch in batches:
        prompts, decoders = pair.prompts(batch), pair.decoders(batch)
        weights = sum(parameter.numel() for parameter in decoders["dense"][0].model.parameters())
        machine = measured(pair.device, weights, pair.precision)
        timings: dict[str, list[Timing]] = {name: [] for name in decoders}
        for repeat in range(repeats + 1):
            for name, (decoder, draws) in decoders.items():
                for blocks in draws:
                    blocks.begin(pair.seed + repeat)
                timings[name].append(timed(decoder, prompts, pair.new_tokens))
        row: dict[str, Any] = {"batch": batch}
        for name, found in timings.items():
            row[name] = {
                key: median(getattr(timing, key) for timing in found[1:]) for key in Timing.__dataclass_fields__
            }
        turns = zip(timings["model"][1:], timings["dense"][1:], strict=True)
        row["speedup"] = median(one.tokens_per_second / other.tokens_per_second for one, other in turns)
        row["flops_ratio"] = flops["model"] / flops["dense"]
        row["efficiency"] = row["speedup"] * row["flops_ratio"]
        least = {name: step_seconds(c, pair.data, batch, context, machine) for name, c in pair.configs.items()}
        row["roofline_speedup"] = least["dense"] / least["model"]
        row["of_roofline"] = row["speedup"] / row["roofline_speedup"]
        row |= {"flops_per_second": machine.flops_per_second, "bytes_per_second": machine.bytes_per_second}
        rows.append(row)
    return rows


def profile(pair: Pair, batches: list[int], path: Path) -> None:
    """A trace of a prompt and of a few steps after it, of each model at each batch size."""
    calls = []
    for batch in batches:
        prompts = pair.prompts(batch)
        for name, (decoder, _) in pair.decoders(batch).items():
            token = decoder.logits(prompts).argmax(dim=-1, keepdim=True)
            decoder.logits(token)  # what happens once does not belong in the picture
            decoder.clear()
            label = f"{'dense twin' if name == 'dense' else pair.model.kind}, batch {batch}"
            calls.append((f"{label}, prompt", partial(decoder.logits, prompts)))
            calls += [
                (f"{label}, step {step}", partial(decoder.logits, token))
                for step in range(min(STEPS, pair.new_tokens - 1))
            ]
    write_trace(calls, pair.device, path)
