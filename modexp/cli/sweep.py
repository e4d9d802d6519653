"""modexp sweep: plan a study, run what is left of it, fit and draw it."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modexp.cli.common import Parser, add_budget, note, one_name, parser, split_words, study_records
from modexp.errors import Interrupted, RunFailed, UserError

if TYPE_CHECKING:
    from modexp.plan.grid import Arms, PlannedRun
    from modexp.runs import RunDir
    from modexp.sweep.study import Study

DAY = 86_400.0


def flags() -> Parser:
    p = parser(
        "sweep",
        "Plan a study and run what is left of it. Finished runs are skipped, failed ones tried again; a new budget"
        " joins the study, any other scientific change is refused.",
    )
    add_budget(p)
    p.add_argument("--dry-run", action="store_true", help="stop after the plan")
    p.add_argument("--yes", action="store_true", help="go on even if it will take more than a day")
    p.add_argument("--detach", action="store_true", help="with launcher=slurm: return once the jobs are queued")
    p.add_argument("--check-branch", action="store_true", help="train one branch of a trunk whole, too, and compare")
    p.add_argument("words", nargs="*", metavar="SWEEP | key=value", help="a sweep file (default: isoflop), overrides")
    return p


def main(words: list[str]) -> int:
    args = flags().parse_intermixed_args(words)

    from modexp.cli.compose import arms_of, budgets_of, load_sweep
    from modexp.cli.plan import print_plan
    from modexp.sweep.study import join, plan_of

    names, overrides = split_words(args.words)
    name, sweep = load_sweep(one_name(names, "isoflop"), budgets_of(args.budget), overrides)
    arms = arms_of(name, sweep)
    if on_slurm := launcher_of(arms).kind == "slurm":
        from modexp.cli import slurm

        arms = slurm.on_nodes(arms)
    if args.detach and not on_slurm:
        raise UserError("--detach is for launcher=slurm: other runs end with modexp sweep", "leave it out")
    if args.detach and sweep.adapt.enabled:
        raise UserError(
            "--detach does not go with adapt=on, where the first runs decide on the later ones",
            "leave it out; after Ctrl-C the same command goes on from where the jobs are",
        )
    runs_dir = Path(arms[next(iter(arms))](sweep.budgets[0]).runs_dir)
    study = join(runs_dir / name, sweep, arms)
    if sweep.description:
        note(f"{name}: {sweep.description}")
    if args.check_branch and not study.sweep.share_trunk:
        raise UserError("--check-branch finds no branch in this study", "add schedule=wsd share_trunk=on")
    if args.check_branch and args.detach:
        raise UserError("--check-branch compares runs that are finished, and --detach waits for none", "leave one out")
    if study.sweep.adapt.enabled:
        from modexp.cli import adaptive

        return adaptive.preview(study, arms) if args.dry_run else adaptive.run(study, arms, args.yes)
    plan = plan_of(study.sweep, arms)
    print_plan(plan)
    if not plan.runs:
        raise UserError(f"the budgets of study {name} buy no run", "raise --budget or choose smaller sizes")
    if args.dry_run:
        return 0

    study = set_up(study, plan.runs, unfinished(study, plan.runs), args.yes)
    directories = write_runs(study, plan.runs)
    tell_skipped(directories)
    if args.detach and (left := [run for run, _ in directories if run.result() is None]):
        return slurm.detach(left, plan.runs[0].config)
    execute_left(study, directories)
    if study.sweep.share_trunk:
        from modexp.train.branch import drop_spent

        drop_spent([run for run, _ in directories])
    conclude(study)
    complain_of(directories)
    if args.check_branch:
        from modexp.cli.check_branch import check_branch

        check_branch(study.path, directories)
    return 0


def launcher_of(arms: Arms) -> Any:
    """The launcher of a study: its first arm's."""
    return next(iter(arms.values()))(1.0).launcher


def unfinished(study: Study, runs: Sequence[PlannedRun]) -> list[PlannedRun]:
    return [run for run in runs if not (study.path / run.plan.name / "result.json").exists()]


