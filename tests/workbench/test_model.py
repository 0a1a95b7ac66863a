"""The model against Hugging Face's, with and without a cache, and its gradients."""

import pytest
import torch

import workbench as wb
from tests.workbench.reference import hugging_face, ours
from workbench.errors import GenerationError, WorkbenchError
from workbench.hooks import hook_points

SHAPES = {
    "MHA": {"heads": 4, "kv_heads": 4},
    "GQA": {"heads": 4, "kv_heads": 2, "tied": True},
    "MQA": {"heads": 4, "kv_heads": 1, "scaled": True},
    "GQA of 4, own head size": {"heads": 8, "kv_heads": 2, "head_dim": 16, "scaled": True, "tied": True},
}
TOLERANCE = 1e-4  # float32: logits of order 10, sums in another order


@pytest.fixture(params=SHAPES, ids=str)
def pair(request):
    reference = hugging_face(**SHAPES[request.param])
    return reference, ours(reference)


@torch.no_grad()
def test_logits_equal_hugging_face(pair) -> None:
    reference, model = pair
    tokens = torch.randint(0, 120, (3, 90), generator=torch.Generator().manual_seed(1))
    expected = reference(tokens).logits
    assert expected.std() > 0.3  # a reference that says nothing would agree with anything
    assert (model(tokens) - expected).abs().max() <= TOLERANCE


@torch.no_grad()
def test_a_cache_changes_nothing(pair) -> None:
    """In one pass, in unequal chunks (causal prefill on a filled cache), and one token at a time."""
    reference, model = pair
    tokens = torch.randint(0, 120, (2, 60), generator=torch.Generator().manual_seed(2))
    expected = reference(tokens).logits
    cache = model.empty_cache(2, 64)
    chunks = [(0, 25), (25, 41), *((i, i + 1) for i in range(41, 60))]
    logits = torch.cat([model(tokens[:, a:b], cache) for a, b in chunks], 1)
    assert (logits - expected).abs().max() <= TOLERANCE
    assert cache.length == 60


@torch.no_grad()
def test_left_padded_rows_equal_rows_alone(tiny_model) -> None:
    prompts = [[5, 9, 3, 7, 1], [8, 2], [4]]
    longest = max(map(len, prompts))
    pad = torch.tensor([longest - len(p) for p in prompts])
    tokens = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
    cache = tiny_model.empty_cache(3, 8, pad=pad)
    first = tiny_model(tokens, cache)
    second = tiny_model(torch.tensor([[11], [12], [13]]), cache)
    for row, prompt in enumerate(prompts):
        alone = tiny_model(torch.tensor([[*prompt, 11 + row]]))
        assert torch.allclose(first[row, -1], alone[0, -2], atol=1e-5)
        assert torch.allclose(second[row, -1], alone[0, -1], atol=1e-5)


@torch.no_grad()
def test_rows_of_a_cache_can_be_repeated(tiny_model) -> None:
    """A prefix computed once serves several continuations."""
    prefix, ends = torch.tensor([[5, 9, 3, 7]]), torch.tensor([[1, 2], [30, 40], [7, 7]])
    cache = tiny_model.empty_cache(1, 4)
    tiny_model(prefix, cache)
    shared = cache.select(torch.zeros(3, dtype=torch.int64), capacity=6)
    logits = tiny_model(ends, shared)
    expected = tiny_model(torch.cat([prefix.expand(3, -1), ends], 1))[:, 4:]
    assert torch.allclose(logits, expected, atol=1e-5)


@torch.no_grad()
def test_a_run_from_any_layer_is_bit_identical(tiny_model) -> None:
    """Without interventions, and with one on the rotary embedding and one on every layer's input."""
    tokens = torch.randint(0, 96, (3, 20), generator=torch.Generator().manual_seed(6))
    names = ["hook_embed", "blocks.*.hook_resid_post"]
    changes = [wb.Scale("blocks.*.hook_resid_pre", 1.5), wb.RopeScaling(theta=500.0)]
    for interventions in ([], changes):
        with tiny_model.intervene(*interventions):
            logits, cap = tiny_model.run_with_capture(tokens, names)
            for layer in range(4):
                x = cap["hook_embed" if layer == 0 else f"blocks.{layer - 1}.hook_resid_post"]
                assert torch.equal(tiny_model.unembed(tiny_model.forward_from_layer(x, layer)), logits)
    assert not torch.equal(logits, tiny_model(tokens))


