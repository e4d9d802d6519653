"""The paper's figures: sweep files plan their arms, figures show the numbers given and say what is missing."""

from __future__ import annotations

import csv
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import modexp
from modexp.analysis.isoflop import fit_study
from modexp.analysis.records import records
from modexp.cli.compose import arms_of, configuration, load_sweep
from modexp.config.routing import RoutedConfig
from modexp.errors import UserError
from modexp.plan.grid import plan_study
from modexp.plan.ladder import ladder
from modexp.plan.run import resolve_shape
from modexp.plots import capacity, curves, frontier, predictor, routing, sampling, style
from modexp.train.loop import train
from tests.test_plots import learning, study, texts
from tests.test_train import MOD, planned

Cli = Callable[..., int]
Captured = pytest.CaptureFixture[str]


def read(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def floats(rows: list[dict[str, str]], key: str) -> list[float | None]:
    return [float(row[key]) if row[key] else None for row in rows]


# --- sweep files --------------------------------------------------------------------------------------------

SWEEPS = {
    "figure3": {"baseline", "mod", "mod_50", "stochastic_50"},
    "figure3_tuning": {"baseline", *(f"mod_{c}_every_{e}" for c in (6, 12, 25, 50, 75, 95) for e in (1, 2))},
    "figure4": {"baseline", "mod"},
    "figure6": {"baseline", "mod"},
    "routing": {"baseline", "mod", "mod_token_choice", "mod_stochastic", "mod_threshold"},
    "sampling": {"baseline", "mod_none", "mod_auxiliary", "mod_predictor"},
    "depth_width": {"baseline", "mod", "mod_deep", "mod_wide"},
}


@pytest.mark.parametrize("name", SWEEPS)
def test_sweep_plans_the_papers_arms(name: str) -> None:
    _, sweep = load_sweep(name, [], [])
    arms = arms_of(name, sweep)
    assert set(arms) == SWEEPS[name]
    assert sweep.budgets == ([6e18, 2e19, 1e20] if name == "figure4" else [6e18])
    config = arms["baseline"](6e18)
    assert (config.data.path, config.data.sequence_length, config.optim.batch_size) == ("allenai/c4", 2048, 128)
    plan = plan_study(arms, sweep.budgets[:1], [0], sweep.grid)
    assert not plan.dropped
    assert len(plan.runs) == len(arms) * sweep.grid.points
    for run in plan.runs:
        assert abs(run.plan.achieved - 1) < 1e-3


def test_tuning_arms_are_what_their_names_say() -> None:
    name, sweep = load_sweep("figure3_tuning", [], [])
    for arm, at in arms_of(name, sweep).items():
        model = at(6e18).model
        if isinstance(model, RoutedConfig):
            assert arm == f"mod_{math.floor(100 * model.capacity)}_every_{model.every}"


def test_depth_and_width_stand_at_the_same_flops() -> None:
    name, sweep = load_sweep("depth_width", [], [])
    runs = [run.plan for run in plan_study(arms_of(name, sweep), [6e18], [0], sweep.grid).runs]
    usual, deep, wide = ([r for r in runs if r.arm == arm] for arm in ("mod", "mod_deep", "mod_wide"))
    for u, d, w in zip(usual, deep, wide, strict=True):
        assert d.flops_per_token == pytest.approx(u.flops_per_token, rel=0.08)
        assert w.flops_per_token == pytest.approx(u.flops_per_token, rel=0.08)
        assert d.n_layers > 1.4 * u.n_layers > 1.4 * 1.2 * w.n_layers
        assert d.d_model < u.d_model < w.d_model


def test_depth_of_the_ladder() -> None:
    assert ladder(1.0) == ladder()
    for factor in (0.5, 2.0):
        large = [(L, d) for L, d, _ in ladder(factor) if 512 <= d <= 2048]
        aspect = [L / (factor * math.sqrt(d) / 2) for L, d in large]
        assert np.exp(np.mean(np.log(aspect))) == pytest.approx(1.0, abs=0.1)
    one = resolve_shape(configuration(["model=mod", "size=225m", "data=c4", "depth=2"]))
    assert one.model.shape[0] > 20
    assert one.depth == 1.0, "the shape is filled, and says all"


def test_depth_beside_a_shape_is_refused() -> None:
    with pytest.raises(UserError, match=r"depth=2\.0 and model.d_model=64 both set the shape"):
        resolve_shape(configuration(["model.d_model=64", "model.n_layers=2", "model.n_heads=2", "depth=2"]))
    with pytest.raises(UserError, match=r"depth=9\.0 is not in"):
        configuration(["depth=9"])


# --- figures of records -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stem", "sized"), [("frontier", True), ("mode", False)])
def test_frontier_is_relative_to_the_baselines_optimum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stem: str, sized: bool
) -> None:
    figures: list[Any] = []
    save = style.save
    monkeypatch.setattr(style, "save", lambda figure, path: figures.append(figure) or save(figure, path))
    given = study()
    drawn = frontier.draw(given, tmp_path, stem, sized=sized, title="t")
    assert [p.name for p in drawn.paths] == [f"{stem}.png", f"{stem}.svg", f"{stem}.csv"]
    assert drawn.note == ""
    rows, fit = read(drawn.paths[2]), fit_study(given, "flops_per_token")
    assert floats(rows, "loss") == [r["loss"] for r in given]
    assert floats(rows, "params_total") == [r["params_total"] for r in given]
    for row, record in zip(rows, given, strict=True):
        best = fit.curve("baseline", record["budget"]).optimum  # type: ignore[union-attr]
        assert best is not None
        assert float(row["relative_flops_per_token"]) == record["flops_per_token"] / best.x
    axes = figures[0].axes[0]
    if sized:
        discs = [c for c in axes.collections if len(c.get_sizes())]
        places = [tuple(map(float, xy)) for disc in discs for xy in disc.get_offsets()]
        areas = [float(area) for disc in discs for area in disc.get_sizes()]
        ratio = np.array(areas) / [r["params_total"] for r in given]
        np.testing.assert_allclose(ratio, ratio[0])
    else:
        marks = [line for line in axes.lines if line.get_marker() in ("o", "s")]
        places = [pair for line in marks for pair in zip(line.get_xdata(), line.get_ydata(), strict=True)]
    assert places == list(zip(floats(rows, "relative_flops_per_token"), floats(rows, "loss"), strict=True))


