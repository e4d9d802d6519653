"""Figures of fits: the numbers are the fit's, what is drawn is what the tables say, and what is missing is told."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modexp.analysis.isoflop import fit_study
from modexp.analysis.methods import exponent_rows
from modexp.analysis.report import report
from modexp.errors import UserError
from modexp.plots import conventions, exponents, fit, fitted, residuals, style
from tests.benchmarks.coverage import study
from tests.test_plots import read, texts

Records = list[dict[str, Any]]


def records(span: float = 4.0, sizes: int = 7, noise: float = 0.003) -> Records:
    """Two arms at three budgets."""
    return study(np.random.default_rng(3), sizes, span, noise)


def half_finished() -> Records:
    """The second arm has two budgets and a half-run third; a run has failed."""
    rows = records()
    for row in rows:
        if row["arm"] == "mod" and row["budget"] == 1e20 and int(row["run"].split("-")[-1]) > 3:
            row.update(status="planned", loss=None)
    rows[0].update(status="failed", loss=None, error="out of memory")
    return rows


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Figures kept instead of written."""
    kept: list[Any] = []
    monkeypatch.setattr(style, "save", lambda figure, stem: kept.append(figure) or [])
    return kept


def panels(figure: Any) -> list[Any]:
    """Axes that show data: all but the footer's."""
    return [axes for axes in figure.axes if axes.axison]


def drawn(axes: Any, *markers: str) -> set[tuple[float, float]]:
    """Points of the lines with one of these markers, rounded as two ways of computing agree."""
    lines = [line for line in axes.lines if line.get_marker() in markers and line.get_linestyle() == "None"]
    return {rounded(x, y) for line in lines for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)}


def rounded(x: Any, y: Any) -> tuple[float, float]:
    return float(f"{float(x):.9g}"), float(f"{float(y):.9g}")


# --- fit ----------------------------------------------------------------------------------------------------


def test_fit_tables_hold_the_fit(tmp_path: Path) -> None:
    rows = records()
    found = report(rows, resamples=0)
    names = [p.name for p in fit.draw(found, rows, tmp_path, title="three budgets").paths]
    assert names == ["fit.png", "fit.svg", "fit.csv", "fit_lines.csv"]
    direct = fit_study(rows)
    for row, curve in zip(read(tmp_path / "fit.csv"), direct.curves, strict=True):
        assert curve.optimum is not None
        got = [float(row[k]) for k in ("flops", "x", "x_low", "x_high", "loss_high")]
        best = curve.optimum
        assert got == [curve.flops, best.x, best.x_low, best.x_high, best.loss_high]
    for row in read(tmp_path / "fit_lines.csv"):
        e, surface = direct.exponent(row["arm"]), found.surface(row["arm"], "vpnls")
        assert float(row["exponent"]) == e.exponent
        flops = float(row["flops"])
        assert float(row["x"]) == pytest.approx(e.optimum(flops))
        margin = direct.noise.margin(e.variance(flops))
        assert math.log(float(row["x_high"]) / float(row["x"])) == pytest.approx(margin)
        assert surface.surface is not None
        assert surface.cost is not None
        assert float(row["surface_loss"]) == surface.surface.optimum(flops, surface.cost).loss
    svg = texts(tmp_path / "fit.svg")
    assert "<!-- three budgets -->" in svg
    assert f"<!-- mod: {fitted.exponent_text(direct.exponent('mod'))} -->" in svg


def test_fit_draws_its_tables(tmp_path: Path, figures: list[Any]) -> None:
    rows = half_finished()
    fit.draw(report(rows, resamples=0), rows, tmp_path)
    left, right = panels(figures[0])
    table, lines = read(tmp_path / "fit.csv"), read(tmp_path / "fit_lines.csv")
    with_optimum, refused = [r for r in table if r["x"]], [r for r in table if not r["x"]]
    assert len(refused) == 1
    for axes, key, raw in ((left, "x", "raw_minimum"), (right, "loss", "raw_loss")):
        assert {y for _, y in drawn(axes, "o", "s")} == {rounded(0, r[key])[1] for r in with_optimum}
        assert {y for _, y in drawn(axes, "x")} == {rounded(0, r[raw])[1] for r in refused}
        bars = [line.get_ydata() for line in axes.lines if line.get_marker() == "_"]
        assert sorted(map(tuple, bars)) == sorted(
            (float(r[f"{key}_low"]), float(r[f"{key}_high"])) for r in with_optimum
        )
    apart = [flops for line in left.lines if line.get_marker() in "os" for flops in line.get_xdata()]
    for flops, row in zip(apart, with_optimum, strict=True):
        assert flops == pytest.approx(float(row["flops"]), rel=0.05), "arms stand beside their FLOPs, not elsewhere"
    solid = {
        line.get_color(): line
        for line in left.lines
        if line.get_linestyle() in ("-", "--") and len(line.get_xdata()) > 2
    }
    mod = [r for r in lines if r["arm"] == "mod" and r["x"]]
    assert any(list(line.get_ydata()) == [float(r["x"]) for r in mod] for line in solid.values())
    assert max(float(r["flops"]) for r in mod) == pytest.approx(2e19), "no line towards a budget without an optimum"


