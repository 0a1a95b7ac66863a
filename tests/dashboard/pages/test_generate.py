"""The Generate page: the text equals that of `generate`, is private to a session, with the attention of a full run."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs

import numpy as np
import pandas as pd
import pytest
import torch
from streamlit.testing.v1 import AppTest

import workbench as wb
from dashboard.panels import chat_turns, generation_step, text_generation
from probes.attention.head_metrics import HOOKS, head_metrics
from probes.generation.token_choices import sampling_trace
from tests.dashboard.page_text import WRITTEN_TO, figures, read_table, read_tables
from tests.dashboard.world import NASTY, write_checkpoint
from workbench.checkpoint import convert
from workbench.inference.sampling import Sampling
from workbench.model import Transformer
from workbench.text.tokenizer import Tokenizer
from workbench.text.vocabulary_files import Vocabulary

App = Callable[..., AppTest]
PROMPT = "the cat sat on the mat"
SETTINGS = {"prompt": PROMPT, "temperature": 0.9, "topk": 50, "topp": 0.95, "seed": 5, "new": 12}


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Transformer:
    return wb.load_model(checkpoint).eval().requires_grad_(False)


@pytest.fixture
def pressed(app: App) -> Callable[..., AppTest]:
    """The page at a URL, with Generate pressed."""

    def press(**params: object) -> AppTest:
        session = app("generate", **(params or SETTINGS))
        return session.button(key="generate").click().run()

    return press


def encode(model: Transformer, text: str) -> list[int]:
    assert model.tokenizer is not None
    return model.tokenizer.encode(text, bos=True)


def table(session: AppTest, *columns: str):  # type: ignore[no-untyped-def]
    return read_table(session, *columns)


def text_of(session: AppTest) -> str:
    return next(code.value for code in session.code if code.language is None or code.language == "plaintext")


def notebook(session: AppTest) -> str:
    return next(code.value for code in session.code if code.language == "python")


def test_nothing_is_generated_before_the_press(app: App) -> None:
    session = app("generate", **SETTINGS)
    assert not session.exception and "Press Generate" in session.info[0].value
    assert not read_tables(session) and "written" not in session.query_params


def test_the_text_is_what_generation_gives(pressed: Callable[..., AppTest], model: Transformer) -> None:
    session = pressed()
    (expected,) = wb.generate(
        model, [PROMPT], max_new_tokens=12, temperature=0.9, top_k=50, top_p=0.95, seed=5
    )  # fmt: skip
    shown = read_table(session, "probability", "drawn_probability")
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
    first_table, second_table = (read_table(session, *columns)[columns] for session in (first, again))
    assert first_table.equals(second_table)


def test_a_large_model_waits_for_the_press(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[object] = []
    monkeypatch.setattr(text_generation, "write", lambda *args: written.append(args))
    monkeypatch.setattr(torch.nn.Parameter, "numel", lambda self: 10**9)
    session = app("generate", **SETTINGS, written=1)
    assert not session.exception and not written and "Press Generate" in session.info[0].value


def test_the_notebook_code_gives_the_same_text_and_numbers(pressed: Callable[..., AppTest]) -> None:
    session = pressed()
    session.slider(key="step").set_value(4).run()
    scope: dict[str, object] = {}
    exec(compile(notebook(session), "generate", "exec"), scope)
    shown, trace = read_table(session, "probability", "drawn_probability"), scope["trace"]
    for column in ("token", "probability", "logprob", "rank", "entropy", "drawn_probability", "kept"):
        assert shown[column].tolist() == trace.frame()[column].tolist(), column  # type: ignore[attr-defined]
    assert "[0, 0, 0, :" in notebook(session) and f"queries=[{len(scope['prompt']) + 2}]" in notebook(session)  # type: ignore[arg-type]


def test_the_attention_of_a_step_is_that_of_a_full_run(pressed: Callable[..., AppTest], model: Transformer) -> None:
    session = pressed(**SETTINGS, step=4, layer=2, head=5)
    shown = read_table(session, "key", "weight")
    tokens = [*encode(model, PROMPT), *read_table(session, "probability")["token"]]
    query = len(encode(model, PROMPT)) - 1 + 3
    # Up to the query alone, and not with the capture's lazy patterns: what the fourth step's query saw.
    with torch.no_grad():
        _, cap = model.run_with_capture(
            torch.tensor([tokens[: query + 1]]), ["blocks.2.attn.hook_pattern"], materialize=True
        )
    row = cap["blocks.2.attn.hook_pattern"][0, 5, query].numpy()
    order = np.argsort(-row)[:6]
    assert shown["key"].tolist() == order.tolist()
    np.testing.assert_allclose(shown["weight"], row[order], atol=WRITTEN_TO)
    assert session.slider(key="step").value == 4 and session.subheader[1].value == "Attention of step 4"
    assert session.subheader[2].value == f"Layer 2 · Head 5: where position {query} looks"
    assert figures(session) == (2, 0)


def test_the_atlas_of_a_step_is_that_of_the_cached_steps_themselves(model: Transformer) -> None:
    prompt = encode(model, PROMPT)
    trace = sampling_trace(model, prompt, Sampling(0.9), seed=5, max_new_tokens=6)
    capture = generation_step.capture_of(model, trace)
    cache = model.empty_cache(1, len(trace.prompt) + 6)
    now = prompt
    for number in range(6):
        with torch.no_grad():
            _, cap = model.run_with_capture(torch.tensor([now]), HOOKS, cache=cache)
        at = generation_step.query(trace, number)
        for layer, whole in enumerate(head_metrics(capture.capture, queries=[at]).values["entropy"]):
            pattern = cap.pattern(layer, queries=[at])[0, :, 0]
            np.testing.assert_allclose(whole, torch.special.entr(pattern).sum(-1), atol=1e-4)
        now = [trace.tokens[number]]


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
    assert not read_tables(stranger) and "Press Generate" in stranger.info[0].value


def test_changed_settings_say_so_and_leave_the_text(pressed: Callable[..., AppTest]) -> None:
    session = pressed()
    before = read_table(session, "probability")["token"].tolist()
    session.number_input(key="seed").set_value(6).run()
    assert "other settings" in session.info[0].value and "written" not in session.query_params
    assert read_table(session, "probability")["token"].tolist() == before
    session.button(key="generate").click().run()
    assert not session.info and read_table(session, "probability")["token"].tolist() != before


def test_a_shorter_text_takes_the_step_with_it(pressed: Callable[..., AppTest]) -> None:
    session = pressed(**SETTINGS, step=12)
    session.number_input(key="new").set_value(3).run()
    session.button(key="generate").click().run()
    assert not session.exception and len(read_table(session, "probability")) == 3
    session.number_input(key="new").set_value(1).run()
    session.button(key="generate").click().run()
    assert not session.exception and not session.slider and len(read_table(session, "probability")) == 1


def test_what_was_broken_off_is_kept(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop the script from inside the drawing call, like the Stop button."""
    session = app("generate", **SETTINGS)
    real = text_generation.choices

    def broken(*args, **options):  # type: ignore[no-untyped-def]
        for number, choice in enumerate(real(*args, **options)):
            if number == 3:
                import streamlit as st

                st.stop()
            yield choice

    monkeypatch.setattr(text_generation, "choices", broken)
    session.button(key="generate").click().run()
    monkeypatch.setattr(text_generation, "choices", real)
    session.run()
    assert len(read_table(session, "probability")) == 3 and "written" not in session.query_params
    assert "Generation was stopped" in " ".join(caption.value for caption in session.caption)
    scope: dict[str, object] = {}
    exec(compile(notebook(session), "generate", "exec"), scope)
    assert scope["trace"].tokens == tuple(read_table(session, "probability")["token"])  # type: ignore[attr-defined]


