"""Documents of each kind of source, as a stream whose order is fixed.

Local kinds (python, files) are read twice: once to hash every document, and, where tokens are missing, once
to spool the texts into a temporary file, from which they come in the order of their hash. So any prefix of
the stream is a random sample of the corpus, no order of files matters, and memory is bounded: hashes are sorted
a part at a time, and of texts only the document at hand is held.
"""

from __future__ import annotations

import glob
import hashlib
import os
import platform
import struct
import sysconfig
import tempfile
import weakref
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from modexp.config.data import DataConfig, FilesData, HubData, PythonData
from modexp.data.rows import parquet_tables, streamed, text_rows
from modexp.data.tokenizers import first_line
from modexp.errors import UserError

TEXT_SUFFIXES = (".txt", ".md", ".py")
ROW_SUFFIXES = (".jsonl", ".parquet")
PASSAGE = 8192  # bytes of prose that make a document
RECORD = np.dtype([("digest", ">u8", 4), ("begin", "<i8"), ("length", "<i8")])  # a document's hash and place
SORTED_AT_ONCE = 2**19  # records; 25 MB of them
NOT_STANDARD = {"site-packages", "dist-packages", "__pycache__"}


class Source(Protocol):
    identity: dict[str, Any]  # what the content hash of the corpus stands on
    facts: dict[str, Any]  # what is known of the whole: files, documents, bytes, left_out; {} for a stream

    def read(self, start: int, scratch: Path) -> Generator[tuple[bytes, bytes], None, None]:
        """(sha256, text) of each document from number ``start`` on; temporary files go into ``scratch``."""


