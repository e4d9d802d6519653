"""Guard runs: the ends of a curve at other learning rates, kept out of the fit, and what they say about the optimum."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from modexp.analysis.guard import Verdict, guard_study
from modexp.analysis.isoflop import fit_study
from modexp.analysis.methods import methods_sheet
from modexp.analysis.points import select
from modexp.analysis.records import records
from modexp.analysis.report import report
from modexp.config.identity import scientific
from modexp.config.model import BaselineConfig
from modexp.config.root import Config
from modexp.config.routing import MoDConfig
from modexp.config.study import BudgetConfig, GridConfig
from modexp.config.train import OptimConfig
from modexp.errors import UserError
from modexp.plan.grid import Arms, PlannedRun, plan_study
from modexp.plan.guard import guard_runs
from modexp.plan.hyperparameters import lr_peak
from modexp.runs import identity

ARMS: Arms = {m.kind: lambda b, m=m: Config(model=m, budget=BudgetConfig(b)) for m in (BaselineConfig(), MoDConfig())}  # type: ignore[misc]
AXIS = "flops_per_token"
Captured = pytest.CaptureFixture[str]


@pytest.mark.parametrize("lr", ["width", "step-law", 0.01])
def test_lr_scale_multiplies_every_rule(lr: Any) -> None:
    rule, half = (lr_peak(OptimConfig(lr=lr, lr_scale=scale), 64, 10_000, 1e6) for scale in (1.0, 0.5))
    assert half == rule / 2


def test_lr_scale_of_one_leaves_identities_as_they_were() -> None:
    """Runs made before the setting existed are still the same runs; other scales are other runs."""
    plain = Config()
    assert "optim.lr_scale" not in scientific(plain)
    scaled = replace(plain, optim=replace(plain.optim, lr_scale=2.0))
    assert scientific(scaled)["optim.lr_scale"] == 2.0
    assert identity(plain) != identity(scaled)
    with pytest.raises(UserError, match=r"optim.lr_scale=0 is not positive"):
        OptimConfig(lr_scale=0)


def test_both_ends_of_every_curve_are_guarded_at_half_and_twice_the_rate() -> None:
    runs = plan_study(ARMS, [1e12, 4e12], [3, 4], GridConfig(points=5)).runs
    guards = guard_runs(runs).runs
    assert len(guards) == 2 * 2 * 2 * 2
    for budget in (1e12, 4e12):
        for arm in ARMS:
            curve = sorted((r for r in runs if (r.plan.arm, r.plan.budget) == (arm, budget)), key=place)
            ours = [g for g in guards if (g.plan.arm, g.plan.budget) == (arm, budget)]
            assert {place(g) for g in ours} == {place(curve[0]), place(curve[-1])}
            for guard in ours:
                (run,) = (r for r in curve if place(r) == place(guard) and r.plan.seed == 3)
                assert guard.plan.lr == guard.plan.lr_scale * run.plan.lr
                assert guard.plan.name == f"{run.plan.name}-lr{guard.plan.lr_scale:g}"
                same = (guard.plan.flops, guard.plan.tokens, guard.plan.batch_size, guard.plan.seed)
                assert same == (run.plan.flops, run.plan.tokens, run.plan.batch_size, run.plan.seed)
            assert sorted(g.plan.lr_scale for g in ours) == [0.5, 0.5, 2.0, 2.0]


def place(run: PlannedRun) -> float:
    return run.plan.flops_per_token


# ---- a curve whose minimum we know: loss = 3 + .05 ln(x / 1000)^2 over sizes 250 .. 4000 ---------------------

SIZES = [250.0, 500.0, 1000.0, 2000.0, 4000.0]


def row(x: float, loss: float, scale: float = 1.0, seed: int = 0, **rest: Any) -> dict[str, Any]:
    name = f"a-{x:g}-s{seed}" + ("" if scale == 1 else f"-lr{scale:g}")
    plain = {"run": name, "arm": "a", "budget": 1e12, "seed": seed, "status": "done", "flops_consumed": 1e12}
    return {**plain, AXIS: x, "loss": loss, "lr_scale": scale, **rest}


def curve(noise: float = 0.002) -> list[dict[str, Any]]:
    return [row(x, 3 + 0.05 * math.log(x / 1000) ** 2 + noise * (-1) ** i) for i, x in enumerate(SIZES)]


def guards(gain_low: float, gain_high: float, **rest: Any) -> list[dict[str, Any]]:
    """Half the rate is worse by .1; twice the rate is better by the gains."""
    ends = {250.0: gain_low, 4000.0: gain_high}
    own = {r[AXIS]: r["loss"] for r in curve()}
    return [row(x, own[x] - (gain if s == 2 else -0.1), s, **rest) for x, gain in ends.items() for s in (0.5, 2.0)]


def verdict(rows: list[dict[str, Any]]) -> Verdict:
    (found,) = guard_study(rows, AXIS)
    return found


def test_guard_runs_are_no_points_and_no_dropped_runs() -> None:
    points, dropped = select([*curve(), *guards(0.3, 0.3)], AXIS)
    assert [p.run for p in points] == [r["run"] for r in curve()]
    assert not dropped
    assert fit_study([*curve(), *guards(0.3, 0.3)], AXIS) == fit_study(curve(), AXIS)
    assert guard_study(curve(), AXIS) == []


def test_where_the_rule_is_best_nothing_moves() -> None:
    found = verdict([*curve(), *guards(-0.2, -0.01)])
    assert found.moves is False
    assert found.tuned == found.optimum == pytest.approx(1000, rel=0.05)
    assert [end.best for end in found.ends] == [1.0, 1.0]
    assert [sorted(end.losses) for end in found.ends] == [[0.5, 1.0, 2.0]] * 2
    assert "stays within its 90% interval" in found.sentence


@pytest.mark.parametrize(("low", "high", "sign"), [(0.08, -0.1, -1), (-0.1, 0.08, 1)])
def test_a_rule_that_is_wrong_at_one_end_moves_the_optimum(low: float, high: float, sign: int) -> None:
    found = verdict([*curve(), *guards(low, high)])
    assert found.moves is True
    # the parabola through the curve with .08 taken from that end: its slope changes by sum(u dy) / sum(u u), u in ln 2
    by_hand = fit_study([{**r, "loss": r["loss"] - 0.08 * (r[AXIS] == 1000 * 4**sign)} for r in curve()], AXIS)
    assert found.tuned == by_hand.curves[0].parabola.vertex  # type: ignore[union-attr]
    assert math.copysign(1, math.log(found.tuned / 1000)) == sign  # type: ignore[operator]
    assert "moves beyond its 90% interval" in found.sentence
    assert "(best x 2)" in found.sentence


def test_other_seeds_of_a_guarded_size_gain_as_much() -> None:
    second = [{**r, "run": r["run"] + "b", "seed": 1} for r in curve()]
    one, two = verdict([*curve(), *guards(0.08, 0.0)]), verdict([*curve(), *second, *guards(0.08, 0.0)])
    assert two.tuned == pytest.approx(one.tuned)


def test_diverged_and_unfinished_guards_are_said() -> None:
    rows = [*curve(), *guards(0.0, 0.0)]
    rows[-1] = {**rows[-1], "status": "diverged", "loss": None}
    found = verdict(rows)
    assert found.moves is False
    assert "diverged (best x 1)" in found.sentence
    rows[-1]["status"] = "running"
    assert verdict(rows).moves is None
    assert "guard runs are not finished" in verdict(rows).sentence
    few = verdict([*curve()[:1], *curve()[2:], *guards(0.0, 0.0)])
    assert "no optimum that could move: a fit needs 5" in few.sentence


def test_a_rule_that_diverged_at_an_end_is_replaced_by_the_rate_that_did_not() -> None:
    wide = [*curve(), row(8000.0, 3 + 0.05 * math.log(8) ** 2)]
    wide[-1] |= {"status": "diverged", "loss": None, "flops_consumed": 3e11}
    found = verdict([*wide, row(8000.0, 3.12, 0.5), row(8000.0, 3.5, 2.0)])
    rescued = [*curve(), row(8000.0, 3.12)]
    assert found.tuned == fit_study(rescued, AXIS).curves[0].parabola.vertex  # type: ignore[union-attr]
    assert found.moves is True
    assert "gives 3.1200, diverged, 3.5000 (best x 0.5)" in found.sentence


def test_a_guard_is_read_on_the_sizes_and_against_the_baseline_of_its_fit() -> None:
    sizes = [125.0, *SIZES, 8000.0]
    rows = [row(x, 3 + 0.05 * math.log(x / 1000) ** 2 + 0.02 * math.log(x / 1000) ** 3 * (x > 4000)) for x in sizes]
    rows = [{**r, "loss": r["loss"] + 0.002 * (-1) ** i} for i, r in enumerate(rows)]
    found = report([*rows, row(250.0, 3.05, 2.0)], AXIS, resamples=0, nearest=5)
    optimum = found.fit.curves[0].optimum
    assert optimum is not None
    assert (found.guards[0].low, found.guards[0].high) == (optimum.x_low, optimum.x_high)


def test_a_report_keeps_the_verdicts_at_its_own_level() -> None:
    rows = [*curve(), *guards(0.05, 0.0)]
    found = report(rows, AXIS, level=0.5, resamples=0)
    (verdict,) = found.guards
    assert "50% interval" in verdict.sentence
    assert f"- guard: {verdict.sentence}" in methods_sheet(found, rows, {}, 0.5)
    rows[-1] |= {"status": "diverged", "loss": None}
    (kept,) = json.loads(json.dumps(report(rows, AXIS, resamples=0).to_json(), allow_nan=False))["guards"]
    assert kept["moves"] in (True, False)
    assert any(None in end["losses"].values() for end in kept["ends"])


def test_a_study_with_guard_from_plan_to_sentence(
    modexp_cli: Callable[..., int], capsys: Captured, tiny: list[str], tmp_path: Path
) -> None:
    (tmp_path / "small.yaml").write_text(
        "budgets: [5.0e+8]\narms: {baseline: [model=baseline]}\ngrid: {points: 1, span: 1}\n"
        f"overrides: {json.dumps(tiny)}\n"
    )
    words = ["sweep", "small.yaml", "launcher.slots=2", "trainer.num_evals=1"]
    assert modexp_cli("plan", "small.yaml", "guard=on", "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["runs"]) == 3
    assert modexp_cli(*words) == 0, "guard may join a finished study"
    assert modexp_cli(*words, "guard=on") == 0
    captured = capsys.readouterr()
    assert "1 of 3 runs are finished and skipped" in captured.err
    assert "guard: baseline at 5e8: at" in captured.out
    assert "guard runs, at half and twice the learning rate, are no points of the fit" in captured.err
    folder = tmp_path / "runs/small"
    rows = records(folder)
    assert sorted(r["lr_scale"] for r in rows) == [0.5, 1, 2]
    assert len({r["loss"] for r in rows}) == 3, "each rate trains another model"
    drawn = (folder / "isoflop.csv").read_text()
    assert "-lr2" not in drawn
    capsys.readouterr()
    assert modexp_cli("status") == 0
    assert "-lr0.5" in capsys.readouterr().out
    assert modexp_cli("fit") == 0
    assert "guard: baseline" in capsys.readouterr().out
    assert modexp_cli(*words) == 0, "and stays"
    assert "3 of 3 runs are finished" in capsys.readouterr().err