def test_half_a_frontier_says_what_is_missing(tmp_path: Path) -> None:
    given = study()
    for r in given[:2]:
        r |= {"status": "running", "loss": None}
    note = frontier.draw(given, tmp_path).note
    assert note.splitlines()[:2] == ["18 of 20 runs (2 running)", "no optimum: baseline at 6e18"]
    assert "relative to the best baseline run" in note
    assert "18 of 20 runs (2 running)" in texts(tmp_path / "frontier.svg")
    with pytest.raises(UserError, match="no finished run to draw: 20 planned"):
        frontier.draw([r | {"status": "planned"} for r in given], tmp_path / "none")
    assert not (tmp_path / "none").exists()


def tuning() -> list[dict[str, Any]]:
    """Best at 12.5 %, every second block better than every block by 0.05."""
    given = [{**r, "kind": "baseline"} for r in study((6e18,), ("baseline",))]
    for every in (1, 2):
        for share in (0.0625, 0.125, 0.5):
            lift = 0.02 * math.log2(share / 0.125) ** 2 + (0.05 if every == 1 else 0.0)
            arm = f"mod_{share}_{every}"
            for r in study((6e18,), ("mod",)):
                extra = {"run": f"{arm}-{r['run']}", "arm": arm, "kind": "mod", "capacity": share, "every": every}
                given.append({**r, **extra, "loss": r["loss"] + lift})
    return given


