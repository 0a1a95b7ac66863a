"""Values stored in the URL and in the session, and the report of URL values that are not available."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from dashboard.panels.prompt_input import DEFAULT_PROMPT, default_ids
from dashboard.session import models, url_values
from dashboard.session.settings import ROOT, Settings
from evals.results.runs import list_runs
from tests.dashboard.world import write_checkpoint

App = Callable[..., AppTest]


def misread(session: AppTest) -> list[str]:
    """The lines of the page's report of URL values that are not available."""
    reports = [code.value for code in session.code if " is not available here; showing " in code.value]
    return "\n".join(reports).splitlines()


def reloaded(session: AppTest, page: str) -> AppTest:
    """The same URL in a new session."""
    fresh = AppTest.from_file(str(ROOT / "app.py"), default_timeout=60)
    fresh.run()
    fresh.switch_page(f"dashboard/pages/{page}.py")
    fresh.query_params.clear()
    fresh.query_params.update(session.query_params)
    return fresh.run()


# --- defaults that depend on data stay in the URL --------------------------------------------------------------


@pytest.mark.parametrize(
    ("page", "keys"),
    [
        ("benchmarks", ("run", "baseline", "task")),
        ("samples", ("run", "baseline", "task")),
        ("compare", ("b_run", "a_run")),
    ],
)
def test_a_run_that_was_the_newest_is_still_the_one_after_another(
    serve: Callable[[str, Path], None], app: App, checkpoint: Path, results: Path, tmp_path: Path, page: str,
    keys: tuple[str, ...],
) -> None:  # fmt: skip
    folder = shutil.copytree(results, tmp_path / "kept")
    serve(str(checkpoint), folder)
    session = app(page, compare="Runs")
    serve(str(checkpoint), folder)
    session.run()
    shown = {key: session.selectbox(key=key).value for key in keys}
    assert shown[keys[0]] == list_runs(folder)[0].name
    newest = shutil.copytree(folder / "first", folder / "third")
    for path in newest.glob("*_2*.json*"):
        path.rename(path.with_name(path.name.replace("_2", "_9")))
    assert list_runs(folder)[0].name.startswith("third")
    again = reloaded(session, page)
    assert not again.exception and not misread(again)
    assert {key: again.selectbox(key=key).value for key in keys} == shown


def test_another_run_takes_its_task_without_a_word_and_a_link_does_not(app: App, results: Path) -> None:
    session = app("samples", task="tiny_sums")
    assert session.selectbox(key="task").value == "tiny_sums" and not misread(session)
    other = next(run.name for run in list_runs(results) if run.name != session.selectbox(key="run").value)
    session.selectbox(key="baseline").set_value(other).run()
    session.selectbox(key="run").set_value(other).run()
    assert session.selectbox(key="baseline").value == "none" and session.selectbox(key="task").value == "tiny_sums"
    assert not misread(session) and not session.exception
    linked = app("samples", run=other, baseline=other)
    assert misread(linked) == [f"baseline={other} is not available here; showing none."]


# --- defaults are not remembered ------------------------------------------------------------------------------


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch, checkpoint: Path, tmp_path: Path, app: App) -> tuple[str, str, str]:
    """The ids of three models on one server: a first one, one with another rope_theta, one without a tokenizer."""
    other = write_checkpoint(tmp_path / "other", layers=6)
    (other / "params.json").write_text(
        json.dumps(json.loads((other / "params.json").read_text()) | {"rope_theta": 500_000.0})
    )
    wordless = shutil.copytree(checkpoint, tmp_path / "wordless")
    (wordless / "tokenizer.model").unlink()
    settings = Settings(str(checkpoint), tmp_path, (str(other), str(wordless)))
    for name, value in settings.to_env().items():
        monkeypatch.setenv(name, value)
    first, second, third = models.served()
    return first.id, second.id, third.id


