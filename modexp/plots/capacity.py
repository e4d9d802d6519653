"""Loss against capacity, a line for each routing frequency (the tuning behind MoD paper, Fig. 3), and for whatever else
arms differ in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from modexp.analysis.isoflop import fit_study
from modexp.analysis.points import Point, Record, arms_of, baseline_of, select
from modexp.errors import UserError
from modexp.plots import style
from modexp.plots.panel import COST, missing, require_points
from modexp.wording import budget_text

WIDTH = 5.2  # inches
# settings that are drawn, that the group names, or that size and budget bring with them
TOLD = ("kind", "capacity", "every", "layers", "offset", "n_layers", "d_model", "n_heads")
STANDS_IN = (0, (1, 1.5))  # dots of a baseline whose best run stands in for its optimum


@dataclass(frozen=True)
class Best:
    """What one arm reaches at one budget: its fitted optimum, or its best run where there is none."""

    arm: str
    budget: float
    group: str  # kind, frequency and what else differs, as the legend has them
    capacity: float | None  # mean over the routed blocks; None for a dense arm
    loss: float
    loss_low: float | None
    loss_high: float | None

    @property
    def is_fitted(self) -> bool:
        return self.loss_low is not None


def draw(
    records: Sequence[Record],
    out_dir: Path,
    stem: str = "capacity",
    *,
    title: str = "",
    unit: str = "token",
    level: float = 0.90,
) -> style.Drawn:
    """Write stem.png, stem.svg and stem.csv. UserError while no run is finished, or where no arm has a capacity."""
    if records and all(share_of(r) is None for r in records):
        raise UserError("no arm of the study has a capacity to draw", "sweeps/figure3_tuning.yaml varies it")
    points, _ = select(records, COST)
    require_points(points, records)
    best = found(records, points, level)
    baseline = baseline_of(records)
    groups = list(dict.fromkeys(b.group for b in best if b.capacity is not None))
    budgets = sorted({b.budget for b in best})
    lines = [*missing(records, len(points)), *note_of(records, best, baseline)]
    note = style.wrapped(lines, WIDTH)

    with style.context():
        from matplotlib.lines import Line2D
        from matplotlib.ticker import FixedLocator, NullLocator

        names = [baseline, *groups]
        columns: list[list[Any]] = [[] for _ in names]
        curves = []
        for budget, shade in zip(budgets, style.shades(len(budgets)), strict=True):
            for i, group in enumerate(names):
                mine = [b for b in best if b.budget == budget and (b.group == group or b.arm == baseline == group)]
                if mine:
                    stroke = style.stroke(names, baseline, group, shade)
                    label = f"{budget_text(budget)}  {group}"
                    marker = None if group == baseline else stroke.marker
                    if group == baseline and not mine[0].is_fitted:
                        stroke = replace(stroke, linestyle=STANDS_IN)
                    curves.append((group, stroke, sorted(mine, key=lambda b: b.capacity or 0.0)))
                    columns[i].append(Line2D([], [], **stroke.line(), marker=marker, label=label))
        columns = style.folded([c for c in columns if c], 3)
        columns += [key] if (key := key_of(best, level)) else []
        foot = style.footer_height(max(map(len, columns)), len(note.splitlines()))
        figure = style.new_figure(max(WIDTH, style.legend_width(columns)), 3.2 + foot)
        grid = figure.add_gridspec(2, 1, height_ratios=[3.2, foot])
        axes = figure.add_subplot(grid[0])
        for group, stroke, mine in curves:
            if group == baseline:
                axes.axhline(mine[0].loss, **stroke.line(), zorder=2)
                continue
            drawn = [(b.capacity, b) for b in mine if b.capacity is not None]
            axes.plot([x for x, _ in drawn], [b.loss for _, b in drawn], **stroke.line(), zorder=2.5)
            for x, b in drawn:
                face = stroke.color if b.is_fitted else "white"
                axes.plot(x, b.loss, **{**stroke.marks(), "markerfacecolor": face}, zorder=3)
                if b.loss_low is not None and b.loss_high is not None:
                    axes.plot([x, x], [b.loss_low, b.loss_high], color=stroke.color, linewidth=0.9, zorder=2.8)
        shares = sorted({b.capacity for b in best if b.capacity is not None})
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(FixedLocator(ticks(shares)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(lambda share, _: f"{100 * share:.3g} %")
        axes.set_xlabel("capacity: share of the tokens that a routed block takes")
        axes.set_ylabel(f"held-out loss (nats per {unit})")
        if title:
            figure.suptitle(title)
        style.footer(figure.add_subplot(grid[1]), columns, note)
        paths = style.save(figure, out_dir / stem)
    return style.Drawn([*paths, style.save_csv(table(records, best, points), out_dir / f"{stem}.csv")], note)


def found(records: Sequence[Record], points: Sequence[Point], level: float) -> list[Best]:
    """The best of each arm and budget that has a finished run."""
    fit = fit_study(records, COST, level)
    of_arm, groups = {str(r["arm"]): r for r in records}, groups_of(records)
    best = []
    for curve in fit.curves:
        losses = [p.loss for p in points if (p.arm, p.budget) == (curve.arm, curve.budget)]
        group, share = groups[curve.arm], share_of(of_arm[curve.arm])
        if curve.optimum:
            reached = (curve.optimum.loss, curve.optimum.loss_low, curve.optimum.loss_high)
            best.append(Best(curve.arm, curve.budget, group, share, *reached))
        elif losses:
            best.append(Best(curve.arm, curve.budget, group, share, min(losses), None, None))
    return best


def share_of(record: Record) -> float | None:
    """Capacity, the mean where blocks differ."""
    capacity = record.get("capacity")
    if isinstance(capacity, list | tuple):
        return sum(capacity) / len(capacity)
    return None if capacity is None else float(capacity)


def groups_of(records: Sequence[Record]) -> dict[str, str]:
    """The line of each arm: 'mod, every 2nd block', and what tells it from others of that kind and frequency besides
    capacity, 'mod, every 2nd block, causal=none'."""
    of_arm = {str(r["arm"]): r for r in records}
    settings: dict[str, dict[str, set[str]]] = {arm: {} for arm in of_arm}
    for r in records:
        for key, value in (r.get("settings") or {"model.causal": r.get("causal")}).items():
            settings[str(r["arm"])].setdefault(key.removeprefix("model."), set()).add(str(value))
    moving = {key for mine in settings.values() for key, values in mine.items() if len(values) > 1}
    groups = {}
    for arm, record in of_arm.items():
        group = group_of(record)
        alike = [settings[other] for other, its in of_arm.items() if group_of(its) == group]
        own = {key: values for key, values in settings[arm].items() if key not in moving and key not in TOLD}
        apart = [f"{key}={min(own[key])}" for key in own if any(other.get(key) != own[key] for other in alike)]
        groups[arm] = ", ".join([group, *apart])
    return groups


def group_of(record: Record) -> str:
    """'mod, every 2nd block'"""
    every, layers = record.get("every"), record.get("layers")
    if share_of(record) is None:
        return str(record["arm"])
    if layers:
        return f"{record['kind']}, blocks {', '.join(map(str, layers))}"
    ordinals = {1: "every block", 2: "every 2nd block", 3: "every 3rd block"}
    return f"{record['kind']}, {ordinals.get(int(every or 0), f'every {every}th block')}"


def note_of(records: Sequence[Record], best: Sequence[Best], baseline: str) -> list[str]:
    """Arms without a finished run, and a baseline without an optimum: its line has no mark that could be open."""
    lines = []
    if absent := [arm for arm in arms_of(records) if arm not in {b.arm for b in best}]:
        lines.append(f"no finished run: {', '.join(absent)}")
    if dotted := [budget_text(b.budget) for b in best if b.arm == baseline and b.capacity is None and not b.is_fitted]:
        lines.append(f"{baseline}: dotted where its best run stands in for an optimum ({', '.join(dotted)})")
    return lines


def key_of(best: Sequence[Best], level: float) -> list[Any]:
    """What filled and open marks mean, as far as they are drawn."""
    from matplotlib.lines import Line2D

    routed = [b for b in best if b.capacity is not None]
    look: dict[str, Any] = {"color": style.GREY, "marker": "s", "linestyle": "none"}
    handles = []
    if any(b.is_fitted for b in routed):
        handles.append(Line2D([], [], **look, label=f"fitted optimum, {level:.0%} interval"))
    if any(not b.is_fitted for b in routed):
        handles.append(Line2D([], [], **look, markerfacecolor="white", label="best run (no optimum fitted)"))
    return handles


def ticks(shares: Sequence[float]) -> list[float]:
    """Every capacity there is, without those whose labels would touch the one before."""
    kept: list[float] = []
    for share in shares:
        if not kept or share / kept[-1] >= 1.2:
            kept.append(share)
    return kept


def table(records: Sequence[Record], best: Sequence[Best], points: Sequence[Point]) -> list[dict[str, Any]]:
    """One row an arm and budget."""
    of_arm = {str(r["arm"]): r for r in records}
    return [
        {
            "arm": b.arm,
            "budget": b.budget,
            "kind": of_arm[b.arm].get("kind"),
            "capacity": b.capacity,
            "every": of_arm[b.arm].get("every"),
            "group": b.group,
            "runs": sum((p.arm, p.budget) == (b.arm, b.budget) for p in points),
            "loss": b.loss,
            "loss_low": b.loss_low,
            "loss_high": b.loss_high,
            "is_fitted": b.is_fitted,
        }
        for b in best
    ]
