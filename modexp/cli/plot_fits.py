"""Figures of fits: modexp plot fit | residuals | exponents, of a study or of a table, and conventions."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from modexp.cli.common import convention_fits, read_csv, study_path, study_records, table_path
from modexp.cli.plot import unit_of
from modexp.errors import UserError


def draw_fit(args: argparse.Namespace, axis: str) -> Any:
    """One of the figures that show a whole report. A table's are written here where no --out is given."""
    from modexp.analysis.report import report
    from modexp.plots import exponents, fit, residuals

    name = args.study or args.name
    look: dict[str, Any]
    if table := table_path(name):
        if args.convention:
            raise UserError(f"--convention {args.convention} needs ledgers, and {table} has none", "leave it out")
        rows, _ = read_csv(table, args.columns)
        out, look = Path(args.out or "."), {"title": table.stem}
    else:
        if args.columns:
            raise UserError(
                "--columns names the columns of a CSV, and none is given",
                f"modexp plot {args.figure} points.csv --columns ...",
            )
        study = study_path(name, args.runs_dir)
        rows = study_records(study, args.convention)
        out, look = Path(args.out) if args.out else study, {"title": study.name}
        if args.figure == "fit":
            look["unit"] = unit_of(study)
    stem = args.figure
    if args.convention:
        stem, look["title"] = f"{stem}-{args.convention}", f"{look['title']}, FLOPs as {args.convention}"
    if table and table.parent.resolve() == out.resolve() and f"{table.stem}_".startswith(f"{stem}_"):
        raise UserError(f"{table} could be overwritten by the figure's tables", "choose another place with --out DIR")
    found = report(
        rows,
        axis,
        args.level,
        resamples=1000 if args.figure == "exponents" else 0,  # only its intervals come from them
        nearest=args.nearest,
        drop_highest=args.drop_highest,
        drop_outliers=args.drop_outliers,
    )
    draw = {"fit": fit.draw, "residuals": residuals.draw, "exponents": exponents.draw}[args.figure]
    return draw(found, rows, out, stem, **look)


def draw_conventions(study: Path, out: Path, axis: str, level: float) -> Any:
    from modexp.plots import conventions

    rows = study_records(study)
    fits, refusals = convention_fits(study, axis, level)
    planned = str(rows[0]["convention"])
    return conventions.draw(fits, refusals, planned, rows, out, title=study.name, unit=unit_of(study))
