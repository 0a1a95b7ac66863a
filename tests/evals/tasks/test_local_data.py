"""Questions are read whole and in order from the layouts people have, and damage is named with its place."""

import gzip
import json
import shutil
from pathlib import Path

import pytest

from evals.tasks import local_data
from workbench.errors import DataError


def write_mmlu(folder: Path, line: str = '"What, ""then""?",w,x,"y, z",v,C\n') -> None:
    for split in ("dev", "test"):
        (folder / split).mkdir(parents=True)
        (folder / split / f"anatomy_{split}.csv").write_text(line)


@pytest.mark.parametrize("inner", ["mmlu", ".", "mmlu/data"])
def test_mmlu_is_found_where_people_keep_it(tmp_path: Path, inner: str) -> None:
    write_mmlu(tmp_path / inner)
    rows = local_data.load("cais/mmlu", "anatomy", tmp_path)
    expected = {"question": 'What, "then"?', "subject": "anatomy", "choices": ["w", "x", "y, z", "v"], "answer": 2}
    assert rows == {"test": [expected], "dev": [expected]}


@pytest.mark.parametrize("line", ["q,a,b,c,d\n", "q,a,b,c,d,E\n", "q,a,b,c,d,A\nonly one field\n"])
def test_a_damaged_csv_is_named_with_its_record(tmp_path: Path, line: str) -> None:
    write_mmlu(tmp_path, line)
    with pytest.raises(DataError, match=rf"anatomy_test\.csv: record {line.count(chr(10))} must be a question"):
        local_data.load("cais/mmlu", "anatomy", tmp_path)


def test_gsm8k_and_humaneval(tmp_path: Path) -> None:
    row = {"question": "1 + 1?", "answer": "#### 2"}
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps(row | {"extra": 1}) + "\n\n")
    assert local_data.load("openai/gsm8k", "main", tmp_path) == {"test": [row], "train": [row]}
    problem = dict.fromkeys(("task_id", "prompt", "canonical_solution", "test", "entry_point"), "x")
    (tmp_path / "HumanEval.jsonl").write_text(json.dumps(problem))
    assert local_data.load("openai/openai_humaneval", None, tmp_path) == {"test": [problem]}
    (tmp_path / "humaneval").mkdir()
    with gzip.open(tmp_path / "humaneval" / "HumanEval.jsonl.gz", "wt") as file:
        file.write(json.dumps(problem | {"prompt": "packed"}))
    assert local_data.load("openai/openai_humaneval", None, tmp_path)["test"][0]["prompt"] == "packed"


def test_what_is_missing_is_named_with_the_place_it_was_expected_at(tmp_path: Path) -> None:
    for dataset, expected in (
        ("cais/mmlu", "anatomy_test.csv"),
        ("openai/gsm8k", "test.jsonl"),
        ("openai/openai_humaneval", "HumanEval.jsonl.gz"),
    ):
        with pytest.raises(DataError, match=rf"{expected}.*--data"):
            local_data.load(dataset, "anatomy", tmp_path)
        with pytest.raises(DataError, match="set the folder with --data"):
            local_data.load(dataset, "anatomy", None)
    with pytest.raises(DataError, match="does not exist"):
        local_data.load("cais/mmlu", "anatomy", tmp_path / "absent")
    write_mmlu(tmp_path)
    shutil.rmtree(tmp_path / "dev")
    with pytest.raises(DataError, match="anatomy_dev.csv does not exist"):
        local_data.load("cais/mmlu", "anatomy", tmp_path)


def test_damaged_lines_are_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    for text, message in (
        ('{"a": 1}\n{"a": ', "line 2 is not JSON"),
        ('{"a": 1}\n{"a": "1"}', "line 2 has no field 'a' of type int"),
        ("[]", "line 1 is not a JSON object"),
        ("\n", "is empty"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=message):
            local_data.read_jsonl(path, {"a": int})


def test_real_files_are_read_whole(shared_data: Path) -> None:
    subjects = sorted(path.name.removesuffix("_test.csv") for path in (shared_data / "mmlu" / "test").iterdir())
    splits = [local_data.load("cais/mmlu", subject, shared_data) for subject in subjects]
    assert (len(splits), sum(len(s["test"]) for s in splits), sum(len(s["dev"]) for s in splits)) == (57, 14_042, 285)
    gsm8k = local_data.load("openai/gsm8k", "main", shared_data)
    assert (len(gsm8k["train"]), len(gsm8k["test"])) == (7_473, 1_319)
    assert len(local_data.load("openai/openai_humaneval", None, shared_data)["test"]) == 164


def test_embedded_suites_have_their_size_and_form() -> None:
    for name, least in (("demo_mmlu", 200), ("demo_gsm8k", 200), ("demo_humaneval", 60)):
        rows = local_data.load(name, None, None)["test"]
        assert len(rows) >= least
        assert len({json.dumps(row, sort_keys=True) for row in rows}) == len(rows), "an item appears twice"
    for row in local_data.load("demo_mmlu", None, None)["test"]:
        assert len(row["choices"]) == len(set(row["choices"])) == 4 and 0 <= row["answer"] < 4


def test_digest_tells_rows_apart() -> None:
    rows = [{"a": 1, "b": 2}, {"a": 3}]
    assert (
        local_data.rows_sha256(rows)
        == local_data.rows_sha256([{"b": 2, "a": 1}, {"a": 3}])
        != local_data.rows_sha256(rows[::-1])
    )
