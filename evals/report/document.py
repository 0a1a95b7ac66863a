"""A document in six export formats: Markdown, LaTeX, HTML, CSV, Parquet and JSON. Does not depend on results."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.report import markup
from evals.report.markup import Report
from workbench.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

MARKUP: dict[str, Callable[[Report], str]] = {"md": markup.markdown, "latex": markup.latex, "html": markup.html}
FORMATS = (*MARKUP, "csv", "parquet", "json")
_SUFFIXES = {".md": "md", ".tex": "latex", ".html": "html", ".csv": "csv", ".parquet": "parquet", ".json": "json"}


@dataclass(frozen=True)
class Document:
    """A document whose forms are built on demand. `extra_tables` are written as separate CSV or Parquet files."""

    report: Callable[[], Report]
    frame: Callable[[], pd.DataFrame]
    values: Callable[[], Any]
    extra_tables: Mapping[str, Callable[[], pd.DataFrame]]

    def text(self, format: str) -> str:
        """The document as text: md, latex, html, csv or json."""
        if format == "csv":
            return str(self.frame().to_csv(index=False))
        if format == "json":
            return json.dumps(self.values(), indent=2, default=str) + "\n"
        return MARKUP[format](self.report())

    def save(self, format: str, path: Path) -> list[Path]:
        """Write the document; returns the files. Each file is written atomically.

        Raises: DataError if a file cannot be written.
        """
        if format not in ("csv", "parquet"):
            content = self.text(format)
            return [write(path, lambda temporary: temporary.write_text(content, encoding="utf-8", newline=""))]
        tables = {path: self.frame} | {
            path.with_suffix(f".{name}{path.suffix}"): make for name, make in self.extra_tables.items()
        }
        return [write(place, _table(make(), format)) for place, make in tables.items()]


def format_from_name(path: Path | None) -> str | None:
    """The format of a file name's suffix; None if it has no known suffix."""
    return None if path is None else _SUFFIXES.get(path.suffix.lower())


def write(path: Path, make: Callable[[Path], Any]) -> Path:
    """Write a file under a temporary name, then rename it, so that the real name never has an incomplete file.

    Raises: DataError if the file cannot be written.
    """
    temporary = path.with_name(path.name + ".partial")
    try:
        make(temporary)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise DataError(f"{path} cannot be written: {error.strerror or error}.") from error
    return path


def _table(table: pd.DataFrame, format: str) -> Callable[[Path], Any]:
    if format == "csv":
        return lambda path: path.write_text(table.to_csv(index=False), encoding="utf-8", newline="")
    return lambda path: table.to_parquet(path, index=False)
