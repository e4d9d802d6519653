"""Figures show the numbers they were given, the same bytes every time, and say what is missing."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from modexp.analysis.isoflop import fit_study
from modexp.errors import UserError
from modexp.plots import curves, isoflop, style


def study(budgets: tuple[float, ...] = (6e18, 2e19), arms: tuple[str, ...] = ("baseline", "mod"), sizes: int = 5):
    """Two arms on parabolas of equal FLOPs per token; the routed one is 1.4x larger and 1 % better."""
    rng = np.random.default_rng(0)
    records = []
    for arm in arms:
        routed = arm != "baseline"
        for i, budget in enumerate(budgets):
            for x in 1e8 * 2.0**i * np.geomspace(0.25, 4, sizes):
                loss = (3.0 - 0.2 * i + 0.06 * math.log(x / (1e8 * 2.0**i)) ** 2) * (0.99 if routed else 1.0)
                loss += 0.003 * rng.standard_normal()
                records.append(
                    {
                        "run": f"{arm}-{budget:g}-{x:.0f}",
                        "arm": arm,
                        "budget": budget,
                        "seed": 0,
                        "params_total": float(x) * (1.4 if routed else 1.0),
                        "flops_per_token": 2 * float(x),
                        "flops_per_token_causal": 2.2 * float(x) if routed else None,  # took more than planned
                        "loss": loss,
                        "loss_topk": loss - 0.01 if routed else None,
                        "status": "done",
                        "flops_consumed": budget,
                        "steps_planned": 2000,
                        "routed": routed,
                    }
                )
    return records


def read(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def texts(path: Path) -> str:
    """Text of an SVG: matplotlib writes each string as a comment beside its outlines."""
    return path.read_text()


def test_files_and_their_sizes(tmp_path: Path):
    drawn = isoflop.draw(study(), tmp_path, title="two budgets")
    names = ["isoflop.png", "isoflop.svg", "isoflop.csv", "isoflop_fit.csv"]
    assert [p.name for p in drawn.paths] == names
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(names)  # nothing temporary is left
    assert drawn.note == ""
    with Image.open(tmp_path / "isoflop.png") as image:
        assert image.width == pytest.approx(7.2 * 300, abs=2)
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    assert len(np.unique(pixels, axis=0)) > 50
    assert (pixels != 255).any(axis=1).mean() > 0.02  # not an empty sheet
    svg = texts(tmp_path / "isoflop.svg")
    wanted = ("two budgets", "parameters", "held-out loss (nats per token)", "6e18  baseline", "2e19  mod")
    for text in (*wanted, "forward FLOPs per token / baseline's optimum", "top-k (sees the future)", "100M"):
        assert f"<!-- {text} -->" in svg, text


@pytest.mark.parametrize("budgets", [(6e18,), (6e18, 2e19), (6e18, 2e19, 1e20)])
def test_a_legend_of_many_arms_stays_within_the_sheet(
    budgets: tuple[float, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    legends, save = [], style.save

    def measured(figure: Any, stem: Path) -> list[Path]:
        paths = save(figure, stem)
        legends.extend((figure.bbox, axes.get_legend()) for axes in figure.axes if axes.get_legend())
        return paths

    monkeypatch.setattr(style, "save", measured)
    arms = ("baseline", "mode_integrated", "mode_staged", "moe", "moe_dropping_half")
    isoflop.draw(study(budgets, arms), tmp_path)
    ((sheet, legend),) = legends
    box = legend.get_window_extent()
    assert sheet.x0 <= box.x0 < box.x1 <= sheet.x1
    assert len(legend.get_texts()) >= len(arms) * len(budgets) + 3


def test_same_records_same_bytes(tmp_path: Path):
    for name in ("a", "b"):
        isoflop.draw(study(), tmp_path / name)
        curves.draw(learning(), tmp_path / name)
    for file in ("isoflop.svg", "isoflop.png", "isoflop.csv", "curves.svg", "curves.png"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_other_figures_and_settings_do_not_leak_in_or_out(tmp_path: Path):
    import matplotlib

    isoflop.draw(study(), tmp_path / "a")
    with matplotlib.rc_context({"font.size": 20, "svg.hashsalt": "other", "axes.grid": False}):
        isoflop.draw(study(), tmp_path / "b")
        assert matplotlib.rcParams["font.size"] == 20
    assert (tmp_path / "a/isoflop.svg").read_bytes() == (tmp_path / "b/isoflop.svg").read_bytes()


def test_csv_holds_what_was_given_and_what_was_fitted(tmp_path: Path):
    records = study()
    isoflop.draw(records, tmp_path)
    points = read(tmp_path / "isoflop.csv")
    cost = fit_study(records, "flops_per_token")
    assert len(points) == len(records) == 20
    for row, given in zip(points, records, strict=True):
        assert row["run"] == given["run"]
        assert float(row["loss"]) == given["loss"]
        assert float(row["params_total"]) == given["params_total"]
        assert row["loss_topk"] == ("" if given["loss_topk"] is None else repr(given["loss_topk"]))
        reference = cost.curve("baseline", given["budget"])
        assert reference is not None
        assert reference.optimum is not None
        spent = given["flops_per_token_causal"] or given["flops_per_token"]
        assert float(row["flops_per_token"]) == spent
        assert float(row["relative_flops_per_token"]) == spent / reference.optimum.x
        if given["loss_topk"] is not None:
            assert float(row["flops_per_token_topk"]) == given["flops_per_token"], "a top-k takes what was planned"
    fits = read(tmp_path / "isoflop_fit.csv")
    size = fit_study(records)
    assert [r["axis"] for r in fits] == ["params"] * 4 + ["flops_per_token"] * 4
    for row, found in zip(fits, [*size.curves, *cost.curves], strict=True):
        assert found.optimum is not None
        assert found.parabola is not None
        assert (row["arm"], float(row["budget"])) == (found.arm, found.budget)
        assert float(row["x"]) == found.optimum.x
        assert float(row["x_low"]) == found.optimum.x_low
        assert float(row["loss_high"]) == found.optimum.loss_high
        assert float(row["c2"]) == found.parabola.curvature


def test_panels_show_the_points_and_optima_of_the_csv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Read back from the axes themselves what a reader would read off the figure."""
    figures = []
    monkeypatch.setattr(style, "save", lambda figure, stem: figures.append(figure) or [])
    isoflop.draw(study(), tmp_path)
    points, fits = read(tmp_path / "isoflop.csv"), read(tmp_path / "isoflop_fit.csv")
    left, right = figures[0].axes[:2]
    base = {f["budget"]: float(f["x"]) for f in fits if (f["axis"], f["arm"]) == ("flops_per_token", "baseline")}
    for axes, axis, column, column_topk in (
        (left, "params", "params_total", "params_total"),
        (right, "flops_per_token", "relative_flops_per_token", "relative_flops_topk"),
    ):
        mine = [f for f in fits if f["axis"] == axis]
        unit = {f["budget"]: 1.0 if axes is left else base[f["budget"]] for f in mine}
        stars = [f(line)[0] for line in axes.lines if line.get_marker() == "*" for f in (xs, ys)]
        assert stars == [v for f in mine for v in (float(f["x"]) / unit[f["budget"]], float(f["loss"]))]
        bars = [xs(line) for line in axes.lines if line.get_marker() == "|"]
        assert bars == [[float(f[k]) / unit[f["budget"]] for k in ("x_low", "x_high")] for f in mine]
        causal = [line for line in axes.lines if line.get_marker() in "os" and line.get_alpha() is None]
        drawn = [pair for line in causal for pair in zip(xs(line), ys(line), strict=True)]
        assert drawn == [(float(p[column]), float(p["loss"])) for p in points]
        faint = [pair for line in axes.lines if line.get_alpha() for pair in zip(xs(line), ys(line), strict=True)]
        assert faint == [(float(p[column_topk]), float(p["loss_topk"])) for p in points if p["loss_topk"]]


