"""Small texts, corpora of them, and the streams they must give, rebuilt from the documents."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from modexp.config.data import FilesData, HubData
from modexp.errors import UserError

T = 16
SHAKESPEARE = Path(__file__).parents[2] / "shared" / "data" / "tinyshakespeare.txt"
DOCUMENTS = [f"document {i}: " + "the quick brown fox jumps over the lazy dog " * (i % 5 + 1) for i in range(120)]


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
