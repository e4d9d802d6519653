"""modexp sync: send W&B what it lacks, because a run was offline or the server hung or died."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modexp.cli.common import Parser, add_study, note, one_name, parser, split_words, study_path

if TYPE_CHECKING:
    from modexp.runs import RunDir


def flags() -> Parser:
    p = parser(
        "sync",
        "Send W&B what it lacks of the runs of a study, or of one run: rows of metrics.jsonl and results. What it has"
        " is not sent again, and runs at work send for themselves.",
    )
    add_study(p)
    p.add_argument("words", nargs="*", metavar="STUDY | RUN")
    return p


def main(words: list[str]) -> int:
    args = flags().parse_intermixed_args(words)

    from modexp.runs import RunDir, run_dirs

    names, _ = split_words(args.words)
    name = args.study or one_name(names, "") or None
    one = RunDir(name or "")
    runs = [one] if name and one.plan_path.exists() else run_dirs(study_path(name, args.runs_dir))
    outcomes = [sync(run) for run in runs]
    note("; ".join(f"{outcomes.count(outcome)} {outcome}" for outcome in dict.fromkeys(outcomes)) or "no run")
    return 0


def sync(run: RunDir) -> str:
    """What became of one run, in words."""
    from modexp.config.train import WandbTracker
    from modexp.train.outcome import run_info
    from modexp.train.wandb_tracker import is_sent, send

    last, result = run.last_row(), run.result()
    if not last:
        return "without a row"
    if result is None and run.is_held():
        return "at work"
    config = run.config()
    if not isinstance(config.tracker, WandbTracker):
        return "without W&B (tracker=none)"
    if is_sent(run.path, last["step"], finished=result is not None):
        return "complete before"
    done = result is not None and result["status"] == "done"
    send(config.tracker, run_info(run, config, run.plan()), result or {}, exit_code=0 if done else 1)
    note(f"{run.name}  sent up to step {last['step']:,}")
    return "sent"
