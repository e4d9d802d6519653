"""Texts out of jsonl, parquet and hub data sets, through the ``datasets`` library."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
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


def text_rows(
    place: str, column: str, explain: Callable[[Exception], UserError], *path: str, **options: Any
) -> Iterator[bytes]:
    """UTF-8 text of every row that ``datasets.load_dataset(*path, **options)`` streams; b"" where it is null.

    ``place`` names the source in our sentences; ``explain`` turns a failure of the library into one.
    """
    import datasets

    quieten()
    try:
        stream = datasets.load_dataset(*path, streaming=True, **options).with_format("arrow")
        for table in stream.iter(batch_size=BATCH_ROWS):
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
    except StopIteration:  # the library's answer to a file without rows; a generator must not let it through
        return
    except Exception as error:
        raise explain(error) from None
