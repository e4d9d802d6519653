"""modexp eval: held-out loss of a trained run, with causal routing and with the top-k, and what its routers do."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from modexp.cli.common import Parser, add_json, note, parser, print_json, print_table
from modexp.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from modexp.data.corpus import Corpus
    from modexp.loading import LoadedRun
    from modexp.train.evaluate import RoutingCounts

PLAIN_EVERY = 10.0  # seconds between lines where there is no terminal


def flags() -> Parser:
    p = parser("eval", "Held-out loss of a run: causal routing and top-k, one teacher-forced pass each.")
    p.add_argument("run", metavar="RUN", help="a run directory: runs/STUDY/RUN")
    p.add_argument("--tokens", type=float, metavar="N", help="how many, about (default: what the run was validated on)")
    p.add_argument("--split", default="validation", choices=("validation", "train"))
    add_json(p)
    return p


def main(words: list[str]) -> int:
    args = flags().parse_args(words)
    if args.tokens is not None and not 1 <= args.tokens < float("inf"):
        raise UserError(f"--tokens {args.tokens:g} is not a number of tokens", "write it as --tokens 1e6")

    from modexp.loading import load

    run = load(args.run)
    T = run.config.data.sequence_length
    asked = run.config.trainer.eval_sequences if args.tokens is None else max(1, round(args.tokens / T))
    found = evaluated(run, asked, args.split)
    if args.tokens is not None and found["sequences"] < asked:
        note(f"the {args.split} split holds {found['tokens']:,} tokens; all were used")
    if args.json:
        print_json(found)
    else:
        print_found(found)
    return 0


def evaluated(run: LoadedRun, sequences: int, split: str) -> dict[str, Any]:
    """Losses in nats a token, statistics by routed layer, forward FLOPs per token at the realised capacities.

    Precision and recall compare the predicted with the top-k, in the pass that the top-k decides.
    """
    from modexp.config.routing import LayersConfig
    from modexp.kinds import ledger, realised_forward
    from modexp.runs import RunDir
    from modexp.train.evaluate import run_pass
    from modexp.train.hardware import choose_device, prepare

    config, promise = run.config, RunDir(run.path).plan()
    model, data, convention = config.model, config.data, promise["plan"]["convention"]
    device = choose_device(config.trainer.device)
    prepare(device, config.trainer.threads)
    trained = run.model.to(device)  # tells of a run without checkpoint before text is prepared
    asked = sequences * data.sequence_length + 1
    corpus, sequences = opened(run, promise["data"]["content_hash"], sequences, split)

    found: dict[str, Any] = {
        "run": str(run.path),
        "split": split,
        "sequences": sequences,
        "tokens": sequences * data.sequence_length,
        "convention": convention,
    }
    planned = ledger(model, data).forward(convention) / data.sequence_length
    places = model.routing_places() if isinstance(model, LayersConfig) else ()
    layers: list[dict[str, Any]] = [{"layer": place.removeprefix("layer")} for place in places]

    def one_pass(causal: bool, title: str) -> tuple[float, RoutingCounts | None]:
        batches = shown(read(corpus, split, sequences, config.seed, data.sequence_length), sequences, title)
        return run_pass(trained, batches, device, promise["precision"], causal)

    if model.can_be_causal:
        found["loss"], counts = one_pass(True, "causal")
        bytes_per_token = corpus.bytes_per_token(split, asked)
        found["bits_per_byte"] = found["loss"] / math.log(2) / bytes_per_token
        found["flops_per_token"] = planned
        if counts is not None:
            shares = counts.shares.tolist()
            for layer, share in zip(layers, shares, strict=True):
                layer["capacity"] = share
            if isinstance(model, LayersConfig):
                found["flops_per_token"] = realised_forward(model, data, shares, convention)
    if model.sees_future:
        found["loss_topk"], counts = one_pass(False, "top-k")
        found["flops_per_token_topk"] = planned
        if counts is not None and model.predicts:
            precision = (counts.hits / counts.predicted.clamp(min=1)).tolist()
            recall = (counts.hits / counts.taken).tolist()
            for layer, p, r in zip(layers, precision, recall, strict=True):
                if not math.isnan(r):  # experts that tokens choose, inside a block that is predicted
                    layer |= {"precision": p, "recall": r}
    return {**found, "layers": layers}


def opened(run: LoadedRun, content_hash: str, sequences: int, split: str) -> tuple[Corpus, int]:
    """The run's own text, tokenised further where more is asked for than the run needed; and how much there is."""
    from modexp.data.corpus import open_corpus
    from modexp.train.loop import needed_tokens

    config = run.config
    train, validation = needed_tokens(run.plan["sequences"], config)
    asked = sequences * config.data.sequence_length + 1
    needs = (train, max(validation, asked)) if split == "validation" else (max(train, asked), validation)
    corpus = open_corpus(config.data, content_hash, *needs, report=note)
    there = corpus.num_sequences if split == "train" else corpus.num_held_out
    return corpus, sequences if there is None else min(sequences, there)


def read(corpus: Corpus, split: str, sequences: int, seed: int, T: int) -> Iterator[Tensor]:
    """Batches (B, T + 1); of the training text, in the order in which the run saw it."""
    import torch

    from modexp.train.evaluate import EVAL_TOKENS

    step = max(1, EVAL_TOKENS // T)
    for begin in range(0, sequences, step):
        end = min(begin + step, sequences)
        rows = corpus.batch(seed, begin, end) if split == "train" else corpus.validation(end, begin)
        yield torch.from_numpy(rows)


def shown(batches: Iterator[Tensor], sequences: int, title: str) -> Iterator[Tensor]:
    """The same batches, and how far they have come: a bar on a terminal, a line now and then elsewhere."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    done, last = 0, time.monotonic()
    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=sequences)
        for batch in batches:
            yield batch
            done += len(batch)
            bar.advance(task, len(batch))
            if not console.is_terminal and time.monotonic() - last > PLAIN_EVERY:
                print(
                    f"{title}  {done:,}/{sequences:,} sequences ({done / sequences:.0%})", file=sys.stderr, flush=True
                )
                last = time.monotonic()


def print_found(found: dict[str, Any]) -> None:
    rows = []
    if "loss" in found:
        rows.append(
            ["causal", f"{found['loss']:.4f}", f"{found['bits_per_byte']:.4f}", f"{found['flops_per_token']:.4g}"]
        )
    if "loss_topk" in found:
        rows.append(
            ["top-k, sees the future", f"{found['loss_topk']:.4f}", "-", f"{found['flops_per_token_topk']:.4g}"]
        )
    print(f"{found['run']}, {found['tokens']:,} tokens of the {found['split']} split")
    print_table(("routing", "loss", "bits/byte", "FLOPs/token"), rows)
    if found["layers"]:
        keys = [key for key in ("capacity", "precision", "recall") if key in found["layers"][0]]
        lines = [
            [layer["layer"], *(f"{layer[key]:.2%}" if key in layer else "-" for key in keys)]
            for layer in found["layers"]
        ]
        print_table(("layer", *keys), lines)
    note(f"loss in nats a token; FLOPs forward at the realised capacities, counted: {found['convention']}")
