"""The paper's figures show the numbers that they are given and say what is missing."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modexp.analysis.isoflop import fit_study
from modexp.errors import UserError
from modexp.plots import capacity, curves, frontier, isoflop, predictor, routing, sampling, style
from tests.test_plots import learning, study, texts

Cli = Callable[..., int]
Captured = pytest.CaptureFixture[str]


def read(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def floats(rows: list[dict[str, str]], key: str) -> list[float | None]:
    return [float(row[key]) if row[key] else None for row in rows]


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
        spent = record["flops_per_token_causal"] or record["flops_per_token"]
        assert float(row["relative_flops_per_token"]) == spent / best.x
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


@pytest.mark.parametrize("figure", [frontier, sampling, isoflop])
def test_without_a_baseline_flops_are_drawn_as_they_are(figure: Any, tmp_path: Path) -> None:
    given = [r | {"status": "planned", "loss": None} if r["arm"] == "baseline" else r for r in causal_study()]
    drawn = figure.draw(given, tmp_path)
    assert "FLOPs are not relative: no baseline run is finished" in drawn.note
    (png, svg, table) = drawn.paths[:3]
    assert png.stat().st_size > 0
    assert "<!-- forward FLOPs per token -->" in texts(svg)
    assert "optimum -->" not in texts(svg).replace("fitted optimum -->", "")
    for row in read(table):
        assert not any(value for key, value in row.items() if key.startswith("relative"))
        assert any(float(row[key]) > 1e6 for key in row if key.startswith("flops_per_token") and row[key])


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


def test_arms_that_differ_otherwise_have_lines_of_their_own(tmp_path: Path) -> None:
    """Rules of one frequency, gates as only the settings tell; sizes and budgets are no difference."""
    given = [r | {"causal": "predictor" if r["arm"] != "baseline" else None} for r in tuning()]
    for r in list(given):
        if r["arm"].endswith("_2"):
            given.append(r | {"arm": r["arm"] + "_none", "run": r["run"] + "_none", "causal": "none"})
    capacity.draw(given, tmp_path)
    groups = {row["arm"]: row["group"] for row in read(tmp_path / "capacity.csv")}
    assert groups["mod_0.125_1"] == groups["mod_0.5_1"] == "mod, every block"
    assert groups["mod_0.125_2"] == groups["mod_0.5_2"] == "mod, every 2nd block, causal=predictor"
    assert groups["mod_0.125_2_none"] == "mod, every 2nd block, causal=none"
    for r in given:
        size = {"model.d_model": r["params_total"], "optim.lr": 1 / r["params_total"], "budget.flops": r["budget"]}
        gate = "tanh" if r["causal"] == "none" else "raw"
        r["settings"] = {**size, "model.capacity": r.get("capacity"), "model.causal": "predictor", "model.gate": gate}
    assert capacity.groups_of(given)["mod_0.5_2_none"] == "mod, every 2nd block, gate=tanh"
    assert len(set(capacity.groups_of(given).values())) == 4


def test_a_baseline_whose_best_run_is_drawn_is_dotted_and_said_so(tmp_path: Path) -> None:
    given = [r for r in tuning() if not (r["arm"] == "baseline" and r["params_total"] > 3e8)]
    drawn = capacity.draw(given, tmp_path)
    assert drawn.note == "baseline: dotted where its best run stands in for an optimum (6e18)"


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


def test_larger_budgets_are_darker_whatever_their_names() -> None:
    runs = [
        curves._read(run | {"run": f"{arm}-{name}", "arm": arm, "budget": budget}, "flops")
        for run, arm in ((learning(20)[0], "mod"), (learning(20)[1], "baseline"))
        for name, budget in (("14k-1.5e11", 1.5e11), ("23k-5e10", 5e10), ("5k-5e10", 5e10))
    ]
    shade = curves.shades_of(runs)
    for arm in ("mod", "baseline"):
        assert [shade[f"{arm}-{name}"] for name in ("23k-5e10", "5k-5e10", "14k-1.5e11")] == [0.0, 0.5, 1.0]


def test_chosen_curves_have_steps_beside_them(tmp_path: Path) -> None:
    runs = learning(50)
    for run, flops, rate in zip(runs, (1e12, 2e12, 1e12), (2.0, 1.0, None), strict=True):
        run |= {"flops_per_step": flops, "steps_per_second": rate}
    paths = curves.draw(runs, tmp_path).paths
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
