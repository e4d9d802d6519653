"""Data sets in a hub layout, and a hub out of reach."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from modexp.data import order
from modexp.data.corpus import prepare
from tests.texts import (
    DOCUMENTS,
    expected_streams,
    hub_data,
    parquet_folder,
    sentence,
    windows,
)

pytestmark = pytest.mark.usefixtures("own_cache")


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


def test_importing_the_package_imports_no_heavy_library() -> None:
    program = (
        "import sys, modexp.data.corpus, modexp.data.hub\n"
        "print([m for m in ('torch', 'datasets', 'tokenizers', 'pandas', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n", done.stderr
