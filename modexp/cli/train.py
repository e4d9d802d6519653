"""modexp train: one run, through ``hydra.main``, in a run directory of ours."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from modexp.cli.common import Parser, parser
from modexp.errors import Interrupted, ModexpError, RunFailed, UserError, complain
from modexp.runs import RunDir
from modexp.train.world import ALONE, World


def flags() -> Parser:
    """Hydra's, which answers to them itself, and ours."""
    p = parser("train", "Train one run, or resume it.", add_help=False)
    p.add_argument("--budget", metavar="FLOPS", action="append", help="training FLOPs of the run: 6e18")
    p.add_argument("--run", metavar="RUN", help="train or resume the run that is planned in a directory")
    p.add_argument("--multirun", "-m", action="store_true", help="all combinations of key=a,b")
    p.add_argument("--help", "-h", action="store_true", help="what there is to set")
    p.add_argument("--cfg", "-c", choices=("job", "hydra", "all"), help="print the configuration instead")
    p.add_argument("--package", "-p", metavar="PACKAGE", help="part of the configuration that --cfg prints")
    p.add_argument("--resolve", action="store_true", help="interpolations of --cfg")
    about = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
    p.add_argument("--info", "-i", nargs="?", choices=about, const="all", help="what Hydra knows")
    p.add_argument("--hydra-help", action="store_true", help="what there is to set of Hydra itself")
    p.add_argument("--version", action="store_true", help="Hydra's version")
    p.add_argument("--config-dir", "-cd", metavar="DIR", help="a further folder of configuration files")
    p.add_argument("--config-path", "-cp", metavar="DIR", help="another folder of configuration files")
    p.add_argument("--config-name", "-cn", metavar="FILE", help="another root configuration")
    p.add_argument("--experimental-rerun", metavar="FILE", help="a job that Hydra pickled")
    p.add_argument("words", nargs="*", metavar="key=value", help="settings")
    return p


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
    args, unknown = flags().parse_known_intermixed_args(words)
    for word in unknown:
        if word.startswith("-"):
            raise UserError(
                f"{word} is not a flag of modexp train", "settings are written key=value; --help shows more"
            )
    if args.run is not None:
        return train_planned(words, world)
    if world.size > 1 and args.multirun:
        raise UserError("--multirun under torchrun trains several runs at once", "modexp sweep trainer.devices=N does")
    return through_hydra(sorted(with_budget(words), key=is_override), world)  # Hydra wants flags before them


def is_override(word: str) -> bool:
    return not word.startswith("-") and ("=" in word or word.startswith("~"))


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
    """Hydra parses, composes, answers --cfg and --help; errors come back here to become sentences.

    The jobs of a multirun are where its launcher has them, in other processes or on other machines perhaps: each says
    itself what went wrong and raises, as Hydra expects, which goes on with the others and raises here in the end.
    """
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from modexp.cli.compose import explained, searchpath, shipped

    os.environ["HYDRA_FULL_ERROR"] = "1"  # hydra.main re-raises instead of printing frames and exiting
    sys.argv = ["modexp train", *words, *searchpath()]
    faults: list[Exception] = []

    @hydra.main(version_base="1.3", config_path=str(shipped("conf")), config_name="config")
    def job(tree: Any) -> float | None:
        is_one_of_many = HydraConfig.get().mode == RunMode.MULTIRUN
        try:
            result = train_new(tree, world)
            report(result)
            return result["loss"]  # what a sweeper that searches goes by
        except Interrupted as error:
            complain(error)
            raise KeyboardInterrupt from error  # Hydra would go on with the next one
        except Exception as error:
            if not is_one_of_many:
                faults.append(error)  # to Hydra it would be worth a line of its own
                return None
            if not isinstance(error, ModexpError):
                raise
            complain(error)
            again = "the others went on; the same command skips what is finished and tries the rest again"
            raise RunFailed(f"a run of the multirun failed: {error.sentence}", again) from None

    try:
        job()
    except ModexpError:
        raise
    except Exception as error:
        raise explained(error) from None
    for fault in faults:
        raise fault
    return 0


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