def test_capacity_draws_fitted_optima_by_frequency(tmp_path: Path) -> None:
    given = tuning()
    drawn = capacity.draw(given, tmp_path, title="t")
    assert drawn.note == ""
    rows, fit = read(tmp_path / "capacity.csv"), fit_study(given, "flops_per_token")
    assert len(rows) == 7
    for row in rows:
        best = fit.curve(row["arm"], 6e18).optimum  # type: ignore[union-attr]
        assert best is not None
        assert (float(row["loss"]), float(row["loss_high"])) == (best.loss, best.loss_high)
    svg = texts(tmp_path / "capacity.svg")
    for text in ("6e18  mod, every block", "6e18  mod, every 2nd block", "6e18  baseline", "12.5 %", "50 %"):
        assert f"<!-- {text} -->" in svg, text


def test_half_a_capacity_study(tmp_path: Path) -> None:
    given = tuning()
    for r in given:
        if r["arm"] == "mod_0.5_1":
            r |= {"status": "planned", "loss": None}
        if r["arm"] == "mod_0.5_2" and r["params_total"] > 3e8:
            r |= {"status": "failed", "loss": None}
    note = capacity.draw(given, tmp_path).note
    assert note.splitlines()[1] == "no finished run: mod_0.5_1"
    assert "29 of 35 runs (5 planned, 1 failed)" in note
    rows = {row["arm"]: row for row in read(tmp_path / "capacity.csv")}
    finished = [r["loss"] for r in given if r["arm"] == "mod_0.5_2" and r["status"] == "done"]
    assert float(rows["mod_0.5_2"]["loss"]) == min(finished)
    assert rows["mod_0.5_2"]["is_fitted"] == "False"
    assert "<!-- best run (no optimum fitted) -->" in texts(tmp_path / "capacity.svg")
    with pytest.raises(UserError, match="no arm of the study has a capacity"):
        capacity.draw(study(), tmp_path)


def causal_study() -> list[dict[str, Any]]:
    given = []
    for arm, topk, cost in (("baseline", None, None), ("mod_none", 0.0, None), ("mod_predictor", 0.0, 0.01)):
        for r in study((6e18,), ("baseline" if topk is None else "mod",)):
            r |= {"run": f"{arm}-{r['run']}", "arm": arm, "loss_topk": None, "routed": topk is not None}
            if topk is not None:
                r |= {"loss_topk": r["loss"], "loss": None if cost is None else r["loss"] + cost}
                r["flops_per_token_causal"] = 1.1 * r["flops_per_token"]
            given.append(r)
    return given


def test_sampling_sets_causal_beside_top_k(tmp_path: Path) -> None:
    given = causal_study()
    assert sampling.draw(given, tmp_path).note == ""
    rows = read(tmp_path / "sampling.csv")
    assert floats(rows, "loss_topk") == [r["loss_topk"] for r in given]
    assert floats(rows, "loss_causal") == [r["loss"] for r in given]
    for row, r in zip(rows, given, strict=True):
        if row["arm"] == "mod_predictor":
            assert float(row["causal_over_topk"]) == pytest.approx(0.01 / r["loss_topk"])
            assert float(row["relative_flops_causal"]) == pytest.approx(1.1 * float(row["relative_flops_topk"]))
        else:
            assert row["causal_over_topk"] == ""
    given[-1] |= {"status": "running"}
    assert sampling.draw(given, tmp_path).note == "14 of 15 runs (1 running)"
    with pytest.raises(UserError, match="no finished run routes by top-k"):
        sampling.draw(given[:5], tmp_path)


# --- figures of metrics -------------------------------------------------------------------------------------


