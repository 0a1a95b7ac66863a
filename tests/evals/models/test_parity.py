"""Log-likelihoods, generated text and scores equal lm-eval's own Hugging Face backend: same weights, real questions."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evals.models.workbench_lm import WorkbenchLM
from evals.run.evaluate import evaluate
from evals.run.settings import Settings
from evals.tasks import registry
from evals.tasks.code_metrics import CodeGrader
from workbench.checkpoint import convert, load_model

lm_eval_evaluator = pytest.importorskip("lm_eval.evaluator", reason="lm_eval is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

TASKS = ("mmlu_anatomy", "mmlu_formal_logic", "gsm8k", "gsm8k_cot", "humaneval", "demo_mmlu")
DEMO = ("demo_mmlu", "demo_gsm8k", "demo_humaneval")
SPECIALS = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>", "pad_token": "<|end_of_text|>"}
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


@pytest.fixture(scope="module")
def checkpoint(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with the real Llama 3 tokenizer, written by Hugging Face's own code."""
    from tokenizers.processors import TemplateProcessing
    from transformers.convert_slow_tokenizer import TikTokenConverter

    from workbench.text.roles import LLAMA3_SPECIALS

    folder = tmp_path_factory.mktemp("checkpoint")
    converter = TikTokenConverter(
        vocab_file=str(shared_data / "tokenizers" / "llama3" / "tokenizer.model"),
        pattern=PATTERN,
        extra_special_tokens=list(LLAMA3_SPECIALS),
    )
    fast = converter.converted()
    begin = SPECIALS["bos_token"]
    fast.post_processor = TemplateProcessing(
        single=f"{begin} $A", pair=f"{begin} $A {begin} $B", special_tokens=[(begin, 128_000)]
    )
    transformers.PreTrainedTokenizerFast(tokenizer_object=fast, **SPECIALS).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        vocab_size=128_256,
        max_position_embeddings=1536,
        rms_norm_eps=1e-5,
        initializer_range=0.3,
        tie_word_embeddings=True,
        bos_token_id=128_000,
        eos_token_id=[128_001, 128_008, 128_009],
        pad_token_id=128_001,
        dtype=torch.float32,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def ask(
    lm: Any,
    root: Path | None,
    tasks: tuple[str, ...] = TASKS,
    limit: int | None = 2,
    tokens: int | None = 24,
    *,
    shots: int | None = None,
) -> dict[str, Any]:
    """All that lm-eval's own entry gives; each time a judge of its own, so that every program runs again."""
    judge = CodeGrader()
    loaded = registry.load(tasks, root=root, grader=judge)
    results: dict[str, Any] = lm_eval_evaluator.simple_evaluate(
        model=lm,
        tasks=list(loaded.tasks.values()),
        task_manager=registry.manager(),
        limit=limit,
        num_fewshot=shots,
        gen_kwargs=None if tokens is None else {"max_gen_toks": tokens},
        confirm_run_unsafe_code=True,
    )
    verdicts = {program: run.verdict for program, run in judge.runs.items()}
    return {**results, "verdicts": verdicts}


def without_the_model(found: dict[str, Any]) -> dict[str, Any]:
    """Everything but what names the model and its tokenizer, the machine, the time, and log-probabilities, which are
    equal to 1e-4 only: scores, versions, shots, counts, the tasks' definitions, and every sample."""
    names = ("results", "group_subtasks", "versions", "n-shot", "higher_is_better", "n-samples", "verdicts")
    samples = {
        task: [
            {
                key: value
                for key, value in row.items()
                if isinstance(row["arguments"][0][1], dict) or key not in ("resps", "filtered_resps")
            }
            for row in rows
        ]
        for task, rows in found["samples"].items()
    }
    # A judge's methods are this run's own; they have one name in both.
    configs = json.loads(json.dumps(found["configs"], default=lambda value: getattr(value, "__name__", str(value))))
    return {name: found.get(name) for name in names} | {"samples": samples, "configs": configs}


