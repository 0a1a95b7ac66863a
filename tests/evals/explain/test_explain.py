"""Explanation of samples: the token that decided an answer, its attribution, and the heads behind wrong answers."""

from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("lm_eval", reason="lm_eval is not installed")
pytest.importorskip("pandas", reason="pandas is not installed")

import workbench as wb
from evals.explain import explain
from evals.explain.decision import decision
from evals.explain.replay import ReplayedSample, replay
from evals.results.runs import Run
from evals.run.evaluate import evaluate
from evals.run.settings import Settings
from workbench.errors import DataError, MissingExtraError
from workbench.model import Transformer

CHANGE = (wb.Ablate("L0H1"), wb.Scale("L1.mlp", 0.5))


@pytest.fixture(scope="module")
def runs(speaking_model: Transformer, tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    """A run without and a run with interventions, of a model in memory."""
    settings = Settings(tasks=("demo_mmlu", "demo_gsm8k"), output=tmp_path_factory.mktemp("out"), limit=8)
    changed = Settings(**{**vars(settings), "interventions": CHANGE})
    return [evaluate(speaking_model, settings), evaluate(speaking_model, changed)]


def logits(model: Transformer, ids: tuple[int, ...]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids]))[0, -1]


@pytest.mark.parametrize("which", [0, 1])
def test_an_explanation_sums_to_a_plain_forward_s_logits(
    speaking_model: Transformer, runs: list[Run], which: int
) -> None:
    changes, rows = (CHANGE if which else ()), runs[which].samples("demo_mmlu").to_dict("records")
    for row in rows[:3]:
        explanation = explain.explain(speaking_model, runs[which], "demo_mmlu", row["doc_id"])
        with speaking_model.intervene(*changes):
            # A choice is a blank and a letter, two tokens here: they part at the letter.
            out = logits(speaking_model, (*row["prompt_ids"], ord(" ")))
        letters = [ids[1] for ids in row["choice_ids"]]
        gold = int(row["target"])
        rivals = [i for i in range(4) if i != gold]
        other = row["answer"] if row["answer"] != gold else max(rivals, key=lambda i: row["logprobs"][i])
        assert (explanation.decision.token, explanation.decision.contrast_token) == (letters[gold], letters[other])
        assert explanation.attribution.difference == pytest.approx(
            float(out[letters[gold]] - out[letters[other]]), abs=1e-4
        )
        assert explanation.attribution.frame()["contribution"].sum() == pytest.approx(
            explanation.attribution.difference, abs=1e-3
        )
        # What they have in common falls out: the letters' logits differ as their stored log-probabilities do.
        stored = row["logprobs"][gold] - row["logprobs"][other]
        assert explanation.attribution.difference == pytest.approx(stored, abs=1e-3) and explanation.replayed.agrees
        last = explanation.attribution.lens().query("layer == 1").set_index("token")["logprob"]
        assert [last[letter] for letter in letters] == pytest.approx(out.log_softmax(-1)[letters].tolist(), abs=1e-4)
        table = explanation.heads()
        assert list(table["contribution"]) == sorted(table["contribution"]) and len(table) == 2 * 4
        if which:
            assert table.set_index(["layer", "head"]).loc[(0, 1), "contribution"] == 0


def made_up(model: Transformer, row: dict[str, Any]) -> ReplayedSample:
    """A replayed sample with a made-up generated answer, one token per byte."""
    assert model.tokenizer is not None
    ids = tuple(model.tokenizer.encode("Question", bos=True))
    generated = (*model.tokenizer.encode(row["response"]), *row.pop("more", ()))
    none = np.zeros(len(generated))
    return ReplayedSample("t", {"doc_id": 0, **row}, ids, None, generated, none, none, none)


@pytest.mark.parametrize(
    ("response", "answer", "target", "before", "right", "wrong"),
    [
        ("He has 12 left.\n#### 552 eggs", "552", "x\n#### 532", "He has 12 left.\n#### 5", "3", "5"),
        ("#### 55\nQ", "55", "557", "#### 55", "7", "\n"),
        ("#### 557\nQ", "557", "55", "#### 55", "\n", "7"),
        ("it is 7, so 40 or 41.", "41.", "40", "it is 7, so 40 or 4", "0", "1"),
        ("#### -3 ", "-3", "4", "#### ", "4", "-"),
        ("é 1 #### 2!", "2", "#### 3", "é 1 #### ", "3", "2"),
    ],
)
def test_a_number_is_decided_at_its_first_wrong_token(
    speaking_model: Transformer, response: str, answer: str, target: str, before: str, right: str, wrong: str
) -> None:
    row = {"response": response, "answer": answer, "target": target}
    decided = decision(speaking_model, made_up(speaking_model, row))
    tokenizer = speaking_model.tokenizer
    assert tokenizer is not None
    assert tokenizer.decode(decided.ids[1:]) == "Question" + before
    assert (tokenizer.decode([decided.token]), tokenizer.decode([decided.contrast_token])) == (right, wrong)
    assert repr(right) in decided.description


