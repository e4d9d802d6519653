"""Numbers as people write them: 220M parameters, 6e18 FLOPs. For sentences and ticks, never for data."""

from __future__ import annotations


def size_text(value: float) -> str:
    """Three digits and a suffix: 10k, 1.26M, 220M, 3B; plain below a thousand and from 1e15 on in powers."""
    value = float(f"{value:.3g}")  # round first, so that 999,700 reads 1M and not 1000k
    for factor, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= 1000 * factor:
            return budget_text(value)
        if value >= factor:
            return f"{value / factor:.3g}{suffix}"
    return f"{value:.3g}"


def budget_text(flops: float) -> str:
    """6e18, 1.5e19: as many digits as the number has, so that two budgets never read the same."""
    mantissa, exponent = f"{flops:.12e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
