"""Pages without a browser: the numbers equal those of the probes, and error messages say what to do."""

import json
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import streamlit as st
import torch
from streamlit.testing.v1 import AppTest

import workbench as wb
from dashboard.panels.prompt_input import DEFAULT_PROMPT, default_ids
from dashboard.session import computed, shared_cache
from dashboard.session.settings import ROOT
from tests.dashboard.page_text import WRITTEN_TO, figures, numbers, read_table, read_tables, shape
from tests.dashboard.world import NASTY
from workbench.model import Transformer

App = Callable[..., AppTest]
PAGES = ("overview", "attention", "rope", "norms", "lens", "neurons", "intervene", "generate", "benchmarks")


@pytest.mark.parametrize("page", PAGES)
def test_every_page_runs(app: App, page: str) -> None:
    session = app(page)
    assert not session.exception and not session.error
    assert session.header[0].value.lower() == page


def test_overview_says_what_the_model_is(app: App, checkpoint: Path) -> None:
    session = app()
    shown = numbers(session)
    assert (shown["Layers"], shown["Heads (grouped-query)"], shown["Context"]) == ("4", "8 / 2", "2,048")
    model = wb.load_model(checkpoint)
    assert model.tokenizer is not None
    tokens = torch.tensor([model.tokenizer.encode(DEFAULT_PROMPT, bos=True)])
    with torch.no_grad():
        expected = model(tokens)[0, -1].softmax(-1).topk(8)
    table = read_table(session, "probability")
    assert table["id"].tolist() == expected.indices.tolist()
    np.testing.assert_allclose(table["probability"], expected.values, atol=WRITTEN_TO)


def test_attention_shows_the_heads_own_numbers(app: App, checkpoint: Path) -> None:
    session = app("attention", layer=2, head=5, prompt="the cat sat on the mat")
    model = wb.load_model(checkpoint)
    assert model.tokenizer is not None
    tokens = torch.tensor([model.tokenizer.encode("the cat sat on the mat", bos=True)])
    with torch.no_grad():
        _, cap = model.run_with_capture(tokens, ["blocks.2.attn.hook_pattern"])
    pattern = cap["blocks.2.attn.hook_pattern"][0, 5].double()
    shown = numbers(session)
    assert shown["Sink mass"] == f"{pattern[:, 0].mean():.0%}"
    assert shown["Previous token"] == f"{pattern.diagonal(-1).mean():.0%}"
    assert shown["Entropy (nats)"] == f"{torch.special.entr(pattern).sum(-1).mean():.2f}"
    strongest = read_table(session, "distance")
    order = pattern[-1].argsort(descending=True)[:6]
    assert strongest["position"].tolist() == order.tolist()
    np.testing.assert_allclose(strongest["weight"], pattern[-1][order], atol=WRITTEN_TO)


def test_the_strips_other_mode_lists_queries(app: App) -> None:
    session = app("attention", layer=1, head=1, token=2, strip="Who looks at it", prompt="the cat sat on the mat")
    assert session.subheader[-1].value == "Strongest queries on token 2"
    strongest = read_table(session, "distance")
    assert strongest["position"].min() >= 2  # nobody before a token can look at it
    assert strongest["weight"].is_monotonic_decreasing


def test_what_the_address_holds_wins_and_what_it_cannot_mean_is_ignored(app: App) -> None:
    session = app("attention", layer=3, head=7, colour="Sink mass", token=999)
    assert [session.number_input(key=key).value for key in ("layer", "head")] == [3, 7]
    assert session.subheader[1].value == "Layer 3 · Head 7"
    assert not app("attention", layer=99, head="x", colour="nothing", token="-1").exception


def test_a_prompt_follows_its_user_from_page_to_page(app: App) -> None:
    session = app("attention")
    session.text_area(key="prompt").set_value("the dog").run()
    session.switch_page("dashboard/pages/benchmarks.py").run()
    session.switch_page("dashboard/pages/norms.py").run()
    assert session.text_area(key="prompt").value == "the dog"
    assert app("norms").text_area(key="prompt").value == DEFAULT_PROMPT