def set_up(study: Study, runs: Sequence[PlannedRun], expected: Sequence[PlannedRun], yes: bool) -> Study:
    """Resolve precision and text once, for ``runs``; say what the ``expected`` ones will take; write study.yaml."""
    from modexp.data.corpus import prepare
    from modexp.files import check_writable
    from modexp.plan.run import check_devices
    from modexp.train.hardware import choose_device, choose_precision
    from modexp.train.loop import needed_tokens

    first = runs[0].config
    for run in runs:
        check_devices(run.plan, first.trainer.devices)
    if any(run.config.data != first.data for run in runs):
        raise UserError("the arms of the study read different text", "set data in overrides, for every arm")
    if first.launcher.kind == "slurm":
        from modexp.cli import slurm

        slurm.check(study, first)
    if study.precision == "auto":
        device = choose_device(first.trainer.device)
        widths = [run.plan.d_model for run in runs]
        study = replace(study, precision=choose_precision(first.trainer.precision, device, widths))
    check_writable(study.path)
    if expected:
        check_time(study, expected, yes)
    most = max(run.plan.sequences for run in runs)
    corpus = prepare(first.data, *needed_tokens(most, first), report=note)
    known = study.data.get("content_hash", corpus.manifest["content_hash"])
    if known != corpus.manifest["content_hash"]:
        raise UserError(
            f"study {study.name} reads text with content hash {known}, now it is {corpus.manifest['content_hash']}",
            "bring the old text back, or start a study of another name with study=NAME",
        )
    study = replace(study, data=corpus.manifest)
    study.save()
    return study


def write_runs(study: Study, runs: Sequence[PlannedRun]) -> list[tuple[RunDir, PlannedRun]]:
    """Every run's directory, written where it is not there yet."""
    from modexp.cli.plan import warn_of_epochs
    from modexp.plan.cost import measured, predict
    from modexp.plan.run import plan_run
    from modexp.runs import RunDir, create

    bench = study.path / "bench.json"
    speed = measured(bench) if bench.exists() else None

    data = runs[0].config.data
    tokens = study.data["train_tokens"] if study.data["exhausted"] else data.num_tokens
    directories = []
    leaving: dict[str, set[int]] = {}  # steps at which others leave a trunk
    for branch in (planned.branch for planned in runs if planned.branch):
        leaving.setdefault(branch.trunk, set()).add(branch.step)
    for planned in runs:
        config = replace(
            planned.config,
            name=planned.plan.name,
            data=replace(data, num_tokens=tokens),
            trainer=replace(planned.config.trainer, precision=study.precision),
        )
        planned = replace(planned, config=config, plan=plan_run(config, planned.plan.arm))  # now its epochs are known
        run = RunDir(study.path / planned.plan.name)
        predicted = predict(planned.plan, config, speed, planned.branch).to_json() if speed else None
        trunk: dict[str, Any] = {"branch": asdict(planned.branch)} if planned.branch else {}
        if steps := leaving.get(run.name):
            trunk = {"branch_steps": sorted(steps)}
        create(run, config, planned.plan, study.data, predicted, trunk)
        directories.append((run, planned))
    if tokens != data.num_tokens:
        warn_of_epochs([planned.plan for _, planned in directories])
    return directories


def tell_skipped(directories: Sequence[tuple[RunDir, PlannedRun]]) -> None:
    finished = sum(run.result() is not None for run, _ in directories)
    if finished:
        note(f"{finished} of {len(directories)} runs are finished and skipped")


def execute_left(study: Study, directories: Sequence[tuple[RunDir, PlannedRun]]) -> None:
    """Run what is not finished."""
    if any(run.result() is None for run, _ in directories):
        execute(study.path, [run for run, _ in directories], directories[0][1].config)


def complain_of(directories: Sequence[tuple[RunDir, PlannedRun]]) -> None:
    """RunFailed where runs failed or diverged. A guard run may diverge: that is its answer."""
    results = [(run.name, planned, (run.result() or {}).get("status")) for run, planned in directories]
    failed = [name for name, _, status in results if status is None]
    diverged = [name for name, p, status in results if p.plan.lr_scale == 1 and status == "diverged"]
    if failed:
        raise RunFailed(
            f"{len(failed)} of {len(directories)} runs failed: {', '.join(failed)}",
            "modexp status tells why; the same command tries them again",
        )
    if diverged:
        raise RunFailed(
            f"{len(diverged)} of {len(directories)} runs diverged: {', '.join(diverged)}",
            "their learning rate is too high: start a study of another name with a lower optim.lr",
        )


