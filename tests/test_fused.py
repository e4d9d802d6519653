"""The norm and the rotation against the formulas of their papers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from modexp.models import fused
from modexp.models.fused import ONEDNN_ROWS, RMSNorm, product, rotate, rotated, turns_of_all
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


@pytest.mark.parametrize("how", ["compiled", "training", "all heads at once", "decoding"])
def test_rotation_is_the_papers(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the matrix of Su et al. 2021, equation 15, in float64, and its transpose for the gradient."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: how == "compiled")
    x, turns = torch.randn(2, 5, 9, 8, dtype=torch.float64), rope_table(5, 8, 1e4)  # three heads of q, k and v
    leaf = x.float().requires_grad_()
    with torch.set_grad_enabled(how != "decoding"):
        q, k, v = rotated(leaf * 1, turns, 3, turns_of_all(turns, 3) if how == "all heads at once" else None)
    out, grad = torch.cat((q, k), dim=2), torch.randn(2, 5, 9, 8)
    assert torch.equal(v, leaf[:, :, 6:])
    if how != "decoding":
        torch.autograd.backward((q, k, v), grad.split(3, dim=2))
        assert leaf.grad is not None
        assert torch.equal(leaf.grad[:, :, 6:], grad[:, :, 6:])
    for t in range(5):
        R = torch.zeros(8, 8, dtype=torch.float64)
        for i in range(4):
            angle = t * 1e4 ** (-2 * i / 8)
            c, s = math.cos(angle), math.sin(angle)
            R[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = torch.tensor([[c, -s], [s, c]], dtype=torch.float64)
        torch.testing.assert_close(out[:, t].double(), x[:, t, :6] @ R.T, rtol=1e-5, atol=1e-6)
        if leaf.grad is not None:
            back = grad[:, t, :6].double() @ R
            torch.testing.assert_close(leaf.grad[:, t, :6].double(), back, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="a PyTorch without oneDNN")
@pytest.mark.parametrize("rows", [ONEDNN_ROWS - 1, ONEDNN_ROWS])
def test_product_by_onednn_is_the_plain_one(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and both gradients against float64; where there are rows enough, by oneDNN, and only there."""
    calls: list[int] = []
    by_onednn = fused.by_onednn
    monkeypatch.setattr(fused, "onednn_leads", lambda: True)
    monkeypatch.setattr(fused, "by_onednn", lambda x, weight: calls.append(1) or by_onednn(x, weight))
    x, weight = torch.randn(1, rows, 24, requires_grad=True), torch.randn(40, 24, requires_grad=True)
    grad = torch.randn(40, rows).T[None]  # as it may come: not contiguous
    found = product(x, weight)
    dx, dweight = torch.autograd.grad(found, (x, weight), grad)
    assert len(calls) == (2 if rows >= ONEDNN_ROWS else 0)  # the gradient of the weights is PyTorch's
    X, W, G = x.detach().double(), weight.detach().double(), grad.double()
    torch.testing.assert_close(found.double(), X @ W.T, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(dx.double(), G @ W, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(dweight.double(), G[0].T @ X[0], rtol=1e-4, atol=1e-3)
    with torch.no_grad():
        assert torch.equal(product(x, weight), found)


@pytest.mark.parametrize("compiling", [False, True])
def test_norm_matches_the_plain_formula(compiling: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and gradients, against nn.RMSNorm."""
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
