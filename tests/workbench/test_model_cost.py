"""Model cost against published numbers, the model's own tensors, and PyTorch's FLOP counter."""

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import workbench as wb
from workbench import model_cost
from workbench.checkpoint.tensors import tensor_specs
from workbench.published import PUBLISHED

KIB, GIB = 1024, 1024**3

# As the weights' index files on the Hub count them.
PARAMETERS = {
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3.3-70b": 70_553_706_496,
}


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_published_parameters(name: str) -> None:
    config = PUBLISHED[name]
    assert config.n_params == sum(config.parameters_by_part.values()) == PARAMETERS[name]
    assert sum(torch.Size(spec.shape).numel() for spec in tensor_specs(config)) == PARAMETERS[name]
    assert config.max_seq_len == (8_192 if name.startswith("llama-3-") else 131_072)
    assert wb.ModelConfig.from_hf(config.to_hf()) == config


@pytest.mark.parametrize(
    ("name", "token", "whole", "times"), [("llama-3.1-8b", 128, 16, 4), ("llama-3.1-70b", 320, 40, 8)]
)
def test_published_caches(name: str, token: int, whole: int, times: int) -> None:
    mha, gqa, mqa = model_cost.variants(PUBLISHED[name], context=131_072)
    assert (gqa.cache_bytes_per_token, gqa.cache_bytes) == (token * KIB, whole * GIB)
    assert (mha.cache_bytes, mqa.cache_bytes) == (times * whole * GIB, whole * GIB // 8)
    assert [kind.kinds for kind in (mha, gqa, mqa)] == [("MHA",), ("GQA",), ("MQA",)]
    assert [kind.this_model for kind in (mha, gqa, mqa)] == [False, True, False]


@pytest.mark.parametrize(("kv_heads", "kinds"), [(4, [("MHA",), ("MQA",)]), (2, [("MHA",), ("GQA",), ("MQA",)])])
def test_variants_are_models_of_their_own(tiny_config, kv_heads: int, kinds: list[tuple[str]]) -> None:
    variants = model_cost.variants(replace(tiny_config, n_kv_heads=kv_heads), itemsize=4)
    assert [kind.kinds for kind in variants] == kinds
    for kind in variants:
        model = wb.Transformer(replace(tiny_config, n_kv_heads=kind.kv_heads))
        assert kind.parameters == sum(parameter.numel() for parameter in model.parameters())
        assert kind.cache_bytes == model.empty_cache(1, tiny_config.max_seq_len).n_bytes
        assert kind.this_model == (kind.kv_heads == kv_heads)


@pytest.mark.parametrize("tied", [False, True])
def test_parts_are_the_model_s_own(tiny_config, tied: bool) -> None:
    model = wb.Transformer(replace(tiny_config, tied_output=tied))
    belongs = {"tok_embeddings": "Embedding", "attention": "Attention", "feed_forward": "MLP", "output": "Output"}
    counts: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        part = belongs.get(name.split(".")[2 if name.startswith("layers") else 0], "Norms")
        counts[part] = counts.get(part, 0) + parameter.numel()
    assert model.config.parameters_by_part == counts
    assert set(counts) <= set(model_cost.PARTS)


def test_flops_by_hand() -> None:
    """Llama 3 8B without context: two per weight, except those of the embedding and the norms."""
    config = PUBLISHED["llama-3-8b"]
    work = model_cost.flops(config, context=0)
    assert sum(work.values()) == 2 * (8_030_261_248 - 525_336_576 - 266_240)
    assert model_cost.flops(config, context=8192)["Scores and values"] == 4 * 32 * 32 * 128 * 8192


@torch.no_grad()
def test_flops_are_those_pytorch_counts(tiny_model) -> None:
    """One decode step after 20 cached tokens; PyTorch's counter sees every matrix product, because none is fused."""
    cache = tiny_model.empty_cache(1, 32)
    tiny_model(torch.arange(20)[None], cache)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        tiny_model(torch.tensor([[5]]), cache)
    assert counter.get_total_flops() == sum(model_cost.flops(tiny_model.config, context=21).values())


def test_readable_numbers() -> None:
    assert model_cost.readable_bytes(16 * GIB) == "16.0 GiB" and model_cost.readable_bytes(256) == "256 B"
    assert model_cost.readable_bytes(35 * 1024 * GIB) == "35.0 TiB"
    assert model_cost.readable_count(8_030_261_248) == "8.03 B" and model_cost.readable_count(562) == "562"
