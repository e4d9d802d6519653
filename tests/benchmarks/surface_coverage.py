"""How often the 90 % bootstrap intervals of a loss surface hold the truth, as a Markdown table.

    python tests/benchmarks/surface_coverage.py --method vpnls --sizes 7

Each study is 3 budgets x --sizes on +-4x grids centred on the optimum, with --noise relative scatter in the loss,
drawn from L = 1.69 + 406.4 / N^.34 + 410.7 / D^.28 (Hoffmann et al. 2022), C = 6ND. Refused fits are counted apart.
200 studies take one (vpnls) to three (approach3) minutes on a core; the standard error of a share of 90 % is then 2 %.
"""

from __future__ import annotations

import argparse

import numpy as np

from modexp.analysis.bootstrap import bootstrap
from modexp.analysis.surface import PENALTIES, fit_surface, loss_of, optimum_of

TRUTH = np.array([1.69, 406.4, 410.7, 0.34, 0.28])  # E, A, B, alpha, beta
LEVEL = 0.90


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", choices=PENALTIES, nargs="+", default=list(PENALTIES))
    parser.add_argument("--sizes", type=int, nargs="+", default=[7, 9])
    parser.add_argument("--budgets", type=float, nargs="+", default=[6e18, 2e19, 1e20], help="training FLOPs")
    parser.add_argument("--studies", type=int, default=200)
    parser.add_argument("--resamples", type=int, default=300)
    parser.add_argument("--noise", type=float, default=0.01, help="of the loss, relative")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print("| method | budgets x sizes | studies | refused | a | N* | D* | loss | median width of a |")
    print("|---|---|---|---|---|---|---|---|---|")
    for method in args.method:
        for sizes in args.sizes:
            hits, widths, refused = coverage(method, sizes, args)
            shares = " | ".join(f"{share:.1%}" for share in np.mean(hits, axis=0))
            design = f"{len(args.budgets)} x {sizes}"
            print(
                f"| {method} | {design} | {args.studies} | {refused} | {shares} | {np.median(widths):.3f} |", flush=True
            )


def coverage(method: str, sizes: int, args: argparse.Namespace) -> tuple[list[list[bool]], list[float], int]:
    """Hits of a, N*, D* and loss at the largest budget for each study fitted; widths of a; number refused."""
    generator = np.random.default_rng(args.seed)
    budgets = np.array(args.budgets)
    n = np.concatenate([optimum_of(TRUTH, budget).x * np.geomspace(1 / 4, 4, sizes) for budget in budgets])
    d = np.repeat(budgets, sizes) / (6 * n)
    truth = {"a": TRUTH[4] / (TRUTH[3] + TRUTH[4])} | optimum_of(TRUTH, budgets.max())._asdict()
    hits, widths, refused = [], [], 0
    for study in range(args.studies):
        loss = loss_of(TRUTH, n, d) * np.exp(args.noise * generator.standard_normal(len(n)))
        surface = fit_surface(method, n, d, loss).surface
        if surface is None:
            refused += 1
            continue
        drawn = bootstrap(surface, n, d, loss, args.resamples, seed=study)
        limits = drawn.intervals(budgets.max(), level=LEVEL)
        hits.append([bool(limits[name][0] <= value <= limits[name][1]) for name, value in truth.items()])
        widths.append(limits["a"][1] - limits["a"][0])
    return hits, widths, refused


if __name__ == "__main__":
    main()
