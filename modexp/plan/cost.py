"""What a planned run will take: seconds and bytes, from a measurement or from a named GPU. Torch-free.

One model of time, for plan, sweep and status alike:

    run = start + passes x (overhead of a pass + sequences x FLOPs / rate) + validations x FLOPs of one / their rate

where a step of B sequences is ceil(B / micro-batch) passes. Memory is modexp/plan/memory.py's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from modexp.config.root import Config
from modexp.errors import UserError
from modexp.files import read_json
from modexp.kinds import ledger
from modexp.plan.grid import Branch
from modexp.plan.memory import micro_batch, peak_bytes
from modexp.plan.run import RunPlan


@dataclass(frozen=True)
class Gpu:
    """As its maker's data sheet has it: dense bf16 matmul with fp32 accumulation, memory in 10^9 bytes."""

    name: str
    teraflops: float
    gigabytes: float


GPUS = {
    "a100": Gpu("A100 SXM", 312, 80),
    "b200": Gpu("B200", 2250, 180),
    "h100": Gpu("H100 SXM", 989, 80),
    "h200": Gpu("H200 SXM", 989, 141),
    "l4": Gpu("L4", 121, 24),
    "l40s": Gpu("L40S", 362, 48),
    "4090": Gpu("RTX 4090", 165, 24),
}
# Share of the peak that training is assumed to reach where nothing was measured: dense models of a billion parameters
# reach .35 to .5 with tuned code (Chowdhery et al. 2022, table 3: .46), small ones less.
UTILISATION = 0.4


@dataclass(frozen=True)
class Point:
    """One measured model. Rates in FLOP/s under ``matmul``; the overhead is that of a pass."""

    arm: str
    kind: str
    flops_per_token: float
    overhead: float
    rate: float
    eval_rate: float


@dataclass(frozen=True)
class Speed:
    """How fast a device trains; ``points`` of one or more arms and sizes. Bytes of ``base`` are libraries'."""

    source: str
    precision: str
    start_seconds: float
    base_bytes: float
    free_bytes: float
    points: tuple[Point, ...]

    def of(self, arm: str, kind: str) -> tuple[Point, ...]:
        """The points nearest in kind: the same arm's, the same kind's, any; smallest first."""
        for mine in (
            [p for p in self.points if (p.arm, p.kind) == (arm, kind)],
            [p for p in self.points if p.kind == kind],
            self.points,
        ):
            if mine:
                return tuple(sorted(mine, key=lambda p: p.flops_per_token))
        raise AssertionError("a speed has points")

    def at(self, arm: str, kind: str, flops_per_token: float) -> tuple[float, float, float]:
        """(overhead of a pass in seconds, rate, rate of evaluation) at a size: interpolated in its logarithm, beyond
        the sizes measured as at the last."""
        points = self.of(arm, kind)
        size = math.log(flops_per_token)
        sizes = [math.log(p.flops_per_token) for p in points]
        overhead = np.interp(size, sizes, [p.overhead for p in points])
        rate, eval_rate = (
            math.exp(np.interp(size, sizes, [math.log(getattr(p, key)) for p in points]))
            for key in ("rate", "eval_rate")
        )
        return float(overhead), rate, eval_rate


def assumed(gpu: str, utilisation: float = UTILISATION) -> Speed:
    """A GPU by its data sheet. UserError for one that is not in the table."""
    known = GPUS.get(gpu.lower())
    if known is None:
        raise UserError(f"--gpu {gpu} is not in the table", f"choose one of: {', '.join(GPUS)}; or --bench FILE")
    rate = known.teraflops * 1e12 * utilisation
    source = f"{known.name}, {known.teraflops:g} TFLOP/s bf16 x {utilisation:.0%} assumed: no measurement"
    return Speed(source, "bf16", 0.0, 0.0, known.gigabytes * 1e9, (Point("", "", 1.0, 0.0, rate, rate),))


def measured(path: Path) -> Speed:
    """What ``modexp bench step --json`` printed, or a sweep measured. UserError if it cannot be read."""
    if not path.exists():
        raise UserError(f"--bench {path} does not exist", f"modexp bench step --json > {path} makes one")
    return from_measurement(read_json(path, "device", "precision", "start_seconds", "rows"))


