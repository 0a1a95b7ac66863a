"""Sequences that join and leave a batch: each gets the same tokens as alone, and nothing is computed twice."""

import itertools

import pytest
import torch

import workbench as wb
from tests.workbench.reference import hugging_face, ours
from workbench.errors import WorkbenchError
from workbench.hooks import hook_points
from workbench.inference import continuous_batching
from workbench.inference.batch_kv_cache import BatchKVCache
from workbench.layers import attention

SHOTS = list(range(20, 60))
VARIANTS = [[*range(100, 130)], [*range(200, 230)]]
# One prefix for all, a longer one for some; repeats, a prompt that is a prefix of another, unequal lengths.
PROMPTS = [
    *([*SHOTS, 3 + i] for i in range(4)),
    *([*SHOTS, *VARIANTS[i % 2], 10 + i, *range(9, 12 + 3 * i)] for i in range(6)),
    *([*SHOTS, *VARIANTS[0], 7] for _ in range(3)),
    [*SHOTS, *VARIANTS[1]],
]
STRANGERS = [[8, 2], [4], [50, 60, 70, 80], [4], SHOTS[:9]]
OPTIONS = {"max_new_tokens": 16, "stop_tokens": range(0, 512, 17)}


@pytest.fixture(scope="module")
def pair():
    reference = hugging_face(heads=4, kv_heads=2, vocab_size=512)
    return reference, ours(reference)


@pytest.fixture(autouse=True)
def forwards_are_cheap(monkeypatch):
    """So that prefixes of a few tokens are shared."""
    monkeypatch.setattr(continuous_batching, "forward_cost", lambda device: 8)


@pytest.fixture
def runs(pair, monkeypatch):
    """Shapes of all forwards of the model."""
    shapes: list[tuple[int, ...]] = []
    hidden = wb.Transformer.hidden

    def noted(self, tokens, cache=None):
        shapes.append(tuple(tokens.shape))
        return hidden(self, tokens, cache)

    monkeypatch.setattr(wb.Transformer, "hidden", noted)
    return shapes


def same(together, alone) -> None:
    assert [generation.tokens for generation in together] == [generation.tokens for generation in alone]
    assert [generation.finish_reason for generation in together] == [generation.finish_reason for generation in alone]
    for mine, other in zip(together, alone, strict=True):
        assert mine.logprobs == pytest.approx(other.logprobs, abs=1e-4)


