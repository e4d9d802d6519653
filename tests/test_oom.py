"""Memory that runs out: the step is taken again in smaller passes, and the run goes on as if begun with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from modexp.errors import Interrupted, RunFailed
from modexp.runs import RunDir
from modexp.train.hardware import is_out_of_memory
from modexp.train.loop import Training, train
from modexp.train.signals import Stop
from modexp.train.step import Stepper
from tests.test_train import MOD, StopAt, planned, rows, same_outcome

THRESHOLD = ["model=mod_threshold", *MOD[1:]]  # its routers keep running estimates, which a failed try must not move
ERRORS: list[Callable[[], BaseException]] = [
    lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    lambda: RuntimeError("[enforce fail at alloc_cpu.cpp:116] DefaultCPUAllocator: can't allocate memory"),
    MemoryError,
]


def full_above(
    monkeypatch: pytest.MonkeyPatch, largest: int, steps: Iterable[int], error: Callable[[], BaseException]
) -> None:
    """In these steps a pass of more than ``largest`` sequences fails, after another was already gone through."""
    there = set(steps)
    plain = Stepper.passes
    seen = {"noise": -1, "step": -1}

    def passes(self: Stepper, batch: torch.Tensor, micro: int, seed: int, before: list[torch.Tensor]) -> torch.Tensor:
        seen["step"] += seed != seen["noise"]
        seen["noise"] = seed
        if micro > largest and seen["step"] in there:
            plain(self, batch[: len(batch) // 2], micro, seed, before)
            raise error()
        return plain(self, batch, micro, seed, before)

    monkeypatch.setattr(Stepper, "passes", passes)


@pytest.mark.parametrize("error", ERRORS, ids=["cuda", "cpu", "python"])
def test_a_full_memory_halves_the_passes_from_that_step_on(
    error: Callable[[], BaseException],
    tmp_path: Path,
    tiny: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [*tiny, *THRESHOLD, "budget=2e9", "trainer.log_every=1"]
    full, straight = planned(tmp_path / "a", words), planned(tmp_path / "b", words)
    with pytest.raises(Interrupted):
        Training(straight, StopAt(7)).to_the_end()  # asked once before the first step
    planned(straight.path, [*words, "trainer.micro_batch=1"])
    train(straight.path)

    full_above(monkeypatch, 1, range(6, 10**6), error)
    result = train(full.path)
    told = capsys.readouterr().err
    assert "out of memory at step 6: from here 2 sequences a pass" in told
    assert "out of memory at step 6: from here 1 sequences a pass" in told
    assert result["flops_consumed"] == full.plan()["plan"]["flops"], "the planned batch is unchanged"
    same_outcome(straight, full)


def test_the_steps_before_are_those_of_the_whole_batch(
    tmp_path: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison above can fail: with other passes from the start the bits are others."""
    words = [*tiny, *THRESHOLD, "budget=2e9", "trainer.log_every=1"]
    plain = planned(tmp_path / "a", words)
    train(plain.path)
    full_above(monkeypatch, 2, range(6, 10**6), MemoryError)
    full = planned(tmp_path / "b", words)
    train(full.path)
    assert rows(full)[:6] == rows(plain)[:6]
    assert rows(full)[8:] != rows(plain)[8:]


def test_not_even_one_sequence(tmp_path: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    run = planned(tmp_path / "r", [*tiny, *MOD, "budget=2e9"])
    full_above(monkeypatch, 0, range(10), ERRORS[0])
    with pytest.raises(RunFailed, match="does not fit into memory with one sequence a pass: CUDA out of memory"):
        train(run.path)
    assert RunDir(run.path).state() == "failed"


def test_several_processes_are_told_what_to_set(
    tmp_path: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One cannot take its step again alone: the others are in the middle of theirs."""
    run = planned(tmp_path / "r", [*tiny, *MOD, "budget=2e9"])
    full_above(monkeypatch, 0, range(10), ERRORS[0])
    training = Training(run, Stop())
    monkeypatch.setattr(training.world.__class__, "size", 2)
    with pytest.raises(RunFailed, match=r"one of 2 processes ran out of memory with 4 sequences a pass: CUDA out") as e:
        training.step()
    assert "set trainer.micro_batch=2" in e.value.next_step


def test_the_smaller_passes_survive_a_stop(tmp_path: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    run = planned(tmp_path / "r", [*tiny, *MOD, "budget=2e9"])
    full_above(monkeypatch, 2, range(10), ERRORS[0])
    with pytest.raises(Interrupted):
        Training(run, StopAt(5)).to_the_end()
    assert Training(run, Stop()).state.micro == 2


def test_other_errors_are_not_memory() -> None:
    known: list[tuple[Any, bool]] = [(error(), True) for error in ERRORS]
    for error, expected in [*known, (RuntimeError("shapes cannot be multiplied"), False)]:
        assert is_out_of_memory(error) == expected
