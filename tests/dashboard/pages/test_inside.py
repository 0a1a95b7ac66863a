"""Lens, Neurons and Intervene: their numbers are recomputed here from the weights and from plain runs."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from streamlit.testing.v1 import AppTest

import workbench as wb
from dashboard.data import intervention_effects
from dashboard.data.runs import Sample
from dashboard.panels import target_tokens
from dashboard.panels.prompt_input import Input
from dashboard.session import computed
from dashboard.session.settings import ROOT
from probes.logits.tuned_lens import TunedLens
from tests.dashboard.page_text import WRITTEN_TO, numbers, read_table, read_tables
from workbench.hooks.interventions import from_json, to_json
from workbench.layers import tensor_parallel
from workbench.model import Transformer

App = Callable[..., AppTest]
PROMPT = "the cat sat on the mat"
QUIZ = "Which is warm?\nA. the cat\nB. the mat\nC. the sun\nD. the park\nAnswer:"


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Transformer:
    return wb.load_model(checkpoint).eval().requires_grad_(False)


def encode(model: Transformer, text: str, *, bos: bool = True) -> torch.Tensor:
    assert model.tokenizer is not None
    return torch.tensor([model.tokenizer.encode(text, bos=bos)])


def table(session: AppTest, *columns: str):  # type: ignore[no-untyped-def]
    """The first table with these columns."""
    return read_table(session, *columns)


def reference(results: Path, task: str, doc: int) -> str:
    stamp = next((results / "first").glob("results_*.json")).stem.removeprefix("results_")
    return f"first/{stamp}/{task}/{doc}"


# --- Lens -----------------------------------------------------------------------------------------------------


def test_lens_ends_in_the_models_own_prediction(app: App, model: Transformer) -> None:
    session = app("lens", prompt=PROMPT, position=3, targets="#65 #66", k=3)
    with torch.no_grad():
        logits = model(encode(model, PROMPT))[0, 3]
    shares = logits.softmax(-1)
    shown = read_table(session, "target", "rank")
    assert shown["id"].tolist() == [65, 66]
    np.testing.assert_allclose(shown["probability"], shares[[65, 66]], atol=1e-4)
    assert shown["rank"].tolist() == [int((logits > logits[token]).sum()) + 1 for token in (65, 66)]
    layers = read_table(session, "Layer", "3")
    assert layers["Layer"].tolist() == ["embed", "0", "1", "2", "3"] and "4" not in layers
    assert [float(cell.rpartition(" ")[2]) for cell in layers.iloc[-1][1:]] == pytest.approx(
        shares.topk(3).values.tolist(), abs=6e-4
    )


def test_heads_are_ranked_by_what_they_add(app: App, model: Transformer) -> None:
    """Each head's contribution to the first minus the second target, from its z and the weights alone."""
    session = app("lens", prompt=PROMPT, targets="#65 #66")
    with torch.no_grad():
        _, cap = model.run_with_capture(encode(model, PROMPT), ["blocks.*.attn.hook_z", "ln_final.hook_scale"])
    unembed = model.output.weight  # type: ignore[union-attr]
    aim = (unembed[65] - unembed[66]) * model.norm.weight / cap["ln_final.hook_scale"][0, -1]
    shown = read_table(session, "contribution", "removed")
    assert len(shown) == 4 * 8 and shown["contribution"].abs().is_monotonic_decreasing
    for _, row in shown.iloc[[0, 1, -1]].iterrows():
        layer, head = int(row["layer"]), int(row["head"])
        z = torch.zeros(8, 8)
        z[head] = cap[f"blocks.{layer}.attn.hook_z"][0, -1, head]
        written = model.layers[layer].attention.wo(z.flatten())  # type: ignore[union-attr,operator]
        assert row["contribution"] == pytest.approx(float(written @ aim), abs=1e-4)


def test_targets_are_the_likeliest_two_until_they_are_given(app: App, model: Transformer) -> None:
    session = app("lens", prompt=PROMPT)
    with torch.no_grad():
        best = model(encode(model, PROMPT))[0, -1].topk(2).indices.tolist()
    assert read_table(session, "target", "rank")["id"].tolist() == best
    session.text_input(key="targets").set_value("#999999").run()
    assert session.error[0].value == "The target tokens cannot be read." and "found 999999" in session.code[0].value
    session.text_input(key="targets").set_value("#1 #2 #3 #4 #5 #6 #7").run()
    assert "There are 7 targets, but at most 6" in session.code[0].value
    session.text_input(key="targets").set_value("zzz").run()
    assert not session.error
    assert session.warning[0].value.startswith("zzz is 3 tokens; only the first, z (#122), is used.")