def test_a_number_that_is_copied_is_followed_to_where_it_came_from(speaking_model: Transformer) -> None:
    row = {"response": "1552 + 552 is 552\n#### 552", "answer": "552", "target": "553"}
    replayed = made_up(speaking_model, row)
    decided = decision(speaking_model, replayed)
    # Seven bytes stand before it, and the first byte follows the prompt's last token.
    assert decided.description.endswith(f"'552' first appears after position {len(replayed.prompt_ids) - 1 + 7}")


def test_a_right_number_stands_against_the_likeliest_other(speaking_model: Transformer) -> None:
    row = {"response": "#### 1,552", "answer": "1,552", "target": "1552"}
    decided = decision(speaking_model, made_up(speaking_model, row))
    out = logits(speaking_model, decided.ids)
    out[decided.token] = -torch.inf
    assert decided.token == ord("1") and decided.contrast_token == int(out.argmax())


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"response": "I know not", "answer": "[invalid]", "target": "5"}, "pass --position"),
        ({"response": "#### 4", "answer": "4", "target": "four"}, "pass --position"),
        ({"response": "#### 4", "answer": "4", "target": "47"}, "do not differ at any token"),
        ({"response": "  return 4", "answer": "4", "target": "== 5", "verdict": "failed"}, "answer is a program"),
        ({"response": "  return 4", "answer": "4", "target": "== 5", "metric": "pass@1"}, "answer is a program"),
    ],
)
def test_a_decision_that_cannot_be_found(speaking_model: Transformer, row: dict[str, str], words: str) -> None:
    with pytest.raises(DataError, match=words):
        decision(speaking_model, made_up(speaking_model, row))


def test_a_program_is_explained_at_a_position_alone(speaking_model: Transformer) -> None:
    row = {"response": "  return 4", "answer": "  return 4", "target": "== 5", "verdict": "failed"}
    replayed = made_up(speaking_model, row)
    at = len(replayed.prompt_ids) + len("  return ") - 1
    assert decision(speaking_model, replayed, position=at).contrast_token == ord("4")


def test_a_response_that_its_tokens_do_not_spell(speaking_model: Transformer) -> None:
    whole = made_up(speaking_model, {"response": "#### 4", "answer": "4", "target": "5"})
    other = ReplayedSample(
        "t", {**whole.row, "response": "#### 4 "}, whole.prompt_ids, None, whole.generated_ids, *[np.zeros(6)] * 3
    )
    with pytest.raises(DataError, match="do not match the stored response"):
        decision(speaking_model, other)


def test_any_position_can_be_asked_about(speaking_model: Transformer, runs: list[Run]) -> None:
    replayed = replay(speaking_model, runs[0], "demo_gsm8k", 0)
    assert replayed.generated_ids is not None
    at = len(replayed.prompt_ids)
    explanation = explain.explain(speaking_model, runs[0], "demo_gsm8k", 0, position=at)
    assert explanation.decision.contrast_token == replayed.generated_ids[1] and explanation.decision.position == at
    out = logits(speaking_model, explanation.decision.ids)
    assert explanation.attribution.difference == pytest.approx(
        float(out[explanation.decision.token] - out[explanation.decision.contrast_token]), abs=1e-4
    )
    # Greedy decoding wrote the likeliest token, and the other is the second.
    assert out.topk(2).indices.tolist() == [explanation.decision.contrast_token, explanation.decision.token]
    with pytest.raises(DataError, match="--position must be 0 to"):
        explain.explain(speaking_model, runs[0], "demo_gsm8k", 0, position=100_000)


def test_choices_of_several_tokens_part_where_they_differ(speaking_model: Transformer) -> None:
    names = ["alpha", "alpine", "beta"]
    choices = tuple(tuple(name.encode()) for name in names)
    row = {"doc_id": 0, "target": "1", "answer": 0, "choices": names, "logprobs": [-1.0, -2.0, -3.0]}
    three = np.zeros(3)
    decided = decision(speaking_model, ReplayedSample("t", row, (256, 65), choices, None, three, three, three))
    assert (
        bytes(decided.ids[2:]) == b"alp"
        and (decided.token, decided.contrast_token) == (ord("i"), ord("h"))
        and decided.other_tokens == ()
    )
    row["answer"] = 1
    decided = decision(speaking_model, ReplayedSample("t", row, (256, 65), choices, None, three, three, three))
    assert (decided.token, decided.contrast_token) == (ord("i"), ord("h")), (
        "a right answer stands against its likeliest rival"
    )
    row |= {"target": "2", "answer": 0}
    decided = decision(speaking_model, ReplayedSample("t", row, (256, 65), choices, None, three, three, three))
    assert (decided.token, decided.contrast_token, decided.position) == (ord("b"), ord("a"), 1)
    row["target"] = "none of them"
    with pytest.raises(DataError, match="not one of the choices"):
        decision(speaking_model, ReplayedSample("t", row, (256, 65), choices, None, three, three, three))


