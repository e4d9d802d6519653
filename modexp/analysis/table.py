"""A table of runs that somebody else trained, as records: whatever names its columns have.

Of FLOPs, parameters and tokens two are needed; C = 6 N D gives the third.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modexp.errors import UserError

COLUMNS = ("loss", "flops", "params", "tokens", "budget", "arm", "seed")
MAY_LACK = ("loss", "seed")  # in a row: a run without a loss is left out of the fit, one without a seed has seed 0
ONE_BUDGET = 1.01  # ratio of neighbours' FLOPs up to which rows without a budget column share one
WIDEST = 1.1  # of the largest over the smallest in one budget: where FLOPs lie dense, neighbours would chain on and on


def parse_columns(text: str) -> dict[str, str]:
    """'flops=C,loss=val_loss' as {'flops': 'C', 'loss': 'val_loss'}."""
    names = {}
    for word in filter(None, text.split(",")):
        name, equals, column = word.partition("=")
        if not equals or name not in COLUMNS:
            raise UserError(f"--columns {word} does not name a column", f"write NAME=COLUMN of: {', '.join(COLUMNS)}")
        names[name] = column
    return names


def read_table(path: Path, columns: Mapping[str, str] | None = None) -> tuple[list[dict[str, Any]], list[str]]:
    """(records, sentences on what was assumed). ``columns``: our name to the table's, where they differ.

    Losses in nats, budgets in training FLOPs. UserError: a file, column or number that cannot be read.
    """
    names = {**{name: name for name in COLUMNS}, **(columns or {})}
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
            rows = [(reader.line_num, row) for row in reader]  # blank lines are skipped, and counted
            header = list(reader.fieldnames or [])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"{path} cannot be read as a table ({type(error).__name__})", "give a CSV with a header"
        ) from None
    for name, column in (columns or {}).items():
        if column not in header:
            raise UserError(f"{path} has no column {column} for {name}", f"its columns: {', '.join(header)}")
    present = {name for name, column in names.items() if column in header}
    if "budget" in present and "flops" not in present:
        names["flops"] = names["budget"]
        present.add("flops")
    sizes = present & {"flops", "params", "tokens"}
    if "loss" not in present or len(sizes) < 2:
        lacking = "loss" if "loss" not in present else "two of flops, params, tokens"
        raise UserError(
            f"{path} names no column for {lacking}",
            f"say which is which: --columns flops=COLUMN,params=COLUMN,loss=COLUMN; its columns: {', '.join(header)}",
        )
    if not rows:
        raise UserError(f"{path} has a header and no rows", "give a CSV with one row a run")
    records = [record_of(path, line, row, names, present) for line, row in rows]
    assumed = []
    if len(sizes) == 2:
        (third,) = {"flops", "params", "tokens"} - sizes
        assumed.append(f"{third} from C = 6 N D")
    if "budget" not in present:
        budgets, widest = group_by_flops(records)
        several = f"{budgets} budget{'s' if budgets > 1 else ''}"
        spread = f"; the widest spans {widest:.1%}" if widest > ONE_BUDGET - 1 else ""
        assumed.append(
            f"{several}: rows whose FLOPs lie within {ONE_BUDGET - 1:.0%} of a neighbour's share one{spread}"
        )
    return records, assumed


def record_of(
    path: Path, line: int, row: Mapping[str, str], names: Mapping[str, str], present: set[str]
) -> dict[str, Any]:
    def number(name: str) -> float | None:
        if name not in present:
            return None
        text = (row[names[name]] or "").strip()
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if name in MAY_LACK and not text:
            return None
        diverged = name == "loss" and text.lower().lstrip("+-") in ("nan", "inf", "infinity")
        if not diverged and not (math.isfinite(value) and (value > 0 or name == "seed")):
            raise UserError(
                f"{path}, line {line}: {names[name]}={text or 'nothing'} is not a"
                f" {'number' if name == 'seed' else 'positive number'}",
                "mend the row, or take it out",
            )
        return value

    flops, params, tokens, seed = (number(name) for name in ("flops", "params", "tokens", "seed"))
    if flops is None:
        assert params, f"Got {row}"
        assert tokens, f"Got {row}"
        flops = 6 * params * tokens
    params = params or flops / (6 * (tokens or math.nan))
    tokens = tokens or flops / (6 * params)
    arm = (row[names["arm"]] or "").strip() if "arm" in present else "runs"
    return {
        "run": f"line {line}",
        "status": "done",
        "arm": arm or "runs",
        "budget": number("budget") or flops,
        "seed": int(seed or 0),
        "loss": number("loss"),
        "params_total": params,
        "tokens": tokens,
        "flops_per_token": flops / tokens / 3,  # a forward pass is a third of training
        "flops_consumed": flops,
        "epochs": 0.0,
        "routed": False,
    }


def group_by_flops(records: list[dict[str, Any]]) -> tuple[int, float]:
    """Give rows of nearly equal FLOPs one budget, their geometric mean; the number of budgets, and by what share
    FLOPs differ in the widest."""
    ordered = sorted(records, key=lambda r: float(r["flops_consumed"]))
    groups: list[list[dict[str, Any]]] = []
    for row in ordered:
        flops, last = row["flops_consumed"], groups[-1] if groups else []
        near = last and flops <= min(ONE_BUDGET * last[-1]["flops_consumed"], WIDEST * last[0]["flops_consumed"])
        if near:
            groups[-1].append(row)
        else:
            groups.append([row])
    for group in groups:
        budget = math.exp(sum(math.log(r["flops_consumed"]) for r in group) / len(group))
        budget = float(f"{budget:.4g}")  # its name: groups' means lie at least 1 % apart
        for row in group:
            row["budget"] = budget
            row["budget_tolerance"] = group[-1]["flops_consumed"] / group[0]["flops_consumed"] - 1
    return len(groups), max(float(group[0]["budget_tolerance"]) for group in groups)
