"""Prepares a data folder from benchmark files: MMLU's CSVs or their tar, GSM8K's and HumanEval's JSON Lines, the hub's
Parquet files, or whole datasets of the hub under their own names.

The folder has `mmlu/{test,dev}/*.csv`, `gsm8k/{test,train}.jsonl`, `humaneval/HumanEval.jsonl.gz`, datasets by name
below `hub/`, and a manifest: source, layout, licence, rows and SHA-256 of every file. A file that already has the right
layout is copied unchanged. Knows nothing of tasks.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import os
import re
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from evals.tasks import known_datasets, local_data
from workbench.errors import DataError

MANIFEST = "manifest.json"
_FORMAT = 1
_BENCHMARK_BY_FIELDS = {
    frozenset({"question", "subject", "choices", "answer"}): "mmlu",
    frozenset({"question", "answer"}): "gsm8k",
    frozenset({"task_id", "prompt", "canonical_solution", "test", "entry_point"}): "humaneval",
}
_HUB_NAME = re.compile(r"([\w.-]+/[\w.-]+)=(.+)")


@dataclass(frozen=True)
class Member:
    """A file of a source, which may be in an archive."""

    name: PurePosixPath
    read: Callable[[], bytes]


def prepare(sources: Sequence[str | Path], target: Path) -> dict[str, Any]:
    """Copy the benchmarks of these sources into a data folder, and return its manifest.

    sources: folders, archives (.tar, .tar.gz) and files, searched for the three benchmarks; `org/name=FOLDER` copies a
    folder as the hub's dataset of that name. Other data in the target stays.

    Raises: DataError if a source does not exist, has no benchmark, contradicts itself or is malformed; then nothing
    was changed.
    """
    entries: dict[str, dict[str, Any]] = {}
    try:
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target, prefix=".preparing-") as scratch:
            staged = Path(scratch)
            for source in map(str, sources):
                new_entries = _hub(source, staged) if _HUB_NAME.fullmatch(source) else _benchmarks(source, staged)
                if duplicates := sorted(new_entries.keys() & entries.keys()):
                    raise DataError(f"{duplicates[0]} is in two sources; {source} is the second.")
                entries |= new_entries
            manifest = read_manifest(target) or {"format": _FORMAT, "sets": {}}
            _install(staged, target, manifest, entries)
    except OSError as error:
        raise DataError(f"{target} cannot be prepared: {error}.") from error
    finally:
        with suppress(OSError):  # removes the folder only if it is empty
            target.rmdir()
    return manifest


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a data folder; None for a folder without one.

    Raises: DataError if it is damaged.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        whole = manifest["format"] == _FORMAT and all("files" in entry for entry in manifest["sets"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is not a valid manifest ({error!r}); prepare the folder again.") from error
    if not whole:
        raise DataError(f"{path} has an unsupported manifest version, {manifest['format']}; prepare the folder again.")
    return dict(manifest)


def missing(benchmark: str, rows: dict[str, int]) -> list[str]:
    """Differences from a benchmark's published size, given the rows of each file by path."""
    expected = known_datasets.files(benchmark)
    absent = [path for path in expected if path not in rows]
    named = ", ".join([*absent[:3], "..."] if len(absent) > 3 else absent)
    problems = [f"{len(absent)} of {len(expected)} files are missing: {named}"] if absent else []
    for path, (_, n) in expected.items():
        if path in rows and rows[path] != n:
            problems.append(f"{path} has {rows[path]} rows; the published file has {n}")
    return problems


