"""`Hook`: one's own function in a run, against PyTorch's own hooks, other interventions and edited weights."""

import json
import re
from pathlib import Path

import pytest
import torch

import workbench as wb
from workbench.errors import InterventionError
from workbench.hooks.hook_points import Site
from workbench.hooks.interventions import from_json, to_json

TOKENS = torch.randint(0, 96, (2, 10), generator=torch.Generator().manual_seed(0))
STREAM, Z, SCORES = "blocks.1.hook_resid_pre", "blocks.1.attn.hook_z", "blocks.1.attn.hook_attn_scores"


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def under(model: wb.Transformer, *changes: wb.Ablate) -> torch.Tensor:
    with model.intervene(*changes):
        return model(TOKENS)


def test_projecting_out_a_direction_equals_a_hook_of_pytorch(tiny_model) -> None:
    direction = torch.nn.functional.normalize(torch.randn(32, generator=torch.Generator().manual_seed(2)), dim=0)

    def project_out(x: torch.Tensor, site: Site) -> torch.Tensor:
        return x - (x @ direction).unsqueeze(-1) * direction

    ours = under(tiny_model, wb.Hook(STREAM, project_out))
    handle = tiny_model.layers[1].register_forward_pre_hook(
        lambda _, inputs: (project_out(inputs[0], None), *inputs[1:])
    )
    expected = tiny_model(TOKENS)
    handle.remove()
    assert torch.allclose(ours, expected, atol=1e-5) and not torch.allclose(ours, tiny_model(TOKENS), atol=1e-2)


def test_a_function_stands_for_the_other_interventions(tiny_model) -> None:
    push = torch.randn(32, generator=torch.Generator().manual_seed(3))
    for own, other in (
        (wb.Hook("L1H2", lambda x, site: torch.zeros_like(x)), wb.Ablate("L1H2")),
        (wb.Hook(Z, lambda x, site: x * 0.5, heads=[0, 3]), wb.Scale(Z, 0.5, heads=[0, 3])),
        (wb.Hook(STREAM, lambda x, site: x + push, positions=[8, 2]), wb.Add(STREAM, push, positions=[2, 8])),
        (wb.Hook(SCORES, lambda x, site: x * 0), wb.Ablate(SCORES)),  # the mask is put back
    ):
        assert torch.allclose(under(tiny_model, own), under(tiny_model, other), atol=1e-5)
        assert not torch.allclose(under(tiny_model, own), tiny_model(TOKENS), atol=1e-3)


def test_none_keeps_the_activation_and_what_was_written_into_it(tiny_model) -> None:
    seen: list[tuple[str, int, list[int]]] = []
    watch = wb.Hook(Z, lambda x, site: seen.append((site.name, site.layer, site.positions.tolist())), positions=[3, 4])
    assert torch.equal(under(tiny_model, watch), tiny_model(TOKENS))
    assert seen == [(Z, 1, [3, 4])]

    def double(x: torch.Tensor, hook: Site) -> None:  # as TransformerLens's users name it
        x.data.mul_(2)

    assert torch.equal(under(tiny_model, wb.Hook(STREAM, double)), under(tiny_model, wb.Scale(STREAM, 2.0)))


def test_writing_in_place_does_not_change_an_earlier_capture(tiny_model) -> None:
    names = ["blocks.0.hook_resid_post", STREAM]  # one tensor in a plain run
    plain = tiny_model.run_with_capture(TOKENS, names)[1]
    with tiny_model.intervene(wb.Hook(STREAM, lambda x, site: x.zero_())):
        changed = tiny_model.run_with_capture(TOKENS, names)[1]
    assert torch.equal(changed[names[0]], plain[names[0]]) and not changed[STREAM].any()


def test_gradients_flow_through_a_function(tiny_model) -> None:
    kept: list[torch.Tensor] = []
    with torch.enable_grad(), tiny_model.intervene(wb.Hook(STREAM, lambda x, site: kept.append(x))):
        logits = tiny_model(TOKENS)
        (gradient,) = torch.autograd.grad(logits[0, -1, 3], kept)
    assert gradient[0].abs().max() > 0 and gradient[1].abs().max() == 0


