"""What was found, to be written in any of six formats: for people, for programs, and as tables. Knows nothing of
results.
"""

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
    """Each form is made when it is asked for. `more` are further tables, each a file beside that of CSV or Parquet."""

    report: Callable[[], Report]
    frame: Callable[[], pd.DataFrame]
    values: Callable[[], Any]
    more: Mapping[str, Callable[[], pd.DataFrame]]

    def text(self, format: str) -> str:
        """The document in a format of text: md, latex, html, csv or json."""
        if format == "csv":
            return str(self.frame().to_csv(index=False))
        if format == "json":
            return json.dumps(self.values(), indent=2, default=str) + "\n"
        return MARKUP[format](self.report())

    def save(self, format: str, path: Path) -> list[Path]:
        """Write the document, each file whole or not at all; returns the files.

        Raises: DataError if the place cannot be written.
        """
        if format not in ("csv", "parquet"):
            content = self.text(format)
            return [write(path, lambda temporary: temporary.write_text(content, encoding="utf-8", newline=""))]
        tables = {path: self.frame} | {
            path.with_suffix(f".{name}{path.suffix}"): make for name, make in self.more.items()
        }
        return [write(place, _table(make(), format)) for place, make in tables.items()]


def format_of(path: Path | None) -> str | None:
    """The format that a file's name asks for; None where it asks for none."""
    return None if path is None else _SUFFIXES.get(path.suffix.lower())


def write(path: Path, make: Callable[[Path], Any]) -> Path:
    """Have a file made under a temporary name first, so that a half-written one never bears the real name.

    Raises: DataError if the place cannot be written.
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
