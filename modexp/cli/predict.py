"""modexp predict: the run that a study recommends for a budget, ready to paste."""

from __future__ import annotations

import math
import shlex
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from modexp.cli.common import (
    Parser,
    add_convention,
    add_json,
    add_study,
    note,
    one_name,
    parser,
    print_json,
    print_table,
    study_path,
    study_records,
)
from modexp.errors import UserError


def flags() -> Parser:
    p = parser(
        "predict",
        "Extrapolate a study to a budget: best size, tokens and loss of every arm with intervals, and the nearest"
        " run of the ladder as a command.",
    )
    add_study(p)
    add_convention(p)
    add_json(p)
    p.add_argument("--flops", type=float, required=True, help="the budget: 1e21")
    p.add_argument("--resamples", type=int, default=1000, help="of the loss interval's bootstrap (default: 1000)")
    p.add_argument("words", nargs="*", metavar="STUDY")
    return p


def main(words: list[str]) -> int:
    args = flags().parse_intermixed_args(words)

    from modexp.analysis.predict import predict
    from modexp.wording import size_text

    study = study_path(args.study or one_name(args.words, "") or None, args.runs_dir)
    rows = study_records(study, args.convention)
    found = predict(rows, args.flops, args.level, args.resamples)
    if all(f.params is None for f in found):
        raise UserError(
            f"study {study.name} predicts nothing: " + "; ".join(f"{f.arm}: {', '.join(f.refusals)}" for f in found),
            "modexp fit says what is missing",
        )
    convention = str(rows[0]["convention"])
    runs = {f.arm: runnable(study, f.arm, f.params, f.flops, convention) for f in found if f.params}
    if args.json:
        print_json([{**asdict(f), "run": runs.get(f.arm)} for f in found])
        return 0
    level = f"{args.level:.0%}"
    columns = ("arm", "parameters", f"{level} interval", "tokens", f"{level} interval ", "loss", f"{level} interval  ")
    lines = []
    for f in found:
        cells = [f.arm]
        for value, ends, text in (
            (f.params, f.params_interval, size_text),
            (f.tokens, f.tokens_interval, size_text),
            (f.loss, f.loss_interval, "{:.4f}".format),
        ):
            cells.append("-" if value is None else text(value))
            cells.append("-" if ends is None else " .. ".join(map(text, ends)))
        lines.append(cells)
    print_table(columns, lines, f"best run for {args.flops:.4g} training FLOPs ({convention}), by study {study.name}")
    for f in found:
        for sentence in (*f.refusals, *f.warnings):
            note(f"{f.arm}: {sentence}")
    for arm, run in runs.items():
        print(f"{arm}: {run['summary']}\n  {run['command']}")
    return 0


def runnable(study: Path, arm: str, params: float, flops: float, convention: str) -> dict[str, Any]:
    """The rung of the ladder nearest to ``params`` as a command, with what its plan says."""
    from modexp.cli.compose import configuration
    from modexp.config.study import BudgetConfig
    from modexp.kinds import ledger
    from modexp.plan.ladder import ladder, with_shape
    from modexp.plan.run import plan_run
    from modexp.sweep.study import load_study
    from modexp.wording import budget_text, size_text

    sweep = load_study(study).sweep
    overrides = last_of_each([*sweep.overrides, *sweep.arms[arm]])
    config = configuration(overrides)
    sizes: dict[Any, int] = {}
    for shape in ladder(config.depth):
        try:
            sizes[shape] = ledger(with_shape(config.model, shape), config.data).params_total
        except UserError:  # a rung this model cannot take: no routed block among its layers, say
            continue
    shape = min(sizes, key=lambda s: abs(math.log(sizes[s] / params)))
    budget = BudgetConfig(flops, convention)
    plan = plan_run(replace(config, model=with_shape(config.model, shape), budget=budget, depth=1.0), arm)
    shaped = [f"model.n_layers={shape[0]}", f"model.d_model={shape[1]}", f"model.n_heads={shape[2]}"]
    counted = [] if convention == config.budget.convention else [f"budget.convention={convention}"]
    words = [o for o in overrides if o.partition("=")[0] not in ("depth", "runs_dir")]
    command = ["modexp", "train", *words, *shaped, *counted, "--budget", budget_text(flops)]
    off = plan.params_total / params - 1
    return {
        "command": shlex.join(command),
        "summary": f"L{shape[0]} d{shape[1]}, {size_text(plan.params_total)} parameters ({off:+.1%} off the optimum),"
        f" {plan.tokens:.4g} tokens, {plan.steps:,} steps of {plan.batch_size} sequences, lr {plan.lr:.3g}",
        "plan": plan.to_json(),
    }


def last_of_each(overrides: list[str]) -> list[str]:
    """Of several overrides of one key the last, in its place: what a study's file and command line settled on."""
    settled: dict[str, str] = {}
    for override in overrides:
        key = override.partition("=")[0]
        settled.pop(key, None)
        settled[key] = override
    return list(settled.values())
