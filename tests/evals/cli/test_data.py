"""`workbench eval prepare` and `tasks`: available data, missing data, and exit codes."""

import json
from pathlib import Path

import pytest

pytest.importorskip("lm_eval", reason="lm_eval is not installed")

from evals.tasks import local_data
from workbench.cli import main


@pytest.fixture(autouse=True)
def no_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path / "data"))


def states(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, str]:
    capsys.readouterr()
    assert main(["eval", "tasks", *arguments, "--json"]) == 0
    return {row["name"]: row["data"] for row in json.loads(capsys.readouterr().out)["tasks"]}


def test_prepare_check_and_list(shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert set(states(capsys).values()) == {"embedded", "missing"}
    assert main(["eval", "prepare", str(shared_data / "gsm8k"), str(shared_data / "humaneval")]) == 0
    out, err = capsys.readouterr()
    assert "gsm8k: 1319 test, 7473 train; GSM8K JSONL; licence MIT" in out and "is complete" in err
    data_states = states(capsys)
    for name in ("gsm8k", "gsm8k_llama", "gsm8k_cot_llama", "humaneval", "humaneval_instruct"):
        assert data_states[name] == "here", name
    assert data_states["mmlu"] == data_states["mmlu_llama"] == data_states["mmlu_anatomy"] == "missing"
    assert data_states["demo_mmlu"] == "embedded" and data_states["arc_challenge_llama"] == "missing"
    assert main(["eval", "prepare", "--check"]) == 0
    (tmp_path / "data" / "gsm8k" / "test.jsonl").write_text("")
    capsys.readouterr()
    assert main(["eval", "prepare", "--check", "--json"]) == 1
    shown = json.loads(capsys.readouterr().out)
    assert shown["problems"] == ["gsm8k: gsm8k/test.jsonl was changed after it was prepared: its SHA-256 differs"]


def test_a_part_of_mmlu_is_a_part(shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("dev", "test"):
        name = f"anatomy_{split}.csv"
        (tmp_path / "mine" / split).mkdir(parents=True)
        (tmp_path / "mine" / split / name).write_bytes((shared_data / "mmlu" / split / name).read_bytes())
    assert main(["eval", "prepare", str(tmp_path / "mine"), "--data", str(tmp_path / "other")]) == 1
    out, err = capsys.readouterr()
    assert "mmlu: 135 test, 5 dev" in out and "112 of 114 files are missing" in err and "is not complete" in err
    data_states = states(capsys, "--data", str(tmp_path / "other"))
    assert (
        data_states["mmlu_anatomy"] == data_states["mmlu_llama_anatomy"] == "here"
        and data_states["mmlu_virology"] == "missing"
    )
    assert data_states["mmlu"] == data_states["mmlu_stem"] == "partly" and data_states["mmlu_humanities"] == "missing"


def test_own_suites_and_copies_of_the_hub_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "suites").mkdir()
    (tmp_path / "suites" / "sums.jsonl").write_text('{"question": "1+1?", "answer": "2"}\n')
    (tmp_path / "data" / "hub" / "allenai" / "ai2_arc").mkdir(parents=True)
    data_states = states(capsys, "--suite", str(tmp_path / "suites"))
    assert data_states["sums"] == "here" and data_states["arc_challenge_llama"] == "here"
    assert main(["eval", "tasks"]) == 0
    out, err = capsys.readouterr()
    assert f"data folder {tmp_path / 'data'}" in err and "openai/gsm8k" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "pass either sources"),
        (["x", "--check"], "pass either sources"),
        (["/nowhere"], "does not exist"),
        (["--check"], "has no manifest.json"),
    ],
)
def test_mistakes(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "prepare", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err and len(err.strip().splitlines()) <= 2
    assert not local_data.home().exists()
