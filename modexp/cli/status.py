"""modexp status: what is planned, running, done, failed, and whether each run spent what it promised."""

from __future__ import annotations

from collections import Counter
from typing import Any

from modexp.cli.common import (
    add_json,
    add_study,
    note,
    one_name,
    parser,
    print_json,
    print_table,
    split_words,
    study_path,
    study_records,
)
from modexp.errors import RunFailed


def main(words: list[str]) -> int:
    p = parser(
        "status",
        "Tell what is planned, running, done, failed; consumed against planned FLOPs; losses so far.",
    )
    add_study(p)
    add_json(p)
    p.add_argument("words", nargs="*", metavar="STUDY")
    args = p.parse_intermixed_args(words)

    names, _ = split_words(args.words)
    rows = study_records(study_path(args.study or one_name(names, "") or None, args.runs_dir))
    if args.json:
        print_json(rows)
    else:
        print_status(rows)
    missed = [row["run"] for row in rows if row["status"] == "done" and off_plan(row)]
    if missed:
        raise RunFailed(
            f"{len(missed)} finished runs consumed other FLOPs than planned: {', '.join(missed)}",
            "their results cannot stand in an isoFLOP comparison; remove and run them again",
        )
    return 0


def off_plan(row: dict[str, Any]) -> bool:
    from modexp.analysis.points import tolerance_of

    return abs(row["flops_consumed"] / row["flops_planned"] - 1) > tolerance_of(row)


def print_status(rows: list[dict[str, Any]]) -> None:
    columns = ("run", "status", "steps", "FLOPs", "of plan", "loss", "top-k", "bits/byte", "note")
    lines = []
    for row in rows:
        loss = row["loss"] if row["loss"] is not None else row["train_loss"]
        lines.append(
            [
                row["run"],
                row["status"],
                f"{row['steps']:,}/{row['steps_planned']:,}",
                f"{row['flops_consumed']:.3g}",
                f"{row['flops_consumed'] / row['flops_planned']:.2%}",
                "-" if loss is None else f"{loss:.4f}" + ("" if row["loss"] is not None else " train"),
                "-" if row["loss_topk"] is None else f"{row['loss_topk']:.4f}",
                "-" if row["bits_per_byte"] is None else f"{row['bits_per_byte']:.4f}",
                row["error"].splitlines()[0] if row["error"] else "",
            ]
        )
    print_table(columns, lines, optional=("top-k", "bits/byte", "FLOPs"))
    counts = Counter(row["status"] for row in rows)
    shared = sum(row["flops_shared"] for row in rows)
    planned = sum(row["flops_planned"] for row in rows) - shared
    spent = sum(own_flops(row) for row in rows)
    note(
        ", ".join(f"{n} {status}" for status, n in counts.items())
        + f"; {spent:.3g} of {planned:.3g} FLOPs consumed ({spent / planned:.0%})"
        + left_of(rows)
    )
    if shared:
        note(
            f"trunks: {sum(row['flops_shared'] > 0 for row in rows)} runs branch off others: {shared:.4g} of"
            f" {planned + shared:.4g} FLOPs ({shared / (planned + shared):.1%}) are trained once for several runs, and"
            " each run's row counts its whole path"
        )


def own_flops(row: dict[str, Any]) -> int:
    """What a run consumed without what its trunk trained for it."""
    return max(0, row["flops_consumed"] - row["flops_shared"])


def left_of(rows: list[dict[str, Any]]) -> str:
    """Device time that the unfinished runs will take, as it was predicted before they began; empty if unknown."""
    from modexp.train.progress import duration

    unfinished = [row for row in rows if row["status"] not in ("done", "diverged") and row["predicted_seconds"]]
    seconds = sum(
        row["predicted_seconds"] * (1 - own_flops(row) / (row["flops_planned"] - row["flops_shared"]))
        for row in unfinished
    )
    return f"; about {duration(seconds)} of one device left" if unfinished else ""
