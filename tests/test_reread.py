"""A finished study under another convention: against the exact optimum of a known surface, and against the ledgers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.optimize

from modexp.analysis.isoflop import fit_study
from modexp.analysis.points import select
from modexp.analysis.records import records
from modexp.analysis.reread import at_equal_flops, recount
from modexp.cli import run as modexp
from modexp.config.data import DataConfig
from modexp.config.model import BaselineConfig
from modexp.config.root import Config
from modexp.config.routing import MoDConfig
from modexp.config.study import BudgetConfig
from modexp.errors import UserError
from modexp.flops.ledger import CONVENTIONS
from modexp.kinds import ledger
from modexp.plan.run import plan_run
from modexp.runs import RunDir, create
from modexp.wording import budget_text

# E, A, B, alpha, beta of L = E + A/N^alpha + B/D^beta: a course exercise; Hoffmann et al. 2022
EXERCISE = (2.69, 1606.3, 3210.6, 0.34, 0.36)
CHINCHILLA = (1.69, 406.4, 410.7, 0.34, 0.28)
Cost = Callable[[float], float]  # training FLOPs per token of a model of N parameters


def planned_cost(n: float) -> float:
    return 6 * n


def with_embedding(n: float) -> float:
    """N leaves the embedding out, the other convention counts it: width grows as the cube root of N."""
    return 6 * (n + 9e4 * n ** (1 / 3))


def loss_at(n: float, d: float, surface: tuple[float, ...]) -> float:
    e, a, b, alpha, beta = surface
    return e + a / n**alpha + b / d**beta


def exact_optimum(budget: float, cost: Cost, surface: tuple[float, ...]) -> float:
    """N of lowest loss where cost(N) D is the budget, by search: no closed form, and nothing of modexp's."""

    def on_budget(log_n: float) -> float:
        return loss_at(math.exp(log_n), budget / cost(math.exp(log_n)), surface)

    start = min(np.linspace(10, 28, 400), key=on_budget)
    found = scipy.optimize.minimize_scalar(on_budget, bracket=(start - 0.1, start, start + 0.1), tol=1e-10)
    return math.exp(found.x)


def study(budgets: tuple[float, ...], surface: tuple[float, ...], other: Cost | None, **more: Any):
    """Planned at C = 6 N D on +-3x grids about the optimum there; ``flops`` as ``other`` counts them."""
    rows = []
    for budget in budgets:
        for n in exact_optimum(budget, planned_cost, surface) * np.geomspace(1 / 3, 3, 7):
            tokens = budget / planned_cost(n)
            row = {
                "run": f"{more.get('arm')}-{budget:g}-{n:g}",
                "arm": "baseline",
                "budget": budget,
                "seed": 0,
                "status": "done",
                "params_total": float(n),
                "tokens": tokens,
                "loss": loss_at(n, tokens, surface),
                "flops_consumed": budget,
                **more,
            }
            rows.append(row if other is None else {**row, "flops_reread": other(n) * tokens})
    return rows


@pytest.mark.parametrize("surface", [EXERCISE, CHINCHILLA], ids=["exercise", "chinchilla"])
@pytest.mark.parametrize(
    ("budgets", "size_off", "exponent_off"),
    [((1e18, 1e19), 0.025, 0.019), ((1e18, 4e18, 1.6e19), 0.016, 0.009), ((1e18, 4e18, 1.6e19, 6.4e19), 0.025, 0.008)],
)
def test_optima_and_exponent_are_those_of_the_surface_under_the_other_convention(
    budgets: tuple[float, ...], surface: tuple[float, ...], size_off: float, exponent_off: float
):
    """What remains is the parabola's own error (under 1 % here) and what a quadratic surface cannot follow.

    Optima move by 5-45 % between the two conventions, and the exponent by .008 to .04.
    """
    fit = fit_study(study(budgets, surface, with_embedding))
    truth = [exact_optimum(curve.flops, with_embedding, surface) for curve in fit.curves]
    for curve, exact in zip(fit.curves, truth, strict=True):
        assert curve.optimum is not None, curve.refusal
        assert curve.optimum.x == pytest.approx(exact, rel=size_off)
    log_c = np.log([curve.flops for curve in fit.curves])
    line = float(np.polyfit(log_c, np.log(truth), 1)[0])
    assert fit.exponents[0].exponent == pytest.approx(line, abs=exponent_off)
    planned = surface[4] / (surface[3] + surface[4])
    assert planned - line > 0.008, (planned, line)
    # left alone, as if the runs of a budget still had equal FLOPs, the smallest budget keeps its old optimum
    alone = fit_study(study(budgets, surface, None)).curves[0].optimum
    assert alone is not None
    assert truth[0] / alone.x > 1.15, (truth[0], alone.x)


