"""Contributions and routes: numbers by hand, Hugging Face's parts put together outright, a circuit that is known."""

from typing import Any

import numpy as np
import pytest
import torch

from probes.attention import toy_induction_model
from probes.flow import information_flow_routes
from workbench.errors import HookError, MissingHookError
from workbench.hooks.capture import Capture
from workbench.model import Transformer


@pytest.fixture
def cap(tiny_model: Transformer, tokens: torch.Tensor) -> Capture:
    with torch.no_grad():
        return tiny_model.run_with_capture(tokens, information_flow_routes.HOOKS)[1]


def test_shares_by_hand() -> None:
    """(2, 2) of (3, 0), (-1, 0) and (0, 2): the total comes nearer by 1, by -1, and by 2."""
    parts = torch.tensor([[3.0, 0], [-1, 0], [0, 2]])
    near = information_flow_routes.nearness(parts, parts.sum(0))
    assert near.tolist() == [1, -1, 2]
    assert information_flow_routes.shares(near).tolist() == pytest.approx([1 / 3, 0, 2 / 3], abs=1e-6)
    # A part that is all of the total has all of it; where no part comes nearer, all are alike, but for absent ones.
    assert information_flow_routes.shares(
        information_flow_routes.nearness(torch.tensor([[2.0, 2], [0, 0]]), torch.tensor([2.0, 2]))
    ).tolist() == [
        pytest.approx(1),
        pytest.approx(0, abs=1e-6),
    ]
    assert information_flow_routes.shares(torch.tensor([-1.0, 0, -torch.inf])).tolist() == [0.5, 0.5, 0]


def test_attention_agrees_with_hugging_face(
    tiny_model: Transformer, cap: Capture, reference_model: Any, reference: Any
) -> None:
    """Every part from transformers' weights and attentions, in float64, held at once."""
    row, queries = 1, (0, 7, 23)
    for layer in range(3):
        result = information_flow_routes.attention_contributions(tiny_model, cap, layer, row=row)
        block = reference_model.model.layers[layer]
        before = reference.hidden_states[layer][row].double()
        normed = block.input_layernorm(reference.hidden_states[layer])[row]
        with torch.no_grad():
            values = block.self_attn.v_proj(normed).unflatten(-1, (2, 8)).repeat_interleave(2, 1).double()
            output = block.self_attn.o_proj.weight.unflatten(1, (4, 8)).double()
        parts = torch.einsum("hqk,khd,ehd->qhke", reference.attentions[layer][row].double(), values, output)
        total = before + parts.sum((1, 2))  # [query_pos, dim]
        for query in range(24):
            mine = torch.cat([parts[query, :, : query + 1].flatten(0, 1), before[query : query + 1]])
            near = total[query].abs().sum() - (total[query] - mine).abs().sum(-1)
            expected = near.clamp(min=1e-6)
            expected = (expected / expected.sum()).numpy()
            got = [*result.heads[:, query, : query + 1].ravel(), result.residual[query]]
            assert got == pytest.approx(expected, abs=1e-4)  # both models in float32
        assert (result.heads[:, np.triu_indices(24, 1)[0], np.triu_indices(24, 1)[1]] == 0).all()
        assert result.heads.sum((0, 2)) + result.residual == pytest.approx(np.ones(24), abs=1e-5)
        assert result.tokens == pytest.approx(result.heads.sum(0))
        assert result.error < 1e-5
        some = information_flow_routes.attention_contributions(tiny_model, cap, layer, queries=queries, row=row)
        assert some.heads == pytest.approx(result.heads[:, queries], abs=1e-6)
        assert some.frame()["query"].unique().tolist() == [0, 7, 23]


def test_mlps_agree_with_hugging_face(cap: Capture, reference_model: Any, reference: Any) -> None:
    for layer in range(2):  # their last hidden state is after the final norm
        block = reference_model.model.layers[layer]
        after = reference.hidden_states[layer + 1][0].double()
        with torch.no_grad():
            mid = cap[f"blocks.{layer}.hook_resid_mid"][0]
            added = block.mlp(block.post_attention_layernorm(mid)).double()
        near = [after.abs().sum(-1) - (after - x).abs().sum(-1) for x in (added, after - added)]
        floored = [x.clamp(min=1e-6) for x in near]
        expected = (floored[0] / (floored[0] + floored[1])).numpy()
        assert information_flow_routes.mlp_shares(cap, layer).numpy() == pytest.approx(expected, abs=1e-4)


