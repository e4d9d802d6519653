"""Interpolated optima against exact curves and against the exponents that Porian et al. 2024 published."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest

from modexp.analysis.interpolate import fit_interpolated, mean_per_size, nearest_to_minimum
from modexp.analysis.parabola import fit_parabola

PORIAN = Path(__file__).resolve().parents[2] / "shared" / "data" / "porian_refinedweb.csv"
needs_porian = pytest.mark.skipif(not PORIAN.exists(), reason="../shared/data/porian_refinedweb.csv is absent")

# setup: exponent of N* in C and its 95 % bootstrap interval, RefinedWeb
PUBLISHED = {
    "base-long-kaplan-kaplan-train": (0.834, 0.824, 0.846),
    "base-long-kaplan-standard-val": (0.701, 0.691, 0.717),
    "base-short-kaplan-standard-val": (0.604, 0.591, 0.617),
    "base-short-chinchilla-standard-val": (0.571, 0.560, 0.589),
    "tuned-short-const-standard-val": (0.497, 0.491, 0.505),
}
SEED_NOISE = 0.002  # nats; what their code adds to every loss of this data set

Curves = dict[float, list[tuple[float, float]]]


def porian(setup: str) -> Curves:
    curves: Curves = {}
    with PORIAN.open() as file:
        for row in csv.DictReader(file):
            if row["setup"] == setup:
                curves.setdefault(float(row["flops"]), []).append((float(row["params"]), float(row["loss"])))
    return curves


def power_law(exponent: float = 0.5, sizes: int = 9, shift: float = 1.0) -> Curves:
    """Smooth, lopsided curves with a known minimum at 10 C^exponent; grids +-4x about ``shift`` times that."""
    curves: Curves = {}
    for budget in (1e16, 1e17, 1e18, 1e19):
        best = 10 * budget**exponent
        grid = best * shift * np.geomspace(1 / 4, 4, sizes)
        curves[budget] = [(float(x), 3 + float(np.exp(t) - t - 1) * 0.05) for x in grid for t in [math.log(x / best)]]
    return curves


def test_known_minima_are_found():
    fit = fit_interpolated(power_law())
    assert fit.refusal == ""
    for optimum in fit.optima:
        assert optimum.x == pytest.approx(10 * optimum.budget**0.5, rel=0.03)
        assert optimum.loss == pytest.approx(3, abs=1e-4)
        assert (optimum.x_low, optimum.x_high) == (None, None)  # no noise is known
    assert fit.exponent == pytest.approx(0.5, abs=1e-3)
    assert fit.coefficient == pytest.approx(10, rel=0.05)
    assert (fit.low, fit.high) == (None, None)


def test_mean_loss_of_a_size_counts():
    sizes, losses, runs = mean_per_size([(2e6, 3.1), (1e6, 3.0), (2e6, 2.9), (4e6, 3.2)])
    assert sizes.tolist() == [1e6, 2e6, 4e6]
    assert losses.tolist() == [3.0, 3.0, 3.2]
    assert runs.tolist() == [1, 2, 1]


def test_noise_larger_than_the_loss_widens_intervals_and_crashes_nothing():
    fit = fit_interpolated(power_law(), noise_sd=5.0)
    assert fit.low is not None
    assert fit.high is not None
    assert fit.low < 0.25
    assert fit.high > 0.75


def test_budgets_that_are_nearly_equal_have_no_exponent():
    points = power_law()[1e18]
    moved = [(x * 1.2, loss) for x, loss in points]
    assert "lie too near each other" in fit_interpolated({1e18: points, 1e18 * (1 + 1e-4): moved}).refusal


@pytest.mark.parametrize(("shift", "side"), [(5.0, "below"), (1 / 5, "above")])
def test_minimum_at_an_edge_is_refused(shift: float, side: str):
    curves = power_law(shift=shift)
    fit = fit_interpolated(curves, noise_sd=0.001)
    edge = "lowest loss is at an end of the grid: add sizes " + side
    assert all(edge in o.refusal and o.x is None for o in fit.optima)
    assert fit.refusal == "an exponent needs 2 budgets with an optimum, got 0"
    kept = power_law() | {1e20: curves[1e19]}
    assert [o.budget for o in fit_interpolated(kept).optima if o.refusal] == [1e20]
    assert fit_interpolated(kept).exponent == pytest.approx(0.5, abs=1e-3)


def test_minimum_that_noise_moves_to_an_edge_is_refused():
    flat = {1e18: [(x, 3.0 + 1e-5 * abs(math.log(x / 1e7))) for x in (5e6, 1e7, 2e7)]}
    fit = fit_interpolated(flat, noise_sd=0.05)
    assert "noise alone moves the minimum" in fit.optima[0].refusal
    assert fit_interpolated({1e18: flat[1e18][:2]}).optima[0].refusal.startswith("an interpolation needs 3")


def test_interval_of_the_exponent_covers():
    """40 studies with noise of .003: the 90 % interval of the exponent."""
    rng = np.random.default_rng(0)
    hits = []
    for seed in range(40):
        clean = power_law(sizes=7)
        noisy = {c: [(x, y + 0.003 * rng.standard_normal()) for x, y in points] for c, points in clean.items()}
        fit = fit_interpolated(noisy, noise_sd=0.003, resamples=200, seed=seed)
        assert fit.low is not None
        assert fit.high is not None
        hits.append(fit.low <= 0.5 <= fit.high)
    assert np.mean(hits) >= 0.75, np.mean(hits)


@needs_porian
@pytest.mark.parametrize("setup", PUBLISHED)
def test_published_exponents(setup: str):
    published, low, high = PUBLISHED[setup]
    fit = fit_interpolated(porian(setup), noise_sd=SEED_NOISE, level=0.95)
    assert fit.exponent == pytest.approx(published, abs=0.005)
    assert fit.exponent is not None
    assert low <= fit.exponent <= high
    assert fit.low == pytest.approx(low, abs=0.006)
    assert fit.high == pytest.approx(high, abs=0.008)


def test_nearest_sizes_are_those_about_the_minimum():
    points = power_law(sizes=11)[1e18]
    best = min(points, key=lambda p: p[1])
    near = nearest_to_minimum([*points, (best[0], best[1] + 0.01)], 7)
    assert len(near) == 8  # both points of a repeated size
    assert sorted({x for x, _ in near}) == [x for x, _ in points[2:9]]
    assert nearest_to_minimum(points[:4], 7) == points[:4]


@needs_porian
@pytest.mark.parametrize("setup", list(PUBLISHED)[1:])
def test_parabola_on_the_seven_nearest_sizes(setup: str):
    """Within .02 in logs throughout: parabola of log loss, edge vertices refused, a line by plain least squares."""
    vertices, unguarded = [], []
    for budget, points in porian(setup).items():
        x, loss = np.array(nearest_to_minimum(points, 7)).T
        parabola = fit_parabola(x.tolist(), np.log(loss).tolist())
        unguarded.append((budget, parabola.vertex))
        if len(x) >= 5 and parabola.curvature > 0 and parabola.x_low < parabola.vertex < parabola.x_high:
            vertices.append((budget, parabola.vertex))
    slope = float(np.polyfit(*np.log(vertices).T, 1)[0])
    assert slope == pytest.approx(PUBLISHED[setup][0], abs=0.02)
    if setup == "base-long-kaplan-standard-val":
        assert float(np.polyfit(*np.log(unguarded).T, 1)[0]) == pytest.approx(0.82, abs=0.005)
