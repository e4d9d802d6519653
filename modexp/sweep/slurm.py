"""Runs as tasks of Slurm job arrays. What is done stands in the run directories, what is to come in Slurm's queue.

runs/<study>/slurm/NAME.runs   directories of an array's runs: task n trains the n-th
                   NAME.sh     its batch script
                   NAME.log    what Slurm itself says of it; each run's output is in the run's log.txt

NAME is the job's name, unique to the array, and its list is written before sbatch is called: whatever dies in between,
``squeue --name`` tells which runs are queued. No database, no accounting, no process that stays alive.
"""

from __future__ import annotations

import math
import re
import secrets
import shlex
import subprocess
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from modexp.claim import STALE
from modexp.config.slurm import MINUTE, SlurmConfig
from modexp.errors import UserError
from modexp.files import exclusive, write_text
from modexp.runs import RunDir
from modexp.sweep.local import SHUTDOWN, trainer

FOLDER = "slurm"
LONGEST_ARRAY = 1000  # Slurm's default MaxArraySize is 1001
TIME_FACTOR = 2.0  # a node may be slower than the machine measured, or shared; what is not finished is queued again
START_MINUTES = 5  # a cold file system under Python and torch
MEMORY_FACTOR = 1.5  # too little memory kills a run
LEAST_MIB = 1024
GPU_HOST_BYTES = 8e9  # of the host, for CUDA's libraries beside torch's
GPU_HOST_BYTES_PER_PARAM = 12  # weights and two moments on their way to a checkpoint


# ---- what a job asks for -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Resources:
    """Of one task, all on one node. Runs that ask for the same make one array."""

    cpus: int
    gpus: int
    minutes: int
    memory_mib: int
    processes: int = 1


def power_of_two(x: float) -> int:
    """The next one up, so that runs of about one size make one array."""
    return 1 << max(0, math.ceil(math.log2(x)))


def resources(run: RunDir, settings: SlurmConfig, threads: int, processes: int = 1) -> Resources:
    """From the run's prediction, which is one process's, where the settings leave it open; ``threads`` of a process.
    UserError where there is none."""
    promise = run.plan()
    seconds, memory = (promise.get("predicted", {}).get(f"predicted_{key}") for key in ("seconds", "memory_bytes"))
    if settings.hours is not None:
        minutes = math.ceil(60 * settings.hours)
    elif seconds is None:
        raise UserError(f"nothing predicts the time of run {run.name}", "set launcher.hours, the time limit of a job")
    else:
        warning = (settings.signal_seconds + MINUTE) / 60
        minutes = power_of_two(TIME_FACTOR * seconds / processes / 60 + START_MINUTES + warning)
    if settings.memory_gb is not None:
        mib = math.ceil(1024 * settings.memory_gb)
    else:
        if settings.gpus:  # what is predicted then is the GPU's
            memory = GPU_HOST_BYTES + GPU_HOST_BYTES_PER_PARAM * promise["plan"]["params_total"]
        if memory is None:
            raise UserError(f"nothing predicts the memory of run {run.name}", "set launcher.memory_gb")
        mib = max(LEAST_MIB, power_of_two(MEMORY_FACTOR * processes * memory / 2**20))
    return Resources(threads * processes, settings.gpus * processes, minutes, mib, processes)


def arrays(
    runs: Sequence[RunDir], settings: SlurmConfig, threads: int, processes: int = 1
) -> list[tuple[Resources, list[RunDir]]]:
    """One array for each kind of resources, the most expensive runs first; with ``max_parallel``, which bounds an
    array, one for all."""
    classes: defaultdict[Resources, list[RunDir]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: -run.plan()["plan"]["flops"]):
        classes[resources(run, settings, threads, processes)].append(run)
    if settings.max_parallel and classes:
        minutes, mib = max(r.minutes for r in classes), max(r.memory_mib for r in classes)
        largest = replace(next(iter(classes)), minutes=minutes, memory_mib=mib)
        classes = defaultdict(list, {largest: [run for mine in classes.values() for run in mine]})
    return [
        (asked, mine[i : i + LONGEST_ARRAY])
        for asked, mine in classes.items()
        for i in range(0, len(mine), LONGEST_ARRAY)
    ]


# ---- the batch script ----------------------------------------------------------------------------------------

