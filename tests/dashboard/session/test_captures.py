"""Saved captures: saving, listing, opening instead of running, deleting; damaged files and those of other models."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from streamlit.testing.v1 import AppTest

from dashboard.panels import compare_sides, tour
from dashboard.session import captures, shared_cache
from probes.norms import rms_norms
from tests.dashboard.page_text import numbers, read_table, read_tables, texts
from tests.dashboard.world import write_checkpoint
from workbench.checkpoint import load_model
from workbench.cli import main
from workbench.errors import DataError
from workbench.hooks.capture import Capture
from workbench.hooks.interventions import Ablate, Scale, to_json
from workbench.model import Transformer

TEXT = "The cat sat on the mat"


@pytest.fixture
def kept(app: Callable[..., AppTest], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., AppTest]:
    """Opens pages of a server whose captures folder is empty."""
    monkeypatch.setenv("WORKBENCH_APP_CAPTURES", str(tmp_path / "kept"))

    def open_page(page: str = "overview", **params: object) -> AppTest:
        monkeypatch.setenv("WORKBENCH_APP_CAPTURES", str(tmp_path / "kept"))
        return app(page, **params)

    monkeypatch.setattr("dashboard.session.captures.folder", lambda: tmp_path / "kept")
    return open_page


def save(page: AppTest, name: str) -> AppTest:
    page.text_input(key="capture_name").set_value(name)
    return page.button(key="save_capture").click().run()


def test_a_capture_is_kept_opened_and_nothing_is_run_again(
    kept: Callable[..., AppTest], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = save(kept(prompt=TEXT), "cat 1")
    assert not page.exception and not page.error
    (stored,) = captures.list_captures()
    assert stored.name == "cat 1" and stored.tokens > 3 and stored.checkpoint and stored.problem is None
    assert stored.bytes == stored.path.stat().st_size

    runs = []
    run = Transformer.run_with_capture
    monkeypatch.setattr(
        Transformer, "run_with_capture", lambda self, *a, **k: (runs.append(a[0].tolist()), run(self, *a, **k))[1]
    )
    ids = captures.load(stored, torch.device("cpu")).tokens.tolist()
    for name in ("attention", "rope", "norms", "lens", "neurons"):
        shared_cache.clear_all()
        other = kept(name, capture="cat 1")
        assert not other.exception and not other.error, name
        assert any("read from its file" in text.value for text in other.text), name
        assert ids not in runs, name  # Attention runs random blocks, for its induction scores


def test_numbers_of_a_stored_capture_are_those_of_the_run(kept: Callable[..., AppTest]) -> None:
    save(kept(prompt=TEXT), "cat")
    plain, opened = kept("norms", prompt=TEXT), kept("norms", capture="cat")
    assert [frame.equals(other) for frame, other in zip(read_tables(plain), read_tables(opened), strict=True)]
    assert numbers(plain) == numbers(opened)


def test_a_capture_of_the_command_line_shows_up(kept: Callable[..., AppTest], checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    path = tmp_path / "kept" / "mine.safetensors"
    assert main(["capture", str(checkpoint), TEXT, "--hooks", "blocks.*.hook_resid_post", "-o", str(path)]) == 0
    (stored,) = captures.list_captures()
    assert stored.name == "mine" and stored.checkpoint == load_model(checkpoint).source.checkpoint_sha256
    page = kept("norms", capture="mine")  # it lacks the hooks of this page, which runs the tokens instead
    assert not page.exception and not page.error
    (caption,) = [text.value for text in page.text if text.value.startswith("Capture mine")]
    assert "read from its file" not in caption and caption.endswith("so the model was run on its tokens")
    assert (
        "; the file does not contain blocks." in caption
        and " blocks.*.ln1.hook_scale," in caption
        and "hook_resid_post" not in caption
    )


def test_what_a_capture_lacks_is_named_by_hook_and_layer(checkpoint: Path) -> None:
    model = load_model(checkpoint)
    with torch.no_grad():
        _, cap = model.run_with_capture(
            torch.tensor([[5, 6]]), ["blocks.1.attn.hook_z", "blocks.3.attn.hook_z", "hook_embed"]
        )
    hooks = ("blocks.*.attn.hook_z", "blocks.*.hook_mlp_out", "hook_embed", "hook_logits")
    assert captures.missing_hooks(cap, hooks) == ["blocks.{0,2}.attn.hook_z", "blocks.*.hook_mlp_out", "hook_logits"]
    assert captures.covers(cap, ("hook_embed",)) and not captures.covers(cap, hooks)


def test_a_capture_in_another_type_is_not_said_to_be_read(kept: Callable[..., AppTest], checkpoint: Path) -> None:
    model = load_model(checkpoint, dtype=torch.bfloat16)
    assert model.source is not None
    with torch.no_grad():
        _, cap = model.run_with_capture(torch.tensor([[5, 6, 7]]), captures.HOOKS)
    captures.save(cap, "half", checkpoint=model.source.checkpoint_sha256)
    page = kept("norms", capture="half")
    assert any("the file is in bfloat16, the model in float32" in text.value for text in page.text)
    page = kept("compare", prompt=TEXT, b_of=compare_sides.KEPT, b_capture="half")
    assert any(text.value.startswith("B: the file is in bfloat16") for text in page.text)


def test_overview_takes_the_next_tokens_from_the_capture(
    kept: Callable[..., AppTest], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = save(kept(prompt=TEXT), "cat")
    runs: list[int] = []
    hidden = Transformer.hidden
    monkeypatch.setattr(Transformer, "hidden", lambda self, *a, **k: (runs.append(1), hidden(self, *a, **k))[1])
    page = kept(capture="cat")
    assert not page.exception and not page.error and not runs
    shown = [read_table(opened, "probability") for opened in (page, plain)]
    assert shown[0]["id"].tolist() == shown[1]["id"].tolist()
    assert shown[0]["probability"].tolist() == pytest.approx(shown[1]["probability"].tolist(), rel=1e-5)
    assert any("The model was not run" in caption.value for caption in page.caption)


def test_the_command_that_is_shown_keeps_what_every_page_needs(
    kept: Callable[..., AppTest], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    prompt = "it's the cat's $HOME"
    page = kept(prompt=prompt)
    make, run = next(text for text in texts(page) if "workbench capture" in text).split(" && ")
    program, *words = shlex.split(run)
    assert program == "workbench" and shlex.split(make) == ["mkdir", "-p", str(tmp_path / "kept")]
    (tmp_path / "kept").mkdir()
    assert main(words) == 0
    page = kept(prompt=prompt)
    assert not any("workbench capture" in text for text in texts(page))
    (stored,) = captures.list_captures()
    assert captures.covers(captures.load(stored, torch.device("cpu")), captures.HOOKS)
    ids = load_model(words[1]).tokenizer.encode(prompt, bos=True)
    assert captures.load(stored, torch.device("cpu")).tokens[0].tolist() == ids


def test_the_list_is_there_where_nothing_can_be_run(kept: Callable[..., AppTest]) -> None:
    page = kept(sample="gone/tiny_quiz/0")
    assert page.error and "Captures" in [part.value for part in page.subheader]
    assert any(text.endswith("mine.safetensors") and " PROMPT " in text for text in texts(page))
    save(kept(prompt=TEXT), "cat")
    page = kept(sample="gone/tiny_quiz/0")
    assert page.selectbox(key="capture_choice").options == ["cat"]
    assert "save_capture" not in [button.key for button in page.button]


def test_damaged_foreign_and_missing_captures_are_one_sentence(kept: Callable[..., AppTest], tmp_path: Path) -> None:
    save(kept(prompt=TEXT), "cat")
    whole = captures.find("cat").path
    (whole.parent / "broken.safetensors").write_bytes(whole.read_bytes()[:100])
    other = load_model(write_checkpoint(tmp_path / "other", layers=2))
    _, cap = other.run_with_capture(torch.tensor([[5, 6]]), captures.HOOKS)
    captures.save(cap, "foreign", checkpoint=other.source.checkpoint_sha256)
    _, several = other.run_with_capture(torch.tensor([[5, 6], [7, 8]]), "hook_embed")
    several.save(whole.parent / "several.safetensors")
    page = kept(prompt=TEXT)
    (table,) = [frame for frame in read_tables(page) if "hooks" in frame]
    assert table.set_index("name")["state"].str.startswith("damaged")["broken"] and len(table) == 4
    for name, message in {
        "broken": "is damaged", "foreign": "of another model", "gone": "There is no capture 'gone'",
        "../cat": "A capture's name may contain", "several": "several prompts",
    }.items():  # fmt: skip
        page = kept("attention", capture=name)
        assert not page.exception, name
        assert page.error[0].value == "There is no input to run." and message in page.code[0].value, name
        assert any(button.label == "Back to a prompt" for button in page.button), name


@pytest.mark.parametrize("name", ["", "../x", "/etc/x", ".hidden", "a" * 90, "a/b", "a\0b", "a\n"])
def test_no_name_leads_out_of_the_folder(name: str) -> None:
    with pytest.raises(DataError, match="letters, digits"):
        captures.path_of(name)


def test_names_are_not_taken_twice_and_deleting_asks_nobody_else(kept: Callable[..., AppTest]) -> None:
    page = save(kept(prompt=TEXT), "cat")
    page = save(page, "cat")
    assert "The capture was not saved or deleted." in page.error[0].value and any(
        "already" in code.value for code in page.code
    )
    page.button(key="delete_capture").click().run()
    assert captures.list_captures() == [] and not page.exception


def test_a_saved_capture_reads_back_as_it_was(kept: Callable[..., AppTest], checkpoint: Path) -> None:
    save(kept(prompt=TEXT), "cat")
    model = load_model(checkpoint)
    ids = [model.tokenizer.encode(TEXT, bos=True)]
    with torch.no_grad():
        _, cap = model.run_with_capture(torch.tensor(ids), captures.HOOKS)
    read = Capture.load(captures.find("cat").path)
    assert set(read.names) == set(cap.names)
    for name in cap.names:
        # Two runs, which on some processors differ by a bit.
        torch.testing.assert_close(read[name], cap[name], msg=name)


@pytest.mark.parametrize("hooks", [captures.HOOKS, ("hook_embed",)], ids=["from the file", "run anew"])
def test_a_capture_under_interventions_stays_under_them(
    kept: Callable[..., AppTest], checkpoint: Path, hooks: tuple[str, ...]
) -> None:
    model = load_model(checkpoint)
    ids = [model.tokenizer.encode(TEXT, bos=True)]
    with torch.no_grad(), model.intervene(Scale("blocks.1.hook_mlp_out", 3.0)):
        _, cap = model.run_with_capture(torch.tensor(ids), hooks)
        _, whole = model.run_with_capture(torch.tensor(ids), rms_norms.HOOKS)
    captures.save(cap, "scaled", checkpoint=model.source.checkpoint_sha256)
    page, plain = kept("norms", capture="scaled"), kept("norms", prompt=TEXT)
    assert any("with scale blocks.1.hook_mlp_out x 3" in text.value for text in page.text)
    code = page.code[-1].value
    assert "model.intervene(*from_json(" in code and "intervene" not in plain.code[-1].value
    shown: dict[str, object] = {}
    exec(code, shown)
    assert torch.equal(shown["cap"]["blocks.3.hook_resid_post"], whole["blocks.3.hook_resid_post"])
    assert numbers(page) != numbers(plain) or not all(
        frame.equals(other) for frame, other in zip(read_tables(page), read_tables(plain), strict=True)
    )


def test_a_kept_capture_is_compared_with_another_and_with_a_prompt(
    kept: Callable[..., AppTest], checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(checkpoint)
    assert model.tokenizer is not None and model.source is not None
    ids = torch.tensor([model.tokenizer.encode(TEXT, bos=True)])
    change = Scale("blocks.1.hook_mlp_out", 3.0)
    logprobs = []
    for name, changes in (("plain", ()), ("scaled", (change,))):
        with torch.no_grad(), model.intervene(*changes):
            logits, cap = model.run_with_capture(ids, captures.HOOKS)
        captures.save(cap, name, checkpoint=model.source.checkpoint_sha256)
        logprobs.append(logits[0].double().log_softmax(-1))
    kl = (logprobs[0].exp() * (logprobs[0] - logprobs[1])).sum(-1).mean()
    runs = []
    monkeypatch.setattr(Transformer, "run_with_capture", lambda *_, **__: runs.append(1))
    shared_cache.clear_all()
    page = kept("compare", capture="plain", b_of=compare_sides.KEPT, b_capture="scaled")
    assert not page.exception and not page.error
    shown = numbers(page)
    assert float(shown["Mean KL (nats)"]) == pytest.approx(float(kl), rel=1e-2)  # three digits are shown
    assert shown["The runs diverge at"] == "blocks.1.hook_mlp_out"
    assert not runs


def test_without_a_kept_capture_compare_says_how_one_comes_to_be(kept: Callable[..., AppTest]) -> None:
    page = kept("compare", prompt=TEXT, b_of=compare_sides.KEPT)
    assert not page.exception and "No capture is saved yet" in page.info[0].value
    assert any("workbench capture" in text and TEXT in text for text in texts(page))


def test_what_its_run_changed_stays_changed_before_and_after(kept: Callable[..., AppTest], checkpoint: Path) -> None:
    model = load_model(checkpoint)
    assert model.tokenizer is not None and model.source is not None
    ids = torch.tensor([model.tokenizer.encode(TEXT, bos=True)])
    scale, ablate = Scale("blocks.1.hook_mlp_out", 3.0), Ablate("L2H1")
    logprobs = []
    for changes in ((scale,), (scale, ablate)):
        with torch.no_grad(), model.intervene(*changes):
            logits, cap = model.run_with_capture(ids, captures.HOOKS)
        if not logprobs:
            captures.save(cap, "scaled", checkpoint=model.source.checkpoint_sha256)
        logprobs.append(logits[0].double().log_softmax(-1))
    kl = float((logprobs[0].exp() * (logprobs[0] - logprobs[1])).sum(-1).mean())
    for name in ("intervene", "compare"):
        page = kept(name, capture="scaled", changes=to_json([ablate]))
        assert not page.exception and not page.error, name
        shown = numbers(page)
        assert float(shown["Mean KL (nats)"]) == pytest.approx(kl, rel=1e-2), name
        pasted: dict[str, object] = {}
        exec(next(code.value for code in page.code if code.value.startswith("import torch")), pasted)


def test_generate_goes_on_from_a_captures_tokens(kept: Callable[..., AppTest], checkpoint: Path) -> None:
    save(kept(prompt=TEXT), "cat")
    model = load_model(checkpoint)
    ids = model.tokenizer.encode(TEXT, bos=True)
    fresh = kept("generate", capture="cat", mode="Chat", temperature=0, new=3)
    other = kept("generate", prompt="the dog ran", temperature=0, new=3)
    other.query_params["capture"] = "cat"
    other.run()
    for page in (fresh, other):
        assert not page.exception and not page.error
        page.button(key="generate").click().run()
        code = next(element.value for element in page.code if element.language == "python")
        scope: dict[str, Any] = {}
        exec(compile(code, "generate", "exec"), scope)
        assert scope["trace"].prompt == tuple(ids)
        assert "Continues the capture's tokens." in [caption.value for caption in page.caption]


def test_an_example_takes_the_place_of_an_open_capture(kept: Callable[..., AppTest]) -> None:
    save(kept(prompt=TEXT), "cat")
    page = kept(capture="cat")
    assert any("Capture cat:" in text.value for text in page.text)
    page.button(key="guide_induction").click().run()
    assert page.header[0].value == "Attention" and not page.exception and not page.error
    assert page.text_area(key="prompt").value == tour.REPEATED
    assert "capture" not in page.query_params


def test_an_example_forgets_what_its_pages_would_not_show(kept: Callable[..., AppTest]) -> None:
    page = kept("rope", view="This head", pair=1, distance=2)
    page.switch_page("dashboard/pages/overview.py").run()
    page.button(key="guide_rope").click().run()
    page.switch_page("dashboard/pages/rope.py")  # the way the button took, for what is next
    page.session_state["view"] = "This head"
    page.run()
    assert [page.number_input(key=key).value for key in ("pair", "distance")] == [-1, -1]
