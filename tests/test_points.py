"""Which runs enter a fit, and why the others do not."""

from __future__ import annotations

import math
from typing import Any

import pytest

from modexp.analysis.isoflop import fit_study
from modexp.analysis.points import at_one_x, baseline_of, reason_to_drop
from modexp.wording import budget_text
from tests.studies import curve, only, record


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"status": "planned", "loss": None}, "not finished (planned)"),
        ({"status": "running", "loss": 3.0}, "not finished (running)"),
        ({"status": None}, "not finished (no status)"),
        ({"status": "failed", "error": "CUDA out of memory"}, "failed: CUDA out of memory"),
        ({"status": "diverged", "loss": None}, "diverged"),
        ({"loss": math.nan}, "diverged"),
        ({"loss": math.inf}, "diverged"),
        ({"loss": None}, "has no held-out loss"),
        ({"flops_consumed": None}, "does not say what it consumed"),
        ({"flops_consumed": 6.012e18}, "missed its budget of 6e18 FLOPs by +0.20% (allowed 0.10%)"),
        (
            {"flops_consumed": 6.02e18, "sequence_length": 1, "tokens_planned": 200},
            "missed its budget of 6e18 FLOPs by +0.33% (allowed 0.25%)",
        ),
        (
            {"flops_consumed": 6.07e18, "sequence_length": 1, "tokens_planned": 5},
            "missed its budget of 6e18 FLOPs by +1.17% (allowed 1.00%)",
        ),
        (
            {"flops_consumed": 6e18, "flops_planned": 6.012e18},
            "missed its plan of 6.012e+18 FLOPs by -0.20% (allowed 0.10%)",
        ),
    ],
)
def test_runs_left_out_say_why(change: dict[str, Any], reason: str):
    records = curve()
    records[1] |= change
    fit = fit_study(records)
    assert [(d.run, d.reason) for d in fit.dropped] == [(records[1]["run"], reason)]
    assert len(only(fit).points) == 4


def test_half_a_sequence_may_be_wanting_and_no_more():
    assert reason_to_drop(record(1e8, 3.0, flops_consumed=6e18 * 1.0009)) == ""
    few = {"sequence_length": 256, "tokens_planned": 256 * 100}
    assert reason_to_drop(record(1e8, 3.0, flops_consumed=6e18 * 1.005, **few)) == ""
    assert reason_to_drop(record(1e8, 3.0, flops_consumed=6e18 * 1.0051, **few)) != ""
    many = {"sequence_length": 256, "tokens_planned": 256 * 10_000}
    assert reason_to_drop(record(1e8, 3.0, flops_consumed=6e18 * 1.0011, **many)) != ""


def test_a_plan_is_kept_to_a_tenth_of_a_percent_however_few_its_steps():
    few = {"sequence_length": 256, "tokens_planned": 256 * 100, "flops_planned": 6.02e18}
    assert reason_to_drop(record(1e8, 3.0, flops_consumed=6.02e18, **few)) == ""
    assert reason_to_drop(record(1e8, 3.0, flops_consumed=6e18, **few)) != "", "nearer to the budget, and not the plan"


def test_run_without_the_axis_is_left_out():
    fit = fit_study(curve(), axis="flops_per_token")
    assert {d.reason for d in fit.dropped} == {"reports no flops_per_token"}


def test_budgets_are_exact():
    """Tools that bucket to one digit merge 1.5e19 and 2.4e19; here they are two curves."""
    fit = fit_study([*curve(budget=1.5e19), *curve(budget=2.4e19, floor=2.9)])
    assert [c.budget for c in fit.curves] == [1.5e19, 2.4e19]
    assert [len(c.points) for c in fit.curves] == [5, 5]
    assert budget_text(1.5e19) == "1.5e19"
    assert budget_text(2.4e19) == "2.4e19"


def test_baseline_is_the_one_so_called_or_the_first_dense_arm():
    assert baseline_of([*curve(arm="wide", routed=False), *curve()]) == "baseline"
    assert baseline_of([*curve(arm="mod"), *curve(arm="wide", routed=False)]) == "wide"
    assert baseline_of(curve(arm="mod")) == "mod"


def measured(axis: str, seeds: tuple[int, ...] = (0, 1, 2), sizes: int = 5) -> list[dict[str, Any]]:
    """A curve whose runs of one size differ, seed by seed, in what was measured."""
    rows = []
    for seed in seeds:
        for place, row in enumerate(curve(sizes=sizes, seed=seed)):
            cost = row["params_total"] * (1 + 0.002 * (seed - 1) * (-1) ** place)
            rows.append({**row, "flops_per_token": row["params_total"], axis: cost})
    return rows


@pytest.mark.parametrize(
    ("axis", "key"), [("flops_per_token", "flops_per_token_causal"), ("seconds", "seconds_per_token")]
)
def test_seeds_of_one_size_are_one_size_on_a_measured_axis(axis: str, key: str):
    fit = only(fit_study(measured(key), axis))
    assert (fit.num_sizes, len(fit.points), fit.warnings) == (5, 15, ())
    assert "5 distinct sizes, got 4" in only(fit_study(measured(key, sizes=4), axis)).refusal
    near = only(fit_study(measured(key, sizes=9), axis, nearest=5))
    assert (near.num_sizes, len(near.points)) == (5, 15)
    places = at_one_x(near.points)
    assert len(set(places)) == 5
    assert sorted(x for x, _ in places)[7] == pytest.approx(1e8, rel=1e-5)
