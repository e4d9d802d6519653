"""What a block keeps of each sequence while it is decoded: keys and values of the tokens that took part in it.

B rows (sequences), n tokens each that a decoder has just met, R rows that take part in a block with k slots each,
H heads, P half a head's width, L tokens held.

A block is decoded by two methods, which :class:`~modexp.models.transformer.Block` has; a kind overrides what differs:

    new_state(batch, length)              what it keeps of each row: a :class:`State`, or a subclass with more fields
    extend(x, fresh, state)               x (B, n, D) after the block, the state moved on by the tokens of ``fresh``

with ``extend_delta`` (attention and MLP among packed tokens) and ``extend_mlp`` (the MLP alone) as their parts. An MLP
that counts tokens by row overrides the latter: it reads ``state.counters[tokens.rows]`` (a slice gives a view),
assigns to the same, and leaves slots that are not ``tokens.filled`` uncounted. Prefill and step are one code. Rows may
differ in length: their ends are padded, and ``fresh.tokens.filled`` marks the rest.

On a GPU, a model whose blocks all leave ``extend`` as it is decodes by recorded steps (modexp/sampling/steps.py): with
one token a row, the parts may not wait for the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Packed(NamedTuple):
    """Tokens that take part in a block, in order, row by row; slots at the end of a row may be empty."""

    rows: Tensor | slice  # (R,) rows of the batch; slice(None): all of them
    filled: Tensor  # (R, k) bool: slots that hold a token
    held: Tensor  # (R,) tokens that the rows hold with these
    longest: int  # the most of them
    source: tuple[Tensor, Tensor] | None  # row in R and slot of each token; None: a single one in every row
    target: tuple[Tensor, Tensor]  # row in B and place in the cache of each token
    visible: (
        Tensor | None
    )  # (R, 1, k, L) bool: what a slot may look at. None: its own row's past, nothing else is there
    begins: bool  # nothing came before


def packed(rows: Tensor | slice, filled: Tensor, used: Tensor) -> Packed:
    """Tokens in the slots ``filled`` (R, k) of ``rows``, where all rows hold ``used`` (B,) tokens already.

    Waits for the device: how much there is to read is known there alone.
    """
    k = filled.shape[1]
    before = used[rows]
    held = before + filled.sum(dim=1)
    known, shortest, longest = torch.stack((before.max(), *held.aminmax())).tolist()
    places = before[:, None] + torch.arange(k, device=used.device)  # (R, k)
    row, slot = filled.nonzero(as_tuple=True)
    target = (row if isinstance(rows, slice) else rows[row], places[row, slot])
    visible = None
    if known and (k > 1 or shortest < longest):
        # places behind a row's end lie in its future, and so do other slots' padding
        visible = (torch.arange(longest, device=used.device) <= places[..., None]).unsqueeze(1)
    return Packed(rows, filled, held, longest, (row, slot), target, visible, not known)


def one_each(rows: Tensor | slice, used: Tensor) -> Packed:
    """As :func:`packed` for one token in each of ``rows``, in fewer calls: of few rows, they are what a step costs."""
    places = used[rows]
    shortest, longest = torch.stack(places.aminmax()).tolist()
    filled = torch.ones(len(places), 1, dtype=torch.bool, device=used.device)
    visible = None
    if shortest < longest:
        visible = (torch.arange(longest + 1, device=used.device) <= places[:, None])[:, None, None]
    target = (torch.arange(len(used), device=used.device) if isinstance(rows, slice) else rows, places)
    return Packed(rows, filled, places + 1, longest + 1, None, target, visible, not longest)


def in_every_row(filled: Tensor, used: Tensor, room: int) -> Packed:
    """As :func:`packed` for one slot a row, ``filled`` (B, 1), in shapes that no decision changes; does not wait.

    Caches hold ``room`` places, all of which are looked at; rows that take no part write to their next free place.
    """
    places = torch.arange(room, device=used.device)
    visible = (places <= used[:, None])[:, None, None]  # (B, 1, 1, L)
    target = (torch.arange(len(used), device=used.device), used)
    return Packed(slice(None), filled, used + filled.squeeze(1), room, None, target, visible, False)


class KVCache:
    """Keys and values of the tokens that took part, packed at the front of each row: ragged, and nothing for others.

    Allocated once with ``room`` tokens a row. A row that needs more than was foreseen doubles that, up to ``length``;
    where decoding has static shapes, there is one place more, for what is not kept.
    """

    def __init__(self, batch: int, heads: int, head_width: int, room: int, length: int, like: Tensor) -> None:
        self.length = length
        self.keys = like.new_zeros(batch, heads, room, head_width)
        self.values = torch.zeros_like(self.keys)
        self.used = torch.zeros(batch, dtype=torch.long, device=like.device)  # tokens held, by row

    @property
    def room(self) -> int:
        return self.keys.shape[2]

    @property
    def bytes_allocated(self) -> int:
        return 2 * self.keys.nbytes

    @property
    def bytes_held(self) -> int:
        """Of the tokens really kept."""
        _, heads, _, width = self.keys.shape
        return 2 * int(self.used.sum()) * heads * width * self.keys.element_size()

    def extend(self, keys: Tensor, values: Tensor, tokens: Packed) -> tuple[Tensor, Tensor]:
        """Append keys and values (R, H, k, 2P); returns all that is held of these rows, (R, H, L, 2P) each."""
        self.reserve(tokens.longest)
        rows, places = tokens.target
        for cached, fresh in ((self.keys, keys), (self.values, values)):
            picked = fresh[:, :, 0] if tokens.source is None else fresh[tokens.source[0], :, tokens.source[1]]
            cached[rows, :, places] = picked
        self.used[tokens.rows] = tokens.held
        if tokens.begins:
            return keys, values
        return self.keys[tokens.rows, :, : tokens.longest], self.values[tokens.rows, :, : tokens.longest]

    def reserve(self, tokens: int) -> None:
        """Room for that many tokens a row."""
        if tokens > self.room:
            self.grow(max(tokens, min(2 * self.room, self.length)))

    def grow(self, room: int) -> None:
        B, H, before, width = self.keys.shape
        more = self.keys.new_zeros(B, H, room - before, width)
        self.keys, self.values = (torch.cat((old, more), dim=2) for old in (self.keys, self.values))


@dataclass
class State:
    """What a block keeps between calls; a block with counters of its own adds fields of B rows."""

    cache: KVCache

    def clear(self) -> None:
        """As before the first token."""
        self.cache.used.zero_()
