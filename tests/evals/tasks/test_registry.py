"""The tasks are lm-eval's own: the same prompts, filters and metrics, over local questions."""

import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="lm_eval is not installed")

from lm_eval.api.model import LM
from lm_eval.evaluator import evaluate

from evals import sandbox
from evals.tasks import registry
from evals.tasks.code_metrics import CodeGrader
from workbench.errors import DataError

needs_sandbox = pytest.mark.skipif(
    sandbox.why_unavailable() is not None, reason=f"no sandbox here: {sandbox.why_unavailable()}"
)


def config(name: str) -> dict[str, Any]:
    return dict(registry.manager().task_index[name].cfg or {})


@pytest.mark.parametrize(
    ("ours", "theirs", "but"),
    [
        ("demo_mmlu", "mmlu_anatomy", {"description"}),
        ("demo_gsm8k", "gsm8k", {"num_fewshot", "generation_kwargs", "training_split", "fewshot_split"}),
        ("demo_humaneval", "humaneval", {"generation_kwargs", "metric_list", "filter_list"}),
    ],
)
def test_embedded_suites_are_worded_as_lm_evals(ours: str, theirs: str, but: set[str]) -> None:
    own = {"task", "task_alias", "tag", "class", "metadata", "dataset_path", "dataset_name"}
    mine, other = config(ours), config(theirs)
    for key in (mine.keys() | other.keys()) - own - but:
        assert mine.get(key) == other.get(key), key
    if "generation_kwargs" in but:
        limits = {"max_gen_toks"}
        assert {k: v for k, v in mine["generation_kwargs"].items() if k not in limits} == {
            k: v for k, v in other["generation_kwargs"].items() if k not in limits
        }


def test_prompts_are_the_known_ones(shared_data: Path) -> None:
    loaded = registry.load(["mmlu_anatomy", "gsm8k", "humaneval", "demo_mmlu"], root=shared_data, grader=CodeGrader())
    for task in loaded.tasks.values():
        task.set_config("num_fewshot", 0)
        task.build_all_requests(limit=1)
    prompts = {name: task.instances[0].args for name, task in loaded.tasks.items()}
    assert prompts["mmlu_anatomy"] == (
        "The following are multiple choice questions (with answers) about anatomy.\n\n"
        "A lesion causing compression of the facial nerve at the stylomastoid foramen will cause ipsilateral\n"
        "A. paralysis of the facial muscles.\nB. paralysis of the facial muscles and loss of taste.\n"
        "C. paralysis of the facial muscles, loss of taste and lacrimation.\n"
        "D. paralysis of the facial muscles, loss of taste, lacrimation and decreased salivation.\nAnswer:",
        " A",
    )
    assert prompts["gsm8k"][0].startswith("Question: Janet’s ducks lay 16 eggs per day.")
    assert prompts["gsm8k"][0].endswith("\nAnswer:")
    assert prompts["humaneval"][0].startswith("from typing import List\n\n\ndef has_close_elements")
    assert prompts["humaneval"][1]["until"] == ["\nclass", "\ndef", "\n#", "\nif", "\nprint"]
    doc = loaded.tasks["demo_mmlu"].eval_docs[0]
    assert prompts["demo_mmlu"][0].startswith(
        f"The following are multiple choice questions (with answers) about {doc['subject']}.\n\n{doc['question']}\nA. "
    )


def test_mmlu_is_all_of_it(shared_data: Path) -> None:
    loaded = registry.load(["mmlu"], root=shared_data, grader=CodeGrader())
    assert len(loaded.tasks) == 57
    assert sum(len(task.eval_docs) for task in loaded.tasks.values()) == 14_042
    assert set(loaded.groups) == {"mmlu", "mmlu_stem", "mmlu_humanities", "mmlu_social_sciences", "mmlu_other"}


def test_no_metric_from_a_hub_is_loaded(shared_data: Path) -> None:
    registry.load(["humaneval", "demo_humaneval"], root=shared_data, grader=CodeGrader())
    assert "lm_eval.tasks.humaneval.utils" not in sys.modules


def test_unknown_tasks_come_with_near_matches() -> None:
    with pytest.raises(DataError, match="'mmlu_anatomi'; did you mean mmlu_anatomy"):
        registry.check(["mmlu_anatomi"])
    with pytest.raises(DataError, match="workbench eval tasks"):
        registry.check(["zzzzzz"])
    with pytest.raises(DataError, match="no task given"):
        registry.check([])


def test_overlapping_tasks_are_refused(shared_data: Path) -> None:
    with pytest.raises(DataError, match="overlap"):
        registry.load(["mmlu_stem", "mmlu_anatomy"], root=shared_data, grader=CodeGrader())


class Oracle(LM):
    """Knows every answer, or none: scores through tasks, filters and metrics follow from that alone."""

    def __init__(self, *, right: bool) -> None:
        super().__init__()
        self.right = right

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        return [(0.0 if (r.idx == r.doc["answer"]) == self.right else -9.0, True) for r in requests]

    def generate_until(self, requests: list[Any]) -> list[str]:
        answers = [str(r.doc.get("answer") or r.doc["canonical_solution"]) for r in requests]
        return answers if self.right else ["    pass" if "def " in r.args[0] else " 4711 #### 4711" for r in requests]

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        raise NotImplementedError


@needs_sandbox
@pytest.mark.parametrize("right", [True, False])
def test_who_knows_all_scores_one_and_who_knows_nothing_zero(shared_data: Path, right: bool) -> None:
    names = ["demo_mmlu", "demo_gsm8k", "demo_humaneval", "mmlu_virology", "gsm8k", "humaneval"]
    loaded = registry.load(names, root=shared_data, grader=CodeGrader(workers=2))
    for task in loaded.tasks.values():
        task.set_config("num_fewshot", 0)
    results = evaluate(lm=Oracle(right=right), task_dict=loaded.as_dict(), limit=12, confirm_run_unsafe_code=True)
    scores = {
        (name, key): value
        for name, result in results["results"].items()
        for key, value in result.items()
        if key.startswith(("acc,", "exact_match,", "pass@1,"))
    }
    assert len(scores) == 8
    assert set(scores.values()) == {1.0 if right else 0.0}, scores


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("MMLU", "mmlu"),
        ("hellaswgg", "hellaswag"),
        ("GSM8K", "gsm8k"),
        ("arc_chalenge", "arc_challenge"),
        ("BoolQ", "boolq"),
        ("trivia_qa", "triviaqa"),
        ("demo_mlu", "demo_mmlu"),
    ],
)
def test_near_matches_are_of_all_of_lm_evals_names(name: str, first: str) -> None:
    with pytest.raises(DataError, match=rf"unknown task '{name}'; did you mean {first}\b"):
        registry.check([name])


def test_every_name_is_listed_and_searched() -> None:
    from evals.tasks import availability
    from evals.tasks.index import full_manager

    rows = {row.name: row for row in availability.all_tasks()}
    assert set(rows) == set(full_manager().all_tasks)
    assert rows["gsm8k"].shots == 5 and rows["gsm8k"].dataset == "openai/gsm8k/main" and rows["gsm8k"].members is None
    assert rows["mmlu"].members == 4 and rows["mmlu"].kind == "group"
    by_name = {row.name for row in availability.all_tasks("HellaSwag")}
    assert {"hellaswag", "okapi_hellaswag"} & by_name == {"hellaswag"} and len(by_name) < len(rows)
    assert {"arc_easy", "arc_challenge"} <= {row.name for row in availability.all_tasks("allenai/ai2_arc")}
