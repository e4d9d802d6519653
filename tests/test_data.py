"""Data: sources, tokenizers, shards, order. Expected streams are rebuilt here from the documents."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from modexp.config.data import DataConfig, FilesData, HubData, PythonData
from modexp.data import order, shards, sources
from modexp.data.corpus import Corpus, open_corpus, prepare
from modexp.data.sources import PASSAGE, passages
from modexp.data.tokenise import split_of
from modexp.errors import UserError

T = 16
SHAKESPEARE = Path(__file__).parents[2] / "shared" / "data" / "tinyshakespeare.txt"
DOCUMENTS = [f"document {i}: " + "the quick brown fox jumps over the lazy dog " * (i % 5 + 1) for i in range(120)]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEXP_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 32 sequences and shards of 1,000 tokens, so that small texts span many of both."""
    monkeypatch.setattr(order, "BLOCK_TOKENS", 32 * T)
    monkeypatch.setattr(shards, "SHARD_TOKENS", 1000)
    monkeypatch.setattr("modexp.data.tokenise.BATCH_BYTES", 300)


def write_texts(folder: Path, texts: list[str] = DOCUMENTS) -> list[str]:
    folder.mkdir()
    for number, text in enumerate(texts):
        (folder / f"{number:03d}.txt").write_text(text)
    return [str(folder / "*.txt")]


def files_data(tmp_path: Path, **options: Any) -> FilesData:
    folder = tmp_path / "texts"
    paths = [str(folder / "*.txt")] if folder.exists() else write_texts(folder)
    return FilesData(**{"paths": paths, "sequence_length": T, "validation_share": 0.2} | options)


def hub_data(folder: Path, **options: Any) -> HubData:
    return HubData(
        **{"path": str(folder), "tokenizer": "bytes", "sequence_length": T, "validation_share": 0.2} | options
    )