def test_another_model_has_its_own_theta_as_trained(three: tuple[str, str, str], app: App) -> None:
    session = app_of("rope")
    assert session.number_input(key="theta").value == 10_000
    session.selectbox(key="model").set_value(three[1]).run()
    assert session.number_input(key="theta").value == 500_000 and "theta" not in session.query_params
    session.number_input(key="theta").set_value(2000.0).run()
    session.switch_page("dashboard/pages/norms.py").run()
    session.selectbox(key="model").set_value(three[0]).run()
    session.switch_page("dashboard/pages/rope.py").run()
    assert session.number_input(key="theta").value == 2000  # this one was chosen
    session.number_input(key="theta").set_value(10_000.0).run()
    session.switch_page("dashboard/pages/norms.py").run()
    session.selectbox(key="model").set_value(three[1]).run()
    session.switch_page("dashboard/pages/rope.py").run()
    assert session.number_input(key="theta").value == 500_000


def test_another_model_has_its_own_prompt_and_head_where_none_was_chosen(three: tuple[str, str, str]) -> None:
    session = app_of("attention")
    first = [session.number_input(key=key).value for key in ("layer", "head")]
    session.selectbox(key="model").set_value(three[1]).run()
    second = [session.number_input(key=key).value for key in ("layer", "head")]
    assert second == [app_of("attention", model=three[1]).number_input(key=key).value for key in ("layer", "head")]
    assert first != second
    session.selectbox(key="model").set_value(three[2]).run()
    assert not session.error and session.text_area(key="prompt").value == default_ids(562)
    session.selectbox(key="model").set_value(three[0]).run()
    assert session.text_area(key="prompt").value == DEFAULT_PROMPT
    head = min({*range(8)} - {first[1], second[1]})
    session.number_input(key="head").set_value(head).run()
    session.selectbox(key="model").set_value(three[1]).run()
    assert session.number_input(key="head").value == head  # this one was chosen


def test_a_choice_that_is_another_pages_default_comes_back(app: App) -> None:
    session = app("attention", layer=3)
    session.number_input(key="layer").set_value(0).run()
    session.switch_page("dashboard/pages/neurons.py").run()
    assert session.number_input(key="layer").value == 0  # its default
    session.switch_page("dashboard/pages/attention.py").run()
    assert session.number_input(key="layer").value == 0


def app_of(page: str, **parameters: str) -> AppTest:
    session = AppTest.from_file(str(ROOT / "app.py"), default_timeout=60)
    session.query_params.update(parameters)
    session.run()
    session.switch_page(f"dashboard/pages/{page}.py")
    session.query_params.update(parameters)
    return session.run()


# --- values that are not available ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("page", "parameters", "message"),
    [
        ("rope", {"theta": "-5"}, "theta=-5 is not available here; showing 10000."),
        ("rope", {"theta": "abc"}, "theta=abc is not available here; showing 10000."),
        ("rope", {"theta": "nan"}, "theta=nan is not available here; showing 10000."),
        ("rope", {"scaling": "Nonsense"}, "scaling=Nonsense is not available here; showing As trained."),
        ("rope", {"view": "Bogus"}, "view=Bogus is not available here; showing Wavelengths."),
        ("rope", {"view": "This head", "layer": "99"}, "layer=99 is not available here; showing 0."),
        ("rope", {"view": "This head", "distance": "99999", "prompt": "a"}, "distance=99999 is not available here; "),
        ("attention", {"colour": "Bogus"}, "colour=Bogus is not available here; showing Entropy."),
        ("attention", {"head": "x" * 99}, f"head={'x' * 60}… is not available here; showing "),
        ("attention", {"token": "999"}, "token=999 is not available here; showing "),
        ("attention", {"log": "maybe"}, "log=maybe is not available here; showing false."),
        ("lens", {"position": "999"}, "position=999 is not available here; showing "),
        ("lens", {"chosen": "L99H0"}, "chosen=L99H0 is not available here; showing L"),
        ("generate", {"temperature": "-1"}, "temperature=-1 is not available here; showing 0.8."),
        ("generate", {"new": "999999"}, "new=999999 is not available here; showing 64."),
        ("benchmarks", {"task": "nope"}, "task=nope is not available here; showing tiny_quiz."),
        ("benchmarks", {"published": "Llama"}, "published=Llama is not available here; showing none."),
        ("compare", {"compare": "Runs", "a_run": "gone"}, "a_run=gone is not available here; showing "),
    ],
)
def test_what_an_address_asks_for_in_vain_is_said(
    app: App, page: str, parameters: dict[str, str], message: str
) -> None:
    session = app(page, **parameters)
    assert not session.exception
    assert len(misread(session)) == 1 and misread(session)[0].startswith(message), misread(session)
    assert misread(session.run())  # until the page is left, or the control says something else
    session.switch_page("dashboard/pages/overview.py").run()
    assert not misread(session)


