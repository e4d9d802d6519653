"""Loss surfaces against known truths: published coefficients, scipy's optimizers, finite differences."""

from __future__ import annotations

import csv
import time
from pathlib import Path

import numpy as np
import pytest
import scipy.optimize

from modexp.analysis.bootstrap import bootstrap, resample
from modexp.analysis.newton import expand, huber, relative_square
from modexp.analysis.outliers import highest_losses, highest_rule, outliers
from modexp.analysis.surface import (
    Cost,
    Surface,
    fit_cost,
    fit_surface,
    optimum_of,
    vpnls,
)

EPOCH = Path(__file__).resolve().parents[2] / "shared" / "data" / "epoch_chinchilla.csv"
needs_epoch = pytest.mark.skipif(not EPOCH.exists(), reason="../shared/data/epoch_chinchilla.csv is absent")

# E, A, B, alpha, beta: a course exercise (a = .5142857); Hoffmann et al. 2022, rounded.
EXERCISE = np.array([2.69, 1606.3, 3210.6, 0.34, 0.36])
CHINCHILLA = np.array([1.69, 406.4, 410.7, 0.34, 0.28])
METHODS = ("approach3", "vpnls")


def study(
    truth: np.ndarray, budgets: np.ndarray, sizes: int, noise: float = 0.0, seed: int = 0, cost: Cost | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sizes, tokens and losses on +-4x grids centred per budget."""
    cost = cost or Cost()
    n = np.concatenate([optimum_of(truth, c, cost).x * np.geomspace(1 / 4, 4, sizes) for c in budgets])
    d = np.repeat(budgets, sizes) / cost.kappa / n**cost.q
    E, A, B, alpha, beta = truth
    loss = E + A / n**alpha + B / d**beta
    return n, d, loss * np.exp(noise * np.random.default_rng(seed).standard_normal(len(n)))


def fitted(method: str, *points: np.ndarray) -> Surface:
    fit = fit_surface(method, *points)
    assert fit.surface is not None, fit.refusal
    return fit.surface


@pytest.fixture(scope="module")
def epoch() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Chinchilla's Fig. 4: sizes, tokens, losses (245,)."""
    with EPOCH.open() as file:
        rows = [[float(r[key]) for key in ("params", "flops", "loss")] for r in csv.DictReader(file)]
    n, flops, loss = np.array(rows).T
    return n, flops / (6 * n), loss


# --- the solver ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("penalty", [huber, relative_square])
def test_derivatives_are_those_of_finite_differences(penalty):
    rng = np.random.default_rng(0)
    u, v = rng.standard_normal((2, 9))
    y = 1 + 0.3 * rng.standard_normal(9)
    weights = rng.uniform(0.5, 2, (1, 9))
    theta = np.array([[0.3, -0.4, 0.5, 0.3, 0.4]])
    exact = expand(penalty, theta, u, v, y[None], weights)
    step = 1e-6
    for k in range(5):
        ahead, behind = theta.copy(), theta.copy()
        ahead[0, k] += step
        behind[0, k] -= step
        there, here = (expand(penalty, t, u, v, y[None], weights) for t in (ahead, behind))
        assert (there.value - here.value)[0] / (2 * step) == pytest.approx(exact.gradient[0, k], rel=1e-6)
        slope = (there.gradient - here.gradient)[0] / (2 * step)
        np.testing.assert_allclose(slope, exact.hessian[0, k], rtol=1e-5, atol=1e-6 * np.abs(exact.hessian).max())


@pytest.mark.parametrize("method", METHODS)
def test_no_optimizer_of_scipys_goes_lower(method: str):
    """Written again from the formula, in plain coordinates, and started where ours ended and all around it."""
    n, d, loss = study(CHINCHILLA, np.array([6e18, 2e19, 1e20]), 9, noise=0.01)
    surface = fitted(method, n, d, loss)

    def objective(p: np.ndarray) -> float:
        prediction = np.exp(p[0]) + np.exp(p[1] - p[3] * np.log(n)) + np.exp(p[2] - p[4] * np.log(d))
        if method == "vpnls":
            return float((((loss - prediction) / loss) ** 2).sum() / 2)
        s = np.abs(np.log(loss) - np.log(prediction))
        return float(np.where(s <= 1e-3, s * s / 2, 1e-3 * (s - 5e-4)).sum())

    ours = np.array([*np.log(surface.parameters[:3]), surface.alpha, surface.beta])
    assert objective(ours) == pytest.approx(surface.objective, rel=1e-9)
    lowest = min(
        scipy.optimize.minimize(
            objective,
            ours + shift,
            method="Nelder-Mead",
            options={"maxiter": 6000, "maxfev": 6000, "xatol": 1e-9, "fatol": 1e-14},
        ).fun
        for shift in (np.zeros(5), [0.1, 0, 0, 0, 0], [0, 0.3, -0.3, 0.02, -0.02])
    )
    assert surface.objective <= lowest * (1 + 1e-7), (surface.objective, lowest)


def test_vpnls_is_the_minimum_over_two_exponents_with_the_rest_solved_linearly():
    """Variable projection as Czech et al. 2026 do it: an outer search in alpha and beta, an inner linear solve."""
    n, d, loss = study(CHINCHILLA, np.array([6e18, 2e19, 1e20]), 9, noise=0.01)
    surface = fitted("vpnls", n, d, loss)

    def projected(exponents: np.ndarray) -> tuple[float, np.ndarray]:
        columns = np.stack([np.ones_like(n), n ** -exponents[0], d ** -exponents[1]], axis=1) / loss[:, None]
        levels, *_ = np.linalg.lstsq(columns, np.ones_like(n))
        return float(((1 - columns @ levels) ** 2).sum() / 2), levels

    outer = scipy.optimize.minimize(
        lambda p: projected(p)[0], [0.3, 0.3], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-16}
    )
    assert surface.objective == pytest.approx(outer.fun, rel=1e-9)
    assert surface.parameters[3:] == pytest.approx(outer.x, rel=1e-4)
    assert surface.parameters[:3] == pytest.approx(projected(outer.x)[1], rel=1e-3)