def test_accuracy_is_that_of_the_decisions_themselves() -> None:
    rng = np.random.default_rng(0)
    taken = np.zeros((50, 64), dtype=bool)
    taken[:, :8] = True
    for skill in (0.5, 0.9, 1.0):
        said = np.where(rng.random(taken.shape) < skill, taken, ~taken)
        precision, recall = (said & taken).sum() / said.sum(), (said & taken).sum() / taken.sum()
        found = predictor.accuracy_of(np.array([precision]), np.array([recall]), 8 / 64)
        assert found[0] == pytest.approx((said == taken).mean(), abs=1e-12)
    assert np.isnan(predictor.accuracy_of(np.zeros(1), np.zeros(1), 0.125))


def test_share_is_that_of_whole_tokens() -> None:
    assert predictor.share_of(0.125, 2048) == 0.125
    assert predictor.share_of(0.01, 64) == 1 / 64
    assert predictor.share_of([0.125, 0.5], 64) == pytest.approx(0.3125)
    assert predictor.share_of(None, 64) is None


def test_predictor_figure(tmp_path: Path) -> None:
    metrics = [{"step": 1, "train/loss": 3.0}]
    metrics += [{"step": s, "val/predictor_precision": 0.9, "val/predictor_recall": 0.001 * s} for s in (100, 200, 900)]
    run = {"run": "a", "arm": "mod", "budget": 6e18, "share": 0.125, "metrics": metrics}
    late = {**run, "run": "b", "metrics": metrics[:1]}
    experts = {**run, "run": "c", "share": None}
    drawn = predictor.draw([run, late, experts], tmp_path)
    assert drawn.note.splitlines() == [
        "1 of 3 runs with a predictor have not measured it yet",
        "no accuracy where a capacity is not a share of the tokens",
    ]
    rows = read(tmp_path / "predictor.csv")
    assert floats(rows, "recall") == [0.1, 0.2, 0.9] * 2
    assert floats(rows, "always_skip") == [0.875] * 3 + [None] * 3
    assert "<!-- always skip (87.5%) -->" in texts(tmp_path / "predictor.svg")
    with pytest.raises(UserError, match="none of 1 runs has measured its predictor"):
        predictor.draw([late], tmp_path)


def test_chosen_curves_have_steps_beside_them(tmp_path: Path) -> None:
    runs = learning(50)
    for run, flops, rate in zip(runs, (1e12, 2e12, 1e12), (2.0, 1.0, None), strict=True):
        run |= {"flops_per_step": flops, "steps_per_second": rate}
    paths = curves.draw(runs, tmp_path)
    assert paths[-1].name == "curves_steps.csv"
    assert floats(read(paths[-1]), "flops_per_step") == [1e12, 2e12, 1e12]
    svg = texts(paths[1])
    for text in ("#2 large (1-step mean)", "2e12  (2.00x)", "1  (0.50x)", "not measured yet", "steps per second"):
        assert f"<!-- {text} -->" in svg, text


def test_a_pause_does_not_count_in_steps_per_second() -> None:
    metrics = [{"perf/tokens_per_s": v} for v in (1000.0, 1010.0, 3.0, 990.0, 1005.0)] + [{"step": 1}]
    assert curves.steps_per_second(metrics, 100) == 10.0
    assert curves.steps_per_second([], 100) is None


# --- routing ------------------------------------------------------------------------------------------------


def routed_text(pieces: list[str], seed: int = 0, **more: Any) -> routing.Text:
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal((2, len(pieces)))
    return routing.Text(pieces, (1, 3), weights > 0, weights, rng.random(len(pieces)), "the predictors", **more)


def test_routing_tables_are_what_was_decided(tmp_path: Path) -> None:
    pieces = [*"def $x$:\n\t", " naïve", "\ufffd", "你", "a longer piece"]
    text = routed_text(pieces, is_logit=True)
    routing.draw(text, tmp_path)
    rows = read(tmp_path / "routing.csv")
    assert [(r["token"], r["block"]) for r in rows[:3]] == [("d", "1"), ("d", "3"), ("e", "1")]
    np.testing.assert_array_equal([int(r["taken"]) for r in rows], text.taken.T.ravel())
    np.testing.assert_array_equal([float(r["router_weight"]) for r in rows], text.weights.T.ravel())
    tokens = read(tmp_path / "routing_tokens.csv")
    np.testing.assert_array_equal([float(r["engagement"]) for r in tokens], text.taken.mean(axis=0))
    np.testing.assert_array_equal([float(r["entropy"]) for r in tokens], text.entropy)
    assert f"<!-- {(text.weights > 0).mean():.1%} of the weights lie above 0.5 -->" in texts(tmp_path / "routing.svg")


