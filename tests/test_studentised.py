"""A bad run is named in the smallest study, wherever it sits; noise names few."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from modexp.analysis.isoflop import fit_study
from modexp.analysis.studentised import RISK, far_runs, studentised
from tests.test_plots import study


def noisy(seed: int, sizes: int = 5, noise: float = 0.005) -> list[dict[str, Any]]:
    """Two arms at two budgets; scatter is drawn anew."""
    rng = np.random.default_rng(seed)
    records = study(sizes=sizes)
    for r in records:
        middle = 1e8 if r["budget"] == 6e18 else 2e8
        size = r["flops_per_token"] / 2
        r["loss"] = 3.0 + 0.06 * math.log(size / middle) ** 2 + noise * rng.standard_normal()
    return records


@pytest.mark.parametrize("off", [1.0, -1.0])
@pytest.mark.parametrize("place", range(5))
def test_a_run_one_nat_off_is_named_alone(place: int, off: float) -> None:
    """At the edges too, where it drags the parabola along and its curve is refused."""
    for seed in range(6):
        records = noisy(seed)
        records[place]["loss"] += off
        assert list(far_runs(fit_study(records).curves)) == [records[place]["run"]]


def test_two_bad_runs_do_not_hide_one_another() -> None:
    records = noisy(1)
    records[2]["loss"] += 1.0
    records[13]["loss"] += 0.8
    assert list(far_runs(fit_study(records).curves)) == [records[2]["run"], records[13]["run"]]


def test_t_is_that_of_a_dummy_for_the_run() -> None:
    """The textbook's definition: an extra column that is 1 for the run alone; t of its coefficient."""
    (curve,) = fit_study([r for r in noisy(2, 7) if (r["arm"], r["budget"]) == ("mod", 6e18)]).curves
    distances, dof = studentised([curve.points])
    u, y = np.log([p.x for p in curve.points]), np.array([p.loss for p in curve.points])
    for i, p in enumerate(curve.points):
        design = np.column_stack([np.vander(u - u.mean(), 3), np.arange(len(u)) == i])
        coefficients, squares, *_ = np.linalg.lstsq(design, y)
        error = math.sqrt(squares[0] / dof * np.linalg.inv(design.T @ design)[3, 3])
        assert distances[p.run] == pytest.approx(coefficients[3] / error)


def test_noise_names_few() -> None:
    named = [bool(far_runs(fit_study(noisy(seed)).curves)) for seed in range(200)]
    assert np.mean(named) <= 3 * RISK


def test_without_noise_or_points_to_spare_nothing_is_named() -> None:
    assert far_runs(fit_study(noisy(0, noise=0.0)).curves) == {}
    assert far_runs(fit_study(noisy(0, sizes=4)).curves) == {}
    assert far_runs(fit_study(noisy(0, sizes=2)).curves) == {}
