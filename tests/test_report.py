"""`modexp fit` from file to figures: published data, known truths, planted faults."""

from __future__ import annotations

import csv
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modexp.analysis.bootstrap import Bootstrap
from modexp.analysis.isoflop import fit_study
from modexp.analysis.report import Report, report
from modexp.cli import run as modexp
from modexp.cli.fit_tables import print_left_out
from tests.studies import EXERCISE, curve, on_surface, optimum, record, thirty

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
PORIAN, EPOCH = DATA / "porian_refinedweb.csv", DATA / "epoch_chinchilla.csv"
Captured = pytest.CaptureFixture[str]


def needs(path: Path) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not path.exists(), reason=f"../shared/data/{path.name} is absent")


def fit_json(capsys: Captured, *words: str) -> dict[str, Any]:
    assert modexp(["fit", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


# --- published data ------------------------------------------------------------------------------------------

# setup: published 95 % interval of the exponent; what a parabola on the seven nearest sizes gives
PUBLISHED = {
    "base-long-kaplan-kaplan-train": (0.824, 0.846, 0.902),
    "base-long-kaplan-standard-val": (0.691, 0.717, 0.692),
    "base-short-kaplan-standard-val": (0.591, 0.617, 0.595),
    "base-short-chinchilla-standard-val": (0.560, 0.589, 0.551),
    "tuned-short-const-standard-val": (0.491, 0.505, 0.486),
}

# published; all but the first setup follow a parabola
PLAIN = dict(zip(list(PUBLISHED)[1:], (0.701, 0.604, 0.571, 0.497), strict=True))


@needs(PORIAN)
def test_porian_by_the_command_line(capsys: Captured):
    """Porian et al. 2024, RefinedWeb, their five setups as five arms of one table."""
    words = [str(PORIAN), "--columns", "arm=setup", "--nearest", "7", "--resamples", "0"]
    found = fit_json(capsys, *words)
    assert [e["arm"] for e in found["exponents"]] == list(PUBLISHED)
    for e in found["exponents"]:
        low, high, parabola = PUBLISHED[e["arm"]]
        assert low <= found["interpolated"][e["arm"]]["exponent"] <= high, e["arm"]
        assert e["exponent"] == pytest.approx(parabola, abs=1e-3)
        if e["arm"] in PLAIN:
            assert found["plain"][e["arm"]]["exponent"] == pytest.approx(PLAIN[e["arm"]], abs=0.02)
    edges = [c["refusal"] for c in found["curves"] if "outside the grid" in c["refusal"]]
    assert edges, "the second setup's smallest budgets have their minimum outside the grid"
    far = {d["reason"] for d in found["dropped"]}
    assert far == {"not among the 7 sizes nearest the lowest loss"}
    assert sum(len(c["points"]) for c in found["curves"]) + len(found["dropped"]) == 579


@needs(EPOCH)
def test_chinchilla_by_the_command_line(capsys: Captured, tmp_path: Path):
    """Besiroglu et al. 2024 on the points of Hoffmann et al.'s Fig. 4."""
    with EPOCH.open() as file:
        rows = [(float(r["loss"]), f"line {line}") for line, r in enumerate(csv.DictReader(file), start=2)]
    highest = [name for _, name in sorted(rows, reverse=True)[:5]]
    found = fit_json(capsys, str(EPOCH), "--drop-highest", "5", "--resamples", "100", "--out", str(tmp_path))
    assert [d["run"] for d in found["dropped"]] == highest
    assert all("is among the 5 highest" in d["reason"] for d in found["dropped"])
    assert "The 5 highest losses of each arm are left out, as asked for." in found["rule"]
    three = found["surfaces"][0]
    assert three["method"] == "approach3"
    surface = three["surface"]
    assert surface["num_points"] == 240
    assert surface["objective"] == pytest.approx(1.018274e-3, rel=1e-6)
    digits = {"E": (1.8172, 4), "A": (477.8, 1), "B": (2143.4, 1), "alpha": (0.3473, 4), "beta": (0.3672, 4)}
    assert {name: round(surface[name], k) for name, (_, k) in digits.items()} == {n: v for n, (v, _) in digits.items()}
    assert three["exponent"] == pytest.approx(0.5139, abs=1e-4)
    low, high = three["intervals"]["a"]
    assert low < 0.5126 < high, "the exponent of Besiroglu et al.'s rounded alpha and beta"
    sheet = (tmp_path / "methods.md").read_text()
    assert all(f"left out: {d['run']}: {d['reason']}" in sheet for d in found["dropped"])


@needs(EPOCH)
def test_chinchilla_with_every_point(capsys: Captured):
    found = fit_json(capsys, str(EPOCH), "--resamples", "0")
    assert found["dropped"] == []
    assert found["surfaces"][0]["exponent"] == pytest.approx(0.565, abs=5e-4)
    (sentence,) = [w for w in found["warnings"] if "far off its loss surface" in w]
    assert all(f"line {line}" in sentence for line in (2, 3, 4, 5, 6)), "it says that something is wrong with them"


# --- known truths --------------------------------------------------------------------------------------------


def course_exercise() -> list[dict[str, Any]]:
    """9 budgets x 8 sizes over +-4x about each optimum, no noise; a = .36 / .70."""
    budgets = np.geomspace(1e17, 1e21, 9).tolist()
    grid = np.geomspace(1 / 4, 4, 8)
    return [r for c in budgets for r in on_surface(c, optimum(c, EXERCISE)[0] * grid, EXERCISE)]


@pytest.fixture(scope="module")
def exercise() -> Report:
    return report(course_exercise(), resamples=0)


def test_every_method_finds_the_exponent_of_the_noise_free_study(exercise: Report):
    true = 0.36 / 0.70
    for method in ("approach3", "vpnls"):
        assert exercise.surface("baseline", method).exponent == pytest.approx(true, abs=1e-4)
    assert exercise.fit.exponents[0].exponent == pytest.approx(true, abs=2e-3)
    assert exercise.interpolated["baseline"].exponent == pytest.approx(true, abs=2e-3)
    assert exercise.warnings == ()
    assert exercise.fit.dropped == ()


def test_resamples_that_fail_or_creep_are_told(monkeypatch: pytest.MonkeyPatch):
    rows = course_exercise()
    one = np.ones((1, 5))
    for draws, sentence in (
        (Bootstrap(one[:0], 0, 3), "no interval: none of 3 resamples has a falling surface"),
        (Bootstrap(one, 0, 2), "2 of 3 resamples have no falling surface: the intervals lack them"),
        (Bootstrap(one.repeat(3, 0), 3, 0), "3 of 3 resamples have not converged: the intervals hold them"),
    ):
        monkeypatch.setattr("modexp.analysis.report.bootstrap", lambda *_, draws=draws: draws)
        found = report(rows, resamples=3).surfaces[0]
        assert found.warnings == (sentence,)
        assert (found.refits, bool(found.intervals)) == (len(draws.parameters), len(draws.parameters) > 0)


def test_the_raw_minimum_is_shown_and_is_worse(capsys: Captured, tmp_path: Path):
    """Grids that are centred as plans are, within 20 %: what a fit is better than stands beside it."""
    rng = np.random.default_rng(0)
    rows = []
    for c in np.geomspace(1e17, 1e21, 9).tolist():
        centre = optimum(c, EXERCISE)[0] * math.exp(rng.uniform(-0.2, 0.2))
        rows += on_surface(c, centre * np.geomspace(1 / 4, 4, 8), EXERCISE)
    table = write(tmp_path, rows)
    assert modexp(["fit", str(table), "--resamples", "0"]) == 0
    out = capsys.readouterr().out
    assert "raw minimum" in out
    fit = fit_study(rows)
    raw = [c.raw_minimum for c in fit.curves]
    assert raw == [min((p for p in c.points), key=lambda p: p.loss).x for c in fit.curves]
    line = float(np.polyfit(np.log([c.budget for c in fit.curves]), np.log(raw), 1)[0])
    assert abs(line - 0.36 / 0.70) > 0.005 > 2e-3 > abs(fit.exponents[0].exponent - 0.36 / 0.70)


def test_a_budget_left_out_is_predicted_exactly_by_power_laws():
    rows = [r for c in (1e18, 1e19, 1e20, 1e21) for r in curve(vertex=1e8 * (c / 3e19) ** 0.1, budget=c)]
    for r in rows:
        r["loss"] += 1e-7 * math.sin(1e3 * r["params_total"])  # a parabola leaves some noise, and so a margin
    fit = fit_study(rows)
    assert [o.budget for o in fit.left_out] == [1e18, 1e19, 1e20, 1e21]
    for out in fit.left_out:
        assert out.predicted == pytest.approx(out.found, rel=1e-4)
        assert out.exponent == pytest.approx(0.1, abs=1e-4)
        assert out.within


def test_a_broken_budget_is_told_from_the_others(capsys: Captured):
    rng = np.random.default_rng(1)
    rows = []
    for c in (1e18, 1e19, 1e20, 1e21):
        vertex = 1e8 * (c / 3e19) ** 0.1 * (1.6 if c == 1e21 else 1)
        rows += curve(vertex=vertex, budget=c, sizes=7)
    for r in rows:
        r["loss"] += 1e-3 * rng.standard_normal()
    (broken,) = [o for o in fit_study(rows).left_out if o.budget == 1e21]
    assert broken.exponent == pytest.approx(0.1, abs=0.01)
    assert broken.found / broken.predicted == pytest.approx(1.6, rel=0.1)
    assert broken.within is False
    print_left_out(broken)
    said = capsys.readouterr().out
    assert re.fullmatch(r"baseline without 1e21: \d+M predicted, \d+M found, OUTSIDE the interval\n", said)


def test_two_budgets_hold_nothing_out():
    assert fit_study([*curve(budget=1e18), *curve(budget=1e19)]).left_out == ()


# --- planted faults ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [0, 14, 29])
def test_a_bad_run_among_thirty_is_found_and_named(place: int):
    rows = thirty()
    rows[place]["loss"] *= 1.08
    bad = rows[place]["run"]
    found = report(rows, resamples=0, drop_outliers=True)
    assert [d.run for d in found.fit.dropped] == [bad]
    assert "robust standard deviations" in found.fit.dropped[0].reason
    assert "more than 5 robust standard deviations away" in found.fit.rule
    kept = report(rows, resamples=0)
    assert kept.fit.dropped == ()
    assert kept.warnings[0].startswith(f"baseline: far off its loss surface: {bad}; ")
    without = report([r for r in rows if r["run"] != bad], resamples=0)
    assert found.fit.exponents == without.fit.exponents
    assert found.surfaces == without.surfaces


@pytest.mark.parametrize("seed", range(4))
def test_a_clean_study_loses_nothing(seed: int):
    found = report(thirty(seed), resamples=0, drop_outliers=True)
    assert (found.fit.dropped, found.warnings) == ((), ())


def test_a_run_is_left_out_once_though_both_rules_name_it():
    rows = thirty()
    rows[3]["loss"] *= 1.5
    found = report(rows, resamples=0, drop_highest=1, drop_outliers=True)
    assert [(d.run, d.reason.split(" is ")[1]) for d in found.fit.dropped] == [(rows[3]["run"], "among the 1 highest")]


def write(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """A CSV with a column of budgets; ``loss`` as it stands."""
    table = folder / "points.csv"
    names = {"budget": "budget", "flops_consumed": "flops", "params_total": "params", "loss": "loss", "seed": "seed"}
    lines = [",".join(names.values()), *(",".join(str(r[key]) for key in names) for r in rows)]
    table.write_text("\n".join(lines) + "\n")
    return table


def changed(rows: list[dict[str, Any]], place: int, **change: Any) -> list[dict[str, Any]]:
    return [r | change if i == place else r for i, r in enumerate(rows)]


STUDY = [*curve(budget=1e18, sizes=7, vertex=9e7), *curve(budget=1e20, sizes=7, vertex=1.1e8)]


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (
            [*STUDY, *curve(budget=1e21, vertex=1e10)],
            "runs at 1e21: the minimum lies outside the grid 25M-400M: add sizes above 400M",
        ),
        (changed(STUDY, 3, loss="nan"), "left out: line 5: diverged"),
        ([*STUDY, STUDY[2]], "left out: line 16: is the same run as line 4"),
        (
            [*STUDY, *(r | {"seed": 1, "loss": r["loss"] + 0.001} for r in STUDY if r is not STUDY[3])],
            "runs at 1e18: seed 1 is missing at 100M",
        ),
        (
            changed(STUDY, 3, flops_consumed=1.02e18),
            "left out: line 5: missed its budget of 1e18 FLOPs by +2.00% (allowed 0.10%)",
        ),
        (
            [*curve(budget=1.5e19), *curve(budget=2.4e19)],
            "runs: the budgets 1.5e19 and 2.4e19 are less than 2x apart: a short lever for an exponent",
        ),
        (STUDY[:7], "an exponent needs 2 budgets with an optimum, got 1"),
        ([*STUDY, *curve(budget=1e21, sizes=4)], "runs at 1e21: a fit needs 5 distinct sizes, got 4"),
        (STUDY, "runs: two budgets: the line goes through both, and nothing checks it"),
    ],
    ids=["edge", "diverged", "duplicate", "seed", "budget", "near", "one", "four", "two"],
)
def test_the_right_sentence_for_each(rows: list[dict[str, Any]], sentence: str, tmp_path: Path, capsys: Captured):
    assert modexp(["fit", str(write(tmp_path, rows)), "--resamples", "0"]) == 0
    said = capsys.readouterr()
    assert any(sentence in line for line in (said.out + said.err).splitlines()), said.out + said.err
    if sentence.startswith("left out"):
        assert sum(line.startswith("left out") for line in said.err.splitlines()) == 1


def test_neither_size_nor_tokens_may_be_6nd(capsys: Captured):
    """Where FLOPs are not 6 N D, a + b is not 1, and it is said."""
    rows = []
    for c in (1e18, 1e19, 1e20):
        for n in optimum(c, EXERCISE)[0] * np.geomspace(1 / 3, 3, 7):
            tokens = (c / 6 / n) ** 0.8
            rows.append(record(float(n), 3 + 0.05 * math.log(n / optimum(c, EXERCISE)[0]) ** 2, c, tokens=tokens))
    found = report(rows, resamples=0)
    (sentence,) = [w for w in found.warnings if "a + b" in w]
    assert sentence.startswith("baseline: a + b = 0.514 + 0.389 = 0.903, not 1")


def test_sizes_and_tokens_are_summed_over_the_same_runs():
    """On grids that a parabola cannot follow: a from the nearest sizes and b from all would not add up."""
    rows = []
    for c in (1e18, 1e19, 1e20, 1e21):
        for n in optimum(c, EXERCISE)[0] * np.geomspace(1 / 4, 4 * (c / 1e18) ** 0.6, 15):
            t = math.log(n / optimum(c, EXERCISE)[0])
            rows.append(record(float(n), 3 + 0.05 * (math.exp(t) - t - 1), c, tokens=c / 6 / float(n)))
    assert [w for w in report(rows, resamples=0, nearest=7).warnings if "a + b" in w] == []
