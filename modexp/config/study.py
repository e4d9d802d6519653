"""Budgets, launchers and sweep files: what a study is made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from modexp.config.base import neutral, one_of, require, unscientific
from modexp.config.slurm import SlurmConfig
from modexp.flops.ledger import CONVENTIONS


@dataclass(frozen=True)
class BudgetConfig:
    """Training FLOPs of one run, and the convention that counts them (modexp/flops)."""

    flops: float = 1e12
    convention: str = "matmul"
    rules_at: float | None = neutral(None)  # FLOPs at which batch, rate and warm-up are taken; None: the run's own

    def __post_init__(self) -> None:
        require(self.flops > 0, "budget.flops", self.flops, "is not positive", "try --budget 6e18")
        require((self.rules_at or 1) > 0, "budget.rules_at", self.rules_at, "is not positive", "null: the run's own")
        one_of("budget.convention", self.convention, tuple(CONVENTIONS))


@dataclass(frozen=True)
class LauncherConfig:
    """Runs of a study as processes on this machine, ``slots`` at a time."""

    kind: str = "local"
    slots: int | None = (
        None  # None: one a GPU; without a GPU, CPU cores over trainer.threads; trainer.devices of them a run
    )

    def __post_init__(self) -> None:
        require(self.slots is None or self.slots >= 1, "launcher.slots", self.slots, "is not positive")


LAUNCHER_KINDS: dict[str, Any] = {"local": LauncherConfig, "slurm": SlurmConfig}


@dataclass(frozen=True)
class GridConfig:
    """Sizes of one budget: ``points`` rungs, evenly spaced in log FLOPs per token, over centre / span .. centre x span.

    The centre is where a dense model sees ``tokens_per_param`` tokens a parameter (Hoffmann et al. 2022: about
    20); every arm is centred on the same FLOPs per token, so that no arm's parabola is favoured.
    """

    points: int = 7
    span: float = 4.0
    tokens_per_param: float = 20.0
    growth: str = "even"  # depth: routed arms spend the FLOPs they save on layers; even: every arm on one ladder

    def __post_init__(self) -> None:
        require(self.points >= 1, "grid.points", self.points, "is not positive")
        require(self.span >= 1, "grid.span", self.span, "is below 1")
        require(self.span > 1 or self.points == 1, "grid.span", self.span, f"holds one size, not {self.points}")
        require(self.tokens_per_param > 0, "grid.tokens_per_param", self.tokens_per_param, "is not positive")
        one_of("grid.growth", self.growth, ("even", "depth"))


@dataclass(frozen=True)
class AdaptConfig:
    """A study that goes on from what it found (modexp/sweep/adapt.py); ``adapt=on`` is ``adapt.enabled=true``.

    ``interval`` is the half-width of the 90 % interval of the difference of two arms' losses at their optima, as a
    share of the baseline's loss. The paper's claim is about 1 % of the loss: .005 tells 1 % from nothing twice
    over. Sizes of optima are no target, since a parabola is flat there: 20 % of N* is .1 % of the loss.
    """

    enabled: bool = False
    interval: float = 0.005
    spend: float = 2.0  # FLOPs of all runs, guard runs apart, over those of the same sweep without adapt

    def __post_init__(self) -> None:
        require(0 < self.interval < 1, "adapt.interval", self.interval, "is not a share of the loss", "try .005")
        require(self.spend >= 1, "adapt.spend", self.spend, "is below 1, the plain plan", "try adapt.spend=2")


FIT_SIZES = 5  # of a curve, at least (modexp/analysis/isoflop.py)


@dataclass(frozen=True)
class SweepConfig:
    """A sweep file: arms as lists of overrides, budgets, seeds, and the grid of sizes."""

    budgets: list[float] = field(default_factory=list)
    arms: dict[str, list[str]] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=lambda: [0])
    grid: GridConfig = field(default_factory=GridConfig)
    adapt: AdaptConfig = field(default_factory=AdaptConfig)
    guard: bool = False  # also train the ends of each curve at half and twice the rule's learning rate
    share_trunk: bool = False  # one run a size serves every budget (modexp/plan/trunk.py)
    overrides: list[str] = field(default_factory=list)  # for every arm
    description: str = unscientific("")

    def __post_init__(self) -> None:
        require(bool(self.budgets), "budgets", "[]", "is empty", "try --budget 6e18")
        require(all(b > 0 for b in self.budgets), "budgets", self.budgets, "holds one that is not positive")
        require(bool(self.arms), "arms", "{}", "is empty", "see sweeps/isoflop.yaml")
        require(bool(self.seeds), "seeds", "[]", "is empty", "try seeds=[0]")
        require(len(set(self.seeds)) == len(self.seeds), "seeds", self.seeds, "names a seed twice")
        few = self.adapt.enabled and self.grid.points < FIT_SIZES
        require(not few, "grid.points", self.grid.points, f"is fewer than the {FIT_SIZES} that adapt=on fits")
        both = self.share_trunk and self.adapt.enabled
        require(not both, "share_trunk", "on", "needs all budgets' sizes at once, and adapt=on finds them one by one")
        same = self.share_trunk and self.grid.span == 1
        require(
            not same, "grid.span", self.grid.span, "gives each budget a size of its own: there is no trunk to share"
        )
        for arm in self.arms:
            ok = arm.replace("_", "").replace("-", "").isalnum() and not arm.startswith("-")
            require(ok, "arms", arm, "is not made of letters, digits, _ and -")
