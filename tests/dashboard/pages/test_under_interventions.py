"""Pages that show a changed model: interventions of a sample's run, or of the URL."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from streamlit.testing.v1 import AppTest

import workbench as wb
from dashboard.session import captures
from dashboard.session.settings import ROOT
from tests.dashboard.page_text import WRITTEN_TO, numbers, read_table, read_tables
from workbench.hooks.interventions import Ablate, to_json
from workbench.model import Transformer

App = Callable[..., AppTest]
CHANGE = Ablate("L1H2")
DOC, PROMPT, WRITTEN = 2, [65, 66, 67], [68, 69, 70, 71]  # of the results' sums


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Transformer:
    return wb.load_model(checkpoint).eval().requires_grad_(False)


@pytest.fixture
def ablated(serve: Callable[[str, Path], None], checkpoint: Path, results: Path, tmp_path: Path) -> App:
    """Pages with a sample from a run in which a head was ablated."""
    root = shutil.copytree(results / "first", tmp_path / "results" / "first").parent
    path = next(root.rglob("results_*.json"))
    data = json.loads(path.read_text())
    data["workbench"]["interventions"] = json.loads(to_json([CHANGE]))
    path.write_text(json.dumps(data))

    def open_page(page: str, **params: object) -> AppTest:
        serve(str(checkpoint), root)
        session = AppTest.from_file(str(ROOT / "app.py"), default_timeout=60)
        address = {"sample": f"first/{path.stem.removeprefix('results_')}/tiny_sums/{DOC}", **params}
        session.query_params.update({name: str(value) for name, value in address.items()})
        session.run()
        if page != "overview":
            session.switch_page(f"dashboard/pages/{page}.py").run()
        assert not session.exception and not session.error
        assert any("with ablate L1H2" in text.value for text in session.text)
        return session

    return open_page


def pasted(session: AppTest) -> dict[str, object]:
    scope: dict[str, object] = {}
    exec(next(code.value for code in session.code if code.language == "python"), scope)
    return scope


def test_overviews_next_tokens_are_the_changed_models(ablated: App, model: Transformer) -> None:
    session = ablated("overview")
    table = read_table(session, "probability")
    tokens = torch.tensor([PROMPT + WRITTEN])
    with torch.no_grad():
        plain = model(tokens)[0, -1].softmax(-1)
        with model.intervene(CHANGE):
            changed = model(tokens)[0, -1].softmax(-1)
    shown = table["probability"].to_numpy()
    np.testing.assert_allclose(shown, changed[table["id"].tolist()], atol=WRITTEN_TO)
    assert not np.allclose(shown, plain[table["id"].tolist()], rtol=1e-2)
    np.testing.assert_allclose(pasted(session)["probability"].topk(8).values, shown, atol=WRITTEN_TO)  # type: ignore[attr-defined]


def test_a_saved_capture_is_the_changed_models(
    ablated: App, model: Transformer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("dashboard.session.captures.folder", lambda: tmp_path / "kept")
    session = ablated("overview")
    session.text_input(key="capture_name").set_value("without")
    session.button(key="save_capture").click().run()
    assert not session.error
    stored = captures.find("without")
    assert [json.loads(change) for change in stored.interventions] == json.loads(to_json([CHANGE]))
    assert not captures.load(stored, torch.device("cpu"))["blocks.1.attn.hook_z"][0, :, 2].any()


def test_a_text_is_written_by_the_changed_model(ablated: App, model: Transformer) -> None:
    session = ablated("generate", temperature=0, new=12)
    session.button(key="generate").click().run()
    assert not session.exception and not session.error
    (plain,) = wb.generate(model, [PROMPT], max_new_tokens=12)
    with model.intervene(CHANGE):
        (changed,) = wb.generate(model, [PROMPT], max_new_tokens=12)
    shown = read_table(session, "logprob")
    assert shown["token"].tolist() == list(changed.tokens)
    np.testing.assert_allclose(shown["logprob"], changed.logprobs, atol=1e-5)
    assert not np.allclose(shown["logprob"][0], plain.logprobs[0], atol=1e-3)
    scope = pasted(session)
    assert scope["trace"].tokens == changed.tokens  # type: ignore[attr-defined]


def test_the_attention_of_a_step_is_the_changed_models(ablated: App, model: Transformer) -> None:
    session = ablated("generate", temperature=0, new=12, layer=2, head=5, step=4)
    session.button(key="generate").click().run()
    session.slider(key="step").set_value(4).run()
    tokens = read_table(session, "logprob")["token"].tolist()
    shown = read_table(session, "weight")
    ids = torch.tensor([[*PROMPT, *tokens[:3]]])
    rows = []
    for changes in ((), (CHANGE,)):
        with torch.no_grad(), model.intervene(*changes):
            _, cap = model.run_with_capture(ids, ["blocks.2.attn.hook_pattern"], materialize=True)
        rows.append(cap["blocks.2.attn.hook_pattern"][0, 5, -1].numpy())
    np.testing.assert_allclose(shown["weight"], rows[1][shown["key"]], atol=WRITTEN_TO)
    assert not np.allclose(shown["weight"], rows[0][shown["key"]], atol=1e-3)


def test_a_capture_is_continued_from_its_end(
    app: App, model: Transformer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("dashboard.session.captures.folder", lambda: tmp_path / "kept")
    with torch.no_grad(), model.intervene(CHANGE):
        _, cap = model.run_with_capture(torch.tensor([PROMPT]), captures.HOOKS)
        (changed,) = wb.generate(model, [PROMPT], max_new_tokens=4)
    assert model.source is not None
    captures.save(cap, "mine", checkpoint=model.source.checkpoint_sha256)
    session = app("generate", capture="mine", temperature=0, new=4)
    session.button(key="generate").click().run()
    assert not session.exception and not session.error
    shown = read_table(session, "logprob")
    assert shown["token"].tolist() == list(changed.tokens)


# --- changes in the address -----------------------------------------------------------------------------------

TYPED = "the cat sat on the mat"
VIEWS = [
    ("attention", {"layer": 2, "head": 5}),
    ("rope", {"view": "This head", "layer": 2, "head": 5}),
    ("norms", {"look": "Contributions"}),
    ("lens", {}),
    ("neurons", {"layer": 2}),
    ("overview", {}),
]


@pytest.mark.parametrize(("page", "view"), VIEWS)
def test_a_page_looks_at_the_model_as_its_address_changes_it(app: App, page: str, view: dict[str, object]) -> None:
    plain = app(page, prompt=TYPED, **view)
    changed = app(page, prompt=TYPED, under=to_json([CHANGE]), **view)
    for session in (plain, changed):
        assert not session.exception and not session.error
    assert any(text.value == "The model is changed: ablate L1H2." for text in changed.text)
    assert not any("is changed" in text.value for text in plain.text)
    assert shown(plain) != shown(changed)
    assert "model.intervene(*from_json(" in next(code.value for code in changed.code if code.language == "python")
    changed.button(key="unchange").click().run()
    assert not changed.exception and "under" not in changed.query_params
    assert shown(changed) == shown(plain)


def shown(session: AppTest) -> list[str]:
    tables = [table.to_csv() for table in read_tables(session) if "size" not in table]
    return [*numbers(session).values(), *tables]


def test_attention_under_changes_has_the_changed_models_patterns(app: App, model: Transformer) -> None:
    session = app("attention", prompt=TYPED, under=to_json([CHANGE]), layer=2, head=5)
    assert model.tokenizer is not None
    with torch.no_grad(), model.intervene(CHANGE):
        tokens = torch.tensor([model.tokenizer.encode(TYPED, bos=True)])
        _, cap = model.run_with_capture(tokens, ["blocks.2.attn.hook_pattern"], materialize=True)
    _, drawn = session.session_state["_figures"]["head_map"]
    np.testing.assert_allclose(
        np.nan_to_num(drawn().data[0].z), cap["blocks.2.attn.hook_pattern"][0, 5].numpy(), atol=1e-5
    )


def test_a_change_stands_in_the_address_alone(app: App) -> None:
    session = app("intervene", prompt=TYPED, changes=to_json([CHANGE]))
    links = {link.proto.label: link.proto for link in session.get("page_link")}
    for name in ("Attention", "RoPE", "Norms", "Lens", "Neurons", "Generate"):
        assert "under=" in links[f"{name} →"].query_string, name
    session.query_params.clear()
    session.switch_page("dashboard/pages/norms.py").run()
    assert not any("is changed" in text.value for text in session.text)


@pytest.mark.parametrize("changes", ["[{}]", "x", '[{"kind": "ablate", "target": "L99H0"}]'])
def test_changes_that_do_not_fit_can_be_taken_off(app: App, changes: str) -> None:
    session = app("norms", prompt=TYPED, under=changes)
    assert not session.exception and "do not fit this model" in session.error[0].value
    session.button(key="unchange").click().run()
    assert not session.exception and not session.error and read_tables(session)


def test_a_prompts_text_is_written_by_the_changed_model(app: App, model: Transformer) -> None:
    session = app("generate", prompt=TYPED, under=to_json([CHANGE]), temperature=0, new=6)
    session.button(key="generate").click().run()
    assert not session.exception and not session.error
    with model.intervene(CHANGE):
        (changed,) = wb.generate(model, [TYPED], max_new_tokens=6)
    shown = read_table(session, "logprob")
    assert shown["token"].tolist() == list(changed.tokens)
    np.testing.assert_allclose(shown["logprob"], changed.logprobs, atol=1e-5)


# --- runs of a changed model ----------------------------------------------------------------------------------


@pytest.fixture
def changed_run(serve: Callable[[str, Path], None], checkpoint: Path, results: Path, tmp_path: Path) -> str:
    """The name of a run with an ablated head, newer than the plain runs next to it."""
    root = shutil.copytree(results, tmp_path / "results")
    shutil.copytree(root / "second", root / "third")
    path = next((root / "third").rglob("results_*.json"))
    data = json.loads(path.read_text())
    data["workbench"]["interventions"] = json.loads(to_json([CHANGE]))
    data["date"] += 1_000
    path.write_text(json.dumps(data))
    os.utime(path)
    serve(str(checkpoint), root)
    return f"third/{path.stem.removeprefix('results_')}"


def opened(page: str, **params: str) -> AppTest:
    session = AppTest.from_file(str(ROOT / "app.py"), default_timeout=60).run()
    session.switch_page(f"dashboard/pages/{page}.py")
    session.query_params.clear()
    session.query_params.update(params)
    session.run()
    assert not session.exception
    return session


@pytest.mark.parametrize("page", ["benchmarks", "samples"])
def test_a_plain_run_is_the_default_and_a_changed_one_wears_its_change(changed_run: str, page: str) -> None:
    session = opened(page)
    selector = session.selectbox(key="run")
    assert selector.value != changed_run
    assert [option for option in selector.options if option.endswith(" · ablate L1H2")] == [
        f"{changed_run} · ablate L1H2"
    ]
    assert not any("Changed model" in element.value for element in session.markdown)
    session = opened(page, run=changed_run)
    assert session.selectbox(key="run").value == changed_run
    assert any("Changed model" in element.value for element in session.markdown)
    assert "ablate L1H2" in [text.value for text in session.text]


def test_the_sides_of_a_comparison_of_runs_wear_their_change(changed_run: str) -> None:
    session = opened("compare", compare="Runs")
    assert changed_run not in (session.selectbox(key="a_run").value, session.selectbox(key="b_run").value)
    session = opened("compare", compare="Runs", b_run=changed_run)
    assert any("B: changed model" in element.value for element in session.markdown)
    assert any("ablate L1H2" in text.value for text in session.text)
