"""Programs are judged once each, with the given part of a problem trusted over the model's."""

import pytest

from evals import code, sandbox
from evals.code import Judge
from evals.sandbox import Limits

pytestmark = pytest.mark.skipif(
    sandbox.why_unavailable() is not None, reason=f"no sandbox here: {sandbox.why_unavailable()}"
)

DOC = {
    "prompt": 'def helper(x):\n    return x + 1\n\n\ndef twice(x):\n    """Twice the helper."""\n',
    "entry_point": "twice",
    "test": "def check(candidate):\n    for x in (3, 0):\n        assert candidate(x) == 2 * helper(x)\n",
}


def pass_at(judge: Judge, answers: list[str], k: list[int]) -> dict[str, float]:
    (programs,) = judge.build_predictions([answers], [DOC])
    return judge.pass_at_k(references=[code.tests_of(DOC)], predictions=[programs], k=k)


def test_right_and_wrong_answers() -> None:
    judge = Judge(limits=Limits(seconds=5.0), workers=2)
    right, wrong = "    return 2 * helper(x)\n", "    return 3 * helper(x)\n"
    assert pass_at(judge, [right], [1]) == {"pass@1": 1.0}
    assert pass_at(judge, [wrong], [1]) == {"pass@1": 0.0}
    both = pass_at(judge, [right, wrong, wrong + "#"], [1, 2])
    assert both == {"pass@1": pytest.approx(1 / 3), "pass@2": pytest.approx(2 / 3)}
    assert sorted(run.verdict for run in judge.runs.values()) == ["failed", "failed", "passed"]


def test_bent_helper_does_not_help() -> None:
    bent = "    return 0\n\n\nhelper = lambda x: 0\n"
    assert pass_at(Judge(), [bent], [1]) == {"pass@1": 0.0}


def test_answers_in_a_chat_end_with_their_block() -> None:
    judge = Judge()
    (programs,) = judge.build_predictions_instruct([["    return 2 * helper(x)\n```\nThis works because"]], [DOC])
    assert judge.pass_at_k(references=[code.tests_of(DOC)], predictions=[programs], k=[1]) == {"pass@1": 1.0}


def test_an_answer_without_code_is_called_so() -> None:
    judge = Judge()
    pass_at(judge, ["", "    # to do\n", "    return 2 * helper(x)\n"], [1])
    assert [run.verdict for run in judge.runs.values()] == ["no code", "no code", "passed"]
