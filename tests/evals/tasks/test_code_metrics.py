"""Programs are judged once each, with the given part of a problem trusted over the model's."""

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from lm_eval.api.instance import Instance

from evals import sandbox
from evals.sandbox import Limits
from evals.store.store import Store
from evals.tasks import code_metrics, registry
from evals.tasks.code_metrics import CodeGrader, VerdictCache
from evals.tasks.registry import LM_EVAL_TASKS
from workbench.errors import DataError

pytestmark = pytest.mark.skipif(
    sandbox.why_unavailable() is not None, reason=f"no sandbox here: {sandbox.why_unavailable()}"
)

DOC = {
    "prompt": 'def helper(x):\n    return x + 1\n\n\ndef twice(x):\n    """Twice the helper."""\n',
    "entry_point": "twice",
    "test": "def check(candidate):\n    for x in (3, 0):\n        assert candidate(x) == 2 * helper(x)\n",
}


TESTS = f"{DOC['test']}\ncheck({DOC['entry_point']})"
HUMANEVAL = code_metrics.functions(LM_EVAL_TASKS / "humaneval/utils.py")


def pass_at(judge: CodeGrader, answers: list[str], k: list[int]) -> dict[str, float]:
    (programs,) = judge.program_filter(HUMANEVAL["build_predictions"], lambda doc: TESTS)([answers], [DOC])
    return judge.pass_at_k(references=[TESTS], predictions=[programs], k=k)


def test_right_and_wrong_answers() -> None:
    judge = CodeGrader(limits=Limits(seconds=5.0), workers=2)
    right, wrong = "    return 2 * helper(x)\n", "    return 3 * helper(x)\n"
    assert pass_at(judge, [right], [1]) == {"pass@1": 1.0}
    assert pass_at(judge, [wrong], [1]) == {"pass@1": 0.0}
    both = pass_at(judge, [right, wrong, wrong + "#"], [1, 2])
    assert both == {"pass@1": pytest.approx(1 / 3), "pass@2": pytest.approx(2 / 3)}
    assert sorted(run.verdict for run in judge.runs.values()) == ["failed", "failed", "passed"]


def test_bent_helper_does_not_help() -> None:
    bent = "    return 0\n\n\nhelper = lambda x: 0\n"
    assert pass_at(CodeGrader(), [bent], [1]) == {"pass@1": 0.0}


def test_answers_in_a_chat_end_with_their_block() -> None:
    judge = CodeGrader()
    join = judge.program_filter(HUMANEVAL["build_predictions_instruct"], lambda doc: TESTS)
    (programs,) = join([["    return 2 * helper(x)\n```\nThis works because"]], [DOC])
    assert judge.pass_at_k(references=[TESTS], predictions=[programs], k=[1]) == {"pass@1": 1.0}


def test_what_became_of_a_program_is_kept_unless_the_machine_may_have_decided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = ["    return 2 * helper(x)\n", "    return 3 * helper(x)\n", "    while True: pass\n"]
    ran: list[int] = []
    run_all = sandbox.run_all

    def counted(programs: Any, **options: Any) -> Any:
        some = list(programs)
        ran.append(len(some))
        return run_all(some, **options)

    monkeypatch.setattr(sandbox, "run_all", counted)
    with Store.open(tmp_path) as store:
        writer = store.writer(store.register({}))
        for seconds, left in ((0.7, 3), (0.7, 1), (0.8, 3)):
            judge = CodeGrader(limits=Limits(seconds=seconds), workers=2, verdict_cache=VerdictCache(store, writer))
            assert pass_at(judge, answers, [1]) == {"pass@1": pytest.approx(1 / 3)}
            verdicts = sorted(run.verdict for run in judge.runs.values())
            assert verdicts == ["failed", "passed", "timeout"] and ran.pop() == left
        writer.close()
        assert sum(store.response_counts().values()) == 4


def test_an_answer_without_code_is_called_so() -> None:
    judge = CodeGrader()
    pass_at(judge, ["", "    # to do\n", "    return 2 * helper(x)\n"], [1])
    assert [run.verdict for run in judge.runs.values()] == ["no code", "no code", "passed"]


MBPP = {"task_id": 11, "text": "Write a function to halve a number.", "code": "def halve(x): return x / 2"}
MBPP["test_list"] = ["assert math.isclose(halve(3), 1.5)", "assert halve(Pair(4, 0)) == 2", "assert halve(0) == 0"]
RIGHT = "import math\nclass Pair:\n    def __init__(self, a, b): self.a = a\n"
RIGHT += "def halve(x): return (x.a if isinstance(x, Pair) else x) / 2\n"


def test_mbpp_is_judged_in_the_sandbox_by_its_own_definition(tmp_path: Path) -> None:
    # The tests use what the program imports, and hand it objects of its own classes, as some of MBPP's do.
    folder = tmp_path / "hub" / "google-research-datasets" / "mbpp" / "full"
    folder.mkdir(parents=True)
    Dataset.from_list([MBPP]).to_parquet(folder / "test-00000-of-00001.parquet")
    for name, label, around in (
        ("mbpp", "none", "{}"),
        # The newline keeps the first word: lm-eval takes one that follows the fence for the name of the language.
        ("mbpp_instruct", "extract_code", "\n{}```\nIt halves."),
    ):
        judge = CodeGrader(workers=2)
        loaded = registry.load([name], root=tmp_path, grader=judge)
        (task,) = loaded.tasks.values()
        doc = task.eval_docs[0]
        assert loaded.runs_code() == [name] and task.config.num_fewshot == 3
        assert "similar_elements" in task.fewshot_docs()[0]["code"]
        (filter_,) = task._filters
        assert filter_.name == label
        wrong = RIGHT.replace("/ 2", "/ 3")
        for program, score in ((RIGHT, 1.0), (wrong, 0.0)):
            (request,) = [Instance("generate_until", doc, ("", {}), 0, resps=[around.format(program)])]
            filter_.apply([request])
            assert task.process_results(doc, [request.filtered_resps[label]]) == {"pass@1": score}, judge.runs
        assert [run.verdict for run in judge.runs.values()] == ["passed", "failed"]


def test_mbpp_without_its_data_says_where_it_belongs(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="google-research-datasets/mbpp.*eval prepare"):
        registry.load(["mbpp"], root=tmp_path, grader=CodeGrader())


def test_a_line_filled_in_has_what_follows_it_too() -> None:
    join = code_metrics.functions(LM_EVAL_TASKS / "humaneval_infilling/utils.py")["build_predictions"]
    doc = {**DOC, "prompt": DOC["prompt"] + "    y = helper(x)\n", "suffix": "    return y\n"}
    judge = CodeGrader()
    ((right, wrong),) = judge.program_filter(join, lambda doc: TESTS)([["    y *= 2\n", "    y *= 3\n"]], [doc])
    assert [judge.runs[program, TESTS].verdict for program in (right, wrong)] == ["passed", "failed"]
