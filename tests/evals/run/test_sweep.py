"""A sweep runs what is not run yet, says what became of each, and refuses a file it cannot read."""

import json
import textwrap
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="lm_eval is not installed")

import workbench as wb
from evals.models import generation_args, response_cache, workbench_lm
from evals.results.runs import list_runs
from evals.run import run_records, sweep, sweep_config
from evals.store.store import Store
from workbench import provenance
from workbench.cli import main
from workbench.errors import DataError, WorkbenchError
from workbench.inference.sampling import SAMPLER


@pytest.fixture
def file(checkpoint: Path, tmp_path: Path) -> Path:
    text = f"""
output: {tmp_path / "out"}
defaults: {{limit: 2, seed: 3}}
models:
  - {{path: {checkpoint}, name: small, dtype: float32}}
tasks:
  - demo_mmlu
  - {{tasks: [demo_gsm8k], num_fewshot: 1, gen_kwargs: {{max_gen_toks: 4}}}}
interventions:
  - none
  - {{name: no head, ablate: L1H2}}
"""
    path = tmp_path / "sweep.yaml"
    path.write_text(text)
    return path


def test_a_file_is_every_combination(file: Path, checkpoint: Path) -> None:
    planned = sweep_config.read(file)
    assert [planned_run.name for planned_run in planned] == [
        "small on demo_mmlu",
        "small on demo_mmlu, no head",
        "small on demo_gsm8k",
        "small on demo_gsm8k, no head",
    ]
    last = planned[-1]
    assert (last.model, last.dtype, last.settings.limit, last.settings.seed) == (str(checkpoint), "float32", 2, 3)
    assert last.settings.num_fewshot == 1 and last.settings.gen_kwargs == {"max_gen_toks": 4}
    assert [change.to_dict() for change in last.settings.interventions] == [wb.Ablate("L1H2").to_dict()]


