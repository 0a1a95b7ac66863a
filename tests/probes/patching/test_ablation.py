"""Ablation: what taking heads away does, against the same done to the weights, and on a circuit that is known."""

import numpy as np
import pytest
import torch

import workbench as wb
from probes.attention import head_metrics, head_types, toy_induction_model
from probes.patching import ablation, ablation_figures
from workbench.errors import HookError, InterventionError
from workbench.model import Transformer


def last_logit(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return logits[:, -1, 5]


def test_zero_is_a_head_without_its_columns_of_wo(tiny_model: Transformer, tokens: torch.Tensor) -> None:
    sets = [[(1, 2)], [(0, 1), (2, 0), (2, 3)]]
    result = ablation.ablation_effect(tiny_model, tokens, sets, target=last_logit)
    with torch.no_grad():
        assert result.base == pytest.approx(tiny_model(tokens)[:, -1, 5].numpy(), abs=1e-6)
        for i, chosen in enumerate(sets):
            changed = Transformer(tiny_model.config).eval()
            changed.load_state_dict(tiny_model.state_dict())
            for layer, head in chosen:
                changed.layers[layer].attention.wo.weight[:, 8 * head : 8 * head + 8] = 0
            assert result.without[i] == pytest.approx(changed(tokens)[:, -1, 5].numpy(), abs=1e-5)
    table = result.frame()
    assert table["heads"].tolist() == ["L1H2", "L0H1 L2H0 L2H3"]
    assert table["n_heads"].tolist() == [1, 3]
    assert table["effect"].tolist() == pytest.approx(result.effect.mean(1).tolist())
    assert (table["low"] <= table["effect"]).all() and (table["effect"] <= table["high"]).all()


def test_mean_is_the_mean_over_prompts_and_positions(tiny_model: Transformer, tokens: torch.Tensor) -> None:
    """The head's part of the sublayer's output is then one vector, wo times the mean z, at every position."""
    result = ablation.ablation_effect(tiny_model, tokens, [[(2, 1)]], target=last_logit, replacement="mean")
    with torch.no_grad():
        _, cap = tiny_model.run_with_capture(tokens, "blocks.2.attn.hook_z")
        z = cap["blocks.2.attn.hook_z"][:, :, 1]  # [batch, pos, head_dim]
        columns = tiny_model.layers[2].attention.wo.weight[:, 8:16]
        with tiny_model.intervene(wb.Add("blocks.2.hook_attn_out", (z.mean((0, 1)) - z) @ columns.T)):
            expected = tiny_model(tokens)[:, -1, 5]
    assert result.without[0] == pytest.approx(expected.numpy(), abs=1e-5)


def test_the_model_is_as_it_was(tiny_model: Transformer, tokens: torch.Tensor) -> None:
    with torch.no_grad():
        before = tiny_model(tokens)
        ablation.ablation_effect(tiny_model, tokens, [[(0, 0)]], target=last_logit)
        assert torch.equal(tiny_model(tokens), before)


def test_copy_loss_by_hand() -> None:
    """Blocks of three: only the second and third token of the second copy count."""
    tokens = torch.tensor([[0, 1, 2, 0, 1, 2]])
    logits = torch.zeros(1, 6, 4)
    assert ablation.copy_loss(3)(logits, tokens).tolist() == pytest.approx([np.log(4)])
    logits[0, :3] = torch.tensor([9.0, -9, -9, -9])  # what predicts the first copy and the fourth token is not asked
    logits[0, 5] = 100 * torch.rand(4)
    assert ablation.copy_loss(3)(logits, tokens).tolist() == pytest.approx([np.log(4)])
    logits[0, 3, 1] = np.log(3)  # probability 3 / 6
    assert ablation.copy_loss(3)(logits, tokens).item() == pytest.approx((np.log(2) + np.log(4)) / 2)


@pytest.mark.parametrize("replacement", ["zero", "mean"])
def test_the_hand_set_induction_head_carries_the_copy(replacement: ablation.Replacement) -> None:
    """Without it the model knows nothing of the second copy; without other heads, but for those it needs, all."""
    model = toy_induction_model.induction_model()
    result = ablation.induction_ablation(model, block=16, batch=8, replacement=replacement)
    assert result.heads == (toy_induction_model.INDUCTION,)
    assert result.base.mean() < 1 < result.effect.mean()
    assert result.ratio >= 5
    assert result.low <= result.ratio <= result.high
    by_heads = dict(zip(result.others, result.random.mean(1), strict=True))
    assert by_heads[(toy_induction_model.PREVIOUS,)] > 1  # the circuit's other half
    assert all(effect < 0.2 for drawn, effect in by_heads.items() if drawn != (toy_induction_model.PREVIOUS,))
    figure = ablation_figures.induction_ablation(result, stamp={"capture": "abc"})
    assert figure.layout.meta == {"kind": "induction_ablation", "capture": "abc"}
    assert figure.data[0].y == pytest.approx(result.effect) and len(figure.data[1].y) == 20
    assert figure.layout.yaxis.title.text and f"{result.ratio:.3g} times" in figure.layout.title.text


def test_a_circuit_without_noise_is_the_whole_model() -> None:
    model = toy_induction_model.induction_model(noise=0)
    tokens = head_metrics.repeated_blocks(model, block=16, batch=4, seed=0)
    idle = [(0, 0), (0, 1), (0, 3), (1, 0), (1, 2), (1, 3)]
    result = ablation.ablation_effect(model, tokens, [idle], target=ablation.copy_loss(16))
    assert result.effect == pytest.approx(np.zeros((1, 4)), abs=1e-6)


def test_random_heads_are_as_many_and_others(tiny_model: Transformer) -> None:
    chosen = [(2, 3), (0, 1), (0, 1)]
    result = ablation.induction_ablation(tiny_model, chosen, block=8, batch=3, n_draws=5)
    assert result.heads == ((0, 1), (2, 3))
    assert len(result.others) == 5 and len(set(result.others)) > 1
    for drawn in result.others:
        assert len(set(drawn)) == 2 and not set(drawn) & set(result.heads)
    apart = [(layer, head) for layer in range(2) for head in range(4)]
    spared = ablation.induction_ablation(tiny_model, chosen, block=8, batch=3, n_draws=5, apart_from=apart)
    assert all(layer == 2 for drawn in spared.others for layer, _ in drawn)
    table = result.frame()
    assert table["kind"].tolist() == ["chosen"] + ["random"] * 5
    assert table["effect"][1:].tolist() == pytest.approx(result.random.mean(1).tolist())
    again = ablation.induction_ablation(tiny_model, chosen, block=8, batch=3, n_draws=5)
    assert np.array_equal(result.random, again.random)


def test_ratio_by_hand() -> None:
    same = np.full((4, 3), 0.5)
    assert ablation._ratio(np.full(3, 2.0), same, 0) == pytest.approx((4.0, 4.0, 4.0))
    assert ablation._ratio(np.full(3, 2.0), -same, 0) == (np.inf, np.inf, np.inf)
    assert np.isnan(ablation._ratio(np.full(3, -2.0), -same, 0)).all()


def test_mistakes_say_what_to_do(tiny_model: Transformer, tokens: torch.Tensor) -> None:
    with pytest.raises(HookError, match="no heads"):
        ablation.ablation_effect(tiny_model, tokens, [[]], target=last_logit)
    with pytest.raises(HookError, match=r"one number per prompt, shape \(2,\)"):
        ablation.ablation_effect(tiny_model, tokens, [[(0, 0)]], target=lambda logits, _: logits.mean())
    with pytest.raises(InterventionError, match="heads 0 to 3"):
        ablation.ablation_effect(tiny_model, tokens, [[(0, 4)]], target=last_logit)
    with pytest.raises(HookError, match="reaches 0.3; the strongest is L"):
        ablation.induction_ablation(tiny_model, block=8)
    with pytest.raises(HookError, match="choose fewer"):
        ablation.induction_ablation(tiny_model, [(i, j) for i in range(2) for j in range(4)], block=8)
    with pytest.raises(HookError, match="n_draws=0"):
        ablation.induction_ablation(tiny_model, block=8, n_draws=0)


def test_the_demos_induction_heads_carry_the_copy() -> None:
    model = wb.load_model("demo", device="cpu").eval()
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(1024, (64,), generator=generator).tolist() for _ in range(8)]
    result = head_types.catalogue(head_types.repeat_scores(model), head_types.text_scores(model, prompts))
    chosen, previous = result.of("induction"), result.of("previous")
    assert chosen and previous
    measured = ablation.induction_ablation(model, chosen, apart_from=previous)
    assert not {head for drawn in measured.others for head in drawn} & {*chosen, *previous}
    assert measured.low >= 5  # the whole interval
    # Without the previous-token heads the copy is lost as it is without the induction heads: one circuit.
    tokens = head_metrics.repeated_blocks(model, block=32, batch=4, seed=1)
    both = ablation.ablation_effect(model, tokens, [chosen, previous], target=ablation.copy_loss(32)).effect.mean(1)
    assert both.min() >= 0.5 * both.max()