@pytest.fixture(scope="module")
def both(checkpoint: Path, shared_data: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    from lm_eval.models.huggingface import HFLM

    ours = ask(WorkbenchLM(load_model(checkpoint, device="cpu", dtype="float32"), batch_size=3), shared_data)
    theirs = ask(HFLM(pretrained=str(checkpoint), device="cpu", dtype="float32", batch_size=2), shared_data)
    return ours, theirs


def test_log_likelihoods_are_equal(both: tuple[dict[str, Any], dict[str, Any]]) -> None:
    ours, theirs = both
    compared = 0
    for task in ("mmlu_anatomy", "mmlu_formal_logic", "demo_mmlu"):
        for mine, other in zip(ours["samples"][task], theirs["samples"][task], strict=True):
            assert mine["arguments"] == other["arguments"], "the prompts differ"
            for (value, greedy), (expected, expected_greedy) in zip(
                mine["filtered_resps"], other["filtered_resps"], strict=True
            ):
                assert value == pytest.approx(expected, abs=1e-4)
                assert greedy == expected_greedy
                compared += 1
    assert compared == 3 * 2 * 4


def test_generated_text_is_equal(both: tuple[dict[str, Any], dict[str, Any]]) -> None:
    ours, theirs = both
    for task in ("gsm8k", "gsm8k_cot", "humaneval"):
        mine, other = ([row["resps"] for row in results["samples"][task]] for results in both)
        assert mine == other
        assert all(len(text) > 20 for ((text,),) in mine), "an empty answer would compare nothing"
    assert ours["samples"]["gsm8k"][0]["arguments"] == theirs["samples"]["gsm8k"][0]["arguments"]


def test_scores_are_equal(both: tuple[dict[str, Any], dict[str, Any]]) -> None:
    ours, theirs = both
    assert set(ours["results"]) == set(TASKS)
    assert without_the_model(ours) == without_the_model(theirs)


@pytest.mark.slow
def test_many_generated_answers_are_equal(checkpoint: Path, shared_data: Path) -> None:
    from lm_eval.models.huggingface import HFLM

    tasks = ("gsm8k", "gsm8k_cot", "humaneval")
    model = load_model(checkpoint, device="cpu", dtype="float32")
    ours = ask(WorkbenchLM(model, progress=False), shared_data, tasks, 16)
    theirs = ask(HFLM(pretrained=str(checkpoint), device="cpu", dtype="float32", batch_size=4), shared_data, tasks, 16)
    assert without_the_model(ours) == without_the_model(theirs)
    texts = {row["resps"][0][0] for rows in ours["samples"].values() for row in rows}
    assert len(texts) > 40, "answers that are all alike would compare little"
    assert len(ours["verdicts"]) == 16


def test_scores_of_the_embedded_checkpoint_are_equal(tmp_path: Path) -> None:
    """A model that knows something: its right and wrong answers are the same ones, not only as many."""
    from lm_eval.models.huggingface import HFLM

    folder = convert("demo", tmp_path / "demo", layout="hf")
    ours = ask(WorkbenchLM(load_model("demo", device="cpu", dtype="float32"), progress=False), None, DEMO, 40, None)
    theirs = ask(HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=8), None, DEMO, 40, None)
    assert without_the_model(ours) == without_the_model(theirs)
    for task, metric in zip(DEMO, ("acc", "exact_match", "pass@1"), strict=True):
        right = [float(row[metric]) for row in ours["samples"][task] if row["filter"] != "flexible-extract"]
        assert len(right) == 40 and 0.5 < sum(right) / 40 < 1, "a score at either end would prove little"
    verdicts = set(ours["verdicts"].values())
    assert "passed" in verdicts and len(verdicts) > 1
    for mine, other in zip(ours["samples"]["demo_mmlu"], theirs["samples"]["demo_mmlu"], strict=True):
        values = [[pair[0] for pair in row["filtered_resps"]] for row in (mine, other)]
        assert values[0] == pytest.approx(values[1], abs=1e-4)


@pytest.mark.slow
def test_whole_subjects_are_equal(checkpoint: Path, shared_data: Path) -> None:
    from lm_eval.models.huggingface import HFLM

    subjects = ("abstract_algebra", "anatomy", "college_chemistry", "formal_logic")
    tasks = tuple(f"mmlu_{subject}" for subject in subjects)
    model = load_model(checkpoint, device="cpu", dtype="float32")
    ours = ask(WorkbenchLM(model, progress=False), shared_data, tasks, None)
    theirs = ask(
        HFLM(pretrained=str(checkpoint), device="cpu", dtype="float32", batch_size=4), shared_data, tasks, None
    )
    values = []
    for results in (ours, theirs):
        values.append(
            [float(r[0]) for task in tasks for row in results["samples"][task] for r in row["filtered_resps"]]
        )
    assert len(values[0]) == 4 * (100 + 135 + 100 + 126)
    assert values[0] == pytest.approx(values[1], abs=1e-4)
    letters = [np.reshape(logprobs, (-1, 4)).argmax(axis=1).tolist() for logprobs in values]
    assert letters[0] == letters[1], "an answer changed"
    assert ours["results"] == theirs["results"]


