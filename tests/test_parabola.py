"""One isoFLOP curve: its parabola against numpy.polyfit, closed forms and simulation; what is refused and warned of."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from modexp.analysis.curves import default_window, running_mean
from modexp.analysis.isoflop import fit_study
from modexp.analysis.parabola import fieller_set, fit_parabola, student_t
from tests.studies import CHINCHILLA, curve, on_surface, only, optimum

# --- the parabola -------------------------------------------------------------------------------------------


def test_parabola_is_numpys():
    rng = np.random.default_rng(0)
    x = 3e12 * np.geomspace(0.3, 5, 9)  # FLOPs per token: far from 1, where an uncentred fit loses digits
    loss = 2.5 + 0.04 * np.log(x / 4e12) ** 2 + 0.01 * rng.standard_normal(9)
    ours = fit_parabola(x.tolist(), loss.tolist())
    theirs, cov = np.polyfit(np.log(x) - ours.centre, loss, 2, cov="unscaled")
    np.testing.assert_allclose(ours.coefficients, theirs[::-1], rtol=1e-10)
    np.testing.assert_allclose(ours.inverse_gram, cov[::-1, ::-1], rtol=1e-8, atol=1e-12)
    residual = loss - np.polyval(theirs, np.log(x) - ours.centre)
    assert ours.residual_squares == pytest.approx(float(residual @ residual), rel=1e-9)
    assert ours.dof == 6
    assert ours.loss(4e12) == pytest.approx(float(np.polyval(theirs, math.log(4e12) - ours.centre)), rel=1e-12)


def test_exact_parabola_gives_back_its_vertex():
    fit = only(fit_study(curve(vertex=1.3e8, floor=2.75)))
    assert fit.optimum.x == pytest.approx(1.3e8, rel=1e-9)
    assert fit.optimum.loss == pytest.approx(2.75, rel=1e-12)
    assert fit.optimum.x_high / fit.optimum.x_low - 1 < 1e-9  # no noise, no width


def test_two_sizes_are_no_parabola():
    with pytest.raises(ValueError, match="3 distinct sizes, got 2"):
        fit_parabola([1.0, 1.0, 2.0], [3.0, 3.0, 2.0])


@pytest.mark.parametrize(("noise", "kind"), [(0.004, "bounded"), (0.035, "two rays"), (0.2, "everything")])
def test_fieller_set_is_where_the_slope_is_not_significant(noise: float, kind: str):
    """Independent: refit by polyfit around each candidate; the slope there is a plain coefficient."""
    x = np.geomspace(1.0, 16.0, 5)
    loss = 3.0 + 0.03 * np.log(x / 7.0) ** 2 + np.array([0.004, -0.006, 0.001, 0.005, -0.003])
    dof = 6
    found = fieller_set(fit_parabola(x.tolist(), loss.tolist()), noise, dof, 0.90)
    assert found.kind == kind

    candidates = np.geomspace(1e-4, 1e5, 4000)
    inside = []
    for x0 in candidates:
        coefficients, cov = np.polyfit(np.log(x / x0), loss, 2, cov="unscaled")
        inside.append(abs(coefficients[1]) <= 1.9431803 * noise * math.sqrt(cov[1, 1]))  # t table: 6 dof, 95 %
    if kind == "everything":
        assert all(inside)
        return
    assert found.low is not None
    assert found.high is not None
    between = (candidates >= found.low) & (candidates <= found.high)
    np.testing.assert_array_equal(inside, between if kind == "bounded" else ~between)
    assert any(inside)
    assert not all(inside)


@pytest.mark.parametrize(("level", "dof", "table"), [(0.90, 2, 2.919986), (0.90, 30, 1.697261), (0.95, 6, 2.446912)])
def test_student_t_table(level: float, dof: int, table: float):
    assert student_t(level, dof) == pytest.approx(table, abs=1e-6)


def test_delta_method_variances_match_simulation():
    rng = np.random.default_rng(1)
    u = np.linspace(-1.4, 1.4, 7)
    clean, noise = 3.0 + 0.05 * (u - 0.3) ** 2, 0.002
    fits = np.polyfit(u, clean[:, None] + noise * rng.standard_normal((7, 20_000)), 2)
    vertices = -fits[1] / (2 * fits[0])
    losses = fits[2] - fits[1] ** 2 / (4 * fits[0])
    ours = fit_parabola(np.exp(u).tolist(), clean.tolist())
    assert math.sqrt(ours.vertex_variance) * noise == pytest.approx(vertices.std(), rel=0.03)
    assert math.sqrt(ours.vertex_loss_variance) * noise == pytest.approx(losses.std(), rel=0.03)


@pytest.mark.parametrize(("span", "bias"), [(2, 0.003), (4, 0.013), (8, 0.03)])
def test_bias_of_the_parabola_grows_with_the_grid(span: float, bias: float):
    """Why grids are +-4x or narrower: alpha .34, beta .28, off by .3, 1.3 and 3 %."""
    size = optimum(1e19, CHINCHILLA)[0]
    found = only(fit_study(on_surface(1e19, size * np.geomspace(1 / span, span, 9), CHINCHILLA))).parabola.vertex
    assert abs(found / size - 1) == pytest.approx(bias, rel=0.35)


# --- refusals and warnings ----------------------------------------------------------------------------------


def refused(records: list[dict[str, Any]]) -> str:
    found = only(fit_study(records))
    assert found.optimum is None
    return found.refusal


def test_fewer_than_five_sizes_are_refused_whatever_the_seeds():
    records = [*curve(sizes=4), *curve(sizes=4, seed=1)]
    assert refused(records) == "a fit needs 5 distinct sizes, got 4"


def test_a_hill_is_refused():
    assert refused(curve(bend=-0.05)) == "curvature is not positive: the curve has no minimum"


@pytest.mark.parametrize(("vertex", "side"), [(1e7, "below 25M"), (1e9, "above 400M")])
def test_vertex_outside_the_grid_is_refused_with_the_missing_side(vertex: float, side: str):
    assert refused(curve(vertex=vertex)) == f"the minimum lies outside the grid 25M-400M: add sizes {side}"


def test_curvature_within_the_noise_is_refused():
    records = curve(bend=0.004)
    for r, noise in zip(records, (0.02, -0.03, 0.01, 0.02, -0.01), strict=True):
        r["loss"] += noise
    sentence = refused(records)
    assert sentence.startswith("curvature cannot be told from zero at 90%: the least-squares minimum, ")
    assert sentence.endswith("has no bounded interval; add seeds or widen the grid 25M-400M")


def warned(records: list[dict[str, Any]]) -> tuple[str, ...]:
    found = only(fit_study(records))
    assert found.optimum is not None, found.refusal
    return found.warnings


def test_a_centred_grid_warns_of_nothing():
    assert warned(curve()) == ()


@pytest.mark.parametrize(("vertex", "place", "side"), [(3.5e7, "lowest", "smaller"), (2.9e8, "highest", "larger")])
def test_off_centre_grid_says_which_sizes_are_missing(vertex: float, place: str, side: str):
    wanted = f"off-centre: the optimum is in the {place} fifth of the grid, {side} sizes are missing"
    assert warned(curve(vertex=vertex)) == (wanted,)


def test_over_wide_grid_is_warned_of():
    wanted = "the grid spans 81x, wider than +-8x: a parabola is biased by 3 % and more"
    assert warned(curve(span=9.0)) == (wanted,)
    assert warned(curve(span=8.0)) == ()


def test_interval_beyond_the_grid_is_warned_of():
    records = curve(vertex=2e8, bend=0.02)
    for r, noise in zip(records, (0.004, -0.006, 0.001, 0.005, -0.003), strict=True):
        r["loss"] += noise
    assert warned(records) == ("the optimum's interval reaches beyond the grid",)


def test_repeated_data_are_warned_of():
    records = curve()
    records[0]["epochs"] = 2.5
    assert warned(records) == ("1 of 5 runs repeat their data (up to 2.5 epochs)",)


# --- smoothing ----------------------------------------------------------------------------------------------


def test_running_mean_is_the_mean_of_the_window():
    steps = np.array([10.0, 20.0, 30.0, 45.0, 60.0, 70.0])  # unevenly logged
    values = np.array([5.0, 4.0, 6.0, 3.0, 2.0, 1.0])
    smooth = running_mean(steps, values, window=30)
    wanted = [
        values[(steps >= s - 15) & (steps <= s + 15)].mean() if s - 15 >= 10 and s + 15 <= 70 else np.nan for s in steps
    ]
    np.testing.assert_allclose(smooth, wanted)
    assert np.isfinite(smooth).sum() == 2


def test_running_mean_does_not_shift_a_falling_line_and_one_step_is_no_mean():
    steps = np.arange(1.0, 101.0)
    smooth = running_mean(steps, 5 - steps / 100, default_window(steps))
    kept = np.isfinite(smooth)
    np.testing.assert_allclose(smooth[kept], (5 - steps / 100)[kept])
    assert kept.sum() == 98
    assert default_window(np.array([1.0, 3001.0])) == 60
    np.testing.assert_array_equal(running_mean(steps, steps**2, 1), steps**2)
