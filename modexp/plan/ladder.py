"""The ladder of sizes: every shape a plan may choose, from a few thousand parameters to a few billion.

Depth follows width as L = sqrt(d) / 2, which meets common practice at both ends (2 layers at width 16, 8 at 256,
16 at 1024, 28 at 3072). Depths are even, so that "every second block" is the same share of every model. Neighbours lie
at most 1.18 apart in forward FLOPs per token from 10 k parameters on and 1.16 from 100 k on (bytes, T = 256), or 1.14
from 1 M on (32 k tokens, T = 2048), so that a grid can be centred where a fit wants it.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from functools import cache, lru_cache

from modexp.config.data import DataConfig
from modexp.config.model import ModelConfig
from modexp.errors import UserError
from modexp.flops.transformer import dense_twin
from modexp.kinds import ledger
from modexp.wording import size_text

Shape = tuple[int, int, int]  # layers, width, heads

DEPTH_BAND = (0.5, 1.5)  # depths allowed around sqrt(d) / 2
STEP = 1.12  # ratio of a layer stack's FLOPs from rung to rung, where whole depths and even widths allow it
STEEP = 20.0  # cost of a step's squared excess over STEP, in logarithms, beside the squared deviation from the depth
RUNG = 0.01  # cost of a rung: no more of them than STEP asks for
LONGEST = 2.0  # of all steps that are considered
TOKENS = 256  # whose attention is counted: at small widths it is most of the work
SIZE_TOLERANCE = 0.10  # a rung answers to a size within this share of its parameters

SUFFIXES = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9}


def widths() -> list[int]:
    """Even, so that heads can be, about 6 % apart, and multiples of ever larger powers of two for the kernels."""
    steps = [(8, 64, 2), (64, 128, 4), (128, 256, 8), (256, 512, 16), (512, 1024, 32), (1024, 2048, 64)]
    lonely = (34, 38, 46, 58, 62)  # twice a prime: a single head where their neighbours have two or three
    every = [d for start, stop, step in [*steps, (2048, 4097, 128)] for d in range(start, stop, step)]
    return [d for d in every if d not in lonely]


@cache
def heads_of(d: int) -> int:
    """Heads whose width is even and nearest 64 (width 512 and above), 32 (64 and above) or 16."""
    target = 64 if d >= 512 else 32 if d >= 64 else 16
    divisors = [h for h in range(1, d // 2 + 1) if d % h == 0 and (d // h) % 2 == 0]
    return min(divisors, key=lambda h: abs(math.log(d / h / target)))


@lru_cache
def ladder(depth: float = 1.0) -> tuple[Shape, ...]:
    """All rungs, smallest first by matmul parameters 12 L d^2.

    They are the cheapest way up through all shapes (dynamic programming): a rung costs its squared logarithm from
    ``depth`` times sqrt(d) / 2 layers, a step what it exceeds ``STEP`` by. So steps are even in FLOPs per token, and
    a tiny model, whose widths are coarse, keeps its depth.
    """
    candidates: list[tuple[float, float, Shape]] = []  # log of FLOPs, cost, shape
    for d in widths():
        nominal = depth * math.sqrt(d) / 2
        low, high = (factor * nominal for factor in DEPTH_BAND)
        for L in [L for L in range(2, 128, 2) if low <= L <= high] or [2]:
            work = math.log(L * d * (6 * d + TOKENS))  # 24 L d^2 + 4 T L d forward FLOPs a token, over 4
            candidates.append((work, RUNG + math.log(L / nominal) ** 2, (L, d, heads_of(d))))
    candidates.sort()
    paths: list[tuple[float, int]] = [(0.0, -1)]  # cost of the cheapest way to each, and the candidate before it
    first = 0
    for i, (work, cost, _) in enumerate(candidates[1:], start=1):
        while first < i - 1 and work - candidates[first][0] > math.log(LONGEST):
            first += 1
        excess = [max(0.0, work - candidates[j][0] - math.log(STEP)) for j in range(first, i)]
        reached, before = min((paths[first + k][0] + STEEP * over**2, first + k) for k, over in enumerate(excess))
        paths.append((reached + cost, before))
    rungs, at = [], len(candidates) - 1
    while at >= 0:
        rungs.append(candidates[at][2])
        at = paths[at][1]
    return tuple(sorted(rungs, key=lambda rung: rung[0] * rung[1] ** 2))


def with_shape(model: ModelConfig, shape: Shape) -> ModelConfig:
    layers, width, heads = shape
    return replace(model, n_layers=layers, d_model=width, n_heads=heads)


def parse_size(size: str) -> float:
    """Parameters that a size names: ``58k``, ``220m``, ``1.3b`` (any case)."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?(?:e\d+)?)([kmb]?)", size.lower())
    if match is None or float(match[1]) == 0:
        raise UserError(f"size={size} is not a number of parameters", "write it as size=58k, size=220m or size=1.3b")
    return float(match[1]) * SUFFIXES[match[2]]


def dense_params(model: ModelConfig, data: DataConfig, shape: Shape) -> int:
    return ledger(with_shape(dense_twin(model), shape), data).params_total


def rung_of_size(size: str, model: ModelConfig, data: DataConfig, depth: float = 1.0) -> Shape:
    """The rung whose dense twin has nearest to ``size`` parameters in total, embedding and head included."""
    wanted = parse_size(size)
    by_params = [(dense_params(model, data, shape), shape) for shape in ladder(depth)]
    by_params.sort()
    params, shape = min(by_params, key=lambda rung: abs(math.log(rung[0] / wanted)))
    if abs(params / wanted - 1) > SIZE_TOLERANCE:
        near = sorted(by_params, key=lambda rung: abs(math.log(rung[0] / wanted)))[:2]
        choices = " or ".join(f"size={size_text(n).lower()}" for n, _ in sorted(near))
        raise UserError(f"size={size} has no rung within {SIZE_TOLERANCE:.0%} on the ladder", f"try {choices}")
    return shape
