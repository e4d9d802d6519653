"""The command line as a person meets it: what works, and a sentence with the right exit code for what does not."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from modexp.runs import RunDir

Cli = Callable[..., int]
Captured = pytest.CaptureFixture[str]

SMALL = ["model.n_layers=2", "model.d_model=16", "model.n_heads=2", "optim.batch_size=2", "budget=1e9"]


def refused(cli: Cli, capsys: Captured, words: list[str], text: str, code: int = 2) -> str:
    """One sentence on stderr and a next step at most, nothing on stdout, no traceback, the exit code."""
    assert cli(*words) == code
    captured = capsys.readouterr()
    assert text in captured.err
    complaint = captured.err[captured.err.index("modexp: error:") :].rstrip().splitlines()
    assert len(complaint) <= 2
    assert "Traceback" not in captured.err
    return captured.out


def test_help_names_every_command(modexp_cli: Cli, capsys: Captured) -> None:
    assert modexp_cli("--help") == 0
    out = capsys.readouterr().out
    assert all(f"  {command}" in out for command in ("train", "plan", "flops", "sweep", "status", "fit", "plot"))
    assert modexp_cli("--version") == 0
    assert capsys.readouterr().out.startswith("modexp ")


def test_no_command_is_a_usage_error(modexp_cli: Cli, capsys: Captured) -> None:
    assert modexp_cli() == 2
    assert "usage" in capsys.readouterr().out
    assert modexp_cli("swep") == 2
    assert "did you mean sweep?" in capsys.readouterr().err


def test_plan_prints_the_papers_runs(modexp_cli: Cli, capsys: Captured) -> None:
    assert modexp_cli("plan", "--budget", "6e18") == 0
    out = capsys.readouterr().out
    assert "baseline-225M-6e18-s0" in out
    assert "mod-212M-6e18-s0" in out


def test_plan_takes_flags_and_overrides_in_any_order(modexp_cli: Cli, capsys: Captured) -> None:
    assert modexp_cli("plan", "seeds=[0,1]", "--json", "grid.points=5", "--budget", "1e12,2e12", "demo") == 0
    plan = json.loads(capsys.readouterr().out)
    assert len(plan["runs"]) == 2 * 2 * 2 * 5
    assert {run["budget"] for run in plan["runs"]} == {1e12, 2e12}
    assert not plan["dropped"]


@pytest.mark.parametrize("width", ["40", "80"])
def test_plans_of_any_sweep_fit_a_narrow_terminal_uncut(
    width: str, modexp_cli: Cli, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")  # as on a terminal
    monkeypatch.setenv("COLUMNS", width)
    for words in ([], ["--budget", "6e18,2e19,1e20"], ["figure3"], ["sampling"], ["demo", "--budget", "1e11"]):
        assert modexp_cli("plan", *words) == 0
        said = capsys.readouterr()
        assert "\u2026" not in said.out, "a number that is cut off is another number"
        assert "too narrow for" in said.err


def test_dry_run_leaves_nothing(modexp_cli: Cli, tmp_path: Path) -> None:
    assert modexp_cli("sweep", "--budget", "6e18", "--dry-run") == 0
    assert not list(tmp_path.iterdir())


def test_configuration_is_printed_through_hydra(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "modexp", "train", "--cfg", "job", "model=mod", "--budget", "6e18"],
        capture_output=True, text=True, cwd=tmp_path, check=True,
    )  # fmt: skip
    assert "capacity: 0.125" in done.stdout
    assert "flops: 6.0e+18" in done.stdout or "flops: 6.0e18" in done.stdout
    assert not list(tmp_path.iterdir()), "Hydra left something behind"


BAD_WORDS = [
    (["train", "model.foo=1"], "model.foo is not a setting"),
    (["train", "+model.foo=1"], "model.foo is not a setting"),
    (["train", "+foo=1"], "foo is not a setting"),
    (["train", "model.n_layers=two"], "model.n_layers"),
    (["train", "model=nonsense"], "choose one of: baseline, mod"),
    (["train", "model.n_layers=2", "model.d_model=250", "model.n_heads=4"], "try model.d_model=248"),
    (["train", "model=mod", "model.capacity=0"], "model.capacity=0"),
    (["train", "model=mod", "model.capacity=2"], "model.capacity=2"),
    (["train", "--budget", "1"], "less than one sequence costs"),
    (["train", "--budget", "lots"], "--budget lots is not a number"),
    (["train", "--budget", "1e9,2e9"], "not one number"),
    (["train", "size=17"], "size=17 has no rung"),
    (["train", "size=1m", *SMALL], "both set the shape"),
    (["train", "model.d_model=64"], "half given"),
    (["train", "--run", "nowhere"], "holds no plan.json"),
    (["train", "trainer.device=cuda"], "torch sees no CUDA device"),
    (["train", "budget=inf"], "budget.flops=inf is not a finite number"),
    (["train", "model.mlp_ratio=inf"], "model.mlp_ratio=inf is not a finite number"),
    (["train", "optim.lr=nan"], "optim.lr=nan is not a finite number"),
    (["train", "data.num_tokens=0"], "data.num_tokens=0"),
    (["train", "data.paths=[a]"], "it belongs to data=files"),
    (["train", "data=files", "data.paths=a.txt"], "data.paths is a list"),
    (["train", "--foo"], "--foo is not a flag"),
    (["train", "--run=nowhere"], "holds no plan.json"),
    (["plan", "--budget", "1"], "buy no run"),
    (["plan", "grid.points=500"], "more than the"),
    (["plan", "grid=5"], "is not a group of settings"),
    (["plan", "grid.span=1"], "holds one size"),
    (["plan", "seeds=3"], "seeds is a list"),
    (["plan", "nonsense"], "there is no sweep file nonsense"),
    (["plan", "isoflop", "demo"], "one name too many"),
    (["plan", "--budget=-3"], "--budget -3 is not a number of FLOPs"),
    (["plan", "--budgets", "3"], "unrecognized arguments: --budgets"),
    (["plan", "--budget", "0"], "not a number of FLOPs"),
    (["plan", "--budget", "inf"], "not a number of FLOPs"),
    (["plan", "seed=3"], "use seeds=[0,1]"),
    (["plan", "seeds=[0,0]"], "names a seed twice"),
    (["plan", "grid.span=0.5"], "grid.span=0.5 is below 1"),
    (["plan", "grid.pionts=5"], "grid.points"),
    (["plan", "model=mod"], "model is set by the sweep's arms"),
    (["plan", "budget.flops=1e18"], "--budget 6e18"),
    (["plan", "modl.capacity=0.5"], "modl.capacity is not a setting"),
    (["sweep", "--budget", "1", "demo"], "buy no run"),
    (["status"], "there is no study under runs"),
    (["status", "--study", "none"], "there is no study none"),
    (["fit"], "there is no study under runs"),
    (["plot", "isoflop"], "there is no study under runs"),
    (["plot", "curves", "--study", "none"], "there is no study none"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "text"), BAD_WORDS, ids=[" ".join(words) for words, _ in BAD_WORDS])
def test_bad_words_are_sentences(
    words: list[str], text: str, modexp_cli: Cli, capsys: Captured, tmp_path: Path
) -> None:
    refused(modexp_cli, capsys, words, text)
    assert not list(tmp_path.iterdir()), "a refused request left something behind"


def files_words(paths: str) -> list[str]:
    return ["train", "data=files", f"data.paths=[{paths}]", "tracker=none", *SMALL]


def test_empty_glob(modexp_cli: Cli, capsys: Captured) -> None:
    refused(modexp_cli, capsys, files_words("nothing/*.txt"), "nothing/*.txt")


def test_text_that_is_not_utf8(modexp_cli: Cli, capsys: Captured, tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("ein Stück".encode("latin-1"))
    refused(modexp_cli, capsys, files_words("latin.txt"), "latin.txt")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads and writes everything")
def test_unreadable_file(modexp_cli: Cli, capsys: Captured, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("x" * 1000)
    (tmp_path / "secret.txt").chmod(0)
    refused(modexp_cli, capsys, files_words("secret.txt"), "secret.txt")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads and writes everything")
def test_read_only_directory(modexp_cli: Cli, capsys: Captured, tmp_path: Path, tiny: list[str]) -> None:
    (tmp_path / "sealed").mkdir(mode=stat.S_IRUSR | stat.S_IXUSR)
    refused(modexp_cli, capsys, ["train", *tiny, *SMALL, "runs_dir=sealed"], "cannot be written")


def test_a_file_where_the_directory_should_be(
    modexp_cli: Cli, capsys: Captured, tmp_path: Path, tiny: list[str]
) -> None:
    (tmp_path / "occupied").write_text("")
    refused(modexp_cli, capsys, ["train", *tiny, *SMALL, "runs_dir=occupied"], "cannot be written")


def test_a_directory_that_cannot_be_written_is_told_before_any_work(
    modexp_cli: Cli, capsys: Captured, tmp_path: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may write everywhere, so what the system says is put in its mouth."""
    monkeypatch.setattr("modexp.files.os.access", lambda path, mode: Path(path) != tmp_path)
    refused(modexp_cli, capsys, ["train", *tiny, *SMALL], "runs/train cannot be written: Permission denied")
    assert not list(tmp_path.iterdir())


