"""What a run with a capture computes: logits, layers, gradients, positions, memory."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import workbench as wb
from tests.workbench.reference import hugging_face, ours
from workbench.errors import CaptureBudgetError, CaptureError, WorkbenchError, WorkbenchWarning
from workbench.hooks.hook_points import SUMMARIES, Subscription, subscribe

TOKENS = torch.randint(0, 96, (2, 12), generator=torch.Generator().manual_seed(0))
PATTERN, RESULT = "blocks.1.attn.hook_pattern", "blocks.1.attn.hook_result"


class Largest(TorchDispatchMode):
    """Size in elements of the largest tensor that any operation makes; the model's weights are not made."""

    def __init__(self, model: wb.Transformer) -> None:
        super().__init__()
        self.weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in filter(torch.is_tensor, tree_leaves(out)):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self.weights:
                self.elements = max(self.elements, storage.nbytes() // tensor.element_size())
        return out


@pytest.fixture
def wide(tiny_config):
    """A model whose logits are far larger than anything else."""
    torch.manual_seed(0)
    return wb.Transformer(wb.ModelConfig(**{**vars(tiny_config), "vocab_size": 5_000})).requires_grad_(False)


# --- logits


def test_last_and_no_logits_equal_those_of_a_whole_run(tiny_model) -> None:
    whole, full = tiny_model.run_with_capture(TOKENS, ["blocks.0.hook_resid_pre", "hook_logits"])
    last, _ = tiny_model.run_with_capture(TOKENS, "blocks.0.hook_resid_pre", logits="last")
    assert last.shape == (2, 1, 96) and torch.allclose(last, whole[:, -1:], atol=1e-6)
    nothing, captured = tiny_model.run_with_capture(TOKENS, "*", logits=None, positions=[3, -1])
    assert nothing is None
    assert torch.allclose(captured["hook_logits"], whole[:, [3, 11]], atol=1e-6)
    _, everything = tiny_model.run_with_capture(TOKENS, "*", logits=None)
    assert torch.equal(everything["hook_logits"], full["hook_logits"])
    with tiny_model.intervene(wb.Scale("hook_logits", 2.0, positions=[11])):
        doubled, _ = tiny_model.run_with_capture(TOKENS, "hook_embed", logits="last")
    assert torch.allclose(doubled, 2 * last, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "rows"), [({"logits": None}, 0), ({"logits": "last"}, 1), ({"logits": None, "positions": [4, 9]}, 2)]
)
def test_logits_that_are_not_asked_for_are_never_made(wide, options, rows) -> None:
    tokens = torch.zeros(1, 100, dtype=torch.int64)
    names = ["blocks.1.hook_resid_pre", *(["hook_logits"] if "positions" in options else [])]
    with Largest(wide) as largest:
        wide.run_with_capture(tokens, names, **options)
    # Without logits, attention's mask is the largest.
    assert largest.elements <= max(rows * 5_000, 100 * 100)
    with Largest(wide) as largest:
        wide.run_with_capture(tokens, names)
    assert largest.elements == 100 * 5_000


def test_the_budget_counts_logits(wide) -> None:
    tokens = torch.zeros(1, 100, dtype=torch.int64)
    n_bytes = wide.run_with_capture(tokens, "hook_embed")[1].n_bytes
    for dtype, per_logit in ((torch.float32, 4), (torch.bfloat16, 6)):
        wide.to(dtype)
        held = n_bytes * dtype.itemsize // 4
        for logits, count in (("all", 100), ("last", 1), (None, 0)):
            exact = held + count * 5_000 * per_logit
            wide.run_with_capture(tokens, "hook_embed", logits=logits, budget=exact)
            with pytest.raises(CaptureBudgetError) as refusal:
                wide.run_with_capture(tokens, "hook_embed", logits=logits, budget=exact - 1)
            assert (f"logits of {count} tokens" in str(refusal.value)) == (count > 0)
            assert ("logits='last'" in str(refusal.value)) == (logits == "all")


# --- layers