@pytest.mark.parametrize("page", ["lens", "intervene"])
def test_targets_reach_no_markdown(app: App, page: str) -> None:
    session = app(page, prompt=PROMPT, targets="$ * ` < [", changes="[]")
    assert not session.exception
    text = [element.value for kind in ("markdown", "caption", "subheader") for element in session.get(kind)]
    # Two asterisks to each side are the bold of a chart's title.
    assert not [line for line in text if set("$`<") & set(line.removeprefix("**").removesuffix("**"))]


def test_a_logit_that_is_no_longer_listed_gives_way_to_the_first(app: App) -> None:
    session = app("lens", prompt=PROMPT, targets="#1 #2 #3", logit="Third")
    session.text_input(key="targets").set_value("#1").run()
    assert not session.exception and session.segmented_control(key="logit").value == "First"


def test_a_position_beyond_the_prompt_is_its_last(app: App) -> None:
    session = app("lens", prompt="a", position=4000)
    assert not session.exception and session.subheader[0].value == "After position 1"


def test_a_quiz_offers_its_letters(app: App, model: Transformer) -> None:
    assert not [button for button in app("lens", prompt=PROMPT).button if button.label == "A to D"]
    session = app("lens", prompt=QUIZ)
    next(button for button in session.button if button.label == "A to D").click().run()
    assert read_table(session, "target", "rank")["token"].tolist() == ["A", "B", "C", "D"]
    assert model.tokenizer is not None and len(model.tokenizer.encode(" A")) == 2  # so no space before them


def test_a_sample_asks_for_gold_less_predicted_right_after_its_prompt(app: App, results: Path) -> None:
    wrong = app("lens")
    wrong.query_params["sample"] = reference(results, "tiny_quiz", 5)
    wrong.run()
    # Six tokens of prompt; the right choice is " A", [68], and " B", [69], was likelier.
    assert read_table(wrong, "target", "rank")["id"].tolist() == [68, 69]
    assert wrong.subheader[0].value == "After position 5"
    right = app("lens")
    right.query_params["sample"] = reference(results, "tiny_quiz", 0)
    right.run()
    assert read_table(right, "target", "rank")["id"].tolist() == [68, 69]  # gold and the next best


