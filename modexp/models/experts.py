"""Mixture of experts: an MLP for each of E experts, all at once as batched matmuls over their slots.

Every expert has the same number of slots, by the capacity, so the batched matmul is the grouped one:
``torch.nn.functional.grouped_mm`` does the same work on equal groups, and FlopCounterMode sees none of it. Groups of
unequal size would pay only without a capacity, which neither the paper nor its foil (token dropping) is.

B sequences, T tokens, E experts, k slots an expert, D width, M hidden width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modexp.config.experts import ExpertsConfig, MoEConfig, StagedConfig
from modexp.models.cache import Packed, State
from modexp.models.mod import MoDBlock, membership_loss
from modexp.models.routed import Predictor, Router, first, gather, members, most, pack, scatter_add, top_k
from modexp.models.transformer import Block, Rope, Routing


class Experts(nn.Module):
    """A drop-in for the MLP that also tells what it decided.

    Expert choice (Zhou et al. 2022): each expert takes its k most probable tokens of a sequence; a predictor with one
    logit an expert stands in where the future is not known. Token choice (Fedus et al. 2022): each token takes its
    most probable expert; who comes too late in the sequence is dropped. No-op experts take part in the softmax alone.
    """

    def __init__(self, config: ExpertsConfig, tokens: int) -> None:
        super().__init__()
        _, width, _ = config.shape
        E, hidden = config.experts, config.mlp_hidden
        self.config = config
        self.limit = config.expert_slots(tokens)  # of token choice where tokens come one by one
        self.router = Router(width, paths=E + config.noop_experts)
        self.predictor = Predictor(width, config.predictor_hidden, E) if self.by_expert else None
        # in x out: gradients and casts then come as they lie, without a transposed copy of all experts
        self.gate = nn.Parameter(torch.empty(E, width, hidden)) if config.mlp == "swiglu" else None
        self.inner = nn.Parameter(torch.empty(E, width, hidden))
        self.out = nn.Parameter(torch.empty(E, hidden, width))

    @property
    def by_expert(self) -> bool:
        return self.config.expert_routing == "expert_choice"

    def forward(
        self, x: Tensor, causal: bool, real: Tensor | None = None, used: Tensor | int = 0
    ) -> tuple[Tensor, Routing]:
        """``x`` (B, T, D); ``real`` (B, T) marks tokens that exist, where some only fill a buffer; ``used`` (B, E, 1)
        counts those that each expert took of the sequence before."""
        T = x.shape[1]
        logits = self.router(x)  # (B, T, E + no-ops)
        probability = logits.softmax(dim=-1)[..., : self.config.experts]  # (B, T, E)
        if causal:
            taken, predicted = self.choose(x, logits, real, used)
            index, filled = pack(taken.mT, most(taken.mT))  # (B, E, k)
            routing = Routing(probability, taken, predicted)
        elif self.by_expert:
            index = top_k(probability.mT, self.config.expert_slots(T))  # (B, E, k)
            filled = torch.ones_like(index, dtype=torch.bool)
            taken = members(index, T).mT
            assert self.predictor is not None
            predicted = self.predictor(x)
            routing = Routing(probability, taken, predicted, separate=membership_loss(predicted, taken))
        else:
            wanted = self.wanted(logits)
            k = self.config.expert_slots(T)
            taken = first(wanted.mT, k).mT
            index, filled = pack(taken.mT, k)
            routing = Routing(probability, taken, auxiliary=self.auxiliary(logits))
        gate = probability.mT.gather(-1, index) * filled  # (B, E, k)
        return self.compute(x, index, gate), routing._replace(real=real)

    def choose(
        self, x: Tensor, logits: Tensor, real: Tensor | None, used: Tensor | int
    ) -> tuple[Tensor, Tensor | None]:
        """(B, T, E) bool: experts each token meets, judged in order of position."""
        if self.predictor is not None:
            predicted = self.predictor(x)
            taken = predicted > 0
        else:
            predicted, taken = None, self.wanted(logits)
        if real is not None:
            taken = taken & real.unsqueeze(-1)
        return (taken if self.by_expert else first(taken.mT, self.limit, used).mT), predicted

    def wanted(self, logits: Tensor) -> Tensor:
        """(B, T, E) bool: each token's likeliest path, where that is an expert."""
        paths = logits.shape[-1]
        return F.one_hot(logits.argmax(dim=-1), paths).bool()[..., : self.config.experts]

    def auxiliary(self, logits: Tensor) -> Tensor:
        """Balance loss (Fedus et al. 2022, eq. 4), a sequence at a time and then averaged, so that several processes
        agree with one; and the z-loss (Zoph et al. 2022, eq. 5)."""
        paths = logits.shape[-1]
        sent = F.one_hot(logits.argmax(dim=-1), paths).float().mean(dim=1)  # (B, paths)
        mean = logits.softmax(dim=-1).mean(dim=1)
        balance = paths * (sent * mean).sum(dim=-1).mean()
        z = logits.logsumexp(dim=-1).square().mean()
        return self.config.balance_weight * balance + self.config.z_weight * z

    def compute(self, x: Tensor, index: Tensor, gate: Tensor) -> Tensor:
        """Sum over experts of gate times expert, for the tokens at ``index`` (B, E, k); ``gate`` alike."""
        B, T, D = x.shape
        rows = torch.arange(B, device=x.device)[:, None, None] * T
        flat = (index + rows).transpose(0, 1).flatten()  # (E B k): a row never reaches into another
        chosen = x.flatten(0, 1).index_select(0, flat).view(index.shape[1], -1, D)  # (E, B k, D)
        if self.inner.dtype is torch.bfloat16:  # as a decoder may keep them
            chosen = chosen.to(torch.bfloat16)
        hidden = chosen @ self.inner  # (E, B k, M)
        hidden = F.gelu(hidden) if self.gate is None else F.silu(chosen @ self.gate) * hidden
        weighted = (hidden @ self.out) * gate.transpose(0, 1).flatten(1).unsqueeze(-1)  # (E, B k, D)
        return torch.zeros_like(x).flatten(0, 1).index_add(0, flat, weighted.flatten(0, 1).to(x.dtype)).view(B, T, D)


