"""What commands share: flags and overrides in any order, tables, and where studies lie."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from modexp.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

    from modexp.analysis.isoflop import StudyFit


class Parser(argparse.ArgumentParser):
    """Complains as the rest of the command line does."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message, f"{self.prog} --help shows what there is")


def parser(command: str, description: str, add_help: bool = True) -> Parser:
    return Parser(prog=f"modexp {command}", description=description, allow_abbrev=False, add_help=add_help)


def add_budget(p: argparse.ArgumentParser) -> None:
    p.add_argument("--budget", action="append", default=[], metavar="FLOPS", help="6e18, or 6e18,2e19; repeatable")


def add_json(p: argparse.ArgumentParser) -> None:
    p.add_argument("--json", action="store_true", help="print JSON to stdout")


def add_precision(p: argparse.ArgumentParser) -> None:
    """Of decoding."""
    said = "of matrices and caches (default: fp32)"
    p.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help=said)


def add_study(p: argparse.ArgumentParser) -> None:
    p.add_argument("--study", metavar="STUDY", help="a name under the runs directory, or a path; default: the latest")
    p.add_argument("--runs-dir", default="runs", metavar="DIR", help="where studies lie (default: runs)")


def add_convention(p: argparse.ArgumentParser, also: str = "") -> None:
    p.add_argument("--level", type=float, default=0.90, help="of all intervals (default: 0.90)")
    p.add_argument(
        "--convention",
        metavar="CONVENTION",
        help=f"count FLOPs as matmul | causal | chinchilla | palm | kaplan | 6n{also} (default: as planned)",
    )


def add_exclusions(p: argparse.ArgumentParser) -> None:
    p.add_argument("--nearest", type=int, metavar="K", help="fit parabolas to the K sizes nearest each lowest loss")
    p.add_argument(
        "--drop-highest", type=int, default=0, metavar="K", help="leave out the K highest losses of each arm"
    )
    p.add_argument("--drop-outliers", action="store_true", help="leave out runs far off their arm's loss surface")


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names, and overrides (whatever holds ``=`` or removes with ``~``)."""
    overrides = [w for w in words if "=" in w or w.startswith("~")]
    return [w for w in words if w not in overrides], overrides


def one_name(names: list[str], default: str) -> str:
    if len(names) > 1:
        raise UserError(f"{names[1]} is one name too many after {names[0]}", "settings are written key=value")
    return names[0] if names else default


def study_path(study: str | None, runs_dir: str) -> Path:
    """The study asked for, or the latest, whose name is told."""
    from modexp.analysis.records import latest_study

    if study is None:
        found = latest_study(Path(runs_dir))
        note(f"study {found.name} (the latest under {runs_dir})")
        return found
    for place in (Path(runs_dir) / study, Path(study)):
        if place.is_dir():
            return place
    known = sorted(p.name for p in Path(runs_dir).glob("*/") if p.is_dir())
    raise UserError(f"there is no study {study} under {runs_dir}", f"known: {', '.join(known)}" if known else "")


def study_records(study: Path, convention: str | None = None) -> list[dict[str, Any]]:
    """The study's runs; those that cannot be read are told and left out."""
    from modexp.analysis.records import records
    from modexp.config.base import one_of
    from modexp.flops.ledger import CONVENTIONS

    if convention is not None:
        one_of("--convention", convention, tuple(CONVENTIONS))
    damaged: list[str] = []
    rows = records(study, damaged, convention)
    for sentence in damaged:
        note(f"warning: left out: {sentence}")
    return rows


def table_path(name: str | None) -> Path | None:
    """The table that is named; None where a study is."""
    return Path(name) if name and name.endswith((".csv", ".tsv")) else None


def read_csv(path: Path, columns: str | None) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Somebody else's runs as records, and what the methods sheet says of them; what was assumed is told."""
    from modexp.analysis.table import parse_columns, read_table

    rows, assumed = read_table(path, parse_columns(columns) if columns else None)
    for sentence in assumed:
        note(f"assumed: {sentence}")
    return rows, {
        "table": str(path),
        "trained": "elsewhere; nothing is known but the table",
        "assumed": "; ".join(assumed),
    }


def convention_fits(
    study: Path,
    axis: str,
    level: float,
    baseline: str | None = None,
    nearest: int | None = None,
    drop_highest: int = 0,
    drop_outliers: bool = False,
) -> tuple[dict[str, StudyFit], dict[str, str]]:
    """The study's parabolas under every convention, and a sentence for each that refuses."""
    from modexp.analysis.report import fit_kept
    from modexp.flops.ledger import CONVENTIONS

    fits, refusals = {}, {}
    for name in CONVENTIONS:
        try:
            rows = study_records(study, name)
            _, fits[name] = fit_kept(rows, axis, level, baseline, nearest, drop_highest, drop_outliers)
        except UserError as error:
            refusals[name] = error.sentence
    return fits, refusals


def note(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, default=str))


NOTE = 24  # letters that a column of notes needs at least
TEXT_COLUMNS = ("run", "arm", "shape", "status", "note", "interval", "routing", "model", "block", "term", "convention")


def table_of(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title or None, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for column in columns:
        table.add_column(column, justify="left" if column in TEXT_COLUMNS else "right", no_wrap=column != "note")
    for row in rows:
        table.add_row(*row)
    return table


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "", optional: Sequence[str] = ()
) -> None:
    """To stdout, at its natural width; a terminal too narrow for that loses ``optional`` columns, first named first."""
    from rich.console import Console

    def width_of(table: Table) -> int:
        return Console(width=4096).measure(table).maximum

    def cut(shown: Sequence[str], wraps: bool = False) -> Table:
        lines = [[row[columns.index(column)] for column in shown] for row in rows]
        # one row of long cells looks the same where nothing wraps, and of 2,000 rows takes a third of the time
        together = [["\n".join(cells) for cells in zip(*lines, strict=True)]]
        return table_of(shown, lines if wraps or not rows else together, title)

    console = Console(highlight=False)
    shown = list(columns)
    for column in optional:
        if column in shown and console.is_terminal and width_of(cut(shown)) > console.width:
            shown.remove(column)
    if len(shown) < len(columns):
        note(f"the terminal is too narrow for: {', '.join(c for c in columns if c not in shown)}; --json shows all")
    table = cut(shown, wraps=console.is_terminal and width_of(cut(shown)) > console.width)
    if not console.is_terminal:
        console = Console(highlight=False, width=4096)  # wider than any table: each has its natural width
    else:  # notes wrap; a number that is cut off would be another number, so the terminal may break a line instead
        numbers = [column for column in shown if column != "note"]
        console.width = max(console.width, width_of(cut(numbers)) + (NOTE if "note" in shown else 0))
    console.print(table)
