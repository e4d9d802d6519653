"""A study as a table: one record a run, read from its directory and from nowhere else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from modexp.analysis.reread import recount
from modexp.errors import UserError
from modexp.runs import RunDir, run_dirs

PLANNED = (
    "arm", "budget", "seed", "size", "n_layers", "d_model", "params_total", "params_non_embedding", "params_active",
    "flops_per_token", "relative_flops", "batch_size", "lr", "tokens_per_param", "epochs", "routed", "convention",
)  # fmt: skip
MODEL = ("kind", "capacity", "every", "layers", "causal")  # None where a kind of model has no such thing
REACHED = (
    "loss", "loss_topk", "bits_per_byte", "train_loss", "flops_per_token_causal", "train_seconds",
    "eval_seconds", "wall_seconds", "peak_memory_bytes",
)  # fmt: skip

PREDICTED = ("predicted_seconds", "predicted_memory_bytes")  # None where nothing was measured before the run


def record(run: RunDir) -> dict[str, Any]:
    """What is known of a run now. Losses in nats a token, ``None`` until it is done."""
    promise = run.plan()
    plan, model = promise["plan"], promise.get("model", {})
    result = run.result() or {}
    state = run.state()
    row: dict[str, Any] = {"run": run.name, "status": state}
    row |= {key: plan[key] for key in PLANNED} | {key: model.get(key) for key in MODEL}
    row["lr_scale"] = plan.get("lr_scale", 1.0)  # of the rule's rate: other than 1 in guard runs
    row |= {
        "sequence_length": plan["sequence_length"],
        "steps_planned": plan["steps"],
        "tokens_planned": plan["tokens"],
        "flops_planned": plan["flops"],
        "steps": result.get("steps", 0),
        "tokens": result.get("tokens", 0),
        "flops_consumed": result.get("flops_consumed", 0),
        "error": result.get("error") or run.error(),
    }
    branch = promise.get("branch") or {"trunk": None, "sequences": 0}
    row["trunk"] = branch["trunk"]  # of a branch: the run that trained its first part
    row["flops_shared"] = result.get("flops_shared", branch["sequences"] * plan["training_flops_per_sequence"])
    row |= {key: result.get(key) for key in REACHED}
    if result.get("train_seconds") and row["tokens"]:
        row["seconds_per_token"] = result["train_seconds"] / row["tokens"]
    row |= {key: promise.get("predicted", {}).get(key) for key in PREDICTED}
    if not result and (last := run.last_row()):
        row |= {"steps": last["step"], "tokens": last["tokens"], "flops_consumed": last["flops"]}
        row["train_loss"] = last.get("train/loss")
        row["tokens_per_s"] = last.get("perf/tokens_per_s")
    return row


def records(study: Path, damaged: list[str] | None = None, convention: str | None = None) -> list[dict[str, Any]]:
    """One record a run of the study, by budget, arm and size. UserError if there is none.

    ``convention``: count FLOPs as it does where that is not how the study was planned. Runs whose files cannot be
    read are left out, each with a sentence in ``damaged``.
    """
    rows = []
    for run in run_dirs(study):
        try:
            row = record(run)
            if convention and convention != row["convention"]:
                row |= recount(run, row, convention)
            rows.append(row)
        except UserError as error:
            if damaged is None:
                raise
            damaged.append(error.sentence)
    if not rows:
        raise UserError(f"{study} holds no readable run", "modexp sweep plans and runs a study")
    return sorted(rows, key=lambda r: (r["budget"], r["arm"], r["flops_per_token"], r["seed"]))


def latest_study(runs_dir: Path) -> Path:
    """The study changed last under ``runs_dir``."""
    found = [path.parent for path in runs_dir.glob("*/study.yaml")]
    found += [p.parents[1] for p in runs_dir.glob("*/*/plan.json") if not (p.parents[1] / "study.yaml").exists()]
    if not found:
        raise UserError(f"there is no study under {runs_dir}", "modexp sweep demo makes one in minutes")
    return max(set(found), key=lambda path: max(p.stat().st_mtime for p in (path, *path.glob("*/"))))