@dataclass
class ExpertState(State):
    """While decoding, experts under token choice have only so much room a sequence."""

    counters: Tensor  # (B, E) tokens that each expert took

    def clear(self) -> None:
        super().clear()
        self.counters.zero_()


class CountsExperts(Block):
    """How a block with experts is decoded (cache.py)."""

    mlp: Experts

    def new_state(self, batch: int, length: int) -> ExpertState:
        cache = super().new_state(batch, length).cache
        counters = torch.zeros(batch, self.mlp.config.experts, dtype=torch.long, device=cache.keys.device)
        return ExpertState(cache, counters)

    def extend_mlp(self, x: Tensor, tokens: Packed, state: State) -> Tensor:
        assert isinstance(state, ExpertState)
        used = state.counters[tokens.rows]  # (R, E)
        computed, routing = self.mlp(x, True, tokens.filled, used.unsqueeze(-1))
        state.counters[tokens.rows] = used + routing.taken.sum(dim=1)
        return computed


class MoEBlock(CountsExperts):
    """Attention as ever, then experts; integrated MoDE when some of them are no-ops."""

    def __init__(self, config: MoEConfig, sequence_length: int) -> None:
        super().__init__(config, Experts(config, sequence_length))

    def forward(self, x: Tensor, rope: Rope, causal: bool) -> tuple[Tensor, tuple[Routing, ...]]:
        x = x + self.attention(self.attention_norm(x), rope)
        computed, routing = self.mlp(self.mlp_norm(x), causal)
        return x + computed, (routing,)


class StagedBlock(CountsExperts, MoDBlock):
    """Routed around as a whole; tokens that go through attend to each other and meet experts."""

    def __init__(self, config: StagedConfig, capacity: float, sequence_length: int) -> None:
        experts = Experts(config, config.slots(capacity, sequence_length))
        MoDBlock.__init__(self, config, capacity, sequence_length, experts)

    def forward(self, x: Tensor, rope: Rope, causal: bool) -> tuple[Tensor, tuple[Routing, ...]]:
        index, gate, routing = self.select(x, causal)
        chosen = gather(x, index)  # (B, k, D)
        attended = self.attention(self.attention_norm(chosen), rope.at(index))
        real = routing.taken.gather(1, index)
        computed, experts = self.mlp(self.mlp_norm(chosen + attended), causal, real)
        return scatter_add(x, index, (attended + computed) * gate.unsqueeze(-1)), (routing, experts)
