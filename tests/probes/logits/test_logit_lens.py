"""The stream's arithmetic: parts, neurons, keys that sum to the logit, and a lens that ends at the model's output."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import workbench as wb
from probes.logits import component_attribution, logit_attribution, logit_lens
from probes.logits import figures as figures_residual
from probes.norms import norm_linearity
from workbench.errors import HookError, MissingHookError
from workbench.hooks.capture import Capture
from workbench.hooks.interventions import Ablate
from workbench.model import Transformer

HOOKS = {*logit_attribution.HOOKS, *logit_lens.HOOKS}
EVERYTHING = {*HOOKS, *component_attribution.NEURON_HOOKS, *component_attribution.SOURCE_HOOKS}


@pytest.fixture
def run(tiny_model: Transformer, tokens: torch.Tensor) -> tuple[torch.Tensor, Capture]:
    with torch.no_grad():
        return tiny_model.run_with_capture(tokens, EVERYTHING)


# --- by part --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", [0, 7, -1])
def test_parts_sum_to_the_logit(tiny_model: Transformer, run: tuple[torch.Tensor, Capture], position: int) -> None:
    logits, cap = run
    attribution = logit_attribution.logit_attribution(tiny_model, cap, [3, 50, (95, 3)], position=position, row=1)
    expected = logits[1, position, [3, 50, 95]].numpy()
    expected[2] -= expected[0]
    # Float32 sums of some fifty terms of order 1.
    assert attribution.logits == pytest.approx(expected, abs=1e-5)
    assert attribution.values.sum(-1) == pytest.approx(expected, abs=1e-4)
    assert attribution.error < 1e-4
    assert len(attribution.parts) == attribution.values.shape[1] == 1 + 3 * (4 + 1)
    table = attribution.frame()
    assert list(table.columns) == [
        *("token", "minus", "kind", "layer", "head", "contribution", "removed", "frozen_error")
    ]
    sums = table.groupby(["token", "minus"], sort=False)["contribution"].sum()
    assert sums.to_numpy() == pytest.approx(expected, abs=1e-4) and sums.index[-1] == (95, 3)


def test_a_model_small_enough_to_work_out_by_hand() -> None:
    """Two dimensions, two tokens, and a block that adds nothing: all is the embedding's, (3, 4) / sqrt(12.5)."""
    config = wb.ModelConfig(
        dim=2, n_layers=1, n_heads=1, n_kv_heads=1, head_dim=2, ffn_dim=1, vocab_size=2, norm_eps=1e-12,
        rope_theta=10_000.0, rope_scaling=None, max_seq_len=8, tied_output=False,
    )  # fmt: skip
    model = Transformer(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for norm in (model.norm, model.layers[0].attention_norm, model.layers[0].ffn_norm):
            norm.weight.fill_(1.0)
        model.tok_embeddings.weight.copy_(torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
        model.output.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
        _, cap = model.run_with_capture(torch.tensor([[0]]), HOOKS)
    r = math.sqrt(12.5)
    attribution = logit_attribution.logit_attribution(model, cap, [0, 1, (1, 0)])
    assert attribution.values[:, 0] == pytest.approx([3 / r, 8 / r, 5 / r])
    assert not attribution.values[:, 1:].any() and not attribution.removed[:, 1:].any()
    seen = logit_lens.logit_lens(model, cap, k=2, targets=[0])
    gap = math.log1p(math.exp(5 / r))  # of token 0: ln(1 + e^(8/r - 3/r))
    assert seen.layers == (-1, 0) and seen.ids[:, 0].tolist() == [[1, 0], [1, 0]]
    assert seen.curves.logprobs[:, 0, 0] == pytest.approx([-gap, -gap]) and (seen.curves.ranks == 1).all()
    assert np.abs(seen.kl).max() < 1e-6
    with torch.no_grad():  # an MLP that takes half of the second dimension away: the stream is (3, 2), r = sqrt(6.5)
        _, cap = model.run_with_capture(torch.tensor([[0]]), HOOKS)
        cap.tensors["blocks.0.hook_mlp_out"][0, 0] = torch.tensor([0.0, -2.0])
        cap.tensors["blocks.0.hook_resid_post"][0, 0] = torch.tensor([3.0, 2.0])
        cap.tensors["ln_final.hook_scale"][0, 0] = math.sqrt(6.5)
        cap.tensors["ln_final.hook_out"][0, 0] = torch.tensor([3.0, 2.0]) / math.sqrt(6.5)
    attribution = logit_attribution.logit_attribution(model, cap, [1])
    mlp = attribution.parts.index(("mlp", 0, -1))
    assert attribution.values[0, [0, mlp]] == pytest.approx([8 / math.sqrt(6.5), -4 / math.sqrt(6.5)])
    assert attribution.removed[0, mlp] == pytest.approx(4 / math.sqrt(6.5) - 8 / math.sqrt(12.5))
    assert attribution.error < 1e-6


def test_tied_outputs_are_attributed_too(tiny_model: Transformer, tokens: torch.Tensor) -> None:
    tied = Transformer(replace(tiny_model.config, tied_output=True)).eval()
    weights = {name: weight for name, weight in tiny_model.state_dict().items() if name != "output.weight"}
    tied.load_state_dict(weights)
    with torch.no_grad():
        logits, cap = tied.run_with_capture(tokens, HOOKS)
    attribution = logit_attribution.logit_attribution(tied, cap, [5])
    assert attribution.values.sum() == pytest.approx(float(logits[0, -1, 5]), abs=1e-4)


@pytest.mark.parametrize("name", ["L2H2", "mlp"])
def test_what_is_removed_is_what_an_ablation_takes_away(
    tiny_model: Transformer, tokens: torch.Tensor, name: str
) -> None:
    """In the last layer a part reaches the logits directly alone, so the running model without it is the reference."""
    with torch.no_grad():
        if name != "mlp":
            tiny_model.layers[2].feed_forward.w2.weight.zero_()  # nothing after the head may react to it
        logits, cap = tiny_model.run_with_capture(tokens, HOOKS)
        with tiny_model.intervene(Ablate("blocks.2.hook_mlp_out" if name == "mlp" else name)):
            ablated, without = tiny_model.run_with_capture(tokens, HOOKS)
    attribution = logit_attribution.logit_attribution(tiny_model, cap, [9, (9, 4)])
    part = attribution.parts.index(("mlp", 2, -1) if name == "mlp" else ("head", 2, 2))
    change = (logits - ablated)[0, -1].numpy()
    assert attribution.removed[:, part] == pytest.approx([change[9], change[9] - change[4]], abs=1e-5)
    # At the old scale the logit loses exactly the contribution.
    scale = float(cap["ln_final.hook_scale"][0, -1] / without["ln_final.hook_scale"][0, -1])
    at_old_scale = float(logits[0, -1, 9]) - float(ablated[0, -1, 9]) / scale
    assert attribution.values[0, part] == pytest.approx(at_old_scale, abs=1e-5)


def test_the_frozen_scale_s_error_is_the_norm_lab_s(tiny_model: Transformer, tokens: torch.Tensor) -> None:
    with torch.no_grad():
        _, cap = tiny_model.run_with_capture(tokens, {*HOOKS, *norm_linearity.HOOKS})
    attribution = logit_attribution.logit_attribution(tiny_model, cap, [9], position=7, row=1)
    lab = norm_linearity.linearised_norm(tiny_model, cap, final=True)
    for layer in range(3):
        mine = attribution.frozen_error[attribution.parts.index(("mlp", layer, -1))]
        assert mine == pytest.approx(lab.frozen_scale[lab.parts.index((layer, "mlp")), 1, 7])
    assert attribution.frozen_error[0] == pytest.approx(lab.frozen_scale[lab.parts.index((-1, "embed")), 1, 7])


def test_the_likeliest_are_the_model_s_own(tiny_model: Transformer, run: tuple[torch.Tensor, Capture]) -> None:
    logits, cap = run
    first, second = logits[1, 5].topk(2).indices.tolist()
    targets = logit_attribution.likeliest(tiny_model, cap, position=5, row=1)
    assert targets == [(first, second), first, second]
    assert logit_attribution.logit_attribution(tiny_model, cap, targets, position=5, row=1).logits[0] > 0


# --- by neuron and by key -------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [3, 64])
def test_neurons_sum_to_their_mlp(tiny_model: Transformer, run: tuple[Any, Capture], k: int) -> None:
    _, cap = run
    wanted = [5, (71, 5)]
    attribution = component_attribution.neuron_attribution(tiny_model, cap, wanted, k=k, position=9, row=1)
    parts = logit_attribution.logit_attribution(tiny_model, cap, wanted, position=9, row=1)
    for layer in range(3):
        part = parts.parts.index(("mlp", layer, -1))
        assert attribution.mlp[:, layer] == pytest.approx(parts.values[:, part], abs=1e-6)
        # Every neuron written out with numpy in float64.
        weights = {name: tensor.double().numpy() for name, tensor in tiny_model.state_dict().items()}
        fired = cap[f"blocks.{layer}.mlp.hook_post"][1, 9].double().numpy()
        each = weights[f"layers.{layer}.feed_forward.w2.weight"] * fired  # [dim, neuron]
        unembedding = weights["output.weight"] * weights["norm.weight"]
        rows = np.stack([unembedding[5], unembedding[71] - unembedding[5]])
        every = rows @ each / float(cap["ln_final.hook_scale"][1, 9])
        order = np.argsort(-np.abs(every), -1)[:, :k]
        assert (attribution.neurons[:, layer] == order).all()
        assert attribution.values[:, layer] == pytest.approx(np.take_along_axis(every, order, 1), abs=1e-5)
        x = cap["blocks.2.hook_resid_post"][1, 9].double().numpy()

        def normed(v: np.ndarray) -> np.ndarray:
            return v / np.sqrt((v**2).mean() + 1e-5)

        lost = rows[1] @ (normed(x) - normed(x - each[:, order[1, 0]]))
        assert attribution.removed[1, layer, 0] == pytest.approx(lost, abs=1e-5)
    assert attribution.values.sum(-1) + attribution.rest == pytest.approx(attribution.mlp, abs=1e-5)
    assert attribution.error < 1e-5 and (k < 64 or not attribution.rest.any())
    table = attribution.frame()
    assert len(table) == 2 * 3 * k and table["minus"].unique().tolist() == [-1, 5]
    assert table.loc[k, "contribution"] == attribution.values[0, 1, 0] and table.loc[k, "mlp"] == attribution.mlp[0, 1]


def test_keys_sum_to_their_head(tiny_model: Transformer, run: tuple[Any, Capture], reference: Any) -> None:
    """The weights are transformers' own attention; a value that is not looked at carries nothing."""
    _, cap = run
    parts = logit_attribution.logit_attribution(tiny_model, cap, [5, (7, 5)], position=9)
    for layer, head in ((0, 1), (2, 3)):
        attribution = component_attribution.source_attribution(tiny_model, cap, [5, (7, 5)], (layer, head), position=9)
        whole = parts.values[:, parts.parts.index(("head", layer, head))]
        assert attribution.head_value == pytest.approx(whole, abs=1e-6)
        assert attribution.values.sum(-1) == pytest.approx(whole, abs=1e-5) and attribution.error < 1e-5
        assert attribution.weights == pytest.approx(reference.attentions[layer][0, head, 9].numpy(), abs=1e-5)
        assert not attribution.values[:, 10:].any() and attribution.values[:, :10].all()
        assert len(attribution.frame()) == 2 * 24 and attribution.prompt == tuple(cap.tokens[0].tolist())


# --- the lens -------------------------------------------------------------------------------------------------


def test_the_lens_ends_at_the_models_output(tiny_model: Transformer, run: tuple[torch.Tensor, Capture]) -> None:
    logits, cap = run
    lens = logit_lens.logit_lens(tiny_model, cap, k=3, targets=[4, 90], row=1)
    final = logits[1].log_softmax(-1)
    assert lens.layers == (-1, 0, 1, 2) and lens.ids.shape == (4, 24, 3)
    assert np.array_equal(lens.ids[-1], final.topk(3, -1).indices.numpy())
    assert lens.logprobs[-1] == pytest.approx(final.topk(3, -1).values.numpy(), abs=1e-5)
    assert np.abs(lens.kl[-1]).max() < 1e-5 and (lens.rank[-1] == 0).all()
    assert (lens.kl[0] > 0).all()
    assert lens.curves.logprobs[-1] == pytest.approx(final[:, [4, 90]].numpy(), abs=1e-5)
    assert (lens.curves.ranks[-1] == (final[:, None] > final[:, [4, 90], None]).sum(-1).numpy()).all()
    assert list(lens.frame().columns) == ["layer", "pos", "token", "logprob", "kl", "rank", "text"]
    assert list(lens.curves.frame().columns) == ["layer", "pos", "token", "logprob", "rank", "text"]
    assert lens.tokens == tuple(cap.tokens[1].tolist())


def test_the_lens_of_one_position_is_that_part_of_the_whole(
    tiny_model: Transformer, run: tuple[torch.Tensor, Capture]
) -> None:
    _, cap = run
    whole = logit_lens.logit_lens(tiny_model, cap, k=3, targets=[4, 90])
    for position in (7, -1):
        at_position = logit_lens.logit_lens(tiny_model, cap, k=3, targets=[4, 90], position=position)
        at = position % 24
        assert at_position.positions == (at,) and at_position.tokens == (whole.tokens[at],)
        assert (at_position.ids[:, 0] == whole.ids[:, at]).all() and (
            at_position.curves.ranks[:, 0] == whole.curves.ranks[:, at]
        ).all()
        assert at_position.kl[:, 0] == pytest.approx(
            whole.kl[:, at], abs=1e-5
        )  # one row meets another kernel than many
        assert at_position.curves.logprobs[:, 0] == pytest.approx(whole.curves.logprobs[:, at], abs=1e-5)
    with pytest.raises(HookError, match="has positions 0 to 23, not 24"):
        logit_lens.logit_lens(tiny_model, cap, position=24)


def test_the_lens_agrees_with_hugging_face(
    tiny_model: Transformer, run: tuple[Any, Capture], reference: Any, reference_model: Any
) -> None:
    """transformers' hidden states, the embedding's too, through its own final norm and head; KL and rank by numpy."""
    _, cap = run
    lens = logit_lens.logit_lens(tiny_model, cap, targets=[11])
    final = reference.logits[0].double().log_softmax(-1).numpy()
    for at, state in enumerate(reference.hidden_states[:3]):  # the last one is normed already
        with torch.no_grad():
            logits = reference_model.lm_head(reference_model.model.norm(state[0]))
        here = logits.double().log_softmax(-1).numpy()
        assert lens.kl[at] == pytest.approx((np.exp(final) * (final - here)).sum(-1), abs=1e-4)
        assert lens.logprobs[at, :, 0] == pytest.approx(here.max(-1), abs=1e-4)
        order = np.argsort(-here, -1)
        assert lens.rank[at].tolist() == [list(order[i]).index(final[i].argmax()) for i in range(24)]
        assert lens.curves.ranks[at, :, 0].tolist() == [list(order[i]).index(11) for i in range(24)]
        assert lens.curves.logprobs[at, :, 0] == pytest.approx(here[:, 11], abs=1e-4)


def test_blocks_of_positions_change_nothing(
    tiny_model: Transformer, run: tuple[Any, Capture], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five positions at a time, which do not divide 24: other shapes of a product may round differently."""
    _, cap = run
    expected = logit_lens.logit_lens(tiny_model, cap, targets=[3])
    block_sizes = []
    unembed = tiny_model.unembed
    monkeypatch.setattr(tiny_model, "unembed", lambda x: block_sizes.append(len(x)) or unembed(x))
    monkeypatch.setattr(logit_lens, "MAX_LOGITS", 5 * 96 + 10)
    lens = logit_lens.logit_lens(tiny_model, cap, targets=[3])
    assert max(block_sizes) == 5 and len(block_sizes) == 5 * (1 + 4)
    assert lens.kl == pytest.approx(expected.kl, abs=1e-5) and (lens.ids == expected.ids).all()
    assert lens.curves.logprobs == pytest.approx(expected.curves.logprobs, abs=1e-5)


def test_the_lens_keeps_absolute_positions(tiny_model: Transformer, tokens: torch.Tensor) -> None:
    with torch.no_grad():
        _, some = tiny_model.run_with_capture(tokens, HOOKS, positions=[4, 20])
        _, few = tiny_model.run_with_capture(tokens, ["blocks.1.hook_resid_post", "ln_final.hook_out"])
    lens = logit_lens.logit_lens(tiny_model, some)
    assert lens.positions == (4, 20) and lens.tokens == tuple(tokens[0, [4, 20]].tolist())
    assert logit_lens.logit_lens(tiny_model, few).layers == (1,)


def test_mistakes_say_what_to_do(tiny_model: Transformer, tokens: torch.Tensor, run: tuple[Any, Capture]) -> None:
    _, cap = run
    for wrong in (96, (3, 96), (-1, 3)):
        with pytest.raises(HookError, match="0 to 95"):
            logit_attribution.logit_attribution(tiny_model, cap, [wrong])
    with pytest.raises(HookError, match="0 to 95"):
        logit_lens.logit_lens(tiny_model, cap, targets=[96])
    with pytest.raises(HookError, match="no token"):
        component_attribution.neuron_attribution(tiny_model, cap, [])
    with pytest.raises(HookError, match="not 24"):
        logit_attribution.logit_attribution(tiny_model, cap, [1], position=24)
    with pytest.raises(MissingHookError, match="not 4"):
        component_attribution.source_attribution(tiny_model, cap, [1], (0, 4))
    with torch.no_grad():
        _, some = tiny_model.run_with_capture(tokens, HOOKS, heads=[1])
        _, none = tiny_model.run_with_capture(tokens, "hook_embed")
        _, cut = tiny_model.run_with_capture(tokens, component_attribution.SOURCE_HOOKS, positions=[3])
    with pytest.raises(HookError, match="every head"):
        logit_attribution.logit_attribution(tiny_model, some, [1])
    with pytest.raises(HookError, match="every position"):
        component_attribution.source_attribution(tiny_model, cut, [1], (0, 1))
    with pytest.raises(MissingHookError, match="hook_resid_post"):
        logit_lens.logit_lens(tiny_model, none)


# --- figures --------------------------------------------------------------------------------------------------


def test_figures_show_what_was_found(
    tiny_model: Transformer, run: tuple[Any, Capture], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, cap = run
    stamp = {"capture": "abc"}
    seen = logit_lens.logit_lens(tiny_model, cap, targets=[4, 90])
    parts = logit_attribution.logit_attribution(tiny_model, cap, [5, (7, 5)])
    neurons = component_attribution.neuron_attribution(tiny_model, cap, [5, (7, 5)], k=3)
    keys = component_attribution.source_attribution(tiny_model, cap, [5, (7, 5)], (1, 2), position=9)
    drawn = {
        "lens_grid": seen.figure(stamp=stamp),
        "token_curves": seen.curves.figure(stamp=stamp),
        "attribution": parts.figure(token=1, top=6, stamp=stamp),
        "neuron_attribution": neurons.figure(top=5, stamp=stamp),
        "source_attribution": keys.figure(token=1, stamp=stamp),
    }
    for kind, fig in drawn.items():
        assert fig.layout.title.text and fig.layout.xaxis.title.text and fig.layout.yaxis.title.text
        assert fig.layout.meta == {"kind": kind, "capture": "abc"} and len(fig.to_json()) < 1_500_000
    grid = drawn["lens_grid"].data[0]
    assert grid.z == pytest.approx(np.exp(seen.logprobs[..., 0])) and grid.y[0] == "embed"
    assert grid.text[2][5] == str(seen.ids[2, 5, 0]) and grid.x[5] == f"5 {cap.tokens[0, 5]}"
    assert figures_residual.lens_grid(seen, by="kl").data[0].z == pytest.approx(seen.kl)
    assert figures_residual.lens_grid(seen, by="rank").data[0].z == pytest.approx(np.log10(1 + seen.rank))
    assert drawn["token_curves"].data[1].y == pytest.approx(seen.curves.logprobs[:, -1, 1])
    ranks = figures_residual.token_curves(seen.curves, by="rank", position=3)
    assert ranks.data[0].y == pytest.approx(seen.curves.ranks[:, 3, 0] + 1)
    bars = drawn["attribution"].data[0]
    assert len(bars.y) == 8 and bars.base[0] == bars.base[-1] == 0.0
    assert bars.base[1:-1] == pytest.approx(np.cumsum(bars.y[:-2]))  # each begins where the last one ended
    assert sum(bars.y[:-1]) == pytest.approx(bars.y[-1]) == pytest.approx(parts.logits[1])
    anew = drawn["attribution"].data[1]
    assert anew.y - (np.cumsum(bars.y[:6]) - bars.y[:6]) == pytest.approx(anew.customdata)
    first = parts.parts.index(
        ("embed", -1, -1) if bars.x[0] == "embed" else ("head", int(bars.x[0][1]), int(bars.x[0][3]))
    )
    assert anew.customdata[0] == parts.removed[1, first] and bars.y[0] == pytest.approx(parts.values[1, first])
    best = np.abs(neurons.values[0]).max()
    assert abs(drawn["neuron_attribution"].data[0].x[-1]) == pytest.approx(best)
    assert sum(drawn["source_attribution"].data[0].y) == pytest.approx(keys.head_value[1], abs=1e-5)
    monkeypatch.setattr(figures_residual, "MAX_CELLS", 40)
    few = figures_residual.lens_grid(seen)
    assert few.data[0].z.shape == (4, 10) and "last 10 of 24" in few.layout.title.text
    assert few.data[0].x[0].startswith("14 ")


def test_hostile_tokens_are_no_markup(tiny_model: Transformer, run: tuple[Any, Capture]) -> None:
    _, cap = run
    text = dict.fromkeys(range(96), "<b>&x")
    seen = replace(logit_lens.logit_lens(tiny_model, cap, targets=[4]), text=text)
    parts = replace(logit_attribution.logit_attribution(tiny_model, cap, [5]), text=text)
    curves = replace(seen.curves, text=text)
    for fig in (seen.figure(), parts.figure(), curves.figure()):
        shown = fig.to_json().replace("\\u003c", "<").replace("\\u003e", ">")
        assert "<b>" not in shown and "&lt;b>&amp;x" in shown


def test_a_window_of_the_grid_has_words_that_fit(tiny_model: Transformer, run: tuple[torch.Tensor, Capture]) -> None:
    tokens = torch.arange(40)[None] % 24
    with torch.no_grad():
        _, cap = tiny_model.run_with_capture(tokens, logit_lens.HOOKS)
    lens = logit_lens.logit_lens(tiny_model, cap)
    names = {token: f"&lt;a long token {token}" for token in range(tiny_model.config.vocab_size)}
    whole, window = lens.figure(names=names).data[0], lens.figure(names=names, start=10).data[0]
    assert whole.texttemplate is None and len(whole.x) == 40
    assert window.texttemplate and list(window.x) == list(whole.x[10:34])
    assert np.array_equal(window.z, np.array(whole.z)[:, 10:34])
    assert set(np.array(window.text).ravel()) == {"&lt;a lon…"} and "a long token" in window.hovertext[0][0]
    assert lens.figure(names=names, start=10).layout.title.text.endswith("positions 10 to 33 of 40")
