"""From a budget to one run: shape, hyperparameters, steps, tokens and what they will cost, to the FLOP."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

from modexp.config.model import BaselineConfig, ModelConfig
from modexp.config.root import Config
from modexp.config.train import WsdConfig
from modexp.errors import UserError
from modexp.flops.ledger import Ledger
from modexp.flops.transformer import baseline_ledger, dense_twin
from modexp.kinds import ledger
from modexp.plan.hyperparameters import batch_sequences, lr_peak
from modexp.plan.ladder import Shape, ladder, rung_of_size, with_shape
from modexp.wording import budget_text, size_text

# Above this many steps whole steps land within 0.05 % of the budget; below it the last step is cut to fit.
WHOLE_STEPS_ABOVE = 1000


@dataclass(frozen=True)
class RunPlan:
    """What one run promises. FLOPs are counted under ``convention``; sizes and rates are this run's own."""

    name: str
    arm: str
    budget: float  # target FLOPs of training
    convention: str
    seed: int
    routed: bool
    size: str  # total parameters of the dense twin, for eyes
    n_layers: int
    d_model: int
    n_heads: int
    params_total: int
    params_non_embedding: int
    params_active: int  # average over tokens
    flops_per_token: float  # forward
    relative_flops: float  # flops_per_token over the dense twin's
    training_flops_per_sequence: int
    sequence_length: int
    batch_size: int  # sequences a step
    last_batch_size: int  # sequences of the last step
    steps: int
    sequences: int
    tokens: int
    tokens_per_param: float
    epochs: float | None  # passes over the training data; None: their number is not known yet
    lr: float
    lr_rule: str
    lr_scale: float  # over the rule's rate: other than 1 in guard runs (modexp/plan/guard.py)
    batch_rule: str
    warmup_steps: int
    decay_steps: int  # the last ones, of a schedule that is constant before them; 0 for a cosine
    flops: int  # of the whole run, as planned

    @property
    def achieved(self) -> float:
        """Planned FLOPs over the budget."""
        return self.flops / self.budget

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "achieved": self.achieved}


@lru_cache
def dense_rungs(
    twin: BaselineConfig, vocab: int, T: int, convention: str, depth: float
) -> list[tuple[int, float, float, Shape]]:
    """Of each rung that a dense model can take: parameters, forward and training FLOPs per token, shape. All budgets
    and all arms of a study ask for the same ones."""
    rungs = []
    for shape in ladder(depth):
        books = baseline_ledger(with_shape(twin, shape), vocab, T)
        rungs.append((books.params_total, books.forward(convention) / T, books.training(convention) / T, shape))
    return rungs


def optimal_shape(
    model: ModelConfig, config: Config, tokens_per_param: float, depth: float = 1.0
) -> tuple[float, Shape]:
    """Where a dense model of this ``depth`` sees ``tokens_per_param`` tokens a parameter within the budget.

    Returns its forward FLOPs per token, interpolated between rungs, and the nearest rung.
    """
    data, budget = config.data, config.budget
    rungs = dense_rungs(dense_twin(model), data.vocab_size, data.sequence_length, budget.convention, depth)
    points = [(budget.flops / per_token / params, flops, shape) for params, flops, per_token, shape in rungs]
    above = [p for p in points if p[0] >= tokens_per_param]
    below = [p for p in points if p[0] < tokens_per_param]
    if not above or not below:
        edge = points[0] if not above else points[-1]
        return edge[1], edge[2]
    left, right = min(above), max(below)
    at = math.log(left[0] / tokens_per_param) / math.log(left[0] / right[0])
    flops = math.exp((1 - at) * math.log(left[1]) + at * math.log(right[1]))
    return flops, (left if at < 0.5 else right)[2]


def resolve_shape(config: Config, tokens_per_param: float = 20.0) -> Config:
    """Fill the model's shape from ``size``, unless its layers, width and heads are all given."""
    model = config.model
    given = {k: getattr(model, k) for k in ("n_layers", "d_model", "n_heads") if getattr(model, k) is not None}
    if len(given) == 3:
        for key, value, rest in (("size", config.size, "auto"), ("depth", config.depth, 1.0)):
            if value != rest:
                raise UserError(
                    f"{key}={value} and model.d_model={model.d_model} both set the shape", "leave one of them out"
                )
        return config
    if given:
        missing = ", ".join(f"model.{k}" for k in ("n_layers", "d_model", "n_heads") if k not in given)
        raise UserError(f"the shape is half given: {missing} missing", "give all three, or none and size=220m instead")
    if config.size == "auto":
        shape = optimal_shape(model, config, tokens_per_param, config.depth)[1]
    else:
        shape = rung_of_size(config.size, model, config.data, config.depth)
    return replace(config, model=with_shape(model, shape), size="auto", depth=1.0)


