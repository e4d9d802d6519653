"""modexp bench: speeds measured on this machine. One function a sub-command."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from modexp.cli.common import Parser, add_json, add_precision, note, parser, print_json, print_table, split_words
from modexp.errors import UserError

BENCHMARKS = {
    "step": "a training step: milliseconds, FLOP/s, memory, and how much of the saved FLOPs is saved time",
    "decode": "tokens a second, time to the first token and cache of a routed model beside its dense twin",
}


def flags(name: str) -> Parser:
    """Of one benchmark."""
    if name == "step":
        from modexp.cli import bench_step

        return bench_step.flags()
    return decode_flags()


def main(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        listed = "\n".join(f"  {name:<6}  {text}" for name, text in BENCHMARKS.items())
        print(f"usage: modexp bench {'|'.join(BENCHMARKS)} [flags] [key=value ...]\n\n{listed}")
        return 0 if words else 2
    if words[0] == "step":
        from modexp.cli.bench_step import main as step

        return step(words[1:])
    if words[0] != "decode":
        raise UserError(f"modexp bench {words[0]} is not a benchmark", f"choose one of: {', '.join(BENCHMARKS)}")
    return decode(words[1:])


def whole_numbers(flag: str, text: str) -> list[int]:
    try:
        values = [int(word) for word in text.split(",")]
    except ValueError:
        values = []
    if not values or min(values) < 1:
        raise UserError(f"{flag} {text} is not a list of positive whole numbers", f"write it as {flag} 1,16")
    return values


def decode_flags() -> Parser:
    p = parser("bench decode", "Decode with a routed model (default: model=mod) and with the dense model of its shape.")
    p.add_argument("--batch", default="1,16", metavar="N,...", help="sequences decoded together (default: 1,16)")
    p.add_argument("--prompt-length", type=int, default=256, metavar="N", help="tokens (default: 256)")
    p.add_argument("--new-tokens", type=int, default=256, metavar="N", help="tokens (default: 256)")
    p.add_argument("--repeats", type=int, default=3, metavar="N", help="turns of each model (default: 3)")
    add_precision(p)
    p.add_argument("--profile", metavar="FILE", help="write a trace of a few steps of each, for ui.perfetto.dev")
    add_json(p)
    p.add_argument("words", nargs="*", metavar="key=value", help="the model: model.n_layers=6 model.d_model=256 ...")
    return p


def decode(words: list[str]) -> int:
    args = decode_flags().parse_intermixed_args(words)
    names, overrides = split_words(args.words)
    if names:
        raise UserError(f"{names[0]} is not a setting", "settings are written key=value")
    batches = whole_numbers("--batch", args.batch)
    for flag, value, least in (
        ("--prompt-length", args.prompt_length, 1),
        ("--new-tokens", args.new_tokens, 2),
        ("--repeats", args.repeats, 1),
    ):
        if value < least:
            raise UserError(f"{flag} {value} is below {least}")

    from modexp.cli.compose import configuration
    from modexp.files import check_writable
    from modexp.plan.run import resolve_shape

    if args.profile:
        check_writable(Path(args.profile).parent)

    if not any(word.startswith("model=") for word in overrides):
        overrides = ["model=mod", *overrides]
    config = resolve_shape(configuration(overrides))
    if not config.model.has_routing:
        raise UserError(f"model={config.model.kind} routes nothing", "compare a routed model: model=mod")
    data = replace(config.data, sequence_length=args.prompt_length + args.new_tokens)

    from modexp.sampling.bench import Pair, compare, profile
    from modexp.train.hardware import choose_device, describe, prepare
    from modexp.train.load import load

    device = choose_device(config.trainer.device)
    busy = load().sentence
    prepare(device, 1)  # a second one collapses where anything else runs
    pair = Pair(config.model, data, args.prompt_length, args.new_tokens, config.seed, device, args.precision)
    found: dict[str, Any] = {
        "model": config.model.kind,
        "shape": config.model.shape,
        "prompt_length": args.prompt_length,
        "new_tokens": args.new_tokens,
        "repeats": args.repeats,
        "decisions": "forced: a routed block or an expert takes a token with probability C/T, by a seeded draw",
        "precision": args.precision,
        "device": describe(device),
        "busy": busy,
        "batches": compare(pair, batches, args.repeats),
    }
    if args.profile:
        profile(pair, batches, Path(args.profile))
        note(f"{args.profile}: open it in ui.perfetto.dev")
    if args.json:
        print_json(found)
    else:
        print_decode(found)
    return 0


def print_decode(found: dict[str, Any]) -> None:
    columns = (
        "batch",
        "model",
        "tokens/s",
        "first token",
        "cache held",
        "allocated",
        "speed",
        "roofline",
        "of it",
        "FLOPs",
    )
    rows = []
    for row in found["batches"]:
        for key, name in (("dense", "dense twin"), ("model", found["model"])):
            timing, is_twin = row[key], key == "dense"
            rows.append(
                [
                    str(row["batch"]),
                    name,
                    f"{timing['tokens_per_second']:,.0f}",
                    f"{1e3 * timing['first_token_seconds']:.1f} ms",
                    f"{timing['cache_bytes_held'] / 2**20:.2f} MiB",
                    f"{timing['cache_bytes_allocated'] / 2**20:.2f} MiB",
                    "1" if is_twin else f"{row['speedup']:.2f}",
                    "1" if is_twin else f"{row['roofline_speedup']:.2f}",
                    "-" if is_twin else f"{row['of_roofline']:.2f}",
                    "1" if is_twin else f"{row['flops_ratio']:.2f}",
                ]
            )
    layers, width, _ = found["shape"]
    print_table(columns, rows, f"decoding, L{layers} d{width}, {found['prompt_length']} + {found['new_tokens']} tokens")
    note(
        f"{found['device']}, {found['precision']}; medians of {found['repeats']} turns; decisions {found['decisions']};"
        " roofline: speed if each matmul took the larger of its FLOPs over"
        f" {found['batches'][0]['flops_per_second']:.3g}/s and its bytes over"
        f" {found['batches'][0]['bytes_per_second']:.3g}/s, both measured here; FLOPs: forward, causal, over the dense"
        " twin's at this context"
    )
    if found["busy"]:
        note(f"warning: {found['busy']}")
