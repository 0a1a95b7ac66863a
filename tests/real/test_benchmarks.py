"""`evaluate` on the real model equals lm-eval's own Hugging Face backend on the same folder, in float32.

Two questions of each task by default. REAL_MODEL_WHOLE=1 takes two MMLU subjects whole and 50 GSM8K questions with the
task's own examples and length of answers, which takes about half an hour of one core.
"""

import os
from pathlib import Path
from typing import Any

import pytest

from evals.run.evaluate import evaluate
from evals.run.settings import Settings
from evals.tasks import registry
from evals.tasks.code_metrics import CodeGrader

lm_eval_evaluator = pytest.importorskip("lm_eval.evaluator", reason="lm_eval is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

pytestmark = [pytest.mark.real, pytest.mark.slow]

WHOLE = os.environ.get("REAL_MODEL_WHOLE") == "1"
SUBJECTS = ("mmlu_global_facts", "mmlu_abstract_algebra") if WHOLE else ("mmlu_global_facts",)
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def hf_backend(smollm2: Path) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(smollm2), device="cpu", dtype="float32", batch_size=1)


def expected(backend: Any, data: Path, settings: Settings) -> dict[str, Any]:
    loaded = registry.load(settings.tasks, root=data, grader=CodeGrader())
    results: dict[str, Any] = lm_eval_evaluator.simple_evaluate(
        model=backend,
        tasks=list(loaded.tasks.values()),
        task_manager=registry.manager(),
        limit=settings.limit,
        num_fewshot=settings.num_fewshot,
        gen_kwargs=dict(settings.gen_kwargs) or None,
        apply_chat_template=settings.chat,
        fewshot_as_multiturn=settings.chat,
    )
    return results


def assert_equal_scores(run: Any, theirs: dict[str, Any]) -> None:
    for task, scores in theirs["results"].items():
        for name, value in scores.items():
            if isinstance(value, float):
                assert run.data["results"][task][name] == value, (task, name)


@pytest.mark.parametrize("chat", [False, True], ids=["text", "chat"])
def test_log_probabilities(smollm2: Path, hf_backend: Any, shared_data: Path, tmp_path: Path, chat: bool) -> None:
    limit = None if WHOLE else 2
    settings = Settings(tasks=SUBJECTS, output=tmp_path, data=shared_data, limit=limit, num_fewshot=5, chat=chat)
    run = evaluate(str(smollm2), settings, device="cpu", dtype="float32")
    theirs = expected(hf_backend, shared_data, settings)
    compared = 0
    for task in SUBJECTS:
        for mine, other in zip(run.samples(task).itertuples(), theirs["samples"][task], strict=True):
            assert (mine.doc_id, mine.prompt) == (other["doc_id"], other["arguments"][0][0])
            assert mine.prompt.count("Answer:") == 6
            assert mine.logprobs == pytest.approx([pair[0] for pair in other["filtered_resps"]], abs=TOLERANCE)
            compared += len(mine.logprobs)
    assert compared == len(SUBJECTS) * (100 if WHOLE else 2) * 4
    assert_equal_scores(run, theirs)


@pytest.mark.parametrize("chat", [False, True], ids=["text", "chat"])
def test_generated_texts(smollm2: Path, hf_backend: Any, shared_data: Path, tmp_path: Path, chat: bool) -> None:
    settings = Settings(
        tasks=("gsm8k",),
        output=tmp_path,
        data=shared_data,
        limit=50 if WHOLE else 2,
        num_fewshot=None if WHOLE else 1,
        gen_kwargs={} if WHOLE else {"max_gen_toks": 24},
        chat=chat,
    )
    run = evaluate(str(smollm2), settings, device="cpu", dtype="float32")
    theirs = expected(hf_backend, shared_data, settings)
    texts = run.samples("gsm8k").drop_duplicates("doc_id").set_index("doc_id")
    for sample in theirs["samples"]["gsm8k"]:
        mine = texts.loc[sample["doc_id"]]
        assert mine.prompt == sample["arguments"][0][0]
        assert mine.response == sample["resps"][0][0], sample["doc_id"]
    assert len(texts) == settings.limit and texts.response.str.len().max() > 20
    assert_equal_scores(run, theirs)
