"""modexp bench step: what a training step costs here, arm by arm, and how much of the saved FLOPs is saved time."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modexp.cli.common import Parser, add_json, note, one_name, parser, print_json, print_table, split_words
from modexp.errors import UserError
from modexp.wording import size_text

if TYPE_CHECKING:
    from modexp.train.bench import Subject

# an arm of no sweep file
DEFAULT_ARMS = "mod"


def flags() -> Parser:
    p = parser(
        "bench step",
        "Time training steps, each arm beside its dense twin: the step, the forward pass alone, peak memory, MFU and"
        " efficiency. The JSON is what modexp plan --bench FILE predicts from.",
    )
    p.add_argument(
        "--arms", metavar="KIND,...", help=f"kinds of models, without a sweep file (default: {DEFAULT_ARMS})"
    )
    p.add_argument(
        "--sizes", metavar="SIZE,...", help="60k,220k; default: size=, or smallest, middle, largest of a sweep"
    )
    p.add_argument("--repeats", type=int, default=7, metavar="N", help="turns of each model (default: 7)")
    p.add_argument("--no-memory", action="store_true", help="leave out peak memory, which takes a process a model")
    p.add_argument("--csv", metavar="FILE", help="write one row a model")
    p.add_argument("--profile", metavar="FILE", help="write a trace of a few steps of each, for ui.perfetto.dev")
    add_json(p)
    p.add_argument("words", nargs="*", metavar="SWEEP | key=value", help="a sweep file's arms; model=mod size=1m ...")
    return p


def main(words: list[str]) -> int:
    args = flags().parse_intermixed_args(words)
    if args.repeats < 1:
        raise UserError(f"--repeats {args.repeats} is below 1")
    subjects = subjects_of(args.words, args.arms, args.sizes)
    from modexp.files import check_writable

    for path in filter(None, (args.csv, args.profile)):
        check_writable(Path(path).parent)

    from modexp.train.bench import measure, profile, with_twins
    from modexp.train.hardware import choose_device, choose_precision

    device = choose_device(subjects[0].config.trainer.device)
    widths = [s.config.model.shape[1] for s in subjects]
    precision = choose_precision(subjects[0].config.trainer.precision, device, widths)
    chosen = with_twins(subjects)
    found = measure(chosen, device, precision, args.repeats, with_memory=not args.no_memory)
    if args.csv:
        write_csv(Path(args.csv), found["rows"])
    if args.profile:
        profile(chosen, device, precision, Path(args.profile))
        note(f"{args.profile}: open it in ui.perfetto.dev")
    if args.json:
        print_json(found)
    else:
        print_step(found)
    return 0


def subjects_of(words: list[str], arms: str | None, sizes: str | None) -> list[Subject]:
    """What to measure: of a sweep file, or of kinds of models at sizes."""
    from modexp.train.bench import Subject

    names, overrides = split_words(words)
    if names:
        if arms:
            raise UserError(f"--arms {arms} and the arms of {names[0]} are two lists of arms", "leave one of them out")
        return of_sweep(one_name(names, ""), overrides, sizes)

    from modexp.cli.compose import configuration
    from modexp.plan.run import plan_run, resolve_shape

    named = [o.partition("=")[2] for o in overrides if o.startswith("model=")]
    if named and arms:
        raise UserError(f"--arms {arms} and model={named[0]} both name arms", "leave one of them out")
    rest = [o for o in overrides if not o.startswith("model=")]
    kinds = named or (arms or DEFAULT_ARMS).split(",")
    at_sizes = [[f"size={size}"] for size in sizes.split(",")] if sizes else [[]]
    configs = {
        kind: [resolve_shape(configuration([*rest, f"model={kind}", *size])) for size in at_sizes] for kind in kinds
    }
    # one batch a size for all arms, or their times would not compare
    batches = [plan_run(config).batch_size for config in configs[kinds[0]]]
    return [
        Subject(kind, config, batch)
        for kind, of_kind in configs.items()
        for config, batch in zip(of_kind, batches, strict=True)
    ]


def of_sweep(name: str, overrides: list[str], sizes: str | None) -> list[Subject]:
    """Of each arm of a sweep file the smallest, the middle and the largest run that it plans, or ``sizes``."""
    from modexp.cli.compose import arms_of, load_sweep
    from modexp.plan.grid import plan_study
    from modexp.train.bench import Subject

    found: list[Subject] = []
    for size in [[f"size={size}"] for size in sizes.split(",")] if sizes else [[]]:
        study, sweep = load_sweep(name, [], [*overrides, *size])
        budgets = sweep.budgets[:1] if size else sweep.budgets
        runs = plan_study(arms_of(study, sweep), budgets, sweep.seeds[:1], sweep.grid).runs
        for arm in sweep.arms:
            mine = sorted((run for run in runs if run.plan.arm == arm), key=lambda run: run.plan.flops_per_token)
            places = sorted({0, len(mine) // 2, len(mine) - 1}) if mine else []
            found += [Subject(arm, mine[i].config, mine[i].plan.batch_size) for i in places]
    if not found:
        raise UserError(f"the sweep {name} plans no run", "raise its budgets")
    return found


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    from modexp.files import write_text

    flat = [
        {f"{key}.{inner}" if inner else key: cell for key, value in row.items() for inner, cell in items(value)}
        for row in rows
    ]
    columns = list(dict.fromkeys(key for row in flat for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    write_text(path, text.getvalue())


def items(value: Any) -> list[tuple[str, Any]]:
    return list(value.items()) if isinstance(value, dict) else [("", value)]


def print_step(found: dict[str, Any]) -> None:
    columns = (
        "model", "shape", "params", "batch", "step", "spread", "tokens/s", "FLOP/s", "MFU", "efficiency", "forward",
        "its MFU", "its efficiency", "peak memory",
    )  # fmt: skip
    rows = []
    for row in found["rows"]:
        step, forward = row["step"], row["forward"]
        rows.append(
            [
                row["arm"],
                f"L{row['n_layers']} d{row['d_model']}",
                size_text(row["params_total"]),
                f"{row['batch_size']} x {row['sequence_length']}",
                f"{step['milliseconds']:.3g} ms",
                f"{step['spread']:.0%}",
                f"{step['tokens_per_second']:,.0f}",
                f"{step['flops_per_second']:.3g}",
                f"{step['mfu']:.0%}",
                f"{step['efficiency']:.2f}" if "efficiency" in step else "-",
                f"{forward['milliseconds']:.3g} ms",
                f"{forward['mfu']:.0%}",
                f"{forward['efficiency']:.2f}" if "efficiency" in forward else "-",
                f"{row['peak_memory_bytes'] / 2**20:,.0f} MiB" if "peak_memory_bytes" in row else "-",
            ]
        )
    optional = ("its MFU", "FLOP/s", "params", "its efficiency", "forward", "spread")
    print_table(columns, rows, f"training step, {found['device']}, {found['precision']}", optional)
    note(
        f"medians of {found['repeats']} turns, spread: of the quartiles; step: forward, backward, optimizer; MFU: over"
        f" {found['matmul_flops_per_second']:.3g} FLOP/s of a large matmul here; efficiency: time of the dense twin x"
        " ratio of FLOPs (causal) / time; peak memory: of two steps in a process of its own, libraries"
        f" ({found['base_bytes'] / 2**20:.0f} MiB) left out"
    )
    if found["busy"]:
        note(f"warning: {found['busy']}")