def test_another_plan_under_the_same_name(modexp_cli: Cli, capsys: Captured, tmp_path: Path, tiny: list[str]) -> None:
    words = ["train", *tiny, *SMALL, "name=mine"]
    assert modexp_cli(*words) == 0
    result = (tmp_path / "runs/train/mine/result.json").read_bytes()
    refused(modexp_cli, capsys, [*words, "optim.beta2=0.5"], "optim.beta2 is 0.95 there and 0.5 here")
    assert (tmp_path / "runs/train/mine/result.json").read_bytes() == result
    capsys.readouterr()
    assert modexp_cli(*words) == 0
    assert "is finished; nothing to do" in capsys.readouterr().err


def test_two_settings_two_directories(modexp_cli: Cli, tmp_path: Path, tiny: list[str]) -> None:
    for rate in ("1e-3", "2e-3"):
        assert modexp_cli("train", *tiny, *SMALL, f"optim.lr={rate}") == 0
    assert len(list((tmp_path / "runs/train").glob("*/result.json"))) == 2


SWEEP_FILES = [
    ("arms: {a: [model=mod, seed=4]}", "seed is set by the sweep"),
    ("arms: {a: [model=mod, budget.convention=causal]}", "budget.convention is set by the sweep"),
    ("arms: {a: [budget.flops=1e9]}", "budget.flops is set by the sweep"),
    ("arms: {a: [runs_dir=x]}", "runs_dir is set by the sweep"),
    ("arms: {a: []}\noverrides: [name=x]", "name is set by the sweep"),
    ("arms: {a: []}\nplots: 3", "plots is not a setting"),
    ("arms: [a, b]", "a list stands"),
    ("arms: {}", "arms={} is empty"),
    ("arms: {a b: []}", "arms=a b is not made of letters"),
    ("arms: {a: []}\ngrid: 3", "grid=3 is not a group"),
    ("arms: {a: [", "cannot be read"),
    ("- a", "cannot be read"),
]