class LocalSource:
    """Documents that can all be read beforehand, each once, in the order of their hash."""

    def __init__(self, files: list[Path], texts: Callable[[], Iterator[bytes]], config: DataConfig) -> None:
        self._texts, self._config = texts, config
        self._records = tempfile.SpooledTemporaryFile(RECORD.itemsize * SORTED_AT_ONCE)  # noqa: SIM115
        weakref.finalize(self, self._records.close)
        left_out: Counter[str] = Counter()
        place = 0
        for digest, text in self._accepted(left_out):
            self._records.write(digest + struct.pack("<qq", place, len(text)))
            place += len(text)
        read = self._records.tell() // RECORD.itemsize
        self._parts = -(-read // SORTED_AT_ONCE)
        total, documents, num_bytes = hashlib.sha256(), 0, 0
        for records in self._in_order():
            total.update(records["digest"].tobytes())
            documents += len(records)
            num_bytes += int(records["length"].sum())
        if documents < read:
            left_out["duplicate"] = read - documents
        self.identity = {"text": total.hexdigest()}
        self.facts = {"files": len(files), "documents": documents, "bytes": num_bytes, "left_out": dict(left_out)}

    def _accepted(self, left_out: Counter[str]) -> Iterator[tuple[bytes, bytes]]:
        for text in self._texts():
            reason = refusal(text, self._config)
            if reason:
                left_out[reason] += 1
            else:
                yield hashlib.sha256(text).digest(), text

    def _in_order(self) -> Iterator[np.ndarray]:
        """Records sorted by digest without copies, about ``SORTED_AT_ONCE`` of them at a time."""
        for part in range(self._parts):
            low, last = (np.uint64(2**64 * (part + i) // self._parts - i) for i in (0, 1))
            self._records.seek(0)
            found = []
            while chunk := self._records.read(RECORD.itemsize * 2**16):
                records = np.frombuffer(chunk, RECORD)
                leading = records["digest"][:, 0]
                found.append(records[(leading >= low) & (leading <= last)])
            records = np.concatenate(found, dtype=RECORD)  # which would make them native otherwise
            records = records[np.lexsort(records["digest"].T[::-1])]  # the last key leads
            copies = (records["digest"][1:] == records["digest"][:-1]).all(axis=1)
            yield records[np.concatenate([np.ones(min(1, len(records)), bool), ~copies])]

    def read(self, start: int, scratch: Path) -> Generator[tuple[bytes, bytes], None, None]:
        with tempfile.TemporaryFile(dir=scratch) as spool:
            for _, text in self._accepted(Counter()):
                spool.write(text)
            spool.flush()
            for records in self._in_order():
                wanted, start = records[start:], max(0, start - len(records))
                for record in wanted:
                    digest = record["digest"].tobytes()
                    text = os.pread(spool.fileno(), int(record["length"]), int(record["begin"]))
                    if hashlib.sha256(text).digest() != digest:
                        raise UserError("the source files changed while they were read", "run it again")
                    yield digest, text


def refusal(document: bytes, config: DataConfig) -> str | None:
    """Why a document is left out, or None."""
    if not document:
        return "empty"
    try:
        document.decode()
    except UnicodeDecodeError:
        return "not UTF-8"
    return "NUL byte" if config.tokenizer == "bytes" and b"\0" in document else None  # there it ends documents


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


def passages(path: Path) -> Iterator[bytes]:
    """Prose cut at line ends into documents of about ``PASSAGE`` bytes, so that a single book can be split into
    training and validation text, and a file of any size be read."""
    with path.open("rb") as file:
        yield file.read(PASSAGE) + file.readline()  # of an empty file, too
        while passage := file.read(PASSAGE) + file.readline():
            yield passage


def unreadable(path: Path, error: OSError) -> UserError:
    return UserError(
        f"{path} cannot be read: {error.strerror}", "change its permissions, or leave it out of data.paths"
    )


def plain_texts(path: Path) -> Iterator[bytes]:
    """The documents of a file of text: a program whole, anything else in passages."""
    place = 0
    for text in [path.read_bytes()] if path.suffix.lower() == ".py" else passages(path):
        try:
            text.decode()
        except UnicodeDecodeError as error:
            raise UserError(
                f"{path} is not UTF-8: byte {place + error.start} is {text[error.start]:#04x}",
                "convert it (iconv -f latin1 -t utf-8), or leave it out of data.paths",
            ) from None
        yield text
        place += len(text)


def file_texts(path: Path, column: str) -> Iterator[bytes]:
    """The documents of one of the user's files."""
    try:
        path.open("rb").close()
    except OSError as error:
        raise unreadable(path, error) from None
    if path.suffix.lower() in TEXT_SUFFIXES:
        yield from plain_texts(path)
        return

    def explain(error: Exception) -> UserError:
        kind = path.suffix.lower()[1:]
        cure = "mend that row" if kind == "jsonl" else "write it anew"
        return UserError(f"{path} is not valid {kind}: {first_line(error)}", f"{cure}, or leave it out of data.paths")

    if path.suffix.lower() == ".parquet":
        tables = parquet_tables(path)
    else:  # data_files takes patterns, and a name may hold brackets; chunks of 1 MiB are as fast as its 10, and lighter
        tables = streamed("json", data_files=glob.escape(str(path)), split="train", chunksize=2**20)
    yield from text_rows(str(path), column, explain, tables)


def make_source(config: DataConfig) -> Source:
    """The source that a data configuration names; local kinds are read once here."""
    if isinstance(config, HubData):
        from modexp.data.hub import HubSource

        return HubSource(config)
    if isinstance(config, FilesData):
        files, column = matching_files(config), config.text_column
        return LocalSource(files, lambda: (text for path in files for text in file_texts(path, column)), config)
    assert isinstance(config, PythonData)
    files = standard_library()
    return LocalSource(files, lambda: (read_plain(path) for path in files), config)


def describe(config: DataConfig) -> str:
    """The source in words, for manifests and plans."""
    if isinstance(config, HubData):
        extras = [str(part) for part in (config.subset, config.split, config.revision) if part]
        return f"{config.path} ({', '.join(extras)})"
    if isinstance(config, FilesData):
        return ", ".join(config.paths)
    return f"{platform.python_implementation()} {platform.python_version()} standard library"
