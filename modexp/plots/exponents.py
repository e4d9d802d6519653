"""The exponent of every arm by every method, one below another, and how it holds when a budget is left out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modexp.analysis.methods import exponent_rows
from modexp.analysis.points import AXES, Record
from modexp.analysis.report import Report
from modexp.errors import UserError
from modexp.plots import forest, style
from modexp.plots.fitted import arms_in, by_reason, runs_note, sheet, value_text, warnings_note
from modexp.wording import budget_text

WIDTH = 6.0  # inches
ROW = 0.19  # inches
WITHOUT = "parabola without "


def draw(
    report: Report, records: Sequence[Record], out_dir: Path, stem: str = "exponents", *, title: str = ""
) -> style.Drawn:
    """Write stem.png, stem.svg and stem.csv. UserError where every method refuses every arm."""
    fit = report.fit
    arms = arms_in(fit)
    rows = exponent_rows(report)
    drawn = [r for r in rows if r["exponent"] is not None]
    if not drawn:
        reasons = "; ".join(f"{r['arm']}, {r['method']}: {r['refusal']}" for r in rows[:2])
        raise UserError(f"no exponent to draw: {reasons or 'there are no runs'}", "sweep another budget")
    others = [o for o in fit.left_out if o.exponent is not None]
    groups = {arm: [r["method"] for r in rows if r["arm"] == arm] for arm in arms}
    note = style.wrapped([*runs_note(fit, records, len(report.points)), *note_of(report, rows)], WIDTH)
    height = 0.45 + ROW * forest.height(groups)

    with style.context():
        key = key_of(fit.level, bool(others))
        figure, body, _ = sheet(WIDTH, height, [[handle] for handle in key], note)
        axes = body.add_subplot()
        places = forest.lay_out(axes, groups)
        intervals = {(r["arm"], r["method"]): (r["exponent"], r["low"], r["high"]) for r in drawn}
        axes.set_xlim(*forest.limits([*intervals.values(), *((float(o.exponent or 0), None, None) for o in others)]))
        for (arm, method), y in places.items():
            stroke = style.stroke(arms, fit.baseline, arm, 0.75)
            if method == "parabola":
                left_out = [o.exponent for o in others if o.arm == arm and o.exponent is not None]
                axes.plot(left_out, [y + 0.32] * len(left_out), color=stroke.color, **SMALL, zorder=3)
            if (arm, method) in intervals:
                forest.draw_interval(axes, y, intervals[arm, method], stroke)
            text = value_text(*intervals[arm, method]) if (arm, method) in intervals else "refused"
            axes.text(1.02, y, text, transform=axes.get_yaxis_transform(), va="center", fontsize=7)
        axes.set_xlabel(f"exponent a of optimum ~ C^a ({AXES[fit.axis].label})")
        if title:
            figure.suptitle(title)
        paths = style.save(figure, out_dir / stem)
    table = [{"axis": fit.axis, "level": fit.level, **row} for row in rows]
    for o in fit.left_out:
        refusal = "" if o.exponent is not None else "fewer than two budgets remain"
        row = {"arm": o.arm, "method": f"{WITHOUT}{budget_text(o.budget)}", "exponent": o.exponent}
        table.append({"axis": fit.axis, "level": fit.level, **row, "low": None, "high": None, "refusal": refusal})
    paths.append(style.save_csv(table, out_dir / f"{stem}.csv"))
    return style.Drawn(paths, note)


SMALL: dict[str, Any] = {"marker": 6, "linestyle": "none", "markersize": 2.8}  # 6: a caret that points up


def key_of(level: float, left_out: bool) -> list[Any]:
    from matplotlib.lines import Line2D

    bar: dict[str, Any] = {"linewidth": 1.1, "marker": "|", "markersize": 5}
    handles = [Line2D([], [], color=style.GREY, **bar, label=f"{level:.0%} interval")]
    if left_out:
        handles.append(Line2D([], [], color=style.GREY, **SMALL, label="the parabola's, one budget left out"))
    return handles


def note_of(report: Report, rows: Sequence[dict[str, Any]]) -> list[str]:
    """Refusals, each with its reason, and what speaks against an exponent that is drawn."""
    refused = by_reason((f"{r['arm']} by {r['method']}", r["refusal"]) for r in rows if r["exponent"] is None)
    warned = by_reason((f"{s.arm} by {s.method}", warning) for s in report.surfaces for warning in s.warnings)
    return [
        *(f"refused: {which}: {reason}" for which, reason in refused),
        *warnings_note(report.fit),
        *(f"{which}: {warning}" for which, warning in warned),
    ]
