"""Terms of the baseline, which other kinds build on.

T tokens a sequence, k of them in a block, d width, V vocabulary. Every formula is one matmul of the model:
(m, n) x (n, p) takes 2 m n p FLOPs.
"""

from __future__ import annotations

from dataclasses import fields

from modexp.config.model import BaselineConfig, ModelConfig
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
    terms += [
        Term(f"attention.{name}", block, count, square, share=share, causal_forward=half)
        for name in ("scores", "values")
    ]
    # softmax: 3 FLOPs a score (Hoffmann et al. 2022, App. F)
    terms.append(Term("attention.softmax", block, count, 3 * heads * k * k, share=share, is_matmul=False))
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


def dense_twin(model: ModelConfig) -> BaselineConfig:
    """The dense model of the same shape."""
    shared = {f.name: getattr(model, f.name) for f in fields(BaselineConfig) if f.name != "kind"}
    return BaselineConfig(**shared)
