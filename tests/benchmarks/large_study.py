"""What `status`, `fit` and `plot` take of a study of 2,000 runs: python tests/benchmarks/large_study.py

Ten budgets, two arms, 20 sizes, five seeds, planned by the package; losses are read off a surface, with noise, and each
run has 200 rows of metrics. `status` is asked with nothing run yet, and with all of it done. Each command is a process
of its own, the start of Python included: seconds of the clock and, for a busy machine, of the CPU, and the most memory
resident. The bars: 2 s for status, 10 s for the others, 500 MB.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from modexp.plan.run import RunPlan
from modexp.runs import run_dirs
from tests.synthetic import make_study, surface

ROWS = 200
BUDGETS = [float(c) for c in np.geomspace(1e17, 1e20, 10)]
GRID = ["grid.points=20", "grid.span=4.0", "seeds=[0,1,2,3,4]"]


def main() -> None:
    noise = random.Random(0)

    def loss(plan: RunPlan) -> float:
        return surface(plan) * (1 + noise.gauss(0, 0.003))

    with tempfile.TemporaryDirectory() as name:
        study = make_study(Path(name) / "runs", BUDGETS, loss, overrides=GRID)
        runs = run_dirs(study)
        results = {run.name: run.result_path.read_text() for run in runs}
        for run in runs:
            run.result_path.unlink()
        print(f"| {len(runs)} runs | seconds | CPU seconds | MB |\n|---|---|---|---|")
        line("status, all planned", Path(name), "status", study.name)
        for run in runs:
            run.result_path.write_text(results[run.name])
            plan = run.plan()["plan"]
            shares = [(i + 1) / ROWS for i in range(ROWS)]
            run.write_metrics([{"step": round(s * plan["steps"]), "tokens": round(s * plan["tokens"]),
                                "flops": s * plan["flops"], "train/loss": 3 + 1 / s} for s in shares])  # fmt: skip
        line("status, all done", Path(name), "status", study.name)
        line("status --json", Path(name), "status", study.name, "--json")
        for words in (["fit"], ["plot", "isoflop"], ["plot", "frontier"], ["plot", "fit"], ["plot", "curves"]):
            line(" ".join(words), Path(name), *words, "--study", study.name)


def line(name: str, folder: Path, *words: str) -> None:
    """One command, once."""
    began = time.monotonic()
    command = [sys.executable, "-m", "modexp", *words]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)  # of this process alone, its memory too
    seconds = time.monotonic() - began
    told = "" if status == 0 else f" | exit code {os.waitstatus_to_exitcode(status)}: {json.dumps(said[-200:])}"
    cpu, memory = usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e6
    print(f"| {name} | {seconds:.2f} | {cpu:.2f} | {memory:.0f} |{told}", flush=True)


if __name__ == "__main__":
    main()