@pytest.mark.parametrize("stop", [0, 1, 2, 3, -1, -3])
def test_a_run_stops_before_a_layer(tiny_model, stop) -> None:
    """TransformerLens's meaning: the layers below run, and the result is the stream before the layer."""
    _, full = tiny_model.run_with_capture(TOKENS, "*")
    at = stop % 3 if stop != 3 else 3
    expected = full["blocks.2.hook_resid_post"] if at == 3 else full[f"blocks.{at}.hook_resid_pre"]
    assert torch.equal(tiny_model(TOKENS, stop_at_layer=stop), expected)
    residual, captured = tiny_model.run_with_capture(TOKENS, "hook_embed", stop_at_layer=stop)
    assert torch.equal(residual, expected) and torch.equal(captured["hook_embed"], full["hook_embed"])
    last, _ = tiny_model.run_with_capture(TOKENS, "hook_embed", stop_at_layer=stop, logits="last")
    assert torch.equal(last, expected[:, -1:])
    assert tiny_model.run_with_capture(TOKENS, "hook_embed", stop_at_layer=stop, logits=None)[0] is None


def layers_that_run(model, names, **options) -> list[int]:
    ran: list[int] = []
    handles = [layer.register_forward_pre_hook(lambda *_, i=i: ran.append(i)) for i, layer in enumerate(model.layers)]
    model.run_with_capture(TOKENS, names, **options)
    for handle in handles:
        handle.remove()
    return ran


def test_without_logits_no_layer_runs_after_the_last_hook(tiny_model) -> None:
    assert layers_that_run(tiny_model, "hook_embed", logits=None) == []
    assert layers_that_run(tiny_model, ["blocks.1.attn.hook_pattern", "hook_embed"], logits=None) == [0, 1]
    assert layers_that_run(tiny_model, "blocks.*.hook_resid_pre", logits=None) == [0, 1, 2]
    assert layers_that_run(tiny_model, ["hook_embed", "ln_final.hook_scale"], logits=None) == [0, 1, 2]
    assert layers_that_run(tiny_model, "hook_embed") == [0, 1, 2]
    assert layers_that_run(tiny_model, "hook_embed", logits=None, cache=tiny_model.empty_cache(2, 12)) == [0, 1, 2]
    seen = []
    watcher = Subscription(frozenset(["blocks.2.hook_mlp_out"]), observe=lambda site, _: seen.append(site.name))
    with subscribe(tiny_model, watcher):
        assert layers_that_run(tiny_model, "hook_embed", logits=None) == [0, 1, 2]
    assert seen == ["blocks.2.hook_mlp_out"]


@pytest.mark.parametrize(
    "name", ["blocks.1.hook_resid_pre", "blocks.2.hook_mlp_out", "ln_final.hook_out", "hook_logits"]
)
def test_a_hook_beyond_the_stop_is_refused(tiny_model, name) -> None:
    with pytest.raises(CaptureError, match="beyond stop_at_layer=1"):
        tiny_model.run_with_capture(TOKENS, [name, "hook_embed"], stop_at_layer=1)


@pytest.mark.parametrize("stop", [4, -4, 1.5, True, "1"])
def test_a_layer_that_is_not_there_is_an_error(tiny_model, stop) -> None:
    for run in (lambda: tiny_model(TOKENS, stop_at_layer=stop), lambda: tiny_model.hidden(TOKENS, None, stop)):
        with pytest.raises(WorkbenchError, match="stop_at_layer is -3 to 3"):
            run()
    with pytest.raises(WorkbenchError, match="stop_at_layer is -3 to 3"):
        tiny_model.run_with_capture(TOKENS, "hook_embed", stop_at_layer=stop)


def test_a_cache_needs_all_layers(tiny_model) -> None:
    cache = tiny_model.empty_cache(2, 12)
    for run in (
        lambda: tiny_model(TOKENS, cache, stop_at_layer=1),
        lambda: tiny_model.run_with_capture(TOKENS, "hook_embed", stop_at_layer=1, cache=cache),
    ):
        with pytest.raises(WorkbenchError, match="cannot be used with a cache"):
            run()
    assert cache.length == 0


# --- gradients


def test_a_capture_keeps_no_graph_and_gives_arrays(tiny_model) -> None:
    assert next(tiny_model.parameters()).requires_grad and torch.is_grad_enabled()
    logits, captured = tiny_model.run_with_capture(TOKENS, "*")
    assert not logits.requires_grad
    for name in captured.names:
        assert isinstance(captured[name].numpy(), np.ndarray), name


