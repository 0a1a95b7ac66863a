"""Norms while generating: the same as one capture of the whole text, and the text is what generation gives."""

import numpy as np
import pytest
import torch

import workbench as wb
from probes.norms import during_generation, rms_norms
from workbench.errors import DataError
from workbench.model import Transformer


def test_steps_are_one_capture_of_the_whole_text(tiny_model: Transformer, tokens: torch.Tensor) -> None:
    prompt = tokens[0, :6].tolist()
    result = during_generation.generated_norms(tiny_model, prompt, steps=5)
    assert len(result.tokens) == 10 and list(result.tokens[:6]) == prompt
    with torch.no_grad():
        logits, cap = tiny_model.run_with_capture(torch.tensor([result.tokens]), rms_norms.HOOKS)
    assert logits[0, 5:-1].argmax(-1).tolist() == list(result.tokens[6:])  # each step's choice
    assert result.rms.norms == rms_norms.input_rms(cap).norms
    assert result.rms.rms == pytest.approx(rms_norms.input_rms(cap).rms, rel=1e-4)  # float32, another order of sums
    whole = rms_norms.contribution_ratios(cap)
    assert result.contributions.ratio == pytest.approx(whole.ratio, rel=1e-3)
    assert result.contributions.cosine == pytest.approx(whole.cosine, abs=1e-4)


def test_the_text_is_what_generate_writes() -> None:
    demo = wb.load_model("demo", device="cpu").eval()
    assert demo.tokenizer is not None
    prompt = demo.tokenizer.encode("12 + 5 =", bos=True)
    result = during_generation.generated_norms(demo, prompt, steps=3)
    (written,) = wb.generate(demo, ["12 + 5 ="], max_new_tokens=3)
    assert list(result.tokens[len(prompt) :]) == list(written.tokens)[:2]


def test_the_table_counts_steps_from_the_prompts_end(tiny_model: Transformer) -> None:
    table = during_generation.generated_norms(tiny_model, [1, 2, 3], steps=3).frame()
    assert list(table.columns) == ["layer", "norm", "pos", "step", "token", "rms"]
    first = table[(table["layer"] == 0) & (table["norm"] == "ln1")]
    assert first["step"].tolist() == [0, 0, 0, 1, 2] and first["token"].tolist()[:3] == [1, 2, 3]
    assert np.isfinite(table["rms"]).all() and len(table) == 7 * 5
    for prompt, steps in (([], 3), ([1], 0)):
        with pytest.raises(DataError, match="at least 1 step"):
            during_generation.generated_norms(tiny_model, prompt, steps=steps)
        with pytest.raises(DataError, match="at least 1 step"):
            during_generation.generated_stream(tiny_model, prompt, steps=steps)


LOW = {"threshold": 2.0, "ratio": 3.0, "magnitude": 1.5}  # a random model has nothing massive


def test_the_streams_steps_are_one_capture_of_the_whole_text(tiny_model: Transformer, tokens: torch.Tensor) -> None:
    result = during_generation.generated_stream(tiny_model, tokens[0, :6].tolist(), steps=5, **LOW)
    with torch.no_grad():
        _, cap = tiny_model.run_with_capture(torch.tensor([result.tokens]), rms_norms.HOOKS)
    stream = cap.stack("hook_resid_post")[:, 0]  # [layer, pos, dim]
    size = stream.abs().numpy()
    assert result.largest == pytest.approx(size.max(-1), rel=1e-4)  # float32, another order of sums
    assert result.median == pytest.approx(np.median(size, -1), rel=1e-3)
    limit = 1.5 * np.median(size, -1, keepdims=True) / 0.67448975
    assert result.large.tolist() == (size >= limit).sum(-1).tolist() and result.large.sum() > 0
    for pos in range(10):  # each position judged alone, as if it were the whole
        alone = torch.stack([rms_norms.massive_entries(x[pos], threshold=2, ratio=3).sum() for x in stream])
        assert result.massive[:, pos].tolist() == alone.tolist()
    assert result.massive.sum() > 0
    whole = rms_norms.contribution_ratios(cap).ratio[:, :, 0]
    assert result.attn == pytest.approx(whole[:, 0], rel=1e-3) and result.mlp == pytest.approx(whole[:, 1], rel=1e-3)


def test_outlier_dimensions_are_those_of_the_text_so_far(tiny_model: Transformer, tokens: torch.Tensor) -> None:
    result = during_generation.generated_stream(tiny_model, tokens[0, :6].tolist(), steps=5, **LOW)
    for end in (1, 4, 6, 8, 10):
        with torch.no_grad():
            _, cap = tiny_model.run_with_capture(torch.tensor([result.tokens[:end]]), rms_norms.HOOKS)
        whole = rms_norms.outlier_dimensions(cap, magnitude=1.5)
        assert result.outliers[end - 1] == len(whole.dims) > 0
    assert result.dimensions.dims == whole.dims
    assert result.dimensions.position_share == pytest.approx(whole.position_share, abs=1e-6)
    assert result.dimensions.largest == pytest.approx(whole.largest, rel=1e-4)


def test_an_entry_that_a_token_brings_is_seen_at_its_step(tiny_model: Transformer) -> None:
    """Every token but one has small embeddings; that one's 500 in dimension 3 passes through all layers."""
    with torch.no_grad():
        for block in tiny_model.layers:
            block.attention.wo.weight.zero_()
            block.feed_forward.w2.weight.zero_()
        tiny_model.tok_embeddings.weight.mul_(0.1)
        tiny_model.tok_embeddings.weight[9, 3] = 500.0
        tiny_model.output.weight.zero_()
        tiny_model.output.weight[:, 0] = tiny_model.tok_embeddings.weight[:, 0]
    result = during_generation.generated_stream(tiny_model, [4, 9, 7], steps=2)
    at = [pos for pos, token in enumerate(result.tokens) if token == 9]
    assert result.massive.sum(0).tolist() == [3 if pos in at else 0 for pos in range(4)]
    assert result.largest[:, 1] == pytest.approx(np.full(3, 500))
    assert result.outliers.tolist() == [0, 1, 1, 1] and result.dimensions.dims == (3,)
    assert (result.attn == 0).all() and (result.mlp == 0).all()


def test_tables_and_figures(tiny_model: Transformer) -> None:
    result = during_generation.generated_stream(tiny_model, [1, 2, 3], steps=3, **LOW)
    table = result.frame()
    assert table["step"].tolist()[:5] == [0, 0, 0, 1, 2] and len(table) == 3 * 5
    names = ["largest", "median", "massive", "large", "attn", "mlp", "outliers"]
    assert list(table.columns) == ["layer", "pos", "step", "token", *names]
    fig = result.figure(labels=list("abcde"), stamp={"model": "tiny"})
    assert np.array(fig.data[0].z) == pytest.approx(np.log10(result.largest), abs=1e-5)
    assert fig.layout.meta == {"kind": "generated_stream", "model": "tiny"}
    assert "massive" in result.figure(show="massive").layout.title.text.lower()
    rms = during_generation.generated_norms(tiny_model, [1, 2, 3], steps=3)
    assert rms.figure().layout.meta["kind"] == "input_rms" and rms.steps.tolist() == [0, 0, 0, 1, 2]