def test_fit_says_what_is_missing(tmp_path: Path, figures: list[Any]) -> None:
    rows = half_finished()
    note = fit.draw(report(rows, resamples=0), rows, tmp_path).note
    assert "38 of 42 runs (1 failed, 3 planned)" in note
    assert "no optimum: mod at 1e20" in note
    assert "mod: two budgets: the line goes through both, and nothing checks it" in note
    assert fit.draw(report(records(), resamples=0), records(), tmp_path).note == ""
    one = [r for r in records() if r["budget"] == 6e18]
    note = fit.draw(report(one, resamples=0), one, tmp_path).note.replace("\n", " ")
    assert "baseline, mod: an exponent needs 2 budgets with an optimum, got 1" in note
    assert "no surface for baseline, mod: sizes and tokens lie on one line" in note


# --- residuals ----------------------------------------------------------------------------------------------


def test_residuals_are_losses_less_fits(tmp_path: Path, figures: list[Any]) -> None:
    rows = half_finished()
    found = report(rows, resamples=0)
    drawing = residuals.draw(found, rows, tmp_path)
    table = {r["run"]: r for r in read(tmp_path / "residuals.csv")}
    assert len(table) == 38
    for curve in found.fit.curves:
        for p in curve.points:
            row = table[p.run]
            if curve.parabola is None or not curve.parabola.dof:
                assert row["parabola_residual"] == ""
                continue
            assert float(row["parabola_residual"]) == pytest.approx(p.loss - curve.parabola.loss(p.x))
            assert row["size_over_optimum"] == (str(p.x / curve.optimum.x) if curve.optimum else "")
    for r in rows:
        if r["loss"] is not None:
            surface = found.surface(r["arm"], "approach3").surface
            assert surface is not None
            over = 100 * (r["loss"] / surface.loss(r["params_total"], r["tokens"]) - 1)
            assert float(table[r["run"]]["surface_residual_percent"]) == pytest.approx(over)
    left, right = panels(figures[0])
    known = [r for r in table.values() if r["size_over_optimum"]]
    refused = [r for r in table.values() if r["parabola_residual"] and not r["size_over_optimum"]]
    assert {y for _, y in drawn(left, "x")} == {rounded(1, r["parabola_residual"])[1] for r in refused}
    assert drawn(left, "o", "s") == {rounded(r["size_over_optimum"], r["parabola_residual"]) for r in known}
    assert drawn(right, "o", "s") == {rounded(r["flops"], r["surface_residual_percent"]) for r in table.values()}
    assert left.patches[0].get_height() == pytest.approx(2 * found.fit.noise.sd)
    assert "left: over their middle size, as they have no optimum: mod at 1e20" in drawing.note


def test_residuals_hold_the_loss_that_was_moved(tmp_path: Path) -> None:
    rows = [{**r, "flops_reread": r["flops_consumed"] * (r["params_total"] / 1e8) ** 0.05} for r in records()]
    found = report(rows, resamples=0)
    residuals.draw(found, rows, tmp_path)
    table = read(tmp_path / "residuals.csv")
    parabolas = {(c.arm, c.budget): c.parabola for c in found.fit.curves}
    for row in table:
        parabola = parabolas[row["arm"], float(row["budget"])]
        assert parabola is not None
        over = float(row["loss_moved"]) - parabola.loss(float(row["params_total"]))
        assert float(row["parabola_residual"]) == pytest.approx(over)
    assert any(row["loss"] != row["loss_moved"] for row in table)


def test_notes_of_the_nearest_sizes_are_of_parabolas_and_akima(tmp_path: Path) -> None:
    rows = records()
    for figure in (fit, residuals, exponents):
        note = figure.draw(report(rows, resamples=0, nearest=5), rows, tmp_path).note
        assert note.startswith("parabolas and Akima: 30 of 42 runs (12 repeated or left out as asked); surfaces: 42")


def test_what_a_parabola_cannot_follow_is_a_curve(tmp_path: Path, figures: list[Any]) -> None:
    """Without noise the curve through the residuals is flat on a narrow grid, and on a wide one leaves little over."""
    bend = {}
    for span in (2.0, 40.0):
        rows = [r for r in records(span, 11, 0.0) if r["arm"] == "mod"]
        residuals.draw(report(rows, resamples=0), rows, tmp_path / str(span))
        trend = [
            r
            for r in read(tmp_path / str(span) / "residuals_trends.csv")
            if (r["fit"], r["arm"]) == ("parabola", "mod")
        ]
        mine = [r for r in read(tmp_path / str(span) / "residuals.csv") if r["arm"] == "mod"]
        x, y = np.log([float(r["x"]) for r in trend]), [float(r["y"]) for r in trend]
        left = np.array([float(r["parabola_residual"]) for r in mine])
        over = left - np.interp(np.log([float(r["size_over_optimum"]) for r in mine]), x, y)
        assert over.std() < 0.35 * left.std()
        bend[span] = np.ptp(y)
    assert bend[40.0] > 100 * bend[2.0]