# --- published and synthetic truths --------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_noise_free_study_gives_back_its_parameters(method: str):
    points = study(EXERCISE, np.geomspace(1e17, 1e21, 9), 8)
    surface = fitted(method, *points)
    assert surface.converged
    np.testing.assert_allclose(surface.parameters, EXERCISE, rtol=1e-6)
    assert surface.exponent() == pytest.approx(0.36 / 0.70, abs=1e-8)
    assert surface.loss(points[0], points[1]) == pytest.approx(points[2], rel=1e-9)


@needs_epoch
def test_chinchilla_without_its_five_highest_losses(epoch):
    """Besiroglu et al. 2024: .5126 +- .02 from their rounding; the exact minimum is known to more digits."""
    dropped = [o.index for o in highest_losses(epoch[2], 5)]
    points = [np.delete(values, dropped) for values in epoch]
    surface = fitted("approach3", *points)
    assert surface.objective <= 1.01828e-3
    assert surface.objective == pytest.approx(1.018274e-3, rel=1e-6)
    digits = [round(p, k) for p, k in zip(surface.parameters.tolist(), (4, 1, 1, 4, 4), strict=True)]
    assert digits == [1.8172, 477.8, 2143.4, 0.3473, 0.3672]
    assert surface.exponent() == pytest.approx(0.5139, abs=5e-5)
    assert surface.converged
    assert surface.agreeing == surface.starts


@needs_epoch
def test_chinchilla_with_all_points(epoch):
    assert fitted("approach3", *epoch).exponent() == pytest.approx(0.565, abs=5e-4)


@needs_epoch
def test_pair_bootstrap_has_the_published_standard_errors(epoch):
    """Besiroglu et al. 2024 with 4,000 resamples; they round the exponents and E to two digits."""
    points = [values[np.sort(epoch[2].argsort(kind="stable")[:-5])] for values in epoch]
    drawn = bootstrap(fitted("approach3", *points), *points)
    found = drawn.standard_errors()
    for name, published in {"E": 0.03, "A": 124.58, "B": 1293.23, "alpha": 0.02, "beta": 0.02}.items():
        assert found[name] == pytest.approx(published, rel=0.3), (name, found[name], published)


# --- optimum and cost ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("cost", [Cost(), Cost(40.0, 0.9)])
def test_optimum_is_the_lowest_point_of_the_budget(cost: Cost):
    surface = fitted("vpnls", *study(CHINCHILLA, np.array([1e18, 1e19, 1e20]), 7))
    best = surface.optimum(1e20, cost)
    assert cost.kappa * best.x**cost.q * best.tokens == pytest.approx(1e20, rel=1e-12)

    def on_budget(log_x: float) -> float:
        x = np.exp(log_x)
        return float(surface.loss(x, 1e20 / cost.kappa / x**cost.q))

    found = scipy.optimize.minimize_scalar(on_budget, bracket=(np.log(best.x) - 1, np.log(best.x) + 1.5))
    assert found.x == pytest.approx(np.log(best.x), abs=1e-6)
    assert found.fun == pytest.approx(best.loss, rel=1e-12)
    slope = np.log(surface.optimum(1e22, cost).x / best.x) / np.log(100)
    assert slope == pytest.approx(surface.exponent(cost), rel=1e-12)
    token_slope = np.log(surface.optimum(1e22, cost).tokens / best.tokens) / np.log(100)
    assert token_slope == pytest.approx(1 - cost.q * surface.exponent(cost), rel=1e-12)


def test_cost_is_read_from_the_runs():
    x, tokens = np.array([1e6, 1e7, 1e8, 1e9]), np.array([3e9, 1e8, 2e9, 5e8])
    cost = fit_cost(x, tokens, 8 * x**0.95 * tokens)
    assert (cost.kappa, cost.q) == pytest.approx((8, 0.95), rel=1e-10)
    assert cost.worst < 1e-12
    bent = np.array([1, 1, 1, 1.1])
    assert fit_cost(x, tokens, 8 * x**0.95 * tokens * bent).worst == pytest.approx(0.03, abs=0.02)


