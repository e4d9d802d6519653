"""Mixtures of experts, and their marriages with Mixture-of-Depths (Raposo et al. 2024, sec. 5)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from modexp.config.base import one_of, refuse_unread, require
from modexp.config.routing import LayersConfig, MoDConfig

EXPERT_ROUTINGS = ("expert_choice", "token_choice")
LEAST = 1e-9  # share of the tokens that a ledger can count


@dataclass(frozen=True)
class MoEConfig(LayersConfig):
    """The MLP of some blocks becomes ``experts`` MLPs of the same shape, each for some of the tokens.

    Each expert has room for expert_capacity x T / (experts + noop_experts) tokens of a sequence: at 1.0 without no-op
    experts as many slots as tokens, so as much compute as the dense MLP; below it tokens drop.
    """

    kind: str = "moe"
    every: int = 1
    experts: int = 8
    noop_experts: int = 0  # paths that compute nothing, among the experts (integrated MoDE)
    expert_routing: str = "expert_choice"
    expert_capacity: float = 1.0  # the capacity factor
    router_init_std: float = 0.02
    predictor_hidden: int = 32  # of the MLP that predicts expert choice, one logit an expert
    balance_weight: float = 0.01  # of the balance loss of token choice
    z_weight: float = 0.001  # of the router's z-loss under token choice

    def __post_init__(self) -> None:
        super().__post_init__()
        check_experts(self)
        refuse_unread(self, unread_by_experts(self))

    @property
    def sees_future(self) -> bool:  # type: ignore[override]
        return self.expert_routing == "expert_choice"

    @property
    def predicts(self) -> bool:
        return self.expert_routing == "expert_choice"

    def expert_slots(self, tokens: int) -> int:
        """Tokens of a sequence of ``tokens`` for which each expert has room."""
        return expert_slots(self, tokens)

    def realised(self, capacities: list[float]) -> LayersConfig:
        share = sum(capacities) / len(capacities)  # matmuls of experts are linear in it, so the mean is exact
        return replace(self, expert_capacity=max(share, 1e-9) * (self.experts + self.noop_experts))


@dataclass(frozen=True)
class IntegratedConfig(MoEConfig):
    """Integrated MoDE: one router over experts and no-ops; attention always runs, tokens learn to compute nothing."""

    kind: str = "mode_integrated"
    noop_experts: int = 8


@dataclass(frozen=True)
class StagedConfig(MoDConfig):
    """Staged MoDE: tokens are routed around whole blocks first; those that go through meet experts, not an MLP."""

    kind: str = "mode_staged"
    experts: int = 8
    noop_experts: ClassVar[int] = 0
    expert_routing: str = "expert_choice"
    expert_capacity: float = 1.0
    balance_weight: float = 0.01
    z_weight: float = 0.001

    def __post_init__(self) -> None:
        super().__post_init__()
        check_experts(self)

    def unread(self) -> dict[str, tuple[str, str]]:
        depth, experts = super().unread(), unread_by_experts(self)
        unread = depth | experts
        if "predictor_hidden" in depth.keys() ^ experts.keys():  # one of the two predictors is there and reads it
            del unread["predictor_hidden"]
        return unread

    def expert_slots(self, tokens: int) -> int:
        return expert_slots(self, tokens)

    def routing_places(self) -> tuple[str, ...]:
        return tuple(place for i in self.routed_layers() for place in (f"layer{i}", f"layer{i}.experts"))

    def realised(self, capacities: list[float]) -> LayersConfig:
        depth = [min(1.0, max(share, LEAST)) for share in capacities[0::2]]
        # one capacity for all blocks, of as much work as theirs: experts see the tokens that go through their block
        taken = sum(d * share for d, share in zip(depth, capacities[1::2], strict=True)) / sum(depth)
        return replace(self, capacity=depth, expert_capacity=max(taken, LEAST) * self.experts)


ExpertsConfig = MoEConfig | StagedConfig


def check_experts(config: ExpertsConfig) -> None:
    require(config.experts >= 1, "model.experts", config.experts, "is not positive")
    require(config.noop_experts >= 0, "model.noop_experts", config.noop_experts, "is negative")
    one_of("model.expert_routing", config.expert_routing, EXPERT_ROUTINGS)
    positive = "is not positive"
    require(config.expert_capacity > 0, "model.expert_capacity", config.expert_capacity, positive)
    require(config.predictor_hidden >= 1, "model.predictor_hidden", config.predictor_hidden, positive)
    for key in ("router_init_std", "balance_weight", "z_weight"):
        require(getattr(config, key) >= 0, f"model.{key}", getattr(config, key), "is negative")


def unread_by_experts(config: ExpertsConfig) -> dict[str, tuple[str, str]]:
    """As :meth:`MoDConfig.unread`, of what one way of choosing experts needs and the other does not."""
    by_expert = config.expert_routing == "expert_choice"
    other = "token_choice" if by_expert else "expert_choice"
    why = f"model.expert_routing={config.expert_routing}", f"model.expert_routing={other}"
    return dict.fromkeys(("balance_weight", "z_weight") if by_expert else ("predictor_hidden",), why)


def expert_slots(config: ExpertsConfig, tokens: int) -> int:
    paths = config.experts + config.noop_experts
    return min(tokens, max(1, round(config.expert_capacity * tokens / paths)))
