"""The Samples page: the listed questions, their order, and the explanation of an answer."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qsl

import numpy as np
import pandas as pd
import pytest
import torch
from streamlit.testing.v1 import AppTest

import workbench as wb
from dashboard.components import row_picker
from dashboard.data import runs, samples
from dashboard.layout.page import Head
from evals.compare.published import scores_of_model
from evals.explain.explain import explain
from evals.results.runs import Run, list_runs
from tests.dashboard.page_text import WRITTEN_TO, figures, read_table, read_tables, texts
from tests.dashboard.world import write_answers, write_many

App = Callable[..., AppTest]
Serve = Callable[[str, Path], None]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Path:
    return write_answers(tmp_path_factory.mktemp("answers"), checkpoint)


@pytest.fixture
def asked(app: App, serve: Serve, checkpoint: Path, answers: Path) -> App:
    """A session on the Samples page, with the checkpoint's own run or another folder of runs."""

    def open_page(root: Path = answers, model: Path = checkpoint, **params: object) -> AppTest:
        session = app("overview")
        serve(str(model), root)
        session.switch_page("dashboard/pages/samples.py")
        session.query_params.clear()
        session.query_params.update({name: str(value) for name, value in params.items()})
        return session.run()

    return open_page


def listed(session: AppTest) -> pd.DataFrame:
    return read_table(session, "state")


def said(session: AppTest) -> str:
    kinds = ("error", "warning", "success", "info", "text", "caption", "code", "markdown")
    return "\n".join(str(element.value) for kind in kinds for element in session.get(kind))


@pytest.fixture
def run(answers: Path) -> Run:
    return list_runs(answers)[0]


def test_a_wrong_answer_is_explained_as_the_evaluation_explains_it(asked: App, run: Run, checkpoint: Path) -> None:
    session = asked(task="asked_quiz", doc=2)
    assert not session.exception and not session.error
    assert session.success[0].value.startswith("Replay: matches the stored log-probabilities within")
    explanation = explain(wb.load_model(checkpoint), run, "asked_quiz", 2)
    first = explanation.heads().iloc[0]
    lines = [text.value for text in session.text]
    expected = f"L{first['layer']}H{first['head']} adds {first['contribution']:+.4f}; without it"
    assert [line for line in lines if " adds " in line][0].startswith(expected)
    # The attribution's gold and predicted are those that were stored.
    gold, picked = (explanation.decision.token, explanation.decision.contrast_token)
    with torch.no_grad():
        logits = wb.load_model(checkpoint)(torch.tensor([explanation.decision.ids]))[0, -1]
    difference = (logits[picked] - logits[gold]).item()
    assert difference > 0
    assert f"The logit of the right answer is {difference:.3f} below that of the answer given;" in said(session)
    assert f"--ablate L{first['layer']}H{first['head']}" in said(session)
    assert figures(session) == (3, 0)


def test_the_links_lead_to_the_head_the_lens_and_the_ablation(asked: App, run: Run, checkpoint: Path) -> None:
    explanation = explain(wb.load_model(checkpoint), run, "asked_quiz", 3)
    first = explanation.heads().iloc[0]
    name, at = f"L{first['layer']}H{first['head']}", str(explanation.decision.position)
    session = asked(task="asked_quiz", doc=3)
    reference = f"{run.name}/asked_quiz/3"
    address = page_links(session)
    assert address[f"{name} in Attention →"] == {
        "sample": reference, "layer": str(first["layer"]), "head": str(first["head"]), "token": at,
    }  # fmt: skip
    ablated = address[f"Without {name} →"]
    assert ablated["sample"] == reference and ablated["position"] == at
    assert json.loads(ablated["changes"]) == [{"kind": "ablate", "target": name}]
    assert (
        address["This decision in Lens →"]["targets"]
        == f"#{explanation.decision.token} #{explanation.decision.contrast_token}"
    )


def page_links(session: AppTest) -> dict[str, dict[str, str]]:
    """The query of every link, by label."""
    links = [element.proto for element in session.get("page_link")]
    return {link.label: dict(parse_qsl(link.query_string)) for link in links}


