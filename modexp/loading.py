"""Finished and unfinished work from Python."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modexp.config.root import Config
from modexp.errors import UserError
from modexp.runs import RunDir

if TYPE_CHECKING:
    from pandas import DataFrame

    from modexp.data.tokenizers import Tokenizer
    from modexp.models.transformer import Transformer


@dataclass(frozen=True)
class LoadedRun:
    """One run directory. ``records`` holds the rows of metrics.jsonl, ``result`` is None until the run is done."""

    path: Path
    config: Config
    plan: dict[str, Any]
    records: list[dict[str, Any]]
    result: dict[str, Any] | None

    @cached_property
    def model(self) -> Transformer:
        """The model with the weights of the newest readable checkpoint, on the CPU, in evaluation mode."""
        from modexp.models.build import build
        from modexp.train import checkpoint

        model = build(self.config.model, self.config.data, self.config.seed)
        for folder in reversed(checkpoint.saved(RunDir(self.path).checkpoints)):
            try:
                weights, _, _ = checkpoint.read(folder)
            except ValueError:
                continue
            checkpoint.load_weights(model, weights, folder)
            return model.eval()
        again = f"modexp train --run {self.path} makes one"
        if self.result is not None:  # a finished run is only read
            again = f"remove its result.json, and {again}, from the beginning"
        raise UserError(f"{self.path} holds no readable checkpoint", again)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """What made tokens of the run's text. UserError where it was trained on that text, and both are lost."""
        from modexp.data.tokenizers import FILE, HFTokenizer, make_tokenizer

        data = self.config.data
        if data.tokenizer != "bpe":
            return make_tokenizer(data)
        if not (self.path / FILE).exists():
            from modexp.data.corpus import open_corpus

            content_hash = RunDir(self.path).plan()["data"]["content_hash"]
            open_corpus(data, content_hash, 1, 1).keep_tokenizer(self.path)
        return HFTokenizer(str(self.path / FILE))


def load(run: str | Path) -> LoadedRun:
    """Open a run directory. UserError if it holds no run."""
    directory = RunDir(run)
    config = directory.config()
    return LoadedRun(directory.path, config, directory.plan()["plan"], directory.metrics(), directory.result())


def load_study(study: str | Path) -> DataFrame:
    """A study's runs, one row each: what was planned, consumed and reached (FLOPs; losses in nats a token)."""
    import pandas

    from modexp.analysis.records import records

    return pandas.DataFrame(records(Path(study)))
