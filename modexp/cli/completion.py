"""modexp completion: the script by which a shell asks modexp what may stand at TAB, and the answer to such a question.

argcomplete speaks with the shells; the flags are those of the commands' own parsers, and the metavar of an argument
says what to offer for it (modexp/cli/offers.py).
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from typing import Any

from argcomplete import CompletionFinder, shellcode
from argcomplete.completers import SuppressCompleter
from argcomplete.lexers import split_line

from modexp.cli import COMMANDS
from modexp.cli.common import Parser, parser
from modexp.cli.offers import OFFERS, Asked

EXECUTABLE = "modexp"
SHELLS = ("bash", "zsh", "fish")


def flags() -> Parser:
    p = parser("completion", "Print what makes TAB complete commands, flags, settings, studies and runs in a shell.")
    p.formatter_class = argparse.RawDescriptionHelpFormatter
    p.epilog = (
        "In the shell's own file:\n"
        '  ~/.bashrc                    eval "$(modexp completion bash)"\n'
        '  ~/.zshrc, after compinit     eval "$(modexp completion zsh)"\n'
        "  ~/.config/fish/config.fish   modexp completion fish | source"
    )
    p.add_argument("shell", choices=SHELLS)
    return p


def main(words: list[str]) -> int:
    print(shellcode([EXECUTABLE], shell=flags().parse_args(words).shell))
    return 0


def answer() -> None:
    """Tell the shell that asks, by argcomplete's environment variables, and exit."""
    line, point = os.environ["COMP_LINE"], int(os.environ["COMP_POINT"])
    begin = begin_of(line[:point])  # zsh hands over the whole line, and every shell what stands before the command
    os.environ |= {"COMP_LINE": line[begin:], "COMP_POINT": str(point - begin)}
    words = split_line(line[begin:point])[3][1:]
    Finder()(everything(words), always_complete_options=False, default_completer=SuppressCompleter())


def begin_of(line: str) -> int:
    """Where the command begins to which the end of the line belongs: behind variables and other commands."""
    found = re.search(rf"(?:^|[\s;&|(])((?:[^\s;&|()=]*/)?{EXECUTABLE})(?=\s[^;&|]*$)", line)
    return found.start(1) if found else 0


class Finder(CompletionFinder):
    """Flags may stand among the words of a command, where argparse has used up its positional arguments."""

    def collect_completions(
        self, active_parsers: list[Any], parsed_args: argparse.Namespace, cword_prefix: str
    ) -> list[str]:
        asked = active_parsers[-1]
        asked.active_actions = asked.active_actions or [a for a in asked._actions if a.nargs == "*"]
        return super().collect_completions(active_parsers, parsed_args, cword_prefix)


def everything(words: list[str]) -> Parser:
    """The parser of the whole command line as far as ``words`` need it: only the command they name has its flags."""
    from modexp.cli import bench

    command, benchmark = [*words, "", ""][:2]
    whole = Parser(prog=EXECUTABLE)
    whole.add_argument("--version", "-V", action="store_true", help="print the version")

    def benchmarks() -> Parser:
        p = Parser(prog=f"{EXECUTABLE} bench")
        branch(p, bench.BENCHMARKS, benchmark, lambda: offering(bench.flags(benchmark), words))
        return p

    def own() -> Parser:
        return benchmarks() if command == "bench" else offering(import_module(f"modexp.cli.{command}").flags(), words)

    branch(whole, COMMANDS, command, own)
    return whole


def branch(p: Parser, texts: Mapping[str, str], chosen: str, own: Callable[[], Parser]) -> None:
    """Sub-commands, of which the chosen one has its own parser and the others are but names."""
    commands = p.add_subparsers()
    for name, text in texts.items():
        commands.add_parser(name, help=text, add_help=False)
    if chosen in texts:
        commands._name_parser_map[chosen] = own()


def offering(p: Parser, words: list[str]) -> Parser:
    """The parser with what its arguments may be, by their metavars."""
    for action in p._actions:
        if any(name in OFFERS for name in names_of(action)):
            action.completer = partial(offered, words)  # type: ignore[attr-defined]
    return p


def names_of(action: argparse.Action) -> list[str]:
    """SWEEP and key=value of ``SWEEP | key=value``."""
    return action.metavar.split(" | ") if isinstance(action.metavar, str) else []


def offered(
    words: list[str], prefix: str, action: argparse.Action, parser: Parser, parsed_args: argparse.Namespace
) -> dict[str, str]:
    """What may stand there, and a few words about each."""
    asked = Asked(prefix, words, parsed_args, parser.prog, str(action.help))
    makers = [OFFERS[name] for name in names_of(action) if name in OFFERS]
    return {word: about for make in makers for word, about in make(asked).items()}
