"""Decoding a token a row in shapes that no decision changes, which a GPU records once and replays from then on.

Launching a kernel takes the host longer than a GPU needs for most kernels of such a step; a recorded step is launched
as a whole. It is one stage, unless most steps bypass a routed block altogether: that block is then a stage of its own,
which the host launches if some row goes through, and waits to know. Where that is likely, the block's weights are read
anyway: it is computed for all rows, and nothing is waited for but, now and then, how full the caches are.

B rows (sequences), D width, V vocabulary.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from modexp.models.cache import State, in_every_row
from modexp.models.routed import RoutedBlock
from modexp.models.transformer import Block, Fresh, Rope, Transformer


@dataclass
class Stage:
    """What runs without a look from the host; on a GPU, once it is recorded, as one graph."""

    # they are handed the steps and hold none: a cycle would keep graphs alive until the garbage is collected
    calls: list[Callable[[Steps], None]] = field(default_factory=list)
    condition: Tensor | None = None  # of one bool: whether to run it at all; None: always
    graph: torch.cuda.CUDAGraph | None = None

    def compute(self, steps: Steps) -> None:
        for call in self.calls:
            call(steps)

    def run(self, steps: Steps) -> None:
        if self.condition is not None and not self.condition.item():
            return
        if self.graph is None:
            self.compute(steps)
        else:
            self.graph.replay()


def can_be_static(blocks: list[Block]) -> bool:
    """Whether all are decoded as the two classes known here have it; an ``extend`` of its own may do anything."""
    return all(type(block).extend in (Block.extend, RoutedBlock.extend) for block in blocks)


class Steps:
    """The steps of a decoder with ``blocks`` and ``states`` over rows that hold ``lengths`` tokens, which are kept up
    to date in place. Caches get a place more than they hold, for what rows that take no part write."""

    def __init__(self, model: Transformer, blocks: list[Block], states: list[State], lengths: Tensor) -> None:
        assert can_be_static(blocks)
        self.model, self.blocks, self.states, self.lengths = model, blocks, states, lengths
        for state in states:
            state.cache.grow(state.cache.room + 1)
        B, device = len(lengths), lengths.device
        self.token = torch.zeros(B, 1, dtype=torch.long, device=device)
        self.valid = torch.zeros(B, 1, dtype=torch.bool, device=device)
        self.stages: list[Stage] = []
        self.rooms: list[int] = []  # of the caches that the stages know
        self.sure = 0  # steps for which all caches have room, whatever is decided
        # graphs may share neither with other decoders': what one leaves behind when it goes, others would still use
        self.stream = torch.cuda.Stream(device) if lengths.is_cuda else None

    def logits(self, tokens: Tensor, valid: Tensor | None) -> Tensor:
        """What follows ``tokens`` (B, 1) in each row: (B, V); see Decoder.extend."""
        if not self.sure:
            self.make_room()
        self.sure -= 1
        self.token.copy_(tokens)
        self.valid.fill_(True) if valid is None else self.valid.copy_(valid)
        for stage in self.stages:
            stage.run(self)
        return self.found.clone()  # the next step takes its place

    def forget(self) -> None:
        """Rows have got tokens otherwise."""
        self.sure = 0

    def make_room(self) -> None:
        """See how full the caches are, enlarge those without a free place, and how long that lasts. Waits."""
        self.sure = self.states[0].cache.length
        used = torch.stack([state.cache.used.max() for state in self.states]).tolist()
        for block, state, most in zip(self.blocks, self.states, used, strict=True):
            cache = state.cache
            largest = min(block.limit, cache.length) if isinstance(block, RoutedBlock) else cache.length
            assert most <= largest, "more tokens than the decoder was made for"
            if most >= cache.room:
                cache.grow(min(2 * cache.room, largest + 1))
            if cache.room <= largest or not isinstance(block, RoutedBlock):
                self.sure = min(self.sure, cache.room - most)
        rooms = [state.cache.room for state in self.states]
        if rooms != self.rooms:
            self.stages, self.rooms = self.plan(), rooms
            if self.stream is not None:
                self.record(self.stream)

    # ---- the stages ----------------------------------------------------------------------------------------

    def plan(self) -> list[Stage]:
        stages = [Stage([Steps.begin])]
        for block, state in zip(self.blocks, self.states, strict=True):
            if not isinstance(block, RoutedBlock):
                stages[-1].calls.append(partial(Steps.through, block=block, state=state))
                continue
            mostly_bypassed = (1 - block.share) ** len(self.lengths) > 0.5
            some = torch.zeros((), dtype=torch.bool, device=self.lengths.device) if mostly_bypassed else None
            stages[-1].calls.append(partial(Steps.admit, block=block, state=state, some=some))
            take = partial(Steps.take, block=block, state=state)
            if mostly_bypassed:
                stages += [Stage([take], condition=some), Stage()]
            else:
                stages[-1].calls.append(take)
        stages[-1].calls.append(Steps.end)
        return stages

    def begin(self) -> None:
        table = self.model.rope
        positions = self.lengths[:, None].clamp(max=table.shape[1] - 1)  # of padding, which may hang over the end
        room = self.states[0].cache.length + 1
        self.fresh = Fresh(in_every_row(self.valid, self.lengths, room), Rope(table).at(positions))
        self.x = self.model.embedding(self.token)  # (B, 1, D)

    def through(self, block: Block, state: State) -> None:
        self.x = block.extend(self.x, self.fresh, state)

    def admit(self, block: RoutedBlock, state: State, some: Tensor | None) -> None:
        self.taken, self.weights = block.admit(self.x, self.fresh, state)
        if some is not None:
            some.copy_(self.taken.any())

    def take(self, block: RoutedBlock, state: State) -> None:
        """In place: where this stage is left out, the next one finds x as it was."""
        self.x += block.extend_taken(self.x, self.taken, self.weights, self.fresh.rope, state)

    def end(self) -> None:
        self.lengths.copy_(self.fresh.tokens.held)
        self.found = self.model.head(self.model.norm(self.x)).squeeze(1).float()

    # ---- on a GPU ------------------------------------------------------------------------------------------

    def record(self, stream: torch.cuda.Stream) -> None:
        """Each stage as a graph, in one pool of memory, so that a stage finds what the one before it left there."""
        self.valid.zero_()  # what the recording takes as its example must count for nothing
        here = torch.cuda.current_stream()
        stream.wait_stream(here)
        with torch.cuda.stream(stream):  # the first time, libraries set up what may not be recorded
            for stage in self.stages:
                stage.compute(self)
        here.wait_stream(stream)
        pool = torch.cuda.graph_pool_handle()
        with no_garbage_collection():
            for stage in self.stages:
                stage.graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(stage.graph, pool=pool, stream=stream):
                    stage.compute(self)


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """A graph that is collected while another is being recorded spoils the recording."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
