"""Adaptive studies, simulated from a law L = E + A/N^a + B/D^b: where sizes and seeds go, and that it repeats."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from modexp.analysis.isoflop import fit_study
from modexp.config.data import HubData
from modexp.config.model import BaselineConfig
from modexp.config.root import Config
from modexp.config.routing import MoDConfig
from modexp.config.study import AdaptConfig, BudgetConfig, GridConfig, SweepConfig
from modexp.config.train import OptimConfig
from modexp.errors import UserError
from modexp.kinds import ledger
from modexp.plan.grid import Arms, PlannedRun, plan_study, rungs_of
from modexp.plan.ladder import with_shape
from modexp.sweep import decisions
from modexp.sweep.adapt import next_round, replayed
from modexp.sweep.decisions import Decision, plan_of_log

DATA = HubData(path="x", tokenizer="t", vocab_size=32000, sequence_length=2048)
ADAPT = AdaptConfig(enabled=True)
Law = Callable[[PlannedRun], float]


def arms_of(*models: Any) -> Arms:
    base = Config(data=DATA, optim=OptimConfig(batch_size=64))
    return {m.kind: lambda budget, m=m: replace(base, model=m, budget=BudgetConfig(budget)) for m in models}  # type: ignore[misc]


BOTH = arms_of(BaselineConfig(), MoDConfig())


def sweep_of(budgets: list[float], adapt: AdaptConfig = ADAPT, **grid: Any) -> SweepConfig:
    shape = {"points": 7, "span": 4.0, "tokens_per_param": 20.0, "growth": "depth", **grid}
    return SweepConfig(budgets=budgets, arms={a: [] for a in BOTH}, grid=GridConfig(**shape), adapt=adapt)


def law(noise: float, ratio: float = 20.0) -> Law:
    """Nats at a run's FLOPs per token F and tokens D, least where D is ``ratio`` F / 2, with relative noise."""

    def loss(run: PlannedRun) -> float:
        size, tokens = run.plan.flops_per_token / 2, run.plan.tokens
        value = 1.7 + 400 / size**0.34 + 400 * ratio**0.34 / tokens**0.34
        return value * (1 + random.Random(run.plan.name).gauss(0, noise))

    return loss


def record_of(run: PlannedRun, loss: float, status: str = "done") -> dict[str, Any]:
    plan = run.plan.to_json()
    row = {**plan, "run": plan["name"], "status": status, "loss": loss}
    return {**row, "flops_consumed": plan["flops"], "steps_planned": plan["steps"]}


Simulated = tuple[list[Decision], list[dict[str, Any]]]


def simulate(sweep: SweepConfig, arms: Arms, loss: Law, log: list[Decision] | None = None) -> Simulated:
    """A whole study, from ``log`` to its stop: the decisions and the records they rest on."""
    log = list(log or [])
    for _ in range(60):
        rows = [record_of(run, loss(run)) for run in plan_of_log(log, arms).runs]
        log += (fresh := next_round(sweep, arms, log, rows))
        if fresh[-1].kind == "stop":
            return log, rows
    raise AssertionError("no end")


def spent(log: list[Decision], arms: Arms) -> int:
    return sum(run.plan.flops for run in plan_of_log(log, arms).runs)


def test_a_wrong_prior_is_left_behind_after_the_first_budget() -> None:
    """The law's optimum is at 5 tokens a parameter where the prior says 20: later grids are centred where it lies."""
    sweep = sweep_of([6e18, 2e19, 6e19])
    log, rows = simulate(sweep, BOTH, law(0.0, ratio=5.0))
    grids = [d for d in log if d.kind == "grid"]
    assert [d.budget for d in grids] == [6e18, 2e19, 6e19], "ascending"
    assert [d.round for d in log] == sorted(d.round for d in log)
    for decision in grids[1:]:
        # C = 3 F D and D = 2.5 F at the optimum, for either arm
        truth = math.sqrt(decision.budget / 3 / 2.5)  # type: ignore[operator]
        assert decision.numbers["centre"] == pytest.approx(truth, rel=0.05)
        for arm in BOTH:
            logs = [math.log(r["flops_per_token"]) for r in rows if (r["arm"], r["budget"]) == (arm, decision.budget)]
            assert sum(logs) / len(logs) == pytest.approx(math.log(truth), abs=0.15)
    assert "C^0.5" in grids[1].reason
    assert "line through 2 optima" in grids[2].reason


