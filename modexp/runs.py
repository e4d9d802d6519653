"""The run directory: what was planned, what happened, what came out. Files are the only link between the halves.

runs/<study>/<run>/config.yaml     resolved, complete, loadable
                   plan.json       what was promised: plan, ledger, precision, data, identity
                   metrics.jsonl   one line a log step
                   checkpoints/    weights, optimizer, state
                   branches/       checkpoints at which other runs leave this one, while they need them
                   result.json     what was consumed and reached; its presence means done
                   error.txt       why it failed, if it did
                   log.txt         what a run started by a sweep printed
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from modexp.config import root
from modexp.config.identity import digest, first_difference, scientific
from modexp.config.root import Config
from modexp.errors import UserError
from modexp.files import read_json, unwritable, write_json, write_text
from modexp.kinds import ledger
from modexp.plan.run import RunPlan

LOCK_PATIENCE = 2.0  # seconds: a reader of the status holds the lock for a moment


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
        self.lock_path = self.path / ".lock"

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
        return self.error_path.read_text().strip() if self.error_path.exists() else ""

    def metrics(self) -> list[dict[str, Any]]:
        """Rows of metrics.jsonl up to the first that is not whole: a crash can cut off the last one."""
        rows = []
        if self.metrics_path.exists():
            for line in self.metrics_path.read_bytes().splitlines(keepends=True):
                try:
                    rows.append(json.loads(line if line.endswith(b"\n") else b""))
                except ValueError:
                    break
        return rows

    def cut_metrics(self, step: int) -> None:
        """Drop the rows later than ``step``: a resumed run writes them again."""
        if self.metrics_path.exists():
            self.write_metrics([row for row in self.metrics() if row["step"] <= step])

    def write_metrics(self, rows: list[dict[str, Any]]) -> None:
        write_text(self.metrics_path, "".join(json.dumps(row) + "\n" for row in rows))

    def state(self) -> str:
        """done | diverged | running | failed | stopped | planned"""
        result = self.result()
        if result is not None:
            return result["status"]
        if self.is_locked():
            return "running"
        if self.error_path.exists():
            return "failed"
        return "stopped" if self.metrics_path.exists() else "planned"

    def is_locked(self) -> bool:
        """Whether a living process trains this run."""
        try:
            with open(self.lock_path, "rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except OSError:
            return True
        return False

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for this process; the lock goes with the process, however it ends."""
        try:
            file = open(self.lock_path, "a+b")  # noqa: SIM115
        except OSError as error:
            raise unwritable(self.path, error) from None
        with file:
            deadline = time.monotonic() + LOCK_PATIENCE
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError:
                    if time.monotonic() > deadline:
                        raise UserError(
                            f"{self.path} is being trained by another process",
                            "wait for it, or stop it; modexp status follows it",
                        ) from None
                    time.sleep(0.05)
            yield


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
        if run.result() is None and not run.is_locked():  # other devices, cadence, trackers take effect on resuming
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
            "precision": config.trainer.precision,
            "data": data,
            "model": asdict(config.model),  # what the records need of config.yaml, which is slow to read
            "ledger": books.to_json(),
            "predicted": predicted or {},
            **(trunk or {}),
        },
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