@pytest.mark.parametrize(("text", "said"), SWEEP_FILES, ids=[text for text, _ in SWEEP_FILES])
def test_bad_sweep_files_are_sentences(text: str, said: str, modexp_cli: Cli, capsys: Captured, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(f"budgets: [1e10]\n{text}\n")
    refused(modexp_cli, capsys, ["plan", "mine.yaml"], said)


DAMAGE = [
    ("plan.json", "{}", "plan.json is damaged"),
    ("plan.json", '{"plan": ', "plan.json is damaged"),
    ("result.json", "{}", "result.json is damaged"),
    ("result.json", "nothing", "result.json is damaged"),
]


@pytest.mark.parametrize(("name", "content", "said"), DAMAGE)
def test_a_damaged_run_is_told_and_the_others_go_on(
    name: str, content: str, said: str, modexp_cli: Cli, capsys: Captured, tmp_path: Path, tiny: list[str]
) -> None:
    for run in ("good", "bad"):
        assert modexp_cli("train", *tiny, *SMALL, f"name={run}") == 0
    (tmp_path / "runs/train/bad/result.json").unlink()
    (tmp_path / "runs/train/bad" / name).write_text(content)
    capsys.readouterr()
    assert modexp_cli("status") == 0
    captured = capsys.readouterr()
    assert said in captured.err
    assert "good" in captured.out
    assert "bad" not in captured.out
    refused(modexp_cli, capsys, ["train", "--run", "runs/train/bad"], said)


def test_a_broken_line_of_metrics_ends_what_is_read(
    modexp_cli: Cli, capsys: Captured, tmp_path: Path, tiny: list[str]
) -> None:
    assert modexp_cli("train", *tiny, *SMALL, "name=mine", "trainer.log_every=1") == 0
    path = tmp_path / "runs/train/mine/metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:3], "{garbage}\n", *lines[3:], '{"step": 9']))
    assert len(RunDir(path.parent).metrics()) == 3
    assert modexp_cli("plot", "curves") == 0


def test_a_damaged_study_file_is_a_sentence(modexp_cli: Cli, capsys: Captured, tmp_path: Path) -> None:
    (tmp_path / "runs/demo").mkdir(parents=True)
    for content in ("", "sweep: {", "sweep: 3"):
        (tmp_path / "runs/demo/study.yaml").write_text(content)
        refused(modexp_cli, capsys, ["sweep", "demo", "--dry-run"], "study.yaml is damaged")


def test_debug_shows_the_traceback(modexp_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEXP_DEBUG", "1")
    with pytest.raises(Exception, match="there is no sweep file"):
        modexp_cli("plan", "nonsense")


def test_a_diverged_run_is_a_failure(modexp_cli: Cli, capsys: Captured, tiny: list[str]) -> None:
    words = ["train", *tiny, *SMALL, "optim.lr=1e30", "schedule.warmup=0"]
    refused(modexp_cli, capsys, words, "diverged: train/loss is nan", code=1)
