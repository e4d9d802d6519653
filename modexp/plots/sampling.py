"""What it costs to route without a look at the future (MoD paper, Fig. 6 left): causal beside top-k loss, run by run.

Above: both losses over forward FLOPs per token, relative to the baseline's isoFLOP optimum; a causal rule may take more
or fewer tokens than the top-k, and stands where its measured capacities put it. Below: the difference, in percent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modexp.analysis.isoflop import fit_study
from modexp.analysis.points import Record, baseline_first, baseline_of, reason_to_drop, select
from modexp.errors import UserError
from modexp.plots import style
from modexp.plots.panel import COST, missing, reference_note, references_of, require_points, scale_of
from modexp.wording import budget_text

WIDTH = 5.6  # inches


@dataclass(frozen=True)
class Pair:
    """One run: losses in nats, FLOPs per token as they are drawn. Dense runs have no top-k, some arms no rule."""

    run: str
    arm: str
    budget: float
    x_topk: float
    x_causal: float
    loss_topk: float | None
    loss_causal: float | None

    @property
    def cost(self) -> float | None:
        """Causal over top-k loss, less one."""
        if self.loss_topk is None or self.loss_causal is None:
            return None
        return self.loss_causal / self.loss_topk - 1


def draw(
    records: Sequence[Record], out_dir: Path, stem: str = "sampling", *, title: str = "", unit: str = "token"
) -> style.Drawn:
    """Write stem.png, stem.svg and stem.csv. UserError while no run is finished, or where nothing sees the future."""
    # an arm that cannot be causal has a top-k loss alone, and is finished all the same
    usable = [{**r, "causal": r.get("loss"), "loss": either(r)} for r in records]
    finished = [r for r in usable if not reason_to_drop(r)]
    require_points(finished, records)
    if all(r.get("loss_topk") is None for r in finished):
        raise UserError(
            "no finished run routes by top-k, so there is nothing to compare", "modexp plot frontier draws every arm"
        )
    points, _ = select(records, COST)
    baseline, arms = baseline_of(records), baseline_first(records)
    references, borrowed = references_of(fit_study(records, COST), points, baseline)
    budgets = sorted({float(r["budget"]) for r in finished})
    lines = [*missing(usable, len(finished)), *reference_note(baseline, budgets, references, borrowed)]
    note = style.wrapped(lines, WIDTH)
    scale, label_x = scale_of(references, budgets, baseline)
    pairs = [pair_of(r, scale[float(r["budget"])]) for r in finished if float(r["budget"]) in scale]

    with style.context():
        from matplotlib.lines import Line2D

        columns: list[list[Any]] = []
        strokes = {}
        for arm in arms:
            column = []
            for budget, shade in zip(budgets, style.shades(len(budgets)), strict=True):
                if any((p.arm, p.budget) == (arm, budget) for p in pairs):
                    stroke = strokes[arm, budget] = style.stroke(arms, baseline, arm, shade)
                    label = f"{budget_text(budget)}  {arm}"
                    column.append(Line2D([], [], **{**stroke.marks(), **stroke.line()}, label=label))
            columns.append(column)
        grey: dict[str, Any] = {"color": style.GREY, "marker": "s", "linestyle": "none"}
        causal = Line2D([], [], **grey, label="causal")
        top_k = Line2D([], [], **{**grey, "markerfacecolor": "white"}, markersize=3.5, label="top-k (sees the future)")
        columns = [*style.folded([c for c in columns if c], 3), [causal, top_k]]
        foot = style.footer_height(max(map(len, columns)), len(note.splitlines()))
        figure = style.new_figure(WIDTH, 4.3 + foot)
        grid = figure.add_gridspec(3, 1, height_ratios=[3.0, 1.3, foot])
        above = figure.add_subplot(grid[0])
        below = figure.add_subplot(grid[1], sharex=above)
        for (arm, budget), stroke in strokes.items():
            mine = sorted((p for p in pairs if (p.arm, p.budget) == (arm, budget)), key=lambda p: p.x_topk)
            known = [(p.x_causal, p.loss_causal) for p in mine if p.loss_causal is not None]
            future = [(p.x_topk, p.loss_topk) for p in mine if p.loss_topk is not None]
            for p in mine:
                if p.loss_topk is not None and p.loss_causal is not None:
                    above.plot([p.x_topk, p.x_causal], [p.loss_topk, p.loss_causal], color=stroke.color, linewidth=0.7)
            hollow = {**stroke.marks(), "markerfacecolor": "white", "markersize": 3.5}
            for points_of, look in ((known, stroke.marks()), (future, hollow)):
                above.plot([x for x, _ in points_of], [y for _, y in points_of], **look, zorder=3 + (look is hollow))
            both = [(p.x_causal, 100 * p.cost) for p in mine if p.cost is not None]
            if both:
                below.plot(*zip(*both, strict=True), **{**stroke.marks(), **stroke.line(), "linewidth": 0.9}, zorder=3)
        x = [v for p in pairs for v in (p.x_topk, p.x_causal)]
        (style.ratio_axis if references else style.size_axis)(below, min(x), max(x))
        below.axhline(0.0, color=style.GREY, linewidth=0.8, zorder=1)
        above.tick_params(labelbottom=False)
        above.set_ylabel(f"held-out loss (nats per {unit})")
        below.set_ylabel("causal over\ntop-k loss (%)")
        below.yaxis.set_major_formatter(lambda v, _: f"{v:+.3g}" if v else "0")
        below.set_xlabel(label_x)
        figure.align_ylabels([above, below])
        if title:
            figure.suptitle(title)
        style.footer(figure.add_subplot(grid[2]), columns, note)
        paths = style.save(figure, out_dir / stem)
    rows = [
        {
            "run": p.run,
            "arm": p.arm,
            "budget": p.budget,
            "flops_per_token_topk": p.x_topk * scale[p.budget] if p.loss_topk is not None else None,
            "flops_per_token_causal": p.x_causal * scale[p.budget] if p.loss_causal is not None else None,
            "relative_flops_topk": p.x_topk if references and p.loss_topk is not None else None,
            "relative_flops_causal": p.x_causal if references and p.loss_causal is not None else None,
            "loss_topk": p.loss_topk,
            "loss_causal": p.loss_causal,
            "causal_over_topk": p.cost,
        }
        for p in pairs
    ]
    return style.Drawn([*paths, style.save_csv(rows, out_dir / f"{stem}.csv")], note)


def either(record: Record) -> float | None:
    """The loss that says whether a run is finished: the causal one where the arm has one."""
    return record.get("loss_topk") if record.get("loss") is None else record["loss"]


def pair_of(record: Record, reference: float) -> Pair:
    causal_flops = record.get("flops_per_token_causal") or record[COST]
    return Pair(
        str(record["run"]),
        str(record["arm"]),
        float(record["budget"]),
        float(record[COST]) / reference,
        float(causal_flops) / reference,
        record.get("loss_topk"),
        record["causal"],
    )