@pytest.mark.parametrize("prompts", [PROMPTS, [*PROMPTS, *STRANGERS]], ids=["one prefix", "several"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("batch_size", [2, 3, 16])
def test_sequences_in_a_batch_are_what_they_are_alone(pair, prompts, temperature, batch_size) -> None:
    _, model = pair
    seeds = [i % 7 for i in range(len(prompts))]
    options = {**OPTIONS, "temperature": temperature}
    together = wb.generate(model, prompts, seeds=seeds, batch_size=batch_size, **options)
    assert [list(generation.prompt) for generation in together] == prompts
    assert len({len(generation.tokens) for generation in together}) > 3  # sequences end at different times
    same(together, [wb.generate(model, [p], seed=s, **options)[0] for p, s in zip(prompts, seeds, strict=True)])


def test_greedy_after_a_shared_prefix_equals_hugging_face(pair) -> None:
    reference, model = pair
    for prompt, mine in zip(PROMPTS, wb.generate(model, PROMPTS, max_new_tokens=8, batch_size=4), strict=True):
        ids = torch.tensor([prompt])
        theirs = reference.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, eos_token_id=None,
            pad_token_id=0,
        )  # fmt: skip
        assert list(mine.tokens) == theirs[0, len(prompt) :].tolist()


def test_nothing_is_run_twice(pair, runs) -> None:
    _, model = pair
    generations = wb.generate(model, PROMPTS, batch_size=4, **OPTIONS)
    computed = sum(rows * n for rows, n in runs)
    steps = sum(len(generation.tokens) - 1 for generation in generations)  # the prefill gives the first token
    # The prefixes once, then each prompt's suffix; the last prompt is a prefix of others.
    suffixes = 4 + sum(4 + 3 * i for i in range(6)) + 3 + len(VARIANTS[1])
    padding = computed - steps - len(SHOTS) - sum(map(len, VARIANTS)) - suffixes
    assert 0 <= padding <= 8 * len(runs) // 4
    assert max(rows for rows, _ in runs) == 4


def test_the_batch_gets_smaller_when_memory_runs_out(pair, monkeypatch) -> None:
    _, model = pair
    expected = wb.generate(model, PROMPTS, **OPTIONS)
    hidden, sizes = wb.Transformer.hidden, []

    def small(self, tokens, cache=None):
        grown = tokens.shape[1] == 1 and cache.length > 92  # memory may also run out while decoding
        if len(tokens) > 3 or (len(tokens) > 2 and grown):
            raise torch.OutOfMemoryError("no more")
        sizes.append(len(tokens))
        return hidden(self, tokens, cache)

    monkeypatch.setattr(wb.Transformer, "hidden", small)
    same(wb.generate(model, PROMPTS, **OPTIONS), expected)
    assert max(sizes) == 3 and sizes[-1] <= 2
    monkeypatch.setattr(
        continuous_batching.BatchKVCache, "reserve", lambda *a: (_ for _ in ()).throw(torch.OutOfMemoryError("none"))
    )
    with pytest.raises(WorkbenchError, match="memory is too small for a single sequence"):
        wb.generate(model, PROMPTS, **OPTIONS)


CHANGES = {
    "head": wb.Ablate("L1H2"),
    "vector": wb.Add("blocks.0.hook_resid_post", torch.linspace(-1, 1, 64)),
    "turn": wb.RopeScaling(interpolation=2.0),
    "pattern": wb.Scale("blocks.1.attn.hook_pattern", 0.3, heads=[1]),
    "value for each position": wb.Add("blocks.0.hook_resid_post", torch.linspace(-1, 1, 128 * 64).view(1, 128, 64)),
    "position": wb.Scale("blocks.0.hook_resid_post", 3.0, positions=[2, 45]),
    "value of each position": wb.Add("blocks.0.hook_resid_post", torch.linspace(-9, 9, 256 * 64).view(1, 256, 64)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_interventions_change_a_sequence_in_a_batch_as_alone(pair, change) -> None:
    _, model = pair
    prompts = [*PROMPTS[2:10], *STRANGERS]
    plain = wb.generate(model, prompts, batch_size=4, **OPTIONS)
    with model.intervene(change):
        together = wb.generate(model, prompts, batch_size=4, **OPTIONS)
        same(together, [wb.generate(model, [prompt], **OPTIONS)[0] for prompt in prompts])
    assert [generation.tokens for generation in together] != [generation.tokens for generation in plain]


def test_an_observer_sees_every_prompt_whole_at_its_positions(pair) -> None:
    _, model = pair
    positions = []
    names = frozenset(["hook_embed"])
    watch = hook_points.Subscription(names, observe=lambda site, x: positions.append(site.positions.tolist()))
    with hook_points.subscribe(model, watch):
        wb.generate(model, [[5, 6, 7], [8], [9, 9, 9]], max_new_tokens=3)
    assert positions == [[0, 1, 2], [3], [4], [0], [1], [2]]


def test_non_finite_values_of_a_removed_sequence_do_not_spread(pair) -> None:
    _, model = pair
    cache = BatchKVCache.after_prefix(model.empty_cache(1, 0), 0)
    with torch.no_grad():
        model.hidden(torch.tensor([[1, 2, 3, 4, 5, 6], [7, 8, 9, 9, 9, 9]]), cache.prefill(2, 6))
        cache.add([6, 3])
        cache.values[:, 0] = torch.nan
        cache.remove(0)
        model.hidden(torch.tensor([[11, 12]]), cache.prefill(1, 2))
        cache.add([2])
        logits = model(torch.tensor([[3], [4]]), cache)[:, 0]
        expected = [model(torch.tensor([ids]))[0, -1] for ids in ([7, 8, 9, 3], [11, 12, 4])]
    assert cache.filled == [4, 3]
    assert torch.allclose(logits, torch.stack(expected), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_attention_after_shared_keys_is_attention_over_all_keys(dtype) -> None:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    shared = random(1, 2, 9, 8), random(1, 2, 9, 8)
    q, k, v = random(3, 6, 1, 8), random(3, 2, 5, 8), random(3, 2, 5, 8)
    allowed = torch.arange(14) <= torch.tensor([13, 9, 11])[:, None, None, None]
    whole = [torch.cat([early.expand(3, -1, -1, -1), late], 2) for early, late in zip(shared, (k, v), strict=True)]
    # Two roundings: of the weights, and of the sum of two parts. For float64 the scores are float32, as in `scores`.
    tolerance = 2 * torch.finfo(torch.bfloat16).eps if dtype == torch.bfloat16 else 1e-5
    for mask, grad in itertools.product((allowed, None), (True, False)):  # without gradients the fused kernel runs
        with torch.set_grad_enabled(grad):
            z = attention.shared_prefix_attention(shared, q, k, v, mask)
        assert torch.allclose(z, attention.sdpa(q, *whole, mask), atol=tolerance)