def xs(line: Any) -> list[float]:
    return [float(v) for v in np.atleast_1d(line.get_xdata())]


def ys(line: Any) -> list[float]:
    return [float(v) for v in np.atleast_1d(line.get_ydata())]


def test_half_finished_study_says_what_is_missing(tmp_path: Path):
    records = study()
    for r in records[:3]:
        r |= {"status": "planned", "loss": None}
    records[5] |= {"status": "failed", "loss": None, "error": "boom"}
    records[12] |= {"flops_consumed": 0.9 * records[12]["budget"]}
    drawn = isoflop.draw(records, tmp_path)
    lines = drawn.note.splitlines()
    assert lines[0] == "15 of 20 runs (3 planned, 1 failed, 1 left out of the fit)"
    assert lines[1] == "no optimum: baseline at 6e18, baseline at 2e19, mod at 6e18"
    assert lines[2] == "right: relative to the best baseline run where its optimum is not fitted (6e18, 2e19)"
    svg = texts(tmp_path / "isoflop.svg")
    for line in lines:
        assert line in svg, line
    points = read(tmp_path / "isoflop.csv")
    assert len(points) == 15
    best = min((p for p in points if p["arm"] == "baseline" and float(p["budget"]) == 2e19), key=lambda p: p["loss"])
    assert float(best["relative_flops_per_token"]) == 1.0


