"""Points that a loss surface cannot follow, each with its reason. Nothing is dropped that is not printed.

No natural rule finds the five points that Besiroglu et al. 2024 left out of Chinchilla's Fig. 4, "the five highest
losses": deleting the worst residual and refitting, again and again, does take exactly those five first (44, 37, 24,
22 and 12 robust standard deviations away), but four more stand out (10, 10, 7 and 5), and a threshold between 10
and 12 would be read off the answer. So there are two rules, and a fit says which one it used.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from modexp.analysis.surface import PARAMETERS, Losses, approach3
from modexp.wording import size_text

THRESHOLD = 5.0  # robust standard deviations: of 120 clean studies of 21 to 60 runs one lost a run
MAD_TO_SD = 1.4826  # median absolute deviation to standard deviation, Gaussian
MAX_SHARE = 0.1  # of the points: a surface that more than a tenth of the runs leave is the wrong surface

RESIDUAL_RULE = (
    f"The point farthest from the Huber surface (in log loss) is left out while it is more than {THRESHOLD:g} robust"
    f" standard deviations away, the surface being refitted each time, up to {MAX_SHARE:.0%} of the points."
)


@dataclass(frozen=True)
class Outlier:
    """``index`` into the points as given."""

    index: int
    reason: str


def highest_rule(count: int) -> str:
    """The rule behind ``highest_losses``, to be printed with the fit."""
    return f"The {count} highest losses of each arm are left out, as asked for."


def highest_losses(loss: Losses, count: int) -> tuple[Outlier, ...]:
    """The ``count`` points with the highest loss (n,), highest first; on Chinchilla's Fig. 4 five."""
    order = np.argsort(-np.asarray(loss, dtype=float), kind="stable")[:count]
    return tuple(Outlier(int(i), f"loss {loss[i]:.4g} is among the {count} highest") for i in order)


def outliers(n: Losses, d: Losses, loss: Losses) -> tuple[Outlier, ...]:
    """Points that RESIDUAL_RULE leaves out, farthest first; sizes, tokens, losses (n,). Empty where no surface fits.

    One at a time, as a few bad points bend the surface and hide one another: in the first fit to all of Chinchilla's
    points a good one at the far end lies farther off than the fifth that was dropped.
    """
    n, d, loss = (np.asarray(values, dtype=float) for values in (n, d, loss))
    kept = np.arange(len(loss))
    found: list[Outlier] = []
    while len(found) + 1 <= MAX_SHARE * len(loss):
        surface = approach3(n[kept], d[kept], loss[kept]).surface
        if surface is None:
            break
        residual = np.log(loss[kept] / surface.loss(n[kept], d[kept]))
        # a fit this close to least absolutes passes through as many points as it has parameters: they tell no scatter
        scatter = MAD_TO_SD * float(np.median(np.sort(np.abs(residual))[len(PARAMETERS) :]))
        worst = int(np.abs(residual).argmax())
        if abs(residual[worst]) <= max(THRESHOLD * scatter, 1e-9):  # without any scatter there is only rounding
            break
        i = int(kept[worst])
        distance = f"{residual[worst] / scatter:+.1f} robust standard deviations" if scatter else "the only one off it"
        place = f"at {size_text(n[i])}, {size_text(d[i])} tokens"
        found.append(Outlier(i, f"loss {loss[i]:.4g} {place} is {np.expm1(residual[worst]):+.1%} off: {distance}"))
        kept = np.delete(kept, worst)
    return tuple(found)
