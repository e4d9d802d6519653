"""What a training step costs here, model by model, each with the code that training runs.

Models take turns in one process: whatever else the machine does meets them alike, so their ratios hold better than
their times. A sample is as many calls as fill ``SAMPLE`` seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor

from modexp.config.root import Config
from modexp.flops.transformer import dense_twin
from modexp.kinds import ledger
from modexp.plan.memory import EVAL_TOKENS, micro_batch
from modexp.train.evaluate import evaluate
from modexp.train.hardware import autocast, choose_compile, describe, matmul_limit, memory_free, prepare, wait
from modexp.train.load import load
from modexp.train.probe import probe, start_of
from modexp.train.step import Stepper
from modexp.train.trace import write_trace

SAMPLE = 0.05  # seconds
MATMULS = {"cpu": (512, 1024, 2048), "cuda": (4096, 8192)}  # the largest rate of these is the device's limit
LR = 1e-4  # of the steps that are timed; no number depends on it

Key = tuple[int, str]  # place of the model, name of what is timed


@dataclass(frozen=True)
class Subject:
    """A model of a size, and the batch it is trained on, in sequences."""

    arm: str
    config: Config
    batch: int


class Bench:
    """One subject, ready to be timed."""

    def __init__(self, subject: Subject, device: torch.device, precision: str) -> None:
        config, self.device, self.precision = subject.config, device, precision
        self.subject = subject
        self.books = ledger(config.model, config.data)
        self.micro = config.trainer.micro_batch_given or micro_batch(
            config.model,
            config.data,
            subject.batch,
            self.books.params_total,
            memory_free(device),
            precision,
            config.trainer.activation_checkpointing,
        )
        self.micro = min(self.micro, subject.batch)
        self.other = self.micro // 2 or 2  # sequences of a second pass: two make a line
        self.stepper = Stepper(config, device, precision)
        T = config.data.sequence_length
        most = max(subject.batch, self.other, EVAL_TOKENS // T)
        self.tokens = torch.randint(config.data.vocab_size, (most, T + 1), device=device)

    def step(self, sequences: int) -> None:
        micro = self.micro if sequences == self.subject.batch else sequences
        self.stepper.step(self.tokens[:sequences], micro, LR, seed=0)

    @torch.no_grad()
    def forward(self) -> Tensor:
        for chunk in self.tokens[: self.subject.batch].split(self.micro):
            with autocast(self.device, self.precision):
                logits = self.stepper.objective.fast(chunk[:, :-1]).logits
        return logits

    def evaluate(self) -> None:
        """One forward pass of each kind that an evaluation takes."""
        model, config = self.stepper.model, self.subject.config
        model.eval()
        evaluate(model, config.model, self.tokens[: self.eval_sequences], self.device, self.precision, 1.0)
        model.train()

    @property
    def eval_sequences(self) -> int:
        return max(1, EVAL_TOKENS // self.subject.config.data.sequence_length)

    @property
    def calls(self) -> dict[str, Callable[[], object]]:
        calls: dict[str, Callable[[], object]] = {
            "step": partial(self.step, self.subject.batch),
            "pass": partial(self.step, self.micro),
            "other pass": partial(self.step, self.other),
            "forward": self.forward,
            "evaluate": self.evaluate,
        }
        if self.micro == self.subject.batch:
            del calls["pass"]
        return calls


def timed(call: Callable[[], object], times: int, device: torch.device) -> float:
    """Seconds a call, the mean of ``times``."""
    wait(device)
    begin = time.perf_counter()
    for _ in range(times):
        call()
    wait(device)
    return (time.perf_counter() - begin) / times


def interleaved(
    calls: dict[Key, Callable[[], object]], repeats: int, device: torch.device, sample: float = SAMPLE
) -> dict[Key, list[float]]:
    """Seconds a call, ``repeats`` samples of each, in turns, after a warm-up that also sets the length of a sample."""
    for call in calls.values():
        call()
    times = {key: max(1, round(sample / timed(call, 1, device))) for key, call in calls.items()}
    found: dict[Key, list[float]] = {key: [] for key in calls}
    for _ in range(repeats):
        for key, call in calls.items():
            found[key].append(timed(call, times[key], device))
    return found


def line(short: tuple[int, float], long: tuple[int, float]) -> tuple[float, float]:
    """(overhead, seconds a sequence) of the line through two (sequences, seconds); the overhead is never negative."""
    (n, t), (m, u) = sorted((short, long))
    slope = max((u - t) / (m - n), 0.5 * u / m)  # noise must not make sequences free
    return max(0.0, u - slope * m), slope


def measure(
    subjects: Sequence[Subject],
    device: torch.device,
    precision: str,
    repeats: int,
    only: Iterable[str] = ("step", "pass", "other pass", "forward", "evaluate"),
    with_memory: bool = True,
) -> dict[str, Any]:
    """A measurement: what modexp.plan.cost predicts from, what ``bench step --json`` prints, what a sweep keeps.

    ``only`` names what is timed; rows lack the rest. Memory is measured in a process for each subject.
    """
    first = subjects[0].config
    state = load()
    prepare(device, first.trainer.threads)
    limit = max(matmul_limit(device, precision, n) for n in MATMULS[device.type])
    start = start_of(first)
    benches = [Bench(subject, device, precision) for subject in subjects]
    calls = {(i, name): call for i, b in enumerate(benches) for name, call in b.calls.items() if name in only}
    found = interleaved(calls, repeats, device)
    rows = []
    for i, bench in enumerate(benches):
        row = describe_model(bench)
        mine = {name: found[i, name] for name in bench.calls if (i, name) in found}
        row |= speeds(bench, mine, limit)
        for name in ("forward", "step"):
            twin = twin_of(benches, i)
            if name in mine and twin is not None:
                row[name]["efficiency"] = efficiency(bench, mine[name], benches[twin], found[twin, name], name)
        if with_memory:
            taken = probe(bench.subject.config, bench.subject.batch, bench.micro, precision)
            row["peak_memory_bytes"] = taken["peak_bytes"] - (taken["base_bytes"] if device.type == "cpu" else 0)
        rows.append(row)
    return {
        "device": describe(device),
        "precision": precision,
        "compile": choose_compile(first.trainer.compile, device, first.budget.flops),
        "activation_checkpointing": first.trainer.activation_checkpointing,
        "repeats": repeats,
        "matmul_flops_per_second": limit,
        "start_seconds": start["start_seconds"],
        "base_bytes": start["base_bytes"] if device.type == "cpu" else 0,
        "free_bytes": memory_free(device),
        "load": vars(state),
        "busy": state.sentence,
        "rows": rows,
    }


def describe_model(bench: Bench) -> dict[str, Any]:
    config, books = bench.subject.config, bench.books
    layers, width, heads = config.model.shape
    T = config.data.sequence_length
    return {
        "arm": bench.subject.arm,
        "kind": config.model.kind,
        "n_layers": layers,
        "d_model": width,
        "n_heads": heads,
        "params_total": books.params_total,
        "flops_per_token": books.forward() / T,
        "sequence_length": T,
        "batch_size": bench.subject.batch,
        "micro_batch": bench.micro,
    }


def speeds(bench: Bench, found: dict[str, list[float]], limit: float) -> dict[str, Any]:
    """Medians, rates by the ledger under ``matmul``, and the line that predicts other batches."""
    row: dict[str, Any] = {}
    T, batch = bench.subject.config.data.sequence_length, bench.subject.batch
    flops = {"forward": bench.books.forward(), "step": bench.books.training()}
    for name in flops:
        if name in found:
            seconds = median(found[name])
            rate = batch * flops[name] / seconds
            row[name] = {
                "milliseconds": 1e3 * seconds,
                "spread": spread(found[name]),
                "tokens_per_second": batch * T / seconds,
                "flops_per_second": rate,
                "mfu": rate / limit,
            }
    whole = found.get("pass", found["step"])
    overhead, per_sequence = line((bench.other, median(found["other pass"])), (bench.micro, median(whole)))
    row["pass_overhead_seconds"] = overhead
    row["pass_flops_per_second"] = flops["step"] / per_sequence
    if "evaluate" in found:
        model = bench.subject.config.model
        passes = model.can_be_causal + model.sees_future
        row["eval_flops_per_second"] = passes * bench.eval_sequences * flops["forward"] / median(found["evaluate"])
    return row


def spread(samples: list[float]) -> float:
    """Distance of the quartiles over the median; 0 of one sample."""
    if len(samples) < 2:
        return 0.0
    low, _, high = quantiles(samples, n=4, method="inclusive")
    return (high - low) / median(samples)


def twin_of(benches: Sequence[Bench], i: int) -> int | None:
    """The dense model of the same shape on the same batch; None for a dense model itself."""
    wanted = benches[i].subject
    if not wanted.config.model.has_routing:
        return None
    twin = dense_twin(wanted.config.model)
    for j, bench in enumerate(benches):
        if bench.subject.config.model == twin and bench.subject.batch == wanted.batch:
            return j
    return None


def efficiency(bench: Bench, times: list[float], twin: Bench, twin_times: list[float], name: str) -> float:
    """Time of the dense twin x the ledger's ratio of FLOPs over the time of the model, the median of paired turns.

    Under ``causal``, as a causal kernel computes half the square of attention. 1: a saved FLOP is a saved second.
    """
    count = "forward" if name == "forward" else "training"
    ratio = getattr(bench.books, count)("causal") / getattr(twin.books, count)("causal")
    return ratio * median(t / m for t, m in zip(twin_times, times, strict=True))


def with_twins(subjects: Sequence[Subject]) -> list[Subject]:
    """Each routed subject right after its dense twin; nothing twice."""
    chosen: list[Subject] = []
    for subject in subjects:
        model = subject.config.model
        twin = replace(subject, arm="dense twin", config=replace(subject.config, model=dense_twin(model)))
        for s in [twin, subject] if model.has_routing else [subject]:
            same = [c for c in chosen if (c.config.model, c.batch) == (s.config.model, s.batch)]
            if same and s.arm != "dense twin":  # an arm keeps its name
                chosen[chosen.index(same[0])] = s
            elif not same:
                chosen.append(s)
    return chosen


def profile(subjects: Sequence[Subject], device: torch.device, precision: str, path: Path, steps: int = 3) -> None:
    """A trace of a few steps of each subject."""
    calls = []
    for subject in subjects:
        step = Bench(subject, device, precision).calls["step"]
        step()  # what happens once does not belong in the picture
        layers, width, _ = subject.config.model.shape
        calls += [(f"{subject.arm} L{layers} d{width}, step {i}", step) for i in range(steps)]
    write_trace(calls, device, path)