def test_a_bad_run_is_named_where_its_curve_is_refused(tmp_path: Path) -> None:
    rows = [r for r in records(sizes=5) if r["budget"] < 1e20]
    rows[4]["loss"] -= 1.0
    found = report(rows, resamples=0)
    assert found.fit.curves[0].optimum is None
    residuals.draw(found, rows, tmp_path)
    marked = [r["run"] for r in read(tmp_path / "residuals.csv") if r["parabola_outlier"] == "True"]
    assert marked == [rows[4]["run"]]
    assert f"<!-- {marked[0]} -->" in texts(tmp_path / "residuals.svg")


def test_outliers_are_named(tmp_path: Path) -> None:
    rows = [r for r in records(sizes=9) if r["arm"] == "mod"]
    rows[4]["loss"] *= 1.06
    found = report(rows, resamples=0)
    residuals.draw(found, rows, tmp_path)
    marked = [r["run"] for r in read(tmp_path / "residuals.csv") if r["surface_outlier"] == "True"]
    assert marked == [rows[4]["run"]]
    assert f"<!-- {marked[0]} -->" in texts(tmp_path / "residuals.svg")


# --- exponents ----------------------------------------------------------------------------------------------


def test_exponents_are_those_of_the_report(tmp_path: Path, figures: list[Any]) -> None:
    rows = records()
    found = report(rows, resamples=50)
    assert exponents.draw(found, rows, tmp_path).note == ""
    table = read(tmp_path / "exponents.csv")
    expected = exponent_rows(found)
    for row, wanted in zip(table, expected, strict=False):
        assert (row["arm"], row["method"]) == (wanted["arm"], wanted["method"])
        limits = ("exponent", "low", "high")
        assert [float(row[k]) if row[k] else None for k in limits] == [wanted[k] for k in limits]
    assert [float(r["exponent"]) for r in table[len(expected) :]] == [o.exponent for o in found.fit.left_out]
    (axes,) = panels(figures[0])
    assert {x for x, _ in drawn(axes, "o", "s")} == {rounded(r["exponent"], 0)[0] for r in table[: len(expected)]}
    carets = [x for line in axes.lines if line.get_marker() == 6 for x in line.get_xdata()]
    assert carets == [float(r["exponent"]) for r in table[len(expected) :]]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["baseline", "parabola", "plain parabola", "akima", "approach3", "vpnls", "mod", *labels[1:6]]


def test_refused_methods_stand_in_the_note(tmp_path: Path) -> None:
    rows = [r for r in records() if r["arm"] == "baseline" or r["budget"] == 6e18]
    note = exponents.draw(report(rows, resamples=50), rows, tmp_path).note.replace("\n", " ")
    few = "an exponent needs 2 budgets with an optimum, got 1"
    assert f"refused: mod by parabola, mod by plain parabola, mod by akima: {few}" in note
    assert "refused: mod by approach3, mod by vpnls: sizes and tokens lie on one line" in note
    assert "<!-- refused -->" in texts(tmp_path / "exponents.svg")


@pytest.mark.parametrize("figure", [fit, residuals, exponents])
def test_nothing_to_draw_is_a_sentence(figure: Any, tmp_path: Path) -> None:
    rows = [{**r, "status": "planned", "loss": None} for r in records()]
    with pytest.raises(UserError, match=r"^no (optimum|residuals|exponent) to draw: "):
        figure.draw(report(rows, resamples=0), rows, tmp_path)
    assert not list(tmp_path.iterdir())


def test_conventions_that_refuse_and_that_decide_are_told(tmp_path: Path, figures: list[Any]) -> None:
    rows = records()
    worse = [{**r, "loss": r["loss"] * (1.06 if r["arm"] == "mod" else 1)} for r in rows]
    fits = {"matmul": fit_study(rows), "6n": fit_study(worse)}
    refusals = dict.fromkeys(("causal", "palm"), "one budget tells nothing")
    note = conventions.draw(fits, refusals, "matmul", rows, tmp_path).note
    assert "mod at 2e19: the conclusion rests on the convention: lower under matmul; higher under 6n" in note
    assert "causal, palm: one budget tells nothing" in note
    _, right = panels(figures[0])
    differences = {rounded(d.difference, 0)[0] for f in fits.values() for d in f.comparisons}
    assert {x for x, _ in drawn(right, "s")} == differences
    with pytest.raises(UserError, match="no convention gives an exponent or a comparison: one budget tells nothing"):
        conventions.draw({}, refusals, "matmul", rows, tmp_path)


def test_a_trend_leaves_a_place_to_spare() -> None:
    """Runs of one budget differ by a share of a percent in FLOPs: they are one place, and two hold no curve."""
    two = [
        residuals.Residual(f"r{i}", "mod", budget, budget * (1 + i * 1e-4), 0.1 * (-1) ** i, False)
        for budget in (5e10, 1.5e11)
        for i in range(-6, 6)
    ]
    assert residuals.trends_of(two) == []
    three = [*two, residuals.Residual("r", "mod", 5e11, 5e11, 0.3, False)]
    (trend,) = residuals.trends_of(three)
    assert np.allclose(np.diff(trend.y, 2), 0), "a line"
