"""A finished study under another FLOP convention.

Runs of one budget spent equal FLOPs under the convention they were planned in and spend unequal ones under another, so
a curve through them as they stand is no isoFLOP curve. Each loss is therefore moved, at its size, to the FLOPs that the
baseline's runs of that budget spent on average, along a quadratic surface of loss in ln size and ln FLOPs fitted to all
runs of its arm. What moves is the difference of two points on the surface: the run's own residual stays with it.

Two budgets cannot tell all six terms apart, so there one is taken for zero: the product of ln size and
ln (FLOPs / size), as in every surface f(N) + g(D), FLOPs over size being nearly D. With ln FLOPs squared for zero
instead, exponents came out .02 to .1 off and not .002 to .02 (as in tests/test_reread.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from modexp.analysis.points import Point
from modexp.config.routing import LayersConfig
from modexp.errors import UserError
from modexp.flops.ledger import Ledger
from modexp.flops.transformer import dense_twin
from modexp.kinds import ledger, realised_forward
from modexp.runs import RunDir


def recount(run: RunDir, row: Mapping[str, Any], convention: str) -> dict[str, Any]:
    """What ``convention`` makes of a run's FLOPs: the keys of its record that change.

    ``flops_reread`` is what the run spent; ``flops_consumed`` stays as planned, to be held against the budget.
    """
    promise = run.plan()
    T = int(promise["plan"]["sequence_length"])
    books, config = Ledger.from_json(promise["ledger"], T), run.config()
    changed = {
        "convention": convention,
        "flops_reread": row["tokens"] / T * books.training(convention),
        "flops_per_token": books.forward(convention) / T,
        "relative_flops": books.forward(convention) / ledger(dense_twin(config.model), config.data).forward(convention),
    }
    reached = (run.result() or {}).get("validation", {})
    capacities = [share for key, share in reached.items() if key.startswith("capacity.")]
    if row.get("flops_per_token_causal") is not None and isinstance(config.model, LayersConfig):
        changed["flops_per_token_causal"] = realised_forward(config.model, config.data, capacities, convention)
    return changed


def at_equal_flops(points: Sequence[Point], baseline: str) -> list[Point]:
    """The points with their losses moved to one number of FLOPs a budget, in the order given.

    UserError where an arm has too few budgets or runs for its surface.
    """
    meant = {
        budget: mean_log([p.flops for p in reference_of(points, budget, baseline)]) for budget in budgets_of(points)
    }
    moved: dict[str, Point] = {}
    for arm in dict.fromkeys(p.arm for p in points):
        mine = [p for p in points if p.arm == arm]
        surface = surface_of(mine)
        for p in mine:
            there, here = surface(math.log(p.x), meant[p.budget]), surface(math.log(p.x), math.log(p.flops))
            moved[p.run] = replace(p, loss=p.loss + there - here, flops=math.exp(meant[p.budget]))
    return [moved[p.run] for p in points]


def budgets_of(points: Sequence[Point]) -> list[float]:
    return sorted({p.budget for p in points})


def reference_of(points: Sequence[Point], budget: float, baseline: str) -> list[Point]:
    """The baseline's runs at a budget; every arm's where it has none."""
    here = [p for p in points if p.budget == budget]
    return [p for p in here if p.arm == baseline] or here


def mean_log(values: Sequence[float]) -> float:
    return sum(map(math.log, values)) / len(values)


def surface_of(points: Sequence[Point]) -> Any:
    """loss(ln size, ln FLOPs), least squares in 1, u, u^2, w, w^2 and, from three budgets on, u w; u = ln size,
    w = ln FLOPs - ln size."""
    budgets = len(budgets_of(points))
    terms = 6 if budgets >= 3 else 5
    arm = points[0].arm
    if budgets < 2 or len(points) <= terms:
        raise UserError(
            f"under another convention the runs of one budget differ in FLOPs, and {len(points)} runs of {arm} at"
            f" {budgets} budget{'s' if budgets > 1 else ''} cannot tell what a FLOP is worth",
            f"sweep another budget, or read the study as it was planned; {terms + 1} runs at 2 budgets are the least",
        )
    u, v = np.log([p.x for p in points]), np.log([p.flops for p in points])
    at_u, at_w = u.mean(), (v - u).mean()

    def design(log_x: Any, log_c: Any) -> np.ndarray:
        a, b = log_x - at_u, log_c - log_x - at_w
        return np.stack([a**0, a, a * a, b, b * b, a * b][:terms], axis=-1)

    coefficients, *_ = np.linalg.lstsq(design(u, v), np.array([p.loss for p in points]))
    return lambda log_x, log_c: float(design(log_x, log_c) @ coefficients)