def test_what_failed_does_not_stop_the_rest_and_what_is_done_is_not_run_again(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    generate, calls = wb.generate, []

    def once_broken(model: Any, *given: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("no luck")
        return generate(model, *given, **options)

    monkeypatch.setattr(wb, "generate", once_broken)
    assert main(["eval", "batch", str(file)]) == 1
    out, err = capsys.readouterr()
    assert "small on demo_gsm8k failed: RuntimeError: no luck" in err
    lines = [line.split() for line in out.splitlines()[2:]]
    assert [line[-1] for line in lines] == ["finished", "finished", "failed", "finished", "finished"]
    assert len(list_runs(tmp_path / "out")) == 3

    assert main(["eval", "batch", str(file), "--dry-run", "--json"]) == 0
    states = [result["status"] for result in json.loads(capsys.readouterr().out)]
    assert states == ["finished before", "finished before", "stopped", "finished before"]

    assert main(["eval", "batch", str(file), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert [result["status"] for result in again] == [*["finished before"] * 2, "finished", "finished before"]
    assert all(result["scores"] for result in again) and len(list_runs(tmp_path / "out")) == 4
    with Store.open(tmp_path / "out") as store:
        assert len(store.runs()) == 4, "the failed run was taken up, not made anew"


@pytest.mark.parametrize("what", ["weights", "tokenizer", "questions", "examples", "engine", "lm-eval"])
def test_a_run_on_another_basis_is_another_run(
    file: Path, checkpoint: Path, tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file, save_file

    suite, examples = tmp_path / "own.jsonl", tmp_path / "own_dev.jsonl"
    rows = [{"question": f"{i} and {i}?", "choices": ["one", "two"], "answer": i % 2} for i in range(3)]
    for path in (suite, examples):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    file.write_text(file.read_text().replace("- demo_mmlu", f"- {suite}"))
    (first, *_) = sweep_config.read(file)
    assert [result.status for result in sweep.run([first])] == ["finished"]
    assert [result.status for result in sweep.run([first])] == ["finished before"]
    if what == "weights":
        weights = checkpoint / "consolidated.00.safetensors"
        save_file({name: tensor * 1.01 for name, tensor in load_file(weights).items()}, weights)
    elif what == "tokenizer":
        with (checkpoint / "tokenizer.model").open("ab") as stream:
            stream.write(b"\n")
    elif what in ("questions", "examples"):
        changed = [{**row, "answer": 1 - row["answer"]} for row in rows]
        (suite if what == "questions" else examples).write_text("".join(json.dumps(row) + "\n" for row in changed))
    elif what == "engine":
        for module in (response_cache, workbench_lm, sweep):
            monkeypatch.setattr(module, "ENGINE", response_cache.ENGINE + 1)
    elif what == "lm-eval":
        versions = provenance.versions
        monkeypatch.setattr(provenance, "versions", lambda *names: versions(*names) | {"lm-eval": "9.9"})
    assert [result.status for result in sweep.run([first])] == ["finished"]
    assert [result.status for result in sweep.run([first])] == ["finished before"]


def test_another_sampler_makes_only_sampled_runs_new(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = file.read_text().replace("  - demo_mmlu\n", "").replace("interventions:", "interventions: [none]\nold:")
    greedy = text.partition("old:")[0]
    file.write_text(greedy)
    sampled = tmp_path / "sampled.yaml"
    sampled.write_text(greedy.replace("max_gen_toks: 4", "max_gen_toks: 4, do_sample: true, temperature: 0.8"))
    plans = [*sweep_config.read(file), *sweep_config.read(sampled)]
    assert [result.status for result in sweep.run(plans)] == ["finished", "finished"]
    assert [result.status for result in sweep.run(plans)] == ["finished before", "finished before"]
    for module in (generation_args, run_records):
        monkeypatch.setattr(module, "SAMPLER", SAMPLER + 1)
    assert [result.status for result in sweep.run(plans)] == ["finished before", "finished"]
    assert [result.status for result in sweep.run(plans)] == ["finished before", "finished before"]


def test_a_run_of_another_machine_is_left_alone_and_named(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (first, *_) = sweep_config.read(file)
    assert [result.status for result in sweep.run([first])] == ["finished"]
    with Store.open(first.settings.output) as store:
        (stored,) = store.runs()
        store._index.execute("UPDATE runs SET status = 'running', host = 'another', results = NULL")
    (result,) = sweep.run([first])
    assert result.status == "running elsewhere" and "is running on another" in result.note
    assert f"workbench eval resume {stored.id} --results" in result.note
    file.write_text(file.read_text().partition("  - {tasks")[0])
    capsys.readouterr()
    assert main(["eval", "batch", str(file)]) == 3
    assert result.note in capsys.readouterr().err


def test_a_suite_of_one_s_own_is_found_again_from_another_folder(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own.jsonl").write_text(json.dumps({"question": "1 and 1?", "answer": 2}) + "\n")
    monkeypatch.chdir(tmp_path)
    generate = wb.generate
    monkeypatch.setattr(wb, "generate", lambda *given, **options: (_ for _ in ()).throw(KeyboardInterrupt))
    arguments = ["eval", "run", "--model", str(checkpoint), "--tasks", "./own.jsonl", "--output", str(tmp_path / "out")]
    assert main(arguments) == 130
    with Store.open(tmp_path / "out") as store:
        (stopped,) = store.runs()
    monkeypatch.setattr(wb, "generate", generate)
    monkeypatch.chdir("/")
    assert main(["eval", "resume", stopped.id, "--results", str(tmp_path / "out")]) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modles": ["demo"]}, "unknown key 'modles'; did you mean models?"),
        ({"output": None}, "output is missing"),
        ({"models": []}, "models is missing"),
        ({"models": "demo"}, "models must be list"),
        (
            {"models": [{"path": "demo", "dtpye": "float32"}]},
            r"models\[0\] has an unknown key 'dtpye'; did you mean dtype",
        ),
        ({"models": [{"name": "x"}]}, "needs a path or model_args"),
        ({"models": ["/nowhere"], "interventions": [{"ablate": "L0H0"}]}, "/nowhere"),
        ({"tasks": [{"tasks": "demo_mmlu", "limit": "ten"}]}, r"tasks\[0\]: limit must be int or float; found 'ten'"),
        ({"tasks": [{"tasks": "demo_mmlu", "seed": True}]}, "seed must be int"),
        ({"tasks": [{"num_fewshot": 3}]}, r"tasks\[0\] has no tasks"),
        ({"defaults": {"limit": 1.5}}, "--limit"),
        ({"interventions": [{"ablate": "L99H0"}]}, "--ablate L99H0"),
        ({"interventions": [{"delete": "L0H0"}]}, "unknown key 'delete'"),
    ],
)
def test_a_wrong_file_is_refused_with_the_place(change: dict[str, Any], message: str) -> None:
    with pytest.raises(WorkbenchError, match=message):
        sweep_config.expand({"output": "out", "models": ["demo"], "tasks": ["demo_mmlu"], **change})


def test_what_is_no_yaml_or_names_no_task_is_said_before_the_first_run(file: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text("output: [")
    with pytest.raises(DataError, match="broken.yaml is not YAML.*line 1"):
        sweep_config.read(broken)
    with pytest.raises(DataError, match="cannot be read"):
        sweep_config.read(tmp_path / "absent.yaml")
    file.write_text(file.read_text().replace("[demo_gsm8k]", "[demo_gsm9k]"))
    with pytest.raises(DataError, match="did you mean demo_gsm8k"):
        sweep.run(sweep_config.read(file))
    assert not (tmp_path / "out").exists()


def test_the_example_in_the_docstring_is_a_sweep(tmp_path: Path, checkpoint: Path) -> None:
    text = (sweep_config.__doc__ or "").partition("\n\n")[2].partition("\n\n")[0]
    path = tmp_path / "example.yaml"
    path.write_text(textwrap.dedent(text).replace("checkpoints/Llama-3.2-1B", str(checkpoint)).replace("L5H3", "L1H3"))
    planned = sweep_config.read(path)
    assert len(planned) == 8 and {planned_run.settings.limit for planned_run in planned} == {200}
    assert {planned_run.change_name for planned_run in planned} == {"", "without the head"}
