"""A finished run taken elsewhere: lm-eval's own files, and every task's samples as CSV and Parquet.

Knows nothing of models, and imports no lm_eval.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.results.runs import Run
from workbench.errors import DataError

if TYPE_CHECKING:
    import pandas as pd


def export(run: Run, folder: Path) -> list[Path]:
    """Copy a run's results and samples into a folder, with the samples as tables beside them; returns all paths.

    In a table, what a document holds and every list is JSON text: its form differs from task to task.
    Raises: DataError if the folder is the run's own, or a sample cannot be read.
    """
    if folder.resolve() == run.path.parent.resolve():
        raise DataError(f"{run.path.name} is in {folder} already; export it to another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for path in [*run.path.parent.glob(f"samples_*_{run.stamp}.jsonl"), run.path]:
        written.append(folder / path.name)
        shutil.copyfile(path, _temporary(written[-1]))
        os.replace(_temporary(written[-1]), written[-1])
    for task in run.tasks:
        if not run.path.with_name(f"samples_{task}_{run.stamp}.jsonl").is_file():
            continue  # lm-eval writes them only when asked
        table = flat(run.samples(task))
        csv, parquet = (folder / f"samples_{task}_{run.stamp}.{end}" for end in ("csv", "parquet"))
        table.to_csv(_temporary(csv), index=False)
        table.to_parquet(_temporary(parquet), index=False)
        for path in (csv, parquet):
            os.replace(_temporary(path), path)
            written.append(path)
    return written


def flat(samples: pd.DataFrame) -> pd.DataFrame:
    """The same table with lists and documents as JSON text, which every reader of tables takes."""
    table = samples.copy()
    for name in table:
        if any(isinstance(value, list | dict | tuple) for value in table[name]):
            table[name] = [None if _absent(value) else json.dumps(value, ensure_ascii=False) for value in table[name]]
    return table


def _absent(value: Any) -> bool:
    return value is None or isinstance(value, float)


def _temporary(path: Path) -> Path:
    return path.with_name(path.name + ".tmp")
