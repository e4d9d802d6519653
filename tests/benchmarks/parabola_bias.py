"""What a parabola makes of a loss surface without noise: python tests/benchmarks/parabola_bias.py.

Error of N* for grids of 9 sizes over +-2x .. +-16x, centred and off-centre, alpha and beta as published, and the
exponent over 1e18, 1e19, 1e20 and 1e21 FLOPs when the grid follows each budget and when one grid serves all.
"""

from __future__ import annotations

import numpy as np

from modexp.analysis.parabola import fit_parabola

SURFACES = {
    "alpha .34, beta .28": (1.69, 406.4, 410.7, 0.34, 0.28),
    "alpha .34, beta .36": (2.69, 1606.3, 3210.6, 0.34, 0.36),
}
Constants = tuple[float, float, float, float, float]


def optimum(budget: float, constants: Constants) -> float:
    _, a, b, alpha, beta = constants
    return (alpha * a / (beta * b)) ** (1 / (alpha + beta)) * (budget / 6) ** (beta / (alpha + beta))


def vertex(budget: float, sizes: np.ndarray, constants: Constants) -> tuple[float, float]:
    """(fitted optimum, raw minimum) of the sizes (n,)."""
    e, a, b, alpha, beta = constants
    losses = e + a / sizes**alpha + b / (budget / 6 / sizes) ** beta
    return fit_parabola(sizes.tolist(), losses.tolist()).vertex, float(sizes[losses.argmin()])


def main() -> None:
    off = (0.5, 1.0, 2.0)
    print("| surface | grid | " + " | ".join(f"centred at {o:g} N*" for o in off) + " |\n|---|---|---|---|---|")
    for name, constants in SURFACES.items():
        best = optimum(1e20, constants)
        for span in (2.0, 4.0, 8.0, 16.0):
            errors = [vertex(1e20, o * best * np.geomspace(1 / span, span, 9), constants)[0] / best - 1 for o in off]
            print(f"| {name} | +-{span:g}x | " + " | ".join(f"{error:+.1%}" for error in errors) + " |")
    budgets = np.array([1e18, 1e19, 1e20, 1e21])
    columns = ("surface", "true exponent", "grid per budget, +-4x", "one grid of 8 sizes 1e7-1e10", "its raw minima")
    print(f"\n| {' | '.join(columns)} |\n|---|---|---|---|---|")
    for name, constants in SURFACES.items():
        own = [vertex(c, optimum(c, constants) * np.geomspace(0.25, 4, 9), constants)[0] for c in budgets]
        one = np.array([vertex(c, np.geomspace(1e7, 1e10, 8), constants) for c in budgets]).T
        slopes = [np.polyfit(np.log(budgets), np.log(x), 1)[0] for x in (own, *one)]
        true = constants[4] / (constants[3] + constants[4])
        print(f"| {name} | {true:.4f} | " + " | ".join(f"{slope:.4f}" for slope in slopes) + " |")


if __name__ == "__main__":
    main()
