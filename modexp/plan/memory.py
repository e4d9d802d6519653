"""How many sequences fit in one forward and backward pass."""

from __future__ import annotations

from modexp.config.data import DataConfig
from modexp.config.model import ModelConfig
from modexp.kinds import ledger

SHARE = 0.5  # of the free memory that a plan relies on: allocators fragment, other processes come
LARGEST_TOKENS = 65_536  # of a micro-batch: beyond it nothing gets faster


def training_bytes_per_token(model: ModelConfig, data: DataConfig) -> int:
    """Bytes that the backward pass keeps a token, everything in fp32: an upper estimate.

    A block keeps its norms' inputs and outputs, q, k, v before and after RoPE, the attention's output and two
    residuals (about 16 widths), and the MLP's hidden units before and after the activation; the head keeps the
    logits, their float copy and their gradient.
    """
    _, d, _ = model.shape
    T = data.sequence_length
    terms = ledger(model, data).terms
    blocks = sum(t.count * t.forward for t in terms if t.name == "attention.qkv") / (6 * T * d * d)
    inner = sum(t.count * t.forward for t in terms if t.name.endswith((".in", ".up", ".gate"))) / (2 * T * d)
    routed = len(model.routed_layers())
    return round(4 * (blocks * 16 * d + 2 * inner + routed * 4 * d + 3 * data.vocab_size))


def micro_batch(model: ModelConfig, data: DataConfig, batch: int, params: int, free_bytes: int) -> int:
    """Sequences a pass: as many as memory allows beside weights, gradients and Adam's moments (16 bytes each)."""
    available = SHARE * free_bytes - 16 * params
    tokens = min(LARGEST_TOKENS, available / training_bytes_per_token(model, data))
    return max(1, min(batch, int(tokens / data.sequence_length)))