def links(session: AppTest) -> dict[str, dict[str, str]]:
    by_label = {link.proto.label: parse_qs(link.proto.query_string) for link in session.get("page_link")}
    return {label: {name: values[0] for name, values in query.items()} for label, query in by_label.items()}


@pytest.mark.parametrize("new", [4, 64])  # broken off by the limit, and ended by the model
def test_a_head_of_a_step_is_linked_where_the_text_is_the_very_tokens(
    serve: Callable[[str, Path], None], app: App, results: Path, new: int
) -> None:
    serve("demo", results)
    session = app("generate", temperature=0, new=new, layer=5, head=3)
    session.button(key="generate").click().run()
    demo = wb.load_model("demo")
    prompt = encode(demo, session.text_area(key="prompt").value)
    tokens = read_table(session, "probability")["token"].tolist()
    session.slider(key="step").set_value(2).run()
    by_label = links(session)
    query = by_label["L5H3 in Attention →"]
    assert encode(demo, query["prompt"])[: len(prompt) + len(tokens) - 1] == [*prompt, *tokens[:-1]]
    assert (query["layer"], query["head"], query["token"]) == ("5", "3", str(len(prompt)))
    assert json.loads(by_label["Without L5H3 in Intervene →"]["changes"]) == [{"kind": "ablate", "target": "L5H3"}]
    session.text_area(key="prompt").set_value("another").run()
    assert not links(session)


# --- chat -----------------------------------------------------------------------------------------------------


