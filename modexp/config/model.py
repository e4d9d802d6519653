"""Model configurations: the shape every kind shares, and what each kind adds.

Shapes may stay ``None`` until the plan fills them from the ladder of sizes (``size=220m``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from modexp.config.base import one_of, require

GATES = ("raw", "sigmoid", "tanh", "none")
MLPS = ("gelu", "swiglu")


@dataclass(frozen=True)
class ModelConfig:
    """A pre-norm decoder-only transformer: RMSNorm, RoPE, no biases."""

    kind: str = "baseline"
    n_layers: int | None = None
    d_model: int | None = None  # width of the residual stream
    n_heads: int | None = None
    mlp: str = "gelu"
    mlp_ratio: float = 4.0  # hidden width of the MLP over d_model; 8/3 with swiglu has the same matmuls
    tie_embeddings: bool = False  # head = embedding, transposed
    rope_theta: float = 10000.0

    has_routing: ClassVar[bool] = False

    def __post_init__(self) -> None:
        one_of("model.mlp", self.mlp, MLPS)
        require(self.mlp_ratio > 0, "model.mlp_ratio", self.mlp_ratio, "is not positive")
        require(self.rope_theta > 1, "model.rope_theta", self.rope_theta, "is not above 1")
        for key in ("n_layers", "d_model", "n_heads"):
            value = getattr(self, key)
            require(value is None or value >= 1, f"model.{key}", value, "is not a positive whole number")
        if self.d_model is not None and self.n_heads is not None:
            d, h = self.d_model, self.n_heads
            near = [w for w in (d - d % (2 * h), d - d % (2 * h) + 2 * h) if w > 0]
            hint = "try " + " or ".join(f"model.d_model={w}" for w in near)
            require(d % h == 0, "model.d_model", d, f"is not a multiple of model.n_heads={h}", hint)
            require(
                (d // h) % 2 == 0,
                "model.d_model",
                d,
                f"gives heads of odd width {d // h}, which RoPE cannot rotate in pairs",
                hint,
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(layers, width, heads); only a configuration whose shape is filled has one."""
        assert self.n_layers is not None
        assert self.d_model is not None
        assert self.n_heads is not None
        return self.n_layers, self.d_model, self.n_heads

    @property
    def mlp_hidden(self) -> int:
        """Hidden width of the MLP, a multiple of 8 so that matmul kernels stay aligned."""
        assert self.d_model is not None
        return max(8, 8 * round(self.mlp_ratio * self.d_model / 8))

    def routed_layers(self) -> tuple[int, ...]:
        """Indices, from 0, of the blocks that route; none in a dense model."""
        return ()

    def routed_tokens(self, sequence_length: int) -> int:
        """Tokens k of one sequence that take part in a routed block."""
        return sequence_length


@dataclass(frozen=True)
class BaselineConfig(ModelConfig):
    kind: str = "baseline"


@dataclass(frozen=True)
class MoDConfig(ModelConfig):
    """Mixture-of-Depths (Raposo et al. 2024, sec. 3): expert-choice top-k around whole blocks."""

    kind: str = "mod"
    capacity: float = 0.125  # share C/T of a sequence's tokens that a routed block takes
    every: int = 2  # every 2nd block routes (the 2nd, the 4th, ...); 1 = every block
    gate: str = "raw"  # how the router weight scales the block's delta
    router_init_std: float = 0.02
    predictor_hidden: int = 32  # hidden width of the MLP that predicts membership in the top-k

    has_routing: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            0 < self.capacity <= 1,
            "model.capacity",
            self.capacity,
            "is not a share of the tokens in (0, 1]",
            "the paper's choice is model.capacity=0.125",
        )
        require(self.every >= 1, "model.every", self.every, "is not a positive whole number")
        one_of("model.gate", self.gate, GATES)
        require(self.router_init_std >= 0, "model.router_init_std", self.router_init_std, "is negative")
        require(self.predictor_hidden >= 1, "model.predictor_hidden", self.predictor_hidden, "is not positive")
        if self.n_layers is not None:
            require(
                self.every <= self.n_layers,
                "model.every",
                self.every,
                f"leaves no routed block among model.n_layers={self.n_layers}",
                f"try model.n_layers={self.every}",
            )

    def routed_layers(self) -> tuple[int, ...]:
        assert self.n_layers is not None
        return tuple(range(self.every - 1, self.n_layers, self.every))

    def routed_tokens(self, sequence_length: int) -> int:
        # k >= 1 always (sec. 3.4): a short sequence still sends its best token through the block
        return max(1, round(self.capacity * sequence_length))


MODEL_KINDS: dict[str, Any] = {"baseline": BaselineConfig, "mod": MoDConfig}
