"""modexp generate: text from a trained run, token by token, with causal routing and caches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modexp.cli.common import Parser, add_json, add_precision, parser, print_json
from modexp.errors import UserError

if TYPE_CHECKING:
    from modexp.config.data import DataConfig
    from modexp.data.tokenizers import Tokenizer
    from modexp.loading import LoadedRun
    from modexp.sampling.filters import Sampling

MAX_TOKENS = 256  # unless asked otherwise, or the context ends before


def flags() -> Parser:
    p = parser("generate", "Continue prompts with a trained run. Routed blocks decide causally, token by token.")
    p.add_argument("run", metavar="RUN", help="a run directory: runs/STUDY/RUN")
    p.add_argument("--prompt", action="append", default=[], metavar="TEXT", help="repeatable; none: a document's start")
    p.add_argument("--num-samples", type=int, default=1, metavar="N", help="of each prompt (default: 1)")
    p.add_argument("--max-tokens", type=int, metavar="N", help=f"new ones at most (default: {MAX_TOKENS}, if they fit)")
    p.add_argument("--temperature", type=float, default=1.0, help="0 takes the likeliest token (default: 1)")
    p.add_argument("--top-k", type=int, metavar="K", help="draw from the K likeliest tokens")
    p.add_argument("--top-p", type=float, metavar="P", help="draw from the likeliest tokens that reach probability P")
    p.add_argument("--seed", type=int, default=0)
    add_precision(p)
    add_json(p)
    return p


def main(words: list[str]) -> int:
    args = flags().parse_args(words)
    if args.num_samples < 1:
        raise UserError(f"--num-samples {args.num_samples} is not positive")

    from modexp.loading import load

    run = load(args.run)
    if not run.config.model.can_be_causal:
        raise UserError(
            f"{run.path} was trained with model.causal=none: without the future it cannot tell what to route",
            "train with model.causal=predictor or model.causal=auxiliary to sample",
        )
    tokenizer = run.tokenizer
    prompts = [p for p in args.prompt or [""] for _ in range(args.num_samples)]
    tokens = [encoded(run.config.data, tokenizer, prompt) for prompt in prompts]
    most = room(max(map(len, tokens)), run.config.data.sequence_length, args.max_tokens)

    from modexp.sampling.filters import Sampling

    sampling = Sampling(args.temperature, args.top_k, args.top_p)
    streamed = len(prompts) == 1 and not args.json
    texts = continuations(run, tokenizer, tokens, most, sampling, args.seed, args.precision, say=streamed)
    if args.json:
        print_json([{"prompt": prompt, **text} for prompt, text in zip(prompts, texts, strict=True)])
    elif len(prompts) > 1:
        for i, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
            print(f"--- {i + 1} of {len(prompts)}: {text['tokens']} tokens\n{prompt}{text['text']}")
    return 0


def encoded(data: DataConfig, tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Without the separator that ends a document; an empty prompt is one, after which a document begins."""
    from modexp.data.sources import refusal

    document = prompt.encode(errors="surrogateescape")
    reason = refusal(document, data)
    if reason == "NUL byte":
        raise UserError("--prompt holds a NUL byte, which cannot stand in a text", "leave it out")
    if reason == "not UTF-8":
        raise UserError("--prompt is not UTF-8", "set the terminal's locale to UTF-8")
    return tokenizer.encode([document])[0][:-1].tolist() or [tokenizer.separator]


def room(prompt: int, context: int, asked: int | None) -> int:
    """New tokens that fit behind the longest prompt."""
    if asked is not None and asked < 1:
        raise UserError(f"--max-tokens {asked} is not positive")
    if prompt >= context:
        raise UserError(
            f"the prompt has {prompt} tokens, and the model was trained on sequences of {context}",
            f"shorten it to {context - 1} tokens or fewer",
        )
    if asked is not None and prompt + asked > context:
        raise UserError(
            f"prompt and --max-tokens are {prompt} + {asked} tokens, the model was trained on sequences of {context}",
            f"use --max-tokens {context - prompt} or fewer",
        )
    return asked or min(MAX_TOKENS, context - prompt)


def continuations(
    run: LoadedRun,
    tokenizer: Tokenizer,
    prompts: list[list[int]],
    most: int,
    sampling: Sampling,
    seed: int,
    precision: str,
    say: bool,
) -> list[dict[str, Any]]:
    """Text, number of tokens and end of each; the first one is printed as it comes if ``say``."""
    from modexp.sampling.decode import in_bf16
    from modexp.sampling.generate import generate
    from modexp.sampling.text import TextStream
    from modexp.train.hardware import choose_device

    model = run.model.to(choose_device(run.config.trainer.device))
    if precision == "bf16":
        model = in_bf16(model)
    streams = [TextStream(tokenizer) for _ in prompts]
    begun = [stream.push(*prompt) + stream.rest() for stream, prompt in zip(streams, prompts, strict=True)]
    texts, ended = [""] * len(prompts), [False] * len(prompts)
    if say:
        print(begun[0], end="", flush=True)
    for ids in generate(model, prompts, most, sampling, seed, tokenizer.separator, tokenizer.vocabulary):
        for row, id in enumerate(ids):
            ended[row] = id is None
            new = "" if id is None else streams[row].push(id)
            texts[row] += new
            if say:
                print(new, end="", flush=True)
    for row, stream in enumerate(streams):
        new = stream.rest()
        texts[row] += new
        if say:
            print(new, flush=True)
    return [
        {"text": text, "tokens": len(stream.ids) - len(prompt), "end": "separator" if done else "max_tokens"}
        for text, stream, prompt, done in zip(texts, streams, prompts, ended, strict=True)
    ]