def test_a_long_text_is_mapped_in_part_and_says_so(tmp_path: Path) -> None:
    note = routing.draw(routed_text(["x"] * 700), tmp_path, unit="byte").note
    assert "the map shows the first 640 of 700 bytes" in note
    assert len(read(tmp_path / "routing_tokens.csv")) == 700


def test_labels_of_tokens() -> None:
    found = [routing.label_of(piece) for piece in (" a", "\n", "\ufffd", "\x07", "你", "counterintuitive")]
    assert found == ["␣a", "↵", "□", "□", "□", "counterin…"]


def test_engagement_that_rises_with_entropy_correlates() -> None:
    taken = np.array([[0, 0, 1, 1], [0, 0, 0, 1]], dtype=bool)
    entropy = np.array([0.1, 0.1, 0.5, 2.0])
    text = routing.Text(list("abcd"), (1, 3), taken, taken * 1.0, entropy, "x")
    assert routing.correlation(text) == pytest.approx(1.0)
    flat = routing.Text(list("abcd"), (1, 3), taken | True, taken * 1.0, entropy, "x")
    assert routing.correlation(flat) is None


# --- the command, on real runs ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(documents: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of one dense and three routed runs of some hundred steps."""
    runs = tmp_path_factory.mktemp("runs") / "micro"
    tiny = ["data=files", f"data.paths=[{documents}/*.py]", "data.sequence_length=64", "data.validation_share=0.1"]
    tiny += ["tracker=none", "trainer.eval_sequences=8", "trainer.num_evals=2", "trainer.threads=1", "budget=2e9"]
    arms = {
        "baseline": ["model=baseline"],
        "mod": ["model=mod", "model.capacity=0.25"],
        "auxiliary": ["model=mod", "model.causal=auxiliary"],
        "none": ["model=mod", "model.causal=none"],
    }
    for arm, overrides in arms.items():
        run = planned(runs / arm, [*tiny, *MOD[1:], *overrides])
        train(run.path)
    return runs


@pytest.fixture
def micro(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "runs" / "micro")


def test_records_know_the_model(micro: Path) -> None:
    rows = {r["run"]: r for r in records(micro)}
    known = {name: [r[k] for k in ("kind", "capacity", "every", "causal")] for name, r in rows.items()}
    assert known["baseline"] == ["baseline", None, None, None]
    assert known["mod"] == ["mod", 0.25, 2, "predictor"]
    assert known["none"] == ["mod", 0.125, 2, "none"]


TEXT = "def main(words):\n    return 0\n"


@pytest.mark.parametrize(
    ("words", "written"),
    [
        (["frontier"], ["frontier.csv"]),
        (["mode"], ["mode.csv"]),
        (["capacity"], ["capacity.csv"]),
        (["sampling"], ["sampling.csv"]),
        (["predictor", "--run", "mod"], ["predictor.csv"]),
        (["curves", "--run", "mod", "--run", "baseline"], ["curves.csv", "curves_steps.csv"]),
        (["routing", "--run", "auxiliary", "--text", TEXT], ["routing.csv", "routing_tokens.csv"]),
        (["routing", "--text", TEXT], ["routing.csv", "routing_tokens.csv"]),
    ],
    ids=" ".join,
)
def test_every_figure_is_one_command(
    words: list[str], written: list[str], micro: Path, modexp_cli: Cli, capsys: Captured
) -> None:
    assert modexp_cli("plot", *words, "--out", "out") == 0
    printed = capsys.readouterr().out.split()
    assert sorted(printed) == sorted(
        ["out/" + name for name in written] + [f"out/{words[0]}.{s}" for s in ("png", "svg")]
    )
    assert all(Path(path).stat().st_size > 0 for path in printed)