def test_a_model_that_is_split_is_refused_with_the_reason(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    session = app("lens")
    monkeypatch.setattr(tensor_parallel, "size", lambda: 2)
    session.run()
    assert session.error[0].value == "The lens needs the whole unembedding."
    assert "split over 2 processes" in session.code[0].value and not session.exception


def test_controls_of_the_lens_run_the_model_no_more(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []
    plain = Transformer.hidden

    def counted(self: Transformer, *args: object, **options: object) -> object:
        runs.append(1)
        return plain(self, *args, **options)  # type: ignore[arg-type]

    session = app("lens", prompt=PROMPT)
    monkeypatch.setattr(Transformer, "hidden", counted)
    session.number_input(key="position").set_value(2).run()
    session.text_input(key="targets").set_value("#7 #8").run()
    session.segmented_control(key="logit").set_value("Second").run()
    assert not session.exception and runs == []
    session.text_area(key="prompt").set_value("the dog").run()
    assert len(runs) == 1


# --- Neurons --------------------------------------------------------------------------------------------------


def test_neurons_shows_the_neurons_own_numbers(app: App, model: Transformer) -> None:
    session = app("neurons", prompt=PROMPT, layer=2, neuron=7)
    with torch.no_grad():
        _, cap = model.run_with_capture(
            encode(model, PROMPT), ["blocks.2.mlp.hook_pre", "blocks.2.mlp.hook_pre_linear"]
        )
    gate, up = (cap[f"blocks.2.mlp.{name}"][0] for name in ("hook_pre", "hook_pre_linear"))
    fired = torch.nn.functional.silu(gate) * up
    shown = numbers(session)
    assert shown["Open gate"] == f"{(gate[:, 7] > 0).float().mean():.0%}"
    assert shown["RMS"] == f"{fired[:, 7].square().mean().sqrt():.3g}"
    assert shown["Layer: open gates"] == f"{(gate > 0).float().mean():.0%}"
    strongest = read_table(session, "value", "gate")
    order = fired[:, 7].abs().argsort(descending=True)[: len(strongest)]
    assert strongest["pos"].tolist() == order.tolist()
    np.testing.assert_allclose(strongest["value"], fired[order, 7], atol=WRITTEN_TO)
    np.testing.assert_allclose(strongest["gate"], gate[order, 7], atol=WRITTEN_TO)


def test_the_page_opens_on_the_layers_strongest_neuron(app: App, model: Transformer) -> None:
    session = app("neurons", prompt=PROMPT, layer=1)
    with torch.no_grad():
        _, cap = model.run_with_capture(encode(model, PROMPT), ["blocks.1.mlp.hook_post"])
    best = int(cap["blocks.1.mlp.hook_post"][0].square().mean(0).argmax())
    assert session.subheader[0].value == f"Layer 1 · Neuron {best}"
    assert read_table(session, "neuron", "rms")["neuron"].iloc[0] == best


# --- Intervene ------------------------------------------------------------------------------------------------


def test_nothing_changed_moves_nothing(app: App) -> None:
    shown = numbers(app("intervene", prompt=PROMPT))
    assert shown["Mean KL (nats)"] == "0" and shown["Loss before (nats per token)"] == shown["Loss after"]


@pytest.mark.parametrize(
    "change",
    [
        wb.Ablate("L2H3"),
        wb.Scale("L1.mlp", 0.25),
        wb.Add("blocks.1.hook_resid_post", 1.0),
        wb.RopeScaling(theta=500.0),
        wb.Scale("hook_logits", 0.5),  # what stands behind the last hook that the page captures
        wb.Ablate("ln_final.hook_out"),
    ],
    ids=lambda change: to_json([change]),
)
def test_before_and_after_are_two_plain_runs(app: App, model: Transformer, change: wb.Ablate) -> None:
    session = app("intervene", prompt=PROMPT, changes=to_json([change]), targets="#65 #70")
    tokens = encode(model, PROMPT)
    with torch.no_grad():
        before = model(tokens)[0]
        with model.intervene(change):
            after = model(tokens)[0]
    p, q = before.double().log_softmax(-1), after.double().log_softmax(-1)
    kl = (p.exp() * (p - q)).sum(-1)
    shown = numbers(session)
    assert float(shown["Mean KL (nats)"]) == pytest.approx(float(kl.mean()), rel=6e-3)  # three digits are shown
    loss = [-x[:-1].gather(-1, tokens[0, 1:, None]).mean() for x in (p, q)]
    assert shown["Loss before (nats per token)"] == f"{loss[0]:.3f}"
    assert shown["Loss after"] == f"{loss[1]:.3f} ({loss[1] - loss[0]:+.3f})"
    rows = read_table(session, "before", "after", "change")
    np.testing.assert_allclose(rows["before"], before[-1, [65, 70]], atol=WRITTEN_TO)
    np.testing.assert_allclose(rows["after"], after[-1, [65, 70]], atol=WRITTEN_TO)
    top = read_table(session, "id", "before", "after")
    np.testing.assert_allclose(top["after"], q[-1].exp()[top["id"].tolist()], atol=WRITTEN_TO)


def test_the_builder_adds_and_removes_and_refuses(app: App) -> None:
    session = app("intervene", prompt=PROMPT)

    def add() -> None:
        next(button for button in session.button if button.label == "Add to the list").click().run()

    session.number_input(key="layer").set_value(2).run()
    session.number_input(key="head").set_value(5).run()
    add()
    session.selectbox(key="kind").set_value("Scale").run()
    session.selectbox(key="place").set_value("Sublayer").run()
    session.number_input(key="factor").set_value(0.25).run()
    add()
    session.selectbox(key="kind").set_value("RoPE").run()
    add()
    session.selectbox(key="kind").set_value("Add").run()
    session.selectbox(key="place").set_value("Hook").run()
    add()
    changes = json.loads(session.text_area(key="changes").value)
    assert changes[:3] == [
        {"kind": "ablate", "target": "L2H5"},
        {"kind": "scale", "target": "L2.attn", "factor": 0.25},
        {"kind": "rope_scaling", "yarn": 2.0, "truncate": True},
    ]
    assert from_json(json.dumps(changes))[3].tensor.item() == 1.0  # type: ignore[attr-defined]
    assert session.query_params["changes"] == session.text_area(key="changes").value
    session.button(key="remove_1").click().run()
    assert [change["kind"] for change in json.loads(session.text_area(key="changes").value)] == [
        "ablate", "rope_scaling", "add",
    ]  # fmt: skip
    session.text_input(key="hook").set_value("blocks.0.hook_nothing").run()
    add()
    assert session.error[0].value == "This intervention does not fit the model." and not session.exception
    assert len(json.loads(session.text_area(key="changes").value)) == 3


@pytest.mark.parametrize(
    "text", ["nonsense", "{}x", '[{"kind": "ablate", "target": "L99H0"}]', '[{"kind": "no"}]', "3"]
)
def test_json_that_fits_no_model_says_so_and_can_be_cleared(app: App, text: str) -> None:
    session = app("intervene", prompt=PROMPT, changes=text)
    assert not session.exception and "do not fit this model" in session.error[0].value
    next(button for button in session.button if button.label == "Clear").click().run()
    assert not session.error and not session.exception and session.text_area(key="changes").value == "[]"


def test_an_ablated_head_moves_by_all_of_itself_and_nothing_before_it_moves(model: Transformer) -> None:
    changes = to_json([wb.Ablate("L1H2")])
    ids = tuple(encode(model, PROMPT)[0].tolist())
    before = computed.capture(model, ids, intervention_effects.HEAD_HOOKS)
    after = computed.capture(model, ids, intervention_effects.HEAD_HOOKS, changes)
    assert before.id != after.id
    moved = intervention_effects.head_changes(model, before.capture, after.capture)
    assert moved[1, 2] == 1 and not moved[0].any() and not np.delete(moved[1], 2).any() and (moved[2:] > 0).all()


def test_each_heads_change_is_drawn_when_it_is_asked_for(app: App) -> None:
    session = app("intervene", prompt=PROMPT, changes='[{"kind": "ablate", "target": "L1H2"}]', perhead="true")
    assert not session.exception and "Change of each head's output" in [m.value for m in session.subheader]


def test_the_answer_to_a_sample_is_scored_as_the_benchmark_does(app: App, model: Transformer, results: Path) -> None:
    change = wb.Scale("L3.mlp", -2.0)
    session = app("intervene", changes=to_json([change]))
    session.query_params["sample"] = reference(results, "tiny_quiz", 5)
    session.run()
    shown = read_table(session, "choice", "gold", "before", "after")
    prompt = torch.tensor([[306, 65, 66, 67, 65, 66]])
    with torch.no_grad():
        before = model(prompt)[0, -1].log_softmax(-1)[[68, 69]]
        with model.intervene(change):
            after = model(prompt)[0, -1].log_softmax(-1)[[68, 69]]
    np.testing.assert_allclose(shown["before"], before, atol=WRITTEN_TO)
    np.testing.assert_allclose(shown["after"], after, atol=WRITTEN_TO)
    assert shown["gold"].tolist() == [True, False]
    answers = next(text.value for text in session.text if text.value.startswith("Answer before"))
    assert answers == f"Answer before: {'AB'[before.argmax()]}\nAnswer after:  {'AB'[after.argmax()]}"
    assert [line.value for line in session.code if "--tasks tiny_quiz" in line.value and "changes.json" in line.value]


def test_a_typed_quiz_has_its_answer_before_and_after(app: App, model: Transformer) -> None:
    change = wb.Scale("L3.mlp", -2.0)
    shown = numbers(app("intervene", prompt=QUIZ, changes=to_json([change])))
    assert model.tokenizer is not None
    letters = [model.tokenizer.encode(letter)[0] for letter in "ABCD"]
    tokens = encode(model, QUIZ)
    with torch.no_grad():
        before = int(model(tokens)[0, -1, letters].argmax())
        with model.intervene(change):
            after = int(model(tokens)[0, -1, letters].argmax())
    assert shown["Answer (A to D)"] == f"{'ABCD'[before]} → {'ABCD'[after]}"


@pytest.mark.parametrize(
    ("changes", "option"),
    [
        ([wb.Ablate("L1H2"), wb.Ablate("L2.mlp")], "--ablate L1H2,L2.mlp"),
        ([wb.Ablate("L1H2", positions=[3])], "--intervene changes.json"),
        ([wb.Ablate("L1H2"), wb.Scale("L2.mlp", 0.5)], "--intervene changes.json"),
        ([], "--output out/changed"),
    ],
)
def test_the_benchmarks_command_says_what_was_changed(changes: list[wb.Ablate], option: str) -> None:
    line = intervention_effects.eval_command(changes, model="demo", task="demo_mmlu", output=Path("out/changed"))
    assert line.startswith("workbench eval run --model demo --tasks demo_mmlu ") and line.endswith(option)


# --- targets --------------------------------------------------------------------------------------------------


def test_words_are_read_as_the_pages_write_them(model: Transformer) -> None:
    assert model.tokenizer is not None
    the = model.tokenizer.encode(" the")
    assert len(the) == 1  # the vocabulary was learned from a text that has it
    assert target_tokens.parse("·the #5 ·the", model) == ((the[0], 5), [])
    assert target_tokens.parse("", model) == ((), [])


def test_a_word_that_is_likelier_after_a_space_is_said_to_be(app: App, model: Transformer) -> None:
    ids = {"plain": encode_word(model, "the"), "spaced": encode_word(model, " the")}
    probability = {ids["plain"][0]: 0.25, ids["spaced"][0]: 0.5}
    _, notes = target_tokens.parse("the", model, lambda token: probability[token])
    assert notes[-1].startswith("·the, with a space, is likelier here: its first token, ·the, has 0.5")
    assert "is 2 tokens; only the first, t" in notes[0] and "With a space, ·the is 1 token." in notes[0]
    _, notes = target_tokens.parse("the", model, lambda token: 1 - probability[token])
    assert not any("likelier" in note for note in notes)
    assert target_tokens.parse("·the", model, lambda token: 0.0)[1] == []
    # The page reads the probabilities from its capture: they are the model's.
    with torch.no_grad():
        shares = model(encode(model, PROMPT))[0, -1].softmax(-1)
    notes = [warning.value for warning in app("lens", prompt=PROMPT, targets="the").warning]
    likelier = bool(shares[ids["spaced"][0]] > shares[ids["plain"][0]])
    assert any("likelier here" in note for note in notes) == likelier


def encode_word(model: Transformer, word: str) -> list[int]:
    assert model.tokenizer is not None
    return model.tokenizer.encode_continuation(word)


@pytest.mark.parametrize(
    ("choices", "picked", "expected"),
    [
        (
            ((5, 8), (5, 9), (6, 7)),
            1,
            target_tokens.TargetTokens(3, (8, 9)),
        ),  # both begin with 5, which follows the prompt
        (((5, 8), (5, 9), (6, 7)), 2, target_tokens.TargetTokens(2, (5, 6))),
        (((5, 8), (5, 9), (6, 7)), 0, target_tokens.TargetTokens(3, (8, 9))),  # right: against the next best
        (((5, 8), (5,)), 1, None),
    ],
)
def test_gold_and_predicted_are_asked_for_where_they_part(
    choices: tuple[tuple[int, ...], ...], picked: int, expected: target_tokens.TargetTokens | None
) -> None:
    sample = Sample(
        "run", "task", 0, "", "", "", "", 0.0, (1, 2, 3, *choices[picked]), logprobs=(-3.0, -1.0, -2.0),
        prompt_ids=(1, 2, 3), choice_ids=choices, gold=0, picked=picked,
    )  # fmt: skip
    assert sample.ids is not None
    prompt = Input(sample.ids, (b"x",) * len(sample.ids), "", prompt_length=3, sample=sample)
    assert target_tokens.of_sample(prompt) == expected


@pytest.mark.parametrize(
    ("text", "quiz"),
    [(QUIZ, True), ("2 + 2?\nAnswer: ", True), ("x\n(A) one\n(B) two\n", True), ("A. B. Yehoshua", False), ("", False)],
)
def test_what_ends_like_a_quiz_is_one(text: str, quiz: bool) -> None:
    prompt = Input((1,) * len(text), tuple(letter.encode() for letter in text), "")
    assert target_tokens.is_quiz(prompt) == quiz


def test_a_tuned_lens_beside_the_model_is_offered_and_read(
    serve: Callable[[str, Path], None], checkpoint: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "with_lens"
    shutil.copytree(checkpoint, folder)
    model = wb.load_model(folder)
    zero = TunedLens.zero(model)
    noise = 0.3 * torch.randn(zero.weight.shape, generator=torch.Generator().manual_seed(0))
    replace(zero, weight=noise).save(folder)
    serve(str(folder), tmp_path / "results")
    page = AppTest.from_file(str(ROOT / "app.py"), default_timeout=60).run()
    page.switch_page("dashboard/pages/lens.py").run()
    tables = read_tables(page)
    next(table for table in page.segmented_control if table.key == "lens").set_value("Tuned").run()
    assert not page.exception and not page.error
    changed = [not table.equals(other) for table, other in zip(tables, read_tables(page), strict=True)]
    assert any(changed)
    shown: dict[str, Any] = {}
    exec(next(code.value for code in page.code if "tuned_lens(model" in code.value), shown)
    assert shown["lens"].ids.shape[0] == model.config.n_layers + 1
