"""An evaluation from the command or from Python: what is written, printed and refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import save_file

pytest.importorskip("lm_eval", reason="lm_eval is not installed")

from evals import sandbox
from evals.models.workbench_lm import WorkbenchLM
from evals.report import terminal_table
from evals.results.runs import list_runs
from evals.run.evaluate import evaluate
from evals.run.settings import Settings
from evals.sandbox import Limits
from workbench.cli import main
from workbench.errors import DataError, SandboxError
from workbench.model import Transformer

SUITES = ("demo_mmlu", "demo_gsm8k", "demo_humaneval")
needs_sandbox = pytest.mark.skipif(
    sandbox.why_unavailable() is not None, reason=f"no sandbox here: {sandbox.why_unavailable()}"
)


@needs_sandbox
def test_a_run_says_where_its_numbers_come_from(speaking_model: Transformer, tmp_path: Path) -> None:
    run = evaluate(speaking_model, Settings(tasks=SUITES, output=tmp_path, limit=3, seed=7))
    data = json.loads(run.path.read_text())
    assert {"results", "configs", "versions", "n-shot", "n-samples", "higher_is_better", "config", "date"} <= set(data)
    assert data["n-samples"]["demo_mmlu"]["effective"] == 3
    assert data["versions"]["demo_gsm8k"] == 1.0
    origin = data["workbench"]
    assert (origin["dtype"], origin["device"], origin["seed"], origin["limit"]) == ("float32", "cpu", 7, 3)
    assert {"checkpoint_sha256", "tokenizer_sha256", "commit", "versions"} <= set(origin)
    assert set(origin["data_sha256"]) == set(SUITES) and origin["versions"]["lm-eval"]
    assert list_runs(tmp_path) == [run]


@needs_sandbox
def test_samples_hold_what_replays_them(speaking_model: Transformer, tmp_path: Path) -> None:
    run = evaluate(speaking_model, Settings(tasks=SUITES, output=tmp_path, limit=4))
    tokenizer = speaking_model.tokenizer
    assert tokenizer is not None
    for task in SUITES:
        samples = run.samples(task)
        first_filter = samples[samples["filter"] == samples["filter"].iloc[0]]
        assert list(first_filter.doc_id) == [0, 1, 2, 3]
        for row in samples.itertuples():
            assert row.prompt_ids[0] == tokenizer.bos_id
            assert tokenizer.decode(row.prompt_ids[1:]) == row.prompt
    assert set(run.samples("demo_humaneval").verdict) <= {"failed", "forbidden", "timeout", "killed", "memory"}
    assert all(run.samples("demo_humaneval").message)


def test_examples_and_seed_change_the_prompt(speaking_model: Transformer, tmp_path: Path) -> None:
    def prompt(shots: int, seed: int) -> str:
        settings = Settings(tasks=("demo_gsm8k",), output=tmp_path, limit=1, num_fewshot=shots, seed=seed)
        return str(evaluate(speaking_model, settings).samples("demo_gsm8k").prompt[0])

    assert [prompt(shots, 1).count("Question:") for shots in (0, 2)] == [1, 3]
    assert prompt(2, 1) == prompt(2, 1) != prompt(2, 2)


def test_long_prompts_lose_their_beginning_and_it_is_said(
    speaking_model: Transformer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = Settings(tasks=("demo_mmlu",), output=tmp_path, limit=2, num_fewshot=12)
    run = evaluate(speaking_model, settings)
    assert "2 prompts were longer than the context of 640 tokens" in capsys.readouterr().err
    row = run.samples("demo_mmlu").iloc[0]
    # The last token of an answer is predicted, not read.
    assert row.cut > 0 and len(row.prompt_ids) + len(row.choice_ids[0]) - 1 == 640
    assert run.provenance["cut_prompts"] == {"demo_mmlu": 2}


def test_without_a_sandbox_the_rest_goes_on(
    speaking_model: Transformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox, "why_unavailable", lambda: "bubblewrap (bwrap) is not installed")
    run = evaluate(speaking_model, Settings(tasks=("demo_mmlu", "demo_humaneval"), output=tmp_path, limit=2))
    assert run.not_run == {"demo_humaneval": "bubblewrap (bwrap) is not installed"}
    assert run.tasks == ["demo_mmlu"] and "demo_humaneval was not run: bubblewrap" in terminal_table.render(run)
    with pytest.raises(SandboxError, match="bwrap"):
        evaluate(speaking_model, Settings(tasks=("demo_humaneval",), output=tmp_path, limit=2))


@needs_sandbox
def test_the_limits_of_programs_are_those_that_were_asked_for(speaking_model: Transformer, tmp_path: Path) -> None:
    settings = Settings(
        tasks=("demo_humaneval",), output=tmp_path, limit=1, limits={"seconds": 3.5, "memory": 256 << 20}
    )
    assert Settings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings
    record = evaluate(speaking_model, settings).provenance["sandbox"]
    assert record["seconds"] == 3.5 and record["cpu_seconds"] == 6 and record["memory"] == 256 << 20
    assert record["processes"] == Limits().processes


def test_results_without_a_place_are_refused_before_the_work(speaking_model: Transformer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        evaluate(speaking_model, Settings(tasks=("demo_mmlu",), output=tmp_path / "file" / "below", limit=1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "demo_mlu"], "did you mean demo_mmlu"),
        (["--tasks", "mmlu_anatomy"], "--data"),
        (["--tasks", "gsm8k", "--data", "/nowhere"], "does not exist"),
        (["--tasks", "demo_mmlu", "--limit", "0"], "--limit"),
        (["--tasks", "demo_mmlu", "--modle", "x"], "--modle"),
        (["--tasks", ""], "no task given"),
        (["--tasks", "demo_mmlu", "--model", "/nowhere"], "/nowhere"),
        ([], "--tasks"),
    ],
)
def test_mistakes_take_two_lines_and_exit_code_2(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", "run", "--output", str(tmp_path), *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err and len(err.strip().splitlines()) <= 2, err


def test_a_checkpoint_from_the_command_line(
    speaking_model: Transformer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    assert speaking_model.tokenizer is not None
    (folder / "params.json").write_text(json.dumps(speaking_model.config.to_meta()))
    (folder / "tokenizer.model").write_bytes(speaking_model.tokenizer.to_tiktoken())
    save_file(speaking_model.state_dict(), folder / "consolidated.00.safetensors")
    output = str(tmp_path / "out")
    arguments = ["--model", str(folder), "--output", output, "--tasks", "demo_mmlu,demo_gsm8k", "--limit", "2"]
    assert main(["eval", "run", *arguments, "--batch_size", "1", "--dtype", "float32", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert len(shown["scores"]) == 3 and shown["model"] == "checkpoint"
    assert len(shown["provenance"]["checkpoint_sha256"]) == len(shown["provenance"]["tokenizer_sha256"]) == 64
    assert main(["eval", "run", *arguments, "--dtype", "float32"]) == 0
    out = capsys.readouterr().out
    assert "95% interval" in out and out.startswith("model checkpoint (")
    run, other = list_runs(output)
    assert run.scores == other.scores, "the batch size changed a score"


def test_list_and_show(speaking_model: Transformer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = evaluate(speaking_model, Settings(tasks=("demo_mmlu",), output=tmp_path / "mine", limit=2))
    capsys.readouterr()
    assert main(["eval", "list", "--results", str(tmp_path)]) == 0
    assert run.name in capsys.readouterr().out
    for arguments in ([str(run.path)], [str(tmp_path)], [run.stamp, "--results", str(tmp_path)]):
        assert main(["eval", "show", *arguments]) == 0
        assert terminal_table.render(run) in capsys.readouterr().out
    assert main(["eval", "show", str(run.path), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["scores"][0]["n"] == 2 and shown["provenance"]["dtype"] == "float32"
    assert main(["eval", "show", "other", "--results", str(tmp_path)]) == 2
    assert "no run matches 'other'" in capsys.readouterr().err
    (tmp_path / "results_broken.json").write_text("{")
    assert main(["eval", "list", "--results", str(tmp_path)]) == 0
    out = capsys.readouterr()
    assert "results_broken.json" in out.err and f"run {run.provenance['run']}" in out.out, "the name that gc takes"
    next(run.path.parent.glob("samples_*")).unlink()
    assert main(["eval", "export", str(run.path), "--output", str(tmp_path / "out")]) == 0
    assert "there are no sample files of demo_mmlu next to" in capsys.readouterr().err
    assert main(["eval", "show", "--results", str(tmp_path / "empty")]) == 2
    assert "there is no finished run in" in capsys.readouterr().err


def test_chats_get_one_begin_token_and_end_open(speaking_model: Transformer) -> None:
    lm = WorkbenchLM(speaking_model)
    tokenizer = speaking_model.tokenizer
    assert tokenizer is not None
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Answer:"}]
    ids = lm.tok_encode(lm.apply_chat_template(chat[:1]))
    assert ids.count(tokenizer.bos_id) == 1 and ids[-1] == tokenizer.encode("\n\n")[-1]
    assert tokenizer.special("<|start_header_id|>") in ids
    continued = lm.tok_encode(lm.apply_chat_template(chat, add_generation_prompt=False))
    assert tokenizer.decode(continued).endswith("Answer:")
    assert tokenizer.special("<|eot_id|>") not in lm.tok_encode("plain <|eot_id|> text")


def test_rolling_log_likelihood_is_that_of_every_token(speaking_model: Transformer) -> None:
    import torch
    from lm_eval.api.instance import Instance

    lm, text = WorkbenchLM(speaking_model), "Every token once."
    ids = [lm.prefix_token_id, *lm.tok_encode(text, add_special_tokens=False)]
    with torch.no_grad():
        logprobs = speaking_model(torch.tensor([ids[:-1]])).log_softmax(-1)[0]
    expected = float(logprobs.gather(-1, torch.tensor(ids[1:])[:, None]).sum())
    (total,) = lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0)])
    assert total == pytest.approx(expected, abs=1e-3)


def test_lm_eval_finds_our_model_and_keeps_its_own() -> None:
    program = (
        "import evals.models.workbench_lm; from lm_eval.api.registry import get_model, model_registry;"
        "assert get_model('workbench') is evals.models.workbench_lm.WorkbenchLM; assert 'hf' in model_registry"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env={**os.environ, "PYTHONPATH": os.getcwd()})


def test_the_command_line_does_not_wait_for_lm_eval() -> None:
    program = "import sys, evals.cli, evals.results.runs; assert not {'lm_eval', 'pandas'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, env={**os.environ, "PYTHONPATH": os.getcwd()})
