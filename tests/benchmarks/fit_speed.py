"""Seconds of a fit with 1000 bootstrap resamples of 150 points, on one core: python tests/benchmarks/fit_speed.py.

10 budgets x 15 sizes with 1 % noise. Seconds of the clock and of the CPU: on a busy machine only the second is the
fit's. The bar of each line is 10 s.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before numpy: one core

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from modexp.analysis.bootstrap import bootstrap
from modexp.analysis.report import report
from modexp.analysis.surface import PENALTIES, fit_surface, loss_of, optimum_of

TRUTH = np.array([1.69, 406.4, 410.7, 0.34, 0.28])  # E, A, B, alpha, beta (Hoffmann et al. 2022)
RESAMPLES = 1000


def main() -> None:
    generator = np.random.default_rng(0)
    budgets = np.repeat(np.geomspace(1e18, 1e21, 10), 15)
    n = np.concatenate([optimum_of(TRUTH, c).x * np.geomspace(1 / 4, 4, 15) for c in budgets[::15]])
    d = budgets / (6 * n)
    loss = loss_of(TRUTH, n, d) * np.exp(0.01 * generator.standard_normal(len(n)))
    print(f"| {len(n)} points, {RESAMPLES} resamples | seconds | CPU seconds |\n|---|---|---|")
    for method in PENALTIES:
        line(method, lambda method=method: refit(method, n, d, loss))
    records = [
        {
            "run": str(i),
            "arm": "baseline",
            "budget": float(c),
            "status": "done",
            "params_total": float(x),
            "tokens": float(tokens),
            "flops_consumed": float(c),
            "loss": float(y),
        }
        for i, (c, x, tokens, y) in enumerate(zip(budgets, n, d, loss, strict=True))
    ]
    line("whole report: parabolas, Akima, both surfaces", lambda: report(records, resamples=RESAMPLES))
    print(f"torch {'was' if 'torch' in sys.modules else 'was not'} imported")


def refit(method: str, n: np.ndarray, d: np.ndarray, loss: np.ndarray) -> None:
    surface = fit_surface(method, n, d, loss).surface
    assert surface is not None
    assert len(bootstrap(surface, n, d, loss, RESAMPLES).parameters) == RESAMPLES


def line(name: str, work: Callable[[], Any]) -> None:
    clock, cpu = time.perf_counter(), time.process_time()
    work()
    print(f"| {name} | {time.perf_counter() - clock:.1f} | {time.process_time() - cpu:.1f} |", flush=True)


if __name__ == "__main__":
    main()
