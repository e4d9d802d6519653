"""Tables of other people's runs: columns by any name, the third of C = 6 N D, budgets from FLOPs, and sentences."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from modexp.analysis.isoflop import fit_study
from modexp.analysis.points import select
from modexp.analysis.table import parse_columns, read_table
from modexp.cli import run as modexp
from modexp.errors import UserError


def read(tmp_path: Path, text: str, columns: str = "", name: str = "points.csv", encoding: str = "utf-8"):
    path = tmp_path / name
    path.write_bytes(text.encode(encoding))
    return read_table(path, parse_columns(columns) if columns else None)


def refused(tmp_path: Path, text: str, columns: str = "") -> UserError:
    with pytest.raises(UserError) as caught:
        read(tmp_path, text, columns)
    return caught.value


def test_columns_of_any_name(tmp_path: Path):
    text = "C,N,D,val,model,rep,note\n6e18,1e8,9e9,3.1,wide,2,hello\n"
    columns = "flops=C,params=N,tokens=D,loss=val,arm=model,seed=rep"
    (row,), assumed = read(tmp_path, text, columns)
    wanted = {"run": "line 2", "arm": "wide", "seed": 2, "params_total": 1e8, "tokens": 9e9, "loss": 3.1}
    assert wanted.items() <= row.items()
    assert row["flops_consumed"] == row["budget"] == 6e18  # as given, though 6 N D is 5.4e18
    assert row["flops_per_token"] == pytest.approx(6e18 / 9e9 / 3)
    assert assumed == ["1 budget: rows whose FLOPs lie within 1% of a neighbour's share one"]
    assert row["status"] == "done"


def test_one_name_mapped_leaves_the_others(tmp_path: Path):
    (row,), _ = read(tmp_path, "flops,params,val_loss\n6e18,1e8,3.1\n", "loss=val_loss")
    assert (row["loss"], row["arm"], row["seed"]) == (3.1, "runs", 0)


@pytest.mark.parametrize(
    ("header", "values", "third", "flops", "params", "tokens"),
    [
        ("flops,params", "6e18,1e8", "tokens", 6e18, 1e8, 1e10),
        ("flops,tokens", "6e18,1e10", "params", 6e18, 1e8, 1e10),
        ("params,tokens", "1e8,1e10", "flops", 6e18, 1e8, 1e10),
        ("budget,params", "6e18,1e8", "tokens", 6e18, 1e8, 1e10),  # a budget stands for FLOPs
    ],
)
def test_the_missing_third(
    header: str, values: str, third: str, flops: float, params: float, tokens: float, tmp_path: Path
):
    (row,), assumed = read(tmp_path, f"{header},loss\n{values},3.0\n")
    assert row["flops_consumed"] == pytest.approx(flops, rel=1e-12)
    assert row["params_total"] == pytest.approx(params, rel=1e-12)
    assert row["tokens"] == pytest.approx(tokens, rel=1e-12)
    assert row["flops_per_token"] == pytest.approx(2 * params, rel=1e-12)
    assert assumed[0] == f"{third} from C = 6 N D"


def budgets_of(tmp_path: Path, flops: list[str]) -> list[float]:
    rows, assumed = read(tmp_path, "flops,params,loss\n" + "".join(f"{c},1e8,3\n" for c in flops))
    found = [r["budget"] for r in rows]
    assert assumed[-1].startswith(f"{len(set(found))} budget")
    return found


def test_budgets_are_not_bucketed(tmp_path: Path):
    """Tools that bucket to one digit merge 1.5e19 and 2.4e19."""
    assert budgets_of(tmp_path, ["1.5e19", "2.4e19", "1.5e19"]) == [1.5e19, 2.4e19, 1.5e19]


def test_rows_of_nearly_equal_flops_are_one_budget(tmp_path: Path):
    assert budgets_of(tmp_path, ["6.001e18", "5.998e18", "6.2e18"]) == [5.999e18, 5.999e18, 6.2e18]
    rows, _ = read_table(tmp_path / "points.csv")
    points, dropped = select(rows, "params")
    assert dropped == []  # and none of them is told to have missed it
    assert [p.flops for p in points] == [6.001e18, 5.998e18, 6.2e18]


def test_a_budget_column_is_taken_at_its_word(tmp_path: Path):
    text = "budget,flops,params,loss\n6e18,6.001e18,1e8,3\n6e18,6.1e18,2e8,3\n5.99e18,5.99e18,2e8,3\n"
    rows, assumed = read(tmp_path, text)
    assert [r["budget"] for r in rows] == [6e18, 6e18, 5.99e18]
    assert assumed == ["tokens from C = 6 N D"]
    _, dropped = select(rows, "params")
    assert [(d.run, d.reason) for d in dropped] == [
        ("line 3", "missed its budget of 6e18 FLOPs by +1.67% (allowed 0.10%)")
    ]


def test_dense_flops_do_not_chain_into_one_budget(tmp_path: Path):
    """Rows .9 % apart from 1e18 to 1e20: every neighbour is near, and the ends are not one budget."""
    flops = [1e18 * 1.009**i for i in range(515)]
    rows, assumed = read(tmp_path, "flops,params,loss\n" + "".join(f"{c},1e8,3\n" for c in flops))
    spans: dict[float, list[float]] = {}
    for row in rows:
        spans.setdefault(row["budget"], []).append(row["flops_consumed"])
    assert len(spans) == 47  # groups of 11 rows
    assert max(max(of) / min(of) for of in spans.values()) == pytest.approx(1.009**10)
    assert assumed[-1].startswith("47 budgets: rows whose FLOPs lie within 1% of a neighbour's share one")
    assert assumed[-1].endswith("; the widest spans 9.4%")


def test_byte_order_mark_and_tabs(tmp_path: Path):
    bare, _ = read(tmp_path, "flops,params,loss\n6e18,1e8,3\n")
    marked, _ = read(tmp_path, "flops,params,loss\r\n6e18,1e8,3\r\n", encoding="utf-8-sig")
    tabbed, _ = read(tmp_path, "flops\tparams\tloss\n6e18\t1e8\t3\n", name="points.tsv")
    spaced, _ = read(tmp_path, 'flops,params,loss\n 6e18,"1e8" , 3\n')
    assert bare == marked == tabbed == spaced


@pytest.mark.parametrize(
    ("text", "columns", "sentence", "step"),
    [
        ("flops,params\n1,1\n", "", "names no column for loss", "its columns: flops, params"),
        ("flops,loss\n1,1\n", "", "names no column for two of flops, params, tokens", "flops=COLUMN"),
        ("flops,params,loss\n1,1,1\n", "loss=val", "has no column val for loss", "its columns: flops, params, loss"),
        ("", "", "names no column for loss", "say which is which"),
        ("flops\tparams\tloss\n1\t1\t1\n", "", "names no column for loss", "say which"),  # tabs in a .csv
        ("flops,params,loss\n", "", "has a header and no rows", "one row a run"),
        ("flops,params,loss\n1e18,-1e8,3\n", "", ", line 2: params=-1e8 is not a positive number", "mend the row"),
        ("flops,params,loss\n1e18,0,3\n", "", ", line 2: params=0 is not a positive number", "mend the row"),
        ("flops,params,loss\nnan,1e8,3\n", "", ", line 2: flops=nan is not a positive number", "mend the row"),
        ("flops,params,loss\n1e18,1e8,3\n,1e8,3\n", "", ", line 3: flops=nothing is not a positive", "mend the row"),
        ("flops,params,loss\n\n\n1e18,220M,3\n", "", ", line 4: params=220M is not a positive number", "mend the row"),
        ("flops,params,loss\n1e18,1e8,low\n", "", ", line 2: loss=low is not a positive number", "mend the row"),
        ("flops,params,loss\n1e18,1e8,-3\n", "", ", line 2: loss=-3 is not a positive number", "mend the row"),
        ("flops,params,loss,seed\n1e18,1e8,3,a\n", "", ", line 2: seed=a is not a number", "mend the row"),
        ("C,params,loss\n1e18,x,3\n", "flops=C", ", line 2: params=x is not", "mend the row"),
        ("flops,params,loss\n1e18\n", "", ", line 2: params=nothing is not a positive number", "mend the row"),
    ],
)
def test_what_cannot_be_read_is_a_sentence(text: str, columns: str, sentence: str, step: str, tmp_path: Path):
    error = refused(tmp_path, text, columns)
    assert error.sentence.startswith(f"{tmp_path / 'points.csv'}{sentence if sentence[0] == ',' else ' ' + sentence}")
    assert step in error.next_step


@pytest.mark.parametrize("word", ["loss", "losses=val", "=val"])
def test_columns_that_name_nothing(word: str):
    with pytest.raises(UserError, match=f"--columns {word} does not name a column") as caught:
        parse_columns(f"flops=C,{word}")
    assert "loss, flops, params, tokens, budget, arm, seed" in caught.value.next_step


def test_files_that_are_no_tables(tmp_path: Path):
    with pytest.raises(UserError, match=r"cannot be read as a table \(FileNotFoundError\)"):
        read_table(tmp_path / "nowhere.csv")
    with pytest.raises(UserError, match=r"cannot be read as a table \(UnicodeDecodeError\)"):
        read(tmp_path, "flops,params,löss\n", encoding="latin-1")


def test_runs_without_a_loss_and_repeated_rows_are_left_out_with_a_sentence(tmp_path: Path):
    text = "flops,params,loss,seed\n"
    text += "".join(f"6e18,{n}e7,{3 + 0.05 * math.log(n / 4) ** 2},\n" for n in (1, 2, 4, 8, 16))
    text += "6e18,3e7,,0\n6e18,5e7,nan,0\n6e18,6e7,inf,0\n6e18,4e7,3.0,0\n6e18,4e7,3.0,1\n"
    rows, _ = read(tmp_path, text)
    fit = fit_study(rows)
    assert {d.run: d.reason for d in fit.dropped} == {
        "line 7": "has no held-out loss",
        "line 8": "diverged",
        "line 9": "diverged",
        "line 10": "is the same run as line 4",
    }
    assert len(fit.curves[0].points) == 6  # another seed is another run
    assert fit.curves[0].num_sizes == 5


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["fit", "--columns", "loss=L"], "--columns names the columns of a CSV, and none is given"),
        (["fit", "x.csv", "--convention", "6n"], "--convention 6n needs ledgers, and x.csv has none"),
        (["fit", "x.csv", "--nearest", "4"], "--nearest 4 is less than the 5 sizes a parabola needs"),
        (["fit", "x.csv", "--drop-highest", "-1"], "--drop-highest -1 is negative"),
        (["fit", "x.csv", "--resamples", "-1"], "--resamples -1 is negative"),
        (["fit", "x.csv", "y.csv"], "y.csv is one name too many after x.csv"),
        (["fit", "x.csv", "optim.lr=1"], "optim.lr=1 is a setting, and a fit has none"),
        (["fit", "x.csv", "--baseline", "dense"], "baseline=dense is no arm of this study"),
        (["fit", "x.csv", "--axis", "seconds", "--level", "2"], "level=2.0 is not between 0 and 1"),
    ],
)
def test_requests_that_a_table_cannot_meet(
    words: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.csv").write_text("flops,params,loss\n6e18,1e8,3\n")
    assert modexp(words) == 2
    assert f"modexp: error: {sentence}\n" in capsys.readouterr().err
