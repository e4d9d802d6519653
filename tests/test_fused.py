"""The norm and the rotation against the formulas of their papers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from modexp.models.fused import RMSNorm, rotate
from modexp.models.transformer import Rope, rope_table


def test_rope_uses_true_positions() -> None:
    """Scores depend on the distance between true positions, so a shift of all of them changes nothing."""
    rope = Rope(rope_table(64, 8, 1e4))
    q, k = torch.randn(2, 1, 3, 1, 8)
    index = torch.tensor([[2, 9, 30]])

    def scores(positions: Tensor) -> Tensor:
        at = rope.at(positions)
        return rotate(q, at.turns).transpose(1, 2) @ rotate(k, at.turns).transpose(1, 2).mT

    torch.testing.assert_close(scores(index), scores(index + 17), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(scores(index), scores(torch.arange(3)[None]), atol=1e-3)


def test_rotation_is_the_papers() -> None:
    """Against the matrix of Su et al. 2021, equation 15, in float64; the compiler's real form gives the same."""
    x, turns = torch.randn(2, 5, 3, 8, dtype=torch.float64), rope_table(5, 8, 1e4)
    out = rotate(x.float(), turns)
    for t in range(5):
        R = torch.zeros(8, 8, dtype=torch.float64)
        for i in range(4):
            angle = t * 1e4 ** (-2 * i / 8)
            c, s = math.cos(angle), math.sin(angle)
            R[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = torch.tensor([[c, -s], [s, c]], dtype=torch.float64)
        torch.testing.assert_close(out[:, t].double(), x[:, t] @ R.T, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("compiling", [False, True])
def test_norm_and_rotation_match_plain_formulas(compiling: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and gradients, against nn.RMSNorm and the textbook's rotation."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    ours, plain = RMSNorm(16, eps=1e-6), torch.nn.RMSNorm(16, eps=1e-6)
    weight = torch.randn(16)
    for norm in (ours, plain):
        norm.weight.data.copy_(weight)
    x, grad = torch.randn(3, 5, 16), torch.randn(3, 5, 16)
    found = []
    for norm in (ours, plain):
        leaf = x.clone().requires_grad_()
        y = norm(leaf)
        y.backward(grad)
        found.append((y, leaf.grad, norm.weight.grad))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-6)

    turns = rope_table(5, 16, 1e4)
    cos, sin = turns[0, :, 0].unbind(-1)  # (5, P)
    leaf = x.clone().requires_grad_()
    rotate(leaf.unflatten(-1, (1, 16)), turns).flatten(-2).backward(grad)
    a, b = grad[..., ::2], grad[..., 1::2]  # the gradient is turned back
    expected = torch.stack((a * cos + b * sin, b * cos - a * sin), dim=-1).flatten(-2)
    torch.testing.assert_close(leaf.grad, expected, rtol=1e-5, atol=1e-6)