@pytest.mark.parametrize(("ratio", "side"), [(1.0, "larger"), (300.0, "smaller")])
def test_a_minimum_on_an_edge_gets_sizes_on_that_side(ratio: float, side: str) -> None:
    sweep = sweep_of([6e18])
    log, rows = simulate(sweep, BOTH, law(0.0, ratio=ratio))
    added = [d for d in log if d.kind == "edge"]
    assert {d.arm for d in added} == set(BOTH)
    assert {d.numbers["side"] for d in added} == {side}
    for arm in BOTH:
        first, extra = ([a for d in log if d.kind == kind for a in d.runs if a.arm == arm] for kind in ("grid", "edge"))
        assert 2 <= len(extra) <= 6
        assert not {a.shape for a in first} & {a.shape for a in extra}
        sizes = [[r["flops_per_token"] for r in rows if r["run"] in names_of(runs, arm)] for runs in (first, extra)]
        assert min(sizes[1]) > max(sizes[0]) if side == "larger" else max(sizes[1]) < min(sizes[0])
    assert not any(c.refusal for c in fit_study(rows, "flops_per_token").curves)


def names_of(added: list[decisions.Added], arm: str) -> set[str]:
    return {decisions.planned_run(a, BOTH).plan.name for a in added if a.arm == arm}


def test_seeds_go_to_the_vertex_until_the_target_is_met() -> None:
    sweep = sweep_of([6e18], AdaptConfig(True, interval=0.004, spend=20.0))
    log, rows = simulate(sweep, BOTH, law(0.005))
    assert log[-1].kind == "stop"
    assert "or better" in log[-1].reason
    comparison = fit_study(rows, "flops_per_token").comparisons[0]
    assert (comparison.high - comparison.low) / 2 <= 0.004 * 3.2
    added = [a for d in log if d.kind == "seeds" for a in d.runs]
    assert added
    assert len({(a.arm, a.shape, a.seed) for d in log for a in d.runs}) == len(rows), "no run twice"
    for a in added:
        curve = next(c for c in fit_study(rows, "flops_per_token").curves if c.arm == a.arm)
        size = decisions.planned_run(a, BOTH).plan.flops_per_token
        assert abs(math.log(size / curve.parabola.vertex)) < math.log(2), "near the vertex"  # type: ignore[union-attr]


def test_the_spend_limit_holds_and_may_be_raised() -> None:
    sweep = sweep_of([6e18, 2e19], AdaptConfig(True, interval=1e-5, spend=1.5))
    plain = sum(run.plan.flops for run in plan_study(BOTH, sweep.budgets, [0], sweep.grid).runs)
    log, _ = simulate(sweep, BOTH, law(0.01))
    assert "spend limit" in log[-1].reason
    assert 1.3 * plain < spent(log, BOTH) <= 1.5 * plain
    more = replace(sweep, adapt=AdaptConfig(True, interval=1e-5, spend=2.0))
    longer, _ = simulate(more, BOTH, law(0.01), log)
    assert longer[: len(log)] == log, "the past stays"
    assert 1.5 * plain < spent(longer, BOTH) <= 2.0 * plain


def test_every_decision_is_repeated_from_the_records_of_its_time() -> None:
    """Also one that was taken before a budget joined and the target changed; records of later runs do not count."""
    first = sweep_of([2e19], AdaptConfig(True, interval=0.006, spend=1.5))
    log, _ = simulate(first, BOTH, law(0.01))
    sweep = sweep_of([6e18, 2e19], AdaptConfig(True, interval=0.004, spend=2.0))
    log, rows = simulate(sweep, BOTH, law(0.01), log)
    assert {d.kind for d in log} >= {"grid", "seeds", "stop"}
    assert replayed(sweep, BOTH, log, rows) is None
    again = [decisions.from_json(json.loads(json.dumps(d.to_json()))) for d in log]
    assert again == log
    assert replayed(sweep, BOTH, again, rows[::-1]) is None, "in whatever order records are read"
    changed = [{**row, "loss": row["loss"] + 0.5 * (i < 3)} for i, row in enumerate(rows)]
    assert replayed(sweep, BOTH, log, changed) is not None