def test_losses_move_to_where_the_surface_has_them():
    rows = study((1e18, 4e18, 1.6e19), CHINCHILLA, with_embedding)
    before = select(rows, "params")[0]
    after = at_equal_flops(before, "baseline")
    assert [p.run for p in after] == [p.run for p in before]
    for p in after:
        assert p.loss == pytest.approx(loss_at(p.x, p.flops / with_embedding(p.x), CHINCHILLA), abs=0.005)
    assert max(abs(p.loss - q.loss) for p, q in zip(after, before, strict=True)) > 0.07
    for budget in (1e18, 4e18, 1.6e19):
        spent = [p.flops for p in before if p.budget == budget]
        (equal,) = {p.flops for p in after if p.budget == budget}
        assert equal == pytest.approx(math.exp(np.log(spent).mean()), rel=1e-12)


def test_a_run_keeps_its_own_residual():
    """Bad luck of one run is bad luck under every convention; a smoother would wipe it out."""
    rows = study((1e18, 4e18, 1.6e19), CHINCHILLA, with_embedding)
    clean = at_equal_flops(select(rows, "params")[0], "baseline")
    rows[10]["loss"] += 0.02
    bad = at_equal_flops(select(rows, "params")[0], "baseline")
    moved = [b.loss - c.loss for b, c in zip(bad, clean, strict=True)]
    assert moved[10] == pytest.approx(0.02, abs=0.004)
    assert max(abs(m) for i, m in enumerate(moved) if i != 10) < 0.005


def dearer(n: float) -> float:
    return 1.3 * planned_cost(n)


def test_arms_are_compared_at_the_baselines_flops():
    """An arm whose other count is 1.3 times the baseline's is read at the baseline's FLOPs: it gets fewer tokens."""
    budgets = (1e18, 4e18, 1.6e19)
    rows = study(budgets, CHINCHILLA, planned_cost)
    rows += study(budgets, CHINCHILLA, dearer, arm="mod", routed=True)
    fit = fit_study(rows)
    for budget in budgets:
        base, mod = fit.curve("baseline", budget), fit.curve("mod", budget)
        assert base is not None
        assert mod is not None
        assert base.flops == mod.flops == pytest.approx(budget, rel=1e-12)
        assert mod.optimum is not None
        exact = exact_optimum(budget, dearer, CHINCHILLA)
        assert mod.optimum.x == pytest.approx(exact, rel=0.04)
        best = loss_at(exact, budget / dearer(exact), CHINCHILLA)
        assert mod.optimum.loss == pytest.approx(best, abs=0.008)


@pytest.mark.parametrize(("budgets", "keep", "said"), [((1e18,), 7, "7 runs"), ((1e18, 1e19), 5, "5 runs")])
def test_too_little_to_tell_what_a_flop_is_worth_is_a_sentence(budgets: tuple[float, ...], keep: int, said: str):
    rows = study(budgets, CHINCHILLA, with_embedding)[-keep:]
    with pytest.raises(UserError, match="cannot tell what a FLOP is worth") as caught:
        fit_study(rows)
    assert f"and {said} of baseline at 1 budget cannot" in caught.value.sentence
    assert caught.value.next_step.startswith("sweep another budget, or read the study as it was planned")


# --- real run directories ------------------------------------------------------------------------------------

