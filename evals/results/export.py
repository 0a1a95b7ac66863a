"""Export of a finished run to another folder: lm-eval's files, and each task's samples as CSV and Parquet.

Does not use models or import lm_eval.
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
    """Copy a run's results and samples into a folder and add the samples as tables; returns all paths.

    In the tables, documents and lists are JSON text, because their form differs between tasks.
    Raises: DataError if the folder is the run's own folder, or a sample cannot be read.
    """
    if folder.resolve() == run.path.parent.resolve():
        raise DataError(f"{run.path.name} is already in {folder}; export it to a different folder.")
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for path in [*run.path.parent.glob(f"samples_*_{run.stamp}.jsonl"), run.path]:
        written.append(folder / path.name)
        shutil.copyfile(path, _temporary(written[-1]))
        os.replace(_temporary(written[-1]), written[-1])
    for task in run.tasks:
        if not run.path.with_name(f"samples_{task}_{run.stamp}.jsonl").is_file():
            continue  # lm-eval writes samples only with --log_samples
        table = flat(run.samples(task))
        csv, parquet = (folder / f"samples_{task}_{run.stamp}.{end}" for end in ("csv", "parquet"))
        table.to_csv(_temporary(csv), index=False)
        table.to_parquet(_temporary(parquet), index=False)
        for path in (csv, parquet):
            os.replace(_temporary(path), path)
            written.append(path)
    return written


def flat(samples: pd.DataFrame) -> pd.DataFrame:
    """The same table with lists and documents as JSON text, which every CSV or Parquet reader accepts."""
    table = samples.copy()
    for name in table:
        if any(isinstance(value, list | dict | tuple) for value in table[name]):
            table[name] = [None if _absent(value) else json.dumps(value, ensure_ascii=False) for value in table[name]]
    return table


def _absent(value: Any) -> bool:
    return value is None or isinstance(value, float)


def _temporary(path: Path) -> Path:
    return path.with_name(path.name + ".tmp")
