"""Questions whose logits are not finite: not scored, counted wherever a run is shown, and no harm to the others."""

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("lm_eval", reason="lm_eval is not installed")

from lm_eval.api.instance import Instance

import workbench as wb
from evals.cli.run import EXIT_NO_SCORE, EXIT_PARTIAL
from evals.compare.compare import compare
from evals.explain.explain import wrong_answers
from evals.explain.replay import replay_row
from evals.models.generation_args import GenerationArgs
from evals.models.lm_eval_backend import Backend
from evals.models.workbench_lm import WorkbenchLM
from evals.report import report, terminal_table
from evals.results import json_text
from evals.results.export import export
from evals.results.runs import Run, read_run
from evals.run.evaluate import evaluate
from evals.run.settings import Settings
from evals.store.store import cache_key
from workbench.cli import main
from workbench.errors import NotFiniteError
from workbench.model import Transformer

SUITES = ("demo_mmlu", "demo_gsm8k")
LIMIT = 20


def rows(run: Run, task: str) -> list[dict[str, Any]]:
    return list(run.samples(task).to_dict("records"))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Run, Run, Transformer, int]]:
    """The demo's run, and one in which a token that some questions of each task have gives NaN."""
    output = tmp_path_factory.mktemp("runs")
    model = wb.load_model("demo", device="cpu", dtype="float32")
    settings = Settings(tasks=SUITES, output=output, limit=LIMIT)
    clean = evaluate(model, settings)
    with_token = [
        {
            token: sum(token in row["prompt_ids"] for row in rows(clean, task))
            for token in range(model.config.vocab_size)
        }
        for task in SUITES
    ]
    token = next(t for t in range(model.config.vocab_size) if all(1 <= counts[t] <= 8 for counts in with_token))
    with torch.no_grad():
        model.tok_embeddings.weight[token] = math.nan
    return clean, evaluate(model, settings), model, token


