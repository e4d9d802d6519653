"""Seconds from a command to its answer, and to the first step of a run: python tests/benchmarks/startup.py.

Each command is a process of its own; medians of ``--repeats`` turns, in which the commands alternate. The training run
has 58 thousand parameters and a warm token cache; its first step is done when its row of metrics.jsonl is there.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from modexp.train.load import load

MODEXP = [sys.executable, "-m", "modexp"]
RUN = ["model=mod", "size=58k", "--budget", "1e10", "data=python", "tracker=none", "trainer.log_every=1"]
STATUS_RUNS = 200


def call(*words: str) -> Callable[[Path], float]:
    def seconds(folder: Path) -> float:
        began = time.perf_counter()
        subprocess.run([*MODEXP, *words], cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return time.perf_counter() - began

    return seconds


def complete(line: str) -> Callable[[Path], float]:
    """What a shell runs at TAB after ``line``."""
    variables = {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_STDOUT_FILENAME": os.devnull, "COMP_LINE": line}
    environment = {**os.environ, **variables, "COMP_POINT": str(len(line))}

    def seconds(folder: Path) -> float:
        began = time.perf_counter()
        subprocess.run(MODEXP, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return time.perf_counter() - began

    return seconds


def first_step(folder: Path) -> float:
    """Of a new run, which then is killed."""
    shutil.rmtree(folder / "runs/train", ignore_errors=True)
    metrics = folder / "runs/train/first/metrics.jsonl"
    began = time.perf_counter()
    with subprocess.Popen(
        [*MODEXP, "train", *RUN, "name=first"], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        while not (metrics.exists() and b"\n" in metrics.read_bytes()):
            if process.poll():
                raise SystemExit(f"the run failed with exit code {process.returncode}")
            time.sleep(0.002)
        seconds = time.perf_counter() - began
        process.kill()
        return seconds


def many_runs(folder: Path) -> None:
    """A study of 200 runs, the same finished one under other names and budgets."""
    subprocess.run([*MODEXP, "train", *RUN, "name=one"], cwd=folder, check=True, capture_output=True)
    one = folder / "runs/train/one"
    for number in range(STATUS_RUNS):
        copy = folder / f"runs/many/run-{number:03d}"
        copy.mkdir(parents=True)
        for name in ("config.yaml", "plan.json", "result.json", "metrics.jsonl"):
            shutil.copy(one / name, copy / name)


LINES: dict[str, tuple[float | None, Callable[[Path], float]]] = {  # bar in seconds
    "modexp --help": (0.2, call("--help")),
    "modexp plan": (0.5, call("plan")),
    f"modexp status, {STATUS_RUNS} runs": (0.5, call("status", "many")),
    "modexp train, first step": (4.0, first_step),
    "modexp fit --help": (None, call("fit", "--help")),
    "modexp compare --help": (None, call("compare", "--help")),
    "modexp plot --help": (None, call("plot", "--help")),
    "TAB after modexp pl": (0.15, complete("modexp pl")),
    "TAB after modexp train model.ca": (0.15, complete("modexp train model=mod model.ca")),
    "TAB after modexp sweep grid.": (0.15, complete("modexp sweep grid.")),
    "TAB after modexp eval runs/": (0.15, complete("modexp eval runs/")),
}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--repeats", type=int, default=7)
    p.add_argument("--only", default="", help="lines that hold this word")
    args = p.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    busy = load()
    lines = {name: line for name, line in LINES.items() if args.only in name}
    times: dict[str, list[float]] = {name: [] for name in lines}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        many_runs(folder)
        for turn in range(args.repeats + 1):
            for name, (_, seconds) in lines.items():
                took = seconds(folder)
                if turn:  # the first one warms the disk
                    times[name].append(took)
    print(busy.sentence or "the machine was quiet")
    print("| command | median s | fastest s | bar s |\n|---|---|---|---|")
    for name, took in times.items():
        bar = lines[name][0]
        print(f"| {name} | {statistics.median(took):.3f} | {min(took):.3f} | {bar or '-'} |")


if __name__ == "__main__":
    main()
