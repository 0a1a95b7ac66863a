"""The Compare page: its numbers equal those of the probes and benchmarks; incomparable sides are refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from streamlit.testing.v1 import AppTest

import workbench as wb
from dashboard.panels import compare_runs, compare_sides
from dashboard.panels.prompt_input import Input
from dashboard.session import models
from dashboard.session.settings import ROOT
from evals.compare.compare import compare as compare_evaluations
from evals.results.runs import list_runs
from probes.comparison.compare_runs import compare
from tests.dashboard.page_text import numbers, read_table
from tests.dashboard.world import write_checkpoint
from workbench.hooks.interventions import Ablate, Scale, to_json

App = Callable[..., AppTest]
PROMPT = "the cat sat on the mat and the dog ran"
CHANGES = to_json([Ablate("L1H2")])


def table(session: AppTest, column: str):  # type: ignore[no-untyped-def]
    return read_table(session, column)


def test_a_run_compared_with_itself_offers_a_change(app: App) -> None:
    session = app("compare", prompt=PROMPT)
    assert not session.exception and not session.error
    assert session.info[0].value.startswith("A and B are the same run.") and not session.metric
    next(button for button in session.button if button.label == "Set L0H0 to zero in B").click().run()
    assert not session.exception and json.loads(session.text_area(key="changes").value)[0]["target"] == "L0H0"
    assert float(numbers(session)["Mean KL (nats)"]) > 0


def test_a_change_of_nothing_is_equal(app: App) -> None:
    session = app("compare", prompt=PROMPT, changes=to_json([Scale("L1H2", 1.0)]))
    assert not session.exception and not session.error
    shown = numbers(session)
    assert shown["Mean KL (nats)"] == "0" and shown["Same first choice"] == "100%"
    assert shown["The runs diverge at"] == "nowhere"
    assert read_table(session, "largest")["largest"].max() == 0
    assert (read_table(session, "change")["change"] == 0).all()


def test_an_intervention_on_b_shows_what_the_probe_finds(app: App, checkpoint: Path) -> None:
    session = app("compare", prompt=PROMPT, changes=CHANGES)
    assert not session.exception and not session.error
    model = wb.load_model(checkpoint)
    assert model.tokenizer is not None
    tokens = torch.tensor([model.tokenizer.encode(PROMPT, bos=True)])
    with torch.no_grad():
        _, a = model.run_with_capture(tokens, compare_sides.HOOKS)
        with model.intervene(Ablate("L1H2")):
            _, b = model.run_with_capture(tokens, compare_sides.HOOKS)
        # Independent of the captures: the model's own outputs.
        before = model(tokens)[0].double().log_softmax(-1)
        with model.intervene(Ablate("L1H2")):
            after = model(tokens)[0].double().log_softmax(-1)
    kl = (before.exp() * (before - after)).sum(-1)
    shown = numbers(session)
    assert float(shown["Mean KL (nats)"]) == pytest.approx(float(kl.mean()), rel=1e-2)  # three digits are shown
    assert float(shown[f"KL after position {len(kl) - 1} (nats)"]) == pytest.approx(float(kl[-1]), rel=1e-2)
    assert shown["The runs diverge at"] == "blocks.1.attn.hook_z"
    np.testing.assert_allclose(read_table(session, "largest")["relative"], compare(a, b).relative, rtol=5e-3)
    z = app("compare", prompt=PROMPT, changes=CHANGES, measure="Relative difference")
    heads = compare(a, b).by_head
    assert heads is not None
    values = heads.relative[[hook.endswith("hook_z") for hook in heads.hooks]]
    most = np.unravel_index(int(values.argmax()), values.shape)
    assert values[1, 2] == 1 and not values[0].any()  # an ablated head is 1 away; before it, nothing is
    assert read_table(z, "Relative difference")["head"].iloc[0] == f"L{most[0]}H{most[1]}"
    assert [z.number_input(key=key).value for key in ("at_layer", "at_head")] == list(most)


@pytest.fixture
def tuned(checkpoint: Path, tmp_path: Path) -> Path:
    """The checkpoint after a small change of one layer, as a fine-tune has it."""
    folder = shutil.copytree(checkpoint, tmp_path / "tuned")
    weights = torch.load(folder / "consolidated.00.pth")
    noise = torch.randn(weights["layers.2.attention.wv.weight"].shape, generator=torch.Generator().manual_seed(1))
    weights["layers.2.attention.wv.weight"] += 0.05 * noise
    torch.save(weights, folder / "consolidated.00.pth")
    return folder


def two_models(app: App, monkeypatch: pytest.MonkeyPatch, other: Path) -> str:
    """Serve another model too; its id."""
    monkeypatch.setenv("WORKBENCH_APP_MORE_MODELS", json.dumps([str(other)]))
    assert len(models.served()) == 2
    return models.served()[1].id


def test_two_models_are_compared_on_one_prompt(
    app: App, checkpoint: Path, tuned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "b_model" not in [box.key for box in app("compare", prompt=PROMPT).selectbox]  # there is one model
    session = app("compare", prompt=PROMPT, b_model=two_models(app, monkeypatch, tuned))
    assert not session.exception and not session.error and not session.warning
    first, second = wb.load_model(checkpoint), wb.load_model(tuned)
    assert first.tokenizer is not None
    tokens = torch.tensor([first.tokenizer.encode(PROMPT, bos=True)])
    with torch.no_grad():
        before, after = (model(tokens)[0].double().log_softmax(-1) for model in (first, second))
    kl = (before.exp() * (before - after)).sum(-1)
    shown = numbers(session)
    assert float(shown["Mean KL (nats)"]) == pytest.approx(float(kl.mean()), rel=1e-2)
    assert shown["The runs diverge at"].startswith("blocks.2.attn.")
    scope: dict[str, object] = {}
    exec(next(code.value for code in session.code if code.language == "python"), scope)
    assert scope["comparison"].logits.kl.mean() == pytest.approx(float(kl.mean()), rel=1e-5)  # type: ignore[attr-defined]


def test_a_model_of_another_shape_is_refused(app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deeper = write_checkpoint(tmp_path / "deeper", layers=5)
    session = app("compare", prompt=PROMPT, b_model=two_models(app, monkeypatch, deeper))
    assert not session.exception
    assert session.error[0].value == "B cannot be compared with A. Choose another model."
    assert "n_layers is 4 in A and 5 in B" in session.code[0].value


def test_sides_can_be_swapped_and_kl_is_from_a(app: App) -> None:
    session = app("compare", prompt=PROMPT, changes=CHANGES)
    was = numbers(session)["Mean KL (nats)"]
    next(button for button in session.button if button.label == "Swap interventions").click().run()
    assert not session.exception
    assert session.text_area(key="a_changes").value == CHANGES and session.text_area(key="changes").value == "[]"
    assert numbers(session)["Mean KL (nats)"] != was


def test_another_type_rounds_more(app: App) -> None:
    session = app("compare", prompt=PROMPT, b_dtype="bfloat16")
    assert not session.exception and not session.error
    largest = read_table(session, "largest")
    assert 1e-4 < largest["relative"].iloc[-1] < 0.2  # bfloat16 keeps 8 bits: 0.4% a rounding
    assert session.text_area(key="changes").value == "[]"


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        (PROMPT + " to the park", "both begin with"),
        ("It was warm because " + PROMPT, "both end with"),
    ],
)
def test_prompts_that_differ_are_aligned_and_it_is_said(app: App, other: str, sentence: str) -> None:
    session = app("compare", prompt=PROMPT, b_of=compare_sides.OTHER, b_prompt=other)
    assert not session.exception and not session.error
    assert any(sentence in text.value for text in session.text)
    if "begin" in sentence:  # causal: what follows cannot change what stands before
        assert float(numbers(session)["Mean KL (nats)"]) < 1e-6
    else:
        assert float(numbers(session)["Mean KL (nats)"]) > 1e-3
        assert any("No difference" in caption.value for caption in session.caption)


def test_prompts_with_nothing_in_common_are_refused(app: App) -> None:
    session = app("compare", prompt=PROMPT, b_of=compare_sides.OTHER, b_prompt="It was warm")
    assert not session.exception
    assert "cannot be aligned" in session.error[0].value


def test_what_two_prompts_share() -> None:
    def given(*ids: int) -> Input:
        return Input(ids, tuple(b"x" for _ in ids), "")

    assert compare_sides.shared(given(1, 2, 3), given(1, 2, 3)) == compare_sides.SharedTokens("equal", 3)
    assert compare_sides.shared(given(1, 2, 3), given(1, 2, 4, 5)) == compare_sides.SharedTokens("prefix", 2)
    assert compare_sides.shared(given(1, 9, 7, 8), given(1, 2, 3, 9, 7, 8)) == compare_sides.SharedTokens(
        "suffix", 3, 2
    )
    assert compare_sides.shared(given(1, 2, 3), given(1, 4, 5)) is None  # what begins every prompt is nothing in common


@pytest.mark.parametrize(
    "params",
    [
        {"changes": "[{}]"},
        {"a_changes": '[{"kind": "ablate", "target": "L99H0"}]'},
        {"b_of": compare_sides.OTHER, "b_prompt": ""},
        {"compare": "Runs", "b_run": "gone"},
    ],
)
def test_mistakes_say_what_to_do(app: App, params: dict[str, str]) -> None:
    session = app("compare", prompt=PROMPT, **params)
    assert not session.exception
    assert session.error


def test_two_runs_show_the_comparisons_own_numbers(app: App, results: Path) -> None:
    by_folder = {run.path.parent.name: run for run in list_runs(results)}
    a, b = by_folder["first"], by_folder["second"]
    session = app("compare", compare="Runs", b_run=b.name, a_run=a.name)
    assert not session.exception and not session.error
    expected = compare_evaluations(a, b).frame()
    shown = read_table(session, "holm")
    for name in ("p", "holm"):
        np.testing.assert_allclose(shown[name].astype(float), expected[name], rtol=5e-3)  # three digits are shown
    for name in ("n", "only_a", "only_b"):
        np.testing.assert_array_equal(shown[name].astype(float), expected[name].astype(float))
    np.testing.assert_allclose(shown["difference"], 100 * expected["difference"])
    np.testing.assert_allclose(shown["MDE"].astype(float), 100 * expected["minimum_detectable_effect"].astype(float))
    # B answers more: the questions 2, 3 and 4 of the quiz, which are links to them.
    links = read_table(session, "open")["open"].tolist()
    assert [link.rpartition("doc=")[2] for link in links] == ["2", "3", "4"]
    assert all(link.startswith("/samples?") and "tiny_quiz" in link for link in links)
    assert {"Only A right: 0", "Only B right: 3"} <= {text.value.strip("*") for text in session.markdown}


def test_scores_of_one_metric_are_told_apart_by_their_filter(
    serve: Callable[[str, Path], None], checkpoint: Path, results: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(results, tmp_path / "results"))
    for path in root.rglob("results_*.json"):
        data = json.loads(path.read_text())
        sums = data["results"]["tiny_sums"]
        sums |= {name.replace(",none", ",strict-match"): value for name, value in sums.items() if ",none" in name}
        path.write_text(json.dumps(data))
        samples = next(path.parent.glob("samples_tiny_sums_*.jsonl"))
        lines = samples.read_text()
        samples.write_text(lines + lines.replace('"filter": "none"', '"filter": "strict-match"'))
    serve(str(checkpoint), root)
    names = {run.name.partition("/")[0]: run.name for run in list_runs(root)}
    for page, address in {
        "benchmarks": {"run": names["second"], "baseline": names["first"]},
        "compare": {"compare": "Runs", "b_run": names["second"], "a_run": names["first"]},
    }.items():
        session = AppTest.from_file(str(ROOT / "app.py"), default_timeout=60).run()
        session.switch_page(f"dashboard/pages/{page}.py")
        session.query_params.update(address)
        session.run()
        assert not session.exception and not session.error
        shown = read_table(session, "holm")
        assert shown["metric"].tolist() == ["acc", "exact_match", "exact_match, strict-match"], page


def test_a_p_value_too_small_for_its_digits_is_no_zero() -> None:
    assert [compare_runs.p_text(p) for p in (None, float("nan"), 0.0, 3e-7, 0.001, 0.25, 1.0)] == [
        "", "", "<0.001", "<0.001", "0.001", "0.25", "1",
    ]  # fmt: skip


def test_runs_without_a_shared_question_are_refused_and_partial_ones_marked(
    serve: Callable[[str, Path], None], checkpoint: Path, results: Path, tmp_path: Path
) -> None:
    for name, folder in (("one", "first"), ("two", "second")):
        source = next((results / folder).rglob("results_*.json"))
        data = json.loads(source.read_text())
        kept_task = "tiny_quiz" if name == "one" else "tiny_sums"
        for key in ("results", "configs", "n-shot", "n-samples"):
            data[key] = {task: value for task, value in data[key].items() if task == kept_task}
        data["n-samples"][kept_task] = {"original": 60, "effective": 6}
        target = tmp_path / name / source.parent.name / source.name
        target.parent.mkdir(parents=True)
        target.write_text(json.dumps(data))
        for samples in source.parent.glob(f"samples_{kept_task}_*.jsonl"):
            (target.parent / samples.name).write_bytes(samples.read_bytes())
    serve(str(checkpoint), tmp_path)
    session = AppTest.from_file(str(ROOT / "app.py"), default_timeout=60).run()
    session.switch_page("dashboard/pages/compare.py")
    session.query_params["compare"] = "Runs"
    session.run()
    assert not session.exception
    assert "cannot be compared" in session.error[0].value
    assert any("6 of 60 questions" in text.value for text in session.text)


def test_one_run_alone_says_how_to_make_another(
    serve: Callable[[str, Path], None], checkpoint: Path, tmp_path: Path
) -> None:
    serve(str(checkpoint), tmp_path)
    session = AppTest.from_file(str(ROOT / "app.py"), default_timeout=60).run()
    session.switch_page("dashboard/pages/compare.py")
    session.query_params["compare"] = "Runs"
    session.run()
    assert not session.exception
    assert "comparison needs two finished runs" in session.info[0].value and session.code[0].value.startswith(
        "workbench eval run"
    )


def test_a_question_is_opened_in_run_b_beside_run_a(results: Path) -> None:
    runs = {run.path.parent.name: run for run in list_runs(results)}
    comparison = compare_evaluations(runs["first"], runs["second"])
    address = compare_runs.sample_url(comparison.samples[0], comparison)
    assert "run=second" in address and "baseline=first" in address and "doc=2" in address


@pytest.mark.parametrize("params", [{"changes": CHANGES, "b_dtype": "bfloat16"}, {"compare": "Runs"}])
def test_the_notebook_code_runs_as_pasted(app: App, params: dict[str, str]) -> None:
    session = app("compare", prompt=PROMPT, **params)
    source = next(code.value for code in session.code if "import" in code.value)
    names: dict[str, object] = {}
    exec(source, names)
    comparison = names["comparison"]
    if "changes" in params:
        shown = read_table(session, "largest")
        np.testing.assert_allclose(shown["relative"], comparison.frame()["relative"], rtol=5e-3)  # type: ignore[attr-defined]
    else:
        expected = comparison.frame()  # type: ignore[attr-defined]
        np.testing.assert_allclose(read_table(session, "holm")["p"].astype(float), expected["p"], rtol=5e-3)
