"""The order of training sequences: a pure function of (seed, index), so a step number is enough to resume.

Sequences are shuffled within fixed blocks of about 16.8 million tokens and blocks follow each other, so the
order does not depend on how much of the corpus has been tokenised yet. The hash is our own (splitmix64),
because numpy's random streams may change between its versions.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

BLOCK_TOKENS = 2**24  # 65,536 sequences of 256 tokens, 8,192 of 2,048
GOLDEN = 0x9E3779B97F4A7C15


def block_sequences(sequence_length: int) -> int:
    """Sequences that are shuffled together."""
    return max(1, BLOCK_TOKENS // sequence_length)


def splitmix64(x: np.ndarray) -> np.ndarray:
    """Finaliser of splitmix64 (Steele, Lea & Flood 2014) on uint64, elementwise."""
    x = x + np.uint64(GOLDEN)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, block: int, size: int) -> np.ndarray:
    """Shuffled 0 .. size-1 of one block in one epoch; int64 (size,), read-only."""
    key = np.zeros(1, np.uint64)
    for part in (seed, epoch, block):
        key = splitmix64(key ^ np.uint64(part))
    shuffled = np.argsort(splitmix64(key ^ splitmix64(np.arange(size, dtype=np.uint64))), kind="stable")
    shuffled.flags.writeable = False
    return shuffled


def indices(seed: int, start: int, stop: int, block: int, num_sequences: int | None = None) -> np.ndarray:
    """Which sequences of the corpus stand at places ``start`` .. ``stop`` of a run; int64 (stop - start,).

    ``block`` is how many are shuffled together. ``num_sequences`` is the length of an epoch of an exhausted
    corpus, after which a new permutation begins; None while the corpus goes on beyond ``stop``.
    """
    parts = []
    while start < stop:
        epoch, place = divmod(start, num_sequences) if num_sequences else (0, start)
        number, offset = divmod(place, block)
        first = number * block
        size = min(block, num_sequences - first) if num_sequences else block
        count = min(stop - start, size - offset)
        parts.append(first + permutation(seed, epoch, number, size)[offset : offset + count])
        start += count
    return np.concatenate(parts) if parts else np.empty(0, np.int64)
