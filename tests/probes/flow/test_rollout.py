"""Rollout and flow: two tokens by hand, NumPy's products, SciPy's flows, and the cuts that no flow can pass."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import workbench as wb
from probes.attention.head_metrics import HOOKS
from probes.flow import figures as figures_flow
from probes.flow import information_flow_routes, rollout, value_weighted
from probes.norms import during_generation
from workbench.cli import main
from workbench.errors import HookError
from workbench.hooks.capture import Capture
from workbench.model import Transformer


@pytest.fixture
def even(tiny_model: Transformer) -> Capture:
    """Two tokens in a model without queries: the second looks at both alike in all three layers."""
    with torch.no_grad():
        for block in tiny_model.layers:
            block.attention.wq.weight.zero_()
        _, cap = tiny_model.run_with_capture(torch.tensor([[1, 2]]), HOOKS)
    return cap


def test_rollout_by_hand(even: Capture) -> None:
    """The second row is (1/4, 3/4) after one layer and (1/4 + 3/16, 9/16) after two."""
    result = rollout.rollout(even)
    assert result.shares[:2, 0, 1].tolist() == [[0.25, 0.75], [0.4375, 0.5625]]
    table = result.frame()
    assert list(table.columns) == ["layer", "batch", "query", "key", "share"]
    assert len(table) == 3 * 3 and table["share"].tolist()[:3] == [1, 0.25, 0.75]


def test_rollout_is_the_product(captured: Capture) -> None:
    result = rollout.rollout(captured).shares
    assert result.shape == (3, 2, 24, 24)
    assert result.sum(-1) == pytest.approx(np.ones((3, 2, 24)))
    assert (np.triu(result, 1) == 0).all()
    mixed = np.eye(24)
    for layer in range(3):
        mixed = (captured.pattern(layer)[1].numpy().mean(0) / 2 + np.eye(24) / 2) @ mixed
        assert result[layer, 1] == pytest.approx(mixed, abs=1e-6)  # the mean over heads in float32


def test_flow_by_hand() -> None:
    """Two layers of two tokens, weights 1/4 back and 3/4 stay.

    To the first token: 1/4 over each of the two layers' steps back, by paths that share no edge: 1/2. To the second:
    staying twice, 3/4. A weak first layer is the cut: with 1/8 back there, 1/4 + 1/8.
    """
    layer = np.array([[1, 0], [0.25, 0.75]])
    assert rollout.max_flows(np.stack([layer, layer])).tolist() == [0.5, 0.75]
    weak = np.array([[1, 0], [0.125, 0.875]])
    assert rollout.max_flows(np.stack([weak, layer])).tolist() == [0.375, 0.75]
    assert rollout.max_flows(np.eye(2)[None]).tolist() == [0, 1]  # no path at all


def test_flow_of_a_capture_by_hand(even: Capture) -> None:
    """Three layers that stay with 3/4: a path back from each, 3/4 in all; the source lets no more than 1 out."""
    result = rollout.attention_flow(even)
    assert result.position == 1
    assert result.flow.tolist() == [0.75, 0.75] and result.share.tolist() == [0.5, 0.5]
    assert result.rollout.tolist() == rollout.rollout(even).shares[-1, 0, 1].tolist()
    assert rollout.attention_flow(even, position=0).flow.tolist() == [1]
    assert list(result.frame().columns) == ["key", "flow", "share", "rollout"]


def test_flow_agrees_with_scipy(captured: Capture) -> None:
    """SciPy's own search, on capacities of 31 bits: each of the 900 edges rounds by 2^-29 at most."""
    csgraph = pytest.importorskip("scipy.sparse.csgraph", reason="SciPy comes with the benchmarks' libraries")
    from scipy.sparse import lil_matrix

    mixed = rollout.mixing(captured)[:, 1, :17, :17].numpy()
    result = rollout.attention_flow(captured, position=16, row=1)
    graph = lil_matrix((4 * 17, 4 * 17), dtype=np.int32)
    for layer in range(3):
        graph[(layer + 1) * 17 : (layer + 2) * 17, layer * 17 : (layer + 1) * 17] = np.rint(mixed[layer] * 2**28)
    flows = [csgraph.maximum_flow(graph.tocsr(), 3 * 17 + 16, key).flow_value / 2**28 for key in range(17)]
    assert result.flow == pytest.approx(flows, abs=900 * 2.0**-29)
    assert result.error < 1e-9


