"""A ledger of FLOPs: named terms, and the conventions that sum them, of one sequence of T tokens.

Exact whole numbers throughout: a multiply-add is two FLOPs, a term is what one block does for one sequence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from modexp.errors import UserError


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


@dataclass(frozen=True)
class Convention:
    """A way to count. ``count(term, T)`` is the forward FLOPs of one block for one sequence of T tokens.

    The backward pass is twice that, as all formulas of the literature have it; ``by_matmul`` takes it from each term.
    """

    description: str
    count: Callable[[Term, int], int]
    by_matmul: bool = False

    def backward(self, term: Term, T: int) -> int:
        return (term.backward if self.by_matmul else 2) * self.count(term, T)


def as_run(term: Term, T: int) -> int:
    """Every matmul on the tokens that take part, attention on their full k x k square."""
    return term.forward if term.is_matmul else 0


def causal_half(term: Term, T: int) -> int:
    """k(k+1)/2 pairs in the attention square, what a causal kernel computes."""
    return as_run(term, T) if term.causal_forward is None else term.causal_forward


def chinchilla(term: Term, T: int) -> int:
    """Hoffmann et al. 2022, App. F: the look-up as a one-hot matmul, 3 FLOPs a score for the softmax."""
    return term.forward if term.is_matmul or term.name in ("embedding.lookup", "attention.softmax") else 0


def kaplan(term: Term, T: int) -> int:
    """Kaplan et al. 2020, sec. 2.1: two FLOPs a token and parameter that it meets, embedding and head left out."""
    return 0 if term.name in EMBEDDING else 2 * round(term.params * term.share * T)


def every_parameter(term: Term, T: int) -> int:
    return 2 * term.params * T


SPARED = (("dense", "mlp.out"), ("dense", "mlp.down"))
EMBEDDING = ("embedding.lookup", "head")

CONVENTIONS: dict[str, Convention] = {
    "matmul": Convention("every matmul as run, as PyTorch's FlopCounterMode counts", as_run, by_matmul=True),
    "causal": Convention("as matmul, with the causal half of the attention square", causal_half, by_matmul=True),
    "chinchilla": Convention("matmuls, one-hot embedding, softmax (Hoffmann et al. 2022, App. F)", chinchilla),
    # N counts the weights that a matmul multiplies, a tied head's too: then 2 N + 4 L d T is the forward sum of all
    # matmuls as run. A routed block's weights weigh k/T, and its 4 d T are 4 d k, for k of T tokens.
    "palm": Convention("6 N + 12 L d T a token, N active in matmuls (Chowdhery et al. 2022, App. B)", as_run),
    "kaplan": Convention("6 N a token, N active, without embedding and head (Kaplan et al. 2020)", kaplan),
    "6n": Convention("6 N a token, N every parameter, whatever is routed", every_parameter),
}


@dataclass(frozen=True)
class Ledger:
    """All terms of one model on sequences of ``sequence_length`` tokens."""

    terms: tuple[Term, ...]
    sequence_length: int

    def forward(self, convention: str = "matmul", term: str = "") -> int:
        """FLOPs of one forward pass over one sequence; of the terms whose name begins with ``term``."""
        count = CONVENTIONS[convention].count
        return sum(t.count * count(t, self.sequence_length) for t in self.terms if t.name.startswith(term))

    def backward(self, convention: str = "matmul", term: str = "") -> int:
        """FLOPs of one backward pass over one sequence; of the terms whose name begins with ``term``."""
        count = CONVENTIONS[convention].backward
        return sum(t.count * count(t, self.sequence_length) for t in self.terms if t.name.startswith(term))

    def training(self, convention: str = "matmul", term: str = "") -> int:
        """FLOPs that training on one sequence takes: forward and backward."""
        return self.forward(convention, term) + self.backward(convention, term)

    def recomputed(self) -> int:
        """FLOPs that activation checkpointing adds to training on one sequence: every block's matmuls once more, but
        the last of a dense block, which nothing asks for. Part of no convention and of no budget."""
        again = (t for t in self.terms if t.block != "model" and t.is_matmul)
        return sum(t.count * t.forward for t in again if (t.block, t.name) not in SPARED)

    @property
    def params_total(self) -> int:
        return sum(t.count * t.params for t in self.terms)

    @property
    def params_non_embedding(self) -> int:
        """All but the token embedding and the head (Kaplan et al. 2020)."""
        return sum(t.count * t.params for t in self.terms if t.name not in EMBEDDING)

    @property
    def params_active(self) -> int:
        """Average over tokens: a block that takes k of T tokens weighs k/T."""
        return round(sum(t.count * t.params * t.share for t in self.terms))

    def to_json(self) -> list[dict[str, Any]]:
        return [asdict(term) for term in self.terms]

    @classmethod
    def from_json(cls, terms: list[dict[str, Any]], sequence_length: int) -> Ledger:
        """The inverse of :meth:`to_json`: the ledger that a run stored. UserError for terms of another make."""
        try:
            return cls(tuple(Term(**term) for term in terms), sequence_length)
        except TypeError as error:
            raise UserError(
                f"the stored ledger cannot be read: {error}", "read it with the modexp that wrote it"
            ) from None
