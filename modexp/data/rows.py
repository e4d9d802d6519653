"""Texts out of jsonl, parquet and hub data sets, through the ``datasets`` library and ``pyarrow``."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from modexp.errors import UserError

BATCH_ROWS = 256  # a table of them fits into memory even when each row is a book


def quieten() -> None:
    """No progress bars, warnings or logged errors of the Hugging Face libraries: our sentence is enough."""
    import datasets
    import huggingface_hub.utils

    datasets.disable_progress_bars()
    huggingface_hub.utils.disable_progress_bars()
    for name in ("datasets", "huggingface_hub", "fsspec", "httpx", "urllib3"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


@contextmanager
def without_torch() -> Iterator[None]:
    """The datasets library imports torch to make its streams fit for torch's loader: 180 MB that nothing here uses."""
    import datasets

    available = datasets.config.TORCH_AVAILABLE
    datasets.config.TORCH_AVAILABLE = False
    try:
        yield
    finally:
        datasets.config.TORCH_AVAILABLE = available


def streamed(*path: str, **options: Any) -> Iterator[Any]:
    """Arrow tables of what ``datasets.load_dataset(*path, **options)`` streams."""
    import datasets

    quieten()
    try:
        with without_torch():
            stream = datasets.load_dataset(*path, streaming=True, **options).with_format("arrow")
        yield from stream.iter(batch_size=BATCH_ROWS)
    except StopIteration:  # the library's answer to a file without rows; a generator must not let it through
        return


def parquet_tables(path: Path) -> Iterator[Any]:
    """Arrow tables of a file, page by page; the datasets library would hold a whole row group, often a whole file."""
    from pyarrow import parquet

    with parquet.ParquetFile(path, pre_buffer=False, buffer_size=2**20) as file:
        yield from file.iter_batches(BATCH_ROWS)


def text_rows(
    place: str, column: str, explain: Callable[[Exception], UserError], tables: Iterator[Any]
) -> Iterator[bytes]:
    """UTF-8 text of every row of ``tables``; b"" where it is null.

    ``place`` names the source in our sentences; ``explain`` turns a failure of a library into one.
    """
    try:
        for table in tables:
            if column not in table.column_names:
                raise UserError(
                    f"{place} has no column {column!r}; its columns: {', '.join(table.column_names)}",
                    "name the column that holds the text: data.text_column=NAME",
                )
            kind = str(table[column].type)
            if kind not in ("string", "large_string", "string_view", "null"):
                raise UserError(
                    f"column {column!r} of {place} holds {kind}, not text",
                    "name the column that holds the text: data.text_column=NAME",
                )
            for text in table[column].to_pylist():
                yield (text or "").encode()
    except UserError:
        raise
    except Exception as error:
        raise explain(error) from None
