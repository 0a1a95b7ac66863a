"""User mistakes: edited URLs, a model without a tokenizer or with NaN weights, deleted runs. No page shows a traceback;
each shows a message."""

import ast
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from streamlit.testing.v1 import AppTest

from dashboard.session import captures
from dashboard.session.settings import ROOT
from evals.results.runs import list_runs
from tests.dashboard.world import NASTY
from workbench.checkpoint import load_model
from workbench.errors import WorkbenchWarning
from workbench.hooks.interventions import Ablate, Scale, to_json

App = Callable[..., AppTest]

DEEP, LONG = "[" * 3000, "9" * 5000  # what Python itself refuses to read, or to make a number of
NONSENSE = (
    *("", "x", "-7", "99999999999", "1e309", "nan", "[]", "[{}]", '{"a": 1}', "../../etc", "\x00", NASTY),
    *(DEEP, LONG),
)
PAGES = sorted(path.stem for path in (ROOT / "dashboard/pages").glob("*.py"))
OF_A_PROMPT = sorted({*PAGES} - {"benchmarks", "samples", "runs"})
EARLY = {"sample", "capture", "run", "a_run", "b_run", "changes", "a_changes", "prompt", "b_prompt", "b_capture",
         "targets", "model", "turns", "job"}  # fmt: skip
"""Parameters whose invalid value ends a page: left out the second time, so that the rest of the page is drawn."""


def parameters() -> set[str]:
    """Every URL parameter of the pages, from their source."""
    names = set()
    for path in (ROOT / "dashboard").rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text())):
            if not isinstance(call, ast.Call):
                continue
            if ast.unparse(call.func) in ("url_state.url_widget", "url_state.url_selectbox"):
                keys = [keyword.value for keyword in call.keywords if keyword.arg == "key"]
            elif ast.unparse(call.func) in ("url_state.url_param", "url_param"):
                keys = call.args[:1]
            elif ast.unparse(call.func) == "head_inputs":
                names |= {"layer", "head"}
                keys = [name for keyword in call.keywords if keyword.arg == "keys" for name in keyword.value.elts]
            else:
                continue
            for key in keys:
                if isinstance(key, ast.Subscript):  # in `head_inputs` itself
                    continue
                names |= {key.value} if isinstance(key, ast.Constant) else {"a_dtype", "b_dtype"}
    return names


def test_parameters_are_found_in_the_source() -> None:
    assert len(parameters()) > 60
    assert {"layer", "sample", "capture", "topk", "b_capture", "a_dtype", "job", "guide", "model"} <= parameters()


@pytest.mark.parametrize("value", NONSENSE, ids=lambda value: value[:12])
@pytest.mark.parametrize("page", PAGES)
def test_an_edited_address_is_no_traceback(app: App, page: str, value: str) -> None:
    for names in (parameters(), parameters() - EARLY):
        session = app(page, **dict.fromkeys(names, value))
        assert not session.exception, session.exception[0].message
        assert not [error for error in session.error if "Traceback" in error.value or "\n" in error.value]


def test_a_prompt_beyond_the_limit_says_so(app: App) -> None:
    session = app("attention", prompt="the cat sat on the mat")
    session.text_area(key="prompt").set_value("the cat " * 13_000).run()
    assert not session.exception
    assert "The prompt has 104,000 characters; the limit is 100,000" in session.code[0].value
    session.text_area(key="prompt").set_value("the cat " * 5_000).run()
    assert "tokens, but at most" in session.code[0].value


@pytest.fixture
def wordless(checkpoint: Path, tmp_path: Path) -> Path:
    """The checkpoint without its tokenizer."""
    folder = tmp_path / "wordless"
    shutil.copytree(checkpoint, folder)
    (folder / "tokenizer.model").unlink()
    return folder


def test_overview_gives_the_reason_why_a_tokenizer_is_not_used(
    serve: Callable[[str, Path], None], app: App, checkpoint: Path, results: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(checkpoint, folder)
    (folder / "tokenizer.model").write_bytes(b"not a tokenizer")
    serve(str(folder), results)
    with pytest.warns(WorkbenchWarning, match="tokenizer"):
        session = app()
    assert not session.exception
    assert any("tokenizer.model" in text.value for text in session.text)


@pytest.mark.parametrize("page", PAGES)
def test_a_model_without_a_tokenizer_is_looked_at_by_its_ids(
    serve: Callable[[str, Path], None], app: App, results: Path, wordless: Path, page: str
) -> None:
    serve(str(wordless), results)
    session = app(page, prompt="5 6 7 8 5 6 7 8")
    assert not session.exception
    assert not session.error or page == "samples"  # which explains a sample with the run's own model
    if page in OF_A_PROMPT:
        assert session.text_area(key="prompt").label == "Token ids"
        words = app(page, prompt="the cat sat")
        assert not words.exception
        messages = [error.value for error in words.error] + [code.value for code in words.code]
        assert any("whole numbers, separated by spaces" in line for line in messages)
        for ids, complaint in {
            f"1 {'9' * 30}": "9 is not in the vocabulary",
            "1 -2": "-2 is not",
            LONG: "whole numbers",
        }.items():
            outside = app(page, prompt=ids)
            assert not outside.exception, outside.exception[0].message
            assert any(complaint in code.value for code in outside.code), (page, ids[:20])
            other = app("compare", prompt="5 6", b_of="Another prompt", b_prompt=ids)
            assert not other.exception and any(complaint in code.value for code in other.code)


@pytest.mark.parametrize("page", ["rope", "norms", "attention", "lens", "neurons", "intervene", "compare"])
def test_numbers_that_overflowed_are_shown_with_a_banner(
    app: App, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: str
) -> None:
    """A prompt's capture under an intervention that overflows float32 in the residual stream."""
    monkeypatch.setattr("dashboard.session.captures.folder", lambda: tmp_path)
    model = load_model(checkpoint)
    assert model.tokenizer is not None and model.source is not None
    ids = torch.tensor([model.tokenizer.encode("The cat sat on the mat", bos=True)])
    with torch.no_grad(), model.intervene(Scale("blocks.1.hook_resid_post", float("inf"))):
        logits, cap = model.run_with_capture(ids, captures.HOOKS)
    assert not logits.isfinite().all()
    captures.save(cap, "overflowed", checkpoint=model.source.checkpoint_sha256)
    change = {"changes": to_json([Ablate("L2H1")])} if page == "compare" else {}
    session = app(page, capture="overflowed", view="This head", layer=3, **change)
    assert not session.exception, session.exception[0].message
    assert any("NaN or infinite" in error.value for error in session.error), page


@pytest.mark.parametrize("page", ["benchmarks", "samples", "compare"])
def test_a_run_deleted_while_its_page_is_open_says_so(
    serve: Callable[[str, Path], None], app: App, checkpoint: Path, results: Path, tmp_path: Path, page: str
) -> None:
    backup = tmp_path / "kept"
    shutil.copytree(results, backup)
    serve(str(checkpoint), backup)
    names = {run.name.split("/")[0]: run.name for run in list_runs(backup)}
    first, second = names["first"], names["second"]
    chosen = {"run": first, "baseline": second, "a_run": first, "b_run": second, "compare": "Runs"}
    session = app(page, **chosen)
    assert not session.exception
    gone, alone = f"run={first} is not available here", "A comparison needs two finished runs"
    assert not any(gone in code.value for code in session.code)
    shutil.rmtree(backup / "first")
    session.run()
    assert not session.exception
    lines = [line.value for line in (*session.code, *session.info)]
    assert any((alone if page == "compare" else gone) in line for line in lines), lines
