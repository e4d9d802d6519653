"""Documents of each kind of source, as a stream whose order is fixed.

Local kinds (python, files) are read twice: once to hash every document, and, where tokens are missing, once
to spool the texts into a temporary file, from which they come in the order of their hash. So any prefix of
the stream is a random sample of the corpus, no order of files matters, and memory holds some tens of bytes a
document whatever the size of the texts.
"""

from __future__ import annotations

import glob
import hashlib
import os
import platform
import sysconfig
import tempfile
from array import array
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from modexp.config.data import DataConfig, FilesData, HubData, PythonData
from modexp.data.rows import text_rows
from modexp.data.tokenizers import Tokenizer, first_line
from modexp.errors import UserError

TEXT_SUFFIXES = (".txt", ".md", ".py")
ROW_SUFFIXES: dict[str, tuple[str, dict[str, int]]] = {  # loader of the datasets library, its options
    ".jsonl": ("json", {"chunksize": 2**20}),  # as fast as its 10 MiB, 90 MB less memory
    ".parquet": ("parquet", {}),
}
PASSAGE = 8192  # bytes of prose that make a document
NOT_STANDARD = {"site-packages", "dist-packages", "__pycache__"}


class Source(Protocol):
    identity: dict[str, Any]  # what the content hash of the corpus stands on
    facts: dict[str, Any]  # what is known of the whole: files, documents, bytes, left_out; {} for a stream

    def read(self, start: int, scratch: Path) -> Generator[tuple[bytes, bytes], None, None]:
        """(sha256, text) of each document from number ``start`` on; temporary files go into ``scratch``."""


class LocalSource:
    """Documents that can all be read beforehand, each once, in the order of their hash."""

    def __init__(self, files: list[Path], texts: Callable[[], Iterator[bytes]], tokenizer: Tokenizer) -> None:
        self._texts, self._tokenizer = texts, tokenizer
        self._left_out: Counter[str] = Counter()
        digests, lengths = bytearray(), array("q")
        for digest, text in self._accepted(self._left_out):
            digests += digest
            lengths.append(len(text))
        self._digests = digests
        self._ends = np.cumsum(np.frombuffer(lengths, np.int64)) if lengths else np.empty(0, np.int64)
        words = np.frombuffer(self._digests, ">u8").reshape(-1, 4)
        by_hash = np.lexsort(words.T[::-1])  # the last key leads
        copies = (words[by_hash[1:]] == words[by_hash[:-1]]).all(axis=1)
        self._order = by_hash[np.concatenate([np.ones(min(1, len(words)), bool), ~copies])]
        if copies.any():
            self._left_out["duplicate"] = int(copies.sum())
        self.identity = {"text": hashlib.sha256(words[self._order].tobytes()).hexdigest()}
        self.facts = {
            "files": len(files),
            "documents": len(self._order),
            "bytes": int(np.frombuffer(lengths, np.int64)[self._order].sum()) if lengths else 0,
            "left_out": dict(self._left_out),
        }

    def _accepted(self, left_out: Counter[str]) -> Iterator[tuple[bytes, bytes]]:
        for text in self._texts():
            reason = refusal(text, self._tokenizer)
            if reason:
                left_out[reason] += 1
            else:
                yield hashlib.sha256(text).digest(), text

    def read(self, start: int, scratch: Path) -> Generator[tuple[bytes, bytes], None, None]:
        with tempfile.TemporaryFile(dir=scratch) as spool:
            for _, text in self._accepted(Counter()):
                spool.write(text)
            spool.flush()
            for row in self._order[start:].tolist():
                begin = int(self._ends[row - 1]) if row else 0
                text = os.pread(spool.fileno(), int(self._ends[row]) - begin, begin)
                digest = bytes(self._digests[32 * row : 32 * row + 32])
                if hashlib.sha256(text).digest() != digest:
                    raise UserError("the source files changed while they were read", "run it again")
                yield digest, text


def refusal(text: bytes, tokenizer: Tokenizer) -> str | None:
    """Why a document is left out, or None."""
    if not text:
        return "empty"
    try:
        text.decode()
    except UnicodeDecodeError:
        return "not UTF-8"
    return tokenizer.refuses(text)


