"""An arm of one's own: only attention is routed, the MLP runs on every token.

Top-k tokens of a sequence attend to each other; causal decisions, predictor and balance are Mixture-of-Depths' own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from modexp.config.routing import MoDConfig
from modexp.flops.ledger import Ledger
from modexp.flops.routed import mod_ledger
from modexp.kinds import Kind
from modexp.models.build import routed_blocks
from modexp.models.cache import Packed, State
from modexp.models.mod import MoDBlock
from modexp.models.routed import gather, scatter_add
from modexp.models.transformer import Block, Fresh, Rope, Routing


@dataclass(frozen=True)
class AttentionRoutingConfig(MoDConfig):
    kind: str = "attention_routing"


def ledger(model: AttentionRoutingConfig, vocab: int, T: int) -> Ledger:
    """As Mixture-of-Depths, but the MLP of a routed block costs T tokens instead of k."""
    terms = mod_ledger(model, vocab, T).terms
    return Ledger(
        tuple(
            replace(t, forward=2 * T * t.params, share=1.0) if t.block == "routed" and t.name.startswith("mlp.") else t
            for t in terms
        ),
        T,
    )


class AttentionRoutingBlock(MoDBlock):
    def forward(self, x: Tensor, rope: Rope, causal: bool) -> tuple[Tensor, tuple[Routing, ...]]:
        index, gate, routing = self.select(x, causal)  # (B, k): top-k while training, the predictor where causal
        chosen = gather(x, index)  # (B, k, D)
        attended = self.attention(self.attention_norm(chosen), rope.at(index))
        x = scatter_add(x, index, attended * gate.unsqueeze(-1))
        return x + self.mlp(self.mlp_norm(x)), (routing,)

    # cached decoding: the same two halves, with the cache of the tokens that were routed

    def extend_delta(self, x: Tensor, rope: Rope, tokens: Packed, state: State) -> Tensor:
        return self.attention.extend(self.attention_norm(x), rope, tokens, state.cache)

    def extend(self, x: Tensor, fresh: Fresh, state: State) -> Tensor:
        x = super().extend(x, fresh, state)
        return x + self.mlp(self.mlp_norm(x))


def blocks(config: AttentionRoutingConfig, sequence_length: int) -> list[Block]:
    return routed_blocks(AttentionRoutingBlock, config, sequence_length)


KIND = Kind(AttentionRoutingConfig, ledger, "attention_routing:blocks")