def test_filters_and_orders(asked: App) -> None:
    assert listed(asked(task="asked_sums", show="Unparsed"))["doc_id"].tolist() == [2]
    assert listed(asked(task="asked_sums", show="Wrong"))["doc_id"].tolist() == [1, 2]  # unparsed is wrong, too
    assert listed(asked(task="asked_sums", show="Right"))["doc_id"].tolist() == [0]
    surest = listed(asked(task="asked_quiz", order="Confident wrong"))
    assert surest["state"].tolist() == ["wrong"] * 3 + ["right"]
    assert surest["confidence"][:3].is_monotonic_decreasing
    closest = listed(asked(task="asked_quiz", order="Margin"))
    assert closest["margin"].abs().is_monotonic_increasing
    assert sorted(closest["doc_id"]) == [0, 1, 2, 3]


def test_an_order_puts_first_what_only_one_run_has_right(asked: App, results: Path) -> None:
    names = {run.name.partition("/")[0]: run.name for run in list_runs(results)}
    session = asked(results, task="tiny_quiz", run=names["second"], baseline=names["first"])
    table = listed(session)
    assert table["doc_id"].tolist() == [2, 3, 4, 0, 1, 5]  # by hand: right in the second alone are 2, 3 and 4
    assert table["other"].tolist() == ["wrong"] * 3 + ["right", "right", "wrong"]
    assert "The other run's answer is wrong." in said(session)


def test_the_first_that_is_left_is_open(app: App) -> None:
    session = app("samples", task="tiny_sums", show="Wrong")
    assert listed(session)["doc_id"].tolist() == [4, 5]
    assert "Sample 4: wrong" in [part.value for part in session.subheader]
    shown = texts(session)
    assert shown[shown.index("0") + 1] == "5"  # extracted against target
    assert "Sample 5: wrong" in [part.value for part in app("samples", task="tiny_sums", doc=5).subheader]


def test_confidence_and_margin_by_hand() -> None:
    row = {
        "choices": [" A", " B"],
        "logprobs": [math.log(0.2), math.log(0.6)],
        "answer": 1,
        "target": "0",
        "correct": 0,
    }
    assert samples.confidence(row) == pytest.approx(0.75)  # 0.6 of 0.8
    assert samples.verdict(row) == "wrong"
    written = {"generated_logprobs": [math.log(0.5), math.log(0.125)], "answer": "[invalid]", "correct": 0.0}
    assert samples.confidence(written) == pytest.approx(0.25)  # the square root of 1/16
    assert samples.verdict(written) == "unparsed"
    assert samples.verdict({**written, "correct": None}) == "unscored"
    assert samples.confidence({"generated_logprobs": None, "answer": "1"}) is None


def test_what_a_program_was_judged_by_is_shown(asked: App) -> None:
    session = asked(task="asked_code")
    assert listed(session)["state"].tolist() == ["wrong"]
    shown = texts(session)
    assert "failed: AssertionError" in shown
    assert any(text.startswith("Traceback <script>") and "⟨U+202E⟩" in text for text in shown)
    assert "Choose a position" in session.error[0].value  # where a program was decided, nobody can say
    session.number_input(key="behind").set_value(4).run()
    assert not session.error and " adds " in said(session) and "the token after position 4 is" in said(session)
    session.selectbox(key="task").set_value("asked_quiz").run()
    assert session.number_input(key="behind").value is None and not session.error  # another sample, another position
    session.number_input(key="behind").set_value(4000).run()
    assert "found 4000" in said(session) and not session.exception


