"""The live view of a sweep: what stands on a terminal, and the lines elsewhere."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from modexp.cli import watch
from modexp.cli.watch import Watch
from modexp.errors import UserError
from modexp.runs import RunDir, run_dirs
from modexp.sweep.study import load_study
from tests.synthetic import make_study


@pytest.fixture
def runs(tmp_path: Path) -> list[RunDir]:
    """Of a study: one at work, one of another process, one that waits, the others done."""
    found = run_dirs(make_study(tmp_path, [1e17]))
    for run in found[:3]:
        run.result_path.unlink()
    plan = found[0].plan()["plan"]
    row = {"step": plan["steps"] // 4, "tokens": plan["tokens"] // 4, "flops": plan["flops"] / 4}
    speed = {"perf/tokens_per_s": plan["tokens"] / 400}  # 300 s are left
    found[0].metrics_path.write_text(json.dumps({**row, **speed, "train/loss": 3.21}) + "\n")
    (found[1].path / ".lock").touch()
    (found[1].path / ".claim-1").write_text('{"host": "node7", "machine": "another", "pid": 1}')
    return found


def shown(runs: list[RunDir], terminal: bool, monkeypatch: pytest.MonkeyPatch) -> str:
    output = StringIO()
    console = Console(file=output, force_terminal=terminal, width=160, highlight=False)
    monkeypatch.setattr(watch, "Console", lambda **_: console)
    monkeypatch.setattr(watch, "LIVE_EVERY", 0.0)
    monkeypatch.setattr(watch, "PLAIN_EVERY", 0.0)
    with Watch(runs, slots=2) as view:
        view.show([runs[0]], [runs[1]])
        if view.live:
            view.live.refresh()
    return output.getvalue()


def test_a_terminal_shows_each_run_at_work(runs: list[RunDir], monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(runs, True, monkeypatch)
    steps = runs[0].plan()["plan"]["steps"]
    line = next(line for line in text.splitlines() if runs[0].name in line)
    for part in (f"step {steps // 4:,}/{steps:,} (25%)", "loss 3.210", "tok/s", "5m00s left"):
        assert part in line
    assert "another process on node7" in text
    assert "0/3" in text, "of the three that have no result"
    assert f"{len(runs) - 3} done" in text
    assert "device-hours; about" in text


def test_elsewhere_it_is_one_line(runs: list[RunDir], monkeypatch: pytest.MonkeyPatch) -> None:
    (line,) = shown(runs, False, monkeypatch).splitlines()
    assert "1 running" in line
    assert "FLOPs consumed" in line


def test_sweeps_at_once_keep_each_others_budgets(runs: list[RunDir]) -> None:
    path = runs[0].path.parent
    one, other = load_study(path), load_study(path)
    one.sweep.budgets.append(2e17)
    other.sweep.budgets.append(3e17)
    one.save()
    other.save()
    assert load_study(path).sweep.budgets == [1e17, 2e17, 3e17]
    file = path / "study.yaml"
    file.write_text(file.read_text().replace(f"precision: {one.precision}", "precision: bf16"))
    with pytest.raises(UserError, match="was just begun in bf16 by another sweep"):
        one.save()
