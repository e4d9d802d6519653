"""data.tokenizer=bpe: trained on the training text alone, once, to the same bytes; from text to generation."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from modexp.config.data import DataConfig, FilesData
from modexp.data import bpe
from modexp.data.corpus import Corpus, open_corpus, prepare
from modexp.data.sources import make_source
from modexp.data.tokenizers import HFTokenizer
from modexp.errors import Interrupted
from modexp.loading import load
from modexp.train.loop import Training, train
from tests.test_train import StopAt, planned, same_outcome
from tests.texts import DOCUMENTS, hub_data, parquet_folder, sentence

pytestmark = pytest.mark.usefixtures("own_cache")
VOCABULARY = 400
BPE = ["data.tokenizer=bpe", f"data.vocab_size={VOCABULARY}"]
SHAPE = ["model=mod", "model.n_layers=2", "model.d_model=16", "model.n_heads=2", "optim.batch_size=4"]
Cli = Callable[..., int]


@pytest.fixture
def config(documents: Path) -> FilesData:
    paths = [f"{documents}/[a-e]*.py"]
    return FilesData(paths=paths, tokenizer="bpe", vocab_size=VOCABULARY, sequence_length=64, validation_share=0.1)


def whole(config: DataConfig) -> Corpus:
    return prepare(config, 10**9, 10**9)


def tokenizer_file(content_hash: str) -> Path:
    return Path(os.environ["MODEXP_CACHE"]) / content_hash / "tokenizer.json"


def texts(config: FilesData) -> dict[str, list[bytes]]:
    """The documents of each split in their order, worked out independently of the package."""
    found = {Path(path).read_bytes() for path in glob.glob(config.paths[0])} - {b""}
    splits: dict[str, list[bytes]] = {"train": [], "validation": []}
    for text in sorted(found, key=lambda text: hashlib.sha256(text).digest()):
        held = int(hashlib.sha256(text).hexdigest()[-16:], 16) / 2**64 < config.validation_share
        splits["validation" if held else "train"].append(text)
    return splits


def stream(corpus: Corpus, split: str) -> np.ndarray:
    return corpus._readers[split].gather(np.zeros(1, np.int64), corpus.manifest[f"{split}_tokens"])[0]


def test_tokens_decode_to_the_text(config: FilesData) -> None:
    from tokenizers import Tokenizer

    corpus = whole(config)
    library = Tokenizer.from_file(str(tokenizer_file(corpus.manifest["content_hash"])))
    assert library.get_vocab_size() == VOCABULARY
    end = library.token_to_id("<|endoftext|>")
    for split, expected in texts(config).items():
        tokens = stream(corpus, split)
        assert tokens.max() < VOCABULARY
        pieces = np.split(tokens, np.flatnonzero(tokens == end) + 1)
        assert len(pieces.pop()) == 0
        assert [library.decode(piece[:-1].tolist(), skip_special_tokens=False).encode() for piece in pieces] == expected
        assert corpus.manifest[f"{split}_bytes_per_token"] == sum(map(len, expected)) / len(tokens)
    assert corpus.manifest["train_bytes_per_token"] > 1.5


def test_threads_and_processes_change_no_bit(config: FilesData, tmp_path: Path) -> None:
    program = (
        "import sys; from modexp.config.data import FilesData; from modexp.data.corpus import prepare\n"
        f"config = FilesData(paths={config.paths!r}, tokenizer='bpe', vocab_size={VOCABULARY}, cache_dir=sys.argv[1])\n"
        "print(prepare(config, 10**9, 10**9).manifest['content_hash'])"
    )
    made = []
    for threads in ("1", "2"):
        cache = tmp_path / threads
        words = [sys.executable, "-c", program, str(cache)]
        done = subprocess.run(words, env={**os.environ, "RAYON_NUM_THREADS": threads}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        folder = cache / done.stdout.strip()
        made.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert len(made[0]) == 7
    assert made[0] == made[1]


def test_it_learns_from_a_bounded_sample_of_the_training_text(
    config: FilesData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_source(config)
    train = [text.decode() for text in texts(config)["train"]]
    assert list(bpe.sample(config, source, tmp_path)) == train
    most = len("".join(train[:3]).encode()) + 10
    monkeypatch.setattr(bpe, "SAMPLE_BYTES", most)
    assert list(bpe.sample(config, source, tmp_path)) == [*train[:3], train[3][:10]]


def test_held_out_text_teaches_nothing(config: FilesData, tmp_path: Path) -> None:
    folder = tmp_path / "without"
    folder.mkdir()
    for number, text in enumerate(texts(config)["train"]):
        (folder / f"{number}.py").write_bytes(text)
    without = FilesData(paths=[f"{folder}/*.py"], tokenizer="bpe", vocab_size=VOCABULARY, validation_share=0.1)
    contents = [bpe.train(c, make_source(c), tmp_path) for c in (config, without)]
    assert contents[0] == contents[1]


def test_it_is_trained_once(config: FilesData, monkeypatch: pytest.MonkeyPatch) -> None:
    first = whole(config)
    monkeypatch.setattr(bpe, "train", lambda *_, **__: pytest.fail("trained again"))
    assert whole(config).manifest == first.manifest


def test_a_hub_data_set_trains_one_too(tmp_path: Path) -> None:
    folder = parquet_folder(tmp_path, [*DOCUMENTS])
    corpus = whole(hub_data(folder, tokenizer="bpe", vocab_size=300))
    library = HFTokenizer(str(tokenizer_file(corpus.manifest["content_hash"])))
    texts = library._library.decode(stream(corpus, "train").tolist(), skip_special_tokens=False)
    held = library._library.decode(stream(corpus, "validation").tolist(), skip_special_tokens=False)
    assert sorted((texts + held).split("<|endoftext|>")[:-1]) == sorted(DOCUMENTS)


@pytest.mark.parametrize("damage", ["lost", "damaged"])
def test_a_lost_tokenizer_is_made_again(config: FilesData, damage: str) -> None:
    made = whole(config).manifest
    file = tokenizer_file(made["content_hash"])
    content = file.read_bytes()
    if damage == "lost":
        file.unlink()
        assert open_corpus(config, made["content_hash"], 10**9, 10**9).manifest == made
    else:
        file.write_bytes(content[:-9])
        assert whole(config).manifest == made
    assert file.read_bytes() == content


def test_another_tokenizer_is_refused(config: FilesData, monkeypatch: pytest.MonkeyPatch) -> None:
    content_hash = whole(config).manifest["content_hash"]
    tokenizer_file(content_hash).unlink()
    original = bpe.train
    monkeypatch.setattr(bpe, "train", lambda *args, **more: original(*args, **more) + "\n")
    message = sentence(lambda: open_corpus(config, content_hash, 1, 1))
    assert "the data or the tokenizers library changed" in message
    assert content_hash in message


def test_errors_are_sentences(documents: Path, config: FilesData) -> None:
    def message(vocab_size: int) -> str:
        options = {"paths": config.paths, "tokenizer": "bpe", "vocab_size": vocab_size}
        return sentence(lambda: prepare(FilesData(**options), 1, 1))

    assert "data.vocab_size=256 is below the 257 of a byte-level BPE" in message(256)
    too_many = message(10**6)
    assert "data.vocab_size=1000000 is more than the" in too_many
    found = int(too_many.split("is more than the ")[1].split()[0])
    assert f"use data.vocab_size={found} or fewer" in too_many
    assert prepare(FilesData(paths=config.paths, tokenizer="bpe", vocab_size=found), 1, 1)


def test_a_run_resumes_and_generates(
    tmp_path: Path, tiny: list[str], modexp_cli: Cli, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [*tiny, *BPE, *SHAPE, "budget=2e8"]
    straight, stopped = planned(tmp_path / "a", overrides), planned(tmp_path / "b", overrides)
    result = train(straight.path)
    with pytest.raises(Interrupted):
        Training(stopped, StopAt(5)).to_the_end()
    train(stopped.path)
    same_outcome(straight, stopped)
    bytes_per_token = straight.plan()["data"]["validation_bytes_per_token"]
    assert bytes_per_token > 1.5
    last = straight.metrics()[-1]
    assert last["val/bits_per_byte"] == pytest.approx(last["val/loss"] / np.log(2) / bytes_per_token)
    assert result["status"] == "done"

    words = ["generate", str(straight.path), "--prompt", "def f(", "--max-tokens", "8"]
    file, cache = straight.path / "tokenizer.json", Path(os.environ["MODEXP_CACHE"])
    content = file.read_bytes()
    shutil.move(cache, tmp_path / "away")  # a run carries its tokenizer
    assert modexp_cli(*words) == 0
    said = capsys.readouterr().out
    assert said.startswith("def f(")
    assert not cache.exists()
    file.unlink()
    assert modexp_cli(*words) == 0
    assert capsys.readouterr().out == said
    assert file.read_bytes() == content
    assert modexp_cli("eval", str(straight.path), "--json") == 0
    assert json.loads(capsys.readouterr().out)["loss"] == pytest.approx(result["loss"], abs=1e-6)


@pytest.mark.slow  # it is measured and drawn, too
def test_a_study_of_it(tmp_path: Path, tiny: list[str], modexp_cli: Cli) -> None:
    (tmp_path / "small.yaml").write_text(
        "budgets: [1.0e+8]\narms: {baseline: [model=baseline]}\n"
        f"grid: {{points: 1, span: 2.0, tokens_per_param: 20.0}}\noverrides: {json.dumps([*tiny, *BPE])}\n"
    )
    assert modexp_cli("sweep", "small.yaml") == 0
    [result] = (tmp_path / "runs/small").glob("*/result.json")
    assert json.loads(result.read_text())["status"] == "done"
    assert load(result.parent).tokenizer.vocabulary == VOCABULARY


def test_bytes_a_token_are_of_what_is_evaluated_whatever_the_cache_holds(config: FilesData) -> None:
    """A cache grows by what others ask for: the first tokens have as many bytes as before, exactly."""
    from tokenizers import Tokenizer

    few = 3 * 64 + 1
    before = prepare(config, 10, few).manifest
    grown = whole(config)
    assert grown.manifest["validation_tokens"] > before["validation_tokens"]
    again = open_corpus(config, before["content_hash"], 10, few).manifest
    library = Tokenizer.from_file(str(tokenizer_file(before["content_hash"])))
    end = library.token_to_id("<|endoftext|>")
    for split, documents in texts(config).items():
        left, num_bytes = few, 0.0
        tokens = stream(grown, split)
        for number, stop in enumerate(np.flatnonzero(tokens == end)):
            length = int(stop) + 1 - (few - left)
            num_bytes += len(documents[number]) * min(1, left / length)
            left -= min(left, length)
            if not left:
                break
        for found in (before, again):
            assert found[f"{split}_bytes_per_token"] == pytest.approx(num_bytes / few, rel=1e-12)
    assert again["validation_bytes_per_token"] != grown.manifest["validation_bytes_per_token"]