def test_runs_that_are_repeated_or_of_unknown_size_are_said_to_be(tmp_path: Path):
    records = study()
    records += [records[0] | {"run": "again"}, records[1] | {"run": "sizeless", "params_total": None}]
    assert isoflop.draw(records, tmp_path).note == "20 of 22 runs (2 repeated or of unknown size)"


def test_budget_without_a_baseline_run_is_absent_on_the_right_and_said_so(tmp_path: Path):
    records = [r for r in study() if not (r["arm"] == "baseline" and r["budget"] == 2e19)]
    drawn = isoflop.draw(records, tmp_path)
    assert "right: without 2e19, where no baseline run is finished" in drawn.note
    rows = read(tmp_path / "isoflop.csv")
    assert {r["relative_flops_per_token"] for r in rows if float(r["budget"]) == 2e19} == {""}


def test_one_run_and_one_arm_can_be_drawn(tmp_path: Path):
    assert (
        "1 of 5 runs"
        in isoflop.draw(
            [r | ({"status": "running"} if i else {}) for i, r in enumerate(study((6e18,), ("baseline",)))],
            tmp_path,
        ).note
    )
    only_mod = isoflop.draw(study(arms=("mod",)), tmp_path / "mod")
    assert "forward FLOPs per token / mod's optimum" in texts(only_mod.paths[1])


def test_nothing_to_draw_is_a_sentence(tmp_path: Path):
    with pytest.raises(UserError, match="no finished run to draw: 20 running"):
        isoflop.draw([r | {"status": "running"} for r in study()], tmp_path)
    with pytest.raises(UserError, match="no finished run to draw: the study has no runs"):
        isoflop.draw([], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_more_arms_than_can_be_told_apart_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match="arms=9 are more than a figure can tell apart, 8"):
        isoflop.draw(study(arms=("baseline", *"abcdefgh")), tmp_path)


# --- style --------------------------------------------------------------------------------------------------


def grey(color: tuple[float, float, float]) -> float:
    """CIE lightness 0..100, from sRGB: what is left of a colour in print."""
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in color]
    y = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return 116 * y ** (1 / 3) - 16


def test_budgets_darken_evenly_in_print_and_arms_differ_without_colour():
    arms = ["baseline", *"abcdefg"]
    for arm in arms:
        steps = [grey(style.stroke(arms, "baseline", arm, shade).color) for shade in style.shades(3)]
        assert steps[0] - steps[1] > 12, (arm, steps)
        assert steps[1] - steps[2] > 12, (arm, steps)
    strokes = [style.stroke(arms, "baseline", arm, 0.5) for arm in arms]
    assert len({s.marker for s in strokes}) == len(arms)
    assert len({s.color for s in strokes}) == len(arms)
    assert [s.filled for s in strokes] == [False] + [True] * 7
    assert [s.linestyle == "solid" for s in strokes] == [False] + [True] * 7


