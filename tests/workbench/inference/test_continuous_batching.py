"""Rows that enter and leave a batch: each is what it is alone, and nothing is run twice."""

import itertools

import pytest
import torch

import workbench as wb
from tests.workbench.reference import hugging_face, ours
from workbench.errors import WorkbenchError
from workbench.hooks import hook_points
from workbench.inference import continuous_batching
from workbench.inference.batch_kv_cache import BatchKVCache
from workbench.inference.sampling import NEAR, Sampling
from workbench.layers import attention

SHOTS = list(range(20, 60))
VARIANTS = [[*range(100, 130)], [*range(200, 230)]]
# Everything behind one beginning, a second one inside it before some; repeats, a beginning of another, unequal lengths.
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
    """So that beginnings of a few tokens are worth a run of their own."""
    monkeypatch.setattr(continuous_batching, "forward_cost", lambda device: 8)


@pytest.fixture
def runs(pair, monkeypatch):
    """Shapes of all runs of the model."""
    seen: list[tuple[int, ...]] = []
    hidden = wb.Transformer.hidden

    def noted(self, tokens, cache=None):
        seen.append(tuple(tokens.shape))
        return hidden(self, tokens, cache)

    monkeypatch.setattr(wb.Transformer, "hidden", noted)
    return seen


def same(together, alone) -> None:
    assert [made.tokens for made in together] == [made.tokens for made in alone]
    assert [made.finish_reason for made in together] == [made.finish_reason for made in alone]
    for mine, other in zip(together, alone, strict=True):
        assert mine.logprobs == pytest.approx(other.logprobs, abs=1e-4)


