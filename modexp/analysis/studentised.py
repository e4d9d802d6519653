"""Runs that the parabola of their curve cannot follow.

A residual held against the pooled noise says little in a small study: the run itself is in that noise, which it can
exceed sqrt(dof) times at most, and it bends its parabola towards itself. So each residual is studentised externally:
divided by its own standard error, sqrt(1 - leverage) times the noise of all other runs, it is Student's t (Cook and
Weisberg 1982, sec. 2.2). The farthest run is left out and the rest looked at anew, as a bad one carries its neighbours
along; and as two bad ones hide one another, all are named up to the last that is too far (Rosner 1983).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from modexp.analysis.curve import CurveFit, parabola_of
from modexp.analysis.outliers import MAX_SHARE
from modexp.analysis.parabola import student_t
from modexp.analysis.points import Point

RISK = 0.01  # of naming any run in a study whose noise is Gaussian (Bonferroni's bound, over all runs)
FEWEST = 2  # runs looked at, in small studies
SPARE = 2  # points beyond three: through four, each run is as far off as the next
ROUNDING = 1e-12


def far_runs(curves: Sequence[CurveFit]) -> dict[str, float]:
    """Student's t by run, farthest first, of those too far off to be noise."""
    kept = [list(curve.points) for curve in curves]
    left_out: dict[str, float] = {}
    named = 0
    for _ in range(max(FEWEST, round(MAX_SHARE * sum(map(len, kept))))):
        distances, dof = studentised(kept)
        if not distances:
            break
        run = max(distances, key=lambda name: abs(distances[name]))
        left_out[run] = distances[run]
        if abs(distances[run]) > student_t(1 - RISK / len(distances), dof):
            named = len(left_out)
        kept = [[p for p in points if p.run != run] for points in kept]
    return dict(list(left_out.items())[:named])


def studentised(curves: Sequence[Sequence[Point]]) -> tuple[dict[str, float], int]:
    """Each run's externally studentised residual, and the degrees of freedom of all of them: of the runs of curves that
    have points to spare. The others tell the noise alone."""
    parabolas = [(points, parabola) for points in curves if (parabola := parabola_of(points))]
    squares = sum(parabola.residual_squares for _, parabola in parabolas)
    dof = sum(parabola.dof for _, parabola in parabolas) - 1
    distances = {}
    for points, parabola in parabolas:
        if parabola.dof < SPARE or dof < 1:
            continue
        for p in points:
            u = math.log(p.x) - parabola.centre
            powers = np.array([1.0, u, u * u])
            free = 1 - float(powers @ np.array(parabola.inverse_gram) @ powers)
            residual = p.loss - parabola.loss(p.x)
            if free > 1e-6 and abs(residual) > ROUNDING * p.loss:  # else its parabola goes through it whatever it says
                others = max(squares - residual**2 / free, (ROUNDING * p.loss) ** 2)
                distances[p.run] = residual / math.sqrt(free * others / dof)
    return distances, dof