def test_blocks_change_nothing(tiny_model: Transformer, cap: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = information_flow_routes.attention_contributions(tiny_model, cap, 1)
    monkeypatch.setattr(information_flow_routes, "_BLOCK_BYTES", 4 * 24 * 32 * 5)  # five queries at a time
    parted = information_flow_routes.attention_contributions(tiny_model, cap, 1)
    assert parted.heads == pytest.approx(whole.heads, abs=1e-7) and parted.error == pytest.approx(whole.error, abs=1e-7)


def test_the_streams_shares_are_the_sums(tiny_model: Transformer, cap: Capture) -> None:
    result = information_flow_routes.stream_contributions(tiny_model, cap, row=1)
    assert result.heads.sum(1) + result.past_attn == pytest.approx(np.ones((3, 24)), abs=1e-5)
    layer_result = information_flow_routes.attention_contributions(tiny_model, cap, 2, row=1)
    assert result.heads[2] == pytest.approx(layer_result.heads.sum(-1))
    assert ((result.mlp >= 0) & (result.mlp <= 1)).all() and result.error < 1e-5
    table = result.frame()
    assert len(table) == 3 * 6 * 24 and table["part"].unique().tolist() == ["h0", "h1", "h2", "h3", "past_attn", "mlp"]


def test_the_route_of_the_hand_set_circuit_is_found() -> None:
    """Twelve tokens twice: the last copies what followed its first copy, which wrote down the token before it."""
    model = toy_induction_model.induction_model()
    block = torch.randperm(32, generator=torch.Generator().manual_seed(5))[:12]
    with torch.no_grad():
        _, cap = model.run_with_capture(torch.cat([block, block[:11]]).unsqueeze(0), information_flow_routes.HOOKS)
    edges = information_flow_routes.routes(model, cap, threshold=0.1).frame()
    heads = edges[edges["kind"] == "head"]
    assert {(1, 1, 11, 22)} == set(
        heads[heads["layer"] == 1][["layer", "head", "source", "target"]].itertuples(False, None)
    )
    assert (0, 2, 10, 11) in set(heads[["layer", "head", "source", "target"]].itertuples(False, None))


def test_edges_are_those_of_the_shares(tiny_model: Transformer, cap: Capture) -> None:
    result = information_flow_routes.routes(tiny_model, cap, position=20, threshold=0.05)
    edges = result.frame()
    assert edges["share"].min() >= 0.05 and len(edges) > 10
    top = information_flow_routes.attention_contributions(tiny_model, cap, 2, queries=(20,))
    here = edges[(edges["layer"] == 2) & (edges["kind"] == "head")]
    assert sorted(here["share"]) == pytest.approx(sorted(top.heads[top.heads >= 0.05]))
    for edge in edges.itertuples():
        assert result.reached[edge.layer + 1, edge.target]
        if edge.kind in ("head", "past_attn"):
            assert result.reached[edge.layer, edge.source]
    # What is reached is reached by an edge, and a lower threshold keeps all of a higher one's.
    for layer in range(3):
        into = edges[(edges["layer"] == layer) & edges["kind"].isin(["head", "past_attn"])]
        assert set(np.flatnonzero(result.reached[layer])) == set(into["source"])
    key = ["layer", "kind", "head", "source", "target"]
    wider = information_flow_routes.routes(tiny_model, cap, position=20, threshold=0.02).frame()
    assert set(edges[key].itertuples(False, None)) < set(wider[key].itertuples(False, None))


def test_mistakes_say_what_to_do(tiny_model: Transformer, cap: Capture, tokens: torch.Tensor) -> None:
    with pytest.raises(HookError, match="between 0 and 1 .* found 4"):
        information_flow_routes.routes(tiny_model, cap, threshold=4)
    with pytest.raises(HookError, match="positions 0 to 23, not 99"):
        information_flow_routes.routes(tiny_model, cap, position=99)
    with pytest.raises(HookError, match=r"0 to 23; found \[24\]"):
        information_flow_routes.attention_contributions(tiny_model, cap, 0, queries=(24,))
    with torch.no_grad():
        _, some = tiny_model.run_with_capture(tokens, information_flow_routes.HOOKS, layers=[0, 1])
        _, bare = tiny_model.run_with_capture(tokens, information_flow_routes.VALUE_HOOKS)
    with pytest.raises(HookError, match="without layers="):
        information_flow_routes.routes(tiny_model, some)
    with pytest.raises(MissingHookError, match="mlp_out"):
        information_flow_routes.routes(tiny_model, bare)


def test_figures(tiny_model: Transformer, cap: Capture) -> None:
    layer = information_flow_routes.attention_contributions(tiny_model, cap, 0, queries=(3, 9))
    z = np.array(layer.figure().data[0].z)
    assert z.shape == (2, 24) and z[0, :4] == pytest.approx(layer.tokens[0, :4], abs=1e-6) and np.isnan(z[0, 4:]).all()
    stream = information_flow_routes.stream_contributions(tiny_model, cap)
    assert np.array(stream.figure().data[0].z)[:, 4] == pytest.approx(stream.mlp.mean(-1), abs=1e-6)
    graph = information_flow_routes.routes(tiny_model, cap)
    fig = graph.figure(stamp={"model": "tiny"})
    assert fig.layout.meta == {"kind": "routes", "model": "tiny"}
    assert sum(len(trace.x) for trace in fig.data if trace.mode == "markers") == len(graph.edges)
