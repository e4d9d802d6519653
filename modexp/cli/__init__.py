"""The command line: one command a module, imported when it is called."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from importlib import import_module

COMMANDS = {
    "train": "train one run, or resume it: modexp train model=mod size=220m --budget 6e18",
    "plan": "print the runs that a budget buys: modexp plan --budget 6e18",
    "flops": "a model's FLOPs term by term, under every convention: modexp flops model=mod size=220m",
    "sweep": "plan and run a study; what is finished is skipped: modexp sweep --budget 6e18",
    "status": "what is planned, running, done, failed; what is left to pay: modexp status --watch",
    "sync": "send W&B what it lacks of a study or run: modexp sync STUDY",
    "fit": "optima of a study with intervals",
    "compare": "arms against the baseline: loss at equal FLOPs, FLOPs and speed at equal loss",
    "predict": "the run that a study recommends for a budget: modexp predict STUDY --flops 1e21",
    "plot": "the paper's figures of a study, finished or not: modexp plot isoflop",
    "eval": "held-out loss of a run, causal and top-k, layer by layer: modexp eval runs/STUDY/RUN",
    "generate": "text from a run: modexp generate runs/STUDY/RUN --prompt 'def '",
    "bench": "speeds on this machine: modexp bench step, modexp bench decode",
    "completion": 'what makes TAB work in a shell: eval "$(modexp completion bash)"',
}

HELP = """usage: modexp COMMAND [flags] [key=value ...]

isoFLOP studies of Mixture-of-Depths transformers: planned to the FLOP, trained, compared.

commands
{commands}

modexp COMMAND --help says more. Settings are written key=value (model=mod optim.lr=3e-4), as in Hydra;
modexp train --cfg job prints them all. MODEXP_DEBUG=1 shows tracebacks.
"""


def usage() -> str:
    width = max(map(len, COMMANDS))
    return HELP.format(commands="\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()))


def main() -> None:
    """Entry point. Exit codes: 0 done, 1 failed, 2 the request cannot be carried out, 130 interrupted."""
    if "_ARGCOMPLETE" in os.environ:  # a shell asks what may stand at TAB
        from modexp.cli.completion import answer

        return answer()
    # A command makes some hundred thousand objects that all stay. To look through them for garbage, at every 700th and
    # once more at the end, takes a tenth of its time.
    gc.set_threshold(50_000)
    code = run(sys.argv[1:])
    gc.freeze()
    sys.exit(code)


def run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage(), end="")
        return 0 if words else 2
    if words[0] in ("-V", "--version"):
        from importlib.metadata import version

        print(f"modexp {version('modexp')}")
        return 0
    command, *rest = words
    if command not in COMMANDS:
        import difflib

        near = difflib.get_close_matches(command, COMMANDS, n=1)
        print(f"modexp: error: {command} is not a command", file=sys.stderr)
        print(f"  did you mean {near[0]}?" if near else f"  commands: {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    return exit_code_of(lambda: import_module(f"modexp.cli.{command}").main(rest))


def exit_code_of(work: Callable[[], int | None]) -> int:
    """Do it; what goes wrong is told as a sentence."""
    from modexp.errors import ModexpError, complain

    debug = os.environ.get("MODEXP_DEBUG") == "1"
    try:
        return work() or 0
    except ModexpError as error:
        if debug:
            raise
        complain(error)
        return error.exit_code
    except KeyboardInterrupt:
        print("modexp: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output went away: `modexp status | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if debug:
            raise
        print(f"modexp: error: {type(error).__name__}: {error}", file=sys.stderr)
        print("  this is a fault of modexp's; MODEXP_DEBUG=1 shows the traceback", file=sys.stderr)
        return 1
