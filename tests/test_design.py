"""Simulated studies of a plan: the same fits as the real ones, and what more runs buy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from modexp.analysis.isoflop import fit_study
from modexp.analysis.parabola import fit_parabola
from modexp.config.study import GridConfig
from modexp.plan.design import BESIROGLU, expect, fit_parabolas
from modexp.plan.grid import plan_study
from modexp.plan.run import RunPlan
from tests.test_plan import arms


def plans(points: int = 7, budgets: tuple[float, ...] = (6e18, 2e19, 1e20), seeds: int = 1) -> list[RunPlan]:
    grid = GridConfig(points=points)
    return [r.plan for r in plan_study(arms(), list(budgets), list(range(seeds)), grid).runs]  # type: ignore[arg-type]


def test_all_parabolas_at_once_are_each_parabola() -> None:
    N = np.geomspace(1e7, 1e9, 7)
    loss = BESIROGLU.loss(N, 1e20 / N) * (1 + 0.01 * np.random.default_rng(0).standard_normal((5, 7)))
    for found, row in zip(fit_parabolas(N, loss), loss, strict=True):
        single = fit_parabola(N.tolist(), row.tolist())
        assert found.coefficients == pytest.approx(single.coefficients, rel=1e-9)
        assert found.residual_squares == pytest.approx(single.residual_squares, rel=1e-9)
        assert found.vertex == pytest.approx(single.vertex)


def test_a_simulated_study_is_fitted_as_a_real_one() -> None:
    """One study, drawn here once more with the same seed and given to fit_study as records."""
    runs = plans()
    draw = np.random.default_rng(3)
    rows = []
    for arm in ("baseline", "mod"):
        for budget in (6e18, 2e19, 1e20):
            mine = [p for p in runs if (p.arm, p.budget) == (arm, budget)]
            noise = draw.standard_normal((1, len(mine)))[0]
            for plan, shift in zip(mine, noise, strict=True):
                exact = BESIROGLU.loss(np.array([float(plan.params_total)]), np.array([float(plan.tokens)]))[0]
                rows.append(
                    {**vars(plan), "run": plan.name, "status": "done", "loss": exact * (1 + 0.01 * shift)}
                    | {"flops_consumed": plan.flops, "steps_planned": plan.steps}
                )
    real = fit_study(rows)
    for simulated in expect(runs, 0.01, studies=1, seed=3):
        (fit,) = [e for e in real.exponents if e.arm == simulated.arm]
        refused = [c for c in real.curves if c.arm == simulated.arm and c.refusal]
        assert simulated.curves_refused == pytest.approx(len(refused) / 3)
        if fit.high is None or fit.low is None:
            assert simulated.half_width is None
        else:
            assert simulated.half_width == pytest.approx((fit.high - fit.low) / 2, rel=1e-6)


def test_less_noise_and_more_runs_narrow_the_interval() -> None:
    widths = {}
    for name, runs, noise in (
        ("as asked", plans(), 0.01),
        ("quieter", plans(), 0.005),
        ("seeds", plans(seeds=4), 0.01),
    ):
        found = expect(runs, noise, studies=60)
        assert [e.arm for e in found] == ["baseline", "mod"]
        widths[name] = found[0].half_width or float("nan")
    assert widths["quieter"] == pytest.approx(widths["as asked"] / 2, rel=0.15)
    assert widths["seeds"] == pytest.approx(widths["as asked"] / 2, rel=0.25)


def test_without_noise_every_study_gives_an_exponent() -> None:
    assert [e.refused for e in expect(plans(), 1e-9, studies=5)] == [0.0, 0.0]


def test_what_gives_no_exponent_says_why() -> None:
    one, four = expect(plans(budgets=(6e18,)), studies=5)[0], expect(plans(points=4), studies=5)[0]
    assert one.half_width is None
    assert "2 budgets" in one.sentence
    assert (four.refused, four.curves_refused) == (1.0, 1.0)
    assert "5 distinct sizes" in four.sentence
    noisy = expect(plans(), 0.2, studies=20)[0]
    assert noisy.curves_refused > 0.2
    assert expect([], studies=5) == []


def test_the_same_seed_gives_the_same_expectation() -> None:
    runs = [replace(plan, name="x") for plan in plans()]
    assert expect(runs, studies=10) == expect(plans(), studies=10)
