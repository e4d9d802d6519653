"""How often 90 % intervals hold the truth in simulated studies: python tests/benchmarks/coverage.py [--studies 1000].

Two arms (the second with a reducible loss 3 % lower) at 6e18, 2e19 and 1e20 FLOPs, sizes over +-4x around the optimum,
1 % noise, half of it common to a pair; L = E + A/N^alpha + B/D^beta with the constants of Besiroglu et al. 2024 and
C = 6ND. Counted: the optimum N* of every curve, the exponent of every arm, the difference of the two vertex losses.
"""

from __future__ import annotations

import argparse
from collections import Counter

import numpy as np

from modexp.analysis.isoflop import fit_study

E, A, B, ALPHA, BETA = 1.8172, 477.8, 2143.4, 0.3473, 0.3672
BUDGETS = (6e18, 2e19, 1e20)
GAIN = 0.97  # reducible loss of the second arm over the first's
COMMON = 0.5  # share of the noise variance that the two runs of a pair have in common


def optimum(budget: float) -> float:
    return (ALPHA * A / (BETA * B)) ** (1 / (ALPHA + BETA)) * (budget / 6) ** (BETA / (ALPHA + BETA))


def loss(size: float, budget: float, arm: str) -> float:
    return E + (1.0 if arm == "baseline" else GAIN) * (A / size**ALPHA + B / (budget / 6 / size) ** BETA)


def study(rng: np.random.Generator, sizes: int, span: float, noise: float) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for budget in BUDGETS:
        common = rng.standard_normal(sizes)
        for arm in ("baseline", "mod"):
            for i, x in enumerate(optimum(budget) * np.geomspace(1 / span, span, sizes)):
                scatter = COMMON**0.5 * common[i] + (1 - COMMON) ** 0.5 * rng.standard_normal()
                rows.append(
                    {
                        "run": f"{arm}-{budget}-{i}",
                        "arm": arm,
                        "budget": budget,
                        "seed": 0,
                        "status": "done",
                        "params_total": x,
                        "tokens": budget / 6 / x,
                        "flops_consumed": budget,
                        "loss": loss(x, budget, arm) * (1 + noise * scatter),
                    }
                )
    return rows


def covered(sizes: int, span: float, noise: float, studies: int) -> list[str]:
    rng = np.random.default_rng(sizes)
    found: Counter[str] = Counter()
    for _ in range(studies):
        fit = fit_study(study(rng, sizes, span, noise))
        for curve in fit.curves:
            best = curve.optimum
            found["curves"] += 1
            found["optima"] += best is not None
            found["optima in"] += best is not None and best.x_low <= optimum(curve.budget) <= best.x_high
        for line in fit.exponents:
            found["lines"] += 1
            found["exponents"] += line.exponent is not None
            if line.low is not None and line.high is not None:
                found["exponents in"] += line.low <= BETA / (ALPHA + BETA) <= line.high
        found["pairs"] += len(BUDGETS)
        for pair in fit.comparisons:
            best_loss = [loss(optimum(pair.budget), pair.budget, arm) for arm in ("mod", "baseline")]
            found["differences"] += 1
            found["differences in"] += pair.low <= best_loss[0] - best_loss[1] <= pair.high
    kinds = (("optima", "curves"), ("exponents", "lines"), ("differences", "pairs"))
    cells = [f"{found[f'{kind} in'] / found[kind]:.1%} ({1 - found[kind] / found[of]:.1%})" for kind, of in kinds]
    return [str(sizes), *cells]


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--studies", type=int, default=1000)
    p.add_argument("--span", type=float, default=4.0)
    p.add_argument("--noise", type=float, default=0.01)
    args = p.parse_args()
    print("| sizes | N* covered (refused) | exponent covered (refused) | difference covered (refused) |")
    print("|---|---|---|---|")
    for sizes in (5, 7, 9):
        print(f"| {' | '.join(covered(sizes, args.span, args.noise, args.studies))} |", flush=True)


if __name__ == "__main__":
    main()
