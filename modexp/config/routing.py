"""Which blocks route, how many tokens they take, and how the choice is made causal (Raposo et al. 2024, sec. 3)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from modexp.config.base import one_of, refuse_unread, require
from modexp.config.model import ModelConfig

GATES = ("raw", "sigmoid", "tanh", "none")
CAUSAL_RULES = ("predictor", "auxiliary", "none")


@dataclass(frozen=True)
class LayersConfig(ModelConfig):
    """Which layers are special: every ``every``-th, or those listed."""

    every: int = 2  # every 2nd block routes (the 2nd, the 4th, ...); 1 = every block
    offset: int | None = None  # index, from 0, of the first one; None: every - 1
    layers: list[int] | None = None  # these indices instead

    has_routing: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.every >= 1, "model.every", self.every, "is not a positive whole number")
        require(self.offset is None or self.offset >= 0, "model.offset", self.offset, "is negative")
        if self.layers is not None:
            ok = bool(self.layers) and self.layers == sorted(set(self.layers)) and self.layers[0] >= 0
            require(ok, "model.layers", self.layers, "is not a rising list of indices from 0", "try model.layers=[1,3]")
            because = f"model.layers={self.layers}", "model.layers=null"
            refuse_unread(self, {"every": because, "offset": because})
        if self.n_layers is None:
            return
        if self.layers is not None:
            beyond = f"names a block beyond model.n_layers={self.n_layers}"
            require(self.layers[-1] < self.n_layers, "model.layers", self.layers, beyond)
        require(
            bool(self.routed_layers()),
            "model.every" if self.offset is None else "model.offset",
            self.every if self.offset is None else self.offset,
            f"leaves no routed block among model.n_layers={self.n_layers}",
            f"try model.n_layers={2 * self.every}",
        )

    def routed_layers(self) -> tuple[int, ...]:
        assert self.n_layers is not None
        if self.layers is not None:
            return tuple(self.layers)
        first = self.every - 1 if self.offset is None else self.offset
        return tuple(range(first, self.n_layers, self.every))

    def routing_places(self) -> tuple[str, ...]:
        """Names of the decisions a forward pass takes, in their order."""
        return tuple(f"layer{i}" for i in self.routed_layers())

    def realised(self, capacities: list[float]) -> LayersConfig:
        """This model as if it had been planned for the capacities that were measured, one a decision."""
        raise NotImplementedError


@dataclass(frozen=True)
class RoutedConfig(LayersConfig):
    """Blocks that take a share of the tokens and let the rest pass by."""

    capacity: Any = 0.125  # share C/T of a sequence's tokens; a number, or one a routed block
    gate: str = "raw"  # how the router weight scales the block's delta

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("model.gate", self.gate, GATES)
        many = isinstance(self.capacity, list | tuple)
        for share in self.capacity if many else [self.capacity]:
            ok = isinstance(share, int | float) and not isinstance(share, bool) and 0 < share <= 1
            hint = "the paper's choice is model.capacity=0.125"
            require(ok, "model.capacity", self.capacity, "is not a share of the tokens in (0, 1]", hint)
        if many and self.n_layers is not None:
            count = len(self.routed_layers())
            rule = f"has {len(self.capacity)} values for {count} routed blocks"
            require(len(self.capacity) == count, "model.capacity", self.capacity, rule, "give one number, or one each")

    def capacities(self) -> tuple[float, ...]:
        """Share of the tokens, one value a routed block."""
        if isinstance(self.capacity, list | tuple):
            return tuple(map(float, self.capacity))
        return (float(self.capacity),) * len(self.routed_layers())

    def slots(self, capacity: float, sequence_length: int) -> int:
        """Tokens k of a sequence for which a block of this capacity has room while it trains."""
        # k >= 1 always (sec. 3.4): a short sequence still sends its best token through the block
        return max(1, round(capacity * sequence_length))

    def realised(self, capacities: list[float]) -> LayersConfig:
        return replace(self, capacity=[min(1.0, max(share, 1e-9)) for share in capacities])


@dataclass(frozen=True)
class MoDConfig(RoutedConfig):
    """Mixture-of-Depths (sec. 3): expert-choice top-k around whole blocks."""

    kind: str = "mod"
    router_init_std: float = 0.02
    causal: str = "predictor"  # what decides where the future is not known (sec. 3.5)
    predictor_hidden: int = 32  # hidden width of the predictor's MLP
    auxiliary_weight: float = 0.01  # of the cross-entropy on the router's own weights, under causal=auxiliary

    sees_future: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.router_init_std >= 0, "model.router_init_std", self.router_init_std, "is negative")
        one_of("model.causal", self.causal, CAUSAL_RULES)
        require(self.predictor_hidden >= 1, "model.predictor_hidden", self.predictor_hidden, "is not positive")
        require(self.auxiliary_weight >= 0, "model.auxiliary_weight", self.auxiliary_weight, "is negative")
        refuse_unread(self, self.unread())

    def unread(self) -> dict[str, tuple[str, str]]:
        """Settings that nothing reads: because of which other, and under which it would be."""
        readers = {"predictor_hidden": "predictor", "auxiliary_weight": "auxiliary"}
        return {
            key: (f"model.causal={self.causal}", f"model.causal={rule}")
            for key, rule in readers.items()
            if rule != self.causal
        }

    @property
    def can_be_causal(self) -> bool:
        return self.causal != "none"

    @property
    def predicts(self) -> bool:
        return self.causal != "none"


@dataclass(frozen=True)
class StochasticConfig(RoutedConfig):
    """The paper's control: weights are Gaussian noise and nothing is learned (Fig. 3)."""

    kind: str = "mod_stochastic"

    sees_future: ClassVar[bool] = True  # the k largest of all noise, rather than all that is large


@dataclass(frozen=True)
class TokenChoiceConfig(RoutedConfig):
    """Each token chooses by a softmax over {block, bypass} (sec. 3.3); its weight is the block's probability."""

    kind: str = "mod_token_choice"
    router_init_std: float = 0.02
    balance_weight: float = 0.01  # of the balance loss, which draws the block's share to its capacity

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("model.gate", self.gate, ("raw", "none"))
        require(self.router_init_std >= 0, "model.router_init_std", self.router_init_std, "is negative")
        require(self.balance_weight >= 0, "model.balance_weight", self.balance_weight, "is negative")


@dataclass(frozen=True)
class ThresholdConfig(RoutedConfig):
    """A token goes through when its weight exceeds a running average of the capacity's quantile: causal throughout."""

    kind: str = "mod_threshold"
    router_init_std: float = 0.02
    ema: float = 0.99  # share of the old threshold kept at each step
    headroom: float = 1.25  # slots over the capacity, filled in order of position

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.router_init_std >= 0, "model.router_init_std", self.router_init_std, "is negative")
        require(0 <= self.ema < 1, "model.ema", self.ema, "is not in [0, 1)")
        require(self.headroom >= 1, "model.headroom", self.headroom, "is below 1")

    def slots(self, capacity: float, sequence_length: int) -> int:
        return min(sequence_length, math.ceil(self.headroom * super().slots(capacity, sequence_length)))

    def realised(self, capacities: list[float]) -> LayersConfig:
        return super().realised(capacities) if self.headroom == 1 else replace(self, headroom=1.0).realised(capacities)
