"""One study under every FLOP convention: the exponents, and the comparison of arms at equal training FLOPs.

It shows whether a conclusion is of the models or of how their FLOPs are counted: a difference that changes its side of
zero from row to row rests on the convention. Re-read losses are moved to equal FLOPs: see modexp.analysis.reread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from modexp.analysis.compare import Difference
from modexp.analysis.isoflop import StudyFit
from modexp.analysis.points import AXES, Record
from modexp.errors import UserError
from modexp.plots import forest, style
from modexp.plots.fitted import arms_in, by_reason, refusals_note, runs_note, shade_key, sheet
from modexp.wording import budget_text

WIDTH = 7.2  # inches


def draw(
    fits: Mapping[str, StudyFit],
    refusals: Mapping[str, str],
    planned: str,
    records: Sequence[Record],
    out_dir: Path,
    stem: str = "conventions",
    *,
    title: str = "",
    unit: str = "token",
) -> style.Drawn:
    """Write stem.png, stem.svg, stem.csv (exponents) and, where arms compare, stem_differences.csv.

    ``fits`` by convention, ``refusals`` for those that have none, ``planned``: the one the budgets are counted in.
    UserError where there is neither an exponent nor a comparison.
    """
    differences = {(name, d.arm, d.budget): d for name, fit in fits.items() for d in fit.comparisons}
    exponents = {(name, e.arm): e for name, fit in fits.items() for e in fit.exponents}
    if not differences and all(e.exponent is None for e in exponents.values()):
        reason = next((e.refusal for e in exponents.values()), next(iter(refusals.values()), "there are no runs"))
        raise UserError(f"no convention gives an exponent or a comparison: {reason}", "modexp fit says what is missing")
    first = next(iter(fits.values()))
    arms, baseline = arms_in(first), first.baseline
    budgets = sorted({budget for _, _, budget in differences})
    names = {name: f"{name}, as planned" if name == planned else name for name in fits}
    groups = {arm: list(names.values()) for arm in arms}
    lines = [*runs_note(first, records), *note_of(fits, refusals, differences)]
    note = style.wrapped(lines, WIDTH)
    height = 0.5 + (0.13 + 0.045 * max(1, len(budgets))) * forest.height(groups)

    with style.context():
        from matplotlib.lines import Line2D

        bar: dict[str, Any] = {"linewidth": 1.1, "marker": "|", "markersize": 5}
        key = [Line2D([], [], color=style.GREY, **bar, label=f"{first.level:.0%} interval"), *shade_key(budgets)]
        figure, body, _ = sheet(WIDTH, height, [[handle] for handle in key], note)
        left, right = body.subplots(1, 2, sharey=True)
        places = forest.lay_out(left, groups, right)
        known = [(e.exponent, e.low, e.high) for e in exponents.values() if e.exponent is not None]
        if known:
            left.set_xlim(*forest.limits(known))
        else:
            left.set_xticks([])
        if differences:
            right.set_xlim(*forest.limits([*((d.difference, d.low, d.high) for d in differences.values()), ZERO]))
            right.axvline(0.0, color=style.GREY, linewidth=0.8, zorder=1)
        else:
            right.set_xticks([])
        for (name, arm), e in exponents.items():
            y = places[arm, names[name]]
            if e.exponent is not None:
                forest.draw_interval(left, y, (e.exponent, e.low, e.high), style.stroke(arms, baseline, arm, 0.75))
            else:
                say(left, y, "no exponent")
        for (name, arm, budget), d in differences.items():
            i = budgets.index(budget)
            y = places[arm, names[name]] + (i - (len(budgets) - 1) / 2) * 0.75 / len(budgets)
            stroke = style.stroke(arms, baseline, arm, style.shades(len(budgets))[i])
            forest.draw_interval(right, y, (d.difference, d.low, d.high), stroke, 3.5)
        for arm in arms:
            if arm == baseline:
                say(right, places[arm, next(iter(names.values()))], "others are compared with it")
            elif not any(key[1] == arm for key in differences):
                say(right, places[arm, next(iter(names.values()))], f"no budget with its and {baseline}'s optimum")
        left.set_xlabel(f"exponent a of optimum ~ C^a\n({AXES[first.axis].label})")
        right.set_xlabel(f"best loss less {baseline}'s\nat equal training FLOPs (nats per {unit})")
        if title:
            figure.suptitle(title)
        paths = style.save(figure, out_dir / stem)
    paths.append(style.save_csv(exponent_rows(fits, refusals), out_dir / f"{stem}.csv"))
    if differences:
        rows = [difference_row(name, d) for (name, _, _), d in differences.items()]
        paths.append(style.save_csv(rows, out_dir / f"{stem}_differences.csv"))
    return style.Drawn(paths, note)


ZERO = (0.0, None, None)  # always in sight: the side of it is the conclusion


def say(axes: Any, y: float, text: str) -> None:
    free: dict[str, Any] = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
    place = axes.get_yaxis_transform()
    axes.text(0.03, y, text, transform=place, va="center", fontsize=6.5, color=style.GREY, bbox=free)


def verdict(d: Difference) -> str:
    if not d.distinguishable:
        return "not distinguishable"
    return "lower" if d.difference < 0 else "higher"


def note_of(
    fits: Mapping[str, StudyFit],
    refusals: Mapping[str, str],
    differences: Mapping[tuple[str, str, float], Difference],
) -> list[str]:
    """Comparisons that rest on the convention; then refusals, each reason once."""
    lines = []
    for arm, budget in dict.fromkeys((arm, budget) for _, arm, budget in differences):
        said: dict[str, list[str]] = {}
        for name in fits:
            if d := differences.get((name, arm, budget)):
                said.setdefault(verdict(d), []).append(name)
        if len(said) > 1:
            parts = "; ".join(f"{text} under {', '.join(names)}" for text, names in said.items())
            lines.append(f"{arm} at {budget_text(budget)}: the conclusion rests on the convention: {parts}")
    lines += [f"{names}: {reason}" for names, reason in by_reason(refusals.items())]
    refused = [(name, line) for name, fit in fits.items() for line in refusals_note(fit)]
    everywhere = ", ".join(fits)
    return lines + [line if names == everywhere else f"{line} ({names})" for names, line in by_reason(refused)]


def exponent_rows(fits: Mapping[str, StudyFit], refusals: Mapping[str, str]) -> list[dict[str, Any]]:
    """One row a convention and arm; one for a convention that refuses the whole study."""
    rows: list[dict[str, Any]] = []
    for name, fit in fits.items():
        for e in fit.exponents:
            row: dict[str, Any] = {"convention": name, "axis": fit.axis, "level": fit.level, "arm": e.arm}
            rows.append({**row, "exponent": e.exponent, "low": e.low, "high": e.high, "refusal": e.refusal})
    return rows + [{"convention": name, "refusal": reason} for name, reason in refusals.items()]


def difference_row(name: str, d: Difference) -> dict[str, Any]:
    row: dict[str, Any] = {"convention": name, "arm": d.arm, "baseline": d.baseline, "budget": d.budget}
    return {**row, "difference": d.difference, "low": d.low, "high": d.high, "verdict": verdict(d)}