def test_heads_of_wrong_answers_are_means_over_them(speaking_model: Transformer, runs: list[Run]) -> None:
    wrong = explain.wrong_answers(runs[0], "demo_mmlu")
    samples = runs[0].samples("demo_mmlu")
    assert [row["doc_id"] for row in wrong] == list(samples[samples["correct"] == 0]["doc_id"]) and len(wrong) > 2
    progress: list[tuple[int, int]] = []
    ranking = explain.rank_heads_behind_errors(
        speaking_model, runs[0], "demo_mmlu", limit=3, done=lambda *now: progress.append(now)
    )
    assert progress == [(1, 3), (2, 3), (3, 3)] and ranking.doc_ids == tuple(row["doc_id"] for row in wrong[:3])
    each = [explain.explain(speaking_model, runs[0], "demo_mmlu", i) for i in ranking.doc_ids]
    tables = [
        explanation.attribution.frame().set_index(["kind", "layer", "head"])["contribution"] for explanation in each
    ]
    values = np.array([table.to_numpy() for table in tables])
    ours = ranking.table.set_index(["kind", "layer", "head"]).loc[tables[0].index]
    assert ours["mean"].to_numpy() == pytest.approx(values.mean(0), abs=1e-6)
    half = 1.96 * values.std(0, ddof=1) / np.sqrt(3)
    assert (ours["high"] - ours["low"]).to_numpy() / 2 == pytest.approx(half, rel=1e-3, abs=1e-9)
    assert ours["against"].to_numpy() == pytest.approx((values < 0).mean(0))
    assert ranking.difference == pytest.approx(np.mean([explanation.attribution.difference for explanation in each]))
    assert ranking.difference <= 0, "the answers are wrong"
    assert list(ranking.heads()["mean"]) == sorted(ranking.heads()["mean"]) and ranking.left_out == ()


def test_answers_that_are_not_the_stored_ones_are_left_out(
    speaking_model: Transformer, runs: list[Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = Run.samples

    def changed(run: Run, task: str) -> Any:
        table = samples(run, task)
        table["logprobs"] = [[value + (i == 0) for value in values] for i, values in enumerate(table["logprobs"])]
        return table.assign(correct=0.0)

    monkeypatch.setattr(Run, "samples", changed)
    ranking = explain.rank_heads_behind_errors(speaking_model, runs[0], "demo_mmlu", limit=4)
    assert ranking.doc_ids == (1, 2, 3) and "demo_mmlu/0: the replay does not match" in ranking.left_out[0]


def test_a_group_s_wrong_answers_are_those_of_its_tasks(speaking_model: Transformer, runs: list[Run]) -> None:
    group = Run(runs[0].path, {**runs[0].data, "group_subtasks": {"quiz": ["demo_mmlu"]}})
    expected = explain.rank_heads_behind_errors(speaking_model, runs[0], "demo_mmlu", limit=2).table
    ranking = explain.rank_heads_behind_errors(speaking_model, group, "quiz", limit=2)
    assert ranking.task == "quiz" and ranking.table.equals(expected)


def test_tasks_that_are_not_there(runs: list[Run]) -> None:
    with pytest.raises(DataError, match="has no task 'mmlu'; it has demo_gsm8k, demo_mmlu"):
        explain.wrong_answers(runs[0], "mmlu")


def test_without_the_probes_it_says_what_to_install(
    speaking_model: Transformer, runs: list[Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Point:
        name = "logits"

        def load(self) -> Any:
            raise ModuleNotFoundError("No module named 'pandas'", name="pandas")

    monkeypatch.setattr(explain, "entry_points", lambda group: [Point()])
    with pytest.raises(MissingExtraError, match=r"\[probe\]"):
        explain.explain(speaking_model, runs[0], "demo_mmlu", 0)
    monkeypatch.setattr(explain, "entry_points", lambda group: [])
    with pytest.raises(DataError, match=r"\[probe\]"):
        explain.explain(speaking_model, runs[0], "demo_mmlu", 0)
