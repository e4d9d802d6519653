"""Terms of models with experts: each expert computes on the slots it has room for, the router sees every token."""

from __future__ import annotations

from collections import Counter

from modexp.config.experts import ExpertsConfig, MoEConfig, StagedConfig
from modexp.flops.ledger import Ledger, Term
from modexp.flops.routed import mod_ledger, predictor
from modexp.flops.transformer import block_terms, model_terms


def expert_terms(model: ExpertsConfig, block: str, count: int, tokens: int, T: int) -> list[Term]:
    """Router, predictor and experts of blocks in which ``tokens`` of the T tokens of a sequence meet experts."""
    _, d, _ = model.shape
    hidden, E = model.mlp_hidden, model.experts
    slots = model.expert_slots(tokens)
    paths = E + model.noop_experts
    names = ("gate", "up", "down") if model.mlp == "swiglu" else ("in", "out")
    terms = [
        # an expert's weights serve slots of T tokens
        Term(f"experts.{name}", block, count, 2 * E * slots * d * hidden, 2, E * d * hidden, slots / T)
        for name in names
    ]
    terms.append(Term("experts.router", block, count, 2 * tokens * d * paths, 2, d * paths, tokens / T))
    if model.expert_routing == "expert_choice":
        terms += predictor(model, tokens, model.predictor_hidden, E, count, tokens / T, "experts.predictor")
    return terms


def without_mlp(terms: list[Term]) -> list[Term]:
    return [term for term in terms if not term.name.startswith("mlp.")]


def moe_ledger(model: MoEConfig, vocab: int, T: int) -> Ledger:
    layers, _, _ = model.shape
    special = len(model.routed_layers())
    terms = block_terms(model, "dense", layers - special, T, 1.0)
    terms += without_mlp(block_terms(model, "experts", special, T, 1.0))
    terms += expert_terms(model, "experts", special, T, T)
    return Ledger((*terms, *model_terms(model, vocab, T)), T)


def staged_ledger(model: StagedConfig, vocab: int, T: int) -> Ledger:
    """As Mixture-of-Depths, with experts among the k tokens that go through."""
    depth = mod_ledger(model, vocab, T)
    terms = [t for t in depth.terms if not (t.block == "routed" and t.name.startswith("mlp."))]
    for capacity, count in Counter(model.capacities()).items():
        terms += expert_terms(model, "routed", count, model.slots(capacity, T), T)
    return Ledger(tuple(terms), T)
