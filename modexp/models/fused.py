"""The norm and the rotation, written so that a CPU runs them in few passes over the stream.

PyTorch runs ``nn.RMSNorm`` on a CPU, and RoPE on halves of a head anywhere, as chains of elementwise kernels; on narrow
models they cost as much as the matmuls (tests/benchmarks/nanogpt.py measures). Where a compiler fuses such chains, and
for the norm on GPUs, which have a kernel for it, the plain formula is left to them.
"""

from __future__ import annotations

from typing import Any

import torch
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


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    """Rotate pairs (2i, 2i + 1) of each head to their positions: Su et al. 2021, sec. 3.4.2.

    x (B, k, H, 2P); ``turns`` (B or 1, k, 1, P, 2) holds cosines and sines. One complex multiplication; a compiler,
    which knows no complex numbers, gets its real form.
    """
    pairs = x.unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():
        (a, b), (cos, sin) = pairs.unbind(-1), turns.to(x.dtype).unbind(-1)
        return torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)
    turned = torch.view_as_complex(pairs.float()) * torch.view_as_complex(turns)
    return torch.view_as_real(turned).flatten(-2).to(x.dtype)