def check_time(study: Study, left: Sequence[PlannedRun], yes: bool) -> None:
    """Say what the study will take on this machine; more than a day needs ``--yes``.

    The measurement is kept beside the study: its runs' predictions, later sweeps and modexp plan --bench read it.
    """
    from modexp.files import write_json
    from modexp.plan.cost import from_measurement, predict
    from modexp.sweep.estimate import measured_here
    from modexp.sweep.local import slots_of
    from modexp.train.progress import duration

    config: Any = left[0].config
    if config.launcher.kind == "slurm":
        from modexp.cli import slurm

        slurm.estimate(study, left)
        return
    trainer = config.trainer
    slots = len(slots_of(config.launcher.slots, trainer.threads, trainer.device, trainer.devices))
    bench = study.path / "bench.json"
    found = measured_here(left, study.precision, bench)
    speed = from_measurement(found)
    devices = trainer.devices or 1  # a prediction is for one; what several say to each other is not in it
    times = [predict(run.plan, run.config, speed, run.branch).seconds / devices for run in left]
    seconds = max(sum(times) / slots, max(times))
    note(f"{len(left)} runs will take about {duration(seconds)} here, {slots} at a time: {speed.source}")
    if found["busy"]:
        note(f"warning: {found['busy']}")
    if seconds > DAY and not yes:
        raise UserError(
            f"the study would take {duration(seconds)} on this machine, more than a day",
            "choose a smaller --budget, or start it all the same with --yes",
        )
    write_json(bench, found)


def execute(study: Path, runs: Sequence[RunDir], config: Any) -> None:
    """Run what is not finished, the longest first, and wait for what other processes have."""
    if config.launcher.kind == "slurm":
        from modexp.cli import slurm

        return slurm.execute(study, runs, config)
    from modexp.cli.watch import Watch
    from modexp.sweep.local import Launcher, ending, slots_of
    from modexp.sweep.queue import opened

    trainer = config.trainer
    slots = slots_of(config.launcher.slots, trainer.threads, trainer.device, trainer.devices)
    left = [run for run in runs if run.result() is None]
    launcher = Launcher(left, slots, trainer.threads, trainer.devices)
    with Watch(runs, len(slots)) as watch, opened(study) as queue:

        def on_wait(launcher: Launcher) -> None:
            queue.show([run.name for run in launcher.waiting])
            watch.show([active.run for active in launcher.active], launcher.held)

        def on_end(run: RunDir, code: int) -> None:
            watch.ended(run, run.error() or f"{ending(code)}, see {run.log_path}")

        def on_stop(launcher: Launcher) -> None:
            watch.say(f"stopping: {len(launcher.active)} runs save their state; another Ctrl-C kills them")

        # a scheduler's or a person's kill, or a terminal that closes, is a Ctrl-C: what runs is asked to save its state
        told = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) != signal.SIG_IGN]  # nohup ignores
        before = {number: signal.signal(number, signal.default_int_handler) for number in told}
        try:
            launcher.run(on_end, on_wait, on_stop)
        except KeyboardInterrupt:
            killed = f"{len(launcher.killed)} runs were killed, and go on from their last checkpoint"
            how = killed if launcher.killed else "its runs are saved"
            raise Interrupted("the study was stopped", f"{how}; the same command goes on") from None
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def conclude(study: Study) -> None:
    """Optima with intervals, and the figure."""
    from modexp.cli.fit_tables import print_fit
    from modexp.cli.plot import draw_isoflop

    rows = study_records(study.path)
    if any(row["status"] == "done" for row in rows):
        print_fit(rows)
        try:
            draw_isoflop(study.path, rows)
        except UserError as error:  # more arms than one figure can tell apart: the runs and their fit stand
            note(f"no figure: {error.sentence}; modexp plot --help lists others")
