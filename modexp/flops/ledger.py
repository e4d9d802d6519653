"""A ledger of FLOPs: named terms, and the conventions that sum them.

Exact whole numbers throughout: a multiply-add is two FLOPs, a term is what one block does for one sequence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Term:
    """One kind of work in one kind of block.

    ``forward`` is FLOPs a sequence in one such block, as run: attention on the full k x k square.
    ``backward`` is FLOPs of the backward pass over those of the forward pass: 2 for a matmul, 1 where its input
    needs no gradient, 0 where nothing flows back. Terms that are not matmuls (``is_matmul=False``) are kept so
    that a finished study can be read under other conventions, but the matmul sums leave them out.
    ``share`` is the share of a sequence's tokens that take part: it weighs the active parameters.
    """

    name: str
    block: str  # dense | routed | model
    count: int  # blocks of that kind
    forward: int
    backward: int = 2
    params: int = 0  # of one block
    share: float = 1.0
    is_matmul: bool = True
    causal_forward: int | None = None  # where the causal half is not computed; None: as forward


def as_run(term: Term) -> int:
    """``matmul``: every matmul as run, what PyTorch's FlopCounterMode counts."""
    return term.forward if term.is_matmul else 0


def causal_half(term: Term) -> int:
    """``causal``: as ``matmul`` with k(k+1)/2 pairs in the attention square, what a causal kernel computes."""
    return as_run(term) if term.causal_forward is None else term.causal_forward


CONVENTIONS: dict[str, Callable[[Term], int]] = {"matmul": as_run, "causal": causal_half}


@dataclass(frozen=True)
class Ledger:
    """All terms of one model on sequences of ``sequence_length`` tokens."""

    terms: tuple[Term, ...]
    sequence_length: int

    def forward(self, convention: str = "matmul", term: str = "") -> int:
        """FLOPs of one forward pass over one sequence; of the terms whose name begins with ``term``."""
        count = CONVENTIONS[convention]
        return sum(t.count * count(t) for t in self.terms if t.name.startswith(term))

    def backward(self, convention: str = "matmul") -> int:
        """FLOPs of one backward pass over one sequence."""
        count = CONVENTIONS[convention]
        return sum(t.count * t.backward * count(t) for t in self.terms)

    def training(self, convention: str = "matmul") -> int:
        """FLOPs that training on one sequence takes: forward and backward."""
        return self.forward(convention) + self.backward(convention)

    @property
    def params_total(self) -> int:
        return sum(t.count * t.params for t in self.terms)

    @property
    def params_non_embedding(self) -> int:
        """All but the token embedding and the head (Kaplan et al. 2020)."""
        left_out = ("embedding.lookup", "head")
        return sum(t.count * t.params for t in self.terms if t.name not in left_out)

    @property
    def params_active(self) -> int:
        """Average over tokens: a block that takes k of T tokens weighs k/T."""
        return round(sum(t.count * t.params * t.share for t in self.terms))

    def to_json(self) -> list[dict[str, Any]]:
        return [asdict(term) for term in self.terms]