def check(folder: Path) -> list[str]:
    """Problems of a prepared folder: missing files, changed files, incomplete benchmarks.

    Raises: DataError if it was not prepared.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise DataError(f"{folder} has no {MANIFEST}; `workbench eval prepare SOURCE --data {folder}` creates one.")
    problems = []
    for name, entry in manifest["sets"].items():
        for path, facts in entry["files"].items():
            if not (folder / path).is_file():
                problems.append(f"{name}: {path} is missing")
            elif _sha256((folder / path).read_bytes()) != facts["sha256"]:
                problems.append(f"{name}: {path} was changed after it was prepared: its SHA-256 differs")
        problems += [f"{name}: {what}" for what in entry["missing"]]
    return problems


def _benchmarks(source: str, staged: Path) -> dict[str, dict[str, Any]]:
    """Write the benchmarks of a source into the scratch folder, read them back, and describe them."""
    files: dict[str, tuple[bytes, str, str]] = {}  # by target: content, layout, source path
    tables: dict[tuple[str, str], dict[str, list[local_data.Row]]] = {}  # by benchmark and split, then configuration
    for member in _members(Path(source).expanduser()):
        if member.name.suffix == ".parquet":
            _read_parquet(member, tables)
        elif (content := _recognized_file(member) or _problems(member, source)) is not None:
            path, layout, text = content
            if path in files and files[path][0] != text:
                raise DataError(
                    f"{source} has two different {path}: {files[path][2]} and {member.name}; give one of them."
                )
            files[path] = (text, layout, str(member.name))
    in_layout = {path.partition("/")[0] for path in files}
    for (benchmark, split), by_name in tables.items():
        if benchmark not in in_layout:  # a file in the right layout has priority
            # The hub's MMLU has every question twice: in `all`, and in the folder of its subject.
            rows = by_name["all"] if "all" in by_name else [row for name in sorted(by_name) for row in by_name[name]]
            files |= {path: (text, "hub parquet", split) for path, text in _as_files(benchmark, split, rows)}
    if not files:
        raise DataError(
            f"{source} has no MMLU CSVs ({{dev,test}}/<subject>_test.csv), no GSM8K or HumanEval JSON Lines, and no "
            "Parquet files of these; for another dataset of the hub, use org/name=FOLDER."
        )
    for path, (text, _, _) in files.items():
        _write(staged / path, text)
    return {name: _describe(name, source, files, staged) for name in known_datasets.BENCHMARKS if _has(files, name)}


def _has(files: Iterable[str], benchmark: str) -> bool:
    return any(path.startswith(f"{benchmark}/") for path in files)


def _describe(name: str, source: str, files: dict[str, tuple[bytes, str, str]], staged: Path) -> dict[str, Any]:
    about, facts = known_datasets.BENCHMARKS[name], {}
    splits = {path: split for path, (split, _) in known_datasets.files(name).items()}
    for path in sorted(path for path in files if path in splits):
        try:
            rows = local_data.read_file(staged / path)
        except DataError as error:
            raise DataError(f"{source}: {str(error).replace(f'{staged}/', '')}") from error
        facts[path] = {"rows": len(rows), "sha256": _sha256(files[path][0])}
    return {
        "source": str(Path(source).expanduser().absolute()),
        "layout": next(layout for path, (_, layout, _) in files.items() if path in facts),
        "licence": about.licence,
        "origin": about.origin,
        "rows": {split: sum(f["rows"] for p, f in facts.items() if splits[p] == split) for split in about.rows},
        "missing": missing(name, {path: fact["rows"] for path, fact in facts.items()}),
        "files": facts,
    }


def _members(source: Path) -> Iterator[Member]:
    if source.is_dir():
        for folder, folders, names in os.walk(source):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(names):
                path = Path(folder) / name
                yield Member(PurePosixPath(path.absolute().as_posix()), path.read_bytes)
    elif not source.is_file():
        raise DataError(f"{source} does not exist.")
    elif ".tar" in source.suffixes or source.suffix == ".tgz":
        yield from _archive_members(source)
    else:
        yield Member(PurePosixPath(source.absolute().as_posix()), source.read_bytes)


def _archive_members(source: Path) -> Iterator[Member]:
    """The files of an archive, read without unpacking it, so that no path in it can leave the target folder."""
    try:
        with tarfile.open(source) as archive:
            for info in archive:
                if info.isfile() and (file := archive.extractfile(info)) is not None:
                    yield Member(PurePosixPath(info.name), file.read)
    except tarfile.TarError as error:
        raise DataError(f"{source} is not a readable archive ({error}).") from error


def _recognized_file(member: Member) -> tuple[str, str, bytes] | None:
    """The target path, layout name and content of a file in a known layout; None for any other file."""
    name = member.name.name
    if parts := re.fullmatch(r"(\w+)_(test|dev)\.csv", name):
        if parts[1] in known_datasets.MMLU_TEST and member.name.parent.name == parts[2]:
            return f"mmlu/{parts[2]}/{name}", "Hendrycks' CSV", member.read()
    elif name in ("HumanEval.jsonl.gz", "human-eval-v2-20210705.jsonl.gz"):
        return "humaneval/HumanEval.jsonl.gz", "HumanEval JSONL", member.read()
    elif name == "HumanEval.jsonl":
        return "humaneval/HumanEval.jsonl.gz", "HumanEval JSONL", gzip.compress(member.read(), mtime=0)
    elif name in ("train.jsonl", "test.jsonl"):
        text = member.read()
        try:
            fields = set(json.loads(text.partition(b"\n")[0]))
        except (ValueError, TypeError):
            fields = set()
        if fields == {"question", "answer"}:
            return f"gsm8k/{name}", "GSM8K JSONL", text
    return None


def _problems(member: Member, source: str) -> tuple[str, str, bytes] | None:
    """A file of problems in HumanEval's form under any name, if it is the source itself, such as human-eval's
    `example_problem.jsonl`. In a folder only HumanEval's own name counts: that example is next to it.
    """
    path = Path(source).expanduser()
    if not path.is_file() or not path.name.endswith((".jsonl", ".jsonl.gz")):
        return None
    text = member.read()
    try:
        first = json.loads((gzip.decompress(text) if path.suffix == ".gz" else text).partition(b"\n")[0])
    except (ValueError, OSError, EOFError, zlib.error):
        return None
    if not isinstance(first, dict) or _BENCHMARK_BY_FIELDS.get(frozenset(first)) != "humaneval":
        return None
    content = text if path.suffix == ".gz" else gzip.compress(text, mtime=0)
    return "humaneval/HumanEval.jsonl.gz", "HumanEval JSONL", content


def _read_parquet(member: Member, tables: dict[tuple[str, str], dict[str, list[local_data.Row]]]) -> None:
    """Add the rows of a benchmark's Parquet file, by split and configuration; other files are skipped."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    split, config = member.name.stem.partition("-")[0], member.name.parent.name
    if split.isdigit():  # <configuration>/<split>/0000.parquet, the hub's converted files
        split, config = config, member.name.parent.parent.name
    try:
        file = pq.ParquetFile(io.BytesIO(member.read()))
        benchmark = _BENCHMARK_BY_FIELDS.get(frozenset(file.schema_arrow.names))
        # GSM8K's other configuration, socratic, has the same questions with other answers.
        if benchmark is not None and split in known_datasets.BENCHMARKS[benchmark].rows and config != "socratic":
            tables.setdefault((benchmark, split), {}).setdefault(config, []).extend(file.read().to_pylist())
    except pa.ArrowException as error:
        raise DataError(f"{member.name} is not a readable Parquet file ({error}).") from error


