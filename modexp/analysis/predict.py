"""What a study says of a budget it did not run: size, tokens and loss of the best run, with intervals.

Size and tokens each from their own line through the optima (they need not add up: C is not exactly 6 N D), loss from
the surface by variable projection, as two or three vertex losses tell no irreducible loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from modexp.analysis.exponent import ExponentFit
from modexp.analysis.isoflop import StudyFit, fit_study
from modexp.analysis.points import Record, select, shared_trunks
from modexp.analysis.report import surface_of
from modexp.errors import UserError

FAR = 10.0  # times the largest budget beyond which an extrapolation is a guess more than a measurement

Interval = tuple[float, float]


@dataclass(frozen=True)
class Prediction:
    """One arm at ``flops``. Parameters, training tokens, held-out nats a token; None where ``refusals`` say why."""

    arm: str
    flops: float
    reach: float | None  # over the largest budget with an optimum, in the same convention; None without one
    over_smallest: float | None  # the same over the smallest
    params: float | None
    params_interval: Interval | None
    tokens: float | None
    tokens_interval: Interval | None
    loss: float | None
    loss_interval: Interval | None
    refusals: tuple[str, ...]
    warnings: tuple[str, ...]


def predict(records: Sequence[Record], flops: float, level: float = 0.90, resamples: int = 1000) -> list[Prediction]:
    """Every arm at ``flops`` training FLOPs, in the convention the records are counted in."""
    if not (flops > 0 and math.isfinite(flops)):
        raise UserError(f"--flops {flops} is not a positive number", "write it as --flops 1e21")
    sizes, tokens = fit_study(records, "params", level), fit_study(records, "tokens", level)
    return [predict_arm(e.arm, records, flops, sizes, tokens, resamples) for e in sizes.exponents]


def predict_arm(
    arm: str, records: Sequence[Record], flops: float, sizes: StudyFit, tokens: StudyFit, resamples: int
) -> Prediction:
    size, size_interval = on_line(sizes, sizes.exponent(arm), flops)
    trained, tokens_interval = on_line(tokens, tokens.exponent(arm), flops)
    points = [p for p in select(records, "params")[0] if p.arm == arm]
    found = surface_of(arm, points, "vpnls", sizes.level, resamples)
    loss = interval = None
    if found.surface and found.cost:
        loss = float(found.surface.optimum(flops, found.cost).loss)
        interval = found.draws.intervals(flops, found.cost, sizes.level)["loss"] if found.draws else None
    refusals = {
        "size": sizes.exponent(arm).refusal,
        "tokens": tokens.exponent(arm).refusal,
        "loss": found.refusal,
    }
    reread = any("flops_reread" in r for r in records)  # budgets are as planned, so they count other FLOPs
    run = [c.flops if reread else c.budget for c in sizes.curves if c.arm == arm and c.optimum]
    reach, over_smallest = (flops / max(run), flops / min(run)) if run else (None, None)
    warnings = list(sizes.exponent(arm).warnings)
    warnings += [f"tokens: {w}" for w in tokens.exponent(arm).warnings if w not in warnings]
    warnings += [f"loss: {w}" for w in found.warnings]
    if reach and reach > FAR:
        warnings.append(f"{reach:.3g}x beyond the largest budget: intervals hold if nothing bends on the way")
    if over_smallest and over_smallest < 1 / FAR:
        warnings.append(f"{1 / over_smallest:.3g}x below the smallest budget: intervals hold if nothing bends there")
    if sentence := shared_trunks([r for r in records if r["arm"] == arm]):
        warnings.append(sentence)
    return Prediction(
        arm,
        flops,
        reach,
        over_smallest,
        size,
        size_interval,
        trained,
        tokens_interval,
        loss,
        interval,
        tuple(f"no {what}: {reason}" for what, reason in refusals.items() if reason),
        tuple(warnings),
    )


def reach_words(found: Prediction) -> str:
    """How far the budget lies from what was run."""
    if found.reach is None or found.over_smallest is None:
        return "nothing to extrapolate from"
    if found.over_smallest < 1:
        return (
            f"{found.over_smallest:.3g}x the smallest budget that has an optimum: below what was run, an extrapolation"
        )
    beyond = "an extrapolation" if found.reach > 1 else "within what was run"
    return f"{found.reach:.3g}x the largest budget that has an optimum: {beyond}"


def on_line(fit: StudyFit, line: ExponentFit, flops: float) -> tuple[float | None, Interval | None]:
    """The optimum that the line gives at ``flops``, with the interval of the line there."""
    if line.exponent is None:
        return None, None
    best = line.optimum(flops)
    factor = math.exp(min(fit.noise.margin(line.variance(flops)), 700.0))
    return best, (best / factor, best * factor)
