"""Bytes that training takes, by shape, precision and micro-batch; and how many sequences a pass therefore holds."""

from __future__ import annotations

from modexp.config.data import DataConfig
from modexp.config.model import CHUNK_LOGITS, EVAL_LOGITS, ModelConfig
from modexp.kinds import ledger

SHARE = 0.5  # of the free memory that a plan relies on: allocators fragment, other processes come
LARGEST_TOKENS = 65_536  # of a micro-batch: beyond it nothing gets faster
EVAL_TOKENS = 8192  # tokens a forward pass of an evaluation, about

STATE = {"fp32": 16, "bf16": 18}  # bytes a parameter: weight, gradient, Adam's two moments; the weight cast to bf16
STORING = 20  # while a checkpoint is written: no gradients, but a copy of the moments

# Bytes that the backward pass keeps, by precision, of
# - a width of the residual stream in a block: norms' inputs and outputs, q, k, v, the attention's output, two
#   residuals; in bf16 their casts too
# - a hidden unit of the MLP: before and after the activation
# - a width in a routed block, of the tokens that pass by
# - a logit: itself, its float copy, its softmax, its gradient
# Fitted to the resident high water of a step on CPU (docs/cost.md), which holds what an allocator keeps besides.
KEPT = {"fp32": (48.0, 8.0, 1.0, 15.0), "bf16": (30.0, 4.0, 12.0, 15.0)}
LOGIT = {"fp32": 8, "bf16": 10}  # bytes of a logit that is evaluated only


def training_bytes_per_token(
    model: ModelConfig, data: DataConfig, precision: str = "fp32", recompute: bool = False
) -> float:
    """Bytes that the backward pass keeps a token, logits left out; a block weighs by the share of tokens it takes.

    With ``recompute`` (activation checkpointing) each block keeps the stream that enters it, in fp32, and one block
    at a time the rest, counted as the mean block.
    """
    of_width, of_hidden, of_routed, _ = KEPT[precision]
    layers, d, _ = model.shape
    T = data.sequence_length
    terms = ledger(model, data).terms
    blocks = sum(t.count * t.forward for t in terms if t.name == "attention.qkv") / (6 * T * d * d)
    inner = sum(t.count * t.forward for t in terms if t.name.endswith((".in", ".up", ".gate"))) / (2 * T * d)
    routed = len(model.routed_layers())
    kept = of_width * blocks * d + of_hidden * inner + of_routed * routed * d
    return kept / layers + 4 * layers * d if recompute else kept


def step_bytes(model: ModelConfig, data: DataConfig, micro: int, precision: str, recompute: bool = False) -> float:
    """Most that a training step holds, ``micro`` sequences a pass."""
    tokens = micro * data.sequence_length
    kept = tokens * training_bytes_per_token(model, data, precision, recompute)
    logits = min(tokens * data.vocab_size, CHUNK_LOGITS) * KEPT[precision][-1]
    return STATE[precision] * ledger(model, data).params_total + kept + logits


def peak_bytes(model: ModelConfig, data: DataConfig, micro: int, precision: str, recompute: bool = False) -> float:
    """Most that a run holds beside its libraries: in a step, an evaluation or while it writes a checkpoint."""
    params = ledger(model, data).params_total
    tokens = max(1, EVAL_TOKENS // data.sequence_length) * data.sequence_length
    # no gradients, and one block at a time: the stream, q, k, v and the MLP before and after its activation, in fp32;
    # but the logits of many tokens and their float log-softmax. Twice: what is freed does not fit what comes next
    block = 4 * tokens * (6 * model.shape[1] + 2 * model.mlp_hidden)
    evaluation = 12 * params + 2 * (block + min(tokens * data.vocab_size, EVAL_LOGITS) * LOGIT[precision])
    return max(step_bytes(model, data, micro, precision, recompute), evaluation, STORING * params)


def micro_batch(
    model: ModelConfig,
    data: DataConfig,
    batch: int,
    params: int,
    free_bytes: float,
    precision: str = "fp32",
    recompute: bool = False,
) -> int:
    """Sequences a pass: as many as memory allows beside weights, gradients and Adam's moments."""
    available = SHARE * free_bytes - STATE[precision] * params
    of_token, of_logit = training_bytes_per_token(model, data, precision, recompute), KEPT[precision][-1]
    tokens = available / (of_token + data.vocab_size * of_logit)
    if tokens * data.vocab_size > CHUNK_LOGITS:
        tokens = (available - CHUNK_LOGITS * of_logit) / of_token
    return max(1, min(batch, int(min(LARGEST_TOKENS, tokens) / data.sequence_length)))
