"""What a run leaves: its result, and what a tracker must know of it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from modexp.config.root import Config, to_tree
from modexp.config.routing import LayersConfig
from modexp.errors import RunFailed
from modexp.kinds import ledger, realised_forward
from modexp.runs import RunDir
from modexp.train.provenance import provenance
from modexp.train.trackers import RunInfo


@dataclass
class Consumed:
    """What was spent so far, counted step by step."""

    step: int = 0  # steps done
    sequences: int = 0
    shared_sequences: int = 0  # of them, those that the trunk of this run has trained
    train_seconds: float = 0.0
    eval_seconds: float = 0.0
    # from the start of the process, of every attempt up to its last checkpoint; of a branch, without its trunk's
    wall_seconds: float = 0.0
    peak_memory_bytes: int = 0


def outcome(
    run: RunDir, config: Config, promise: dict[str, Any], consumed: Consumed, diverged: str, device: str
) -> dict[str, Any]:
    """The content of result.json. Losses are nats a token, from the last line of the metrics; ``None`` if diverged."""
    plan = promise["plan"]
    again = ledger(config.model, config.data).recomputed() if config.trainer.activation_checkpointing else 0
    rows = run.metrics()
    last = rows[-1] if rows and not diverged else {}
    if not diverged and last.get("step") != consumed.step:
        raise RunFailed(
            f"{run.metrics_path} lacks the row of step {consumed.step}, which has the final loss",
            f"remove the last checkpoint in {run.checkpoints}: the run goes on from the one before it",
        )
    result = {
        "status": "diverged" if diverged else "done",
        "error": diverged,
        "loss": last.get("val/loss"),
        "loss_topk": last.get("val/loss_topk"),
        "bits_per_byte": last.get("val/bits_per_byte"),
        "train_loss": last.get("train/loss"),
        "steps": consumed.step,
        "sequences": consumed.sequences,
        "tokens": consumed.sequences * plan["sequence_length"],
        "flops_consumed": consumed.sequences * plan["training_flops_per_sequence"],
        "flops_shared": consumed.shared_sequences * plan["training_flops_per_sequence"],
        "flops_planned": plan["flops"],
        "flops_recomputed": consumed.sequences * again,  # beside the budget
        "validation": {k.removeprefix("val/"): v for k, v in last.items() if k.startswith("val/")},
        "train_seconds": consumed.train_seconds,
        "eval_seconds": consumed.eval_seconds,
        "wall_seconds": consumed.wall_seconds,
        "peak_memory_bytes": consumed.peak_memory_bytes,
        "precision": promise["precision"],
        "provenance": provenance(device),
    }
    capacities = [v for k, v in last.items() if k.startswith("val/capacity.")]
    if isinstance(config.model, LayersConfig) and capacities:
        result["flops_per_token_causal"] = realised_forward(config.model, config.data, capacities, plan["convention"])
    return result


def run_info(run: RunDir, config: Config, promise: dict[str, Any]) -> RunInfo:
    """A tracker's view; the id is the same for every attempt at this run, and made of harmless letters."""
    place = hashlib.sha256(f"{config.study}/{run.name}".encode()).hexdigest()[:8]
    return RunInfo(
        run_dir=run.path,
        run_id=f"{promise['identity']}-{place}",
        name=run.name,
        study=config.study,
        arm=promise["plan"]["arm"],
        config={**to_tree(config), "plan": promise["plan"]},
    )
