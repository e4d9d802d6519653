"""The sweep files of the paper plan their arms, at its scale."""

from __future__ import annotations

import math

import numpy as np
import pytest

from modexp.cli.compose import arms_of, configuration, load_sweep
from modexp.config.routing import RoutedConfig
from modexp.errors import UserError
from modexp.plan.grid import plan_study
from modexp.plan.ladder import ladder
from modexp.plan.run import resolve_shape

SWEEPS = {
    "figure3": {"baseline", "mod", "mod_50", "stochastic_50"},
    "figure3_tuning": {"baseline", *(f"mod_{c}_every_{e}" for c in (6, 12, 25, 50, 75, 95) for e in (1, 2))},
    "figure4": {"baseline", "mod"},
    "figure6": {"baseline", "mod"},
    "figure7": {"baseline", "moe", "moe_dropping", "mode_staged", "mode_integrated"},
    "routing": {"baseline", "mod", "mod_token_choice", "mod_stochastic", "mod_threshold"},
    "sampling": {"baseline", "mod_none", "mod_auxiliary", "mod_predictor"},
    "depth_width": {"baseline", "mod", "mod_deep", "mod_wide"},
}


@pytest.mark.parametrize("name", SWEEPS)
def test_sweep_plans_the_papers_arms(name: str) -> None:
    _, sweep = load_sweep(name, [], [])
    arms = arms_of(name, sweep)
    assert set(arms) == SWEEPS[name]
    assert sweep.budgets == ([6e18, 2e19, 1e20] if name == "figure4" else [6e18])
    config = arms["baseline"](6e18)
    assert (config.data.path, config.data.sequence_length, config.optim.batch_size) == ("allenai/c4", 2048, 128)
    plan = plan_study(arms, sweep.budgets[:1], [0], sweep.grid)
    assert not plan.dropped
    assert len(plan.runs) == len(arms) * sweep.grid.points
    for run in plan.runs:
        assert abs(run.plan.achieved - 1) < 1e-3


def test_tuning_arms_are_what_their_names_say() -> None:
    name, sweep = load_sweep("figure3_tuning", [], [])
    for arm, at in arms_of(name, sweep).items():
        model = at(6e18).model
        if isinstance(model, RoutedConfig):
            assert arm == f"mod_{math.floor(100 * model.capacity)}_every_{model.every}"


def test_depth_and_width_stand_at_the_same_flops() -> None:
    name, sweep = load_sweep("depth_width", [], [])
    runs = [run.plan for run in plan_study(arms_of(name, sweep), [6e18], [0], sweep.grid).runs]
    usual, deep, wide = ([r for r in runs if r.arm == arm] for arm in ("mod", "mod_deep", "mod_wide"))
    for u, d, w in zip(usual, deep, wide, strict=True):
        assert d.flops_per_token == pytest.approx(u.flops_per_token, rel=0.08)
        assert w.flops_per_token == pytest.approx(u.flops_per_token, rel=0.08)
        assert d.n_layers > 1.4 * u.n_layers > 1.4 * 1.2 * w.n_layers
        assert d.d_model < u.d_model < w.d_model


def test_depth_of_the_ladder() -> None:
    assert ladder(1.0) == ladder()
    for factor in (0.5, 2.0):
        large = [(L, d) for L, d, _ in ladder(factor) if 512 <= d <= 2048]
        aspect = [L / (factor * math.sqrt(d) / 2) for L, d in large]
        assert np.exp(np.mean(np.log(aspect))) == pytest.approx(1.0, abs=0.1)
    one = resolve_shape(configuration(["model=mod", "size=225m", "data=c4", "depth=2"]))
    assert one.model.shape[0] > 20
    assert one.depth == 1.0, "the shape is filled, and says all"


def test_depth_beside_a_shape_is_refused() -> None:
    with pytest.raises(UserError, match=r"depth=2\.0 and model.d_model=64 both set the shape"):
        resolve_shape(configuration(["model.d_model=64", "model.n_layers=2", "model.n_heads=2", "depth=2"]))
    with pytest.raises(UserError, match=r"depth=9\.0 is not in"):
        configuration(["depth=9"])
