"""What every kind of model shares: its shape. Shapes may stay ``None`` until the plan fills them from the ladder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from modexp.config.base import one_of, require

MLPS = ("gelu", "swiglu")
CHUNK_LOGITS = 2**27  # that a loss holds at once (modexp/models/head.py); smaller chunks pay more to sum gradients
EVAL_LOGITS = CHUNK_LOGITS // 4  # of an evaluation, which sums none


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
    sees_future: ClassVar[bool] = False  # whether routing while training looks at later tokens of the sequence

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
            odd = f"gives heads of odd width {d // h}, which RoPE cannot rotate in pairs"
            require((d // h) % 2 == 0, "model.d_model", d, odd, hint)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(layers, width, heads); only a configuration whose shape is filled has one."""
        layers, width, heads = self.n_layers, self.d_model, self.n_heads
        assert layers is not None
        assert width is not None
        assert heads is not None
        return layers, width, heads

    @property
    def mlp_hidden(self) -> int:
        """Hidden width of the MLP, a multiple of 8 so that matmul kernels stay aligned."""
        assert self.d_model is not None
        return max(8, 8 * round(self.mlp_ratio * self.d_model / 8))

    @property
    def can_be_causal(self) -> bool:
        """Whether the model can decide token by token, and so be sampled."""
        return True

    @property
    def predicts(self) -> bool:
        """Whether something learns to predict the decisions that see the future."""
        return False

    def routed_layers(self) -> tuple[int, ...]:
        """Indices, from 0, of the blocks that route; none in a dense model."""
        return ()


@dataclass(frozen=True)
class BaselineConfig(ModelConfig):
    kind: str = "baseline"
