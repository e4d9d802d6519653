"""isoFLOP fits of a study: one parabola per arm and budget, one exponent per arm, one comparison per budget.

Approach 2 of Hoffmann et al. 2022 (sec. 3.2) with intervals that hold for few points: see :mod:`modexp.analysis.curve`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from modexp.analysis.compare import Difference, vertex_differences
from modexp.analysis.curve import MIN_SIZES, CurveFit, Noise, Optimum, fit_curve, parabola_of, pooled_noise
from modexp.analysis.exponent import ExponentFit, LeftOut, fit_exponent, leave_one_out, vertices
from modexp.analysis.interpolate import nearest_to_minimum
from modexp.analysis.points import RULE, DroppedRun, Point, Record, arms_of, at_one_x, baseline_of, select
from modexp.analysis.reread import at_equal_flops
from modexp.errors import UserError


@dataclass(frozen=True)
class StudyFit:
    axis: str
    level: float
    rule: str
    noise_sd: float | None  # nats, one run; None while no curve has a point to spare
    dof: int
    baseline: str
    curves: tuple[CurveFit, ...]
    exponents: tuple[ExponentFit, ...]
    left_out: tuple[LeftOut, ...]
    comparisons: tuple[Difference, ...]
    dropped: tuple[DroppedRun, ...]

    @property
    def noise(self) -> Noise:
        return Noise(self.noise_sd or 0.0, self.dof, self.level)

    def curve(self, arm: str, budget: float) -> CurveFit | None:
        return next((c for c in self.curves if (c.arm, c.budget) == (arm, budget)), None)

    def exponent(self, arm: str) -> ExponentFit:
        return next(e for e in self.exponents if e.arm == arm)

    def to_json(self) -> dict[str, Any]:
        """Everything, in full precision, as json.dumps takes it."""
        return asdict(self)

    def rows(self) -> list[dict[str, Any]]:
        """The table for eyes and CSV: one row a curve."""
        rows = []
        for curve in self.curves:
            optimum = asdict(curve.optimum) if curve.optimum else dict.fromkeys(Optimum.__annotations__)
            row = {"arm": curve.arm, "budget": curve.budget, "runs": len(curve.points), "sizes": curve.num_sizes}
            note = "; ".join(filter(None, (curve.refusal, *curve.warnings)))
            rows.append({**row, **optimum, "note": note})
        return rows


def near_minimum(points: Sequence[Point], count: int) -> tuple[list[Point], list[DroppedRun]]:
    """The points of the ``count`` sizes of each curve nearest its lowest loss, and those left out."""
    if count < MIN_SIZES:
        raise UserError(f"--nearest {count} is less than the {MIN_SIZES} sizes a parabola needs", "try --nearest 7")
    kept, far = [], []
    for key in dict.fromkeys((p.arm, p.budget) for p in points):
        curve = [p for p in points if (p.arm, p.budget) == key]
        places = at_one_x(curve)
        near = set(nearest_to_minimum(places, count))
        kept += [p for p, place in zip(curve, places, strict=True) if place in near]
        reason = f"not among the {count} sizes nearest the lowest loss"
        far += [DroppedRun(p.run, p.arm, p.budget, reason) for p in curve if p not in kept]
    return kept, far


def fit_study(
    records: Sequence[Record],
    axis: str = "params",
    level: float = 0.90,
    baseline: str | None = None,
    nearest: int | None = None,
) -> StudyFit:
    """Fit every curve of a study. ``axis``: a key of points.AXES; ``level``: of all intervals; ``nearest``: so many
    sizes of each curve, those nearest its lowest loss, are fitted, where a parabola follows a wide grid.

    An empty or unfinished study gives a fit that refuses everything and says why. UserError: unknown axis or
    baseline, a level outside 0..1.
    """
    if not 0 < level < 1:
        raise UserError(f"level={level} is not between 0 and 1", "try level=0.9")
    arms = arms_of(records)
    if baseline is not None and baseline not in arms:
        raise UserError(f"baseline={baseline} is no arm of this study", f"try one of {', '.join(arms)}")
    points, dropped = select(records, axis)
    reference = baseline or (baseline_of(records) if records else "")
    if any("flops_reread" in record for record in records):  # read under another convention than planned
        points = at_equal_flops(points, reference)
    if nearest:
        points, far = near_minimum(points, nearest)
        dropped += far
    keys = sorted({(arms.index(str(r["arm"])), float(r["budget"])) for r in records})
    groups = {(arms[i], b): [p for p in points if (p.arm, p.budget) == (arms[i], b)] for i, b in keys}
    parabolas = {key: parabola for key, group in groups.items() if (parabola := parabola_of(group))}
    noise = pooled_noise(list(parabolas.values()), level)
    curves = tuple(fit_curve(*key, group, parabolas.get(key), noise) for key, group in groups.items())
    of_arm = {arm: [c for c in curves if c.arm == arm] for arm in arms}
    return StudyFit(
        axis=axis,
        level=level,
        rule=RULE,
        noise_sd=noise.sd if noise.dof else None,
        dof=noise.dof,
        baseline=reference,
        curves=curves,
        exponents=tuple(fit_exponent(arm, vertices(of_arm[arm]), noise) for arm in arms),
        left_out=tuple(row for arm in arms for row in leave_one_out(arm, of_arm[arm], noise)),
        comparisons=tuple(vertex_differences(curves, reference, noise)),
        dropped=tuple(dropped),
    )
