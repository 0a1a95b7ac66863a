"""The Generate page: the text is generation's own, a session's own, and its attention is that of a full run."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from streamlit.testing.v1 import AppTest

import workbench as wb
from dashboard import generation, step
from probes.attention import HOOKS, head_metrics
from probes.sampled import sampled
from workbench.model import Transformer
from workbench.sampling import Sampling

App = Callable[..., AppTest]
PROMPT = "the cat sat on the mat"
SETTINGS = {"prompt": PROMPT, "temperature": 0.9, "topk": 50, "topp": 0.95, "seed": 5, "new": 12}


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Transformer:
    return wb.load_model(checkpoint).eval().requires_grad_(False)


@pytest.fixture
def pressed(app: App) -> Callable[..., AppTest]:
    """The page at an address, with Generate pressed."""

    def press(**params: object) -> AppTest:
        session = app("generate", **(params or SETTINGS))
        return session.button(key="generate").click().run()

    return press


def encode(model: Transformer, text: str) -> list[int]:
    assert model.tokenizer is not None
    return model.tokenizer.encode(text, bos=True)


def table(session: AppTest, *columns: str):  # type: ignore[no-untyped-def]
    return next(frame.value for frame in session.dataframe if set(columns) <= set(frame.value.columns))


def text_of(session: AppTest) -> str:
    return next(code.value for code in session.code if code.language is None or code.language == "plaintext")


def notebook(session: AppTest) -> str:
    return next(code.value for code in session.code if code.language == "python")


def test_nothing_is_generated_before_the_press(app: App) -> None:
    session = app("generate", **SETTINGS)
    assert not session.exception and "Press Generate" in session.info[0].value
    assert not session.dataframe and "written" not in session.query_params


def test_the_text_is_what_generation_gives(pressed: Callable[..., AppTest], model: Transformer) -> None:
    session = pressed()
    (expected,) = wb.generate(
        model, [PROMPT], max_new_tokens=12, temperature=0.9, top_k=50, top_p=0.95, seed=5
    )  # fmt: skip
    shown = table(session, "probability", "drawn_probability")
    assert shown["token"].tolist() == list(expected.tokens) and shown["step"].tolist() == list(range(1, 13))
    np.testing.assert_array_equal(shown["logprob"], expected.logprobs)
    np.testing.assert_allclose(shown["probability"], np.exp(expected.logprobs))
    assert not session.exception and not session.error
    assert "12 tokens, the first after" in " ".join(caption.value for caption in session.caption)


def test_a_link_writes_the_text_again(app: App, pressed: Callable[..., AppTest]) -> None:
    first = pressed()
    assert first.query_params["written"] == "1"
    again = app("generate", **SETTINGS, written=1)
    columns = ["token", "logprob", "rank", "entropy", "drawn_probability"]
    first_table, second_table = (table(session, *columns)[columns] for session in (first, again))
    assert first_table.equals(second_table)


def test_a_large_model_waits_for_the_press(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[object] = []
    monkeypatch.setattr(generation, "write", lambda *args: written.append(args))
    monkeypatch.setattr(torch.nn.Parameter, "numel", lambda self: 10**9)
    session = app("generate", **SETTINGS, written=1)
    assert not session.exception and not written and "Press Generate" in session.info[0].value


def test_the_notebook_code_gives_the_same_text_and_numbers(pressed: Callable[..., AppTest]) -> None:
    session = pressed()
    session.slider(key="step").set_value(4).run()
    scope: dict[str, object] = {}
    exec(compile(notebook(session), "generate", "exec"), scope)
    shown, found = table(session, "probability", "drawn_probability"), scope["found"]
    for column in ("token", "probability", "logprob", "rank", "entropy", "drawn_probability", "kept"):
        assert shown[column].tolist() == found.frame()[column].tolist(), column  # type: ignore[attr-defined]
    assert "[0, 0, 0, :" in notebook(session) and f"queries=[{len(scope['prompt']) + 2}]" in notebook(session)  # type: ignore[arg-type]


def test_the_attention_of_a_step_is_that_of_a_full_run(pressed: Callable[..., AppTest], model: Transformer) -> None:
    session = pressed(**SETTINGS, step=4, layer=2, head=5)
    shown = table(session, "key", "weight")
    tokens = [*encode(model, PROMPT), *table(session, "probability")["token"]]
    query = len(encode(model, PROMPT)) - 1 + 3
    # Up to the query alone, and not with the capture's lazy patterns: what the fourth step's query saw.
    with torch.no_grad():
        _, cap = model.run_with_capture(
            torch.tensor([tokens[: query + 1]]), ["blocks.2.attn.hook_pattern"], materialize=True
        )
    row = cap["blocks.2.attn.hook_pattern"][0, 5, query].numpy()
    order = np.argsort(-row)[:6]
    assert shown["key"].tolist() == order.tolist()
    np.testing.assert_allclose(shown["weight"], row[order], atol=1e-4)  # float32, other orders of sums
    assert session.slider(key="step").value == 4 and session.subheader[1].value == "Attention of step 4"
    assert session.subheader[2].value == f"Layer 2 · Head 5: where position {query} looks"


def test_the_atlas_of_a_step_is_that_of_the_cached_steps_themselves(model: Transformer) -> None:
    prompt = encode(model, PROMPT)
    found = sampled(model, prompt, Sampling(0.9), seed=5, max_new_tokens=6)
    held = step.run(model, found)
    cache = model.empty_cache(1, len(found.prompt) + 6)
    now = prompt
    for number in range(6):
        with torch.no_grad():
            _, cap = model.run_with_capture(torch.tensor([now]), HOOKS, cache=cache)
        at = step.query(found, number)
        for layer, whole in enumerate(head_metrics(held.capture, queries=[at]).values["entropy"]):
            pattern = cap.pattern(layer, queries=[at])[0, :, 0]
            np.testing.assert_allclose(whole, torch.special.entr(pattern).sum(-1), atol=1e-4)
        now = [found.tokens[number]]


def test_choosing_steps_and_heads_runs_nothing_again(
    pressed: Callable[..., AppTest], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = pressed()
    runs: list[int] = []
    plain = Transformer.hidden
    monkeypatch.setattr(Transformer, "hidden", lambda self, *args, **kw: (runs.append(1), plain(self, *args, **kw))[1])
    session.slider(key="step").set_value(7).run()
    session.number_input(key="head").set_value(3).run()
    session.segmented_control(key="by").set_value("Distance").run()
    assert not session.exception and runs == []


def test_another_session_sees_nothing_of_it(app: App, pressed: Callable[..., AppTest]) -> None:
    pressed()
    stranger = app("generate", prompt="the dog ran")
    assert not stranger.dataframe and "Press Generate" in stranger.info[0].value


def test_changed_settings_say_so_and_leave_the_text(pressed: Callable[..., AppTest]) -> None:
    session = pressed()
    before = table(session, "probability")["token"].tolist()
    session.number_input(key="seed").set_value(6).run()
    assert "other settings" in session.info[0].value and "written" not in session.query_params
    assert table(session, "probability")["token"].tolist() == before
    session.button(key="generate").click().run()
    assert not session.info and table(session, "probability")["token"].tolist() != before


def test_a_shorter_text_takes_the_step_with_it(pressed: Callable[..., AppTest]) -> None:
    session = pressed(**SETTINGS, step=12)
    session.number_input(key="new").set_value(3).run()
    session.button(key="generate").click().run()
    assert not session.exception and len(table(session, "probability")) == 3
    session.number_input(key="new").set_value(1).run()
    session.button(key="generate").click().run()
    assert not session.exception and not session.slider and len(table(session, "probability")) == 1


def test_what_was_broken_off_is_kept(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the Stop button does, from inside the call that draws."""
    session = app("generate", **SETTINGS)
    real = generation.choices

    def broken(*args, **options):  # type: ignore[no-untyped-def]
        for number, choice in enumerate(real(*args, **options)):
            if number == 3:
                import streamlit as st

                st.stop()
            yield choice

    monkeypatch.setattr(generation, "choices", broken)
    session.button(key="generate").click().run()
    monkeypatch.setattr(generation, "choices", real)
    session.run()
    assert len(table(session, "probability")) == 3 and "written" not in session.query_params
    assert "Stopped before its end" in " ".join(caption.value for caption in session.caption)
    scope: dict[str, object] = {}
    exec(compile(notebook(session), "generate", "exec"), scope)
    assert scope["found"].tokens == tuple(table(session, "probability")["token"])  # type: ignore[attr-defined]
