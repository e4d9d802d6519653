"""One study under every convention, and figures of fits from the command line, of a study or of a table."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from modexp.analysis.isoflop import fit_study
from modexp.analysis.records import records
from modexp.flops.ledger import CONVENTIONS
from tests.test_plots import read, texts
from tests.test_plots_fit import records as simulated
from tests.test_train import planned

Cli = Callable[..., int]
Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def two_budgets(documents: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run directories of two arms at two budgets, planned in earnest; their losses are a formula's."""
    folder = tmp_path_factory.mktemp("runs") / "two"
    tiny = ["data=files", f"data.paths=[{documents}/*.py]", "data.sequence_length=64", "tracker=none"]
    for arm in ("baseline", "mod"):
        for budget in (2e9, 8e9):
            for size in ("14.4k", "26.2k", "41.1k", "65.8k", "136k"):
                run = planned(
                    folder / f"{arm}-{size}-{budget:g}", [*tiny, f"model={arm}", f"size={size}", f"budget={budget}"]
                )
                plan = run.plan()["plan"]
                best = 30e3 * (budget / 2e9) ** 0.5
                loss = 2.0 - 0.1 * math.log(budget / 2e9) + 0.03 * math.log(plan["params_total"] / best) ** 2
                loss += 0.002 * math.sin(7 * plan["params_total"]) - (0.02 if arm == "mod" else 0)
                reached = {
                    "loss": loss,
                    "tokens": plan["tokens"],
                    "steps": plan["steps"],
                    "flops_consumed": plan["flops"],
                }
                run.result_path.write_text(json.dumps({"status": "done", **reached}))
    return folder


def test_conventions_are_the_fits_under_each(two_budgets: Path, modexp_cli: Cli, capsys: Captured) -> None:
    runs = ["--runs-dir", str(two_budgets.parent)]
    assert modexp_cli("plot", "conventions", "two", *runs, "--out", "out") == 0
    assert "Traceback" not in capsys.readouterr().err
    fits = {name: fit_study(records(two_budgets, convention=name)) for name in ("matmul", "6n")}
    table = read(Path("out/conventions.csv"))
    assert [(r["convention"], r["arm"]) for r in table] == [(c, a) for c in CONVENTIONS for a in ("baseline", "mod")]
    differences = read(Path("out/conventions_differences.csv"))
    for name, fit in fits.items():
        for row in (r for r in table if r["convention"] == name):
            e = fit.exponent(row["arm"])
            got = [float(row[k]) if row[k] else None for k in ("exponent", "low", "high")]
            assert got == [e.exponent, e.low, e.high]
        mine = [r for r in differences if r["convention"] == name]
        got = [(float(r["budget"]), float(r["difference"]), float(r["low"])) for r in mine]
        assert got == [(d.budget, d.difference, d.low) for d in fit.comparisons]
    assert all(r["exponent"] for r in table if r["convention"] == "matmul")
    assert len(differences) >= 2
    assert "<!-- matmul, as planned -->" in texts(Path("out/conventions.svg"))


def test_a_table_is_drawn_where_one_stands(modexp_cli: Cli, capsys: Captured, tmp_path: Path) -> None:
    with Path("points.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("C", "N", "L", "model"))
        writer.writerows((r["budget"], r["params_total"], r["loss"], r["arm"]) for r in simulated())
    words = ["points.csv", "--columns", "flops=C,params=N,loss=L,arm=model", "--level", "0.8", "--drop-highest", "1"]
    assert modexp_cli("plot", "fit", *words) == 0
    captured = capsys.readouterr()
    assert captured.out.split() == ["fit.png", "fit.svg", "fit.csv", "fit_lines.csv"]
    assert "40 of 42 runs (2 repeated or left out as asked)" in captured.err
    assert {row["level"] for row in read(tmp_path / "fit.csv")} == {"0.8"}
    Path("points.csv").rename("fit.csv")
    before = Path("fit.csv").read_bytes()
    assert modexp_cli("plot", "fit", "fit.csv", *words[1:]) == 2
    assert "fit.csv could be overwritten by the figure's tables" in capsys.readouterr().err
    assert Path("fit.csv").read_bytes() == before
    assert modexp_cli("plot", "fit", "fit.csv", *words[1:], "--out", "elsewhere") == 0


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["isoflop", "points.csv"], "points.csv is a table, and isoflop draws a study"),
        (["fit", "points.csv", "--convention", "6n"], "--convention 6n needs ledgers"),
        (["fit", "study", "--columns", "loss=L"], "--columns names the columns of a CSV"),
        (["curves", "--level", "0.8"], "--level says nothing to the figure curves"),
        (["conventions", "--convention", "6n"], "--convention says nothing to the figure conventions"),
        (["isoflop", "--drop-highest", "3"], "--drop-highest says nothing to the figure isoflop"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_requests_are_sentences(words: list[str], text: str, modexp_cli: Cli, capsys: Captured) -> None:
    assert modexp_cli("plot", *words) == 2
    assert text in capsys.readouterr().err
