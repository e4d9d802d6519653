"""TAB in bash, zsh and fish: the shells themselves are asked."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import shlex
import shutil
import subprocess
import sys
import time
from contextlib import redirect_stdout, suppress
from pathlib import Path

import pytest

from modexp.cli import COMMANDS, run
from modexp.cli.completion import begin_of


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `modexp` in bin/ and a study of two runs in runs/."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "bin").mkdir()
    script = folder / "bin/modexp"
    root = Path(__file__).resolve().parents[1]
    script.write_text(f'#!/bin/sh\nPYTHONPATH={root} exec {shlex.quote(sys.executable)} -m modexp "$@"\n')
    script.chmod(0o755)
    for name in ("baseline-20k-1e10-s0", "mod-20k-1e10-s0"):
        (folder / "runs/small" / name).mkdir(parents=True)
        plan = {"plan": {"arm": name.split("-")[0]}, "data": {}, "identity": "", "precision": "fp32"}
        (folder / "runs/small" / name / "plan.json").write_text(json.dumps(plan))
    (folder / "points.csv").write_text("")
    return folder


def environment(home: Path) -> dict[str, str]:
    path = f"{home / 'bin'}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "HOME": str(home), "TERM": "dumb", "XDG_CONFIG_HOME": str(home)}


BASH = r"""
eval "$(modexp completion bash)"
COMP_WORDBREAKS=$' \t\n"\'@><=;|&(:' COMP_TYPE=9
for COMP_LINE; do
  COMP_POINT=${#COMP_LINE}
  _python_argcomplete modexp
  printf '%s\n' "${COMPREPLY[@]}" ====
done
"""
FISH = """
modexp completion fish | source
for line in $argv
  complete -C $line
  echo ====
end
"""


def answers(words: list[str], home: Path) -> dict[str, list[str]]:
    """What a shell offers for each of LINES."""
    lines = [line for line, _ in LINES]
    done = subprocess.run([*words, *lines], cwd=home, env=environment(home), capture_output=True, text=True, check=True)
    offers = [[line.split("\t")[0].strip() for line in part.splitlines()] for part in done.stdout.split("====\n")]
    return dict(zip(lines, offers, strict=False))


@pytest.fixture(scope="module")
def bash(home: Path) -> dict[str, list[str]]:
    """What bash would put in place of the word, which for it begins behind an =."""
    needs("bash")
    return answers(["bash", "--norc", "-c", BASH, "bash"], home)


@pytest.fixture(scope="module")
def fish(home: Path) -> dict[str, list[str]]:
    """The whole words that fish offers."""
    needs("fish")
    return answers(["fish", "--no-config", "-c", FISH], home)


def needs(shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")


LINES = [
    ("modexp sw", ["sweep"]),
    ("modexp plan --bud", ["--budget"]),
    ("modexp train model=mod_t", ["model=mod_threshold", "model=mod_token_choice"]),
    ("modexp train model.cap", ["model.capacity="]),
    ("modexp train model=mod model.cap", ["model.capacity="]),
    ("modexp train model=mod model.causal=", ["model.causal=predictor", "model.causal=auxiliary", "model.causal=none"]),
    ("modexp train -m model.gate=raw,s", ["model.gate=raw,sigmoid"]),
    ("modexp plan demo --budget 1e9 --json grid.s", ["grid.span="]),
    ("modexp sweep dem", ["demo"]),
    ("modexp sweep demo adapt=", ["adapt=on", "adapt=off"]),
    ("modexp bench d", ["decode"]),
    ("modexp bench step --prof", ["--profile"]),
    ("modexp plot exp", ["exponents"]),
    ("modexp status sm", ["small"]),
    ("modexp fit --study sm", ["small"]),
    ("modexp fit po", ["points.csv"]),
    ("modexp compare small --baseline m", ["mod"]),
    ("modexp eval runs/small/m", ["runs/small/mod-20k-1e10-s0"]),
    ("CUDA_VISIBLE_DEVICES=0 modexp flops --conv", ["--convention"]),
]


@pytest.mark.parametrize(("line", "offers"), LINES, ids=[line for line, _ in LINES])
def test_bash(line: str, offers: list[str], bash: dict[str, list[str]]) -> None:
    word = line.split(" ")[-1]
    known = len(word.rpartition("=")[0]) + 1 if "=" in word else 0
    assert bash[line] == [offer[known:] for offer in offers]


@pytest.mark.parametrize(("line", "offers"), LINES, ids=[line for line, _ in LINES])
def test_fish(line: str, offers: list[str], fish: dict[str, list[str]]) -> None:
    assert sorted(fish[line]) == sorted(offers)


TYPED = [
    ("modexp sw", "modexp sweep "),
    ("modexp train model=mod model.cap", "model.capacity="),
    ("modexp train 'data.path=x' model=mod_th", "model=mod_threshold "),
    ("modexp eval runs/small/m", "runs/small/mod-20k-1e10-s0 "),
    ("X=1 modexp plan --bud", "--budget "),
]
SET_UP = {
    "bash": ["bash --norc --noprofile -i", "PS1='> '"],
    "zsh": ["zsh -f -i", "PS1='> '; autoload -U compinit; compinit -u"],
}


@pytest.mark.parametrize("shell", SET_UP)
def test_tab_in_a_terminal(shell: str, home: Path) -> None:
    needs(shell)
    command, first = SET_UP[shell]
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(home)
        words = command.split()
        os.execvpe(words[0], words, environment(home))

    def type_until(text: str, shown: str) -> None:
        os.write(terminal, text.encode())
        screen, end = "", time.monotonic() + 30
        while shown not in screen.replace("\r", ""):
            assert time.monotonic() < end, f"{text!r} gave {screen!r}"
            if select.select([terminal], [], [], 0.1)[0]:
                screen += os.read(terminal, 4096).decode(errors="replace")

    try:
        type_until(f'{first}; eval "$(modexp completion {shell})"; echo re""ady\n', "\nready")
        for line, whole in TYPED:
            type_until(f"{line}\t", whole)
            type_until("\x15", "")
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        os.close(terminal)


def test_the_command_begins_behind_others_and_variables() -> None:
    for before in ("", "X=1 ", "cd runs/modexp; ", "make && /opt/bin/"):
        assert begin_of(f"{before}modexp plan demo") == len(before.removesuffix("/opt/bin/"))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_completes_its_flags(command: str, home: Path) -> None:
    """Those that its help names, or that Hydra has; and for the answer nothing slow is loaded."""
    words = [command, *(["step"] if command == "bench" else [])]
    asked = f"modexp {' '.join(words)} -"
    told = home / f"{command}.txt"
    variables = {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n", "_ARGCOMPLETE_STDOUT_FILENAME": str(told)}
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "modexp"], cwd=home, capture_output=True, text=True, check=True,
        env={**environment(home), **variables, "COMP_LINE": asked, "COMP_POINT": str(len(asked))},
    )  # fmt: skip
    assert set(told.read_text().split()) == flags_by_help(words)
    loaded = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert "modexp.cli.completion" in loaded
    assert not loaded & {"torch", "hydra", "omegaconf", "numpy", "rich", "pandas"}


def flags_by_help(words: list[str]) -> set[str]:
    if words == ["train"]:
        from hydra._internal.utils import get_args_parser

        hydras = {flag for action in get_args_parser()._actions for flag in action.option_strings}
        return hydras - {"--shell-completion", "-sc", "-r"} | {"--budget"}
    printed = io.StringIO()
    with redirect_stdout(printed), suppress(SystemExit):
        run([*words, "--help"])
    return set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", printed.getvalue().partition("options:")[2]))