def test_an_answer_is_run_again_once(asked: App, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    plain = samples.replay_row
    monkeypatch.setattr(samples, "replay_row", lambda *args: (made.append(1), plain(*args))[1])
    session = asked(task="asked_quiz", doc=1)
    session.run()
    session.segmented_control(key="order").set_value("Margin").run()
    assert sum(made) == 1
    session.query_params["doc"] = "2"
    session.run()
    assert sum(made) == 2


def test_a_large_model_runs_only_when_asked(asked: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "SMALL", 10)
    session = asked(task="asked_quiz", doc=1)
    assert not session.success
    session.button[0].click().run()
    assert session.success
    session.run()
    assert session.success  # and stays


def edited(answers: Path, folder: Path, change: Callable[[dict], None], name: str = "samples_asked_quiz") -> Path:
    root = shutil.copytree(answers, folder / "answers")
    path = next((root / "asked").glob(f"{name}_*"))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        change(row)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def test_a_changed_log_probability_explains_something_else(asked: App, answers: Path, tmp_path: Path) -> None:
    def shift(row: dict) -> None:
        row["filtered_resps"][0][0] -= 1.5

    session = asked(edited(answers, tmp_path, shift), task="asked_quiz", doc=1)
    assert "the replay does not match the stored answer" in session.warning[0].value
    assert not session.success and not session.exception


def test_another_checkpoint_is_one_sentence_and_what_to_do(asked: App, results: Path) -> None:
    session = asked(results, task="tiny_quiz", doc=5)
    assert session.error[0].value.endswith("Start the server with the run's own model.")
    assert "this model is not the run's model: its checkpoint is" in said(session)
    assert not session.exception


def test_addresses_that_mean_nothing_say_so(asked: App, answers: Path) -> None:
    session = asked(run="gone/2020", task="asked_quiz")
    assert "run=gone/2020 is not available here; showing asked/" in said(session)
    session = asked(task="nothing")
    assert "task=nothing is not available here; showing asked_quiz." in said(session)
    for doc in ("99", "x", "-1"):
        session = asked(task="asked_quiz", doc=doc)
        assert f"There is no question {doc}; this task has 0 to 3." in said(session) and not session.exception
    assert not asked(task="asked_quiz", doc="first", order="nothing", show="nothing").exception


def test_a_damaged_or_missing_file_says_what_to_do(asked: App, answers: Path, tmp_path: Path) -> None:
    root = shutil.copytree(answers, tmp_path / "answers")
    path = next((root / "asked").glob("samples_asked_quiz_*"))
    path.write_text(path.read_text()[:-40])
    session = asked(root, task="asked_quiz")
    assert "or run the benchmark again" in session.error[0].value and "line 4 is not a sample" in said(session)
    path.unlink()
    assert "has no samples of 'asked_quiz'" in said(asked(root, task="asked_quiz"))
    assert not asked(root, task="asked_sums").exception


@pytest.mark.parametrize(
    "options",
    [
        {"task": "asked_quiz", "doc": 2},
        {"task": "asked_sums", "doc": 1},
        {"task": "asked_sums", "doc": 2, "behind": 5},
        {"task": "asked_code"},
    ],
)
def test_the_notebook_code_gives_the_pages_numbers(asked: App, options: dict[str, object]) -> None:
    session = asked(**options)
    code = [element.value for element in session.code if element.language == "python"]
    assert len(code) == 1
    scope: dict = {}
    exec(compile(code[0], "samples", "exec"), scope)
    if "explanation" in scope:
        first = scope["explanation"].heads().iloc[0]
        line = next(text.value for text in session.text if " adds " in text.value)
        assert line.startswith(f"L{first['layer']}H{first['head']} adds {first['contribution']:+.4f}")
    else:
        assert scope["row"]["stderr"].startswith("Traceback")


def test_the_downloads_hold_what_is_listed(asked: App, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, Callable[[], pd.DataFrame]]] = []
    monkeypatch.setattr(Head, "data", lambda self, given: made.append(given))
    asked(task="asked_quiz", doc=2, show="Wrong")
    tables = {name: table() for name, table in made[-1].items()}
    assert tables["questions"]["doc_id"].tolist() == [1, 2, 3]
    assert set(tables) == {"questions", "parts", "heads", "lens"}
    assert len(tables["heads"]) == 4 * 8
    np.testing.assert_array_equal(tables["lens"]["layer"].unique(), range(-1, 4))


def test_strangers_text_reaches_no_markdown(asked: App) -> None:
    for task in ("asked_quiz", "asked_code"):
        session = asked(task=task)
        kinds = ("markdown", "caption", "subheader", "header", "success", "warning", "error")
        for fragment in ("<script", "alert", "$x", "example.com", ":red", "\u202e"):
            assert not [e for kind in kinds for e in session.get(kind) if fragment in e.value]


