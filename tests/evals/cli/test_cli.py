"""The benchmark commands: lm-eval's flags, exit codes, and the output for unfinished runs."""

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

pytest.importorskip("lm_eval", reason="lm_eval is not installed")

import workbench as wb
from evals import sandbox
from evals.cli.option_values import key_values
from evals.results.runs import list_runs, read_run
from evals.run.evaluate import evaluate
from evals.run.settings import Settings
from evals.store.store import RESPONSES, Store
from workbench.cli import main


def test_lm_evals_flags_reach_the_run(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [
        "--tasks", "demo_gsm8k", "--num_fewshot", "1", "--limit", "0.04", "--batch_size", "auto:4",
        "--apply_chat_template", "--fewshot_as_multiturn", "--system_instruction", "Be brief.",
        "--gen_kwargs", "max_gen_toks=5,temperature=0.7,do_sample=true", "--seed", "0,1,2,77",
        "--output_path", str(tmp_path / "out"), "--json",
    ]  # fmt: skip
    assert main(["eval", "run", "--model", str(checkpoint), "--dtype", "float32", *flags]) == 0
    shown = json.loads(capsys.readouterr().out)
    run = read_run(Path(shown["path"]))
    assert run.path.parent == tmp_path / "out" and run.provenance["seed"] == 77
    samples = run.samples("demo_gsm8k")
    questions = run.data["n-samples"]["demo_gsm8k"]
    assert questions["effective"] == -(-questions["original"] * 4 // 100) == samples.doc_id.nunique()
    assert all(len(ids) <= 5 for ids in samples.generated_ids)
    prompt = samples.prompt[0]
    assert prompt.index("Be brief.") < prompt.index("<|start_header_id|>user")
    # One example as a turn of its own, the question, and the answer that is asked for.
    assert re.findall(r"<\|start_header_id\|>(\w+)", prompt) == ["system", "user", "assistant", "user", "assistant"]
    with Store.open(tmp_path / "out", create=False) as store:
        (stored,) = store.runs()
    assert Settings.from_dict(stored.settings["settings"]).gen_kwargs["temperature"] == 0.7


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("temperature=0.6,until=stop,do_sample=True", {"temperature": 0.6, "until": "stop", "do_sample": True}),
        ('{"until": ["a,b"], "top_k": 3}', {"until": ["a,b"], "top_k": 3}),
        ('until=["Question:","\\n"],top_k=3', {"until": ["Question:", "\n"], "top_k": 3}),
        ("stop=['a,b'],TEMPERATURE=1e-1", {"stop": ["a,b"], "TEMPERATURE": 0.1}),
        ("until=don't,top_k=3", {"until": "don't", "top_k": 3}),
        ("base_url=http://x/v1?a=b", {"base_url": "http://x/v1?a=b"}),
    ],
)
def test_pairs(text: str, expected: dict[str, Any]) -> None:
    assert key_values(text, "--gen_kwargs") == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--limit", "1.5"], "--limit"),
        (["--limit", "-1"], "--limit"),
        (["--limit", "nan"], "--limit"),
        (["--limit", "inf"], "--limit"),
        (["--num_fewshot", "500"], "--num_fewshot 500"),
        (["--batch_size", "many"], "--batch_size"),
        (["--seed", "1,2"], "--seed"),
        (["--gen_kwargs", "warm"], "key=value"),
        (["--gen_kwargs", "{"], "not JSON"),
        (["--gen_kwargs", "num_beams=4"], "num_beams"),
        (["--gen_kwargs", "max_gen_toks=abc"], "max_gen_toks must be a number of tokens"),
        (["--gen_kwargs", "max_gen_toks=4,max_new_tokens=5"], "max_new_tokens=5 contradicts max_gen_toks=4"),
        (["--gen_kwargs", 'until=["a","b"'], "expected a list or an object"),
        (["--gen_kwargs", "until=[a,b]"], "expected a list or an object"),
        (["--gen_kwargs", "top_k=4,top_k=5"], "two values for top_k"),
        (["--gen_kwargs", "max_gen_toks=0"], "at least 1; found 0"),
        (["--gen_kwargs", "temperature=warm"], "temperature must be a number"),
        (["--gen_kwargs", "temperature=-1"], "at least 0; found -1"),
        (["--gen_kwargs", "top_p=3"], "at most 1; found 3"),
        (["--gen_kwargs", "top_k=-1"], "top_k"),
        (["--gen_kwargs", "do_sample=maybe"], "true or false"),
        (["--gen_kwargs", "until=5"], "list of strings"),
        (["--limits", "hours=1"], "no limit 'hours'"),
        (["--limits", "memory=1.5"], "must be an integer"),
        (["--limits", "seconds=0"], "above 0"),
        (["--fewshot_as_multiturn"], "--apply_chat_template"),
        (["--ablate", "L99H0"], "--ablate"),
        (["--model_args", "x=1"], "--backend"),
        (["--backend", "nosuch"], "'nosuch'"),
        (["--backend", "hf", "--model_args", "pretrained=/nowhere"], "/nowhere"),
    ],
)
def test_mistakes_are_found_before_the_work(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--tasks", "demo_gsm8k", "--output", str(tmp_path / "out"), *arguments]
    assert main(["eval", "run", *options]) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err
    assert not (tmp_path / "out").exists()


def test_tasks_that_cannot_be_run_are_exit_code_3(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox, "why_unavailable", lambda *_: "there is none")
    options = ["--model", str(checkpoint), "--tasks", "demo_mmlu,demo_humaneval", "--limit", "1"]
    assert main(["eval", "run", *options, "--output", str(tmp_path)]) == 3


@pytest.fixture
def interrupted(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[Path, str]:
    """The folder of a run that was interrupted after its scored half, and the printed command that resumes it."""
    generate = wb.generate

    def stop(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(wb, "generate", stop)
    options = ["--model", str(checkpoint), "--tasks", "demo_mmlu,demo_gsm8k", "--limit", "2", "--dtype", "float32"]
    assert main(["eval", "run", *options, "--output", str(tmp_path / "out")]) == 130
    monkeypatch.setattr(wb, "generate", generate)
    (command,) = re.findall(r"`workbench (eval resume .*?)`", capsys.readouterr().err)
    return tmp_path / "out", command


def test_an_interrupted_run_says_how_it_goes_on(
    interrupted: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, command = interrupted
    assert main(["eval", "list", "--results", str(folder)]) == 0
    listed = capsys.readouterr().out
    assert listed.startswith("[interrupted] ") and "8 answers saved" in listed and command in listed
    name = listed.split()[1]
    assert main(["eval", "show", name, "--results", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "not finished" in shown and "%" not in shown and "acc" not in shown
    assert main(["eval", "list", "--results", str(folder), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["status"], row["answers_kept"], row["resume"]) == ("interrupted", 8, f"workbench {command}")
    for options in (["export", name], ["report", name], ["compare", name, name]):
        assert main(["eval", *options, "--results", str(folder)]) == 2
        message = f"is interrupted: it has no complete results yet; continue with `workbench {command}`"
        assert message in capsys.readouterr().err
    assert main(command.split()) == 0
    capsys.readouterr()
    assert main(["eval", "show", name, "--results", str(folder)]) == 0
    assert "95% interval" in capsys.readouterr().out
    assert main(["eval", "list", "--results", str(folder)]) == 0
    assert "[" not in capsys.readouterr().out


def test_a_stopped_run_is_resumed_by_its_folder(
    interrupted: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = interrupted
    assert main(["eval", "resume", str(folder)]) == 0
    assert "demo_gsm8k" in capsys.readouterr().out
    assert main(["eval", "resume", str(folder)]) == 2
    assert f"there is no stopped run in {folder}; `workbench eval list" in capsys.readouterr().err


def test_gc_frees_what_dropped_runs_left(interrupted: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    folder, _ = interrupted
    with Store.open(folder) as store:
        (row,) = store.runs()
    capsys.readouterr()
    command = ["eval", "gc", "--results", str(folder)]
    assert main(command) == 0 and "deleted 0 answers" in capsys.readouterr().out
    for _ in range(2):
        assert main([*command, "--drop", row.id, "--dry-run"]) == 0
        assert "would delete 8 answers" in capsys.readouterr().out
    assert len(list((folder / RESPONSES).iterdir())) == 1
    assert main([*command, "--drop", row.id]) == 0 and "deleted 8 answers" in capsys.readouterr().out
    assert list((folder / RESPONSES).iterdir()) == []


def test_a_run_is_exported_whole(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = evaluate(checkpoint, Settings(tasks=("demo_mmlu", "demo_gsm8k"), output=tmp_path / "out", limit=3))
    assert main(["eval", "export", str(run.path), "--output", str(tmp_path / "taken")]) == 0
    written = capsys.readouterr().out.split()
    assert len(written) == 7 and all(Path(path).is_file() for path in written)
    (again,) = list_runs(tmp_path / "taken")
    assert again.data == run.data
    for task in run.tasks:
        expected = run.samples(task)
        pd.testing.assert_frame_equal(again.samples(task), expected)
        parquet = pd.read_parquet(tmp_path / "taken" / f"samples_{task}_{run.stamp}.parquet")
        csv = pd.read_csv(tmp_path / "taken" / f"samples_{task}_{run.stamp}.csv")
        for table in (parquet, csv):
            assert list(table.doc_id) == list(expected.doc_id) and list(table.correct) == list(expected.correct)
            assert [json.loads(ids) for ids in table.prompt_ids] == list(expected.prompt_ids)
    assert main(["eval", "export", str(run.path), "--output", str(tmp_path / "out")]) == 2
