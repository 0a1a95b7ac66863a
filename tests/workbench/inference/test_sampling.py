"""Sampling against transformers' logits processors, its noise and draws against other code and the distribution."""

import math
from pathlib import Path

import pytest
import torch
from transformers import LogitsProcessorList
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

import workbench as wb
from tests.workbench.reference import hugging_face, ours
from workbench.errors import GenerationError
from workbench.inference import sampling
from workbench.inference.sampling import Sampling, gumbel, noise_key
from workbench.model import Transformer
from workbench.text.tokenizer import Tokenizer

SETTINGS = [
    Sampling(1.0),
    Sampling(0.7, top_p=0.9),
    Sampling(1.3, top_k=5),
    Sampling(0.9, top_p=0.6, top_k=7),
    Sampling(1.0, min_p=0.2),
    Sampling(0.8, top_p=0.8, top_k=30, min_p=0.05, repetition_penalty=1.3),
    Sampling(2.0, top_p=0.999),
    Sampling(1.0, repetition_penalty=0.7),
]
PROMPT = [5, 9, 3, 7, 1, 100, 20]


def keys(n: int, *, seed: int = 0, step: int = 0) -> torch.Tensor:
    return torch.tensor([noise_key(seed + i, step) for i in range(n)], dtype=torch.int32)


