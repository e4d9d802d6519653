"""Head and loss in one, chunk by chunk: a vocabulary of 128k must not own the memory.

A chunk's logits serve for the loss and for its gradients, and are gone before the next chunk: nothing is computed
twice. PyTorch 2.13 has ``linear_cross_entropy``, which is neither compiled nor under autocast, and which 2.11 lacks.

N tokens, n of them in a chunk, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from modexp.config.model import CHUNK_LOGITS, EVAL_LOGITS


def head_loss(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats a token of the logits x W^T: x (B, T, D), ``weight`` (V, D), ``targets`` (B, T), all
    in [0, V): none is left out."""
    x, targets = x.flatten(0, 1), targets.flatten()
    n = max(1, (CHUNK_LOGITS if torch.is_grad_enabled() else EVAL_LOGITS) // len(weight))
    if len(targets) <= n:
        return F.cross_entropy(F.linear(x, weight).float(), targets)
    if torch.is_grad_enabled():
        return _HeadLoss.apply(x, weight, targets, n)
    chunks = zip(x.split(n), targets.split(n), strict=True)
    return torch.stack([nll(log_p(part, weight), wanted) for part, wanted in chunks]).sum() / len(targets)


def log_p(x: Tensor, weight: Tensor) -> Tensor:
    """(n, V), in fp32 whatever the precision of the matmul."""
    return F.log_softmax(F.linear(x, weight), dim=-1, dtype=torch.float32)


def nll(log_p: Tensor, targets: Tensor) -> Tensor:
    return -log_p.gather(1, targets[:, None]).sum()


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, n: int) -> Tensor:
        total, dx, dweight = x.new_zeros((), dtype=torch.float32), [], None
        for part, wanted in zip(x.split(n), targets.split(n), strict=True):
            p = log_p(part, weight)  # (n, V)
            total = total + nll(p, wanted)
            # d loss / d logits = softmax - one-hot
            p = p.exp_().scatter_add_(1, wanted[:, None], p.new_full((len(part), 1), -1.0))
            dx.append(torch.mm(p, weight))
            more = torch.mm(p.mT, part)
            dweight = more.float() if dweight is None else dweight.add_(more)
        ctx.save_for_backward(torch.cat(dx), dweight)
        ctx.types = x.dtype, weight.dtype, len(targets)
        return total / len(targets)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        dx, dweight = ctx.saved_tensors
        x_type, weight_type, count = ctx.types
        scale = grad / count
        return (dx * scale).to(x_type), (dweight * scale).to(weight_type), None, None