def test_gradients_equal_finite_differences(tiny_model) -> None:
    """At every hook on the path: a step along the gradient changes the target by the gradient's norm."""
    names = [name for name in wb.hook_names(tiny_model.config) if not name.endswith(SUMMARIES)]

    def target(logits: torch.Tensor) -> torch.Tensor:
        return logits[0, -1, 3] - logits[1, 5, 7]

    logits, captured = tiny_model.run_with_capture(TOKENS, names, grad=True)
    gradients = torch.autograd.grad(target(logits), [captured[name] for name in names])
    causal = torch.ones(12, 12).tril()
    for name, gradient in zip(names, gradients, strict=True):
        direction = gradient * causal if name.endswith(("pattern", "scores")) else gradient
        norm = direction.norm()
        assert norm > 1e-4, name
        step = direction / norm * (1e-2 / norm)  # changes the target by 0.01
        values = []
        for sign in (1, -1):
            edit = Subscription(frozenset([name]), edit=lambda _, x, change=sign * step: x + change)
            with torch.no_grad(), subscribe(tiny_model, edit):
                values.append(target(tiny_model(TOKENS)))
        assert float(values[0] - values[1]) == pytest.approx(2e-2, rel=0.03), name


def test_gradients_of_patterns_equal_transformers() -> None:
    reference = hugging_face(heads=4, kv_heads=2, vocab_size=96)
    model = ours(reference)
    reference.set_attn_implementation("eager")
    out = reference(TOKENS, output_attentions=True)
    for attention in out.attentions:
        attention.retain_grad()
    out.logits[0, -1, 3].backward()
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(model.config.n_layers)]
    logits, captured = model.run_with_capture(TOKENS, names, grad=True)
    gradients = torch.autograd.grad(logits[0, -1, 3], [captured[name] for name in names])
    causal = torch.ones(12, 12, dtype=torch.bool).tril()
    for gradient, attention in zip(gradients, out.attentions, strict=True):
        assert gradient.abs().max() > 1e-4
        assert torch.allclose(gradient[..., causal], attention.grad[..., causal], atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize(
    "options", [{"heads": [1, 3]}, {"positions": [2, -1]}, {"positions": [[3], [7]], "heads": [2]}]
)
def test_a_narrowed_capture_is_on_the_path(tiny_model, options) -> None:
    names = ["blocks.1.attn.hook_z", "blocks.0.hook_mlp_out", PATTERN, RESULT, "blocks.2.attn.hook_v"]
    logits, whole = tiny_model.run_with_capture(TOKENS, names, grad=True)
    full = torch.autograd.grad(logits[:, -1, 3].sum(), [whole[name] for name in names])
    same, part = tiny_model.run_with_capture(TOKENS, names, grad=True, **options)
    assert torch.allclose(same, logits, atol=1e-5)
    gradients = torch.autograd.grad(same[:, -1, 3].sum(), [part[name] for name in names])
    rows = part.row_positions or [part.positions or range(12)] * 2
    heads = list(part.heads or range(4))
    causal = torch.ones(12, 12).tril()
    for name, gradient, expected in zip(names, gradients, full, strict=True):
        for i, row in enumerate(rows):
            if name == PATTERN:
                of_row = (expected[i] * causal)[heads][:, list(row)]
            elif name.endswith("hook_v"):
                of_row = expected[i][list(row)][:, sorted({h // 2 for h in heads})]
            else:
                of_row = expected[i][list(row)]
                of_row = of_row if name.endswith("mlp_out") else of_row[:, heads]
            assert torch.allclose(gradient[i], of_row, atol=1e-5), name


def test_gradients_need_no_weight_that_requires_them(tiny_model) -> None:
    tiny_model.requires_grad_(False)
    with torch.no_grad():
        logits, captured = tiny_model.run_with_capture(TOKENS, ["hook_embed", RESULT], grad=True)
    salience, result = torch.autograd.grad(logits[0, -1, 3], [captured["hook_embed"], captured[RESULT]])
    assert salience[0].abs().sum() > 0 and salience[1].abs().sum() == 0 and result[0, -1].abs().sum() > 0


def test_gradients_under_inference_mode_are_refused(tiny_model) -> None:
    with torch.inference_mode(), pytest.raises(CaptureError, match="inference_mode"):
        tiny_model.run_with_capture(TOKENS, "hook_embed", grad=True)


def test_gradients_with_a_cache_are_refused(tiny_model) -> None:
    """The cache is written in place, so that the graph of earlier layers would be broken."""
    cache = tiny_model.empty_cache(2, 12)
    with pytest.raises(CaptureError, match="run the whole text"):
        tiny_model.run_with_capture(TOKENS, "hook_embed", grad=True, cache=cache)
    assert cache.length == 0


# --- positions


def test_negative_positions_count_from_the_end_of_the_run(tiny_model) -> None:
    _, whole = tiny_model.run_with_capture(TOKENS, "*")
    _, part = tiny_model.run_with_capture(TOKENS, "*", positions=[-1, 2, -12, 11])
    assert part.positions == (0, 2, 11)
    assert torch.equal(part["blocks.1.hook_mlp_out"], whole["blocks.1.hook_mlp_out"][:, [0, 2, 11]])
    assert torch.allclose(part[PATTERN], whole[PATTERN][:, :, [0, 2, 11]], atol=1e-6)
    cache = tiny_model.empty_cache(2, 12)
    tiny_model(TOKENS[:, :8], cache)
    _, behind = tiny_model.run_with_capture(TOKENS[:, 8:], "*", positions=-1, cache=cache)
    assert behind.positions == (11,) and behind.start == 8
    assert torch.allclose(behind["blocks.1.hook_mlp_out"], whole["blocks.1.hook_mlp_out"][:, [11]], atol=1e-5)
    assert torch.allclose(behind[PATTERN], whole[PATTERN][:, :, [11]], atol=1e-5)


@pytest.mark.parametrize("as_tensor", [True, False])
def test_each_row_has_its_own_last_token(tiny_model, as_tensor, tmp_path) -> None:
    """Unequal prompts, padded at the right: each row equals its prompt alone."""
    lengths = torch.tensor([5, 12])
    last = lengths - 1 if as_tensor else [[-8], [11]]
    names = ["*"]
    _, captured = tiny_model.run_with_capture(TOKENS, names, positions=last)
    captured.save(tmp_path / "rows.safetensors")
    loaded = wb.Capture.load(tmp_path / "rows.safetensors")
    for capture in (captured, loaded):
        assert capture.row_positions == ((4,), (11,))
        for i, length in enumerate(lengths.tolist()):
            _, alone = tiny_model.run_with_capture(TOKENS[i : i + 1, :length], names, positions=[-1])
            for name in capture.names:
                ours_, theirs = capture[name][i], alone[name][0]
                if name.endswith(("pattern", "scores")) or name.endswith(("hook_map", "hook_key_mass")):
                    ours_ = ours_[..., :length]
                assert torch.allclose(ours_, theirs, atol=1e-5), name
        with pytest.raises(CaptureError, match="row_positions"):
            _ = capture.positions
        assert capture.pattern(1, heads=[2]).shape == (2, 1, 1, 12)


def test_positions_of_each_row_with_left_padding_and_under_an_edit(tiny_model) -> None:
    names = [PATTERN, "blocks.1.attn.hook_stats", "blocks.2.attn.hook_attn_scores", "blocks.1.hook_resid_pre"]
    pad = torch.tensor([0, 4])
    for change in ((), (wb.Scale(PATTERN, 0.5),)):
        with tiny_model.intervene(*change):
            _, whole = tiny_model.run_with_capture(TOKENS, names, cache=tiny_model.empty_cache(2, 12, pad=pad))
            cache = tiny_model.empty_cache(2, 12, pad=pad)
            _, part = tiny_model.run_with_capture(TOKENS, names, cache=cache, positions=[[3, 11], [9, 6]])
        for i, row in enumerate(([3, 11], [6, 9])):
            for name in names:
                axis = 0 if name.endswith("resid_pre") else 1
                expected = whole[name][i].index_select(axis, torch.tensor(row))
                assert torch.allclose(part[name][i], expected, atol=1e-5, equal_nan=True), name
    with tiny_model.intervene(wb.Scale(PATTERN, 0.5)), pytest.raises(CaptureError, match="sums over queries"):
        tiny_model.run_with_capture(TOKENS, "blocks.1.attn.hook_key_mass", positions=[[1], [2]])


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_positions_of_each_row_are_those_of_a_whole_run(tiny_model, data) -> None:
    n = data.draw(st.integers(1, 4))
    rows = [data.draw(st.lists(st.integers(-12, 11), min_size=n, max_size=n, unique_by=lambda p: p % 12)) for _ in "ab"]
    names = ["hook_embed", "blocks.1.attn.hook_k", PATTERN, "blocks.2.attn.hook_attn_scores", "hook_logits"]
    logits, whole = tiny_model.run_with_capture(TOKENS, names)
    given_as = data.draw(
        st.sampled_from(
            [
                list,
                torch.tensor,
                np.array,
                lambda x: list(map(np.array, x)),
                lambda x: [map(torch.tensor, y) for y in x],
            ]
        )
    )
    _, part = tiny_model.run_with_capture(TOKENS, names, positions=given_as(rows), logits=None)
    for i, row in enumerate(rows):
        at = sorted(p % 12 for p in row)
        for name in names:
            axis = 1 if name.endswith(("pattern", "scores")) else 0
            assert torch.allclose(part[name][i], whole[name][i].index_select(axis, torch.tensor(at)), atol=1e-5), name


@pytest.mark.parametrize(
    ("positions", "words"),
    [
        ([], "positions 0 to 11"),
        ([12], r"positions 0 to 11 \(from the end: -1 to -12\), found \[12\]"),
        ([-13], "found .-13"),
        ([0, 500], "found"),
        ([[0], [1, 2]], "equally many"),
        ([[0]], "2 rows"),
        ([[0], [1], [2]], "2 rows"),
        ([[0, 0], [1, 2]], "equally many"),
        ([[], []], "positions 0 to 11"),
        ([0.5], "whole numbers"),
        ([True, False], "whole numbers"),
        ("ab", "whole numbers"),
        ([None], "whole numbers"),
        (torch.tensor([1, 2, 3]), "Pass a list"),
        (torch.tensor([0.5, 1.0]), "whole numbers"),
        (torch.zeros(2, 2, 2, dtype=torch.int64), "whole numbers"),
        ([0, [1]], "found both"),
    ],
)
def test_positions_that_cannot_be_meant_are_refused(tiny_model, positions, words) -> None:
    with pytest.raises(CaptureError, match=words):
        tiny_model.run_with_capture(TOKENS, "hook_embed", positions=positions)


@pytest.mark.parametrize("positions", [(p for p in (1, -1)), {1, -1}, range(1, 12, 10), np.array([1, -1])])
def test_any_collection_of_numbers_is_positions(tiny_model, positions) -> None:
    assert tiny_model.run_with_capture(TOKENS, "hook_embed", positions=positions)[1].positions == (1, 11)


@pytest.mark.parametrize(
    ("tokens", "names", "options", "words"),
    [
        (TOKENS, None, {}, "names of hooks"),
        (TOKENS, [1], {}, "names of hooks"),
        (TOKENS, "hook_embed", {"budget": "1 GiB"}, "number of bytes"),
        (TOKENS, "hook_embed", {"logits": "first"}, "'all', 'last' or None"),
        (TOKENS, "hook_embed", {"heads": [1.5]}, "whole numbers"),
        (TOKENS, "hook_embed", {"layers": ["0"]}, "whole numbers"),
        ([[1, 2]], "hook_embed", {}, "must be a tensor"),
        (torch.tensor(3), "hook_embed", {}, r"of shape \[batch, pos\]"),
    ],
)
def test_arguments_of_a_wrong_kind_are_named(tiny_model, tokens, names, options, words) -> None:
    with pytest.raises(WorkbenchError, match=words):
        tiny_model.run_with_capture(tokens, names, **options)
    if tokens is not TOKENS:
        with pytest.raises(WorkbenchError, match=words):
            tiny_model(tokens)


# --- what a capture says and holds


def test_a_capture_describes_itself_in_a_few_lines(tiny_model) -> None:
    _, captured = tiny_model.run_with_capture(TOKENS, "*")
    assert len(repr(captured)) < 1_000 and len(repr(captured).splitlines()) <= 4
    assert "2 x 12 tokens" in repr(captured) and "float32" in repr(captured) and "KiB" in repr(captured)
    _, part = tiny_model.run_with_capture(TOKENS, PATTERN, heads=[1, 2], positions=range(3, 12))
    assert "blocks.*.attn.hook_pattern" in repr(part) and "3, 4, 5" in repr(part) and "heads: 1, 2" in repr(part)
    with tiny_model.intervene(wb.Ablate("L1H2")):
        assert "1 intervention" in repr(tiny_model.run_with_capture(TOKENS, "hook_embed")[1])


def test_shared_memory_counts_once(tiny_model) -> None:
    one = tiny_model.run_with_capture(TOKENS, "blocks.1.hook_resid_post")[1].n_bytes
    names = ["blocks.1.hook_resid_post", "blocks.2.hook_resid_pre"]
    _, both = tiny_model.run_with_capture(TOKENS, names, budget=one, logits=None)
    assert both.n_bytes == one
    with tiny_model.intervene(wb.Scale(names[1], 2.0)), pytest.raises(CaptureBudgetError):
        tiny_model.run_with_capture(TOKENS, names, budget=one, logits=None)


def test_an_edit_in_place_does_not_spoil_an_earlier_capture(tiny_model) -> None:
    names = ["blocks.1.hook_resid_post", "blocks.2.hook_resid_pre"]
    in_place = Subscription(frozenset(names[1:]), edit=lambda _, x: x.mul_(0))
    with subscribe(tiny_model, in_place), pytest.raises(CaptureError, match=r"blocks.1.hook_resid_post was changed in"):
        tiny_model.run_with_capture(TOKENS, names)


# --- limits of a run


def test_no_tokens_are_an_error(tiny_model) -> None:
    for shape in ((1, 0), (0, 4), (0, 0)):
        tokens = torch.zeros(shape, dtype=torch.int64)
        for run in (lambda t=tokens: tiny_model(t), lambda t=tokens: tiny_model.run_with_capture(t, "hook_embed")):
            with pytest.raises(WorkbenchError, match="at least one token"):
                run()


def test_a_run_beyond_the_context_warns_once(tiny_model) -> None:
    tokens = torch.zeros(1, 129, dtype=torch.int64)
    for run in (lambda: tiny_model(tokens), lambda: tiny_model.run_with_capture(tokens, "hook_embed")):
        with pytest.warns(WorkbenchWarning, match=r"129 tokens is longer than the model's context of 128") as warned:
            run()
        assert len(warned) == 1
    tiny_model(tokens[:, :128])
    with tiny_model.intervene(wb.RopeScaling(yarn=2.0)):
        tiny_model(tokens)
    cache = tiny_model.empty_cache(1, 140)
    tiny_model(tokens[:, :128], cache)
    with pytest.warns(WorkbenchWarning) as warned:
        for _ in range(3):
            tiny_model(tokens[:, :1], cache)
    assert len(warned) == 1


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        MemoryError(),
    ],
)
def test_memory_that_runs_out_is_one_of_our_errors(tiny_model, monkeypatch, error) -> None:
    def fail(*_):
        raise error

    monkeypatch.setattr(type(tiny_model.layers[2]), "forward", fail)
    stream = wb.stream(tiny_model, [1, 2, 3])
    for run in (
        lambda: tiny_model(TOKENS),
        lambda: tiny_model.run_with_capture(TOKENS, "hook_embed"),
        lambda: next(stream),
        lambda: next(wb.stream(tiny_model, [1, 2, 3], capture="hook_embed")),
    ):
        with pytest.raises(
            WorkbenchError, match=r"memory ran out on cpu in a run of \d x \d+ tokens. Shorten"
        ) as ours_:
            run()
        assert ours_.value.__context__ is None or not ours_.value.__context__.__traceback__


def test_other_errors_of_a_run_stay_what_they_are(tiny_model, monkeypatch) -> None:
    def fail(*_):
        raise RuntimeError("a bug")

    monkeypatch.setattr(type(tiny_model.layers[2]), "forward", fail)
    for run in (lambda: tiny_model(TOKENS), lambda: tiny_model.run_with_capture(TOKENS, "hook_embed")):
        with pytest.raises(RuntimeError, match="a bug"):
            run()