def test_a_control_that_is_moved_ends_what_is_said_of_it(app: App) -> None:
    session = app("attention", layer=99, head=77)
    assert [line.partition("=")[0] for line in misread(session)] == ["layer", "head"]
    session.number_input(key="layer").set_value(1).run()
    assert [line.partition("=")[0] for line in misread(session)] in (["head"], [])


@pytest.mark.parametrize(
    ("page", "parameters"),
    [
        ("attention", {"layer": 3, "head": "7.0", "log": "TRUE", "token": 2, "prompt": "the cat sat\non a mat"}),
        ("rope", {"theta": "1e4", "scaling": "Unscaled", "view": "What if"}),
        ("lens", {"position": 2, "targets": "a b"}),
        ("runs", {"limit": "", "tasks": "demo_gsm8k"}),
        ("samples", {"task": "tiny_sums", "doc": "first", "show": "Wrong"}),
    ],
)
def test_nothing_is_said_of_what_an_address_has_right(app: App, page: str, parameters: dict[str, object]) -> None:
    assert not misread(app(page, **parameters))


def test_a_value_means_what_it_shows() -> None:
    assert url_values.matches(["a", "", "b"], ["a", "b"]) and not url_values.matches(["a", "x"], ["a"])
    assert url_values.matches([""], None) and not url_values.matches(["x"], None)
    assert not url_values.matches(["3.5"], 3) and url_values.matches(["3.0"], 3)


# --- how much it holds ----------------------------------------------------------------------------------------


def too_long(session: AppTest) -> list[str]:
    return [warning.value for warning in session.warning if "too long for the URL" in warning.value]


def written(session: AppTest, key: str) -> bool:
    """Whether the browser stores a text in the URL."""
    return bool(session.text_area(key=key).proto.query_param_key)


def test_a_prompt_that_no_address_holds_is_used_and_said_so(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(url_values, "MAX_BYTES", 3000)
    session = app("compare", b_of="Another prompt")
    session.text_area(key="prompt").set_value("漢" * 200).run()
    assert not too_long(session) and written(session, "prompt")  # of nine bytes each
    session.text_area(key="b_prompt").set_value("漢" * 200).run()  # each would fit, but not both
    assert [line.partition(" is ")[0] for line in too_long(session)] == ["B's prompt"]
    assert written(session, "prompt") and not written(session, "b_prompt")
    assert not session.exception and not session.error
    session.text_area(key="prompt").set_value("漢" * 400).run()
    assert too_long(session)[0].startswith("Prompt is ") and not written(session, "prompt")
    session.switch_page("dashboard/pages/neurons.py").run()
    assert session.text_area(key="prompt").value == "漢" * 400 and len(too_long(session)) == 1
    session.text_area(key="prompt").set_value("漢" * 20).run()
    assert not too_long(session) and session.query_params["prompt"] == "漢" * 20


def test_a_conversation_ends_where_the_address_is_full(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    turns = json.dumps([["user", "漢" * 50], ["assistant", "b"]], ensure_ascii=False)
    for most, fits in ((3000, True), (600, False)):
        session = app("generate", mode="Chat", turns=turns, prompt="the cat", temperature=0, new=3)
        monkeypatch.setattr(url_values, "MAX_BYTES", most)
        session.button(key="generate").click().run()
        assert not session.exception
        assert any(button.label == "Continue the conversation" for button in session.button) == fits