def test_text_token_by_token_is_that_of_whole_runs(tiny_model) -> None:
    hook = wb.Hook(STREAM, lambda x, site: x * (1 + site.positions.to(x)).sqrt()[:, None])
    with tiny_model.intervene(hook):
        cache = tiny_model.empty_cache(2, 10)
        steps = torch.cat([tiny_model(TOKENS[:, i : i + 1], cache) for i in range(10)], 1)
    assert torch.allclose(steps, under(tiny_model, hook), atol=1e-5)


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (lambda x: x[:, :5], "returned shape \\(2, 5, 32\\), expected \\(2, 10, 32\\)"),
        (lambda x: x[..., :1], "returned shape"),  # would broadcast
        (lambda x: x.long(), "returned torch.int64"),
        (lambda x: x > 0, "returned torch.bool"),
        (lambda x: x.to(torch.complex64), "returned torch.complex64"),
        (lambda x: x.numpy(), "returned ndarray; expected a tensor"),
        (lambda x: 3.0, "returned float"),
        (lambda x: x.to("meta"), "on meta, expected cpu"),
    ],
)  # fmt: skip
def test_a_wrong_result_is_our_error(tiny_model, result, words: str) -> None:
    with pytest.raises(InterventionError, match=f"intervention on {STREAM} .*{words}"):
        under(tiny_model, wb.Hook(STREAM, lambda x, site: result(x)))
    assert wb.active_interventions() == ()


def test_what_cannot_be_hooked_is_refused(tiny_model) -> None:
    with pytest.raises(InterventionError, match="needs a function"):
        wb.Hook(STREAM, torch.zeros(32))
    for function in (lambda x: x, lambda: None, lambda x, site, more: x):
        with pytest.raises(InterventionError, match=r"is called with \(activation, site\)"):
            wb.Hook(STREAM, function)
    with pytest.raises(InterventionError, match="heads 0 to 3"):
        tiny_model.intervene(wb.Hook(Z, lambda x, site: x, heads=[4]))
    with pytest.raises(InterventionError, match="is a statistic"):
        tiny_model.intervene(wb.Hook("blocks.1.attn.hook_stats", lambda x, site: x))


def zero(x: torch.Tensor, site: Site) -> torch.Tensor:
    return torch.zeros_like(x)


def test_a_capture_records_an_own_function_and_json_refuses_it(tiny_model, tmp_path: Path) -> None:
    hook = wb.Hook("L1H2", zero, positions=[3])
    with tiny_model.intervene(hook):
        assert wb.active_interventions(tiny_model) == (hook,)
        _, cap = tiny_model.run_with_capture(TOKENS, STREAM)
    record = [{"kind": "own function", "target": "L1H2", "positions": [3], "function": "zero"}]
    cap.save(tmp_path / "run.safetensors")
    assert wb.Capture.load(tmp_path / "run.safetensors").provenance["interventions"] == record
    with pytest.raises(InterventionError, match="a Hook on L1H2 has no JSON"):
        to_json([hook])
    with pytest.raises(InterventionError, match="own function .*not written as JSON"):
        from_json(json.dumps(record))
    with pytest.raises(InterventionError, match="kind is one of ablate"):
        from_json('[{"kind": "hook", "target": "L1H2"}]')


def test_the_example_of_the_docs_runs(project_root: Path) -> None:
    text = (project_root / "docs" / "hooks.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, object] = {}
    exec(example, names)
    logits, norms, direction = names["logits"], names["norms"], names["direction"]
    assert isinstance(logits, torch.Tensor) and logits.isfinite().all()
    assert isinstance(norms, list) and [layer for layer, _ in norms] == [3]
    model, tokens = names["model"], names["tokens"]
    assert isinstance(model, wb.Transformer) and isinstance(tokens, torch.Tensor)
    with model.intervene(wb.Hook(STREAM.replace("1", "2"), names["project_out"])):  # type: ignore[arg-type]
        stream = model.run_with_capture(tokens, "blocks.2.hook_resid_pre")[1]["blocks.2.hook_resid_pre"]
    assert (stream.float() @ direction).abs().max() < 0.02 * stream.float().norm(dim=-1).max()
