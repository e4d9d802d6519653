"""Data sets of the Hugging Face hub, or a local folder in a hub layout, streamed in their own order."""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from pathlib import Path
from typing import Any

from modexp.config.data import HubData
from modexp.data.rows import streamed, text_rows
from modexp.data.tokenizers import first_line
from modexp.errors import UserError

LOCAL_INSTEAD = "read a local folder (data.path=DIR), or use data=files or data=python"
NETWORK_LIBRARIES = {"httpx", "httpcore", "requests", "urllib3", "aiohttp"}


class HubSource:
    """Rows in stream order; row n is document n, so a stream is taken up again by counting."""

    def __init__(self, config: HubData) -> None:
        self.config = config
        self.folder = local_folder(config.path)
        self.facts: dict[str, Any] = {}
        self.identity: dict[str, Any] = {
            "path": config.path,
            "subset": config.subset,
            "split": config.split,
            "revision": config.revision,
            "text_column": config.text_column,
        }
        if self.folder:
            self.identity["path"] = folder_hash(self.folder)

    def read(self, start: int, scratch: Path) -> Generator[tuple[bytes, bytes], None, None]:
        config = self.config
        place = str(self.folder or config.path)
        tables = streamed(place, name=config.subset, split=config.split, revision=config.revision)
        texts = text_rows(f"data.path={config.path}", config.text_column, self._explain, tables)
        for number, text in enumerate(texts):
            if number >= start:
                yield hashlib.sha256(text).digest(), text

    def _explain(self, error: Exception) -> UserError:
        path, what = f"data.path={self.config.path}", type(error).__name__
        if what == "DatasetNotFoundError":
            return UserError(
                f"{path} is no data set of the Hugging Face hub, or one that needs a login",
                f"check the name on the hub (OWNER/NAME), or {LOCAL_INSTEAD}",
            )
        if isinstance(error, ConnectionError | TimeoutError) or (
            type(error).__module__.split(".")[0] in NETWORK_LIBRARIES
        ):
            return UserError(
                f"{path} is out of reach on the Hugging Face hub ({what})",
                f"go online once to fill the token cache, or {LOCAL_INSTEAD}",
            )
        if "scripts are no longer supported" in str(error):
            return UserError(
                f"{path} is a loading script, which the datasets library no longer runs",
                "try its parquet copy on the hub: data.revision=refs/convert/parquet, or another data set",
            )
        return UserError(
            f"{path} cannot be loaded: {first_line(error)}", "check data.subset, data.split and data.revision"
        )


def local_folder(path: str) -> Path | None:
    """``path`` as a folder on this machine; None where it is a name on the hub."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        suffixes = {file.suffix for file in folder.rglob("*")} & {".parquet", ".jsonl"}
        if len(suffixes) > 1:
            # the datasets library would take one kind and drop the other in silence
            raise UserError(
                f"data.path={path} holds both parquet and jsonl files",
                "keep one kind in the folder, or use data=files",
            )
        return folder
    if folder.exists():
        raise UserError(f"data.path={path} is a file", f"try data=files 'data.paths=[{path}]'")
    if path.startswith(("/", "~", ".")) or path.count("/") > 1:
        raise UserError(f"data.path={path} is no folder", "name a folder, or OWNER/NAME on the hub")
    return None


def folder_hash(folder: Path) -> str:
    """Hash over names and contents: a copy elsewhere is the same data set, an edited one is another."""
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}", "change its permissions") from None
        total.update(f"{path.relative_to(folder)}\0{content}\n".encode())
    return total.hexdigest()
