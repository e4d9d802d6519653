"""The processes that train one run together, as one of them sees them. This is the view of a process that is alone.

N processes, B sequences a step; each takes a contiguous share of them, and what they find is added up.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class World:
    """Alone: what is to be agreed on is agreed. Several processes: :class:`modexp.train.distributed.Processes`.

    Whatever returns a number or waits is called by every process, in the same order.
    """

    rank = 0
    size = 1

    @property
    def leads(self) -> bool:
        """Whether this process speaks and writes for all."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """This process's of ``count`` sequences: shares differ by one at most, and some are empty if there are few."""
        return range(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def passes(self, count: int, micro: int) -> list[range]:
        """The share of ``count`` sequences, ``micro`` a pass; as many passes for every process, so the last may be
        empty."""
        mine = self.share(count)
        return [mine[first : first + micro] for first in range(0, -(-count // self.size), micro)]

    def sum(self, values: Tensor) -> Tensor:
        """Over all processes, in place; on the tensor's device."""
        return values

    def most(self, *numbers: float) -> tuple[float, ...]:
        """The largest of each over all processes."""
        return numbers

    def barrier(self) -> None:
        """Wait until all are here."""

    def order(self, path: str) -> None:
        """Tell the others which run to train."""

    def first_to_fail(self, exit_code: int) -> bool:
        """Note that this process fails; whether it was the first, whose sentence and exit code all end with."""
        return True

    @contextmanager
    def failing_together(self) -> Iterator[None]:
        """An exception in here is the end of all processes."""
        yield


ALONE = World()
