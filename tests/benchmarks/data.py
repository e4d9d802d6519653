"""Seconds and memory of tokenising, and batches against training: python tests/benchmarks/data.py.

Tokenising runs in a process of its own, cache empty, on all cores (``--threads 1``: on one); its memory is the peak of
resident memory, libraries included. ``--only large`` writes files of some hundreds of megabytes first. Bars: 30 MB of
bytes in 3 s, BPE of 4096 tokens, its training included, in 30 s on two cores; 500 MB; batches at 20 times the tokens
that the smallest model takes, both on one thread. On a busy machine only CPU seconds are the program's own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TOKENISE = """
import json, resource, sys, time
from modexp.config.data import DATA_KINDS
from modexp.data.corpus import prepare
data, tokens = json.loads(sys.argv[1]), int(sys.argv[2])
wall, cpu = time.perf_counter(), time.process_time()
manifest = prepare(DATA_KINDS[data["kind"]](**data), tokens, 10**5).manifest
print(json.dumps({
    "seconds": time.perf_counter() - wall, "cpu": time.process_time() - cpu,
    "MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,  # KiB on Linux
    "text": manifest["bytes"] / 1e6, "tokens": manifest["train_tokens"] + manifest["validation_tokens"],
}))
"""
BPE = {"tokenizer": "bpe", "vocab_size": 4096}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", choices=("tokenise", "large", "batches"))
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    os.environ["RAYON_NUM_THREADS"] = str(args.threads)
    print(f"{args.threads} threads, {os.cpu_count()} cores; load of the machine {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as folder:
        if args.only in (None, "tokenise", "large"):
            print("\n| text | tokenizer | MB of text | tokens | seconds | CPU seconds | peak MB |")
            print("|---|---|---|---|---|---|---|")
        if args.only in (None, "tokenise"):
            for options in ({}, BPE):
                tokenised("standard library", {"kind": "python", **options}, 10**9, folder)
        if args.only in (None, "large"):
            large(Path(folder))
    if args.only in (None, "batches"):
        batches()


def tokenised(name: str, data: dict[str, Any], tokens: int, folder: str) -> None:
    """A line of the table."""
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        words = [sys.executable, "-c", TOKENISE, json.dumps(data | {"cache_dir": cache}), str(tokens)]
        found = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    print(
        f"| {name} | {data.get('tokenizer', 'bytes')} | {found['text']:.0f} | {found['tokens']:,} "
        f"| {found['seconds']:.1f} | {found['cpu']:.1f} | {found['MB']:.0f} |",
        flush=True,
    )


def large(folder: Path) -> None:
    """A book of 400 MB; 860,000 rows, in a parquet file as one row group, in 21,000 text files as well."""
    import pyarrow
    from pyarrow import parquet

    from modexp.data.sources import standard_library

    lines = "\n".join(path.read_text(errors="replace") for path in standard_library()).splitlines()
    book = folder / "book.txt"
    with book.open("w") as file:
        for copy in range(12):
            file.writelines(f"{copy} {line}\n" for line in lines)
    rows = [f"{copy} {i} " + "\n".join(lines[i : i + 4]) for copy in range(4) for i in range(0, len(lines), 4)]
    with (folder / "rows.jsonl").open("w") as file:
        file.writelines(json.dumps({"text": row}) + "\n" for row in rows)
    parquet.write_table(pyarrow.table({"text": rows}), folder / "rows.parquet", row_group_size=len(rows))
    (folder / "many").mkdir()
    for i in range(0, len(rows), 40):
        (folder / "many" / f"{i}.txt").write_text("\n".join(rows[i : i + 40]))
    for name, pattern in (
        ("one file", "book.txt"),
        ("files", "many/*.txt"),
        ("jsonl", "rows.jsonl"),
        ("parquet", "rows.parquet"),
    ):
        data = {"kind": "files", "paths": [str(folder / pattern)]}
        tokenised(name, data, 10**10, str(folder))
        tokenised(name, data | BPE, 10**6, str(folder))  # one block of the shuffle


def batches() -> None:
    """Tokens a second of batches and of the smallest model's training, in turns, on one thread each."""
    import torch

    from modexp.cli.compose import configuration
    from modexp.config.data import PythonData
    from modexp.data.corpus import prepare
    from modexp.train.step import Stepper

    torch.set_num_threads(1)
    corpus = prepare(PythonData(), 10**9, 10**5)
    corpus.batch(0, 0, 1)  # makes the permutation
    print("\n| batch | training, tokens/s | batches, tokens/s | ratio | share of a step |\n|---|---|---|---|---|")
    for size in (1, 4, 16, 64):
        words = ["model=baseline", "model.d_model=16", "model.n_layers=2", "model.n_heads=1", "trainer.device=cpu"]
        stepper = Stepper(configuration(words), torch.device("cpu"), "fp32")
        reading, training = [], []
        for i in range(43):
            begin = time.perf_counter()
            batch = torch.from_numpy(corpus.batch(0, i * size, (i + 1) * size))
            between = time.perf_counter()
            stepper.step(batch, size, 1e-3, 0)[0].item()
            reading.append(between - begin)
            training.append(time.perf_counter() - between)
        read, train = (sorted(times[3:])[20] for times in (reading, training))
        rates = f"{size * 256 / train:,.0f} | {size * 256 / read:,.0f}"
        print(f"| {size} | {rates} | {train / read:.0f} | {read / (read + train):.2%} |")


if __name__ == "__main__":
    main()