def test_chat_answers_in_the_models_format_and_goes_on(app: App, model: Transformer) -> None:
    session = app("generate", prompt="the cat", mode="Chat", system="the sun", temperature=0, new=5)
    session.button(key="generate").click().run()
    first = [wb.Message("system", "the sun"), wb.Message("user", "the cat")]
    assert model.tokenizer is not None
    (answer,) = wb.generate(model, [wb.encode_chat(model.tokenizer, first)], max_new_tokens=5)
    assert read_table(session, "probability")["token"].tolist() == list(answer.tokens)

    next(button for button in session.button if button.label.startswith("Continue")).click().run()
    assert not session.exception and not read_tables(session) and session.text_area(key="prompt").value == ""
    assert json.loads(session.query_params["turns"]) == [["user", "the cat"], ["assistant", answer.text]]
    session.text_area(key="prompt").set_value("the dog").run()
    session.button(key="generate").click().run()
    longer = [*first, wb.Message("assistant", answer.text or ""), wb.Message("user", "the dog")]
    (second,) = wb.generate(model, [wb.encode_chat(model.tokenizer, longer)], max_new_tokens=5)
    assert read_table(session, "probability")["token"].tolist() == list(second.tokens)
    scope: dict[str, object] = {}
    exec(compile(notebook(session), "generate", "exec"), scope)
    assert scope["trace"].tokens == second.tokens  # type: ignore[attr-defined]
    next(button for button in session.button if button.label == "New conversation").click().run()
    assert "turns" not in session.query_params


@pytest.mark.parametrize(
    "turns", ["[", "[1]", '[["user", "a"]]', '[["assistant", "a"], ["user", "b"]]', "[[1, 2]]", "[" * 3000]
)
def test_turns_that_cannot_be_read_say_what_to_do(app: App, turns: str) -> None:
    session = app("generate", mode="Chat", turns=turns)
    assert session.error[0].value == "The conversation in the URL cannot be read."
    next(button for button in session.button if button.label == "New conversation").click().run()
    assert not session.exception and not session.error


