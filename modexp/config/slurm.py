"""``launcher=slurm``: what a run's job asks for and how it is carried through preemption and time limits."""

from __future__ import annotations

from dataclasses import dataclass, field

from modexp.config.base import require

# What modexp/sweep/slurm.py writes itself; the words before the = of a line of ``extra``.
OWNED = (
    "array", "a", "job-name", "J", "output", "o", "error", "e", "open-mode", "requeue", "no-requeue", "signal",
    "dependency", "d", "wait", "W", "wrap", "parsable", "ntasks", "n", "cpus-per-task", "c",
)  # fmt: skip
SETTINGS = {
    "partition": "partition", "p": "partition", "account": "account", "A": "account", "qos": "qos", "q": "qos",
    "constraint": "constraint", "C": "constraint", "time": "hours", "t": "hours", "mem": "memory_gb",
    "gpus": "gpus", "G": "gpus", "gpus-per-node": "gpus",
}  # fmt: skip
MINUTE = 60  # a time limit counts in minutes, and Slurm may send its warning up to one early


@dataclass(frozen=True)
class SlurmConfig:
    """Runs of a study as tasks of Slurm job arrays; ``None`` leaves a choice to the cluster, or to the prediction."""

    kind: str = "slurm"
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    gpus: int = 0  # 1: each process of a run owns a GPU
    hours: float | None = None  # of a job; None: twice the predicted time. A run that needs more is queued again
    memory_gb: float | None = None  # 2^30 bytes of the host's; None: 1.5 times the predicted memory
    max_parallel: int | None = None  # runs of an array at a time
    max_restarts: int = 20  # of one job, by preemption, time limit or a dead node
    signal_seconds: int = 120  # before its end a job is told to save its state: a step, an evaluation, a checkpoint
    setup: list[str] = field(default_factory=list)  # shell lines before the run: module load cuda
    extra: list[str] = field(default_factory=list)  # further options of sbatch: --exclusive

    def __post_init__(self) -> None:
        for key in ("partition", "account", "qos", "constraint"):
            value = getattr(self, key)
            ok = value is None or (value != "" and not set(value) & set(" \t\n\"'#"))
            require(ok, f"launcher.{key}", repr(value), "is not one word, as sbatch would want it")
        require(
            self.gpus in (0, 1),
            "launcher.gpus",
            self.gpus,
            "is neither 0 nor 1: a GPU is of one process",
            "trainer.devices is how many a run has",
        )
        require(self.signal_seconds >= 1, "launcher.signal_seconds", self.signal_seconds, "is not positive")
        require(self.signal_seconds <= 65535, "launcher.signal_seconds", self.signal_seconds, "is above Slurm's 65535")
        enough = self.hours is None or self.hours * 3600 > self.signal_seconds + MINUTE
        rule = f"is no longer than launcher.signal_seconds={self.signal_seconds} and the minute that Slurm rounds by"
        require(enough, "launcher.hours", self.hours, rule, "give a job more time, or a later signal")
        require(self.memory_gb is None or self.memory_gb > 0, "launcher.memory_gb", self.memory_gb, "is not positive")
        few = self.max_parallel is None or self.max_parallel >= 1
        require(few, "launcher.max_parallel", self.max_parallel, "is not positive")
        require(self.max_restarts >= 0, "launcher.max_restarts", self.max_restarts, "is negative")
        for line in self.extra:
            option = line.removeprefix("#SBATCH ").strip()
            ok = option.startswith("-") and "\n" not in option
            require(ok, "launcher.extra", repr(line), "is not an option of sbatch", "write it as '--exclusive'")
            word = option.split("=")[0].split()[0].lstrip("-")
            require(word not in OWNED, "launcher.extra", repr(line), "is set by modexp for every job", "leave it out")
            own = SETTINGS.get(word)
            require(own is None, "launcher.extra", repr(line), "has a setting of its own", f"set launcher.{own}")
