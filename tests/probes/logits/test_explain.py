"""Why one token and not another: parts sum to the difference of a plain run's logits, under interventions too."""

import numpy as np
import pytest
import torch

import workbench as wb
from probes.logits import logit_attribution, logit_lens
from probes.logits.explain import explain
from workbench.errors import HookError
from workbench.hooks.intervention import Intervention
from workbench.model import Transformer

IDS = torch.randint(96, (20,), generator=torch.Generator().manual_seed(3)).tolist()
CHANGES: dict[str, list[Intervention]] = {
    "plain": [],
    "head": [wb.Ablate("L1H2")],
    "rotation": [wb.RopeScaling(yarn=4.0)],
    "mlp": [wb.Scale("L0.mlp", 0.5)],
    "attention": [wb.Ablate("L2.attn")],
    "attention of two": [wb.Scale("blocks.*.hook_attn_out", 0.5), wb.Ablate("L0.attn")],
    "results": [wb.Scale("blocks.1.attn.hook_result", -1.0, heads=[3])],
}


def plain_logits(model: Transformer, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids]))[0]


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("position", [4, -1])
def test_parts_sum_to_the_difference_of_a_plain_run(tiny_model: Transformer, name: str, position: int) -> None:
    with tiny_model.intervene(*CHANGES[name]):
        explanation = explain(tiny_model, IDS, position=position, token=7, contrast_token=40, other_tokens=[3])
        logits = plain_logits(tiny_model, IDS)[position]
    # Float32 sums of some twenty terms of order 1.
    assert explanation.difference == pytest.approx(float(logits[7] - logits[40]), abs=1e-5)
    assert explanation.frame()["contribution"].sum() == pytest.approx(explanation.difference, abs=1e-4)
    assert abs(explanation.residual) < 1e-4 and explanation.position == position % len(IDS)
    last = explanation.lens().query("layer == 2").set_index("token")["logprob"]
    assert list(last.index) == [7, 40, 3]
    # The lens's last layer is the output, whatever came before.
    assert last.to_numpy() == pytest.approx(logits.log_softmax(-1)[[7, 40, 3]].numpy(), abs=1e-5)


def test_the_parts_are_those_of_the_probes(tiny_model: Transformer) -> None:
    explanation = explain(tiny_model, IDS, position=9, token=7, contrast_token=40)
    with torch.no_grad():
        _, cap = tiny_model.run_with_capture(torch.tensor([IDS]), {*logit_attribution.HOOKS, *logit_lens.HOOKS})
    expected = logit_attribution.logit_attribution(tiny_model, cap, [(7, 40)], position=9)
    assert explanation.attribution.parts == expected.parts
    # A run of ten tokens and one of twenty add in another order.
    assert explanation.attribution.values == pytest.approx(expected.values, abs=1e-5)
    curves = logit_lens.logit_lens(tiny_model, cap, targets=[7, 40]).curves
    assert explanation.curves.logprobs[:, 0] == pytest.approx(curves.logprobs[:, 9], abs=1e-5)


def test_an_ablated_head_adds_nothing_and_attention_changed_behind_its_heads_is_one_part(
    tiny_model: Transformer,
) -> None:
    with tiny_model.intervene(wb.Ablate("L1H2")):
        table = explain(tiny_model, IDS, token=7, contrast_token=40).frame().set_index(["kind", "layer", "head"])
    assert table.loc[("head", 1, 2), "contribution"] == 0 and len(table) == 1 + 3 * 5
    with tiny_model.intervene(wb.Ablate("L1.attn")):
        table = explain(tiny_model, IDS, token=7, contrast_token=40).frame()
    layer = table[table["layer"] == 1]
    assert list(layer["kind"]) == ["attn", "mlp"] and layer["contribution"].iloc[0] == 0
    assert list(table["layer"]) == sorted(table["layer"]), "parts keep the order of the model"


def test_what_is_added_to_the_stream_is_the_rest(tiny_model: Transformer) -> None:
    added = torch.randn(32, generator=torch.Generator().manual_seed(1))
    with tiny_model.intervene(wb.Add("blocks.1.hook_resid_post", added)):
        explanation = explain(tiny_model, IDS, token=7, contrast_token=40)
        with torch.no_grad():
            _, cap = tiny_model.run_with_capture(torch.tensor([IDS]), ["ln_final.hook_scale"])
    assert tiny_model.output is not None
    weight = tiny_model.output.weight
    direction = (weight[7] - weight[40]) * tiny_model.norm.weight / cap["ln_final.hook_scale"][0, -1]
    assert explanation.residual == pytest.approx(float(direction.detach() @ added), abs=1e-4)
    assert np.abs(explanation.residual) > 0.01


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"token": 7, "contrast_token": 7}, "cannot be compared with itself"),
        ({"token": 7, "contrast_token": 96}, "token ids are 0 to 95"),
        ({"token": 7, "contrast_token": 8, "position": 20}, "positions 0 to 19, not 20"),
        ({"token": 7, "contrast_token": 8, "position": -21}, "positions 0 to 19, not -21"),
    ],
)
def test_what_cannot_be_explained(tiny_model: Transformer, given: dict[str, int], words: str) -> None:
    with pytest.raises(HookError, match=words):
        explain(tiny_model, IDS, **given)
