"""modexp: isoFLOP studies of Mixture-of-Depths transformers.

>>> import modexp
>>> run = modexp.load("runs/demo/mod-41.1k-1.2e12-s0")  # .config .plan .records .result .model
>>> modexp.load_study("runs/demo")  # a pandas DataFrame, one row a run
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modexp.loading import LoadedRun, load, load_study

__all__ = ["LoadedRun", "load", "load_study"]


def __getattr__(name: str) -> object:
    if name in __all__:  # late: `modexp --help` must not wait for any of it
        from modexp import loading

        return getattr(loading, name)
    raise AttributeError(f"module 'modexp' has no attribute '{name}'")
