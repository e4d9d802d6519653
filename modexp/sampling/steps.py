"""Decoding a token a row in shapes that no decision changes, which a GPU records once and replays from then on.

Launching a kernel takes the host longer than a GPU needs for most kernels of such a step; a recorded step is launched
as a whole. It is one stage, unless most steps bypass a routed block altogether: that block is then a stage of its own,
and the host waits to know whether to launch it, so that rows that bypass cost nothing. Where some row of the batch is
likely to go through, the block's weights are read anyway: it is computed for all rows, and nothing is waited for.

B rows (sequences), D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
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

    calls: list[Callable[[], None]] = field(default_factory=list)
    condition: Tensor | None = None  # of one bool: whether to run it at all; None: always
    graph: torch.cuda.CUDAGraph | None = None

    def compute(self) -> None:
        for call in self.calls:
            call()

    def run(self) -> None:
        if self.condition is not None and not self.condition.item():
            return
        if self.graph is None:
            self.compute()
        else:
            self.graph.replay()


class Steps:
    """The steps of a decoder with ``blocks`` and ``states`` over rows that hold ``lengths`` tokens, which are kept up
    to date in place. Caches get a place more than they hold, for what rows that take no part write."""

    def __init__(self, model: Transformer, blocks: list[Block], states: list[State], lengths: Tensor) -> None:
        self.model, self.blocks, self.states, self.lengths = model, blocks, states, lengths
        for state in states:
            state.cache.grow(state.cache.room + 1)
        B, device = len(lengths), lengths.device
        self.token = torch.zeros(B, 1, dtype=torch.long, device=device)
        self.valid = torch.zeros(B, 1, dtype=torch.bool, device=device)
        self.stages: list[Stage] = []
        self.rooms: list[int] = []  # of the caches that the stages know
        self.sure = 0  # steps for which all caches have room, whatever is decided

    def logits(self, tokens: Tensor, valid: Tensor) -> Tensor:
        """What follows ``tokens`` (B, 1) in each row: (B, V), overwritten by the next step; see Decoder.extend."""
        if not self.sure:
            self.make_room()
        self.sure -= 1
        self.token.copy_(tokens)
        self.valid.copy_(valid)
        for stage in self.stages:
            stage.run()
        return self.found

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
            if most >= cache.room:
                cache.grow(min(2 * cache.room, largest + 1))
            if cache.room <= largest:
                self.sure = min(self.sure, cache.room - most)
        rooms = [state.cache.room for state in self.states]
        if rooms != self.rooms:
            self.stages, self.rooms = self.plan(), rooms
            if self.lengths.is_cuda:
                self.record()

    # ---- the stages ----------------------------------------------------------------------------------------

    def plan(self) -> list[Stage]:
        stages = [Stage([self.begin])]
        for block, state in zip(self.blocks, self.states, strict=True):
            if not isinstance(block, RoutedBlock):
                stages[-1].calls.append(partial(self.through, block, state))
            elif (1 - block.share) ** len(self.lengths) <= 0.5:
                stages[-1].calls += [partial(self.admit, block, state), partial(self.take, block, state)]
            else:
                condition = torch.zeros((), dtype=torch.bool, device=self.lengths.device)
                stages[-1].calls.append(partial(self.admit, block, state, condition))
                stages += [Stage([partial(self.take, block, state)], condition), Stage()]
        stages[-1].calls.append(self.end)
        return stages

    def begin(self) -> None:
        table = self.model.rope
        positions = self.lengths[:, None].clamp(max=table.shape[1] - 1)  # of padding, which may hang over the end
        room = self.states[0].cache.length + 1
        self.fresh = Fresh(in_every_row(self.valid, self.lengths, room), Rope(table).at(positions))
        self.x = self.model.embedding(self.token)  # (B, 1, D)

    def through(self, block: Block, state: State) -> None:
        self.x = block.extend(self.x, self.fresh, state)

    def admit(self, block: RoutedBlock, state: State, some: Tensor | None = None) -> None:
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

    def record(self) -> None:
        """Each stage as a graph, in one pool of memory, so that a stage finds what the one before it left there."""
        self.valid.zero_()  # what the recording takes as its example must count for nothing
        here, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(here)
        with torch.cuda.stream(aside):  # the first time, libraries set up what may not be recorded
            for stage in self.stages:
                stage.compute()
        here.wait_stream(aside)
        pool = torch.cuda.graph_pool_handle()
        for stage in self.stages:
            stage.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(stage.graph, pool=pool):
                stage.compute()