def test_chat_is_refused_with_the_reason(model: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert chat_turns.refusal(model.tokenizer) is None
    assert chat_turns.refusal(None) == "Chat needs a tokenizer, and this checkpoint has none."
    bare = Tokenizer.from_vocabulary(
        Vocabulary({bytes([byte]): byte for byte in range(256)}, {"<|begin_of_text|>": 256})
    )
    assert str(chat_turns.refusal(bare)).startswith("Chat is not available: this checkpoint has no chat template")


def test_chat_uses_the_checkpoints_own_template_and_shows_it(
    serve: Callable[[str, Path], None], app: App, checkpoint: Path, results: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "own"
    convert(checkpoint, folder, layout="hf")
    source = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant]"
    (folder / "chat_template.jinja").write_text(source)
    serve(str(folder), results)
    session = app("generate", prompt="the cat", mode="Chat", system="the sun", temperature=0, new=4)
    assert "Chat template: the checkpoint's own." in [caption.value for caption in session.caption]
    assert source in [code.value for code in session.code]
    session.button(key="generate").click().run()
    model = wb.load_model(folder)
    assert model.tokenizer is not None
    ids = model.tokenizer.encode("[system] the sun\n[user] the cat\n[assistant]")
    (expected,) = wb.generate(model, [ids], max_new_tokens=4)
    assert read_table(session, "probability")["token"].tolist() == list(expected.tokens)
    scope: dict[str, object] = {}
    exec(compile(notebook(session), "generate", "exec"), scope)
    assert scope["prompt"] == ids and scope["trace"].tokens == expected.tokens  # type: ignore[attr-defined]

    (folder / "chat_template.jinja").write_text("{{ raise_exception('Only two roles!') }}")
    serve(str(folder), results)
    session = app("generate", prompt="the cat", mode="Chat")
    assert session.error[0].value == "This conversation cannot be written with this chat template."


# --- what can go wrong ----------------------------------------------------------------------------------------


def test_a_model_without_a_tokenizer_takes_and_gives_ids(
    serve: Callable[[str, Path], None], app: App, checkpoint: Path, results: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(checkpoint, bare)
    (bare / "tokenizer.model").unlink()
    serve(str(bare), results)
    session = app("generate", prompt="5 6 7 5 6", temperature=0, new=4)
    assert "Chat needs a tokenizer, and this checkpoint has none." in [caption.value for caption in session.caption]
    session.button(key="generate").click().run()
    (expected,) = wb.generate(wb.load_model(bare), [[5, 6, 7, 5, 6]], max_new_tokens=4)
    shown = read_table(session, "probability")
    assert shown["token"].tolist() == list(expected.tokens)
    assert shown["text"].tolist() == [f"#{token}" for token in expected.tokens]
    scope: dict[str, object] = {}
    exec(compile(notebook(session), "generate", "exec"), scope)
    assert scope["trace"].tokens == expected.tokens  # type: ignore[attr-defined]


def test_a_full_context_says_so_and_a_prompt_that_fills_it_is_refused(
    serve: Callable[[str, Path], None], app: App, tmp_path: Path, results: Path
) -> None:
    small = write_checkpoint(tmp_path / "small", max_seq_len=24)
    serve(str(small), results)
    tokenizer = wb.load_model(small).tokenizer
    assert tokenizer is not None
    prompt = "the cat" * 5
    room = 24 - len(tokenizer.encode(prompt, bos=True))
    session = app("generate", prompt=prompt, temperature=0, new=24)
    session.button(key="generate").click().run()
    assert len(read_table(session, "probability")) == room
    assert session.warning[0].value.startswith("The context of 24 tokens is full, so the text ends here.")
    assert "23 of 24 positions" in meter(session)
    while len(tokenizer.encode(prompt, bos=True)) < 24:
        prompt += "x"
    session.text_area(key="prompt").set_value(prompt).run()
    session.button(key="generate").click().run()
    assert session.error[0].value == "Nothing can be generated with these settings."
    assert "leaves no room in the context of 24" in session.code[-1].value


def meter(session: AppTest) -> str:
    return next(str(element.proto.text) for element in session.get("progress"))


def test_the_meter_counts_what_the_cache_holds(pressed: Callable[..., AppTest], model: Transformer) -> None:
    session = pressed()
    used = len(encode(model, PROMPT)) + 11
    cache = model.empty_cache(1, used)
    assert f"{used} of 2,048 positions, {cache.n_bytes / 1024:.1f} KiB of" in meter(session)


def test_hostile_text_reaches_no_markdown(app: App) -> None:
    session = app("generate", prompt=NASTY, temperature=1.5, new=30, mode="Chat", system=NASTY)
    session.button(key="generate").click().run()
    next(button for button in session.button if button.label.startswith("Continue")).click().run()
    session.text_area(key="prompt").set_value(NASTY).run()
    session.button(key="generate").click().run()
    assert not session.exception and not session.error
    text = [element.value for kind in ("markdown", "caption", "subheader", "info") for element in session.get(kind)]
    assert text and not [line for line in text if "alert" in line or "x^2" in line or "\u202e" in line or "🙂" in line]


def test_a_sample_is_continued_from_its_prompt(app: App, results: Path) -> None:
    stamp = next((results / "first").glob("results_*.json")).stem.removeprefix("results_")
    session = app("generate", temperature=0, new=3)
    session.query_params["sample"] = f"first/{stamp}/tiny_sums/2"
    session.run()
    session.button(key="generate").click().run()
    scope: dict[str, object] = {}
    exec(compile(notebook(session), "generate", "exec"), scope)
    assert scope["prompt"] == [65, 66, 67]
    assert scope["trace"].tokens == tuple(read_table(session, "probability")["token"])  # type: ignore[attr-defined]


def test_the_files_hold_the_table(model: Transformer) -> None:
    trace = sampling_trace(model, encode(model, PROMPT), Sampling(1.0), max_new_tokens=5)
    shown = generation_step.steps(model, trace)
    again = pd.read_parquet(io.BytesIO(generation_step._parquet(shown)))
    pd.testing.assert_frame_equal(again, shown)
    assert len(generation_step.alternatives(model, trace)) == 5 * 8


@pytest.mark.parametrize(
    "nonsense",
    [
        {"step": 9999}, {"step": "x"}, {"step": -1}, {"temperature": -3}, {"temperature": "nan"}, {"topp": 0},
        {"topk": 10**9}, {"seed": -1}, {"new": 0}, {"mode": "Shout"}, {"by": "Smell"}, {"head": 99}, {"written": "x"},
        {"turns": "x"},
    ],
)  # fmt: skip
def test_an_edited_address_breaks_nothing(app: App, nonsense: dict[str, object]) -> None:
    session = app("generate", **(SETTINGS | {"written": 1} | nonsense))
    assert not session.exception
    (parameter,) = nonsense
    if parameter not in ("written", "turns"):  # controls, which say what they show instead
        assert any(
            code.value.startswith(f"{parameter}={nonsense[parameter]} is not available") for code in session.code
        )
    assert len(session.error) == (parameter not in ("written", "turns"))
    assert 1 <= len(read_table(session, "probability", "drawn_probability")) <= 64
    assert 1 <= session.slider(key="step").value <= 64