def test_benchmarks_leads_to_the_surest_wrong_answer(app: App, results: Path) -> None:
    session = app("benchmarks", task="tiny_sums")
    run = list_runs(results)[0].name
    assert page_links(session)["Wrong answers, most confident first →"] == {
        "run": run, "baseline": "none", "task": "tiny_sums", "doc": "first", "show": "Wrong",
        "order": "Confident wrong",
    }  # fmt: skip


def test_two_runs_are_compared_question_by_question(app: App, results: Path) -> None:
    names = {run.name.partition("/")[0]: run.name for run in list_runs(results)}
    session = app("benchmarks", run=names["second"], baseline=names["first"])
    assert not session.exception and not session.error
    table = read_table(session, "only_b").set_index("task")
    # By hand: 5 of 6 against 2 of 6, three questions right in the second alone; exact p of 3 to 0 is 2 / 2**3.
    assert table.loc["tiny_quiz", ["only_b", "only_a", "n"]].tolist() == [3, 0, 6]
    assert table.loc["tiny_quiz", "difference"] == pytest.approx(50)
    assert table.loc["tiny_quiz", "holm"] == 0.5  # twice 0.25, for two comparisons
    code = next(element.value for element in session.code if element.language == "python")
    scope: dict = {}
    exec(compile(code, "benchmarks", "exec"), scope)


def test_a_filter_leaves_the_scores_that_have_its_words(app: App, results: Path) -> None:
    names = {run.name.partition("/")[0]: run.name for run in list_runs(results)}
    runs = {"run": names["second"], "baseline": names["first"]}
    for words, left in {"": ["tiny_quiz", "tiny_sums"], "SUMS exact": ["tiny_sums"], "acc": ["tiny_quiz"]}.items():
        session = app("benchmarks", **runs, only=words)
        assert not session.exception and not session.error and not session.info
        tables = read_tables(session)
        assert [table["task"].tolist() for table in tables] == [left, left], words
        _, forest = session.session_state["_figures"]["forest"]
        assert {row.partition("<br>")[0] for trace in forest().data for row in trace.y} == set(left), words
        scope: dict = {}
        exec(next(element.value for element in session.code if element.language == "python"), scope)
        assert scope["shown"]["task"].tolist() == left
    session = app("benchmarks", **runs, only="exact quiz")
    assert not session.exception and "Shorten the filter" in session.info[0].value


def test_partial_scores_are_marked_and_published_ones_stand_beside(
    app: App, serve: Serve, checkpoint: Path, results: Path, tmp_path: Path
) -> None:
    root = shutil.copytree(results / "first", tmp_path / "results" / "first").parent
    path = next(root.rglob("results_*.json"))
    data = json.loads(path.read_text().replace("tiny_sums", "gsm8k_cot"))
    data["n-samples"]["gsm8k_cot"]["original"] = 100
    path.write_text(json.dumps(data))
    session = app("benchmarks")
    serve(str(checkpoint), root)
    session.run()
    assert read_table(session, "partial").set_index("task")["partial"].to_dict() == {
        "tiny_quiz": "",
        "gsm8k_cot": "6 of 100",
    }
    session.selectbox(key="published").set_value("llama-3.1-8b-instruct").run()
    assert not session.exception
    table = read_table(session, "source")
    figure = next(element for element in scores_of_model("llama-3.1-8b-instruct") if element.task == "gsm8k_cot")
    assert table["task"].tolist() == ["gsm8k_cot"] and table["measured"].tolist() == pytest.approx(
        [1 / 6], abs=WRITTEN_TO
    )
    assert table["published"].tolist() == pytest.approx([figure.value], abs=WRITTEN_TO)
    assert table["source"].tolist() == [figure.source] and "6 of 100 questions" in table["unlike"][0]


