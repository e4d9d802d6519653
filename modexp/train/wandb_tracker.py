"""Weights & Biases as a mirror of metrics.jsonl: silent, never a question, never the cause of a lost run.

How wandb 0.31 behaves, found by trial, is why this file is longer than its few calls of wandb. Without a key
and with a terminal it asks. Without a network ``init`` blocks. Offline it cannot resume, and a row whose
``step=`` is below the last one is dropped in silence: so step, tokens and FLOPs are ordinary logged keys, and
a resumed run is replayed.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from modexp.config.train import WandbTracker
from modexp.errors import RunFailed, UserError
from modexp.files import write_json
from modexp.runs import RunDir
from modexp.train.trackers import RunInfo, Tracker

INIT_SECONDS = 10.0  # to reach the server, unless $WANDB_INIT_TIMEOUT is set; wandb would take 90
FINISH_SECONDS = 60.0  # to upload what is left; wandb would wait for ever on a network that is gone
SENT = ".sent.json"  # in a run's directory: what the server has of it
FAILURES = (Exception, SystemExit)  # wandb.teardown calls sys.exit when its service process ended badly


def start(config: WandbTracker, info: RunInfo, warn: Callable[[str], None]) -> Tracker:
    """A mirror of the run on W&B or, failing that, in an offline segment under ``run_dir/wandb``."""
    os.environ["WANDB_SILENT"] = "true"  # the only way to silence what wandb says while it reads its settings
    try:
        return _connect(config, info, warn)
    except FAILURES as error:
        _shut_down(exit_code=1)
        warn(f"W&B does not start ({_reason(error)}); this run has metrics.jsonl alone")
        return Tracker()


def send(config: WandbTracker, info: RunInfo, summary: dict[str, Any], exit_code: int) -> None:
    """Bring the server up to what metrics.jsonl and the result hold; what it has is not sent again.

    Raises :class:`UserError` where the server cannot be reached, :class:`RunFailed` where it breaks off.
    """
    os.environ["WANDB_SILENT"] = "true"
    rows = RunDir(info.run_dir).metrics()
    try:
        if not _has_key():
            raise UserError("W&B has no key for its server", "wandb login, or WANDB_API_KEY=...")
        run = _init(config, info, "online", resume=bool(rows))
    except UserError:
        raise
    except FAILURES as error:
        _shut_down(exit_code=1)
        raise UserError(f"W&B cannot be reached ({_reason(error)})", "the same command tries again") from None
    failures: list[str] = []
    WandbMirror(run, rows, failures.append, info.run_dir).finish(summary, exit_code)
    if failures:
        raise RunFailed(f"{info.run_dir}: {failures[0]}", "the same command tries again")


def is_sent(run_dir: Path, step: int, finished: bool) -> bool:
    """Whether the server is known to have the rows up to ``step``, and the result of a ``finished`` run."""
    try:
        return json.loads((run_dir / SENT).read_text()) == {"step": step, "finished": finished}
    except (OSError, ValueError):
        return False


def resolve_mode(configured: str) -> str:
    """online, offline or disabled. auto: $WANDB_MODE, else wandb's settings, else whether it has a key."""
    import wandb

    if configured != "auto":
        return configured
    mode = wandb.setup().settings.mode
    if mode == "online" and not os.environ.get("WANDB_MODE") and not _has_key():
        return "offline"
    return {"run": "online", "dryrun": "offline"}.get(mode, mode)


def _has_key() -> bool:
    """Whether wandb has a key for its host ($WANDB_API_KEY, netrc, settings): no question, no network."""
    import wandb

    try:
        return wandb.login(prompt=False, verify=False)
    except wandb.errors.AuthenticationError:
        return True  # there is one, of the wrong form: going online with it will say what is wrong


def _connect(config: WandbTracker, info: RunInfo, warn: Callable[[str], None]) -> Tracker:
    mode = resolve_mode(config.mode)
    if mode == "disabled":
        return Tracker()
    rows = RunDir(info.run_dir).metrics()
    try:
        run = _init(config, info, mode, resume=bool(rows))
    except FAILURES as error:
        if mode == "offline":
            raise
        _shut_down(exit_code=1)  # without this the next init of the process would fail as well
        run = _init(config, info, "offline", resume=False)
        mode = "offline"
        warn(f"W&B cannot be reached ({_reason(error)}); recording offline, upload later: modexp sync {info.run_dir}")
    return WandbMirror(run, rows, warn, info.run_dir if mode == "online" else None)


def _init(config: WandbTracker, info: RunInfo, mode: Any, resume: bool) -> Any:
    import wandb

    return wandb.init(
        project=config.project,
        entity=config.entity,
        group=info.study,
        job_type=info.arm,
        name=info.name,
        id=info.run_id,
        tags=config.tags or None,  # None: $WANDB_TAGS
        config=info.config,
        dir=str(info.run_dir),
        mode=mode,
        resume="allow" if resume else None,  # None: replace what the server has under this id
        reinit="create_new",
        settings=wandb.Settings(
            console="off",
            init_timeout=float(os.environ.get("WANDB_INIT_TIMEOUT", INIT_SECONDS)),
            finish_timeout=FINISH_SECONDS,
            finish_timeout_raises=True,
        ),
    )


class WandbMirror(Tracker):
    """A started W&B run. Its first failure is a warning and its end; the training run never notices."""

    def __init__(self, run: Any, rows: list[dict[str, Any]], warn: Callable[[str], None], note_in: Path | None) -> None:
        """``note_in``: the directory of a run that goes online, which keeps what the server has."""
        self._run = run
        self._warn = warn
        self._note_in = note_in
        self._row_step = 0
        # What the server has of an earlier attempt. A run that was cut back to a checkpoint before that step
        # trains it again, to the same numbers, which W&B must not show twice.
        self._last_step = run.summary.get("step", -1) if run.resumed else -1
        for axis in ("step", "tokens", "flops"):
            run.define_metric(axis)
        # The summary keeps the last value: an isoFLOP point is one, and wandb forgets a "min" on resume.
        for group in ("train/*", "val/*", "perf/*", "routing/*"):
            run.define_metric(group, step_metric="tokens")
        for row in rows:
            self.log(row)

    def log(self, row: dict[str, Any]) -> None:
        self._row_step = row["step"]

        def send(run: Any) -> None:
            if row["step"] > self._last_step:
                run.log(row)

        self._attempt(send)

    def finish(self, summary: dict[str, Any], exit_code: int = 0) -> None:
        def close(run: Any) -> None:
            run.summary.update(summary)
            run.finish(exit_code=exit_code)
            if self._note_in:
                write_json(self._note_in / SENT, {"step": self._row_step, "finished": bool(summary)})

        self._attempt(close)
        _shut_down(exit_code)

    def _attempt(self, call: Callable[[Any], None]) -> None:
        if self._run is None:
            return
        try:
            call(self._run)
        except FAILURES as error:
            self._run = None
            self._warn(f"W&B failed ({_reason(error)}); metrics.jsonl is complete, modexp sync sends it later")


def _shut_down(exit_code: int) -> None:
    """End wandb's service process and all its runs: no exit hook is left that could print a traceback."""
    with contextlib.suppress(*FAILURES):
        import wandb

        wandb.teardown(exit_code)


def _reason(error: BaseException) -> str:
    """The first line of wandb's message, which can go on for many."""
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
