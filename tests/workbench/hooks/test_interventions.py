"""Interventions: each against its arithmetic, their composition, and their JSON."""

import pytest
import torch

import workbench as wb
from workbench.errors import InterventionError, UnknownHookError
from workbench.hooks.interventions import from_json, to_json

TOKENS = torch.randint(0, 96, (2, 10), generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def test_ablating_a_head_takes_its_result_away(tiny_model) -> None:
    _, plain = tiny_model.run_with_capture(TOKENS, ["blocks.1.*"])
    with tiny_model.intervene(wb.Ablate("L1H2")):
        _, changed = tiny_model.run_with_capture(TOKENS, ["blocks.1.*"])
    assert (changed["blocks.1.attn.hook_z"][:, :, 2] == 0).all()
    without = plain["blocks.1.hook_attn_out"] - plain["blocks.1.attn.hook_result"][:, :, 2]
    assert torch.allclose(changed["blocks.1.hook_attn_out"], without, atol=1e-5)
    assert torch.equal(changed["blocks.1.hook_resid_pre"], plain["blocks.1.hook_resid_pre"])


def test_ablating_every_weight_of_a_head_does_the_same_as_zeroing_its_columns(tiny_model) -> None:
    with tiny_model.intervene(wb.Ablate("L1H2")):
        hooked = tiny_model(TOKENS)
    tiny_model.layers[1].attention.wo.weight[:, 16:24] = 0
    assert torch.allclose(tiny_model(TOKENS), hooked, atol=1e-6)


def test_the_ways_to_ablate_one_head_agree(tiny_model) -> None:
    targets = [
        wb.Ablate("L1H2"),
        wb.Ablate("blocks.1.attn.hook_z", heads=[2]),
        wb.Ablate("blocks.1.attn.hook_result", heads=[2]),
        wb.Ablate("blocks.1.attn.hook_pattern", heads=[2]),
        wb.Scale("L1H2", 0.0),
        wb.Patch("L1H2", torch.zeros(8)),
    ]
    results = []
    for target in targets:
        with tiny_model.intervene(target):
            results.append(tiny_model(TOKENS))
    assert not torch.allclose(results[0], tiny_model(TOKENS), atol=1e-3)
    for target, result in zip(targets, results, strict=True):
        assert torch.allclose(result, results[0], atol=1e-5), target


def test_scaling_half_and_twice_is_nothing(tiny_model) -> None:
    with tiny_model.intervene(wb.Scale("L0.mlp", 0.5), wb.Scale("blocks.0.hook_mlp_out", 2.0)):
        doubled_halves = tiny_model(TOKENS)
    assert torch.equal(doubled_halves, tiny_model(TOKENS))


def test_add_reaches_the_positions_named(tiny_model) -> None:
    push = torch.randn(32, generator=torch.Generator().manual_seed(1))
    _, plain = tiny_model.run_with_capture(TOKENS, "blocks.1.hook_resid_pre")
    with tiny_model.intervene(wb.Add("blocks.1.hook_resid_pre", push, positions=[3, 7])):
        _, changed = tiny_model.run_with_capture(TOKENS, "blocks.1.hook_resid_pre")
    difference = changed["blocks.1.hook_resid_pre"] - plain["blocks.1.hook_resid_pre"]
    expected = torch.zeros(2, 10, 32)
    expected[:, [3, 7]] = push
    assert torch.allclose(difference, expected, atol=1e-6)


def test_patching_the_whole_stream_carries_the_other_run_over(tiny_model) -> None:
    other = torch.randint(0, 96, (2, 10), generator=torch.Generator().manual_seed(5))
    logits, source = tiny_model.run_with_capture(other, ["blocks.1.hook_resid_pre", "blocks.*.attn.hook_pattern"])
    with tiny_model.intervene(wb.Patch("blocks.1.hook_resid_pre", source)):
        assert torch.allclose(tiny_model(TOKENS), logits, atol=1e-5)
    with tiny_model.intervene(wb.Patch("blocks.0.attn.hook_pattern", source, heads=[1])):
        _, changed = tiny_model.run_with_capture(TOKENS, "blocks.0.attn.hook_pattern")
    mine, theirs = changed["blocks.0.attn.hook_pattern"], source["blocks.0.attn.hook_pattern"]
    assert torch.equal(mine[:, 1], theirs[:, 1]) and not torch.allclose(mine[:, 0], theirs[:, 0])


def test_patching_one_position_of_a_head(tiny_model) -> None:
    other = torch.randint(0, 96, (2, 10), generator=torch.Generator().manual_seed(5))
    _, source = tiny_model.run_with_capture(other, "blocks.2.attn.hook_z")
    with tiny_model.intervene(wb.Patch("L2H3", source, positions=[9, 4])):
        _, changed = tiny_model.run_with_capture(TOKENS, "blocks.2.attn.hook_z")
    _, plain = tiny_model.run_with_capture(TOKENS, "blocks.2.attn.hook_z")
    expected = plain["blocks.2.attn.hook_z"].clone()
    for position in (4, 9):
        expected[:, position, 3] = source["blocks.2.attn.hook_z"][:, position, 3]
    assert torch.equal(changed["blocks.2.attn.hook_z"], expected)


def test_interventions_act_in_the_order_of_their_nesting(tiny_model) -> None:
    name = "blocks.0.hook_mlp_out"
    _, plain = tiny_model.run_with_capture(TOKENS, name)
    with tiny_model.intervene(wb.Add(name, 1.0)), tiny_model.intervene(wb.Scale(name, 3.0)):
        _, changed = tiny_model.run_with_capture(TOKENS, name)
    assert torch.allclose(changed[name], (plain[name] + 1) * 3)


def test_under_a_cache_positions_are_absolute(tiny_model) -> None:
    push = torch.randn(1, 10, 32, generator=torch.Generator().manual_seed(2))
    for change in (wb.Add("blocks.1.hook_mlp_out", push), wb.Ablate("L0H1", positions=[2, 8])):
        with tiny_model.intervene(change):
            whole = tiny_model(TOKENS)
            cache = tiny_model.empty_cache(2, 10)
            stepped = [tiny_model(TOKENS[:, :6], cache)]
            stepped += [tiny_model(TOKENS[:, i : i + 1], cache) for i in range(6, 10)]
        assert torch.allclose(torch.cat(stepped, 1), whole, atol=1e-5)
        assert not torch.allclose(whole, tiny_model(TOKENS), atol=1e-3)


def test_an_exception_removes_the_intervention(tiny_model) -> None:
    bare = tiny_model(TOKENS)
    with pytest.raises(ZeroDivisionError), tiny_model.intervene(wb.Ablate("L0H0")):
        raise ZeroDivisionError
    assert torch.equal(tiny_model(TOKENS), bare)


def test_json_gives_back_the_same_run(tiny_model) -> None:
    vector = torch.randn(32, generator=torch.Generator().manual_seed(3)).bfloat16()
    changes = (
        wb.Ablate("L1H2", positions=[1, 2]),
        wb.Scale("blocks.*.attn.hook_z", 0.3, heads=[0]),
        wb.Add("L0.attn", vector),
        wb.Patch("blocks.2.hook_resid_mid", torch.ones(1, 1, 32)),
    )
    text = to_json(changes)
    with tiny_model.intervene(*changes):
        expected = tiny_model(TOKENS)
    with tiny_model.intervene(*from_json(text)):
        assert torch.equal(tiny_model(TOKENS), expected)
    assert to_json(from_json(text)) == text


def test_what_does_not_fit_is_an_error(tiny_model) -> None:
    wrong = {
        wb.Ablate("L0H4"): "heads 0 to 3",
        wb.Ablate("blocks.0.hook_mlp_out", heads=[0]): "has no heads",
        wb.Ablate("blocks.0.attn.hook_stats"): "is a statistic",
    }
    for change, message in wrong.items():
        with pytest.raises(InterventionError, match=message):
            tiny_model.intervene(change)
    with pytest.raises(UnknownHookError, match="layers 0 to 2"):
        tiny_model.intervene(wb.Ablate("L9H0"))
    with pytest.raises(InterventionError, match="already names a head"):
        wb.Ablate("L0H1", heads=[2])
    with (
        pytest.raises(InterventionError, match="covers 3 positions"),
        tiny_model.intervene(wb.Patch("L0.mlp", torch.zeros(1, 3, 32))),
    ):
        tiny_model(TOKENS)
    with (
        pytest.raises(InterventionError, match="does not fit"),
        tiny_model.intervene(wb.Add("L0.mlp", torch.zeros(1, 1, 31))),
    ):
        tiny_model(TOKENS)
    for text in (
        '{"kind": 1}',
        "[1]",
        '[{"kind": "explode", "target": "L0H0"}]',
        "nonsense",
        '[{"kind": "ablate"}]',
        "[" * 3000,
    ):
        with pytest.raises(InterventionError, match="not a list of interventions"):
            from_json(text)