@pytest.mark.parametrize("prompts", [PROMPTS, [*PROMPTS, *STRANGERS]], ids=["one beginning", "several"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("batch_size", [2, 3, 16])
def test_rows_of_a_batch_are_what_they_are_alone(pair, prompts, temperature, batch_size) -> None:
    _, model = pair
    seeds = [i % 7 for i in range(len(prompts))]
    options = {**OPTIONS, "temperature": temperature}
    together = wb.generate(model, prompts, seeds=seeds, batch_size=batch_size, **options)
    assert [list(made.prompt) for made in together] == prompts
    assert len({len(made.tokens) for made in together}) > 3  # rows end at different times
    same(together, [wb.generate(model, [p], seed=s, **options)[0] for p, s in zip(prompts, seeds, strict=True)])


def test_greedy_behind_a_shared_beginning_equals_hugging_face(pair) -> None:
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
    made = wb.generate(model, PROMPTS, batch_size=4, **OPTIONS)
    computed = sum(rows * n for rows, n in runs)
    steps = sum(len(one.tokens) - 1 for one in made)  # the run of a prompt gives the first token
    # The beginnings once, then what is each prompt's own; the last one lies within what others begin with.
    own = 4 + sum(4 + 3 * i for i in range(6)) + 3 + len(VARIANTS[1])
    padding = computed - steps - len(SHOTS) - sum(map(len, VARIANTS)) - own
    assert 0 <= padding <= 8 * len(runs) // 4
    assert max(rows for rows, _ in runs) == 4


def test_memory_that_runs_out_means_fewer_rows_at_once(pair, monkeypatch) -> None:
    _, model = pair
    expected = wb.generate(model, PROMPTS, **OPTIONS)
    hidden, sizes = wb.Transformer.hidden, []

    def small(self, tokens, cache=None):
        grown = tokens.shape[1] == 1 and cache.length > 92  # memory may also run out while rows decode
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
    with pytest.raises(WorkbenchError, match="memory does not hold one row"):
        wb.generate(model, PROMPTS, **OPTIONS)


CHANGES = {
    "head": wb.Ablate("L1H2"),
    "vector": wb.Add("blocks.0.hook_resid_post", torch.linspace(-1, 1, 64)),
    "turn": wb.RopeScaling(interpolation=2.0),
    "pattern": wb.Scale("blocks.1.attn.hook_pattern", 0.3, heads=[1]),
    "position": wb.Scale("blocks.0.hook_resid_post", 3.0, positions=[2, 45]),
    "value of each position": wb.Add("blocks.0.hook_resid_post", torch.linspace(-9, 9, 256 * 64).view(1, 256, 64)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_interventions_change_a_row_in_a_batch_as_they_change_it_alone(pair, change) -> None:
    _, model = pair
    prompts = [*PROMPTS[2:10], *STRANGERS]
    plain = wb.generate(model, prompts, batch_size=4, **OPTIONS)
    with model.intervene(change):
        together = wb.generate(model, prompts, batch_size=4, **OPTIONS)
        same(together, [wb.generate(model, [prompt], **OPTIONS)[0] for prompt in prompts])
    assert [made.tokens for made in together] != [made.tokens for made in plain]


def test_who_watches_sees_every_prompt_whole_at_its_positions(pair) -> None:
    _, model = pair
    seen = []
    names = frozenset(["hook_embed"])
    watch = hook_points.Subscription(names, observe=lambda site, x: seen.append(site.positions.tolist()))
    with hook_points.subscribe(model, watch):
        wb.generate(model, [[5, 6, 7], [8], [9, 9, 9]], max_new_tokens=3)
    assert seen == [[0, 1, 2], [3], [4], [0], [1], [2]]


def test_what_a_row_that_was_not_finite_leaves_behind_harms_nobody(pair) -> None:
    _, model = pair
    cache = BatchKVCache.after_prefix(model.empty_cache(1, 0), 0)
    with torch.no_grad():
        model.hidden(torch.tensor([[1, 2, 3, 4, 5, 6], [7, 8, 9, 9, 9, 9]]), cache.enter(2, 6))
        cache.admit([6, 3])
        cache.values[:, 0] = torch.nan
        cache.leave(0)
        model.hidden(torch.tensor([[11, 12]]), cache.enter(1, 2))
        cache.admit([2])
        found = model(torch.tensor([[3], [4]]), cache)[:, 0]
        expected = [model(torch.tensor([ids]))[0, -1] for ids in ([7, 8, 9, 3], [11, 12, 4])]
    assert cache.filled == [4, 3]
    assert torch.allclose(found, torch.stack(expected), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_attention_behind_shared_keys_is_attention_over_all_keys(dtype) -> None:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    shared = random(1, 2, 9, 8), random(1, 2, 9, 8)
    q, k, v = random(3, 6, 1, 8), random(3, 2, 5, 8), random(3, 2, 5, 8)
    allowed = torch.arange(14) <= torch.tensor([13, 9, 11])[:, None, None, None]
    whole = [torch.cat([early.expand(3, -1, -1, -1), late], 2) for early, late in zip(shared, (k, v), strict=True)]
    # Twice a rounding: of the weights, and of the sum of two parts. float64 scores are float32, as in `scores`.
    tolerance = 2 * torch.finfo(torch.bfloat16).eps if dtype == torch.bfloat16 else 1e-5
    for mask, grad in itertools.product((allowed, None), (True, False)):  # without gradients it is the fused kernel's
        with torch.set_grad_enabled(grad):
            found = attention.shared_prefix_attention(shared, q, k, v, mask)
        assert torch.allclose(found, attention.sdpa(q, *whole, mask), atol=tolerance)


@pytest.mark.parametrize("settings", [{}, {"top_p": 0.6}, {"top_p": 0.999}, {"top_k": 5}, {"top_k": 40, "top_p": 0.9}])
@pytest.mark.parametrize("spread", [0.0, 0.2, 5.0])  # all alike, beyond the likeliest few, and well among them
def test_a_draw_from_the_likeliest_is_a_draw_from_all(settings, spread) -> None:
    generator = torch.Generator().manual_seed(1)
    # Half precision makes equal logits: the lower number comes first, wherever they are cut.
    logits = (spread * torch.randn(200, 4 * NEAR, generator=generator)).bfloat16().float()
    uniform = torch.rand(200, generator=generator)
    probs, order = logits.double().softmax(-1).sort(dim=-1, descending=True, stable=True)
    kept = probs[:, : settings.get("top_k") or None]
    kept = kept.masked_fill(kept.cumsum(-1) - kept >= settings.get("top_p", 1.0), 0.0)
    cumulated = kept.cumsum(-1) / kept.sum(-1, keepdim=True)
    place = (cumulated <= uniform.double()[:, None]).sum(-1, keepdim=True)
    chosen = Sampling(temperature=1.0, **settings).choose(logits, uniform)
    # float32 sums decide otherwise only where the number falls on an edge.
    assert (chosen == order.gather(-1, place).squeeze(-1)).sum() >= 199
    if spread == 5.0:
        assert torch.equal(chosen[:3], Sampling(temperature=1.0, **settings).choose(logits[:3], uniform[:3]))
