"""Budgets, launchers and sweep files: what a study is made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from modexp.config.base import one_of, require, unscientific
from modexp.flops.ledger import CONVENTIONS


@dataclass(frozen=True)
class BudgetConfig:
    """Training FLOPs of one run, and the convention that counts them (modexp/flops)."""

    flops: float = 1e12
    convention: str = "matmul"

    def __post_init__(self) -> None:
        require(self.flops > 0, "budget.flops", self.flops, "is not positive", "try --budget 6e18")
        one_of("budget.convention", self.convention, tuple(CONVENTIONS))


@dataclass(frozen=True)
class LauncherConfig:
    """Runs of a study as processes on this machine, ``slots`` at a time."""

    kind: str = "local"
    slots: int | None = None  # None: one a GPU; without a GPU, CPU cores over trainer.threads

    def __post_init__(self) -> None:
        require(self.slots is None or self.slots >= 1, "launcher.slots", self.slots, "is not positive")


LAUNCHER_KINDS: dict[str, Any] = {"local": LauncherConfig}


@dataclass(frozen=True)
class GridConfig:
    """Sizes of one budget: ``points`` rungs, evenly spaced in log FLOPs per token, over centre / span .. centre x span.

    The centre is where a dense model sees ``tokens_per_param`` tokens a parameter (Hoffmann et al. 2022: about
    20); every arm is centred on the same FLOPs per token, so that no arm's parabola is favoured.
    """

    points: int = 7
    span: float = 4.0
    tokens_per_param: float = 20.0

    def __post_init__(self) -> None:
        require(self.points >= 1, "grid.points", self.points, "is not positive")
        require(self.span >= 1, "grid.span", self.span, "is below 1")
        require(self.span > 1 or self.points == 1, "grid.span", self.span, f"holds one size, not {self.points}")
        require(self.tokens_per_param > 0, "grid.tokens_per_param", self.tokens_per_param, "is not positive")


@dataclass(frozen=True)
class SweepConfig:
    """A sweep file: arms as lists of overrides, budgets, seeds, and the grid of sizes."""

    budgets: list[float] = field(default_factory=list)
    arms: dict[str, list[str]] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=lambda: [0])
    grid: GridConfig = field(default_factory=GridConfig)
    overrides: list[str] = field(default_factory=list)  # for every arm
    description: str = unscientific("")

    def __post_init__(self) -> None:
        require(bool(self.budgets), "budgets", "[]", "is empty", "try --budget 6e18")
        require(all(b > 0 for b in self.budgets), "budgets", self.budgets, "holds one that is not positive")
        require(bool(self.arms), "arms", "{}", "is empty", "see sweeps/isoflop.yaml")
        require(bool(self.seeds), "seeds", "[]", "is empty", "try seeds=[0]")
        require(len(set(self.seeds)) == len(self.seeds), "seeds", self.seeds, "names a seed twice")
        for arm in self.arms:
            ok = arm.replace("_", "").replace("-", "").isalnum() and not arm.startswith("-")
            require(ok, "arms", arm, "is not made of letters, digits, _ and -")
