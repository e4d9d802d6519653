"""The ladder of sizes: every shape a plan may choose, from a few thousand parameters to a few billion.

Depth follows width as L = sqrt(d) / 2, which meets common practice at both ends (2 layers at width 16, 8 at 256,
16 at 1024, 28 at 3072). Depths are even, so that "every second block" is the same share of every model.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from functools import lru_cache

from modexp.config.data import DataConfig
from modexp.config.model import ModelConfig
from modexp.errors import UserError
from modexp.flops.transformer import dense_twin
from modexp.kinds import ledger
from modexp.wording import size_text

Shape = tuple[int, int, int]  # layers, width, heads

DEPTH_BAND = (0.7, 1.5)  # depths allowed around sqrt(d) / 2
STEP = 1.15  # ratio of matmul parameters from rung to rung, where whole depths and widths allow it
SIZE_TOLERANCE = 0.10  # a rung answers to a size within this share of its parameters

SUFFIXES = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9}


def widths() -> list[int]:
    steps = [(8, 16, 4), (16, 64, 8), (64, 256, 16), (256, 512, 32), (512, 1024, 64), (1024, 4096, 128)]
    return [d for start, stop, step in steps for d in range(start, stop, step)] + [4096]


def heads_of(d: int) -> int:
    """Heads whose width is even and nearest 64 (width 512 and above), 32 (64 and above) or 16."""
    target = 64 if d >= 512 else 32 if d >= 64 else 16
    divisors = [h for h in range(1, d + 1) if d % h == 0 and (d // h) % 2 == 0]
    return min(divisors, key=lambda h: abs(math.log(d / h / target)))


@lru_cache
def ladder(depth: float = 1.0) -> tuple[Shape, ...]:
    """All rungs, smallest first by matmul parameters 12 L d^2: in every bin of ratio ``STEP`` the likeliest depth,
    ``depth`` times sqrt(d) / 2."""
    best: dict[int, tuple[float, float, Shape]] = {}
    for d in widths():
        nominal = depth * math.sqrt(d) / 2
        low, high = (factor * nominal for factor in DEPTH_BAND)
        for L in [L for L in range(2, 64, 2) if low <= L <= high] or [2]:
            params = 12.0 * L * d * d
            rung = (abs(math.log(L / nominal)), params, (L, d, heads_of(d)))
            step = round(math.log(params) / math.log(STEP))
            best[step] = min(best.get(step, rung), rung)
    return tuple(shape for _, _, shape in sorted(best.values(), key=lambda rung: rung[1]))


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
