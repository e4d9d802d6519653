"""The order of training sequences."""

from __future__ import annotations

import hashlib

import numpy as np

from modexp.data import order


def test_an_epoch_is_a_permutation_that_stays_within_blocks() -> None:
    n, block = 1000, 128
    first = order.indices(7, 0, n, block, n)
    second = order.indices(7, n, 2 * n, block, n)
    for epoch in (first, second):
        assert sorted(epoch) == list(range(n))
        assert (epoch // block == np.arange(n) // block).all()
    assert (first != second).mean() > 0.9
    assert (first != order.indices(8, 0, n, block, n)).mean() > 0.9
    assert (first != np.arange(n)).mean() > 0.9


def test_order_is_uniform_enough() -> None:
    # mean over 4,000 seeds of what stands at each of 8 places: 3.5, standard error 2.29 / sqrt(4000) = .036
    orders = np.stack([order.indices(seed, 0, 8, 8) for seed in range(4000)])
    assert np.abs(orders.mean(axis=0) - 3.5).max() < 4 * 0.036


def test_order_does_not_depend_on_how_it_is_asked_for_or_on_what_follows() -> None:
    whole = order.indices(3, 0, 700, 64, 300)
    pieces = np.concatenate([order.indices(3, i, min(i + 37, 700), 64, 300) for i in range(0, 700, 37)])
    assert (whole == pieces).all()
    # a corpus that goes on has the same order as far as its whole blocks reach
    assert (order.indices(3, 0, 256, 64) == whole[:256]).all()


def test_order_is_the_same_forever() -> None:
    # splitmix64 of Vigna's reference code from state 0: its first output
    assert order.splitmix64(np.zeros(1, np.uint64))[0] == np.uint64(0xE220A8397B1DCDAF)
    digest = hashlib.sha256(order.indices(1, 0, 5000, 1024).astype("<i8").tobytes()).hexdigest()[:16]
    assert digest == "3702aed89475da56"
