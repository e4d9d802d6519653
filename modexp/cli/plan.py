"""modexp plan: the runs that a budget buys, before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modexp.cli.common import (
    Parser,
    add_budget,
    add_json,
    note,
    one_name,
    parser,
    print_json,
    print_table,
    split_words,
)
from modexp.errors import UserError
from modexp.plan.grid import PlannedRun, StudyPlan, unequal_centres
from modexp.plan.run import RunPlan
from modexp.plan.trunk import saving
from modexp.wording import budget_text, size_text

if TYPE_CHECKING:
    from modexp.plan.cost import Cost, Speed
    from modexp.plan.design import Expectation


def flags() -> Parser:
    p = parser("plan", "Print the runs that a budget buys, and why others were dropped. Trains nothing.")
    add_budget(p)
    p.add_argument("--gpu", metavar="GPU", help="predict time and memory on h100, a100, 4090, ... by its data sheet")
    p.add_argument("--bench", metavar="FILE", help="predict them from what modexp bench step --json measured")
    p.add_argument("--price", type=float, metavar="MONEY", help="of an hour of the device: adds cost")
    p.add_argument("--hours", type=float, metavar="H", help="scale all budgets alike so that the study takes H hours")
    p.add_argument("--noise", type=float, default=0.01, metavar="SD", help="of one loss, relative (default: 0.01)")
    add_json(p)
    p.add_argument("words", nargs="*", metavar="SWEEP | key=value", help="a sweep file (default: isoflop), overrides")
    return p


def main(words: list[str]) -> int:
    args = flags().parse_intermixed_args(words)
    speed = speed_of(args.gpu, args.bench)
    for flag, value in (("--price", args.price), ("--hours", args.hours)):
        if value is not None and not 0 < value < float("inf"):
            raise UserError(f"{flag} {value:g} is not positive")
        if value is not None and speed is None:
            raise UserError(
                f"{flag} {value:g} needs a device", "name one with --gpu h100, or measure one: --bench FILE"
            )
    if not 0 < args.noise < 1:
        raise UserError(f"--noise {args.noise:g} is not a share in (0, 1)", "1 % is --noise 0.01")

    from modexp.cli.compose import arms_of, budgets_of, load_sweep
    from modexp.sweep.study import plan_of

    names, overrides = split_words(args.words)
    study, sweep = load_sweep(one_name(names, "isoflop"), budgets_of(args.budget), overrides)
    arms = arms_of(study, sweep)

    def at(factor: float) -> StudyPlan:
        return plan_of(replace(sweep, budgets=scaled(sweep.budgets, factor)), arms)

    factor = 1.0
    if args.hours is not None and speed is not None:
        from modexp.plan.cost import factor_for

        factor = factor_for(args.hours, lambda f: sum(cost.seconds for cost in costs_of(at(f), speed)))
    plan = at(factor)
    costs = costs_of(plan, speed)
    expected = expected_of(plan, args.noise)
    if args.json:
        print_json(to_json(plan, costs, args.price, speed) | {"design": [asdict(e) for e in expected]})
    else:
        if args.hours is not None:
            buys = ", ".join(map(budget_text, scaled(sweep.budgets, factor)))
            note(f"{args.hours:g} hours buy the budgets {buys}: {factor:.3g} times what was asked, all alike")
        print_plan(plan, costs, args.price, speed)
        print_design(expected, args.noise)
        if sweep.adapt.enabled:
            note("adapt=on: grids after the first budget's are centred anew by what the smaller ones find")
    if not plan.runs:
        raise UserError("the budgets buy no run", "raise --budget or choose smaller sizes")
    return 0


def speed_of(gpu: str | None, bench: str | None) -> Speed | None:
    """What to predict from; None: nothing is known."""
    if gpu and bench:
        raise UserError(f"--gpu {gpu} and --bench {bench} are two devices", "leave one of them out")
    if not gpu and not bench:
        return None
    from modexp.plan.cost import assumed, measured

    return assumed(gpu) if gpu else measured(Path(bench or ""))


def scaled(budgets: list[float], factor: float) -> list[float]:
    """Three digits are as many as a prediction has."""
    return budgets if factor == 1 else [float(f"{budget * factor:.3g}") for budget in budgets]


def costs_of(plan: StudyPlan, speed: Speed | None) -> list[Cost]:
    """One a run, or none."""
    if speed is None:
        return []
    from modexp.plan.cost import predict

    return [predict(run.plan, run.config, speed, run.branch) for run in plan.runs]


def to_json(plan: StudyPlan, costs: list[Cost], price: float | None, speed: Speed | None) -> dict[str, Any]:
    predicted = [cost.to_json(price) for cost in costs] or [{} for _ in plan.runs]
    found: dict[str, Any] = {
        "runs": [run_json(run) | more for run, more in zip(plan.runs, predicted, strict=True)],
        "dropped": [asdict(d) for d in plan.dropped],
    }
    if again := recomputed(plan):
        found["flops_recomputed"] = again
    if saved := saving(plan.runs):
        found["trunks"] = asdict(saved) | {"share": saved.share}
    if speed is not None:
        seconds = sum(cost.seconds for cost in costs)
        found["predicted"] = {"source": speed.source, "seconds": seconds}
        found["predicted"] |= {} if price is None else {"cost": seconds / 3600 * price}
    return found


def run_json(run: PlannedRun) -> dict[str, Any]:
    branch = {} if run.branch is None else {"trunk": run.branch.trunk, "branch_step": run.branch.step}
    return run.plan.to_json() | branch


COLUMNS = (
    "run", "shape", "params", "active", "FLOPs/token", "x twin", "batch", "steps", "tokens", "tok/param", "epochs",
    "lr", "off budget",
)  # fmt: skip
PREDICTED = ("time", "memory", "cost")
OPTIONAL = ("active", "epochs", "x twin", "off budget", "lr", "tok/param", "params", "memory")


def row(plan: RunPlan) -> list[str]:
    return [
        plan.name,
        f"L{plan.n_layers} d{plan.d_model}",
        size_text(plan.params_total),
        size_text(plan.params_active),
        f"{plan.flops_per_token:.3g}",
        f"{plan.relative_flops:.2f}",
        str(plan.batch_size),
        f"{plan.steps:,}",
        f"{plan.tokens:.3g}",
        f"{plan.tokens_per_param:.3g}",
        "-" if plan.epochs is None else f"{plan.epochs:.2g}",
        f"{plan.lr:.2e}",
        f"{plan.achieved - 1:+.3%}",
    ]


def predicted_row(cost: Cost, price: float | None) -> list[str]:
    """As many of PREDICTED as are known."""
    from modexp.train.progress import duration

    memory = f"{cost.memory_bytes / 2**30:.3g} GiB" + ("" if cost.fits else " (!)")
    money = [] if price is None else [f"{cost.seconds / 3600 * price:,.2f}"]
    return [duration(cost.seconds), memory, *money]


def print_plan(
    plan: StudyPlan, costs: Sequence[Cost] = (), price: float | None = None, speed: Speed | None = None
) -> None:
    """One table a budget; then what the columns mean and what was dropped."""
    predicted = [predicted_row(cost, price) for cost in costs] or [[] for _ in plan.runs]
    rows = [(run.plan, row(run.plan) + more) for run, more in zip(plan.runs, predicted, strict=True)]
    columns = (*COLUMNS, *PREDICTED[: len(predicted[0]) if predicted else 0])
    for budget in sorted({run.plan.budget for run in plan.runs}):
        mine = [cells for run, cells in rows if run.budget == budget]
        print_table(columns, mine, f"budget {budget_text(budget)} training FLOPs a run", OPTIONAL)
    if speed is not None and costs:
        print_costs(plan, costs, price, speed)
    if plan.runs:
        first = plan.runs[0].plan
        total = sum(run.plan.flops for run in plan.runs)
        off = [run.plan.achieved - 1 for run in plan.runs]
        note(
            f"{len(plan.runs)} runs, {total:.3g} FLOPs, {min(off):+.3%} to {max(off):+.3%} off budget;"
            f" counted: {first.convention}; sequences of"
            f" {first.sequence_length} tokens; lr rule {first.lr_rule}, batch rule {first.batch_rule};"
            " FLOPs/token forward, x twin: over the dense model of the same shape"
        )
    if again := recomputed(plan):
        note(f"activation checkpointing computes {again:.3g} FLOPs twice; no budget counts them")
    if saved := saving(plan.runs):
        note(saved.sentence)
    for dropped in plan.dropped:
        note(f"dropped: {dropped.arm} at {budget_text(dropped.budget)}, seed {dropped.seed}: {dropped.reason}")
    plans = [run.plan for run in plan.runs]
    for sentence in unequal_centres(plans):
        note(f"warning: {sentence}")
    warn_of_epochs(plans)


def recomputed(plan: StudyPlan) -> int:
    """FLOPs that activation checkpointing adds to all runs."""
    from modexp.kinds import ledger

    again = [run for run in plan.runs if run.config.trainer.activation_checkpointing]
    return sum(run.plan.sequences * ledger(run.config.model, run.config.data).recomputed() for run in again)


def print_costs(plan: StudyPlan, costs: Sequence[Cost], price: float | None, speed: Speed) -> None:
    from modexp.train.progress import duration

    seconds = sum(cost.seconds for cost in costs)
    money = "" if price is None else f", {seconds / 3600 * price:,.2f} at {price:g} an hour"
    note(f"predicted: {duration(seconds)} of one device for all runs{money}; {speed.source}")
    missing = sorted({run.plan.arm for run in plan.runs} - {p.arm for p in speed.points} - {""})
    if missing and any(p.arm for p in speed.points):
        note(f"not measured, so predicted from the nearest kind of model: {', '.join(missing)}")
    large = [(cost.memory_bytes, run.plan.name) for run, cost in zip(plan.runs, costs, strict=True) if not cost.fits]
    if large:
        most, name = max(large)
        there = (speed.base_bytes + speed.free_bytes) / 2**30
        note(
            f"warning: {len(large)} runs, marked (!), do not fit into the device's {there:.3g} GiB;"
            f" {name} needs {most / 2**30:.3g}"
        )


def expected_of(plan: StudyPlan, noise: float) -> list[Expectation]:
    """What simulated studies of these runs say of the exponent; nothing for one budget, which has none."""
    plans = [run.plan for run in plan.runs if run.plan.lr_scale == 1]
    if len({p.budget for p in plans}) < 2:
        return []
    from modexp.plan.design import expect

    return expect(plans, noise)


def print_design(expected: Sequence[Expectation], noise: float) -> None:
    """What this design will know of the exponents."""
    if not expected:
        return
    from modexp.plan.design import BESIROGLU, LEVEL, STUDIES

    note(
        f"expected of this design ({STUDIES} simulated studies by the law of {BESIROGLU.name}, noise {noise:.1%} of the"
        f" loss; half width of the {LEVEL:.0%} interval):"
    )
    for arm in expected:
        note(f"  {arm.sentence}")


def warn_of_epochs(plans: Sequence[RunPlan]) -> None:
    for plan in plans:
        if plan.epochs and plan.epochs > 1:
            note(f"warning: {plan.name} repeats its text, {plan.epochs:.2g} epochs")
