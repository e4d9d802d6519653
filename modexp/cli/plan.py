"""modexp plan: the runs that a budget buys, before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from modexp.cli.common import (
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
from modexp.plan.grid import StudyPlan, unequal_centres
from modexp.plan.run import RunPlan
from modexp.wording import budget_text, size_text


def main(words: list[str]) -> int:
    p = parser("plan", "Print the runs that a budget buys, and why others were dropped. Trains nothing.")
    add_budget(p)
    add_json(p)
    p.add_argument("words", nargs="*", metavar="NAME | key=value", help="a sweep file (default: isoflop), overrides")
    args = p.parse_intermixed_args(words)

    from modexp.cli.compose import arms_of, budgets_of, load_sweep
    from modexp.sweep.study import plan_of

    names, overrides = split_words(args.words)
    study, sweep = load_sweep(one_name(names, "isoflop"), budgets_of(args.budget), overrides)
    plan = plan_of(sweep, arms_of(study, sweep))
    if args.json:
        print_json(to_json(plan))
    else:
        print_plan(plan)
        if sweep.adapt.enabled:
            note("adapt=on: grids after the first budget's are centred anew by what the smaller ones find")
    if not plan.runs:
        raise UserError("the budgets buy no run", "raise --budget or choose smaller sizes")
    return 0


def to_json(plan: StudyPlan) -> dict[str, Any]:
    from dataclasses import asdict

    return {"runs": [r.plan.to_json() for r in plan.runs], "dropped": [asdict(d) for d in plan.dropped]}


COLUMNS = (
    "run", "shape", "params", "active", "FLOPs/token", "x twin", "batch", "steps", "tokens", "tok/param", "epochs",
    "lr", "off budget",
)  # fmt: skip
OPTIONAL = ("active", "epochs", "x twin", "off budget", "lr", "tok/param", "params")


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


def print_plan(plan: StudyPlan) -> None:
    """One table a budget; then what the columns mean and what was dropped."""
    for budget in sorted({run.plan.budget for run in plan.runs}):
        runs = [run.plan for run in plan.runs if run.plan.budget == budget]
        print_table(COLUMNS, [row(r) for r in runs], f"budget {budget_text(budget)} training FLOPs a run", OPTIONAL)
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
    for dropped in plan.dropped:
        note(f"dropped: {dropped.arm} at {budget_text(dropped.budget)}, seed {dropped.seed}: {dropped.reason}")
    plans = [run.plan for run in plan.runs]
    for sentence in unequal_centres(plans):
        note(f"warning: {sentence}")
    warn_of_epochs(plans)


def warn_of_epochs(plans: Sequence[RunPlan]) -> None:
    for plan in plans:
        if plan.epochs and plan.epochs > 1:
            note(f"warning: {plan.name} repeats its text, {plan.epochs:.2g} epochs")