def _as_files(benchmark: str, split: str, rows: list[local_data.Row]) -> Iterator[tuple[str, bytes]]:
    """A table's rows in the layout of the data folder."""
    if benchmark == "mmlu":
        by_subject: dict[str, list[local_data.Row]] = {}
        for row in rows:
            by_subject.setdefault(row["subject"], []).append(row)
        for subject, subject_rows in by_subject.items():
            text = io.StringIO(newline="")
            lines = ([row["question"], *row["choices"], "ABCD"[row["answer"]]] for row in subject_rows)
            # With the line terminator \r\n, both characters are quoted inside a field.
            csv.writer(text, lineterminator="\r\n").writerows(lines)
            yield f"mmlu/{split}/{subject}_{split}.csv", text.getvalue().encode()
        return
    json_lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    if benchmark == "gsm8k":
        yield f"gsm8k/{split}.jsonl", json_lines
    else:
        yield "humaneval/HumanEval.jsonl.gz", gzip.compress(json_lines, mtime=0)


def _hub(source: str, staged: Path) -> dict[str, dict[str, Any]]:
    """Copy a dataset of the hub unchanged; its README or the file names assign the files to splits."""
    parts = _HUB_NAME.fullmatch(source)
    assert parts is not None
    name, folder = parts[1], Path(parts[2]).expanduser()
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; give a dataset of the hub as {name}=FOLDER.")
    _check_one_dataset(name, folder)
    facts = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        below = path.relative_to(folder)
        if not any(part.startswith(".") for part in below.parts):
            content = path.read_bytes()
            _write(staged / "hub" / name / below, content)
            facts[f"hub/{name}/{below.as_posix()}"] = {"sha256": _sha256(content)}
    if not facts:
        raise DataError(f"{folder} has no files.")
    readme = folder / "README.md"
    stated = re.search(r"^license:\s*(.+)$", readme.read_text("utf-8"), re.M) if readme.is_file() else None
    licence = stated[1].strip() if stated else "not stated in the folder"
    about = {"source": str(folder.absolute()), "layout": "hub", "licence": licence}
    return {f"hub/{name}": {**about, "origin": f"{name} on the Hugging Face hub", "missing": [], "files": facts}}


def _check_one_dataset(name: str, folder: Path) -> None:
    """Raises: DataError for the whole cache of the Hugging Face hub, which has a folder for each dataset."""
    cached = sorted({*folder.glob("datasets--*"), *folder.glob("models--*"), *folder.glob("hub/datasets--*")})
    if not cached:
        return
    wanted = next((path for path in cached if path.name == f"datasets--{name.replace('/', '--')}"), None)
    if wanted is not None:
        raise DataError(
            f"{folder} is a cache of the Hugging Face hub with more than this dataset; give {name}={wanted}."
        )
    sets = [path.name.removeprefix("datasets--").replace("--", "/") for path in cached if "datasets--" in path.name]
    named = ", ".join([*sets[:5], *(["..."] if len(sets) > 5 else [])]) or "none"
    raise DataError(f"{folder} is a cache of the Hugging Face hub, and {name} is not in it; its datasets: {named}.")


def _install(staged: Path, target: Path, manifest: dict[str, Any], entries: dict[str, dict[str, Any]]) -> None:
    """Move the new files into the target. If this is interrupted, the manifest does not list incomplete datasets."""
    old = {path for name in entries for path in manifest["sets"].pop(name, {"files": {}})["files"]}
    _write_manifest(target, manifest)
    new = [path for entry in entries.values() for path in entry["files"]]
    for path in new:
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        os.replace(staged / path, target / path)
    for path in old.difference(new):
        (target / path).unlink(missing_ok=True)
    manifest["sets"] |= entries
    _write_manifest(target, manifest)


def _write_manifest(target: Path, manifest: dict[str, Any]) -> None:
    temporary = target / f"{MANIFEST}.tmp"
    _write(temporary, json.dumps(manifest, indent=2, sort_keys=True).encode() + b"\n")
    os.replace(temporary, target / MANIFEST)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
