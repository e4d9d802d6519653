"""How much of a study's wall time is neither steps nor evaluation, and how long a run takes to begin.

    python tests/benchmarks/engine_overhead.py --runs 4 --seconds 45

One CPU slot, runs of about ``--seconds``: a first study of one small run finds the budget that takes so long. The wall
time is that of `modexp sweep` from its start to its figure, measurement and planning included; the start of a run, from
the start of its process to its first step, is its wall time less steps and evaluation (its last checkpoint included).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

from modexp.train.load import load

FIRST = 1e11  # FLOPs of the run that tells how fast the machine is


def study(folder: Path, name: str, budget: float, seeds: int) -> tuple[float, list[dict[str, Any]]]:
    """Wall seconds of a sweep of ``seeds`` runs, and their results."""
    text = Path(sysconfig.get_paths()["stdlib"])
    overrides = [
        "data=files", f"data.paths=[{text}/a*.py,{text}/c*.py]", "data.sequence_length=64", "data.validation_share=0.1",
        "tracker=none", "trainer.eval_sequences=64", "trainer.device=cpu", "optim.batch_size=8",
        "model.n_layers=4", "model.d_model=64", "model.n_heads=4",
    ]  # fmt: skip
    (folder / f"{name}.yaml").write_text(
        f"budgets: [{budget:e}]\nseeds: {list(range(seeds))}\narms: {{mod: [model=mod]}}\n"
        f"grid: {{points: 1, span: 1.0}}\noverrides: {json.dumps(overrides)}\n"
    )
    began = time.monotonic()
    words = [sys.executable, "-m", "modexp", "sweep", f"{name}.yaml", "launcher.slots=1"]
    subprocess.run(words, cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wall = time.monotonic() - began
    return wall, [json.loads(path.read_text()) for path in folder.glob(f"runs/{name}/*/result.json")]


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--runs", type=int, default=4)
    p.add_argument("--seconds", type=float, default=45.0, help="of a run, about")
    args = p.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    busy = load()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _, (first,) = study(folder, "first", FIRST, 1)
        wall, results = study(folder, "study", FIRST * args.seconds / first["train_seconds"], args.runs)
    training = sum(r["train_seconds"] for r in results)
    evaluation = sum(r["eval_seconds"] for r in results)
    starts = sorted(r["wall_seconds"] - r["train_seconds"] - r["eval_seconds"] for r in results)
    print(busy.sentence or "the machine was quiet")
    print(f"{len(results)} runs: wall {wall:.1f} s, steps {training:.1f} s, evaluation {evaluation:.1f} s")
    print(f"overhead of the engine: {1 - (training + evaluation) / wall:.1%} of the wall time")
    print(f"start of a run: {starts[0]:.1f} to {starts[-1]:.1f} s, median {starts[len(starts) // 2]:.1f} s")


if __name__ == "__main__":
    main()
