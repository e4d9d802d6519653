"""Predicted against measured time and peak memory of every run in a study.

    python tests/benchmarks/predictions.py                  # first runs a study of 12 runs, one at a time: 6 minutes
    python tests/benchmarks/predictions.py runs/STUDY       # one that is there

The prediction is the one that the sweep wrote down before the run; both count from the start of a run's process, and
its libraries' memory too. The bars: median error 15 %, worst 35 %.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

from modexp.analysis.records import records
from modexp.train.load import load

STUDY = "predictions"
SWEEP = ["demo", f"study={STUDY}", "grid.points=3", "--budget", "3e11,6e11", "launcher.slots=1"]


def main() -> None:
    if len(sys.argv) == 1:
        print(load().sentence or "the machine was quiet", flush=True)
        subprocess.run([sys.executable, "-m", "modexp", "sweep", *SWEEP], check=True)
    rows = records(Path(sys.argv[1] if len(sys.argv) > 1 else f"runs/{STUDY}"))
    done = [row for row in rows if row["status"] == "done" and row["predicted_seconds"]]
    print("| run | seconds predicted | measured | | MB predicted | measured | |\n|---|---|---|---|---|---|---|")
    for row in done:
        seconds, memory = (error(row, *keys) for keys in KEYS)
        print(
            f"| {row['run']} | {row['predicted_seconds']:.1f} | {row['wall_seconds']:.1f} | {seconds:+.1%}"
            f" | {row['predicted_memory_bytes'] / 1e6:.0f} | {row['peak_memory_bytes'] / 1e6:.0f} | {memory:+.1%} |"
        )
    for name, keys in zip(("time", "memory"), KEYS, strict=True):
        errors = [abs(error(row, *keys)) for row in done]
        print(f"{name} of {len(done)} runs: median error {median(errors):.1%}, worst {max(errors):.1%}")


KEYS = ("predicted_seconds", "wall_seconds"), ("predicted_memory_bytes", "peak_memory_bytes")


def error(row: dict[str, Any], predicted: str, measured: str) -> float:
    """Of the prediction, as a share of what was measured."""
    return row[predicted] / row[measured] - 1


if __name__ == "__main__":
    main()
