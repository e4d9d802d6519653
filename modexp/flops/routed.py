"""Terms of models whose blocks take only some tokens: a router, then attention and MLP among the slots that run."""

from __future__ import annotations

from collections import Counter

from modexp.config.routing import (
    LayersConfig,
    MoDConfig,
    RoutedConfig,
    StochasticConfig,
    ThresholdConfig,
    TokenChoiceConfig,
)
from modexp.flops.ledger import Ledger, Term
from modexp.flops.transformer import block_terms, model_terms


def routed_ledger(model: RoutedConfig, vocab: int, T: int, routing: list[Term]) -> Ledger:
    """Dense blocks on T tokens, routed ones on their slots k: linear terms cost k, the attention square k^2."""
    layers, _, _ = model.shape
    blocks = block_terms(model, "dense", layers - len(model.routed_layers()), T, 1.0)
    for capacity, count in Counter(model.capacities()).items():
        k = model.slots(capacity, T)
        blocks += block_terms(model, "routed", count, k, k / T)
    return Ledger((*blocks, *routing, *model_terms(model, vocab, T)), T)


def router(model: RoutedConfig, T: int, paths: int, learns: bool) -> Term:
    """One weight a token and path; where no gradient reaches the weights, the backward pass is empty."""
    _, d, _ = model.shape
    return Term("router", "routed", len(model.routed_layers()), 2 * T * d * paths, 2 if learns else 0, d * paths)


def predictor(
    model: LayersConfig, tokens: int, hidden: int, outputs: int, count: int, share: float, name: str = "predictor"
) -> list[Term]:
    """An MLP behind a stop-gradient: of its first matmul only the weights' half of the backward pass runs."""
    _, d, _ = model.shape
    first, last = 2 * tokens * d * hidden, 2 * tokens * hidden * outputs
    return [
        Term(f"{name}.in", "routed", count, first, 1, d * hidden + hidden, share),
        Term(f"{name}.out", "routed", count, last, 2, hidden * outputs + outputs, share),
    ]


def mod_ledger(model: MoDConfig, vocab: int, T: int) -> Ledger:
    # under gate none the router decides through its order alone, unless the auxiliary loss reads its weights
    routing = [router(model, T, 1, learns=model.gate != "none" or model.causal == "auxiliary")]
    if model.causal == "predictor":
        routing += predictor(model, T, model.predictor_hidden, 1, len(model.routed_layers()), 1.0)
    return routed_ledger(model, vocab, T, routing)


def stochastic_ledger(model: StochasticConfig, vocab: int, T: int) -> Ledger:
    return routed_ledger(model, vocab, T, [])


def token_choice_ledger(model: TokenChoiceConfig, vocab: int, T: int) -> Ledger:
    return routed_ledger(model, vocab, T, [router(model, T, 2, learns=True)])  # the balance loss reads every weight


def threshold_ledger(model: ThresholdConfig, vocab: int, T: int) -> Ledger:
    return routed_ledger(model, vocab, T, [router(model, T, 1, learns=model.gate != "none")])