def transformers_scores(settings: Sampling, ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """What transformers leaves of the logits, in the order in which its `generate` applies the processors."""
    processors = LogitsProcessorList()
    if settings.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(settings.repetition_penalty))
    if settings.temperature != 1:
        processors.append(TemperatureLogitsWarper(settings.temperature))
    if settings.top_k:
        processors.append(TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1:
        processors.append(TopPLogitsWarper(settings.top_p))
    if settings.min_p:
        processors.append(MinPLogitsWarper(settings.min_p))
    return processors(ids, logits)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("vocab", [12, 400, 3000])
def test_what_is_kept_is_what_transformers_keeps(settings: Sampling, vocab: int) -> None:
    generator = torch.Generator().manual_seed(vocab)
    for scale in (0.5, 2.0, 6.0):
        logits = torch.randn(8, vocab, generator=generator, dtype=torch.float64) * scale
        ids = torch.randint(vocab, (8, 9), generator=generator)
        expected = transformers_scores(settings, ids, logits.clone()).softmax(-1)
        mine = settings.probabilities(settings.penalised(logits, ids.tolist()))
        assert torch.equal(mine > 0, expected > 0)
        assert torch.allclose(mine, expected, atol=1e-12)


@pytest.mark.parametrize("settings", SETTINGS)
def test_with_ties_only_tokens_as_likely_as_the_last_one_are_kept_in_addition(settings: Sampling) -> None:
    """bfloat16's logits have many ties; of those at the end of top_p, transformers keeps some that its sort chooses."""
    generator = torch.Generator().manual_seed(1)
    logits = (torch.randn(64, 300, generator=generator) * 2).bfloat16().double()
    ids = torch.randint(300, (64, 9), generator=generator)
    theirs = transformers_scores(settings, ids, logits.clone())
    penalised = settings.penalised(logits, ids.tolist())
    mine = settings.probabilities(penalised) > 0
    lowest = penalised.masked_fill(theirs.isinf(), torch.inf).amin(-1, keepdim=True)
    assert torch.equal(mine, penalised >= lowest)
    if settings.top_p == 1:
        assert torch.equal(mine, ~theirs.isinf())


def test_the_penalty_of_a_greedy_text_is_transformers_s() -> None:
    reference = hugging_face(heads=4, kv_heads=2, vocab_size=512)
    model = ours(reference)
    theirs = reference.generate(
        torch.tensor([PROMPT]),
        max_new_tokens=20,
        do_sample=False,
        repetition_penalty=1.4,
        eos_token_id=None,
        pad_token_id=0,
    )
    (mine,) = wb.generate(model, [PROMPT], max_new_tokens=20, repetition_penalty=1.4)
    assert list(mine.tokens) == theirs[0, len(PROMPT) :].tolist()
    assert mine.tokens != wb.generate(model, [PROMPT], max_new_tokens=20)[0].tokens


def test_the_noise_is_that_of_the_published_hash() -> None:
    """MurmurHash3's finaliser in Python's integers, and the noise from its 31 lower bits."""

    def finaliser(h: int) -> int:
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
            h = (h ^ (h >> shift)) * factor % 2**32
        return h

    assert finaliser(1) == 0x514E28B7  # a published value of fmix32
    first, second = noise_key(7, 3)
    ids = torch.tensor([0, 1, 2, 511, 128_255])
    expected = []
    for token in ids.tolist():
        bits = finaliser(finaliser((token + first) % 2**32) ^ second % 2**32) % 2**31
        expected.append(-math.log(-math.log1p(-(bits + 0.5) / 2**31)))
    key = torch.tensor([[first, second]], dtype=torch.int32)
    assert gumbel(key, ids)[0].tolist() == pytest.approx(expected, rel=1e-12)
    assert torch.equal(gumbel(key, ids.flip(0)[None]), gumbel(key, ids).flip(1))  # of the id, not of its place


def test_the_noise_is_gumbel_s_and_independent_of_seed_and_step() -> None:
    ids = torch.arange(20_000)
    a = gumbel(keys(1, seed=4, step=9), ids)[0]
    assert a.isfinite().all() and a.mean() == pytest.approx(0.5772, abs=0.03)
    assert a.std() == pytest.approx(math.pi / math.sqrt(6), abs=0.03)
    # Neighbours: seed i at step s + 1 and seed i + 1 at step s are other numbers, without correlation.
    for seed, step in ((4, 10), (5, 9), (5, 10), (5, 8), (-4, 9), (9, 4)):
        b = gumbel(keys(1, seed=seed, step=step), ids)[0]
        assert abs(torch.corrcoef(torch.stack((a, b)))[0, 1]) < 5 / math.sqrt(len(ids)), (seed, step)
    assert abs(torch.corrcoef(torch.stack((a[1:], a[:-1])))[0, 1]) < 5 / math.sqrt(len(ids))


@pytest.mark.parametrize("settings", SETTINGS)
def test_draws_follow_the_distribution(settings: Sampling) -> None:
    """Chi-square of 20,000 draws, by seed and by step; 4.5 standard deviations above its mean would be a fault."""
    logits = torch.randn(1, 40, generator=torch.Generator().manual_seed(2)) * 1.5
    n = 20_000
    expected = settings.probabilities(logits)[0] * n
    many = logits.expand(n, -1)
    for noise in (keys(n), torch.tensor([noise_key(3, step) for step in range(n)], dtype=torch.int32)):
        counts = settings.choose(many, noise).bincount(minlength=40)
        assert counts[expected == 0].sum() == 0
        common = expected >= 5
        observed = torch.cat((counts[common], counts[~common].sum()[None]))
        wanted = torch.cat((expected[common], expected[~common].sum()[None]))
        observed, wanted = observed[wanted > 0], wanted[wanted > 0]
        freedom = len(wanted) - 1
        chi_square = float(((observed - wanted) ** 2 / wanted).sum())
        assert chi_square < freedom + 4.5 * math.sqrt(2 * freedom) + 1


def test_adjacent_draws_are_independent() -> None:
    """Two tokens of equal probability: the four pairs of (seed i, step s) and its neighbours are equally frequent."""
    logits, n = torch.zeros(4_000, 2), 4_000
    draws = {
        shift: Sampling(1.0).choose(logits, keys(n, seed=shift[0], step=shift[1]))
        for shift in ((0, 0), (1, 0), (0, 1), (1, 1))
    }
    first = draws.pop((0, 0))
    for shift, others in draws.items():
        pairs = (2 * first + others).bincount(minlength=4).double() / n
        assert (pairs - 0.25).abs().max() < 5 * math.sqrt(0.25 * 0.75 / n), shift


def test_a_large_vocabulary_is_drawn_like_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shortcuts, likely tokens first and float32 first, choose what all tokens in float64 would choose."""
    logits = torch.randn(40, 3_000, generator=torch.Generator().manual_seed(6))
    logits[:20] *= 4
    logits[10:30] = logits[10:30].bfloat16().float()
    noise = keys(40)
    whole = gumbel(noise, torch.arange(3_000))
    for settings in (*SETTINGS, Sampling(1.0, top_k=2_900), Sampling(1e-7), Sampling(50.0), Sampling(50.0, top_p=0.99)):
        penalised = settings.penalised(logits, [range(50)] * 40)
        scores = settings.probabilities(penalised).log() + whole
        if settings.temperature > 1e-6:  # below, the logarithm of a probability is -inf
            assert torch.equal(settings.choose(penalised, noise), scores.argmax(-1)), settings
        with monkeypatch.context() as patch:
            patch.setattr(sampling, "NEAR", 3_000)
            patch.setattr(sampling, "CLOSE", 3_000)
            everything = settings.choose(penalised, noise)
        assert torch.equal(settings.choose(penalised, noise), everything), settings


@pytest.mark.parametrize("settings", [{}, {"top_p": 0.6}, {"top_p": 0.999}, {"top_k": 5}, {"top_k": 40, "top_p": 0.9}])
@pytest.mark.parametrize("spread", [0.0, 0.2, 5.0])  # all equal, outside the most likely few, and well among them
def test_sampling_from_the_most_likely_is_sampling_from_all(settings: dict[str, float], spread: float) -> None:
    """Against the rules written for the whole vocabulary in float64; bfloat16 makes equal logits."""
    generator = torch.Generator().manual_seed(1)
    logits = (spread * torch.randn(200, 4 * sampling.NEAR, generator=generator)).bfloat16().float()
    probs = logits.double().softmax(-1)
    if top_k := settings.get("top_k"):
        probs *= probs >= probs.sort(-1, descending=True).values[:, int(top_k) - 1, None]
        probs /= probs.sum(-1, keepdim=True)
    values, inverse = zip(*(row.unique(return_inverse=True) for row in probs), strict=True)
    more_likely = torch.stack(
        [
            (row.bincount(minlength=len(value)) * value).flip(0).cumsum(0).flip(0)[row]
            - value[row] * row.bincount()[row]
            for value, row in zip(values, inverse, strict=True)
        ]
    )
    probs *= more_likely < settings.get("top_p", 2.0)
    expected = (probs.log() + gumbel(keys(200), torch.arange(logits.shape[1]))).argmax(-1)
    chosen = Sampling(temperature=1.0, **settings).choose(logits, keys(200))
    # float32 sums differ only where top_p is on an edge.
    assert (chosen == expected).sum() >= 199


def test_a_draw_depends_neither_on_the_batch_nor_on_the_order() -> None:
    logits, noise = torch.randn(12, 900), keys(12)
    for settings in SETTINGS[:6]:
        together = settings.choose(logits, noise)
        order = torch.randperm(12)
        assert torch.equal(settings.choose(logits[order], noise[order]), together[order])
        alone = torch.cat([settings.choose(logits[i : i + 1], noise[i : i + 1]) for i in range(12)])
        assert torch.equal(alone, together)


@pytest.mark.parametrize("temperature", [1e-40, 5e-324, 1e-310])
def test_the_lowest_temperatures_are_greedy(temperature: float) -> None:
    logits = torch.randn(6, 700)
    logits[:, 5] = -torch.inf
    for settings in (Sampling(temperature), Sampling(temperature, top_p=0.9), Sampling(temperature, top_k=3)):
        assert torch.equal(settings.choose(logits, keys(6)), logits.argmax(-1))
        assert settings.probabilities(logits).amax(-1).tolist() == [1.0] * 6


@pytest.mark.parametrize("seed", [10**23, -1, -(10**30), 2**64, 0, 1 << 20_000], ids=lambda seed: seed.bit_length())
def test_a_seed_is_any_integer(tiny_model: Transformer, seed: int) -> None:
    options = {"temperature": 1.0, "max_new_tokens": 6}
    (first,) = wb.generate(tiny_model, [[1, 2, 3]], seed=seed, **options)
    assert wb.generate(tiny_model, [[1, 2, 3]], seed=seed, **options)[0].tokens == first.tokens
    assert [piece.token for piece in wb.stream(tiny_model, [1, 2, 3], seed=seed, **options)] == list(first.tokens)
    assert wb.generate(tiny_model, [[1, 2, 3]], seed=seed + 1, **options)[0].tokens != first.tokens


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": math.inf}, "temperature must be at least 0 and below"),
        ({"temperature": math.nan}, "temperature must be"),
        ({"top_p": 0}, "top_p must be"),
        ({"top_k": -1}, "top_k must be"),
        ({"top_k": 1.5}, "top_k must be a whole number; found 1.5"),
        ({"top_k": True}, "top_k must be a whole number"),
        ({"top_p": None}, "top_p must be a number; found None"),
        ({"temperature": "1"}, "temperature must be a number; found '1'"),
        ({"min_p": 1.5}, "min_p must be between 0 and 1"),
        ({"repetition_penalty": 0}, "repetition_penalty must be"),
        ({"repetition_penalty": math.inf}, "repetition_penalty must be"),
    ],
)
def test_a_setting_out_of_range_is_one_sentence(settings: dict[str, float], message: str) -> None:
    with pytest.raises(GenerationError, match=message):
        Sampling(**settings)


# --- small changes of the logits --------------------------------------------------------------------------------


def changed_draws(model: Transformer, prompts: list[list[int]], *, temperature: float, seeds: int) -> float:
    """The share of draws that differ between the logits of a prompt alone and in a batch, in the model's dtype."""
    longest = max(map(len, prompts))
    assert all(len(prompt) == longest for prompt in prompts)
    with torch.no_grad():
        together = model(torch.tensor(prompts))[:, 5::6].flatten(0, 1)
        alone = torch.cat([model(torch.tensor([prompt]))[0, 5::6] for prompt in prompts])
    different = total = 0
    for i in range(len(together)):
        noise = keys(seeds, seed=i)
        first, second = (
            Sampling(temperature).choose(logits[i].expand(seeds, -1), noise) for logits in (together, alone)
        )
        different += int((first != second).sum())
        total += seeds
    return different / total


def test_few_draws_change_with_the_batch_in_bfloat16() -> None:
    demo = wb.load_model("demo", device="cpu", dtype="bfloat16")
    assert demo.tokenizer is not None
    texts = ["The capital of France is the city", "Question: Tom has 3 apples and", "def add(a, b):\n    return a + b"]
    ids = [demo.tokenizer.encode(text, bos=True)[:7] for text in texts]
    assert changed_draws(demo, ids * 3, temperature=1.5, seeds=300) < 0.03


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
def test_few_draws_of_a_real_model_change_with_the_batch(smollm2: Path, temperature: float) -> None:
    model = wb.load_model(smollm2, device="cpu", dtype="bfloat16")
    texts = wb.generate(model, [[1]] * 8, max_new_tokens=30, temperature=0.8, stop_tokens=())  # its own language
    assert changed_draws(model, [list(text.tokens) for text in texts], temperature=temperature, seeds=60) < 0.03


def test_noise_of_logits_changes_few_draws_of_a_flat_distribution() -> None:
    """Logits near uniform, as those of an untrained model, with bfloat16's rounding as the change."""
    logits = torch.randn(2_000, 500, generator=torch.Generator().manual_seed(8)) * 0.3 + 4
    other = logits + torch.randn(logits.shape, generator=torch.Generator().manual_seed(9)) * 2**-8
    noise = keys(2_000)
    changed = (Sampling(1.0).choose(logits, noise) != Sampling(1.0).choose(other, noise)).double().mean()
    assert 0 < changed < 0.03


# --- ids without a token ----------------------------------------------------------------------------------------


@pytest.fixture
def padded() -> Transformer:
    """Eight rows more than tokens, and the output layer prefers them."""
    model = ours(hugging_face(heads=4, kv_heads=2, vocab_size=520))
    model.tokenizer = Tokenizer.from_ranks({bytes([i]): i for i in range(256)})
    assert model.tokenizer.vocab_size == 512
    with torch.no_grad():
        model.output.weight[512:] = model.output.weight[:8] * 5
    return model


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_k": 20}])
def test_an_id_without_a_token_is_never_chosen(padded: Transformer, settings: dict[str, float]) -> None:
    options = {"max_new_tokens": 12, "stop_tokens": (), **settings}
    generations = wb.generate(padded, PROMPTS := [[5, 9, 3], [8, 2], [4], [50, 60]], **options)
    assert max(token for generation in generations for token in generation.tokens) < 512
    pieces = list(wb.stream(padded, PROMPTS[0], **options))
    assert tuple(piece.token for piece in pieces) == generations[0].tokens
    without_text = padded.tokenizer
    padded.tokenizer = None  # ids alone: every row may be chosen
    assert max(token for generation in wb.generate(padded, PROMPTS, **options) for token in generation.tokens) >= 512
    padded.tokenizer = without_text


def test_log_probabilities_are_over_all_rows(padded: Transformer) -> None:
    (generation,) = wb.generate(padded, [[5, 9, 3]], max_new_tokens=6, stop_tokens=())
    with torch.no_grad():
        logprobs = padded(torch.tensor([[*generation.prompt, *generation.tokens]])).log_softmax(-1)[0]
    expected = [float(logprobs[2 + i, token]) for i, token in enumerate(generation.tokens)]
    assert generation.logprobs == pytest.approx(expected, abs=1e-4)
    ((total, _),) = wb.score(padded, [(generation.prompt, generation.tokens)])
    assert total == pytest.approx(sum(expected), abs=1e-3)
