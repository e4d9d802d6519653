"""Made-up studies: records as modexp reads them, on exact parabolas and on loss surfaces whose optimum is known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from modexp.analysis.isoflop import StudyFit

# E, A, B, alpha, beta of L = E + A/N^alpha + B/D^beta, C = 6ND: a course exercise; Hoffmann et al. 2022.
EXERCISE = (2.69, 1606.3, 3210.6, 0.34, 0.36)
CHINCHILLA = (1.69, 406.4, 410.7, 0.34, 0.28)


def record(x: float, loss: float, budget: float = 6e18, arm: str = "baseline", **more: Any) -> dict[str, Any]:
    name = f"{arm}-{budget:g}-{x:g}-{more.get('seed', 0)}"
    done = {
        "status": "done",
        "flops_consumed": budget,
        "steps_planned": 5000,
        "epochs": 0.5,
        "routed": arm != "baseline",
    }
    return {
        "run": name,
        "arm": arm,
        "budget": budget,
        "seed": 0,
        "params_total": x,
        "loss": loss,
        **done,
        **more,
    }


def curve(
    vertex: float = 1e8,
    sizes: int = 5,
    span: float = 4.0,
    floor: float = 3.0,
    bend: float = 0.05,
    **more: Any,
):
    """Records on an exact parabola ``floor + bend ln(x / vertex)²`` over 1e8 / span .. 1e8 x span."""
    grid = 1e8 * np.geomspace(1 / span, span, sizes)
    return [record(float(x), floor + bend * math.log(x / vertex) ** 2, **more) for x in grid]


def optimum(budget: float, constants: tuple[float, ...]) -> tuple[float, float, float]:
    """Size, loss and half the second derivative in ln N at the exact minimum of the surface at C = 6ND."""
    e, a, b, alpha, beta = constants
    size = (alpha * a / (beta * b)) ** (1 / (alpha + beta)) * (budget / 6) ** (beta / (alpha + beta))
    tokens = budget / 6 / size
    bend = (alpha**2 * a / size**alpha + beta**2 * b / tokens**beta) / 2
    return size, e + a / size**alpha + b / tokens**beta, bend


def on_surface(budget: float, sizes: np.ndarray, constants: tuple[float, ...], **more: Any) -> list[dict[str, Any]]:
    """Records of E + A/N^alpha + B/D^beta without noise at the given sizes (n,), C = 6ND."""
    e, a, b, alpha, beta = constants
    tokens = budget / 6 / sizes
    losses = e + a / sizes**alpha + b / tokens**beta
    triples = zip(sizes.tolist(), tokens.tolist(), losses.tolist(), strict=True)
    return [record(n, loss, budget, tokens=d, **more) for n, d, loss in triples]


def only(fit: StudyFit) -> Any:
    assert len(fit.curves) == 1
    return fit.curves[0]


def thirty(seed: int = 0) -> list[dict[str, Any]]:
    """5 budgets x 6 sizes with noise of .3 %."""
    rng = np.random.default_rng(seed)
    grid = np.geomspace(1 / 3, 3, 6)
    rows = [r for c in 1e18 * 4.0 ** np.arange(5) for r in on_surface(c, optimum(c, EXERCISE)[0] * grid, EXERCISE)]
    return [r | {"loss": r["loss"] * (1 + 0.003 * rng.standard_normal())} for r in rows]