def test_oklch_known_colours():
    """Ottosson's own table: white, and sRGB red at L .628, C .2577, h 29.23."""
    np.testing.assert_allclose(style.oklch(1.0, 0.0, 0.0), (1, 1, 1), atol=1e-4)
    np.testing.assert_allclose(style.oklch(0.62796, 0.2576, 29.23), (1, 0, 0), atol=0.03)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (1e4, 1e6, [1e4, 3e4, 1e5, 3e5, 1e6]),
        (5e7, 3e9, [5e7, 1e8, 2e8, 5e8, 1e9, 2e9]),
        (6e7, 3e9, [1e8, 2e8, 5e8, 1e9, 2e9]),
        (1e4, 1e12, [1e4, 1e6, 1e8, 1e10, 1e12]),
    ],
)
def test_size_ticks_are_round_and_few(low: float, high: float, ticks: list[float]):
    np.testing.assert_allclose(style.size_ticks(low, high), ticks)


@pytest.mark.parametrize(("low", "high"), [(1.05e8, 1.2e8), (9.4e7, 1.06e8), (3e6, 4e6)])
def test_narrow_axes_have_ticks_too(low: float, high: float):
    ticks = style.size_ticks(low, high)
    assert 3 <= len(ticks) <= 6, ticks
    assert all(low <= t <= high for t in ticks)


# --- learning curves ----------------------------------------------------------------------------------------


def learning(num_steps: int = 200) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    runs = []
    for name, arm, cost in (("small", "baseline", 1e9), ("large", "baseline", 2e9), ("routed", "mod", 1.5e9)):
        metrics = []
        for step in range(1, num_steps + 1):
            tokens = 256 * step
            row = {"step": step, "tokens": tokens, "flops": cost * tokens}
            row["train/loss"] = 2 + 3 / step**0.5 + 0.05 * rng.standard_normal()
            if step % 50 == 0:
                row["val/loss"] = 2 + 3 / step**0.5
            metrics.append(row)
        runs.append({"run": name, "arm": arm, "budget": 1e14, "metrics": metrics})
    return runs


@pytest.mark.parametrize(("x", "key"), [("flops", "flops"), ("tokens", "tokens"), ("steps", "step")])
def test_learning_curves_and_their_csv(tmp_path: Path, x: str, key: str):
    runs = learning()
    paths = curves.draw(runs, tmp_path, x, title="curves", unit="byte").paths
    assert [p.name for p in paths] == ["curves.png", "curves.svg", "curves.csv"]
    rows = read(paths[2])
    for run in runs:
        mine = [r for r in rows if r["run"] == run["run"]]
        train = [r for r in mine if r["train"]]
        assert [float(r["train"]) for r in train] == [m["train/loss"] for m in run["metrics"]]
        assert [float(r[x]) for r in train] == [m[key] for m in run["metrics"]]
        window = int(mine[0]["window_steps"])
        assert window == 4
        middle = [m["train/loss"] for m in run["metrics"]][97:102]  # steps 98..102, around step 100
        assert float(train[99]["train_smoothed"]) == pytest.approx(np.mean(middle), rel=1e-12)
        val = [r for r in mine if r["val"]]
        assert [float(r["val"]) for r in val] == [m["val/loss"] for m in run["metrics"] if "val/loss" in m]
    svg = texts(paths[1])
    assert "<!-- small (4-step mean) -->" in svg
    assert "<!-- loss (nats per byte) -->" in svg
    assert f"<!-- {curves.X_LABELS[x]} -->" in svg


def test_curves_without_losses(tmp_path: Path):
    runs = learning(20)
    runs[1]["metrics"] = []
    runs[2]["metrics"][-1]["train/loss"] = math.nan  # a diverged run is drawn up to where it did
    drawn = curves.draw(runs, tmp_path)
    paths = drawn.paths
    assert drawn.note == "1 of 3 runs without a training loss"
    assert drawn.note in texts(paths[1])
    assert sum(r["run"] == "routed" and r["train"] != "" for r in read(paths[2])) == 19
    with pytest.raises(UserError, match="none of 1 runs has logged a training loss"):
        curves.draw(runs[1:2], tmp_path)
    with pytest.raises(UserError, match="x=time is not an axis"):
        curves.draw(runs, tmp_path, "time")