def count_steps(budget: float, sequence_flops: int, batch: int) -> tuple[int, int]:
    """(steps, sequences) that come nearest to ``budget`` FLOPs."""
    exact = budget / sequence_flops
    if exact / batch > WHOLE_STEPS_ABOVE:
        steps = round(exact / batch)
        return steps, steps * batch
    sequences = round(exact)
    return math.ceil(sequences / batch), sequences


def decay_of(config: Config, steps: int) -> int:
    """The last step of a run may be a smaller batch, so there is always one that is the run's own."""
    schedule = config.schedule
    return max(1, round(schedule.decay * steps)) if isinstance(schedule, WsdConfig) else 0


def check_devices(plan: RunPlan, devices: int | None) -> None:
    """Refuse processes that no sequence of a step is left for. Not part of the plan: devices are no science."""
    if (devices or 1) > plan.batch_size:
        raise UserError(
            f"trainer.devices={devices} processes would share steps of {plan.batch_size} sequences in {plan.name}",
            f"set trainer.devices to {plan.batch_size} at most, or raise optim.batch_size",
        )


def plan_run(config: Config, arm: str | None = None) -> RunPlan:
    """The plan of one run whose shape is filled (:func:`resolve_shape`)."""
    data, model, convention = config.data, config.model, config.budget.convention
    books: Ledger = ledger(model, data)
    twin = ledger(dense_twin(model), data)
    T = data.sequence_length
    sequence_flops = books.training(convention)
    budget = config.budget.flops

    rules_at = config.budget.rules_at or budget
    batch = batch_sequences(config.optim, rules_at / sequence_flops * T, T)
    steps, sequences = count_steps(budget, sequence_flops, batch)
    rule_steps, rule_sequences = count_steps(rules_at, sequence_flops, batch)
    if steps < 1:
        raise UserError(
            f"budget.flops={budget_text(budget)} is less than one sequence costs "
            f"({budget_text(float(f'{sequence_flops:.3g}'))} FLOPs at {size_text(twin.params_total)})",
            "raise the budget or choose a smaller size",
        )
    warmup_steps, decay_steps = round(config.schedule.warmup * rule_steps), decay_of(config, steps)
    if warmup_steps + decay_steps > steps:
        raise UserError(
            f"budget.rules_at={budget_text(rules_at)} asks for {warmup_steps} steps of warm-up, and budget.flops="
            f"{budget_text(budget)} has {steps - decay_steps}" + (" before its decay" if decay_steps else ""),
            "choose budgets nearer to each other, or a shorter schedule.warmup",
        )
    tokens = sequences * T
    layers, width, heads = model.shape
    arm = arm or model.kind
    size = size_text(twin.params_total)
    scaled = "" if config.optim.lr_scale == 1 else f"-lr{config.optim.lr_scale:g}"
    return RunPlan(
        name=config.name or f"{arm}-{size}-{budget_text(budget)}-s{config.seed}{scaled}",
        arm=arm,
        budget=budget,
        convention=convention,
        seed=config.seed,
        routed=model.has_routing,
        size=size,
        n_layers=layers,
        d_model=width,
        n_heads=heads,
        params_total=books.params_total,
        params_non_embedding=books.params_non_embedding,
        params_active=books.params_active,
        flops_per_token=books.forward(convention) / T,
        relative_flops=books.forward(convention) / twin.forward(convention),
        training_flops_per_sequence=sequence_flops,
        sequence_length=T,
        batch_size=batch,
        last_batch_size=sequences - (steps - 1) * batch,
        steps=steps,
        sequences=sequences,
        tokens=tokens,
        tokens_per_param=tokens / books.params_total,
        epochs=tokens / data.num_tokens if data.num_tokens else None,
        lr=lr_peak(config.optim, width, books.params_non_embedding, rule_sequences * T),
        lr_rule=config.optim.lr if isinstance(config.optim.lr, str) else "constant",
        lr_scale=config.optim.lr_scale,
        batch_rule=config.optim.batch_size if isinstance(config.optim.batch_size, str) else "constant",
        warmup_steps=warmup_steps,
        decay_steps=decay_steps,
        flops=sequences * sequence_flops,
    )
