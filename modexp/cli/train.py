"""modexp train: one run, through ``hydra.main``, in a run directory of ours."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from modexp.errors import ModexpError, RunFailed, UserError, complain
from modexp.runs import RunDir
from modexp.train.world import ALONE, World


def main(words: list[str]) -> int:
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and "RANK" in os.environ:  # torchrun started us
        return together(words)
    return work(words, ALONE)


def together(words: list[str]) -> int:
    """The first process does what ``words`` say, the others train what it tells them to."""
    from modexp.cli import exit_code_of
    from modexp.train.distributed import join

    world = join()

    def follow() -> int:
        order = world.hear()
        if "run" in order:
            report(start(RunDir(order["run"]), world))
        return order.get("code", 0)

    return world.end(exit_code_of(lambda: work(words, world) if world.leads else follow()))


def work(words: list[str], world: World) -> int:
    if any(word == "--run" or word.startswith("--run=") for word in words):
        return train_planned(words, world)
    if world.size > 1 and {"--multirun", "-m"} & set(words):
        raise UserError("--multirun under torchrun trains several runs at once", "modexp sweep trainer.devices=N does")
    for word in words:
        if word.startswith("--") and word.partition("=")[0] not in FLAGS:
            raise UserError(
                f"{word} is not a flag of modexp train", "settings are written key=value; --help shows more"
            )
    return through_hydra(with_budget(words), world)


# Hydra's, and ours
FLAGS = (
    "--help", "--hydra-help", "--version", "--cfg", "--resolve", "--package", "--multirun", "--shell-completion",
    "--config-path", "--config-name", "--config-dir", "--info", "--experimental-rerun", "--budget",
)  # fmt: skip


def with_budget(words: list[str]) -> list[str]:
    """``--budget 6e18`` and ``budget=6e18`` as the setting they mean."""
    from modexp.cli.compose import budgets_of, plain_budget

    out, rest = [], iter(words)
    for word in rest:
        if word == "--budget" or word.startswith("--budget="):
            value = word.partition("=")[2] or next(rest, "")
            budgets = budgets_of([value])
            if len(budgets) != 1:
                raise UserError(f"--budget {value} is not one number of FLOPs", "modexp sweep takes several")
            out.append(f"budget.flops={value}")
        else:
            out.append(plain_budget(word))
    return out


def through_hydra(words: list[str], world: World) -> int:
    """Hydra parses, composes, answers --cfg and --help; errors come back here to become sentences."""
    import hydra

    from modexp.cli.compose import explained, searchpath, shipped

    os.environ["HYDRA_FULL_ERROR"] = "1"  # hydra.main re-raises instead of printing frames and exiting
    sys.argv = ["modexp train", *words, *searchpath()]
    codes: list[int] = []
    faults: list[Exception] = []

    @hydra.main(version_base="1.3", config_path=str(shipped("conf")), config_name="config")
    def job(tree: Any) -> None:
        try:
            report(train_new(tree, world))
        except ModexpError as error:  # kept from Hydra, which would end a multirun with it
            complain(error)
            codes.append(error.exit_code)
        except Exception as error:  # Hydra would add a line of its own
            faults.append(error)

    try:
        job()
    except Exception as error:
        raise explained(error) from None
    for fault in faults:
        raise fault
    return max(codes, default=0)


def train_new(tree: Any, world: World) -> dict[str, Any]:
    """Plan, prepare the text, write the run directory, train."""
    from modexp.cli.common import note, print_table
    from modexp.cli.plan import COLUMNS, OPTIONAL, row, warn_of_epochs
    from modexp.config.root import from_tree
    from modexp.files import check_writable
    from modexp.plan.run import check_devices, plan_run, resolve_shape
    from modexp.runs import create, identity

    config = resolve_shape(from_tree(tree))
    if (config.trainer.devices or world.size) != world.size:
        raise UserError(
            f"trainer.devices={config.trainer.devices}, but the processes that were started are {world.size}",
            f"torchrun --nproc-per-node {config.trainer.devices} -m modexp train ... starts as many",
        )
    config = replace(config, trainer=replace(config.trainer, devices=world.size if world.size > 1 else None))
    plan = plan_run(config)  # a wrong plan is told before torch is loaded and text is read
    check_devices(plan, world.size)

    from modexp.train.hardware import choose_device, choose_precision

    device = choose_device(config.trainer.device)
    precision = choose_precision(config.trainer.precision, device, [plan.d_model])
    config = replace(config, trainer=replace(config.trainer, precision=precision))
    name = config.name or f"{plan.name}-{identity(config)[:6]}"
    config = replace(config, name=name)
    run = RunDir(Path(config.runs_dir) / config.study / name)
    check_writable(run.path.parent)
    if (result := run.result()) is not None:
        create(run, config, plan, run.plan()["data"])  # refuses another plan under this name
        note(f"{run.path} is finished; nothing to do")
        return {"run": run, **result}

    config, manifest = with_text(config, plan.sequences)
    plan = plan_run(config)
    print_table(COLUMNS, [row(plan)], f"plan of {run.path}", OPTIONAL)
    warn_of_epochs([plan])
    create(run, config, plan, manifest)
    return start(run, world)


def with_text(config: Any, sequences: int) -> tuple[Any, dict[str, Any]]:
    """Tokenise what the run will read; the configuration then knows how much text there is."""
    from modexp.cli.common import note
    from modexp.data.corpus import prepare
    from modexp.train.loop import needed_tokens

    corpus = prepare(config.data, *needed_tokens(sequences, config), report=note)
    known = corpus.manifest["train_tokens"] if corpus.manifest["exhausted"] else config.data.num_tokens
    return replace(config, data=replace(config.data, num_tokens=known)), corpus.manifest


def start(run: RunDir, world: World, began: float | None = None) -> dict[str, Any]:
    from modexp.train.loop import train

    if world.leads:
        world.order(str(run.path))
    return {"run": run, **train(run.path, began, world)}


def train_planned(words: list[str], world: World) -> int:
    """``--run DIR``: everything stands in the directory."""
    from modexp.cli.common import parser

    p = parser("train", "Train or resume the run planned in a directory.")
    p.add_argument("--run", required=True, metavar="DIR", help="holds config.yaml and plan.json")
    args = p.parse_args(words)
    run = RunDir(args.run)
    if not run.plan_path.exists():
        raise UserError(f"{run.path} holds no plan.json", "name a run directory: runs/STUDY/RUN")
    from modexp.train.hardware import process_began

    report(start(run, world, process_began()))  # a process that trains one run: its start belongs to the run's time
    return 0


def report(result: dict[str, Any]) -> None:
    """One line on stdout; a diverged run is a failure."""
    run = result["run"]
    if result["status"] != "done":
        raise RunFailed(f"{run.path} diverged: {result['error']}", "try a lower optim.lr")
    losses = [] if result["loss"] is None else [f"held-out loss {result['loss']:.4f} nats a token"]
    losses += [] if result["loss_topk"] is None else [f"top-k {result['loss_topk']:.4f}"]
    losses += [] if result["bits_per_byte"] is None else [f"{result['bits_per_byte']:.4f} bits per byte"]
    print(
        f"{run.path}  {', '.join(losses)}; {result['flops_consumed']:.4g} FLOPs of {result['flops_planned']:.4g}"
        f" planned, {result['steps']:,} steps",
        flush=True,
    )