def standard_library() -> list[Path]:
    """Every .py file of the running interpreter's standard library."""
    found = []
    for folder, subfolders, names in os.walk(sysconfig.get_path("stdlib")):
        subfolders[:] = [name for name in subfolders if name not in NOT_STANDARD]
        found += [Path(folder, name) for name in names if name.endswith(".py")]
    return sorted(path for path in found if path.is_file())


def matching_files(config: FilesData) -> list[Path]:
    """The files that data.paths names, each once, every suffix known."""
    found: set[Path] = set()
    for pattern in config.paths:
        matches = [Path(match) for match in glob.glob(os.path.expanduser(pattern), recursive=True)]
        files = [path for path in matches if not path.is_dir()]
        if not files:
            folder = matches[0] if matches else None
            what = "names a folder" if folder else "matches no file"
            cure = f"try 'data.paths=[{folder}/**/*.txt]'" if folder else "data.paths takes globs; ** descends"
            raise UserError(f"data.paths: {pattern} {what}", cure)
        found.update(files)
    for path in sorted(found):
        if path.suffix.lower() not in (*TEXT_SUFFIXES, *ROW_SUFFIXES):
            raise UserError(
                f"{path} is of no known kind: its name ends in {path.suffix!r}",
                f"narrow data.paths to {', '.join((*TEXT_SUFFIXES, *ROW_SUFFIXES))}",
            )
    return sorted(found)


def read_plain(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from None


def passages(text: bytes) -> Iterator[bytes]:
    """Prose cut at line ends into documents of about ``PASSAGE`` bytes, so that a single book can be split into
    training and validation text."""
    begin = 0
    while True:
        end = text.find(b"\n", begin + PASSAGE) + 1 or len(text)
        yield text[begin:end]
        if end == len(text):
            return
        begin = end


def unreadable(path: Path, error: OSError) -> UserError:
    return UserError(
        f"{path} cannot be read: {error.strerror}", "change its permissions, or leave it out of data.paths"
    )


def file_texts(path: Path, column: str) -> Iterator[bytes]:
    """The documents of one of the user's files."""
    if path.suffix.lower() in TEXT_SUFFIXES:
        text = read_plain(path)
        try:
            text.decode()
        except UnicodeDecodeError as error:
            raise UserError(
                f"{path} is not UTF-8: byte {error.start} is {text[error.start]:#04x}",
                "convert it (iconv -f latin1 -t utf-8), or leave it out of data.paths",
            ) from None
        yield from [text] if path.suffix.lower() == ".py" else passages(text)
        return
    try:
        path.open("rb").close()
    except OSError as error:
        raise unreadable(path, error) from None

    def explain(error: Exception) -> UserError:
        kind = path.suffix.lower()[1:]
        cure = "mend that row" if kind == "jsonl" else "write it anew"
        return UserError(f"{path} is not valid {kind}: {first_line(error)}", f"{cure}, or leave it out of data.paths")

    # data_files takes patterns, and a name may hold brackets
    escaped = glob.escape(str(path))
    loader, options = ROW_SUFFIXES[path.suffix.lower()]
    yield from text_rows(str(path), column, explain, loader, data_files=escaped, split="train", **options)


def make_source(config: DataConfig, tokenizer: Tokenizer) -> Source:
    """The source that a data configuration names; local kinds are read once here."""
    if isinstance(config, HubData):
        from modexp.data.hub import HubSource

        return HubSource(config)
    if isinstance(config, FilesData):
        files, column = matching_files(config), config.text_column
        return LocalSource(files, lambda: (text for path in files for text in file_texts(path, column)), tokenizer)
    assert isinstance(config, PythonData)
    files = standard_library()
    return LocalSource(files, lambda: (read_plain(path) for path in files), tokenizer)


def describe(config: DataConfig) -> str:
    """The source in words, for manifests and plans."""
    if isinstance(config, HubData):
        extras = [str(part) for part in (config.subset, config.split, config.revision) if part]
        return f"{config.path} ({', '.join(extras)})"
    if isinstance(config, FilesData):
        return ", ".join(config.paths)
    return f"{platform.python_implementation()} {platform.python_version()} standard library"