def test_a_crash_at_any_point_changes_nothing() -> None:
    sweep = sweep_of([6e18, 2e19])
    log, _ = simulate(sweep, BOTH, law(0.01))
    for cut in (1, len(log) // 2, len(log) - 1):
        whole = [d for d in log if d.round <= log[cut - 1].round]
        assert simulate(sweep, BOTH, law(0.01), whole)[0] == log


def test_diverged_runs_are_left_out_and_unfinished_ones_are_waited_for() -> None:
    sweep = sweep_of([6e18])
    log = next_round(sweep, BOTH, [], [])
    runs = plan_of_log(log, BOTH).runs
    rows = [record_of(run, law(0.005)(run)) for run in runs]
    rows[0] = record_of(runs[0], math.nan, "diverged")
    assert next_round(sweep, BOTH, log, rows)
    with pytest.raises(AssertionError, match="unfinished"):
        next_round(sweep, BOTH, log, rows[:-1])


def test_a_study_of_one_arm_narrows_its_own_vertices() -> None:
    arms = arms_of(BaselineConfig())
    sweep = replace(sweep_of([6e18], AdaptConfig(True, interval=0.003, spend=10.0)), arms={"baseline": []})
    log, rows = simulate(sweep, arms, law(0.005))
    optimum = fit_study(rows, "flops_per_token").curves[0].optimum
    assert optimum
    assert (optimum.loss_high - optimum.loss_low) / 2 <= 0.003 * optimum.loss
    assert "seeds" in {d.kind for d in log}


def test_adaptive_grids_meet_the_truth_better_than_plain_ones() -> None:
    """The reason for it all: with the prior far off, plain grids have no optimum to show and adaptive ones do."""
    sweep = sweep_of([6e18, 2e19], replace(ADAPT, interval=0.5))
    plain = [record_of(r, law(0.002, ratio=1500)(r)) for r in plan_study(BOTH, sweep.budgets, [0], sweep.grid).runs]
    assert all(c.refusal for c in fit_study(plain, "flops_per_token").curves)
    _, rows = simulate(sweep, BOTH, law(0.002, ratio=1500))
    for curve in fit_study(rows, "flops_per_token").curves:
        truth = math.sqrt(curve.budget / 3 / 750)
        assert curve.optimum
        assert curve.optimum.x == pytest.approx(truth, rel=0.15)


def test_routed_arms_grow_in_depth_before_width() -> None:
    """At equal FLOPs per token: as wide as the dense model, and as much deeper as the blocks are cheaper."""
    for growth, deeper in (("even", False), ("depth", True)):
        runs = plan_study(BOTH, [6e18], [0], replace(sweep_of([6e18]).grid, growth=growth)).runs
        dense, routed = ([r.plan for r in runs if r.plan.arm == arm] for arm in BOTH)
        for ours, theirs in zip(routed, dense, strict=True):
            assert ours.flops_per_token == pytest.approx(theirs.flops_per_token, rel=0.1)
            assert (ours.n_layers > 1.4 * theirs.n_layers and ours.d_model < 1.1 * theirs.d_model) == deeper
            assert ours.n_layers % 2 == 0


@pytest.mark.parametrize(("vocab", "T", "most"), [(256, 256, 1.19), (32000, 2048, 1.145)])
@pytest.mark.parametrize("model", [BaselineConfig(), MoDConfig()])
def test_the_ladder_is_fine_in_flops_per_token(model: Any, vocab: int, T: int, most: float) -> None:
    data = replace(DATA, vocab_size=vocab, sequence_length=T)
    rungs = rungs_of(Config(model=model, data=data))
    large = sorted(f for s, f in rungs.items() if ledger(with_shape(BaselineConfig(), s), data).params_total > 1e4)
    assert large[-1] > 5e9
    gaps = [b / a for a, b in itertools.pairwise(large) if vocab == 256 or a > 1e6]
    assert max(gaps) <= most


def test_sizes_of_their_own_are_refused() -> None:
    pinned = {"a": lambda budget: replace(BOTH["baseline"](budget), size="220m")}
    with pytest.raises(UserError, match="arm a has a size of its own"):
        next_round(sweep_of([6e18]), pinned, [], [])