@pytest.mark.parametrize("page", ["overview", "attention", "norms", "rope", "lens", "neurons", "intervene"])
def test_hostile_text_reaches_no_markdown(app: App, page: str) -> None:
    session = app(page, prompt=NASTY, **({"view": "This head"} if page == "rope" else {}))
    assert not session.exception
    read_as_markdown = [
        *(element.value for kind in ("markdown", "caption", "subheader", "header") for element in session.get(kind)),
    ]
    for fragment in ("<script", "alert", "$x", "example.com", ":red", "\u202e"):
        assert not [text for text in read_as_markdown if fragment in text]


def test_an_empty_prompt_and_a_long_one_say_what_to_do(app: App) -> None:
    session = app("attention")
    session.text_area(key="prompt").set_value("a b " * 1500).run()
    assert session.error[0].value == "There is no input to run."
    assert "Shorten the text." in session.code[0].value
    assert not session.exception


def test_a_capture_that_does_not_fit_asks_for_a_shorter_prompt(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(computed, "CAPTURE_BYTES", 1000)
    session = app("norms")
    assert session.error[0].value.endswith("Shorten the prompt.") and "budget of 1000 B" in session.code[0].value
    assert not session.exception


def test_a_capture_is_made_once_for_all_who_send_the_same_tokens(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []
    plain = Transformer.run_with_capture

    def counted(self: Transformer, tokens: torch.Tensor, *args: object, **options: object) -> object:
        runs.append(tokens.shape[1])
        return plain(self, tokens, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Transformer, "run_with_capture", counted)
    first = app("attention", prompt="the cat sat on the mat")
    made = len(runs)
    first.number_input(key="layer").set_value(3).run()
    first.number_input(key="head").set_value(1).run()
    assert len(runs) == made > 0
    somebody_else = AppTest.from_file(first._script_path, default_timeout=60)
    somebody_else.query_params["prompt"] = "the cat sat on the mat"
    somebody_else.run()
    somebody_else.switch_page("dashboard/pages/attention.py").run()
    assert somebody_else.text_area(key="prompt").value == "the cat sat on the mat"
    assert len(runs) == made
    first.text_area(key="prompt").set_value("the cat sat on the park").run()
    assert len(runs) == made + 1


def test_captures_are_told_apart_by_tokens_hooks_and_weights(checkpoint: Path) -> None:
    model, other = wb.load_model(checkpoint), wb.load_model(checkpoint)
    with torch.no_grad():
        other.norm.weight.add_(0)  # the same weights, but nothing to prove it
    hooks = ("blocks.*.attn.hook_pattern",)
    ids = [
        computed.capture(model, (1, 2, 3), hooks).id,
        computed.capture(model, (1, 2, 4), hooks).id,
        computed.capture(model, (1, 2, 3), ("blocks.0.hook_resid_pre",)).id,
        computed.capture(other, (1, 2, 3), hooks).id,
    ]
    assert len(set(ids)) == 4
    assert computed.capture(model, (1, 2, 3), hooks).capture is computed.capture(model, (1, 2, 3), hooks).capture


def test_a_capture_that_holds_more_is_not_made_again(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    session = app("lens", prompt="the cat sat on the mat")  # holds the last norm's output, which Intervene starts from
    runs: list[object] = []
    monkeypatch.setattr(Transformer, "run_with_capture", lambda *args, **options: runs.append(args))
    session.switch_page("dashboard/pages/intervene.py").run()
    assert not runs and session.text_area(key="prompt").value == "the cat sat on the mat"
    assert not session.exception and not session.error


def test_a_capture_that_is_let_go_is_not_kept_by_its_index(checkpoint: Path) -> None:
    model = wb.load_model(checkpoint)
    ref = computed.capture(model, (7, 8, 9), ("blocks.*.hook_resid_pre",))
    capture = weakref.ref(ref.capture)
    assert any(one is ref.capture for one in computed._RUNS.values())
    shared_cache.clear_all()
    del ref
    assert capture() is None


def test_what_if_with_the_models_own_frequencies_moves_nothing(app: App) -> None:
    session = app("rope", view="What if", layer=1, head=2, theta=10_000)
    assert numbers(session)["Attention that changes"] == "0.0%"
    assert "Change theta" in session.info[0].value
    session.number_input(key="theta").set_value(500.0).run()
    assert numbers(session)["Attention that changes"] != "0.0%"
    assert not session.info


def test_shift_errors_grow_with_fewer_bits(app: App) -> None:
    table = read_table(app("rope", view="Shift"), "arithmetic")
    largest = table.set_index("arithmetic")["largest"]
    assert largest["float64"] < largest["float32"] < largest["bfloat16"]


def test_a_link_to_a_sample_that_is_gone_is_no_dead_end(app: App) -> None:
    session = app("attention", sample="no/such/run/5")
    assert "Open a sample from the Benchmarks page" in session.code[0].value
    session.switch_page("dashboard/pages/norms.py").run()
    assert session.error  # a linked sample, too, follows its user over pages
    session.button[0].click().run()
    assert not session.error and session.text_area(key="prompt").value == DEFAULT_PROMPT


def test_a_sample_of_another_checkpoint_says_so(
    app: App, serve: Callable[[str, Path], None], checkpoint: Path, results: Path, tmp_path: Path
) -> None:
    root = shutil.copytree(results, tmp_path / "results")
    path = next((root / "first").glob("results_*.json"))
    data = json.loads(path.read_text())
    data["workbench"] |= {"checkpoint_sha256": "0" * 64, "tokenizer_sha256": "1" * 64}
    path.write_text(json.dumps(data))
    reference = f"first/{path.stem.removeprefix('results_')}/tiny_sums/0"
    session = app("attention")
    serve(str(checkpoint), root)
    session.query_params["sample"] = reference
    session.run()
    assert session.warning[0].value.startswith("This answer is from another checkpoint.")
    assert not session.exception


@pytest.mark.parametrize(
    ("page", "options"),
    [
        ("overview", {}),
        ("attention", {"layer": 1, "head": 2}),
        ("norms", {}),
        ("norms", {"look": "Gains"}),
        ("norms", {"look": "Activations"}),
        ("norms", {"look": "Contributions"}),
        ("rope", {"scaling": "Llama 3.1 (8x)"}),
        ("rope", {"view": "This head", "layer": 1}),
        ("rope", {"view": "This head", "layer": 1, "pair": 2, "distance": 3}),
        ("rope", {"view": "Shift"}),
        ("rope", {"view": "What if", "theta": 500, "scaling": "Unscaled"}),
        ("lens", {"position": 3, "logit": "Second"}),
        ("neurons", {"layer": 1, "neuron": 5}),
        ("intervene", {"changes": '[{"kind": "scale", "target": "L1.mlp", "factor": 0.5}]'}),
        ("benchmarks", {}),
    ],
)
def test_the_notebook_code_runs(app: App, page: str, options: dict[str, object]) -> None:
    code = [element.value for element in app(page, **options).code if element.language == "python"]
    assert len(code) == 1
    exec(compile(code[0], page, "exec"), {})


def test_a_grids_column_of_tokens_has_room_for_a_special_one(app: App) -> None:
    tables = [json.loads(frame.proto.columns) for frame in app("generate", written=1).dataframe]
    columns = [column for table in tables for column in table.values() if column.get("label") == "Token"]
    assert columns and all((column.get("width") or 0) >= 8 * len("<|begin_of_text|>") - 1 for column in columns)


@pytest.mark.parametrize("view", [{}, {"extent": "Window"}, {"extent": "Window", "start": 100}])
def test_the_notebook_code_of_a_long_prompt_gives_the_drawn_map(app: App, view: dict[str, object]) -> None:
    session = app("attention", prompt="the cat " * 300, layer=1, head=2, **view)
    assert not session.exception and not session.error
    scope: dict[str, Any] = {}
    exec(next(code.value for code in session.code if code.language == "python"), scope)
    _, drawn = session.session_state["_figures"]["head_map"]
    assert len(scope["tokens"][0]) > 512
    np.testing.assert_allclose(scope["pattern"].weights, drawn().data[0].z, atol=1e-6)


@pytest.mark.parametrize(
    ("page", "options"),
    [
        ("attention", {"layer": 2, "head": 5}),
        (
            "compare",
            {"compare": "Captures", "at_layer": 2, "at_head": 5, "b_of": "Another prompt", "b_prompt": "the cat"},
        ),
        ("generate", {"written": 1, "layer": 2, "head": 5}),
    ],
)
def test_the_atlas_is_among_the_downloads_with_its_ring(app: App, page: str, options: dict[str, object]) -> None:
    session = app(page, prompt="the cat sat", **options)
    assert "Atlas (HTML)" in [button.proto.label for button in session.get("download_button")]
    _, made = session.session_state["_figures"]["atlas"]
    squares, ring = made().data
    assert np.shape(squares.z) == (4, 8) and (ring.y, ring.x) == ((2,), (5,))


def test_benchmarks_shows_scores_with_n_and_interval(app: App) -> None:
    session = app("benchmarks")
    table = read_table(session, "interval")
    assert table["task"].tolist() == ["tiny_quiz", "tiny_sums"]
    np.testing.assert_allclose(table["value"], [0.833, 0.667])
    assert table["n"].tolist() == [6, 6]
    assert table["interval"].tolist() == ["43.6 to 97.0", "30.0 to 90.3"]  # Wilson, by hand
    assert "tiny_code was not run: there is no sandbox" in [text.value for text in session.text]


@pytest.mark.parametrize("page", ["benchmarks", "samples"])
def test_no_runs_yet_leads_to_runs(
    app: App, serve: Callable[[str, Path], None], checkpoint: Path, tmp_path: Path, page: str
) -> None:
    serve(str(checkpoint), tmp_path / "none")
    session = AppTest.from_file(app()._script_path, default_timeout=60).run()
    serve(str(checkpoint), tmp_path / "none")
    session.switch_page(f"dashboard/pages/{page}.py").run()
    assert "no finished run yet" in session.info[0].value
    assert "Start a benchmark on Runs →" in [link.proto.label for link in session.get("page_link")]


def test_a_damaged_run_is_named_and_the_rest_shown(
    serve: Callable[[str, Path], None], checkpoint: Path, results: Path, tmp_path: Path, app: App
) -> None:
    root = shutil.copytree(results, tmp_path / "results")
    (root / "results_broken.json").write_text("{")
    session = app()
    serve(str(checkpoint), root)
    session.switch_page("dashboard/pages/benchmarks.py").run()
    assert "results_broken.json" in session.expander[0].code[0].value
    assert not read_tables(session)[0].empty


def test_a_model_that_cannot_be_loaded_is_one_message(
    serve: Callable[[str, Path], None], app: App, results: Path, tmp_path: Path
) -> None:
    session = app()
    serve(str(tmp_path / "nothing"), results)
    session.run()
    assert session.error[0].value == "This view cannot be shown."
    assert "nothing" in session.code[0].value and not session.exception


def test_nan_in_the_stream_is_a_red_banner(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    session = app("norms")
    model = computed.model()
    with torch.no_grad():
        model.layers[1].attention_norm.weight[0] = torch.nan  # type: ignore[union-attr,operator]
    session.text_area(key="prompt").set_value("a new prompt").run()
    assert "NaN or infinite" in session.error[0].value
    assert not session.exception


@pytest.mark.parametrize(
    ("page", "options"),
    [
        ("attention", {}),
        ("rope", {}),
        ("rope", {"view": "This head"}),
        ("rope", {"view": "Shift"}),
        ("rope", {"view": "What if"}),
        ("norms", {}),
        ("norms", {"look": "Gains"}),
        ("norms", {"look": "Activations"}),
        ("norms", {"look": "Contributions"}),
        ("lens", {}),
        ("neurons", {}),
        ("intervene", {"changes": '[{"kind": "ablate", "target": "L1H2"}]', "perhead": "true"}),
        ("compare", {"changes": '[{"kind": "ablate", "target": "L1H2"}]'}),
        ("compare", {"compare": "Runs"}),
        ("benchmarks", {}),
    ],
)
def test_a_question_mark_by_every_figure_says_what_it_shows(app: App, page: str, options: dict[str, str]) -> None:
    session = app(page, **options)
    assert not session.exception
    drawn, silent = figures(session)
    assert drawn and not silent


@pytest.mark.parametrize("page", sorted(path.stem for path in (ROOT / "dashboard/pages").glob("*.py")))
def test_what_is_computed_moves_nothing_on_the_page(app: App, page: str) -> None:
    """The browser creates an element again if it moves; its widget then loses its link to the URL."""
    session = app(page, prompt="the cat sat on the mat", compare="Captures")
    assert not session.exception
    first = shape(session.main)
    assert shape(session.run().main) == first
    st.cache_resource.clear()
    shared_cache.clear_all()
    assert shape(session.run().main) == first


def test_rope_shows_one_pair_and_one_distance(app: App, checkpoint: Path) -> None:
    session = app("rope", prompt="the cat sat on the mat", view="This head", layer=2, head=3, pair=1, distance=2)
    assert not session.exception and not session.error
    model = wb.load_model(checkpoint)
    assert model.tokenizer is not None
    tokens = torch.tensor([model.tokenizer.encode("the cat sat on the mat", bos=True)])
    with torch.no_grad():
        _, cap = model.run_with_capture(tokens, ["blocks.2.attn.hook_rot_q", "blocks.2.attn.hook_rot_k"])
    q = cap["blocks.2.attn.hook_rot_q"][0, :, 3].double()
    k = cap["blocks.2.attn.hook_rot_k"][0, :, 0].double()
    apart = (q @ k.T).diagonal(-2) / 8**0.5
    assert numbers(session)["Mean score"] == f"{apart.mean():.3f}"
    # Farther than the prompt reaches is as far as it reaches, and is said.
    far = app("rope", prompt="the cat sat on the mat", view="This head", layer=2, head=3, distance=9999)
    message = f"distance=9999 is not available here; showing {len(q) - 1}."
    assert not far.exception and message in [code.value for code in far.code]
    assert numbers(far)["Mean score"] == f"{(q @ k.T)[-1, 0] / 8**0.5:.3f}"


def test_a_prompt_comes_from_a_file(app: App) -> None:
    session = app()
    content = "the cat sat\non the mat".encode("utf-8-sig")
    session.file_uploader(key="prompt_file").set_value(("a.txt", content, "text/plain")).run()
    assert not session.exception and not session.error
    assert session.text_area(key="prompt").value == "the cat sat\non the mat"
    assert session.query_params["prompt"] == "the cat sat\non the mat"
    for content, message in ((b"\xff\xfe", "not UTF-8 text"), (b"a" * 100_001, "100,001 characters")):
        session.file_uploader(key="prompt_file").set_value(("b.bin", content, "text/plain")).run()
        assert not session.exception and "was not used" in session.error[0].value
        assert any(message in code.value for code in session.code)
        assert session.text_area(key="prompt").value == "the cat sat\non the mat"


def test_a_file_takes_the_place_of_what_no_longer_exists(app: App) -> None:
    session = app(sample="gone/tiny_quiz/0")
    assert session.error
    session.file_uploader(key="prompt_file").set_value(("a.txt", b"the cat", "text/plain")).run()
    assert not session.error and session.text_area(key="prompt").value == "the cat"


def test_an_example_gives_the_typed_prompt_back(serve: Callable[[str, Path], None], tmp_path: Path) -> None:
    serve("demo", tmp_path)
    session = AppTest.from_file(str(ROOT / "app.py"), default_timeout=60).run()
    session.text_area(key="prompt").set_value("abc abc abc").run()
    session.button(key="guide_induction").click().run()
    assert session.text_area(key="prompt").value.startswith("seven lemons")
    session.button(key="guide_next").click().run()
    session.button(key="guide_leave").click().run()
    assert not session.exception and session.text_area(key="prompt").value == "abc abc abc"


def test_what_if_opens_on_an_example(app: App) -> None:
    session = app("rope", view="What if")
    assert not session.exception
    own = app("rope").number_input(key="theta").value
    assert session.number_input(key="theta").value == 10 * own and session.number_input(key="theta").step == own / 10


def test_token_ids_to_start_with_are_no_special_tokens() -> None:
    for vocab_size in (49_152, 128_256, 562):
        ids = [int(text) for text in default_ids(vocab_size).split()]
        assert ids[:8] == ids[8:] and len(set(ids)) == 8
        assert all(vocab_size // 3 <= token < 2 * vocab_size // 3 for token in ids)
