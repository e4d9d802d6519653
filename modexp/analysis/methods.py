"""The methods sheet that goes with every fit: what was counted, used, dropped, fitted and how, as Markdown.

After the checklist of "(Mis)Fitting: A Survey of Scaling Laws" (Li et al. 2025).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from modexp.analysis.curve import MIN_SIZES, OUTER_SHARE, WIDEST_GRID
from modexp.analysis.points import AXES, Record
from modexp.analysis.report import Report
from modexp.analysis.surface import EXPONENTS
from modexp.flops.ledger import CONVENTIONS
from modexp.wording import budget_text, size_text


def methods_sheet(report: Report, records: Sequence[Record], about: Mapping[str, str], level: float) -> str:
    """Markdown. ``about``: what the fit cannot know (data, schedule, precision, source), a line each."""
    fit = report.fit
    conventions = {str(r.get("convention") or "") for r in records} - {""}
    convention = conventions.pop() if len(conventions) == 1 else ""
    lines = ["# Methods of this fit", "", "## What the letters mean", ""]
    lines += [f"- N: {AXES[fit.axis].label} (axis `{fit.axis}`)", "- D: training tokens, repeated ones included"]
    lines.append(f"- C: training FLOPs{counted(convention, any('flops_reread' in r for r in records))}")
    lines.append(
        "- L: held-out loss in nats a token; conditional arms with causal routing at the FLOPs it really spent"
    )
    lines += ["", "## Runs", ""]
    lines += [f"- {key}: {value}" for key, value in about.items()]
    used = sum(len(curve.points) for curve in fit.curves)
    lines.append(f"- {used} of {len(records)} runs enter. {fit.rule}")
    reasons = Counter(d.reason for d in fit.dropped)
    lines += [f"- left out: {', '.join(d.run for d in fit.dropped if d.reason == r)}: {r}" for r in reasons]
    lines += ["", "| arm | budget (FLOPs) | runs | sizes | smallest .. largest |", "|---|---|---|---|---|"]
    for c in fit.curves:
        span = (
            f"{size_text(min(p.x for p in c.points))} .. {size_text(max(p.x for p in c.points))}" if c.points else "-"
        )
        lines.append(f"| {c.arm} | {budget_text(c.budget)} | {len(c.points)} | {c.num_sizes} | {span} |")
    noise = "unknown" if fit.noise_sd is None else f"{fit.noise_sd:.5f} nats"
    lines += ["", "## Fits", ""]
    lines += [
        "- Parabola (Hoffmann et al. 2022, Approach 2): least squares of L in ln N, one for each arm and budget,"
        f" at least {MIN_SIZES} sizes; refused where the vertex lies outside the grid or the curvature cannot be told"
        f" from zero at {level:.0%}; warned of where it lies in the outer {OUTER_SHARE:.0%} of the grid or the grid is"
        f" wider than {WIDEST_GRID:.0f}x. Exponent: the line through the optima in ln C, weighted by their variances.",
        f"- Noise of one run: {noise}, pooled over all curves ({fit.dof} degrees of freedom). Intervals at {level:.0%}:"
        " Fieller's for N*, the delta method with Student's t for exponents and losses; differences of arms from runs"
        " paired by seed and FLOPs per token.",
    ]
    lines.append(
        "- Plain parabola: of log loss, refused only where the vertex lies outside the grid or there is none, and a"
        " line in which all optima weigh alike: a check of the weights, without an interval."
    )
    lines.append(
        "- Akima (Porian et al. 2024): a spline of the best log loss per size in log size, its minimum, a least-squares"
        " line; intervals by redrawing the noise above."
    )
    lines += [method_line(report, name, text.format(starts=STARTS)) for name, text in SURFACES.items()]
    if fit.left_out:
        lines.append("- Hold-out: every budget predicted from the others (below).")
    lines += ["", "## Results", "", *result_lines(report)]
    return "\n".join(lines) + "\n"


STARTS = (
    f"alpha and beta each at {len(EXPONENTS)} values from {EXPONENTS[0]:g} to {EXPONENTS[-1]:g}, with E, A, B solved"
    " linearly (none below zero)"
)
SURFACES = {
    "approach3": "Approach 3 (Hoffmann et al. 2022, as corrected by Besiroglu et al. 2024):"
    " L = E + A/N^alpha + B/D^beta, sum of Huber(1e-3) on log L; starts: {starts}; Newton's method with exact"
    " derivatives",
    "vpnls": "Variable projection (Czech et al. 2026): the same surface, sum of squares of the relative error; starts:"
    " {starts}; then Newton's method in all five, to the same minimum",
}


def counted(convention: str, reread: bool) -> str:
    if not convention:
        return ""
    again = "; the losses of a budget are moved to equal FLOPs along a quadratic surface" if reread else ""
    return f" under the convention `{convention}`: {CONVENTIONS[convention].description}{again}"


def method_line(report: Report, method: str, text: str) -> str:
    fitted = [s for s in report.surfaces if s.method == method and s.surface]
    if not fitted:
        refusals = {s.refusal for s in report.surfaces if s.method == method}
        return f"- {text}: refused ({'; '.join(sorted(refusals))})."
    starts = ", ".join(
        f"{s.arm}: {s.surface.agreeing} of {s.surface.starts} starts agree"
        f"{'' if s.surface.converged else ', NOT converged'}"
        for s in fitted
        if s.surface
    )
    refits = f"; intervals by bootstrap of the runs, {min(s.refits for s in fitted)} refits" if fitted[0].refits else ""
    return f"- {text}; {starts}{refits}."


def result_lines(report: Report) -> list[str]:
    lines = ["| arm | method | exponent | interval |", "|---|---|---|---|"]
    for row in exponent_rows(report):
        interval = f"{row['low']:.4f} .. {row['high']:.4f}" if row["low"] is not None else "-"
        value = f"{row['exponent']:.4f}" if row["exponent"] is not None else row["refusal"]
        lines.append(f"| {row['arm']} | {row['method']} | {value} | {interval} |")
    if report.fit.left_out:
        lines += ["", "| arm | budget left out | exponent of the others | predicted / found |", "|---|---|---|---|"]
    for out in report.fit.left_out:
        ratio = "-" if out.predicted is None else f"{out.predicted / out.found:.3f}"
        exponent = "-" if out.exponent is None else f"{out.exponent:.4f}"
        lines.append(f"| {out.arm} | {budget_text(out.budget)} | {exponent} | {ratio} |")
    sentences = [f"{s.arm}, {s.method}: {w}" for s in report.surfaces for w in s.warnings] + list(report.warnings)
    few = [c for c in report.fit.curves if c.num_sizes < MIN_SIZES]
    for c in report.fit.curves:
        notes = (c.refusal, *c.warnings) if c not in few else ()
        sentences += [f"{c.arm} at {budget_text(c.budget)}: {text}" for text in notes if text]
    if few:
        budgets = ", ".join(f"{c.arm} at {budget_text(c.budget)}" for c in few)
        sentences.append(f"no parabola with fewer than {MIN_SIZES} sizes: {budgets}")
    sentences += [f"{e.arm}: {w}" for e in report.fit.exponents for w in e.warnings]
    sentences += [f"guard: {verdict.sentence}" for verdict in report.guards]
    return [*lines, *(["", "Warnings and refusals:", ""] if sentences else []), *(f"- {s}" for s in sentences)]


def exponent_rows(report: Report) -> list[dict[str, Any]]:
    """One row an arm and method: exponent of the optimum, with its interval where there is one."""
    rows: list[dict[str, Any]] = []
    for e in report.fit.exponents:
        row: dict[str, Any] = {"arm": e.arm, "method": "parabola", "exponent": e.exponent}
        rows.append({**row, "low": e.low, "high": e.high, "refusal": e.refusal})
        plain = report.plain[e.arm]
        row = {"arm": e.arm, "method": "plain parabola", "exponent": plain.exponent}
        rows.append({**row, "low": None, "high": None, "refusal": plain.refusal})
        akima = report.interpolated[e.arm]
        row = {"arm": e.arm, "method": "akima", "exponent": akima.exponent}
        rows.append({**row, "low": akima.low, "high": akima.high, "refusal": akima.refusal})
        for s in report.surfaces:
            if s.arm == e.arm:
                low, high = s.intervals.get("a", (None, None))
                row = {"arm": s.arm, "method": s.method, "exponent": s.exponent}
                rows.append({**row, "low": low, "high": high, "refusal": s.refusal})
    return rows
