"""One thread, no network, no tracker account, caches of our own."""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"

import shutil
import signal
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

# a shell starts what stands before an & deaf to Ctrl-C, and processes pass that on; tests send theirs one
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All token caches of the test session."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["MODEXP_CACHE"] = str(folder)
    return folder


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token cache of the test alone."""
    monkeypatch.setenv("MODEXP_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 32 sequences of 16 tokens and shards of 1,000, so that small texts span many of both."""
    monkeypatch.setattr("modexp.data.order.BLOCK_TOKENS", 32 * 16)
    monkeypatch.setattr("modexp.data.shards.SHARD_TOKENS", 1000)
    monkeypatch.setattr("modexp.data.tokenise.BATCH_BYTES", 300)


@pytest.fixture(scope="session")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some hundred small documents of real text: modules of the standard library."""
    folder = tmp_path_factory.mktemp("text")
    sources = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    for source in [s for s in sources if 500 < s.stat().st_size < 20_000][:100]:
        shutil.copy(source, folder / source.name)
    return folder


@pytest.fixture(scope="session")
def tiny(documents: Path) -> list[str]:
    """Overrides of a run that takes seconds: two or four layers, byte tokens, a few hundred thousand of them."""
    return [
        "data=files",
        f"data.paths=[{documents}/*.py]",
        "data.sequence_length=64",
        "data.validation_share=0.1",
        "tracker=none",
        "trainer.eval_sequences=16",
        "trainer.num_evals=2",
        "trainer.threads=1",
    ]


@pytest.fixture
def modexp_cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The command line in this process, in an empty directory; returns the exit code."""
    from modexp.cli import run

    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> int:
        return run(list(words))

    return call
