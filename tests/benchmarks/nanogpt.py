"""Training speed of the baseline against a nanoGPT-style model of the same width and depth, one thread, interleaved:
python tests/benchmarks/nanogpt.py [--precision bf16] [--compile] [--repeats 15].

The reference has learned positions, LayerNorm with bias, GELU, SDPA, a tied byte vocabulary and fused AdamW, as
nanoGPT has; both models run the same step otherwise. Times are processor seconds of the one thread, medians of pairs.
"""

from __future__ import annotations

import argparse
import time
from contextlib import nullcontext
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modexp.train.hardware import prepare

SHAPES = {"d256": (6, 256, 8, 256, 16), "d512": (8, 512, 8, 512, 4)}  # layers, width, heads, T, B
VOCAB = 256


class ReferenceBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.c_fc, self.mlp_proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        q, k, v = (t.view(B, T, self.heads, -1).transpose(1, 2) for t in self.c_attn(self.ln_1(x)).split(C, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.c_proj(y.transpose(1, 2).contiguous().view(B, T, C))
        return x + self.mlp_proj(F.gelu(self.c_fc(self.ln_2(x))))


class Reference(nn.Module):
    def __init__(self, layers: int, width: int, heads: int, length: int) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(VOCAB, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(ReferenceBlock(width, heads) for _ in range(layers))
        self.ln_f, self.head = nn.LayerNorm(width), nn.Linear(width, VOCAB, bias=False)
        self.head.weight = self.wte.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.ln_f(x))


def reference_step(shape: tuple[int, ...], precision: str, compiled: bool) -> Any:
    layers, width, heads, T, _ = shape
    model = Reference(layers, width, heads, T)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    forward: Any = torch.compile(model) if compiled else model

    def step(batch: Tensor) -> None:
        with torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext():
            logits = forward(batch[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def our_step(shape: tuple[int, ...], precision: str, compiled: bool, *more: str) -> Any:
    from modexp.cli.compose import configuration
    from modexp.train.step import Stepper

    layers, width, heads, T, B = shape
    words = [f"model.n_layers={layers}", f"model.d_model={width}", f"model.n_heads={heads}"]
    words += [f"data.sequence_length={T}", f"trainer.compile={compiled}", "data=python", *(more or ("model=baseline",))]
    stepper = Stepper(configuration(words), torch.device("cpu"), precision)
    return lambda batch: stepper.step(batch, B, 1e-4, 0)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--precision", choices=("fp32", "bf16", "both"), default="both")
    p.add_argument("--shape", choices=SHAPES, action="append")
    p.add_argument("--compile", action="store_true")
    p.add_argument("--repeats", type=int, default=11)
    args = p.parse_args()
    prepare(torch.device("cpu"), 1)  # the reference has the same memory
    print("| shape | precision | reference tokens/s | ours tokens/s | ours / reference |\n|---|---|---|---|---|")
    for name in args.shape or SHAPES:
        shape = SHAPES[name]
        for precision in ("fp32", "bf16") if args.precision == "both" else (args.precision,):
            steps = [make(shape, precision, args.compile) for make in (reference_step, our_step)]
            batch = torch.randint(VOCAB, (shape[4], shape[3] + 1))
            times: list[list[float]] = [[], []]
            for repeat in range(args.repeats + 2):
                for i, step in enumerate(steps):
                    begin = time.process_time()
                    step(batch)
                    if repeat >= 2:
                        times[i].append(time.process_time() - begin)
            rates = [shape[3] * shape[4] / median(t) for t in times]
            ratio = median(a / b for a, b in zip(*times, strict=True))
            print(f"| {name} | {precision} | {rates[0]:,.0f} | {rates[1]:,.0f} | {ratio:.3f} |", flush=True)


if __name__ == "__main__":
    main()
