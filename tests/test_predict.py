"""What a study predicts, against the exact optimum of the surface that its losses were read off."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from modexp.analysis.predict import predict, reach_words
from modexp.analysis.records import records
from modexp.errors import UserError
from tests.synthetic import make_study, surface

BUDGETS = [1e13, 4e13, 1.6e14]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Losses with .2 % of noise."""
    rng = np.random.default_rng(0)
    return make_study(
        tmp_path_factory.mktemp("runs"),
        BUDGETS,
        lambda plan: surface(plan) * (1 + 0.002 * rng.standard_normal()),
    )


def best_at(flops: float) -> tuple[float, float]:
    """(tokens, loss) of the best baseline at a budget: a search over the ladder, which knows nothing of fits."""
    from modexp.cli.compose import configuration
    from modexp.kinds import ledger
    from modexp.plan.ladder import ladder, with_shape

    config = configuration(["model=baseline", "data=python", "data.sequence_length=64"])
    found = []
    for shape in ladder():
        books = ledger(with_shape(config.model, shape), config.data)
        tokens = flops / books.training() * 64
        found.append((1.0 + 90.0 / books.params_total**0.4 + 300.0 / tokens**0.4, tokens, books.params_total))
    loss, tokens, _ = min(found)
    return tokens, loss


def test_the_truth_lies_in_the_intervals(study: Path):
    flops = 6e14
    baseline = predict(records(study), flops)[0]
    assert baseline.arm == "baseline"
    assert baseline.reach == pytest.approx(flops / 1.6e14)
    tokens, loss = best_at(flops)
    rung = 1.15**0.5  # the search knows the optimum to half a step of the ladder
    assert baseline.tokens_interval[0] / rung <= tokens <= baseline.tokens_interval[1] * rung
    assert baseline.loss_interval[0] <= loss <= baseline.loss_interval[1]
    assert baseline.loss == pytest.approx(loss, rel=0.01)
    assert math.log(baseline.params_interval[1] / baseline.params_interval[0]) < 1.0  # and they say something
    assert baseline.warnings == ()


def test_far_extrapolation_is_said(study: Path):
    near, far = (predict(records(study), flops, resamples=50)[0] for flops in (1e15, 1e18))
    assert any("6.25e+03x beyond the largest budget" in w for w in far.warnings)
    assert far.params_interval[1] / far.params > near.params_interval[1] / near.params


def test_reach_is_always_told(study: Path, modexp_cli: Callable[..., int], capsys: pytest.CaptureFixture[str]):
    words = ["predict", study.name, "--runs-dir", str(study.parent), "--resamples", "0"]
    for flops, said in (("6.4e14", "mod: 4x the largest budget that has an optimum: an extrapolation"),
                        ("5e12", "mod: 0.5x the smallest budget that has an optimum: below what was run"),
                        ("8e13", "mod: 0.5x the largest budget that has an optimum: within what was run")):  # fmt: skip
        assert modexp_cli(*words, "--flops", flops) == 0
        assert any(line.startswith(said) for line in capsys.readouterr().out.splitlines())


def test_reach_counts_flops_as_the_prediction_does(study: Path):
    largest = max(r["flops_reread"] for r in records(study, convention="kaplan"))
    for found in predict(records(study, convention="kaplan"), largest, resamples=0):
        assert found.reach == pytest.approx(1, rel=0.1)


def test_warnings_of_every_fit_are_forwarded(study: Path):
    two = [r for r in records(study) if r["budget"] < 1e14]
    assert [w for w in predict(two, 1e13, resamples=0)[0].warnings if "two budgets" in w] == [
        "two budgets: the line goes through both, and nothing checks it"
    ]
    flat = [{**r, "loss": r["loss"] - 1.5} for r in records(study)]
    warned = predict(flat, 1e12, resamples=0)[0].warnings
    assert any(w.startswith("loss: the irreducible loss E came out as zero") for w in warned)
    assert any("below the smallest budget" in w for w in predict(two, 1e11, resamples=0)[0].warnings)


def test_without_an_optimum_the_json_is_json(study: Path):
    rows = [r for r in records(study) if r["arm"] == "mod" or r["budget"] == 1e13]
    rows = [r | {"loss": 3.0 - r["params_total"] / 1e9} if r["arm"] == "baseline" else r for r in rows]
    found = predict(rows, 1e14, resamples=0)
    assert (found[0].reach, reach_words(found[0])) == (None, "nothing to extrapolate from")
    json.dumps([asdict(f) for f in found], allow_nan=False)


def test_an_arm_that_grew_in_depth_is_predicted_in_its_own_shapes(tmp_path: Path):
    from modexp.cli.predict import runnable
    from modexp.plan.ladder import ladder

    study = make_study(tmp_path / "runs", BUDGETS[:2], overrides=["grid.growth=depth"])
    plan = runnable(study, "mod", 300_000, 1e14, "matmul")["plan"]
    shape = plan["n_layers"], plan["d_model"], plan["n_heads"]
    assert shape not in ladder()
    dense = runnable(study, "baseline", 300_000, 1e14, "matmul")["plan"]
    assert (dense["n_layers"], dense["d_model"], dense["n_heads"]) in ladder()
    assert plan["n_layers"] > dense["n_layers"]


def test_shared_trunks_are_warned_of(study: Path):
    rows = [r | {"trunk": "another"} if r["arm"] == "mod" and r["budget"] < 1e14 else r for r in records(study)]
    dense, mod = predict(rows, 6e14, resamples=0)
    assert dense.warnings == ()
    assert any("share the trunk" in w and "too narrow" in w for w in mod.warnings)


def test_the_command_can_be_pasted(study: Path, modexp_cli: Callable[..., int], capsys: pytest.CaptureFixture[str]):
    assert modexp_cli("predict", study.name, "--runs-dir", str(study.parent), "--flops", "6e14", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [f["arm"] for f in found] == ["baseline", "mod"]
    for f in found:
        program, *words = shlex.split(f["run"]["command"])
        assert program == "modexp"
        assert modexp_cli(*words, "--cfg", "job") == 0
        printed = capsys.readouterr().out
        assert f"n_layers: {f['run']['plan']['n_layers']}" in printed
        assert f"d_model: {f['run']['plan']['d_model']}" in printed
        assert f["run"]["plan"]["params_total"] == pytest.approx(f["params"], rel=0.2)
        assert f["run"]["plan"]["budget"] == 6e14


def test_one_budget_predicts_nothing(
    tmp_path: Path, modexp_cli: Callable[..., int], capsys: pytest.CaptureFixture[str]
):
    study = make_study(tmp_path / "runs", [1e13])
    assert modexp_cli("predict", study.name, "--flops", "1e15") == 2
    assert "baseline: no size: an exponent needs 2 budgets with an optimum, got 1" in capsys.readouterr().err


def test_flops_must_be_positive(study: Path):
    with pytest.raises(UserError, match=r"--flops -1\.0 is not a positive number"):
        predict(records(study), -1.0)