@pytest.fixture(scope="module")
def overflowing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo with larger w1 and w3, which overflow in float16 for every question."""
    folder = tmp_path_factory.mktemp("overflowing")
    shutil.copytree(Path(wb.__file__).parent / "assets" / "demo", folder, dirs_exist_ok=True)
    (folder / "SHA256SUMS").unlink()
    weights = load_file(folder / "consolidated.00.safetensors")
    changed = {name: w * 200 if ".w1." in name or ".w3." in name else w for name, w in weights.items()}
    save_file(changed, folder / "consolidated.00.safetensors")
    return folder


def test_only_questions_with_the_token_are_without_a_score(runs: tuple[Run, Run, Transformer, int]) -> None:
    clean, spoilt, _, token = runs
    for task in SUITES:
        for before, after in zip(rows(clean, task), rows(spoilt, task), strict=True):
            wrong = after.get("not_finite") is True
            if token in after["prompt_ids"]:
                assert wrong and not after["scores"]
            elif not wrong:  # a generated text may contain the token
                assert after["scores"] == before["scores"]
                if task == "demo_mmlu":
                    assert after["logprobs"] == pytest.approx(before["logprobs"], abs=1e-3)
                else:
                    assert after["generated_ids"] == before["generated_ids"]
        scored = {row["doc_id"]: row["scores"] for row in rows(spoilt, task) if row.get("not_finite") is not True}
        assert spoilt.not_finite[task] == LIMIT - len(scored) > 0
        first = next(score for score in spoilt.scores if score.task == task)
        assert first.n == len(scored)
    mmlu = next(score for score in spoilt.scores if score.task == "demo_mmlu")
    right = [row["correct"] for row in rows(spoilt, "demo_mmlu") if row.get("not_finite") is not True]
    assert mmlu.value == pytest.approx(sum(right) / len(right))


def test_tables_reports_and_exports_count_them(runs: tuple[Run, Run, Transformer, int], tmp_path: Path) -> None:
    clean, spoilt, *_ = runs
    shown = terminal_table.render(spoilt)
    assert shown.splitlines()[0].endswith("not finite")
    for task, count in spoilt.not_finite.items():
        assert f"{task}: {count} of {LIMIT} questions are not scored" in shown
        assert any(f"{task}: {count} of {LIMIT} questions" in badge for badge in report.badges(spoilt))
    assert "not finite" not in terminal_table.render(clean)
    assert report.frame([spoilt])["not_finite"].tolist() == [spoilt.not_finite[s.task] for s in spoilt.scores]
    assert "not_finite" not in report.frame([clean])
    paths = [*export(spoilt, tmp_path / "out"), spoilt.path]
    for path in (path for path in paths if path.suffix in (".json", ".jsonl")):
        for line in [path.read_text()] if path.suffix == ".json" else path.read_text().splitlines():
            json.loads(line, parse_constant=lambda name: pytest.fail(name))
    assert read_run(spoilt.path).not_finite == spoilt.not_finite


def test_a_comparison_leaves_them_out_and_says_so(runs: tuple[Run, Run, Transformer, int]) -> None:
    clean, spoilt, *_ = runs
    comparison = compare(clean, spoilt)
    for task, count in spoilt.not_finite.items():
        assert f"{task}: {count} questions are left out, because logits were not finite in A or B" in comparison.notes
    assert {d.a.task: d.a.n for d in comparison.differences} == {t: LIMIT - n for t, n in spoilt.not_finite.items()}


def test_an_explanation_does_not_take_them_for_wrong(runs: tuple[Run, Run, Transformer, int]) -> None:
    _, spoilt, model, _ = runs
    for task in SUITES:
        assert all(row.get("not_finite") is not True for row in wrong_answers(spoilt, task))
    row = next(row for row in rows(spoilt, "demo_mmlu") if row.get("not_finite") is True)
    with pytest.raises(NotFiniteError):
        replay_row(model, row, "demo_mmlu")


def test_show_says_it_and_its_json_is_json(
    runs: tuple[Run, Run, Transformer, int], capsys: pytest.CaptureFixture[str]
) -> None:
    _, spoilt, *_ = runs
    for task in SUITES:
        row = next(row for row in rows(spoilt, task) if row.get("not_finite") is True)
        sample = ["eval", "show", str(spoilt.path), "--sample", f"{task}/{row['doc_id']}"]
        assert main(sample) == 0
        shown = capsys.readouterr().out
        assert "not scored, because the model's logits were not finite" in shown and "chosen" not in shown
        assert main([*sample, "--json"]) == 0
        json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(name))


def test_a_task_without_any_score_is_a_failure(
    overflowing: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--tasks", ",".join(SUITES), "--limit", "5", "--device", "cpu", "--output", str(tmp_path)]
    command = ["eval", "run", "--model", str(overflowing), "--dtype", "float16", *flags]
    assert main(command) == EXIT_NO_SCORE
    shown = capsys.readouterr().out
    assert (
        shown.count("no score") == 2 and "5 of 5 questions are not scored" in shown and "bfloat16 or float32" in shown
    )
    calls: list[int] = []
    hidden = Transformer.hidden
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Transformer, "hidden", lambda self, *a: calls.append(1) or hidden(self, *a))
        assert main([*command, "--json"]) == EXIT_NO_SCORE  # the answers are stored with their state
    assert not calls
    printed = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(name))
    assert printed["scores"] == [] and printed["not_finite"] == dict.fromkeys(SUITES, 5)
    command[command.index("float16")] = "float32"
    assert main(command) == 0


def test_some_questions_without_a_score_have_their_exit_code(
    runs: tuple[Run, Run, Transformer, int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from evals.run import evaluate as module

    monkeypatch.setattr(module, "evaluate", lambda *args, **options: runs[1])
    assert main(["eval", "run", "--tasks", "demo_mmlu"]) == EXIT_PARTIAL
    assert "questions are not scored" in capsys.readouterr().out


def test_a_sweep_counts_them(overflowing: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "sweep.yaml"
    model = {"path": str(overflowing), "dtype": "float16", "device": "cpu"}
    file.write_text(json.dumps({"output": str(tmp_path / "out"), "models": [model], "tasks": ["demo_mmlu"],
                                "defaults": {"limit": 3}}))  # fmt: skip
    assert main(["eval", "batch", str(file)]) == EXIT_NO_SCORE
    printed = capsys.readouterr()
    assert "no score" in printed.out and "3 not finite" in printed.out and "3 of 3 questions" in printed.err


def test_a_rolling_text_is_without_a_number(speaking_model: Transformer) -> None:
    lm = WorkbenchLM(speaking_model, progress=False)
    texts = ["ab", "cd"]
    requests = [
        Instance("loglikelihood_rolling", {}, (text,), 0, metadata=("task", i, 1)) for i, text in enumerate(texts)
    ]
    with speaking_model.intervene(wb.Add("blocks.1.hook_mlp_out", torch.full((32,), math.nan))):
        assert all(map(math.isnan, lm.loglikelihood_rolling(requests, True)))
    assert lm.not_finite == {("task", 0), ("task", 1)}


def test_nan_of_another_backend_is_not_finite() -> None:
    answers = SimpleNamespace(
        loglikelihood=lambda requests, disable_tqdm: [(math.nan, False), (-1.5, True)],
        loglikelihood_rolling=lambda requests, disable_tqdm: [math.nan, -2.0],
    )
    requests = [Instance("loglikelihood", {}, (f"q{i}", "a"), 0, metadata=("task", i, 1)) for i in range(2)]
    backend = Backend(answers, "hf", {})
    (nan, greedy), second = backend.loglikelihood(requests)
    assert math.isnan(nan) and not greedy and second == (-1.5, True) and backend.not_finite == {("task", 0)}
    backend = Backend(answers, "hf", {})
    first, number = backend.loglikelihood_rolling(requests)
    assert math.isnan(first) and number == -2.0 and backend.not_finite == {("task", 0)}


def test_stored_nan_of_an_earlier_version_is_not_finite(speaking_model: Transformer) -> None:
    class Stored:
        def get_or_compute(self, questions: Any, compute: Any, **options: Any) -> list[Any]:
            return [{"tokens": [65], "logprobs": [math.nan], "finish_reason": "length"} for _ in questions]

    lm = WorkbenchLM(speaking_model, progress=False)
    lm.response_cache = Stored()  # type: ignore[assignment]
    lm.generate_until([Instance("generate_until", {}, ("a", {"max_gen_toks": 2}), 0, metadata=("task", 3, 1))], True)
    assert lm.not_finite == {("task", 3)}


def test_greedy_answers_keep_their_key_and_sampled_ones_have_the_sampler_in_it() -> None:
    arguments = {"until": ["\n"], "max_gen_toks": 8, "do_sample": False}
    greedy = GenerationArgs.of(arguments, 100)
    old = {"tokens": 8, "temperature": 0.0, "top_p": 1.0, "top_k": 0, "stop": ("\n",)}
    assert cache_key(greedy.key) == cache_key(old)
    sampled = GenerationArgs.of({**arguments, "do_sample": True, "temperature": 0.5}, 100)
    assert sampled.key == {**old, "temperature": 0.5, "sampler": 2}
    other = GenerationArgs.of({**arguments, "min_p": 0.1, "repetition_penalty": 1.2}, 100)
    assert other.key == {**old, "min_p": 0.1, "repetition_penalty": 1.2}


def test_numbers_that_json_lacks_become_null() -> None:
    value = {"a": [math.nan, 1.5, -math.inf], "b": ("x", {"c": math.inf})}
    assert json.loads(json_text.dumps(value)) == {"a": [None, 1.5, None], "b": ["x", {"c": None}]}
    assert json_text.dumps({"a": [1, 2.5]}, indent=2) == json.dumps({"a": [1, 2.5]}, indent=2)