def test_routing_of_a_trained_run_is_what_the_model_does(micro: Path, modexp_cli: Cli, capsys: Captured) -> None:
    assert modexp_cli("plot", "routing", "--run", "mod", "--text", TEXT) == 0
    assert "decided by the predictors" in capsys.readouterr().err
    model = modexp.load(micro / "mod").model
    with torch.no_grad():
        output = model(torch.tensor([list(TEXT.encode())]), causal=True)
    rows = read(micro / "routing.csv")
    for i, layer in enumerate((1, 3)):
        mine = [r for r in rows if int(r["block"]) == layer]
        assert "".join(r["token"] for r in mine) == TEXT
        assert [int(r["taken"]) for r in mine] == output.routings[i].taken[0].int().tolist()
        np.testing.assert_allclose(floats(mine, "router_weight"), output.routings[i].weights[0], rtol=1e-6)  # type: ignore[arg-type]
    entropy = torch.distributions.Categorical(logits=output.logits[0]).entropy()
    np.testing.assert_allclose(floats(read(micro / "routing_tokens.csv"), "entropy"), entropy, rtol=1e-4)  # type: ignore[arg-type]


def test_metrics_give_the_accuracy_that_the_model_has(micro: Path, modexp_cli: Cli) -> None:
    """From precision, recall and capacity, against the decisions of the trained model on the same held-out text."""
    from modexp.train.loop import corpus_of

    assert modexp_cli("plot", "predictor") == 0
    run = modexp.load(micro / "mod")
    held_out = corpus_of(run.config, modexp.runs.RunDir(micro / "mod").plan())  # type: ignore[attr-defined]
    sequences = torch.from_numpy(np.ascontiguousarray(held_out.validation(8)))
    with torch.no_grad():
        routings = run.model(sequences[:, :-1]).routings
    right = torch.stack([(r.predicted > 0) == r.taken for r in routings]).float().mean().item()  # type: ignore[operator]
    last = [r for r in read(micro / "predictor.csv") if r["run"] == "mod"][-1]
    assert last["always_skip"] == "0.75"
    assert float(last["accuracy"]) == pytest.approx(right, abs=1e-6)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["routing"], "none is given"),
        (["routing", "--text", "x", "--run", "baseline"], "baseline is dense"),
        (["routing", "--text", "x", "--run", "mod", "--run", "none"], "give --run once"),
        (["routing", "--text", "x" * 65, "--run", "mod"], "the text has 65 tokens, and mod reads 64"),
        (["predictor", "--run", "none"], "no run of micro has a predictor"),
        (["curves", "--run", "modd"], "did you mean mod"),
        (["frontier", "--x", "steps"], "--x says nothing to the figure frontier"),
        (["sampling", "--axis", "tokens"], "--axis says nothing to the figure sampling"),
        (["isoflop", "--text", "x"], "it is for routing"),
        (["picture"], "invalid choice"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else None,
)
def test_wrong_requests_are_sentences(
    words: list[str], text: str, micro: Path, modexp_cli: Cli, capsys: Captured
) -> None:
    assert modexp_cli("plot", *words) == 2
    err = capsys.readouterr().err
    assert text in err
    assert "Traceback" not in err


def test_help_lists_the_figures(modexp_cli: Cli, capsys: Captured) -> None:
    with pytest.raises(SystemExit):
        modexp_cli("plot", "--help")
    out = capsys.readouterr().out
    for name in ("isoflop", "frontier", "curves", "capacity", "routing", "sampling", "predictor", "mode"):
        assert f"\n  {name} " in out