def test_flow_lies_between_the_rollout_and_every_cut(captured: Capture) -> None:
    mixed = rollout.mixing(captured)[:, 0].numpy()
    result = rollout.attention_flow(captured)
    assert (result.flow >= result.rollout - result.error).all()
    assert (result.flow <= 1 + result.error).all()
    assert (result.flow <= mixed[0].sum(0) + result.error).all()  # what enters the token in the first layer
    source = mixed[2, -1]
    for mask in (np.arange(24) < 12, np.arange(24) % 2 == 0):  # cuts through the middle of the graph
        # With `kept` of the middle stream on the source's side: the edges that lead out of that side.
        cut = source[~mask].sum() + mixed[1][mask].sum()
        assert (result.flow <= cut + result.error).all()


def test_mistakes_say_what_to_do(tiny_model: Transformer, captured: Capture, tokens: torch.Tensor) -> None:
    with torch.no_grad():
        _, part = tiny_model.run_with_capture(tokens, HOOKS, layers=[1])
    with pytest.raises(HookError, match="all layers"):
        rollout.rollout(part)
    with pytest.raises(HookError, match="max_tokens=16"):
        rollout.attention_flow(captured, max_tokens=16)
    with pytest.raises(HookError, match="positions 0 to 23, not 24"):
        rollout.attention_flow(captured, position=24)
    with pytest.raises(HookError, match="NaN"):
        rollout.max_flows(np.full((1, 1, 1), np.nan))


def test_a_rollout_that_does_not_fit_is_refused(even: Capture) -> None:
    size = rollout.rollout(even).shares.nbytes
    assert rollout.rollout(even, max_bytes=size)
    with pytest.raises(HookError, match="shorter prompt"):
        rollout.rollout(even, max_bytes=size - 1)


def test_figures(captured: Capture) -> None:
    result = rollout.rollout(captured)
    fig = result.figure(layer=1, row=1)
    assert fig.layout.meta["kind"] == "rollout"
    assert np.array(fig.data[0].z)[23] == pytest.approx(result.shares[1, 1, 23], abs=1e-6)
    assert np.isnan(np.array(fig.data[0].z)[0, 1])  # the future is blank
    flows = rollout.attention_flow(captured, position=5)
    fig = figures_flow.attention_flow(flows, [f"{i} t" for i in range(6)], stamp={"model": "tiny"})
    assert fig.layout.meta == {"kind": "attention_flow", "model": "tiny"}
    assert list(fig.data[0].y) == pytest.approx(flows.flow.tolist())


def test_commands_give_what_the_functions_give(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, on_cpu, file = "one two one two", ("--device", "cpu"), tmp_path / "found.csv"
    demo = wb.load_model("demo", device="cpu").eval()
    with torch.no_grad():
        _, cap = demo.run_with_capture(
            torch.tensor([demo.tokenizer.encode(text, bos=True)]), information_flow_routes.HOOKS
        )
    options = {"--position": 3, "--threshold": 0.1}
    for name, expected in (
        ("flow", rollout.attention_flow(cap, position=3)),
        ("routes", information_flow_routes.routes(demo, cap, position=3, threshold=0.1)),
    ):
        arguments = [f"{key}={value}" for key, value in options.items() if name == "routes" or key == "--position"]
        assert main(["probe", name, "--prompt", text, *arguments, *on_cpu, "-o", str(file)]) == 0
        pd.testing.assert_frame_equal(pd.read_csv(file), expected.frame(), check_dtype=False, rtol=1e-5)
    capsys.readouterr()
    for argv, message in (
        (("rollout", "--layer", "6"), "layers 0 to 5"),
        (("flow", "--max-tokens", "2"), "max_tokens=2"),
        (("retrieval", "--needle", "x", "--question", " "), "is empty"),
    ):
        assert main(["probe", *argv, "--prompt", text, *on_cpu]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.gpu
def test_the_device_changes_nothing(tiny_model: Transformer, tokens: torch.Tensor) -> None:
    by_device = []
    for device in ("cpu", "cuda"):
        model = tiny_model.to(device)
        with torch.no_grad():
            _, cap = model.run_with_capture(tokens.to(device), information_flow_routes.HOOKS)
        results = (
            rollout.rollout(cap), rollout.attention_flow(cap, position=9),
            value_weighted.weighted_pattern(model, cap, 1),
            value_weighted.weighted_pattern(model, cap, 1, 2), value_weighted.first_token(model, cap),
            value_weighted.context_mixing(model, cap), information_flow_routes.stream_contributions(model, cap),
            during_generation.generated_stream(model, tokens[0, :6].tolist(), steps=4),
        )  # fmt: skip
        by_device.append([result.frame() for result in results])
    for on_cpu, on_cuda in zip(*by_device, strict=True):
        pd.testing.assert_frame_equal(on_cpu, on_cuda, check_exact=False, rtol=1e-3, atol=1e-4)