@torch.no_grad()
def test_a_run_from_a_layer_fires_only_the_hooks_of_its_layers(tiny_model) -> None:
    layers = []
    watch = hook_points.Subscription(
        frozenset(hook_points.hook_names(tiny_model.config)), observe=lambda site, _: layers.append(site.layer)
    )
    with hook_points.subscribe(tiny_model, watch):
        tiny_model.forward_from_layer(torch.randn(1, 5, 32), 2)
    assert set(layers) == {2, None}  # None: the final norm


def test_gradients_equal_hugging_face() -> None:
    reference = hugging_face(heads=4, kv_heads=2)
    model = ours(reference)
    tokens = torch.randint(0, 120, (2, 30), generator=torch.Generator().manual_seed(3))
    for logits in (model(tokens), reference(tokens).logits):
        torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    theirs = reference.model.layers[0].mlp.up_proj.weight.grad
    assert theirs.abs().max() > 1e-3
    assert torch.allclose(model.layers[0].feed_forward.w3.weight.grad, theirs, atol=1e-5)
    theirs = reference.model.embed_tokens.weight.grad
    assert torch.allclose(model.tok_embeddings.weight.grad, theirs, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near_float32(dtype) -> None:
    model = ours(hugging_face(heads=4, kv_heads=2))
    tokens = torch.randint(0, 120, (1, 50), generator=torch.Generator().manual_seed(4))
    wide = model(tokens).log_softmax(-1)
    narrow = model.to(dtype)(tokens)
    assert narrow.dtype == torch.float32
    assert (narrow.log_softmax(-1) - wide).abs().mean() < 0.05


def test_what_cannot_be_run_is_an_error(tiny_model) -> None:
    with pytest.raises(WorkbenchError, match="token id 96 is outside the vocabulary of 96"):
        tiny_model(torch.tensor([[1, 96]]))
    with pytest.raises(WorkbenchError, match=r"shape \[batch, pos\]"):
        tiny_model(torch.tensor([1, 2]))
    with pytest.raises(WorkbenchError, match=r"layers 0 to 3 from \[batch, pos, 32\]; found 4, \(1, 5, 32\)"):
        tiny_model.forward_from_layer(torch.randn(1, 5, 32), 4)
    with pytest.raises(GenerationError, match="holds 2 positions"):
        tiny_model(torch.tensor([[1, 2, 3]]), tiny_model.empty_cache(1, 2))
    with pytest.raises(GenerationError, match="has batch size 2"):
        tiny_model(torch.tensor([[1]]), tiny_model.empty_cache(2, 2))


def test_the_count_of_parameters_is_the_model_s(tiny_model, tiny_config) -> None:
    assert tiny_config.n_params == sum(p.numel() for p in tiny_model.parameters())


def test_published_sizes() -> None:
    """8,030,261,248 weights in Llama 3 8B and 1,235,814,400 in Llama 3.2 1B, as their model cards count them."""
    llama3_8b = {
        "dim": 4096, "n_layers": 32, "n_heads": 32, "n_kv_heads": 8, "vocab_size": 128256,
        "multiple_of": 1024, "ffn_dim_multiplier": 1.3, "norm_eps": 1e-05, "rope_theta": 500000.0,
    }  # fmt: skip
    config = wb.ModelConfig.from_meta(llama3_8b)
    assert (config.ffn_dim, config.n_params) == (14336, 8_030_261_248)
    llama32_1b = {
        "dim": 2048, "n_layers": 16, "n_heads": 32, "n_kv_heads": 8, "vocab_size": 128256, "multiple_of": 256,
        "ffn_dim_multiplier": 1.5, "norm_eps": 1e-05, "rope_theta": 500000.0, "use_scaled_rope": True,
        "tied_output": True,
    }  # fmt: skip
    config = wb.ModelConfig.from_meta(llama32_1b)
    assert (config.ffn_dim, config.n_params) == (8192, 1_235_814_400)
    assert config.rope_scaling.factor == 32.0


@pytest.mark.gpu
@torch.no_grad()
def test_a_gpu_gives_what_the_cpu_gives() -> None:
    model = ours(hugging_face(heads=8, kv_heads=2, head_dim=16, scaled=True))
    tokens = torch.randint(0, 120, (2, 60), generator=torch.Generator().manual_seed(5))
    expected = model(tokens)
    model = model.cuda()
    logits = model(tokens.cuda()).cpu()
    cache = model.empty_cache(2, 60)
    stepped = torch.cat([model(tokens[:, :40].cuda(), cache), model(tokens[:, 40:].cuda(), cache)], 1).cpu()
    assert (logits - expected).abs().max() < 1e-3
    assert (stepped - expected).abs().max() < 1e-3