SCRIPT = """\
# Task n trains the n-th run of the list, from its last checkpoint. SIGUSR1 comes before a time limit, and before a
# preemption where the cluster sends it: the run saves its state and the job queues itself again. SIGTERM comes with
# a preemption, after which Slurm queues the job again, and with scancel, after which nobody does.
run=$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" {list})
[ -d "$run" ] || {{ echo "task $SLURM_ARRAY_TASK_ID: there is no run directory '$run'"; exit 1; }}
exec >>"$run/log.txt" 2>&1
say() {{ echo "slurm: $(date '+%F %T') job ${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID: $*"; }}
restarts=${{SLURM_RESTART_COUNT:-0}}
say "starts on $(hostname), $restarts restarts before"
if [ "$restarts" -gt {max_restarts} ]; then
  echo "Slurm restarted this run's job {max_restarts} times, which is launcher.max_restarts" >"$run/error.txt"
  exit 1
fi
asked= child=
stop() {{
  asked=$1
  say "SIG$1, the run is asked to save its state"
  [ -z "$child" ] || kill -s "$1" "$child"
}}
trap 'stop USR1' USR1
trap 'stop TERM' TERM
export OMP_NUM_THREADS={threads}
export {shutdown}={seconds}
{setup}code=130
# the claim of a predecessor that died on another node counts for a minute: who starts within it would be refused
if [ "$restarts" -gt 0 ] && ls "$run"/.claim-* >/dev/null 2>&1; then
  say "its last job left a claim: looking whether anybody still trains it, in a minute"
  sleep {stale} &
  wait $!
fi
if [ -z "$asked" ]; then
  {trainer} "$run" &
  child=$!
  while wait "$child"; kill -0 "$child" 2>/dev/null; do :; done  # a signal ends a wait, not the process
  wait "$child"
  code=$?
fi
if [ ! -e "$run/result.json" ]; then
  if [ "$asked" = USR1 ]; then
    say "is not finished and queues itself again"
    scontrol requeue "$SLURM_JOB_ID"
  elif [ -z "$asked" ] && [ "$code" -gt 2 ] && [ "$code" -ne 130 ] && [ ! -e "$run/error.txt" ]; then
    echo "the process ended with exit code $code in job ${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID" >"$run/error.txt"
  fi
fi
exit "$code"
"""


def script(
    name: str, folder: Path, tasks: int, asked: Resources, settings: SlurmConfig, after: Sequence[str] = ()
) -> str:
    """Of an array of ``tasks`` whose list lies in ``folder``; it starts when the jobs ``after`` have ended, however."""
    at_once = f"%{settings.max_parallel}" if settings.max_parallel else ""
    log = str(folder / f"{name}.log").replace("%", "%%")
    options = [
        f"--job-name={name}",
        f"--array=0-{tasks - 1}{at_once}",
        f'--output="{log}"',
        "--open-mode=append",
        "--requeue",
        f"--signal=B:USR1@{settings.signal_seconds}",
        "--ntasks=1",
        f"--cpus-per-task={asked.cpus}",
        f"--time={asked.minutes}",
        f"--mem={asked.memory_mib}M",
        *([f"--dependency=afterany:{':'.join(after)}"] if after else []),
        *([f"--gpus-per-node={asked.gpus}"] if asked.gpus else []),
        *(f"--{key}={getattr(settings, key)}" for key in ("partition", "account", "qos", "constraint")
          if getattr(settings, key)),
        *(line.removeprefix("#SBATCH ") for line in settings.extra),
    ]  # fmt: skip
    body = SCRIPT.format(
        list=shlex.quote(str(folder / f"{name}.runs")),
        max_restarts=settings.max_restarts,
        threads=asked.cpus // asked.processes,
        shutdown=SHUTDOWN,
        seconds=settings.signal_seconds,
        stale=round(STALE),
        setup="".join(f"{line}\n" for line in settings.setup),
        trainer=shlex.join(trainer(asked.processes)),
    )
    return "#!/bin/bash\n" + "".join(f"#SBATCH {option}\n" for option in options) + body


# ---- the queue -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """A run in the queue: its job, what Slurm calls its state (PENDING, RUNNING, COMPLETING), and why it waits."""

    job: str
    state: str
    reason: str

    @property
    def text(self) -> str:
        return f"job {self.job} {self.state.lower()}" + (f": {self.reason}" if self.state == "PENDING" else "")


