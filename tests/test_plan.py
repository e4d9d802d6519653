"""Plans: budgets met, the paper's sizes bracketed, hyperparameters from each run's own numbers."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modexp.config.data import DataConfig, HubData
from modexp.config.model import BaselineConfig
from modexp.config.root import Config
from modexp.config.routing import MoDConfig
from modexp.config.study import BudgetConfig, GridConfig
from modexp.config.train import OptimConfig
from modexp.errors import UserError
from modexp.kinds import ledger
from modexp.plan.grid import StudyPlan, plan_study, targets, unequal_centres
from modexp.plan.hyperparameters import batch_sequences, lr_peak
from modexp.plan.ladder import heads_of, ladder, parse_size, rung_of_size, with_shape
from modexp.plan.run import RunPlan, count_steps, plan_run, resolve_shape
from modexp.wording import budget_text, size_text

PAPER = HubData(path="x", tokenizer="gpt2", vocab_size=50257, sequence_length=2048)


def paper(model: object, budget: float) -> Config:
    optim = OptimConfig(batch_size=128)
    return Config(model=model, data=PAPER, optim=optim, budget=BudgetConfig(budget))  # type: ignore[arg-type]


def arms() -> dict[str, object]:
    models = {"baseline": BaselineConfig(), "mod": MoDConfig()}
    return {arm: lambda budget, model=model: paper(model, budget) for arm, model in models.items()}


def paper_plans(budgets: list[float], grid: GridConfig | None = None) -> list[RunPlan]:
    return [r.plan for r in plan_study(arms(), budgets, [0], grid or GridConfig()).runs]  # type: ignore[arg-type]


def test_the_papers_setting_brackets_its_optimum() -> None:
    """Fig. 3: 220 M at 6e18, on a grid of about 50 M to 1 B; Fig. 4: up to 3 B at 1e20."""
    plans = [p for p in paper_plans([6e18, 2e19, 1e20]) if p.arm == "baseline"]
    sizes = {b: [p.params_total for p in plans if p.budget == b] for b in (6e18, 2e19, 1e20)}
    assert any(abs(n / 220e6 - 1) < 0.05 for n in sizes[6e18])
    assert min(sizes[6e18]) < 110e6
    assert 440e6 < max(sizes[6e18]) < 1.2e9
    middles = [sorted(sizes[b])[3] for b in (6e18, 2e19, 1e20)]
    assert middles == sorted(middles)
    assert middles[0] < middles[2] / 2


def test_every_plan_meets_its_budget() -> None:
    for plan in paper_plans([6e18, 2e19, 1e20]):
        assert plan.steps > 1000
        assert abs(plan.achieved - 1) <= 1e-3
        assert plan.flops == plan.training_flops_per_sequence * plan.batch_size * plan.steps


@settings(max_examples=200, derandomize=True)
@given(
    budget=st.floats(1e9, 1e22),
    sequence_flops=st.integers(10**6, 10**15),
    batch=st.integers(1, 512),
)
def test_steps_land_within_half_a_step_or_half_a_sequence(budget: float, sequence_flops: int, batch: int) -> None:
    steps, sequences = count_steps(budget, sequence_flops, batch)
    off = abs(sequences * sequence_flops - budget)
    assert (steps - 1) * batch < sequences <= steps * batch or sequences == steps == 0
    if steps > 1000:
        assert sequences == steps * batch
        assert off <= 1e-3 * budget
    else:
        assert off <= 0.5001 * sequence_flops * (batch if steps == 1000 else 1)


def test_arms_are_centred_on_the_same_flops_per_token() -> None:
    plans = paper_plans([6e18])
    centre = {}
    for arm in ("baseline", "mod"):
        logs = [math.log(p.flops_per_token) for p in plans if p.arm == arm]
        centre[arm] = sum(logs) / len(logs)
    assert abs(centre["baseline"] - centre["mod"]) < math.log(1.1)


def test_arms_that_are_not_centred_alike_are_told() -> None:
    assert not unequal_centres(paper_plans([6e18, 2e19]))
    at = {m.kind: lambda b, m=m: Config(model=m, budget=BudgetConfig(b)) for m in (BaselineConfig(), MoDConfig())}
    small = [r.plan for r in plan_study(at, [1e10], [0], GridConfig(points=5)).runs]  # type: ignore[arg-type]
    (sentence,) = unequal_centres(small)
    assert sentence.startswith("at 1e10 baseline is centred on")


def test_targets_are_even_in_the_logarithm() -> None:
    found = targets(8.0, GridConfig(points=5, span=4.0))
    assert found == pytest.approx([2, 4, 8, 16, 32])


def test_hyperparameters_follow_from_the_runs_own_numbers() -> None:
    config = Config(
        model=BaselineConfig(),
        data=DataConfig(),
        budget=BudgetConfig(1e12),
        optim=OptimConfig(lr="step-law", batch_size="step-law"),
    )
    plans = [r.plan for r in plan_study({"a": lambda b: config}, [1e12], [0], GridConfig(points=5)).runs]
    assert len({p.batch_size for p in plans}) > 2
    for plan in plans:
        # Li et al. 2025, equation 1, written out
        assert plan.lr == pytest.approx(1.79 * plan.params_non_embedding**-0.713 * plan.tokens**0.307)


def test_rules_of_the_batch() -> None:
    optim = OptimConfig(batch_size="step-law")
    assert batch_sequences(optim, 1e10, 2048) == round(0.58 * 1e10**0.571 / 2048)
    assert batch_sequences(optim, 1000, 2048) == 1
    assert batch_sequences(OptimConfig(batch_size=128), 1e10, 2048) == 128
    assert batch_sequences(OptimConfig(batch_size="sqrt"), 1e10, 100) == 250


def test_width_rule_halves_the_rate_at_four_times_the_width() -> None:
    optim = OptimConfig(lr="width")
    assert lr_peak(optim, 512, 1, 1) * 2 == lr_peak(optim, 128, 1, 1) == pytest.approx(3e-3)
    assert lr_peak(OptimConfig(lr=0.5), 256, 1, 1) == 0.5


def test_ladder_is_fine_and_sound() -> None:
    params = [12 * L * d * d for L, d, _ in ladder()]
    assert params == sorted(params)
    assert len(set(ladder())) == len(ladder()) > 60
    large = [b / a for a, b in itertools.pairwise(params) if a > 1e6]
    assert max(large) < 1.35
    for L, d, h in ladder():
        assert L % 2 == 0
        assert d % h == 0
        assert (d // h) % 2 == 0
    assert heads_of(1024) == 16


@pytest.mark.parametrize(("size", "params"), [("220m", 220e6), ("1.3B", 1.3e9), ("58k", 58e3), ("1e6", 1e6)])
def test_sizes_are_read(size: str, params: float) -> None:
    assert parse_size(size) == params


def test_size_names_the_dense_twin_for_every_arm() -> None:
    shape = rung_of_size("220m", MoDConfig(), PAPER)
    assert shape == rung_of_size("220m", BaselineConfig(), PAPER)
    total = ledger(with_shape(BaselineConfig(), shape), PAPER).params_total
    assert abs(total / 220e6 - 1) < 0.05


@pytest.mark.parametrize("size", ["huge", "0", "220q", "-1", "1", "9e99"])
def test_wrong_sizes_are_sentences(size: str) -> None:
    with pytest.raises(UserError, match=f"size={size}"):
        rung_of_size(size, BaselineConfig(), PAPER)


def test_every_rung_can_be_asked_for_by_the_label_it_is_printed_with() -> None:
    for shape in ladder()[::7]:
        label = size_text(ledger(with_shape(BaselineConfig(), shape), DataConfig()).params_total)
        assert rung_of_size(label, BaselineConfig(), DataConfig()) == shape


@pytest.mark.parametrize("flops", [6e18, 1.5e19, 2.4e19, 1e12, 3e11, 1.2345e15])
def test_budgets_are_written_as_typed(flops: float) -> None:
    assert float(budget_text(flops)) == flops
    assert "+" not in budget_text(flops)


def test_neighbouring_budgets_never_merge() -> None:
    names = {p.name for p in paper_plans([1.5e19, 2.4e19], GridConfig(points=1))}
    assert len(names) == 4


def test_a_budget_below_one_sequence_is_refused() -> None:
    with pytest.raises(UserError, match="less than one sequence costs"):
        plan_run(resolve_shape(replace(paper(BaselineConfig(), 1e9), size="220m")))


def test_runs_the_budget_cannot_buy_are_dropped_with_their_reason() -> None:
    config = replace(paper(BaselineConfig(), 1e9), size="220m")
    plan = plan_study({"baseline": lambda b: config}, [1e9], [0], GridConfig())
    assert not plan.runs
    assert "less than one sequence" in plan.dropped[0].reason


def test_runs_that_whole_sequences_keep_off_their_budget_are_dropped() -> None:
    """A fit would leave them out, so they are not trained."""
    model = resolve_shape(Config(budget=BudgetConfig(1e12))).model
    cost = plan_run(Config(model=model)).training_flops_per_sequence

    def planned(sequences: float) -> StudyPlan:
        budget = sequences * cost
        return plan_study(
            {"baseline": lambda b: Config(model=model, budget=BudgetConfig(b))}, [budget], [0], GridConfig()
        )

    for sequences, runs in ((10.09, 1), (10.4, 0), (60.49, 1)):
        plan = planned(sequences)
        assert len(plan.runs) == runs
        assert len(plan.dropped) == 1 - runs
    reason = planned(10.4).dropped[0].reason
    assert "10 whole sequences miss" in reason
    assert "by -3.8%, more than the 1% that a fit accepts" in reason


@pytest.mark.parametrize(
    ("size", "shape", "words"),
    [
        ("auto", {"d_model": 64}, "half given"),
        ("1m", {"d_model": 64, "n_layers": 2, "n_heads": 2}, "both set the shape"),
    ],
)
def test_a_shape_is_given_once_and_whole(size: str, shape: dict[str, int], words: str) -> None:
    with pytest.raises(UserError, match=words):
        resolve_shape(Config(model=BaselineConfig(**shape), size=size))  # type: ignore[arg-type]


def test_seeds_and_arms_multiply() -> None:
    plan = plan_study(arms(), [6e18], [0, 1, 2], GridConfig(points=5))  # type: ignore[arg-type]
    assert len(plan.runs) == 2 * 3 * 5
    assert {r.config.seed for r in plan.runs} == {0, 1, 2}


def test_repeated_data_is_flagged_by_its_epochs() -> None:
    config = Config(data=DataConfig(num_tokens=1e6), budget=BudgetConfig(1e12))
    plan = plan_run(resolve_shape(config))
    assert plan.epochs == plan.tokens / 1e6
    assert plan_run(resolve_shape(replace(config, data=DataConfig()))).epochs is None
