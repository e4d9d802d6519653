"""schedule=wsd: warm-up, constant, 1 - sqrt decay; and the rules of one run taken at another budget."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from modexp.config.identity import scientific
from modexp.config.root import Config
from modexp.config.study import BudgetConfig
from modexp.config.train import OptimConfig, ScheduleConfig, WsdConfig
from modexp.errors import UserError
from modexp.plan.run import RunPlan, plan_run, resolve_shape
from modexp.train.schedule import lr_at, planned_lr, wsd_at


def at(budget: float, **settings: Any) -> RunPlan:
    rules_at = settings.pop("rules_at", None)
    config = Config(size="58k", budget=BudgetConfig(budget, rules_at=rules_at), schedule=WsdConfig(), **settings)
    return plan_run(resolve_shape(config))


def test_the_rate_rises_stays_and_falls_as_one_minus_sqrt() -> None:
    rates = [wsd_at(step, 1000, 50, 200, 3.0, 0.1) for step in range(1000)]
    assert rates[:50] == pytest.approx([3.0 * (i + 1) / 50 for i in range(50)])
    assert set(rates[50:801]) == {3.0}, "constant, and the decay begins at the peak"
    for step in (850, 900, 999):  # Hagele et al. 2024: 1 - sqrt((n - (N - N_decay)) / N_decay)
        share = 1 - math.sqrt((step - 800) / 200)
        assert rates[step] == pytest.approx(3.0 * (0.1 + 0.9 * share), rel=1e-12)
    assert rates == sorted(rates[:50]) + sorted(rates[50:], reverse=True)


def test_up_to_the_decay_the_rate_knows_nothing_of_the_length() -> None:
    short, long = (at(budget, rules_at=2e12) for budget in (1e12, 2e12))
    branch = short.steps - short.decay_steps
    for step in range(branch + 1):
        ours, theirs = (planned_lr(WsdConfig(), plan.to_json(), step) for plan in (short, long))
        assert ours == theirs, f"step {step}: {ours} and {theirs}"
    assert planned_lr(WsdConfig(), short.to_json(), branch + 1) < short.lr


def test_a_plan_tells_its_decay_and_a_cosine_has_none() -> None:
    plan = at(1e12)
    assert plan.decay_steps == round(0.2 * plan.steps)
    cosine = plan_run(resolve_shape(Config(size="58k", budget=BudgetConfig(1e12))))
    assert (cosine.decay_steps, cosine.steps, cosine.lr) == (0, plan.steps, plan.lr)
    assert planned_lr(ScheduleConfig(), cosine.to_json(), 7) == lr_at(
        7, cosine.steps, cosine.warmup_steps, cosine.lr, 0.1
    )


@pytest.mark.parametrize("rule", ["sqrt", "step-law"])
def test_rules_of_another_budget_are_that_runs_batch_rate_and_warmup(rule: str) -> None:
    optim = OptimConfig(lr="step-law", batch_size=rule)
    own, other, ruled = at(1e12, optim=optim), at(4e12, optim=optim), at(1e12, optim=optim, rules_at=4e12)
    for key in ("batch_size", "lr", "warmup_steps"):
        assert getattr(ruled, key) == getattr(other, key) != getattr(own, key), key
    assert ruled.flops == pytest.approx(1e12, rel=1e-3), "the budget stays the run's own"


def test_the_new_settings_leave_identities_as_they_were() -> None:
    plain = Config()
    assert not {"budget.rules_at", "schedule.decay"} & scientific(plain).keys()
    ruled = replace(plain, budget=BudgetConfig(rules_at=1e10), schedule=WsdConfig())
    assert {"budget.rules_at": 1e10, "schedule.decay": 0.2}.items() <= scientific(ruled).items()


def test_impossible_schedules_are_sentences() -> None:
    with pytest.raises(UserError, match=r"schedule.decay=0 is not a share"):
        WsdConfig(decay=0)
    with pytest.raises(UserError, match=r"schedule.decay=0.8 and schedule.warmup=0.3 take more than all steps"):
        WsdConfig(decay=0.8, warmup=0.3)
    with pytest.raises(UserError, match=r"budget.rules_at=1e14 asks for \d+ steps of warm-up"):
        at(1e12, rules_at=1e14)
    with pytest.raises(UserError, match=r"budget.rules_at=-1.0 is not positive"):
        BudgetConfig(rules_at=-1.0)
