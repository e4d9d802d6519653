"""The norm, the rotation and the products, written so that a CPU runs them in few passes over the stream.

PyTorch runs ``nn.RMSNorm`` on a CPU, and RoPE on halves of a head anywhere, as chains of elementwise kernels; on narrow
models they cost as much as the matmuls (tests/benchmarks/nanogpt.py measures). Where a compiler fuses such chains, and
for the norm on GPUs, which have a kernel for it, the plain formula is left to them.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class RMSNorm(nn.RMSNorm):
    """Zhang and Sennrich 2019: x / rms(x) x weight, over the last dimension."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(x)
        assert self.eps is not None
        if not torch.is_grad_enabled():  # of a single token, calling a Function costs more than the kernels
            return normed(x, self.weight, self.eps)[0]
        return _Norm.apply(x, self.weight, self.eps)


def normed(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The norm, and 1 / rms(x) (..., 1)."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    scale = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return (x * scale).mul_(weight), scale


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        y, scale = normed(x, weight, eps)
        ctx.save_for_backward(x, weight, scale)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scale = ctx.saved_tensors
        width = x.shape[-1]
        # LayerNorm's kernel, told that the mean is 0 and 1/deviation is ours, subtracts one term too many: the mean of
        # grad x weight, which is added back
        dx, dweight, _ = torch.ops.aten.native_layer_norm_backward(
            grad, x, [width], torch.zeros_like(scale), scale, weight, None, [True, True, False]
        )
        return dx.add_((grad @ weight).unsqueeze(-1).mul_(scale).div_(width)), dweight, None


@cache
def onednn_leads() -> bool:
    """Whether oneDNN multiplies faster here than MKL, PyTorch's choice in fp32: on AMD's CPUs MKL takes up to a fifth
    longer (tests/benchmarks/nanogpt.py: 4 to 7 % of a step)."""
    return torch.backends.mkldnn.is_available() and "AMD" in torch.cpu.get_capabilities().get("cpu_name", "")


ONEDNN_ROWS = 512  # fewer are multiplied as fast by either, or faster by MKL


def by_hand(x: Tensor) -> bool:
    """Whether ``x`` meets a CPU in fp32, uncompiled: there it matters which kernel runs, and every pass over memory."""
    lower = x.dtype is not torch.float32 or torch.is_autocast_enabled("cpu")
    return x.device.type == "cpu" and not lower and not torch.compiler.is_compiling()


def product(x: Tensor, weight: Tensor) -> Tensor:
    """x W^T: x (..., D), ``weight`` (out, D)."""
    if by_hand(x) and x.numel() >= ONEDNN_ROWS * x.shape[-1] and onednn_leads():
        return _Product.apply(x, weight) if torch.is_grad_enabled() else by_onednn(x, weight)
    return F.linear(x, weight)


def by_onednn(x: Tensor, weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")  # as PyTorch's compiler calls it


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return by_onednn(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return by_onednn(grad, weight.mT), grad.flatten(0, -2).mT @ x.flatten(0, -2)


class Linear(nn.Linear):
    """Without a bias."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__(into, out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.dtype is torch.bfloat16:  # as a decoder may keep them
            x = x.to(torch.bfloat16)
        return product(x, self.weight)


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    """Rotate pairs (2i, 2i + 1) of each head to their positions: Su et al. 2021, sec. 3.4.2.

    x (B, k, H, 2P); ``turns`` (B or 1, k, 1, P, 2) holds cosines and sines. For a compiler, which knows no complex
    numbers; :func:`rotate_in_place` is one complex multiplication.
    """
    (a, b), (cos, sin) = x.unflatten(-1, (-1, 2)).unbind(-1), turns.to(x.dtype).unbind(-1)
    return torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)


def turns_of_all(turns: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """``turns`` (1, k, 1, P, 2) for the heads of q and of k and, standing still, of v, (1, k, 3H, P, 2), and their
    inverse. One pass along all of qkv takes half the time of one along two thirds of each token."""
    stay = torch.zeros_like(turns)
    stay[..., 0] = 1
    there = torch.cat([turns] * 2 * heads + [stay] * heads, dim=2)
    return there, there * there.new_tensor((1, -1))


def rotated(qkv: Tensor, turns: Tensor, heads: int, of_all: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, ...]:
    """q, k rotated to their positions and v, (B, k, H, 2P) each, of ``qkv`` (B, k, 3H, 2P), which they take the place
    of: nothing else may read it. ``of_all``: :func:`turns_of_all` of ``turns``, where they serve several blocks."""
    if torch.compiler.is_compiling():
        q, key = rotate(qkv[:, :, : 2 * heads], turns).split(heads, dim=2)
        return q, key, qkv[:, :, 2 * heads :]
    if not torch.is_grad_enabled():
        return rotate_in_place(qkv, turns, heads)
    if of_all is None:
        return _Rotated.apply(qkv, turns, heads)
    return _AllRotated.apply(qkv, *of_all, heads)


def rotate_in_place(qkv: Tensor, turns: Tensor, heads: int) -> tuple[Tensor, ...]:
    pairs = (qkv if turns.shape[2] > 1 else qkv[:, :, : 2 * heads]).unflatten(-1, (-1, 2))
    if qkv.dtype is torch.float32:
        torch.view_as_complex(pairs).mul_(torch.view_as_complex(turns))
    else:
        pairs.copy_(torch.view_as_real(torch.view_as_complex(pairs.float()).mul_(torch.view_as_complex(turns))))
    return qkv.split(heads, dim=2)


class _Rotated(torch.autograd.Function):
    """In place, which autograd need not know, as the product that ``qkv`` comes from does not keep it. The backward
    pass writes each gradient once, where autograd's would copy them together twice."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, turns: Tensor, heads: int) -> tuple[Tensor, ...]:
        ctx.save_for_backward(turns)
        ctx.heads = heads
        return rotate_in_place(qkv.detach(), turns, heads)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dq: Tensor, dkey: Tensor, dv: Tensor) -> tuple[Tensor, None, None]:
        (turns,) = ctx.saved_tensors
        back = torch.view_as_complex(turns).conj().resolve_conj()
        grads = dq.new_empty(*dq.shape[:2], 3, ctx.heads, dq.shape[-1])  # (B, k, 3, H, 2P)
        for place, grad in enumerate((dq, dkey)):
            out, pairs = grads[:, :, place].unflatten(-1, (-1, 2)), grad.unflatten(-1, (-1, 2)).float()
            if pairs.stride(-1) != 1:  # as attention on the meta device leaves it
                pairs = pairs.contiguous()
            if out.dtype is torch.float32:
                torch.mul(torch.view_as_complex(pairs), back, out=torch.view_as_complex(out))
            else:
                out.copy_(torch.view_as_real(torch.view_as_complex(pairs) * back))
        grads[:, :, 2] = dv
        return grads.flatten(2, 3), None, None


class _AllRotated(torch.autograd.Function):
    """As :class:`_Rotated`, along all heads at once."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, there: Tensor, back: Tensor, heads: int) -> tuple[Tensor, ...]:
        ctx.save_for_backward(back)
        return rotate_in_place(qkv.detach(), there, heads)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (back,) = ctx.saved_tensors
        grad = torch.cat(grads, dim=2)  # (B, k, 3H, 2P)
        torch.view_as_complex(grad.unflatten(-1, (-1, 2))).mul_(torch.view_as_complex(back))
        return grad, None, None, None
