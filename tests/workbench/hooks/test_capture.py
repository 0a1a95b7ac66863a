"""Captures: narrowing, lazy patterns, the budget, and files."""

import pytest
import torch

import workbench as wb
from workbench.errors import CaptureBudgetError, CaptureError, MissingHookError
from workbench.hooks.hook_points import SUMMARIES

TOKENS = torch.randint(0, 96, (2, 12), generator=torch.Generator().manual_seed(0))
PATTERNS = "blocks.*.attn.hook_pattern"


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def test_a_pattern_read_later_is_the_pattern_computed_in_the_run(tiny_model) -> None:
    names = [PATTERNS, "blocks.*.attn.hook_attn_scores", *(f"blocks.*.{name}" for name in SUMMARIES)]
    _, lazy = tiny_model.run_with_capture(TOKENS, names)
    _, dense = tiny_model.run_with_capture(TOKENS, names, materialize=True)
    assert lazy.inputs and not lazy.tensors and dense.tensors and not dense.inputs
    for name in lazy.names:
        assert torch.equal(lazy[name], dense[name]), name


def test_lazy_patterns_take_linear_memory(tiny_model) -> None:
    sizes = []
    for length in (32, 64, 128):
        _, capture = tiny_model.run_with_capture(torch.zeros(1, length, dtype=torch.int64), PATTERNS)
        sizes.append(capture.n_bytes)
    assert sizes == [sizes[0], 2 * sizes[0], 4 * sizes[0]]


def test_narrowing_captures_only_what_was_requested(tiny_model) -> None:
    _, whole = tiny_model.run_with_capture(TOKENS, "*")
    _, part = tiny_model.run_with_capture(TOKENS, "*", layers=[1], heads=[3, 0, 2], positions=[4, 11])
    assert part.heads == (0, 2, 3) and part.positions == (4, 11)
    rows, heads = torch.tensor([4, 11]), torch.tensor([0, 2, 3])
    at = "blocks.1.attn.hook_"
    assert torch.equal(part[at + "z"], whole[at + "z"][:, rows][:, :, heads])
    assert torch.equal(part[at + "k"], whole[at + "k"][:, rows])  # heads 0, 2, 3 need both key heads
    for name in ("pattern", "attn_scores", "stats"):
        assert torch.allclose(part[at + name], whole[at + name][:, heads][:, :, rows], atol=1e-6), name
    assert torch.equal(part["blocks.1.mlp.hook_post"], whole["blocks.1.mlp.hook_post"][:, rows])
    assert "blocks.0.hook_mlp_out" not in part and "hook_embed" in part
    _, narrowed = tiny_model.run_with_capture(TOKENS, "*", layers=[1], heads=[3])
    assert torch.equal(narrowed[at + "v"], whole[at + "v"][:, :, 1:])  # head 3 is served by key head 1
    assert torch.equal(narrowed[at + "pattern"], whole[at + "pattern"][:, 3:])
    assert narrowed.n_bytes < whole.n_bytes / 3


def test_reading_a_part_of_a_pattern(tiny_model) -> None:
    _, capture = tiny_model.run_with_capture(TOKENS, PATTERNS)
    whole = capture["blocks.2.attn.hook_pattern"]
    part = capture.pattern(2, heads=[3, 1], queries=[5, 0])
    assert torch.allclose(part, whole[:, [3, 1]][:, :, [5, 0]], atol=1e-7)
    assert capture.stack("attn.hook_pattern").shape == (3, 2, 4, 12, 12)
    with pytest.raises(MissingHookError, match="position"):
        capture.pattern(2, queries=[12])
    with pytest.raises(MissingHookError, match="does not hold 'hook_embed'"):
        capture["hook_embed"]


def test_the_estimate_is_what_the_capture_holds(tiny_model) -> None:
    for options in ({}, {"layers": [0, 2]}, {"heads": [1]}, {"positions": [3, 4, 5]}):
        _, capture = tiny_model.run_with_capture(TOKENS, "*", **options)
        estimate = sum(capture.request.n_bytes(tiny_model.config, 2, 12, 0, 4).values())
        assert estimate == capture.n_bytes, options


def test_over_budget_is_refused_before_it_runs(tiny_model, monkeypatch) -> None:
    monkeypatch.setattr(type(tiny_model), "hidden", lambda *_: pytest.fail("the model ran"))
    with pytest.raises(CaptureBudgetError) as refusal:
        tiny_model.run_with_capture(TOKENS, "*", budget=10_000)
    message = str(refusal.value)
    assert "blocks.*.attn.hook_result" in message and "layers=" in message and "9.8 KiB" in message


@torch.no_grad()
def test_a_capture_survives_its_file(tiny_model, tmp_path) -> None:
    with tiny_model.intervene(wb.Scale("blocks.0.hook_mlp_out", 0.5)):
        _, capture = tiny_model.run_with_capture(TOKENS, "*", heads=[1, 2])
    capture.save(tmp_path / "run.safetensors")
    loaded = wb.Capture.load(tmp_path / "run.safetensors")
    assert loaded.names == capture.names and loaded.heads == (1, 2) and loaded.config == tiny_model.config
    for name in capture.names:
        assert torch.equal(loaded[name], capture[name]), name
    assert loaded.provenance["interventions"] == [{"kind": "scale", "target": "blocks.0.hook_mlp_out", "factor": 0.5}]
    assert loaded.provenance["pair_order"] == "adjacent" and loaded.provenance["versions"]["torch"]
    assert [p.name for p in tmp_path.iterdir()] == ["run.safetensors"]


@pytest.mark.gpu
@torch.no_grad()
def test_a_capture_is_read_onto_a_device(tiny_model, tmp_path) -> None:
    _, capture = tiny_model.run_with_capture(TOKENS, "*")
    capture.save(tmp_path / "run.safetensors")
    loaded = wb.Capture.load(tmp_path / "run.safetensors", device="cuda")
    for name in capture.names:
        assert loaded[name].device.type == "cuda" and torch.allclose(loaded[name].cpu(), capture[name], atol=1e-6), name


def test_what_cannot_be_captured_or_read_is_an_error(tiny_model, tmp_path) -> None:
    with pytest.raises(CaptureError, match="heads 0 to 3"):
        tiny_model.run_with_capture(TOKENS, PATTERNS, heads=[4])
    with pytest.raises(CaptureError, match="positions 0 to 11"):
        tiny_model.run_with_capture(TOKENS, PATTERNS, positions=[12])
    (tmp_path / "broken").write_bytes(b"not a capture")
    for path in ("broken", "absent"):
        with pytest.raises(CaptureError, match=path):
            wb.Capture.load(tmp_path / path)


def test_a_capture_that_cannot_be_written_is_an_error_and_leaves_no_file(tiny_model, tmp_path):
    _, capture = tiny_model.run_with_capture(torch.tensor([[1, 2]]), "hook_embed")
    (tmp_path / "taken").mkdir()
    for path in (tmp_path / "no" / "folder.safetensors", tmp_path / "taken"):
        with pytest.raises(CaptureError, match="cannot be written"):
            capture.save(path)
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