@pytest.mark.slow
def test_five_examples_in_front_change_no_answer(checkpoint: Path, shared_data: Path) -> None:
    """The beginning that all questions of a subject share is computed once here, and anew for each by HFLM."""
    from lm_eval.models.huggingface import HFLM

    def shots(lm: Any) -> list[dict[str, Any]]:
        results = ask(lm, shared_data, ("mmlu_anatomy",), 40, None, shots=5)
        return list(results["samples"]["mmlu_anatomy"])

    ours = shots(WorkbenchLM(load_model(checkpoint, device="cpu", dtype="float32"), progress=False))
    theirs = shots(HFLM(pretrained=str(checkpoint), device="cpu", dtype="float32", batch_size=4))
    values = [[[pair[0] for pair in row["filtered_resps"]] for row in rows] for rows in (ours, theirs)]
    assert [row["arguments"] for row in ours] == [row["arguments"] for row in theirs]
    assert ours[0]["arguments"][0][0].count("Answer:") == 6
    assert np.array(values[0]) == pytest.approx(np.array(values[1]), abs=1e-4)
    assert np.argmax(values[0], 1).tolist() == np.argmax(values[1], 1).tolist()


def test_tokens_are_equal(checkpoint: Path, shared_data: Path) -> None:
    fast = transformers.AutoTokenizer.from_pretrained(checkpoint)
    lm = WorkbenchLM(load_model(checkpoint, device="cpu", dtype="float32"))
    for text in ("This is a test sentence.", "def f(x):\n    return 12345\n", " naïve 東京 🙂\n\n"):
        assert lm.tok_encode(text) == fast.encode(text)
        assert lm.tok_encode(text, add_special_tokens=False) == fast.encode(text, add_special_tokens=False)
        assert lm.tok_encode("<|begin_of_text|>" + text) == fast.encode(text), "a second begin token was added"


def test_sampled_answers_do_not_depend_on_the_batch_size(checkpoint: Path) -> None:
    from lm_eval.api.instance import Instance

    # Of 128,256 nearly equal probabilities, as random weights give, the last bit of a sum decides; a few are kept.
    arguments = {"until": ["\n"], "max_gen_toks": 5, "do_sample": True, "temperature": 1.0, "top_k": 20}
    requests = [
        Instance("generate_until", {}, ("again " * (1 + i % 2), arguments), 0, metadata=("t", i, 1)) for i in range(5)
    ]
    model = load_model(checkpoint, device="cpu", dtype="float32")
    alone, together = (WorkbenchLM(model, batch_size=n, progress=False).generate_until(requests) for n in (1, 4))
    assert alone == together and len(set(alone)) > 1


def test_replayed_ids_give_the_stored_numbers(checkpoint: Path, shared_data: Path, tmp_path: Path) -> None:
    import workbench as wb

    model = load_model(checkpoint, device="cpu", dtype="float32")
    settings = Settings(tasks=("mmlu_anatomy", "gsm8k_cot"), output=tmp_path, data=shared_data, limit=2)
    run = evaluate(model, settings)
    for row in run.samples("mmlu_anatomy").itertuples():
        again = wb.score(model, [(row.prompt_ids, ids) for ids in row.choice_ids])
        assert [value for value, _ in again] == pytest.approx(row.logprobs, abs=1e-5)
    for row in run.samples("gsm8k_cot").itertuples():
        (again,) = wb.generate(model, [row.prompt_ids], max_new_tokens=len(row.generated_ids))
        assert list(again.tokens) == row.generated_ids


@pytest.mark.gpu
def test_scores_on_cuda_are_those_of_the_cpu(checkpoint: Path, shared_data: Path, tmp_path: Path) -> None:
    settings = Settings(tasks=("mmlu_anatomy", "gsm8k_cot"), output=tmp_path, data=shared_data, limit=4)
    cpu, cuda = (evaluate(checkpoint, settings, device=device, dtype="float32") for device in ("cpu", "cuda"))
    assert cuda.provenance["device"].startswith("cuda")
    assert cuda.scores == cpu.scores
    for mine, other in zip(
        cuda.samples("mmlu_anatomy").itertuples(), cpu.samples("mmlu_anatomy").itertuples(), strict=True
    ):
        assert mine.logprobs == pytest.approx(other.logprobs, abs=1e-3)
