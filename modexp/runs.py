"""The run directory: what was planned, what happened, what came out. Files are the only link between the halves.

runs/<study>/<run>/config.yaml     resolved, complete, loadable
                   plan.json       what was promised: plan, ledger, precision, data, identity
                   metrics.jsonl   one line a log step
                   checkpoints/    weights, optimizer, state
                   tokenizer.json  of data.tokenizer=bpe
                   branches/       checkpoints at which other runs leave this one, while they need them
                   result.json     what was consumed and reached; its presence means done
                   error.txt       why it failed, if it did
                   log.txt         what a run started by a sweep printed
                   .claim-N        which process trains it now (modexp/claim.py)
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from modexp import claim
from modexp.config import root
from modexp.config.identity import digest, first_difference, scientific
from modexp.config.root import Config
from modexp.errors import UserError
from modexp.files import read_json, write_json, write_text
from modexp.kinds import ledger
from modexp.plan.run import RunPlan

TAIL = 65_536  # bytes of metrics.jsonl that surely hold its last row


class RunDir:
    """Paths and small files of one run."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.config_path = self.path / "config.yaml"
        self.plan_path = self.path / "plan.json"
        self.metrics_path = self.path / "metrics.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.branches = self.path / "branches"
        self.result_path = self.path / "result.json"
        self.error_path = self.path / "error.txt"
        self.log_path = self.path / "log.txt"
        self.claim: claim.Claim | None = None  # while this process trains the run

    @property
    def name(self) -> str:
        return self.path.name

    def config(self) -> Config:
        return root.load(self.config_path)

    def plan(self) -> dict[str, Any]:
        return read_json(self.plan_path, "plan", "data", "identity", "precision")

    def origin(self) -> tuple[RunDir, Path] | None:
        """Of a branch: its trunk, and the checkpoint at which it leaves it; None for other runs."""
        branch = self.plan().get("branch")
        if not branch:
            return None
        trunk = RunDir(self.path.parent / branch["trunk"])
        return trunk, trunk.branches / f"step-{branch['step']:09d}"

    def result(self) -> dict[str, Any] | None:
        return read_json(self.result_path, "status") if self.result_path.exists() else None

    def error(self) -> str:
        return self.error_path.read_text(errors="replace").strip() if self.error_path.exists() else ""

    def metrics(self) -> list[dict[str, Any]]:
        """Rows of metrics.jsonl up to the first that is not whole: a crash can cut off the last one."""
        rows = []
        if self.metrics_path.exists():
            for line in self.metrics_path.read_bytes().splitlines(keepends=True):
                row = row_of(line)
                if row is None:
                    break
                rows.append(row)
        return rows

    def last_row(self) -> dict[str, Any]:
        """The last whole row of metrics.jsonl, without reading those before; empty where there is none."""
        try:
            with open(self.metrics_path, "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
                lines = file.read().splitlines(keepends=True)
        except FileNotFoundError:
            return {}
        return next((row for row in map(row_of, reversed(lines)) if row is not None), {})

    def cut_metrics(self, step: int) -> None:
        """Drop the rows later than ``step``: a resumed run writes them again."""
        if self.metrics_path.exists():
            self.write_metrics([row for row in self.metrics() if row["step"] <= step])

    def write_metrics(self, rows: list[dict[str, Any]]) -> None:
        write_text(self.metrics_path, "".join(json.dumps(row) + "\n" for row in rows))

    def state(self) -> str:
        """done | diverged | running | stale | failed | stopped | planned. A stale run's process is gone."""
        result = self.result()
        if result is not None:
            return result["status"]
        held = claim.state(self.path)
        if held != "free":
            return "running" if held == "held" else "stale"
        if self.error_path.exists():
            return "failed"
        return "stopped" if self.metrics_path.exists() else "planned"

    def is_held(self) -> bool:
        """Whether a living process trains this run, on whichever machine."""
        return claim.state(self.path) == "held"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for this process; the claim goes with the process, however it ends."""
        with claim.claimed(self.path) as self.claim:
            yield

    def fail(self, reason: str) -> None:
        """Keep why this attempt failed, unless the run is another process's by now."""
        if self.claim is None or self.claim.holds():
            write_text(self.error_path, f"{reason}\n")

    def check_claim(self) -> None:
        """RunFailed where another process took this run over."""
        if self.claim:
            self.claim.check()


def row_of(line: bytes) -> dict[str, Any] | None:
    """A row of metrics; None if the line is not whole, or damaged."""
    try:
        row = json.loads(line if line.endswith(b"\n") else b"")
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def identity(config: Config) -> str:
    """Hash of the scientific fields: equal for two configurations that compute the same numbers."""
    return digest(scientific(config))


def create(
    run: RunDir,
    config: Config,
    plan: RunPlan,
    data: dict[str, Any],
    predicted: dict[str, Any] | None = None,
    trunk: dict[str, Any] | None = None,
) -> None:
    """Write what is planned, or accept the same plan already there; refuse a directory that holds another.

    ``predicted``: seconds and bytes it will take (modexp.plan.cost), kept beside the plan to be compared with.
    ``trunk``: ``branch``, where this run leaves its trunk, or ``branch_steps``, at which others leave it."""
    if run.plan_path.exists():
        old, new = scientific(run.config()), scientific(config)
        difference = first_difference(old, new)
        if difference:
            key, was, now = difference
            raise UserError(
                f"{run.path} holds another run: {key} is {was} there and {now} here",
                "choose another name with name=..., or go back to its settings",
            )
        check_data(run, data)
        if run.result() is None and not run.is_held():  # other devices, cadence, trackers take effect on resuming
            known = replace(config.data, num_tokens=run.config().data.num_tokens)
            root.save(replace(config, data=known), run.config_path)
        return
    root.save(config, run.config_path)
    books = ledger(config.model, config.data)
    write_json(
        run.plan_path,
        {
            "plan": plan.to_json(),
            "identity": identity(config),
            "settings": scientific(config),
            "precision": config.trainer.precision,
            "data": data,
            "model": asdict(config.model),  # what the records need of config.yaml, which is slow to read
            "ledger": books.to_json(),
            "predicted": predicted or {},
            **(trunk or {}),
        },
    )


def check_config(run: RunDir, config: Config) -> None:
    """Refuse to go on under other settings than the run was planned with."""
    planned = run.plan().get("settings", {})  # runs made before it was kept have none
    now = json.loads(json.dumps(scientific(config), default=str))
    difference = first_difference(planned, {key: value for key, value in now.items() if key in planned})
    if difference:
        key, was, is_now = difference
        raise UserError(
            f"{run.config_path} was changed: {key} was {was} when the run was planned and is {is_now} now",
            "write the old value back, or plan another run",
        )


def check_data(run: RunDir, data: dict[str, Any]) -> None:
    """Refuse to go on with other text than the run was planned on."""
    planned = run.plan()["data"]["content_hash"]
    if planned != data["content_hash"]:
        raise UserError(
            f"{run.path} was planned on data with content hash {planned}, now it is {data['content_hash']}",
            "bring the old text back, or start anew with another name=... or study",
        )


def run_dirs(study: Path) -> list[RunDir]:
    """The runs of a study, by name."""
    try:
        names = sorted(entry.name for entry in os.scandir(study) if entry.is_dir())
    except FileNotFoundError:
        raise UserError(f"{study} does not exist", "modexp status names the studies there are") from None
    return [RunDir(study / name) for name in names if (study / name / "plan.json").exists()]