# --- refusals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("points", "refusal"),
    [
        (5, "a surface needs 6 distinct points, got 5"),
        ("repeated", "a surface needs 6 distinct points, got 3"),
        ("two sizes", "a surface needs 3 distinct sizes, got 2"),
        ("two token counts", "a surface needs 3 distinct token counts, got 2"),
        ("one budget", "sizes and tokens lie on one line"),
        ("rising", "loss does not"),
    ],
)
def test_what_cannot_carry_a_surface_is_refused(points: int | str, refusal: str):
    n, d, loss = study(CHINCHILLA, np.array([1e18, 1e19, 1e20]), 5, noise=0.001)
    if isinstance(points, int):
        n, d, loss = n[:points], d[:points], loss[:points]
    elif points == "repeated":
        n, d, loss = (np.tile(values[:3], 4) for values in (n, d, loss))
    elif points == "two sizes":
        n = np.where(np.arange(len(n)) % 2, 1e7, 1e8)
    elif points == "two token counts":
        d = np.where(np.arange(len(d)) % 2, 1e9, 1e10)
    elif points == "one budget":
        n, d, loss = study(CHINCHILLA, np.array([1e19]), 9, noise=0.001)
    else:
        loss = 2 + (n / 1e8) ** 0.3
    for method in METHODS:
        fit = fit_surface(method, n, d, loss)
        assert fit.surface is None
        assert fit.refusal.startswith(refusal), fit.refusal


def test_flat_end_out_of_reach_is_said():
    n, d, loss = study(np.array([-0.5, 406.4, 410.7, 0.34, 0.28]), np.array([1e18, 1e19, 1e20]), 7)
    fit = vpnls(n, d, loss)
    assert fit.surface is not None
    assert any("E came out as zero" in w for w in fit.warnings), fit


# --- bootstrap -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_refits_in_a_batch_are_those_one_at_a_time(method: str):
    """The points of a resample, repeated as drawn, fitted from scratch and from 64 starts: the same to 1e-5."""
    points = study(CHINCHILLA, np.geomspace(1e18, 1e21, 10), 15, noise=0.01)
    drawn = bootstrap(fitted(method, *points), *points, resamples=4, seed=3)
    assert (drawn.num_unconverged, drawn.num_failed) == (0, 0)
    for refit, counts in zip(drawn.parameters, resample(150, 4, 3), strict=True):
        again = fitted(method, *(np.repeat(values, counts.astype(int)) for values in points))
        np.testing.assert_allclose(refit, again.parameters, rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_thousand_refits_of_150_points_take_seconds(method: str):
    points = study(CHINCHILLA, np.geomspace(1e18, 1e21, 10), 15, noise=0.01)
    surface = fitted(method, *points)
    before = time.process_time()
    drawn = bootstrap(surface, *points)
    assert time.process_time() - before < 10
    assert drawn.parameters.shape == (1000, 5)
    intervals = drawn.intervals(1e21)
    truth = dict(zip(("E", "A", "B", "alpha", "beta"), CHINCHILLA, strict=True)) | {"a": 0.28 / 0.62}
    truth |= optimum_of(CHINCHILLA, 1e21)._asdict()
    assert intervals.keys() == truth.keys()
    for name, (low, high) in drawn.intervals(1e21, level=0.998).items():
        assert low < truth[name] < high, (name, low, truth[name], high)
        assert low < intervals[name][0] < intervals[name][1] < high


# --- outliers ------------------------------------------------------------------------------------------------


def test_no_more_than_a_tenth_of_the_points_is_left_out():
    n, d, loss = study(CHINCHILLA, np.array([1e18, 1e19, 1e20]), 7, noise=0.005)
    loss[[3, 10, 17]] *= 1.3
    assert len(outliers(n, d, loss)) == 2, "three of 21 are more"


def test_spoilt_points_are_found_and_named():
    n, d, loss = study(CHINCHILLA, np.array([1e18, 1e19, 1e20]), 9, noise=0.005)
    assert outliers(n, d, loss) == ()
    loss[4] *= 1.3
    loss[20] *= 0.85
    found = outliers(n, d, loss)
    assert {o.index for o in found} == {4, 20}
    assert found[0].index == 4
    assert "robust standard deviations" in found[0].reason
    assert [o.index for o in highest_losses(loss, 1)] == [int(loss.argmax())]
    assert "2 highest losses" in highest_rule(2)


@needs_epoch
def test_residuals_put_the_published_five_first_but_do_not_stop_there(epoch):
    """Why the count must be asked for: 12.1 standard deviations are the fifth's, 10.2 the sixth's."""
    found = [o.index for o in outliers(*epoch)]
    assert set(found[:5]) == {o.index for o in highest_losses(epoch[2], 5)}
    assert len(found) == 9
    kept = [np.delete(values, found) for values in epoch]
    assert fitted("approach3", *kept).exponent() == pytest.approx(0.5113, abs=1e-3)
