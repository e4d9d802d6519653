"""modexp status: what is planned, running, done, failed, what it would cost to finish, and whether each run spent what
it promised. Reads only, so it works beside a running sweep and on any machine that shares the disk."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

from modexp.cli.common import (
    Parser,
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
from modexp.cli.slurm import mark_queued
from modexp.errors import RunFailed

EVERY = 2.0  # seconds between two looks of --watch
AT_WORK = ("running", "queued")


def flags() -> Parser:
    p = parser(
        "status",
        "Tell what is planned, queued, running, done, failed, diverged, stopped, or stale (its process died); consumed"
        " against planned FLOPs; losses so far; what it would cost to finish.",
    )
    add_study(p)
    add_json(p)
    p.add_argument("--watch", action="store_true", help="follow until nothing is at work or queued any more")
    p.add_argument("words", nargs="*", metavar="STUDY")
    return p


def main(words: list[str]) -> int:
    args = flags().parse_intermixed_args(words)

    from modexp.analysis.points import missed_plan

    names, _ = split_words(args.words)
    study = study_path(args.study or one_name(names, "") or None, args.runs_dir)
    rows = follow(study) if args.watch else rows_of(study)
    if args.json:
        from modexp.sweep.left import with_left

        print_json(with_left(rows))
    else:
        print_status(rows)
    missed = [row["run"] for row in rows if row["status"] == "done" and missed_plan(row)]
    if missed:
        raise RunFailed(
            f"{len(missed)} finished runs consumed other FLOPs than planned: {', '.join(missed)}",
            "their results cannot stand in an isoFLOP comparison; remove and run them again",
        )
    return 0


def rows_of(study: Path) -> list[dict[str, Any]]:
    """The records, with ``queued`` for what a living sweep is going to start."""
    from modexp.sweep.queue import queued

    waiting = queued(study)
    rows = study_records(study)
    for row in rows:
        if row["run"] in waiting and row["status"] not in ("done", "diverged", "running"):
            row["status"] = "queued"
    mark_queued(rows, study)
    return rows


def follow(study: Path) -> list[dict[str, Any]]:
    """Look again and again until nothing is at work: a picture on a terminal, elsewhere a line for each change."""
    from rich.console import Console, Group
    from rich.live import Live

    from modexp.cli.common import table_of

    console = Console(stderr=True, highlight=False)
    rows = rows_of(study)
    if console.is_terminal:
        with Live(console=console, transient=True) as live:
            while any(row["status"] in AT_WORK for row in rows):
                shown = [row for row in rows if row["status"] == "running"]
                live.update(Group(table_of(COLUMNS, lines_of(shown)), totals(rows)))
                time.sleep(EVERY)
                rows = rows_of(study)
        return rows
    told: dict[str, str] = {}
    while True:
        now = {row["run"]: row["status"] for row in rows}
        changed = [f"{run} {status}" for run, status in now.items() if told and told.get(run) != status]
        if now != told:
            note("; ".join([*changed, totals(rows)]))
            told = now
        if not any(status in AT_WORK for status in now.values()):
            return rows
        time.sleep(EVERY)
        rows = rows_of(study)


COLUMNS = ("run", "status", "steps", "FLOPs", "of plan", "loss", "top-k", "bits/byte", "note")


def lines_of(rows: list[dict[str, Any]]) -> list[list[str]]:
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
                row.get("job") or (row["error"].splitlines()[0] if row["error"] else ""),
            ]
        )
    return lines


def print_status(rows: list[dict[str, Any]]) -> None:
    print_table(COLUMNS, lines_of(rows), optional=("top-k", "bits/byte", "FLOPs"))
    note(totals(rows))


def totals(rows: list[dict[str, Any]]) -> str:
    """How many runs are where, what they took, and what the rest would take."""
    from modexp.sweep.left import left_of
    from modexp.train.progress import duration

    counts = Counter(row["status"] for row in rows)
    left = left_of(rows)
    text = ", ".join(f"{n} {status}" for status, n in counts.items()) + f"; {left.spend}"
    if left.flops_left:
        text += f"; to finish: {left.flops_left:.3g} FLOPs"
        if left.seconds_left is not None:
            text += f", {left.seconds_left / 3600:.3g} device-hours (about {duration(left.seconds_left)} of one device)"
    shared = sum(row["flops_shared"] for row in rows)
    if shared:
        whole = left.flops_planned + shared
        branches = sum(row["flops_shared"] > 0 for row in rows)
        text += (
            f"; {branches} runs branch off others: {shared:.4g} of {whole:.4g} FLOPs ({shared / whole:.1%}) are"
            " trained once for several runs, and each run's row counts its whole path"
        )
    return text