DATA = DataConfig(sequence_length=64, vocab_size=256)
SHAPES = ((2, 16), (2, 32), (2, 48), (4, 48), (4, 64))
CAPACITY = 0.25
REALISED = 0.3  # what the causal router took


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of two arms, two budgets, five sizes; planned and stored as a sweep does, its results written by hand."""
    folder = tmp_path_factory.mktemp("runs")
    for budget in (1e11, 1e12):
        for layers, width in SHAPES:
            shape = {"n_layers": layers, "d_model": width, "n_heads": 2}
            for model in (BaselineConfig(**shape), MoDConfig(**shape, capacity=CAPACITY)):
                config = Config(model=model, data=DATA, budget=BudgetConfig(budget))
                plan = plan_run(config)
                run = RunDir(folder / "s" / f"{model.kind}-{width}-{layers}-{budget:g}")
                create(run, config, plan, {"content_hash": "none"})
                write_result(run, plan.to_json(), model)
    return folder


def write_result(run: RunDir, plan: dict[str, Any], model: BaselineConfig) -> None:
    result = {
        "status": "done",
        "loss": loss_at(plan["params_total"], plan["tokens"], (1.0, 20.0, 40.0, 0.3, 0.3)),
        "steps": plan["steps"],
        "tokens": plan["tokens"],
        "flops_consumed": plan["sequences"] * plan["training_flops_per_sequence"],
    }
    if isinstance(model, MoDConfig):
        layers = range(1, model.n_layers, 2)
        result["validation"] = {"capacity": REALISED, **{f"capacity.layer{i}": REALISED for i in layers}}
        result["flops_per_token_causal"] = ledger(replace(model, capacity=REALISED), DATA).forward() / 64
    run.result_path.write_text(json.dumps(result))


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_recount_is_the_ledgers(runs_dir: Path, convention: str):
    plain = {r["run"]: r for r in records(runs_dir / "s") if r["budget"] == 1e11}
    assert len(plain) == 10
    for name, row in plain.items():
        run = RunDir(runs_dir / "s" / name)
        model, sequences = run.config().model, row["tokens"] // 64
        books, twin = ledger(model, DATA), BaselineConfig(n_layers=row["n_layers"], d_model=row["d_model"], n_heads=2)
        found = recount(run, row, convention)
        assert found["flops_reread"] == sequences * books.training(convention)
        assert found["flops_per_token"] == books.forward(convention) / 64
        assert found["relative_flops"] == books.forward(convention) / ledger(twin, DATA).forward(convention)
        if row["arm"] == "baseline":
            assert "flops_per_token_causal" not in found
            assert found["relative_flops"] == 1
        else:
            realised = ledger(replace(model, capacity=REALISED), DATA).forward(convention) / 64
            assert found["flops_per_token_causal"] == pytest.approx(realised, rel=1e-12)
        if convention == "matmul":
            assert {key: value for key, value in found.items() if key != "flops_reread"}.items() <= row.items()
            assert found["flops_reread"] == row["flops_consumed"]


def fitted(runs_dir: Path, out: Path, capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    flags = ["--runs-dir", str(runs_dir), "--out", str(out), "--resamples", "0", "--json"]
    assert modexp(["fit", "s", *flags, *words]) == 0
    return json.loads(capsys.readouterr().out)


def test_under_the_planned_convention_nothing_moves(runs_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert records(runs_dir / "s", convention="matmul") == records(runs_dir / "s")
    plain = fitted(runs_dir, tmp_path, capsys)
    assert fitted(runs_dir, tmp_path, capsys, "--convention", "matmul") == plain
    other = fitted(runs_dir, tmp_path, capsys, "--convention", "kaplan")
    assert [c["arm"] for c in other["curves"]] == [c["arm"] for c in plain["curves"]]
    losses = [[p["loss"] for c in fit["curves"] for p in c["points"]] for fit in (plain, other)]
    assert max(np.abs(np.subtract(*losses))) > 0.01
    assert {p.name for p in tmp_path.iterdir()} == {
        "fit.json", "methods.md", "fit-matmul.json", "methods-matmul.md", "fit-kaplan.json", "methods-kaplan.md"
    }  # fmt: skip
    assert "under the convention `kaplan`" in (tmp_path / "methods-kaplan.md").read_text()
    assert "moved to equal FLOPs" in (tmp_path / "methods-kaplan.md").read_text()
    assert "moved to equal FLOPs" not in (tmp_path / "methods-matmul.md").read_text()


def test_all_conventions_side_by_side(runs_dir: Path, capsys: pytest.CaptureFixture[str]):
    assert modexp(["fit", "s", "--runs-dir", str(runs_dir), "--convention", "all", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == list(CONVENTIONS)
    assert found["matmul"] == json.loads(json.dumps(fit_study(records(runs_dir / "s")).to_json()))
    means = {name: [c["points"][0]["flops"] for c in fit["curves"]] for name, fit in found.items()}
    assert all(k < m for k, m in zip(means["kaplan"], means["matmul"], strict=True))


def test_all_conventions_as_a_table(runs_dir: Path, capsys: pytest.CaptureFixture[str]):
    assert modexp(["fit", "s", "--runs-dir", str(runs_dir), "--convention", "all"]) == 0
    out = capsys.readouterr().out
    assert "the same runs by params under every convention" in out
    assert all(out.count(f" {name} ") == 2 for name in CONVENTIONS), "a row an arm"


def test_all_conventions_leave_out_what_they_are_asked_to(runs_dir: Path, capsys: pytest.CaptureFixture[str]):
    words = ["fit", "s", "--runs-dir", str(runs_dir), "--convention", "all"]
    assert modexp([*words, "--json", "--drop-highest", "1"]) == 0
    for fit in json.loads(capsys.readouterr().out).values():
        reasons = [d["reason"] for d in fit["dropped"]]
        assert sum("among the 1 highest" in reason for reason in reasons) == 2
    assert modexp([*words, "--nearest", "4"]) == 0
    assert capsys.readouterr().err.count("--nearest 4 is less than the 5 sizes") == len(CONVENTIONS)
    for flag, value in (("--resamples", "5"), ("--out", "x")):
        assert modexp([*words, flag, value]) == 2
        assert f"{flag} {value} has no effect" in capsys.readouterr().err


def test_all_conventions_show_one_budget(runs_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any):
    rows = records(runs_dir / "s")
    largest = max(r["budget"] for r in rows)
    for r in rows:
        if r["arm"] == "mod" and r["budget"] == largest:
            r["loss"] = 3 - r["params_total"] / 1e9
    monkeypatch.setattr("modexp.analysis.records.records", lambda *_: rows)
    assert modexp(["fit", "s", "--runs-dir", str(runs_dir), "--convention", "all"]) == 0
    out = capsys.readouterr().out
    assert f"optimum at {budget_text(largest)}" in out
    ours = [line for line in out.splitlines() if line.split()[:1] == ["mod"]]
    assert len(ours) == len(CONVENTIONS), out
    assert all(line.split()[4] == "-" for line in ours), "no optimum of a smaller budget in its place"


def test_an_unknown_convention_is_a_sentence(runs_dir: Path, capsys: pytest.CaptureFixture[str]):
    assert modexp(["fit", "s", "--runs-dir", str(runs_dir), "--convention", "6nd"]) == 2
    assert "--convention=6nd" in capsys.readouterr().err