def test_the_other_run_is_badged_where_it_is_partial(
    app: App, serve: Callable[[str, Path], None], checkpoint: Path, results: Path, tmp_path: Path
) -> None:
    root = shutil.copytree(results, tmp_path / "results")
    path = next((root / "first").glob("results_*.json"))
    data = json.loads(path.read_text())
    data["n-samples"]["tiny_quiz"]["original"] = 400
    path.write_text(json.dumps(data))
    names = {run.name.partition("/")[0]: run.name for run in list_runs(root)}
    session = app("benchmarks", run=names["second"])
    serve(str(checkpoint), root)
    session.selectbox(key="baseline").set_value(names["first"]).run()
    assert not session.exception and not session.error
    assert [badge for badge in map(str, said(session).splitlines()) if "Other (A): partial" in badge]
    assert "This (B): partial" not in said(session) and "tiny_quiz: 6 of 400 questions" in said(session)


# --- pages of the list ----------------------------------------------------------------------------------------

UNLISTED = "The row in the URL is not in the list."


@pytest.fixture
def turned(asked: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> App:
    """The page with a run of seven sums, of which 0, 3 and 6 are wrong; the list shows two rows at a time."""
    monkeypatch.setattr(row_picker, "PAGE_SIZE", 2)
    root = write_many(tmp_path, 7)
    return lambda **params: asked(root, **params)


@pytest.mark.parametrize(
    ("address", "rows", "opened"),
    [
        ({}, [0, 1], 0),
        ({"doc": 3}, [2, 3], 3),
        ({"doc": 3, "from": 5}, [4, 5], 3),
        ({"doc": 3, "from": 6}, [4, 5], 3),
        ({"doc": 3, "from": 7}, [6], 3),
        ({"doc": 3, "show": "Wrong", "from": 3}, [6], 3),
    ],
)
def test_of_a_long_list_one_page_is_shown(
    turned: App, address: dict[str, object], rows: list[int], opened: int
) -> None:
    session = turned(**address)
    assert not session.exception and UNLISTED not in said(session)
    assert listed(session)["doc_id"].tolist() == rows
    assert any(head.value.startswith(f"Sample {opened}:") for head in session.subheader)


@pytest.mark.parametrize("row", ["8", "0", "-1", "x"])
def test_a_row_that_the_list_does_not_have_is_said_and_the_open_question_listed(turned: App, row: str) -> None:
    session = turned(doc=3, **{"from": row})
    assert UNLISTED in said(session)
    assert f"from={row}: the list has 7 rows." in said(session)
    assert listed(session)["doc_id"].tolist() == [2, 3]


def test_another_list_begins_where_the_open_question_is(turned: App) -> None:
    session = turned(doc=3, **{"from": 7})
    session.segmented_control(key="show").set_value("Wrong").run()
    assert "from" not in session.query_params and UNLISTED not in said(session)
    assert listed(session)["doc_id"].tolist() == [0, 3]


# --- search ---------------------------------------------------------------------------------------------------


def test_a_text_or_an_expression_chooses_the_questions(asked: App) -> None:
    whole = listed(asked(task="asked_sums"))
    assert len(whole) == 3
    assert listed(asked(task="asked_sums", find="i DO not"))["doc_id"].tolist() == [2]
    assert sorted(listed(asked(task="asked_sums", find=r"/#### \d$/"))["doc_id"]) == [0, 1]
    session = asked(task="asked_sums", find="nothing has this")
    assert not session.exception and "No sample matches" in said(session)
    session = asked(task="asked_sums", find="/(/")
    assert not session.exception and "is not a regular expression" in said(session)
    assert "is not a regular expression" not in said(asked(task="asked_sums", find="("))


def test_letters_are_shown_with_their_texts() -> None:
    def sample(prompt: str, *choices: str) -> runs.Sample:
        return runs.Sample("r", "t", 0, prompt, "", "", "", None, None, choices=choices)

    question = "Example?\nA. no\nB. yes\nAnswer: A\n\nWhich?\nA. first one\nB. $2 < 3\nAnswer:"
    assert samples.choice_texts(sample(question, " A", " B")) == ["first one", "$2 < 3"]
    assert samples.choice_texts(sample(question, " A", " B", " C")) == []
    assert samples.choice_texts(sample("What is it?", " a word", " another")) == []