def parquet_folder(tmp_path: Path, texts: list[str | None], parts: int = 3) -> Path:
    folder = tmp_path / "parquet"
    folder.mkdir()
    size = -(-len(texts) // parts)
    for part in range(parts):
        rows = texts[part * size : (part + 1) * size]
        pq.write_table(pa.table({"id": list(range(len(rows))), "text": rows}), folder / f"train-{part}.parquet")
    return folder


def expected_streams(texts: list[str], share: float, by_hash: bool) -> dict[str, np.ndarray]:
    """The byte stream of each split, written independently of the package: documents joined by zero bytes."""
    documents = [text.encode() for text in texts]
    if by_hash:
        documents = sorted(set(documents), key=lambda document: hashlib.sha256(document).digest())
    streams = {"train": b"", "validation": b""}
    for document in documents:
        held = int(hashlib.sha256(document).hexdigest()[-16:], 16) / 2**64 < share
        streams["validation" if held else "train"] += document + b"\0"
    return {name: np.frombuffer(stream, np.uint8).astype(np.int64) for name, stream in streams.items()}


def windows(stream: np.ndarray) -> np.ndarray:
    """All sequences of T + 1 tokens that overlap by one; (n, T + 1)."""
    return np.stack([stream[j * T : j * T + T + 1] for j in range((len(stream) - 1) // T)])


def sentence(call: Callable[[], Any]) -> str:
    """The whole message of the UserError that ``call`` raises; its first line is one sentence."""
    with pytest.raises(UserError) as raised:
        call()
    assert "\n" not in raised.value.sentence
    assert raised.value.next_step
    return str(raised.value)


# order


def test_an_epoch_is_a_permutation_that_stays_within_blocks() -> None:
    n, block = 1000, 128
    first = order.indices(7, 0, n, block, n)
    second = order.indices(7, n, 2 * n, block, n)
    for epoch in (first, second):
        assert sorted(epoch) == list(range(n))
        assert (epoch // block == np.arange(n) // block).all()
    assert (first != second).mean() > 0.9
    assert (first != order.indices(8, 0, n, block, n)).mean() > 0.9
    assert (first != np.arange(n)).mean() > 0.9


def test_order_is_uniform_enough() -> None:
    # mean over 4,000 seeds of what stands at each of 8 places: 3.5, standard error 2.29 / sqrt(4000) = .036
    orders = np.stack([order.indices(seed, 0, 8, 8) for seed in range(4000)])
    assert np.abs(orders.mean(axis=0) - 3.5).max() < 4 * 0.036


def test_order_does_not_depend_on_how_it_is_asked_for_or_on_what_follows() -> None:
    whole = order.indices(3, 0, 700, 64, 300)
    pieces = np.concatenate([order.indices(3, i, min(i + 37, 700), 64, 300) for i in range(0, 700, 37)])
    assert (whole == pieces).all()
    # a corpus that goes on has the same order as far as its whole blocks reach
    assert (order.indices(3, 0, 256, 64) == whole[:256]).all()


def test_order_is_the_same_forever() -> None:
    # splitmix64 of Vigna's reference code from state 0: its first output
    assert order.splitmix64(np.zeros(1, np.uint64))[0] == np.uint64(0xE220A8397B1DCDAF)
    digest = hashlib.sha256(order.indices(1, 0, 5000, 1024).astype("<i8").tobytes()).hexdigest()[:16]
    assert digest == "3702aed89475da56"


# files


def test_files_give_the_streams_that_their_documents_make(tmp_path: Path, small_blocks: None) -> None:
    corpus = prepare(files_data(tmp_path), 10**9, 10**9)
    streams = expected_streams(DOCUMENTS, 0.2, by_hash=True)
    manifest, n = corpus.manifest, corpus.num_sequences
    assert n == (len(streams["train"]) - 1) // T
    assert len(list(Path(os.environ["MODEXP_CACHE"]).rglob("train-*.bin"))) > 3  # gathered across shards
    got = corpus.batch(5, 0, n)
    assert got.dtype == np.int64
    assert (got == windows(streams["train"])[order.indices(5, 0, n, 32, n)]).all()
    assert (corpus.validation(10**9) == windows(streams["validation"])).all()
    assert (corpus.validation(3) == windows(streams["validation"])[:3]).all()
    assert manifest["documents"] == manifest["files"] == 120
    assert manifest["bytes"] == sum(len(text.encode()) for text in DOCUMENTS)
    assert (manifest["train_tokens"], manifest["validation_tokens"]) == (
        len(streams["train"]),
        len(streams["validation"]),
    )
    num_documents = (streams["train"] == 0).sum()
    assert manifest["train_bytes_per_token"] == 1 - num_documents / len(streams["train"])
    assert manifest["exhausted"]


def test_order_is_pure_whatever_is_tokenised(tmp_path: Path, small_blocks: None) -> None:
    config = files_data(tmp_path)
    small = prepare(config, 40 * T, 4 * T)
    assert not small.manifest["exhausted"]
    assert small.num_sequences is None
    early, held = small.batch(1, 0, 64), small.validation(4)
    large = prepare(config, 10**9, 10**9)
    assert large.manifest["exhausted"]
    assert (large.batch(1, 0, 64) == early).all()
    assert (large.validation(4) == held).all()
    # resuming at a place gives what the straight run sees, into the next epoch too
    straight = large.batch(1, 0, 3 * large.num_sequences)
    assert (np.concatenate([large.batch(1, i, i + 1) for i in range(len(straight))]) == straight).all()


def test_only_what_is_needed_is_tokenised(tmp_path: Path, small_blocks: None) -> None:
    corpus = prepare(files_data(tmp_path), 1, 1)
    longest = max(map(len, DOCUMENTS)) + 300
    assert 32 * T < corpus.manifest["train_tokens"] <= 32 * T + 1 + longest
    assert "beyond the 32 that were prepared" in sentence(lambda: corpus.batch(0, 30, 33))
    many = corpus.manifest["validation_tokens"]
    assert "prepared" in sentence(lambda: corpus.validation(many))


@pytest.mark.parametrize("kind", ["files", "hf"])
def test_extension_equals_a_fresh_preparation(tmp_path: Path, small_blocks: None, kind: str) -> None:
    folder = parquet_folder(tmp_path, [*DOCUMENTS])

    def config(cache: str) -> DataConfig:
        options = {"cache_dir": str(tmp_path / cache)}
        return files_data(tmp_path, **options) if kind == "files" else hub_data(folder, **options)

    for needs in ((30 * T, T), (40 * T, 30 * T), (90 * T, 30 * T), (10**9, 40 * T)):
        grown = prepare(config("grown"), *needs)
    fresh = prepare(config("fresh"), 10**9, 40 * T)
    assert grown.manifest["content_hash"] == fresh.manifest["content_hash"]
    assert grown.num_sequences == fresh.num_sequences
    assert (grown.batch(0, 0, 200) == fresh.batch(0, 0, 200)).all()
    assert (grown.validation(40) == fresh.validation(40)).all()
    streams = expected_streams(DOCUMENTS, 0.2, by_hash=kind == "files")
    assert grown.manifest["train_tokens"] == len(streams["train"])
    assert (grown.validation(40) == windows(streams["validation"])[:40]).all()


def test_a_second_preparation_tokenises_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = files_data(tmp_path)
    first = prepare(config, 10**9, 10**9)
    monkeypatch.setattr("modexp.data.tokenizers.ByteTokenizer.encode", lambda *_: pytest.fail("tokenised again"))
    again = prepare(config, 10**9, 10**9)
    assert again.manifest == first.manifest


def test_split_follows_content_alone(tmp_path: Path) -> None:
    write_texts(tmp_path / "a")
    write_texts(tmp_path / "b", list(reversed(DOCUMENTS)) + DOCUMENTS[:7])
    one, other = (
        prepare(FilesData(paths=[f"{tmp_path}/{name}/*"], sequence_length=T, validation_share=0.2), 10**9, 10**9)
        for name in "ab"
    )
    assert other.manifest["left_out"] == {"duplicate": 7}
    assert one.manifest["content_hash"] == other.manifest["content_hash"]
    assert (one.validation(50) == other.validation(50)).all()


def test_validation_share_is_met_and_nested() -> None:
    digests = [hashlib.sha256(str(i).encode()).digest() for i in range(20000)]
    small = {d for d in digests if split_of(d, 0.01) == "validation"}
    large = {d for d in digests if split_of(d, 0.1) == "validation"}
    assert small < large
    assert len(large) == pytest.approx(2000, abs=4 * (20000 * 0.09) ** 0.5)


def test_jsonl_parquet_and_text_hold_the_same_documents(tmp_path: Path) -> None:
    write_texts(tmp_path / "texts")
    with (tmp_path / "rows [1].jsonl").open("w") as file:  # brackets are no pattern here
        file.writelines(json.dumps({"n": i, "body": text}) + "\n" for i, text in enumerate(DOCUMENTS))
    pq.write_table(pa.table({"body": [*DOCUMENTS, None]}), tmp_path / "rows.parquet")
    hashes = []
    for pattern in ("texts/*.txt", "rows [[]1].jsonl", "rows.parquet"):
        config = FilesData(paths=[str(tmp_path / pattern)], text_column="body", sequence_length=T, validation_share=0.2)
        corpus = prepare(config, 10**9, 10**9)
        hashes.append(corpus.manifest["content_hash"])
        assert corpus.manifest["documents"] == 120
    assert len(set(hashes)) == 1
    assert corpus.manifest["left_out"] == {"empty": 1}


def test_home_is_expanded_and_suffixes_may_be_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_texts(tmp_path / "texts")
    (tmp_path / "texts" / "deep").mkdir()
    (tmp_path / "texts" / "deep" / "code.PY").write_text("print('hello')\n")
    config = FilesData(paths=["~/texts/**/*"], sequence_length=T, validation_share=0.2)
    assert prepare(config, 10**9, 10**9).manifest["documents"] == 121


def test_documents_that_cannot_be_trained_on_are_counted(tmp_path: Path) -> None:
    write_texts(tmp_path / "texts", [*DOCUMENTS, "zero\0byte", "zero\0byte too", ""])
    assert prepare(files_data(tmp_path), 10**9, 10**9).manifest["left_out"] == {"NUL byte": 2, "empty": 1}


@pytest.mark.skipif(not SHAKESPEARE.exists(), reason="../shared/data/tinyshakespeare.txt is not there")
def test_one_large_file_is_cut_into_passages() -> None:
    whole = SHAKESPEARE.read_bytes()
    parts = list(passages(SHAKESPEARE))
    assert b"".join(parts) == whole
    assert all(PASSAGE < len(part) < PASSAGE + 200 and part.endswith(b"\n") for part in parts[:-1])
    corpus = prepare(FilesData(paths=[str(SHAKESPEARE)]), 10**7, 10**7)
    assert corpus.manifest["documents"] == len(parts)
    assert corpus.manifest["validation_tokens"] > 10_000
    assert corpus.manifest["bytes"] == len(whole)


@pytest.mark.parametrize("text", [b"", b"a", b"\n", b"a" * 20_000, b"\n" * 20_000])
def test_passages_lose_nothing(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "text").write_bytes(text)
    assert b"".join(passages(tmp_path / "text")) == text


def files_errors(tmp_path: Path) -> dict[str, tuple[str, list[str]]]:
    (tmp_path / "latin.txt").write_bytes("naïve".encode("latin1"))
    (tmp_path / "scan.pdf").write_bytes(b"%PDF")
    (tmp_path / "dangling.txt").symlink_to(tmp_path / "gone.txt")
    (tmp_path / "dangling.jsonl").symlink_to(tmp_path / "gone.jsonl")
    (tmp_path / "broken.jsonl").write_text('{"text": "a"}\n{oops\n')
    (tmp_path / "broken.parquet").write_text("no parquet")
    (tmp_path / "other.jsonl").write_text('{"body": "a", "id": 1}\n')
    (tmp_path / "number.jsonl").write_text('{"text": 1}\n')
    (tmp_path / "folder").mkdir()
    return {
        "none": ("nothing/*.txt", ["matches no file", "globs"]),
        "folder": ("folder", ["names a folder", "folder/**/*.txt"]),
        "suffix": ("scan.pdf", ["scan.pdf", "'.pdf'", ".jsonl"]),
        "encoding": ("latin.txt", ["latin.txt is not UTF-8: byte 2 is 0xef", "iconv"]),
        "unreadable text": ("dangling.txt", ["dangling.txt cannot be read: No such file"]),
        "unreadable rows": ("dangling.jsonl", ["dangling.jsonl cannot be read: No such file"]),
        "jsonl": ("broken.jsonl", ["broken.jsonl is not valid jsonl", "mend that row"]),
        "parquet": ("broken.parquet", ["broken.parquet is not valid parquet"]),
        "column": ("other.jsonl", ["no column 'text'", "columns: body, id", "data.text_column="]),
        "type": ("number.jsonl", ["column 'text'", "holds int64, not text"]),
    }


@pytest.mark.parametrize(
    "case",
    [
        "none",
        "folder",
        "suffix",
        "encoding",
        "unreadable text",
        "unreadable rows",
        "jsonl",
        "parquet",
        "column",
        "type",
    ],
)
def test_files_errors_are_sentences(tmp_path: Path, case: str) -> None:
    pattern, parts = files_errors(tmp_path)[case]
    message = sentence(lambda: prepare(FilesData(paths=[str(tmp_path / pattern)]), 1, 1))
    for part in parts:
        assert part in message


def test_an_empty_jsonl_is_an_empty_corpus(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    message = sentence(lambda: prepare(FilesData(paths=[str(tmp_path / "empty.jsonl")]), 1, 1))
    assert "holds 0 tokens in 0 of 0 documents" in message


def test_too_small_a_corpus_says_how_small(tmp_path: Path) -> None:
    config = files_data(tmp_path, sequence_length=100_000)
    message = sentence(lambda: prepare(config, 1, 1))
    total = len(expected_streams(DOCUMENTS, 0.2, by_hash=True)["train"])
    assert f"holds {total} tokens" in message
    assert "data.sequence_length=100000" in message
    nothing_held = files_data(tmp_path, validation_share=1e-9)
    assert "holds out none of the 120 documents" in sentence(lambda: prepare(nothing_held, 10**9, 1))


def test_files_that_change_between_the_two_readings_are_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = files_data(tmp_path)
    tokenise = sources.LocalSource.read

    def edit_then_read(self: Any, start: int, scratch: Path) -> Any:
        (tmp_path / "texts" / "000.txt").write_text("something else")
        return tokenise(self, start, scratch)

    monkeypatch.setattr(sources.LocalSource, "read", edit_then_read)
    assert "changed while they were read" in sentence(lambda: prepare(config, 10**9, 10**9))


# cache


def cached(corpus: Corpus) -> Path:
    return Path(os.environ["MODEXP_CACHE"]) / corpus.manifest["content_hash"]


@pytest.mark.parametrize("damage", ["flip", "cut", "lose", "index"])
def test_a_damaged_cache_is_made_again(tmp_path: Path, small_blocks: None, damage: str) -> None:
    config = files_data(tmp_path)
    whole = prepare(config, 10**9, 10**9)
    before, n = whole.batch(0, 0, 300), whole.num_sequences
    shard = cached(whole) / "train-00001.bin"
    content = shard.read_bytes()
    if damage == "flip":
        shard.write_bytes(content[:500] + bytes([content[500] ^ 1]) + content[501:])
    elif damage == "cut":
        shard.write_bytes(content[:-1])
    elif damage == "lose":
        shard.unlink()
    else:
        (cached(whole) / "index.json").write_text("{")
    lines: list[str] = []
    if damage == "flip":  # the cheap check of an opening compares sizes only
        mended = prepare(config, 10**9, 10**9, lines.append)
    else:
        mended = open_corpus(config, whole.manifest["content_hash"], 10**9, 10**9, lines.append)
    assert any("damaged" in line for line in lines) == (damage != "index")
    assert mended.num_sequences == n
    assert (mended.batch(0, 0, 300) == before).all()
    assert mended.manifest["train_tokens"] == whole.manifest["train_tokens"]


def test_a_killed_preparation_is_taken_up_where_it_stopped(
    tmp_path: Path, small_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = files_data(tmp_path)

    def die(line: str) -> None:
        if line.startswith("train"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(config, 10**9, 10**9, die)
    [first] = Path(os.environ["MODEXP_CACHE"]).rglob("train-00000.bin")
    written = first.stat().st_mtime_ns
    corpus = prepare(config, 10**9, 10**9)
    assert first.stat().st_mtime_ns == written
    stream = expected_streams(DOCUMENTS, 0.2, by_hash=True)["train"]
    n = corpus.num_sequences
    assert (corpus.batch(0, 0, n) == windows(stream)[order.indices(0, 0, n, 32, n)]).all()
    assert corpus.manifest["train_tokens"] == len(stream)


def test_training_opens_the_cache_without_the_sources(tmp_path: Path) -> None:
    config = files_data(tmp_path)
    made = prepare(config, 100, 100)
    for file in (tmp_path / "texts").iterdir():
        file.unlink()
    opened = open_corpus(config, made.manifest["content_hash"], 100, 100)
    assert opened.manifest == made.manifest
    assert (opened.batch(3, 5, 9) == made.batch(3, 5, 9)).all()


def test_changed_data_are_refused_by_name_of_both_hashes(tmp_path: Path) -> None:
    config = files_data(tmp_path)
    old = prepare(config, 100, 100)
    (tmp_path / "texts" / "000.txt").write_text("edited")
    new = prepare(config, 100, 100).manifest["content_hash"]
    for file in cached(old).iterdir():
        file.unlink()
    message = sentence(lambda: open_corpus(config, old.manifest["content_hash"], 100, 100))
    assert new in message
    assert old.manifest["content_hash"] in message


def test_an_unwritable_cache_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    config = files_data(tmp_path, cache_dir=str(tmp_path / "file" / "cache"))
    message = sentence(lambda: prepare(config, 1, 1))
    assert "cannot be written: Not a directory" in message
    assert "data.cache_dir" in message


def test_cache_is_chosen_by_setting_then_environment(tmp_path: Path) -> None:
    chosen = prepare(files_data(tmp_path, cache_dir=str(tmp_path / "mine")), 1, 1)
    assert (tmp_path / "mine" / chosen.manifest["content_hash"] / "index.json").exists()
    assert not Path(os.environ["MODEXP_CACHE"]).exists()


def test_two_processes_prepare_at_once_without_harm(tmp_path: Path) -> None:
    config = files_data(tmp_path)
    program = (
        "import sys; from modexp.config.data import FilesData; from modexp.data.corpus import prepare\n"
        f"config = FilesData(paths={config.paths!r}, sequence_length={T}, validation_share=0.2)\n"
        "print(prepare(config, 10**9, 10**9).batch(0, 0, 400).sum())"
    )
    running = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) for _ in range(3)]
    sums = [process.communicate(timeout=60)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0, 0]
    expected = prepare(files_data(tmp_path, cache_dir=str(tmp_path / "alone")), 10**9, 10**9).batch(0, 0, 400)
    assert {int(total) for total in sums} == {int(expected.sum())}


def test_a_second_process_waits_for_the_first(tmp_path: Path) -> None:
    holder = (
        "import sys; from pathlib import Path; from modexp.data.shards import locked\n"
        f"with locked(Path({str(tmp_path / 'store')!r}), print): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", holder], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == b"held\n"
        lines: list[str] = []

        def let_go(line: str) -> None:
            lines.append(line)
            assert process.stdin is not None
            process.stdin.close()

        with shards.locked(tmp_path / "store", let_go):
            assert "waiting" in lines[0]


# python


def test_standard_library_is_read_without_what_is_not_utf8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "lib"
    for folder in ("email", "site-packages/pip", "dist-packages/apt", "json/__pycache__"):
        (library / folder).mkdir(parents=True)
        for number in range(40):
            (library / folder / f"m{number}.py").write_text(f"# {folder} {number}\n" * 9)
    (library / "latin.py").write_bytes(b"# -*- coding: latin1 -*-\n# \xe9\n")
    (library / "data.txt").write_text("not Python")
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(library))
    config = PythonData(sequence_length=T, validation_share=0.2)
    manifest = prepare(config, 10**9, 10**9).manifest
    assert (manifest["files"], manifest["documents"]) == (41, 40)
    assert manifest["left_out"] == {"not UTF-8": 1}
    assert manifest["bytes"] == sum(len(f"# email {n}\n" * 9) for n in range(40))


def test_the_real_standard_library_is_there_and_fast() -> None:
    files = sources.standard_library()
    assert any(path.name == "argparse.py" for path in files)
    assert not any("site-packages" in path.parts for path in files)
    begin = time.process_time()
    corpus = prepare(PythonData(), 10**6, 10**5)
    assert time.process_time() - begin < 3, "30 MB of bytes take under three seconds"
    text = bytes(corpus.validation(100)[:, 1:].ravel().astype(np.uint8)).decode(errors="replace")
    assert "import" in text
    corpus.batch(0, 0, 8)  # makes the permutation
    begin = time.process_time()
    for step in range(1, 200):
        corpus.batch(0, 8 * step, 8 * step + 8)
    assert (time.process_time() - begin) / 199 < 1e-3, "a batch of 8 x 257 takes under a millisecond"


# hf


def test_a_local_folder_streams_in_its_own_order(tmp_path: Path, small_blocks: None) -> None:
    rows = [*DOCUMENTS[:60], None, "with\0NUL", *DOCUMENTS[60:]]
    corpus = prepare(hub_data(parquet_folder(tmp_path, rows)), 10**9, 10**9)
    streams = expected_streams(DOCUMENTS, 0.2, by_hash=False)
    n = corpus.num_sequences
    assert (corpus.batch(2, 0, n) == windows(streams["train"])[order.indices(2, 0, n, 32, n)]).all()
    assert (corpus.validation(10**9) == windows(streams["validation"])).all()
    assert corpus.manifest["left_out"] == {"empty": 1, "NUL byte": 1}
    assert corpus.manifest["documents"] == 120
    assert corpus.manifest["bytes"] == sum(len(text.encode()) for text in DOCUMENTS)


def test_a_jsonl_folder_works_and_its_content_is_its_identity(tmp_path: Path) -> None:
    hashes = []
    for name in ("here", "there"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "train.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in DOCUMENTS))
        hashes.append(prepare(hub_data(folder), 100, 100).manifest["content_hash"])
    (folder / "train.jsonl").write_text("".join(json.dumps({"text": t + "!"}) + "\n" for t in DOCUMENTS))
    hashes.append(prepare(hub_data(folder), 100, 100).manifest["content_hash"])
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_cached_hub_data_set_needs_no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rows(*_: Any, **__: Any) -> Any:
        return (text.encode() for text in DOCUMENTS)

    config = hub_data(tmp_path, path="owner/name")
    monkeypatch.setattr("modexp.data.hub.text_rows", rows)
    online = prepare(config, 10**9, 10**9)
    monkeypatch.setattr("modexp.data.hub.text_rows", lambda *_, **__: pytest.fail("went to the hub"))
    assert (prepare(config, 10**9, 10**9).batch(0, 0, 9) == online.batch(0, 0, 9)).all()


def test_hf_errors_are_sentences(tmp_path: Path) -> None:
    folder = parquet_folder(tmp_path, [*DOCUMENTS])

    def message(path: Path | str = folder, **options: Any) -> str:
        return sentence(lambda: prepare(hub_data(folder, path=str(path), **options), 1, 1))

    assert "has no column 'body'; its columns: id, text" in message(text_column="body")
    assert "column 'id'" in message(text_column="id")
    assert "Available splits: ['train']" in message(split="nope")
    assert "'nope' not found" in message(subset="nope")
    assert "is no folder" in message(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "doesn't contain any data files" in message(tmp_path / "empty")
    (tmp_path / "script").mkdir()
    (tmp_path / "script" / "script.py").write_text("import datasets\n")
    assert "is a loading script" in message(tmp_path / "script")
    (tmp_path / "one.jsonl").touch()
    assert "data=files" in message(tmp_path / "one.jsonl")
    (folder / "more.jsonl").touch()
    assert "both parquet and jsonl" in message()


def test_an_unreachable_hub_is_one_quick_sentence(tmp_path: Path) -> None:
    program = """
import time
from modexp.config.data import HubData, PythonData
from modexp.data.corpus import prepare
from modexp.errors import UserError
import datasets, huggingface_hub  # their imports are not what is timed
hub = HubData(path="nobody/nothing", tokenizer="bytes")
for config in (hub, PythonData(tokenizer="gpt2", vocab_size=50257)):
    begin = time.perf_counter()
    try:
        prepare(config, 1, 1)
    except UserError as error:
        print(error)
    assert time.perf_counter() - begin < 5
"""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert len(lines) == 4
    assert "data.path=nobody/nothing is out of reach on the Hugging Face hub" in lines[0]
    assert "data.tokenizer=gpt2" in lines[2]
    for cure in (lines[1], lines[3]):
        assert "go online once" in cure
    assert "data.path=DIR" in lines[1]
    assert "data=python" in lines[1]


# tokenizers


def bpe(path: Path, special: str = "<|endoftext|>") -> Path:
    """A byte-level BPE of 300 tokens, saved with limits that training must not heed."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(DOCUMENTS, trainer)
    tokenizer.enable_truncation(max_length=5)
    tokenizer.enable_padding(length=7)
    tokenizer.save(str(path))
    return path


def test_a_tokenizer_file_tokenises_whole_documents(tmp_path: Path, small_blocks: None) -> None:
    from tokenizers import Tokenizer

    path = bpe(tmp_path / "tokenizer.json")
    texts = [*DOCUMENTS, "a text that spells <|endoftext|> out", "naïve café ☕"]
    write_texts(tmp_path / "texts", texts)
    config = files_data(tmp_path, tokenizer=str(path), vocab_size=300)
    corpus = prepare(config, 10**9, 10**9)
    library = Tokenizer.from_file(str(path))
    separator = library.token_to_id("<|endoftext|>")
    decoded: list[str] = []
    for name in ("train", "validation"):
        reader = corpus._readers[name]
        stream = reader.gather(np.zeros(1, np.int64), corpus.manifest[f"{name}_tokens"])[0]
        assert stream[-1] == separator
        pieces = np.split(stream, np.flatnonzero(stream == separator) + 1)[:-1]
        decoded += [library.decode(piece[:-1].tolist(), skip_special_tokens=False) for piece in pieces]
        num_bytes = sum(len(text.encode()) for text in decoded[-len(pieces) :])
        assert corpus.manifest[f"{name}_bytes_per_token"] == num_bytes / len(stream)
    assert sorted(decoded) == sorted(texts)
    assert {int(shard.dtype.itemsize) for shard in corpus._readers["train"]._shards} == {2}
    assert corpus.manifest["train_bytes_per_token"] > 1.5


def test_the_tokenizer_is_part_of_the_content(tmp_path: Path) -> None:
    one, two = bpe(tmp_path / "one.json"), bpe(tmp_path / "two.json", special="</s>")
    hashes = {
        prepare(files_data(tmp_path, tokenizer=name, vocab_size=300), 1, 1).manifest["content_hash"]
        for name in ("bytes", str(one), str(two))
    }
    assert len(hashes) == 3


def test_tokenizer_errors_are_sentences(tmp_path: Path) -> None:
    path = bpe(tmp_path / "tokenizer.json")

    def message(name: Path, vocab_size: int = 300) -> str:
        config = files_data(tmp_path, tokenizer=str(name), vocab_size=vocab_size)
        return sentence(lambda: prepare(config, 1, 1))

    too_small = message(path, 256)
    assert "data.vocab_size=256 is below the 300 tokens" in too_small
    assert "use data.vocab_size=300" in too_small
    prepare(files_data(tmp_path, tokenizer=str(path), vocab_size=300), 1, 1)
    assert "data.vocab_size=299" in message(path, 299)  # from the cache, too
    assert "has no end-of-text token" in message(bpe(tmp_path / "none.json", special="[PAD]"))
    assert "is not a file" in message(tmp_path / "gone.json")
    (tmp_path / "broken.json").write_text("{")
    assert "cannot be read" in message(tmp_path / "broken.json")


def test_importing_the_package_imports_no_heavy_library() -> None:
    program = (
        "import sys, modexp.data.corpus, modexp.data.hub\n"
        "print([m for m in ('torch', 'datasets', 'tokenizers', 'pandas', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n", done.stderr
