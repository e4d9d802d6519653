"""Terms of the baseline and of Mixture-of-Depths.

T tokens a sequence, k of them in a block, d width, V vocabulary. Every formula is one matmul of the model:
(m, n) x (n, p) takes 2 m n p FLOPs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from modexp.config.data import DataConfig
from modexp.config.model import BaselineConfig, MoDConfig, ModelConfig
from modexp.flops.ledger import Ledger, Term


def block_terms(model: ModelConfig, block: str, count: int, k: int, share: float) -> list[Term]:
    """Attention and MLP among ``k`` tokens."""
    _, d, heads = model.shape
    hidden = model.mlp_hidden
    square = 2 * k * k * d
    half = k * (k + 1) * d
    gated = [("mlp.gate", d * hidden)] if model.mlp == "swiglu" else []
    linear = [
        ("attention.qkv", 3 * d * d),
        ("attention.out", d * d),
        *gated,
        ("mlp.up" if gated else "mlp.in", d * hidden),
        ("mlp.down" if gated else "mlp.out", hidden * d),
    ]
    terms = [Term(name, block, count, 2 * k * params, 2, params, share) for name, params in linear]
    terms += [Term(f"attention.{name}", block, count, square, causal_forward=half) for name in ("scores", "values")]
    # softmax: 3 FLOPs a score (Hoffmann et al. 2022, App. F)
    terms.append(Term("attention.softmax", block, count, 3 * heads * k * k, is_matmul=False))
    # two norms (4 d), RoPE on q and k (6 d), two residuals (2 d), the activation (about 8 a hidden unit)
    elementwise = k * (16 * d + 8 * hidden)
    terms.append(Term("elementwise", block, count, elementwise, params=2 * d, share=share, is_matmul=False))
    return terms


def model_terms(model: ModelConfig, vocab: int, T: int) -> list[Term]:
    """Embedding, last norm and head."""
    _, d, _ = model.shape
    return [
        # a look-up multiplies nothing; Chinchilla counts it as the one-hot matmul it could be
        Term("embedding.lookup", "model", 1, 2 * T * vocab * d, params=vocab * d, is_matmul=False),
        Term("elementwise", "model", 1, 4 * T * d, params=d, is_matmul=False),
        Term("head", "model", 1, 2 * T * d * vocab, params=0 if model.tie_embeddings else d * vocab),
    ]


def baseline_ledger(model: ModelConfig, vocab: int, T: int) -> Ledger:
    layers, _, _ = model.shape
    return Ledger((*block_terms(model, "dense", layers, T, 1.0), *model_terms(model, vocab, T)), T)


def mod_ledger(model: MoDConfig, vocab: int, T: int) -> Ledger:
    """Raposo et al. 2024, sec. 3: routed blocks cost k in linear terms and k x k in attention; routers see all T."""
    layers, d, _ = model.shape
    routed = len(model.routed_layers())
    k, w = model.routed_tokens(T), model.predictor_hidden
    routing = [
        # under gate none the router decides through its order alone, so no gradient reaches it
        Term("router", "routed", routed, 2 * T * d, 0 if model.gate == "none" else 2, d),
        # the predictor reads its input behind a stop-gradient: only its weights need the backward matmul
        Term("predictor.in", "routed", routed, 2 * T * d * w, 1, d * w + w),
        Term("predictor.out", "routed", routed, 2 * T * w, 2, w + 1),
    ]
    blocks = block_terms(model, "dense", layers - routed, T, 1.0)
    blocks += block_terms(model, "routed", routed, k, k / T)
    return Ledger((*blocks, *routing, *model_terms(model, vocab, T)), T)


LEDGERS: dict[str, Callable[[Any, int, int], Ledger]] = {"baseline": baseline_ledger, "mod": mod_ledger}


def ledger(model: ModelConfig, data: DataConfig) -> Ledger:
    """The ledger of a model whose shape is filled, on the data's vocabulary and sequence length."""
    return LEDGERS[model.kind](model, data.vocab_size, data.sequence_length)


def realised_forward(model: ModelConfig, data: DataConfig, capacities: list[float], convention: str) -> float:
    """Forward FLOPs per token when routed block i takes the share ``capacities[i]`` of the tokens, as a causal
    router does that is free to take more or fewer than the top-k."""
    T = data.sequence_length
    planned = ledger(model, data)
    routed = len(capacities)
    block = block_terms(model, "routed", 1, model.routed_tokens(T), 1.0)
    rest = planned.forward(convention) - routed * Ledger(tuple(block), T).forward(convention)
    taken = [block_terms(model, "routed", 1, round(c * T), 1.0) for c in capacities]
    return (rest + sum(Ledger(tuple(terms), T).forward(convention) for terms in taken)) / T


def dense_twin(model: ModelConfig) -> ModelConfig:
    """The dense model of the same shape."""
    shared = {f.name: getattr(model, f.name) for f in fields(BaselineConfig) if f.name != "kind"}
    return BaselineConfig(**shared)
