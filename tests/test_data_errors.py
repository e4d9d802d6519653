"""What local files may hold that is no text, said in sentences."""

from __future__ import annotations

from pathlib import Path

import pytest

from modexp.config.data import FilesData
from modexp.data.corpus import prepare
from tests.texts import (
    DOCUMENTS,
    expected_streams,
    files_data,
    sentence,
)

pytestmark = pytest.mark.usefixtures("own_cache")


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
