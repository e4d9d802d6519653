"""Shards on disk: damage, interruption, several processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from modexp.data import order, shards
from modexp.data.corpus import Corpus, open_corpus, prepare
from modexp.errors import UserError
from tests.texts import (
    DOCUMENTS,
    T,
    expected_streams,
    files_data,
    sentence,
    windows,
)

pytestmark = pytest.mark.usefixtures("own_cache")


def cached(corpus: Corpus) -> Path:
    return Path(os.environ["MODEXP_CACHE"]) / corpus.manifest["content_hash"]


@pytest.mark.parametrize("damage", ["flip", "cut", "lose", "lengths", "index"])
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
    elif damage == "lengths":
        shard.with_suffix(".documents").write_bytes(b"")
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


def test_a_cache_on_a_disk_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("modexp.files.fcntl.flock", unsupported)
    assert prepare(files_data(tmp_path), 100, 100).manifest["train_tokens"] >= 100


def test_a_shard_that_cannot_be_written_names_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    config = files_data(tmp_path)
    monkeypatch.setattr("modexp.files.os.fsync", full)
    with pytest.raises(UserError, match=r"the token cache .* cannot be written: No space left .*\n.*data\.cache_dir"):
        prepare(config, 100, 100)
