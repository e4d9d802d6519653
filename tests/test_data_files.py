"""Local files and the standard library: documents, splits, extension."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from modexp.config.data import DataConfig, FilesData, PythonData
from modexp.data import order, sources
from modexp.data.corpus import prepare
from modexp.data.sources import PASSAGE, passages
from modexp.data.tokenise import split_of
from tests.texts import (
    DOCUMENTS,
    SHAKESPEARE,
    T,
    expected_streams,
    files_data,
    hub_data,
    parquet_folder,
    sentence,
    windows,
    write_texts,
)

pytestmark = pytest.mark.usefixtures("own_cache")


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