def from_measurement(found: dict[str, Any]) -> Speed:
    """Of modexp.train.bench.measure's dictionary. UserError if it is another's."""
    try:
        points = tuple(
            Point(
                row["arm"],
                row["kind"],
                row["flops_per_token"],
                row["pass_overhead_seconds"],
                row["pass_flops_per_second"],
                row["eval_flops_per_second"],
            )
            for row in found["rows"]
        )
        source = f"measured on {found['device']} in {found['precision']}" + (", which was busy" * bool(found["busy"]))
        memory = float(found["base_bytes"]), float(found["free_bytes"])
        speed = Speed(source, found["precision"], float(found["start_seconds"]), *memory, points)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"the measurement lacks what a prediction needs ({type(error).__name__}: {error})",
            "modexp bench step --json makes a new one",
        ) from None
    if not speed.points:
        raise UserError("the measurement holds no model", "modexp bench step --json makes a new one")
    return speed


@dataclass(frozen=True)
class Cost:
    """Of one run, alone on its device: seconds of wall time from the start of its process, bytes at most."""

    seconds: float
    memory_bytes: float
    micro_batch: int
    fits: bool

    def to_json(self, price: float | None = None) -> dict[str, Any]:
        money = {} if price is None else {"predicted_cost": self.seconds / 3600 * price}
        return {"predicted_seconds": self.seconds, "predicted_memory_bytes": round(self.memory_bytes), **money}


def predict(plan: RunPlan, config: Config, speed: Speed, branch: Branch | None = None) -> Cost:
    """Time and memory of a planned run on a device of this ``speed``; of a branch, after it left its trunk."""
    model, data, trainer = config.model, config.data, config.trainer
    books = ledger(model, data)
    precision = trainer.precision if trainer.precision != "auto" else speed.precision
    micro = trainer.micro_batch_given or micro_batch(
        model, data, plan.batch_size, plan.params_total, speed.free_bytes, precision, trainer.activation_checkpointing
    )
    micro = min(micro, plan.batch_size)
    overhead, rate, eval_rate = speed.at(plan.arm, model.kind, books.forward() / plan.sequence_length)
    before, sequences_before = (branch.step, branch.sequences) if branch else (0, 0)
    passes = (plan.steps - before - 1) * math.ceil(plan.batch_size / micro) + math.ceil(plan.last_batch_size / micro)
    training = passes * overhead + (plan.sequences - sequences_before) * books.training() / rate
    kinds_of_pass = model.can_be_causal + model.sees_future
    validation = trainer.eval_sequences * kinds_of_pass * books.forward() / eval_rate
    memory = speed.base_bytes + peak_bytes(model, data, micro, precision, trainer.activation_checkpointing)
    evaluations = math.ceil(min(trainer.num_evals, plan.steps) * (1 - before / plan.steps))
    seconds = speed.start_seconds + training + evaluations * validation
    return Cost(seconds, memory, micro, memory <= speed.base_bytes + speed.free_bytes)


def factor_for(hours: float, seconds_of: Callable[[float], float]) -> float:
    """The factor on all budgets at which a study takes ``hours`` of device time, within 1 % below where it can.

    ``seconds_of(factor)`` plans the study and returns its seconds, 0 when the budgets buy no run. Time is nearly
    proportional to the factor, so few plans are enough. UserError where no study of the design is so short.
    """
    wanted = 3600 * hours
    factor, low, high, best = 1.0, 0.0, math.inf, 0.0
    for _ in range(25):
        seconds = seconds_of(factor)
        if seconds > wanted:
            high = factor
        else:
            low = factor
            best = factor if seconds else best
        if 0.99 <= seconds / wanted <= 1 or high <= 1.005 * low:
            break
        guess = 0.995 * factor * wanted / seconds if seconds else math.inf
        if not low < guess < high:
            guess = 4 * low if math.isinf(high) else high / 4 if low == 0 else math.sqrt(low * high)
        factor = guess
    if not best:
        raise UserError(
            f"no study of this design takes as little as --hours {hours:g}", "ask for more, or plan fewer runs"
        )
    return best