def slurm(*words: str) -> subprocess.CompletedProcess[str]:
    """Run one of Slurm's programs. UserError where there is none."""
    try:
        return subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        raise UserError(
            f"launcher=slurm needs {words[0]}, which this machine does not have",
            "give the command on a login node of the cluster, or use launcher=local",
        ) from None


def queued(study: Path) -> dict[str, Task]:
    """The study's runs that have a job, by name. UserError where squeue cannot tell."""
    lists = {path.stem: path for path in (study / FOLDER).glob("*.runs")}
    if not lists:
        return {}
    answer = slurm("squeue", "--noheader", "--array", f"--name={','.join(lists)}", "--format=%j|%F|%K|%T|%r")
    if answer.returncode != 0:
        raise UserError(
            f"squeue does not answer: {last_line(answer.stderr)}", "what is queued is not known until it does"
        )
    names = {name: path.read_text().splitlines() for name, path in lists.items()}
    tasks = {}
    for line in answer.stdout.splitlines():
        name, job, index, state, reason = line.split("|", 4)
        tasks[Path(names[name][int(index)]).name] = Task(f"{job}_{index}", state, reason)
    return tasks


def submit(study: Path, runs: Sequence[RunDir], settings: SlurmConfig, threads: int, processes: int = 1) -> list[str]:
    """Queue the runs that are neither finished, nor at work, nor queued; the numbers of the new jobs. Branches come
    after the jobs of the trunks that they still wait for.

    One sweep at a time looks and submits, so that two at once queue nothing twice. UserError: sbatch refused.
    """
    (study / FOLDER).mkdir(parents=True, exist_ok=True)
    with exclusive(study / FOLDER / ".lock"):
        waiting = queued(study)
        left = [r for r in runs if r.name not in waiting and not r.is_held() and not r.result_path.exists()]
        trunks = {run.name: trunk_awaited(run) for run in left}
        awaited = set(trunks.values())
        after = {waiting[name].job for name in awaited if name in waiting}
        jobs = []
        for asked, mine in arrays([run for run in left if not trunks[run.name]], settings, threads, processes):
            jobs.append(sbatch(study, mine, asked, settings))
            after |= {jobs[-1]} if awaited & {run.name for run in mine} else set()
        for asked, mine in arrays([run for run in left if trunks[run.name]], settings, threads, processes):
            jobs.append(sbatch(study, mine, asked, settings, sorted(after)))
        return jobs


def trunk_awaited(run: RunDir) -> str:
    """Name of the run that must come as far as this one branches off it; empty where it may start."""
    origin = run.origin()
    return origin[0].name if origin and not origin[1].exists() and origin[0].result() is None else ""


def sbatch(
    study: Path, runs: Sequence[RunDir], asked: Resources, settings: SlurmConfig, after: Sequence[str] = ()
) -> str:
    """Queue one array, to start when the jobs ``after`` have ended; its job's number."""
    folder = (study / FOLDER).absolute()
    name = f"{re.sub(r'[^A-Za-z0-9.-]', '_', study.name)}-{secrets.token_hex(4)}"
    write_text(folder / f"{name}.runs", "".join(f"{run.path.absolute()}\n" for run in runs))
    write_text(folder / f"{name}.sh", script(name, folder, len(runs), asked, settings, after))
    answer = slurm("sbatch", "--parsable", str(folder / f"{name}.sh"))
    if answer.returncode != 0:
        said = last_line(answer.stderr)
        raise UserError(f"sbatch refused a job of study {study.name}: {said}", remedy(said))
    for run in runs:
        run.error_path.unlink(missing_ok=True)  # of an attempt that this one replaces
    return answer.stdout.strip().partition(";")[0]


REMEDIES = {
    "account": "set launcher.account, launcher.qos and launcher.partition as your cluster wants them",
    "partition": "sinfo --summarize lists the partitions; set launcher.partition",
    "time limit": "set launcher.hours within the partition's limit: a run that needs more is queued again",
    "configuration is not available": "no node has that much: see launcher.gpus, memory_gb and constraint,"
    " and trainer.threads",
    "feature": "sinfo --format=%f lists what launcher.constraint can name",
}


def remedy(said: str) -> str:
    found = [cure for word, cure in REMEDIES.items() if word in said.lower()]
    return found[0] if found else "see launcher=slurm in docs/slurm.md; the same command tries again"


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("sbatch: error: ") if lines else "it gave no reason"
