"""The methods sheet says what was counted, used, dropped, fitted and how."""

from __future__ import annotations

import re

import pytest

from modexp.analysis.methods import methods_sheet
from modexp.analysis.report import report
from tests.studies import curve, record, thirty


def sections(sheet: str) -> dict[str, str]:
    parts = re.split(r"^## (.*)\n", sheet, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_the_sheet_says_what_was_done():
    rows = [r | {"convention": "causal"} for r in thirty()]
    rows[14]["loss"] *= 1.08
    rows += [record(1e8, 3.0, 1e18, status="failed", error="out of memory", tokens=1e9, convention="causal")]
    found = report(rows, resamples=20, drop_outliers=True)
    sheet = methods_sheet(found, rows, {"schedule": "cosine", "data": "c4"}, 0.9)
    assert sheet.startswith("# Methods of this fit\n")
    parts = sections(sheet)
    assert list(parts) == ["What the letters mean", "Runs", "Fits", "Results"]
    letters, runs, fits, results = parts.values()
    assert "- N: parameters (axis `params`)" in letters
    assert "under the convention `causal`: as matmul, with the causal half" in letters
    assert "moved to equal FLOPs" not in letters
    assert "- schedule: cosine" in runs
    assert f"29 of {len(rows)} runs enter. A run enters once" in runs
    assert "more than 5 robust standard deviations away" in runs
    assert runs.count("- left out: ") == 2
    assert f"- left out: {rows[30]['run']}: failed: out of memory" in runs
    assert f"- left out: {rows[14]['run']}: loss" in runs
    budgets = re.findall(r"^\| baseline \| (\S+) \| (\d) \| (\d) \|", runs, flags=re.MULTILINE)
    assert [int(n) for _, n, _ in budgets] == [6, 6, 5, 6, 6]
    assert "at least 5 sizes" in fits
    assert f"{found.fit.noise_sd:.5f} nats, pooled over all curves ({found.fit.dof} degrees of freedom)" in fits
    assert "Fieller's for N*" in fits
    for method in ("approach3", "vpnls"):
        surface = found.surface("baseline", method).surface
        assert surface is not None
        assert f"{surface.agreeing} of 64 starts agree; intervals by bootstrap of the runs, 20 refits." in fits
    assert "- Plain parabola: of log loss" in fits
    assert "Hold-out: every budget predicted from the others" in fits
    table = re.findall(r"^\| baseline \| (\w+) \| ([\d.]+) \| ([\d.]+) \.\. ([\d.]+) \|", results, flags=re.MULTILINE)
    assert [row[0] for row in table] == ["parabola", "akima", "approach3", "vpnls"]
    shown = {row[0]: float(row[1]) for row in table}
    assert f"| baseline | plain parabola | {found.plain['baseline'].exponent:.4f} | - |" in results
    assert shown["parabola"] == pytest.approx(found.fit.exponents[0].exponent, abs=5e-5)
    assert shown["vpnls"] == pytest.approx(found.surface("baseline", "vpnls").exponent, abs=5e-5)
    held_out = re.findall(r"^\| baseline \| [\d.e]+ \| [\d.]+ \| ([\d.]+) \|", results, flags=re.MULTILINE)
    assert len(held_out) == len(found.fit.left_out) == 5


def test_the_sheet_names_what_is_refused():
    rows = curve(budget=1e18)
    found = report([r | {"tokens": 1e18 / 6 / r["params_total"]} for r in rows], resamples=0)
    parts = sections(methods_sheet(found, rows, {}, 0.9))
    assert parts["Fits"].count("refused (a surface needs 6 distinct points, got 5)") == 2
    assert "Hold-out" not in parts["Fits"]
    assert "| baseline | parabola | an exponent needs 2 budgets with an optimum, got 1 | - |" in parts["Results"]
