"""The way of `modexp sweep` with adapt=on: decide, log, run, and again until nothing is left to decide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from modexp.cli.common import note
from modexp.errors import UserError

if TYPE_CHECKING:
    from modexp.plan.grid import Arms, PlannedRun
    from modexp.sweep.decisions import Decision
    from modexp.sweep.study import Study


def run(study: Study, arms: Arms, yes: bool) -> int:
    """From wherever the log and the runs stand to the end. What is logged is done as it stands there."""
    from modexp.analysis.records import record
    from modexp.cli.sweep import complain_of, conclude, execute_left, set_up, tell_skipped, unfinished, write_runs
    from modexp.plan.grid import joined
    from modexp.plan.guard import guard_runs
    from modexp.sweep import decisions
    from modexp.sweep.adapt import next_round

    log = decisions.read(study.path)
    fresh = [] if log else next_round(study.sweep, arms, [], [])
    tell([*log, *fresh])
    plan = decisions.plan_of_log([*log, *fresh], arms)
    require_runs(study, plan.runs)
    known = [*plan.runs, *plain_rest(study, arms, [*log, *fresh])]
    study = set_up(study, known, unfinished(study, known), yes)  # before anything is logged or made
    most = max(planned.plan.sequences for planned in known)
    log = decisions.append(study.path, log, fresh)
    directories = write_runs(study, decisions.plan_of_log(log, arms).runs)  # another sweep's, if it was quicker
    tell_skipped(directories)
    stopped = False
    while True:
        plan = decisions.plan_of_log(log, arms)
        if stopped and study.sweep.guard:
            plan = joined([plan, guard_runs(plan.runs)])
        if most < (most := max(most, *(planned.plan.sequences for planned in plan.runs))):
            study = set_up(study, plan.runs, [], yes)  # a small size was added, which reads more text
        there = {planned.plan.name for _, planned in directories}
        added = [planned for planned in plan.runs if planned.plan.name not in there]
        directories += write_runs(study, added) if added else []
        execute_left(study, directories)
        if stopped or any(directory.result() is None for directory, _ in directories):
            break
        fresh = next_round(study.sweep, arms, log, [record(directory) for directory, _ in directories])
        stopped = fresh[-1].kind == "stop"
        if stopped and log[-1] == replace(fresh[-1], round=log[-1].round):
            continue  # said before
        tell(fresh)
        log = decisions.append(study.path, log, fresh)
    conclude(study)
    complain_of(directories)
    return 0


def preview(study: Study, arms: Arms) -> int:
    """What is decided, and the next decision where all that it rests on is finished. Writes nothing."""
    from modexp.analysis.records import record
    from modexp.cli.plan import print_plan
    from modexp.runs import RunDir
    from modexp.sweep import decisions
    from modexp.sweep.adapt import next_round, replayed

    log = decisions.read(study.path)
    tell(log)
    plan = decisions.plan_of_log(log, arms)
    directories = [RunDir(study.path / planned.plan.name) for planned in plan.runs]
    if any(not directory.result_path.exists() for directory in directories):
        print_plan(plan)
        note("the next decision rests on these runs, and not all of them are finished")
    else:
        rows = [record(directory) for directory in directories]
        if log:
            other = replayed(study.sweep, arms, log, rows)
            same = "come out the same from today's records" if other is None else f"differ from round {other.round} on"
            note(f"replayed, the {len(log)} decisions {same}; the log is what holds")
        fresh = next_round(study.sweep, arms, log, rows)
        tell(fresh)
        plan = decisions.plan_of_log(fresh, arms)
        print_plan(plan)
        if not log:
            require_runs(study, plan.runs)
    tell_ahead(study)
    return 0


def tell_ahead(study: Study) -> None:
    """What an adaptive study does after the runs that are planned."""
    sweep = study.sweep
    budgets = f"{len(sweep.budgets)} budgets, smallest first" if len(sweep.budgets) > 1 else "one budget"
    note(
        f"adapt=on, {budgets}: each later grid is centred by the fits of the smaller budgets; sizes are added where a"
        f" minimum lies on an edge; then seeds at the vertices, until the difference of two arms' losses is known to"
        f" {sweep.adapt.interval:.2%} of the loss (half of the 90 % interval) or {sweep.adapt.spend:g} times the FLOPs"
        " of the plain plan are spent" + ("; then the guard runs" if sweep.guard else "")
    )


def require_runs(study: Study, runs: Sequence[PlannedRun]) -> None:
    if not runs:
        raise UserError(
            f"the smallest budget of study {study.name} buys no run", "raise --budget or choose smaller sizes"
        )


def plain_rest(study: Study, arms: Arms, log: Sequence[Decision]) -> list[PlannedRun]:
    """What the plain plan holds beyond the budgets that have their grids: for what it will take, and the text."""
    from modexp.config.study import AdaptConfig
    from modexp.sweep.study import plan_of

    gridded: set[Any] = {decision.budget for decision in log}
    plain = plan_of(replace(study.sweep, adapt=AdaptConfig()), arms).runs
    return [planned for planned in plain if planned.plan.budget not in gridded or planned.plan.lr_scale != 1]


def tell(decisions: Sequence[Decision]) -> None:
    for decision in decisions:
        note(decision.sentence)
        for dropped in decision.numbers.get("dropped", ()):
            note(f"dropped: {dropped}")
