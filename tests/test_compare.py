"""Paired comparisons against closed forms and plain differences; equal loss against the root of the true curve."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modexp.analysis.compare import pairs_of, residual_maker, shared_noise, vertex_weights
from modexp.analysis.equal_loss import compare_arms
from modexp.analysis.isoflop import fit_study
from modexp.analysis.parabola import student_t
from modexp.analysis.points import select
from modexp.cli import run as modexp
from modexp.errors import UserError

GRID = 1e6 * np.geomspace(0.25, 4, 7)


def record(arm: str, x: float, loss: float, budget: float = 1e18, seed: int = 0, **more: Any) -> dict[str, Any]:
    """A run of x forward FLOPs per token: training takes three times that."""
    return {
        "run": f"{arm}-{budget:g}-{x:g}-{seed}",
        "arm": arm,
        "routed": arm != "baseline",
        "budget": budget,
        "seed": seed,
        "status": "done",
        "flops_consumed": budget,
        "flops_per_token": x,
        "params_total": x / 2,
        "tokens": budget / 3 / x,
        "loss": loss,
        **more,
    }


def bowl(x: float, vertex: float, floor: float, bend: float = 0.05) -> float:
    return floor + bend * math.log(x / vertex) ** 2


def two_arms(noise: float = 0.0, common: float = 0.0, seed: int = 0, gain: float = 0.015, **more: Any):
    """Baseline with its optimum at 1e6, an arm ``gain`` nats better with its optimum at half that cost."""
    rng = np.random.default_rng(seed)
    rows = []
    for x in GRID:
        shared, own = rng.standard_normal(), rng.standard_normal(2)
        scatter = noise * (math.sqrt(common) * shared + math.sqrt(1 - common) * own)
        rows.append(record("baseline", x, bowl(x, 1e6, 3.0) + scatter[0], **more))
        rows.append(record("mod", x, bowl(x, 5e5, 3.0 - gain) + scatter[1], **more))
    return rows


def test_on_equal_grids_the_variance_is_that_of_the_paired_differences():
    """Independent: subtract the pairs first, fit one parabola to the differences, read it at a fixed size.

    With both vertices at one place the difference of the vertex losses is linear in the losses, to first order.
    """
    rng = np.random.default_rng(1)
    noise = 0.01 * rng.standard_normal((2, len(GRID))) + 0.01 * rng.standard_normal(len(GRID))
    rows = [record("baseline", x, bowl(x, 1e6, 3.0) + n) for x, n in zip(GRID, noise[0], strict=True)]
    rows += [record("mod", x, bowl(x, 1e6, 2.97) + n) for x, n in zip(GRID, noise[1], strict=True)]
    fit = fit_study(rows, "flops_per_token")
    base, mod = fit.curve("baseline", 1e18), fit.curve("mod", 1e18)
    shared = shared_noise([(mod, base)], fit.noise)
    weights = vertex_weights(base)
    joint = pairs_of(mod.points, base.points)
    np.testing.assert_array_equal(joint, np.eye(len(GRID)))
    ours = shared.margin(weights, -weights, joint)

    differences = np.array([m.loss - b.loss for m, b in zip(mod.points, base.points, strict=True)])
    residual = residual_maker(base) @ differences
    dof = len(GRID) - 3
    plain = student_t(0.9, dof) * math.sqrt(residual @ residual / dof) * math.sqrt(weights @ weights)
    assert ours == pytest.approx(plain, rel=1e-9)


def test_pairing_narrows_what_is_common_and_tells_how_many_pairs():
    half_width = {}
    for common in (0.0, 0.9):
        budgets = 1e18 * 2.0 ** np.arange(12)
        rows = [r for i, b in enumerate(budgets) for r in two_arms(0.005, common, seed=i, budget=b)]
        found = fit_study(rows, "flops_per_token").comparisons
        half_width[common] = np.mean([(c.high - c.low) / 2 for c in found])
        assert {c.pairs for c in found} == {7}
        assert found[0].correlation == pytest.approx(common, abs=0.3)
    assert half_width[0.9] < 0.7 * half_width[0.0]


def test_runs_of_other_seeds_or_other_cost_are_no_pairs():
    rows = [record("baseline", x, 3.0) for x in (1e6, 2e6, 4e6)]
    other = [record("mod", 1.1e6, 3.0), record("mod", 2e6, 3.0, seed=1), record("mod", 8e6, 3.0)]
    points = [select(r, "flops_per_token")[0] for r in (other, rows)]
    np.testing.assert_array_equal(pairs_of(*points), [[1, 0, 0], [0, 0, 0], [0, 0, 0]])


def test_equal_loss_is_the_root_of_the_arms_curve():
    (found,) = compare_arms(fit_study(two_arms(), "flops_per_token"))
    assert found.difference.difference == pytest.approx(-0.015, abs=1e-9)
    root = 5e5 * math.exp(-math.sqrt(0.015 / 0.05)) / 1e6
    assert found.flops == pytest.approx(root, rel=5e-3)  # of the grid of candidates
    assert found.flops_low == pytest.approx(root, rel=1e-2)
    assert found.speed is None


def test_interval_of_flops_at_equal_loss_covers():
    """90 % intervals of 300 noisy studies; the truth is the root above."""
    truth = 5e5 * math.exp(-math.sqrt(0.015 / 0.05)) / 1e6
    inside = total = 0
    for seed in range(150):
        rows = [r for b in (1e18, 3e18) for r in two_arms(0.006, 0.5, seed=1000 * seed + int(b / 1e18), budget=b)]
        for c in compare_arms(fit_study(rows, "flops_per_token")):
            total += 1
            inside += (c.flops_low or 0.0) <= truth <= (c.flops_high or math.inf)
    assert total > 275
    assert 0.87 <= inside / total <= 0.97  # open ends make it a little wide


def test_speed_is_read_between_measured_runs():
    rows = two_arms()
    for r in rows:  # seconds grow as cost^0.8, the arm is twice as slow a FLOP
        r["seconds_per_token"] = (2.0 if r["arm"] == "mod" else 1.0) * r["flops_per_token"] ** 0.8
    (found,) = compare_arms(fit_study(rows, "flops_per_token"))
    assert found.speed == pytest.approx(found.flops**-0.8 / 2, rel=1e-2)


@pytest.mark.parametrize(
    ("gain", "sentence"),
    [
        (-0.02, "mod does not reach baseline's best loss"),
        (0.5, "even the smallest mod run reaches baseline's best loss"),
    ],
)
def test_equal_loss_out_of_reach_is_said(gain: float, sentence: str):
    (found,) = compare_arms(fit_study(two_arms(gain=gain), "flops_per_token"))
    assert found.flops is None
    assert found.sentence.startswith(sentence)


def test_arms_that_cannot_be_told_apart_are_not_said_to_fall_short():
    (found,) = compare_arms(fit_study(two_arms(noise=0.01, gain=-0.003), "flops_per_token"))
    assert not found.difference.distinguishable
    assert found.flops is None
    assert found.flops_low is not None
    assert found.sentence == (
        f"mod's best loss cannot be told from baseline's, which it could reach from {found.flops_low:.2f}x its FLOPs"
        " per forward pass on"
    )


def test_speed_of_a_size_is_the_mean_of_its_seeds_that_were_measured():
    rows = [*two_arms(), *two_arms()]
    for i, r in enumerate(rows):
        second = i >= len(rows) // 2
        r |= {"seed": int(second), "run": f"{r['run']}-{i}"}
        r["seconds_per_token"] = r["flops_per_token"] ** 0.8 * (4.0 if second else 1.0)
    (found,) = compare_arms(fit_study(rows, "flops_per_token"))
    assert found.speed == pytest.approx(found.flops**-0.8, rel=1e-2)
    for r in rows:
        r["seconds_per_token"] = None if r["seed"] else r["seconds_per_token"]
    (found,) = compare_arms(fit_study(rows, "flops_per_token"))
    assert found.speed == pytest.approx(found.flops**-0.8, rel=1e-2)


def test_another_axis_is_no_cost():
    with pytest.raises(UserError, match="axis=params is no cost of a forward pass"):
        compare_arms(fit_study(two_arms()))


def test_what_was_not_compared_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    rows = [*two_arms(epochs=2.0), *two_arms(budget=4e18)]
    failed = {"status": "failed", "error": "out of memory"}
    rows = [r | failed if r["arm"] == "mod" and r["budget"] == 4e18 and r["flops_per_token"] < 1e6 else r for r in rows]
    (tmp_path / "runs" / "s").mkdir(parents=True)
    monkeypatch.setattr("modexp.analysis.records.records", lambda *_: rows)
    for words in ([], ["--json"]):
        assert modexp(["compare", "s", "--runs-dir", str(tmp_path / "runs"), *words]) == 0
        said = capsys.readouterr().err.splitlines()
        assert sum(line.startswith("left out: mod-4e+18") and "out of memory" in line for line in said) == 3
        assert "mod at 4e18: a fit needs 5 distinct sizes, got 4" in said
        assert any(line.startswith("mod at 1e18: 7 of 7 runs repeat") for line in said)


def test_one_arm_cannot_be_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    rows = [r for r in two_arms() if r["arm"] == "baseline"]
    (tmp_path / "runs" / "s").mkdir(parents=True)
    monkeypatch.setattr("modexp.analysis.records.records", lambda *_: rows)
    assert modexp(["compare", "s", "--runs-dir", str(tmp_path / "runs")]) == 2
    assert "no arm can be compared: baseline is the only arm" in capsys.readouterr().err
