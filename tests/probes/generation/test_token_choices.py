"""What a text was drawn from: the tokens are generation's own, and the numbers those of one run of the whole text."""

import math

import numpy as np
import pytest
import torch

import workbench as wb
from probes.attention.head_metrics import HOOKS, LONG_HOOKS, head_metrics, query_metrics
from probes.generation.token_choices import SamplingTrace, choices, distribution, gathered, sampling_trace
from workbench.errors import DataError, GenerationError
from workbench.inference.sampling import Sampling, noise_key
from workbench.model import Transformer

SETTINGS = [
    Sampling(),
    Sampling(1.0),
    Sampling(0.7, 0.9, 0),
    Sampling(1.3, 1.0, 5),
    Sampling(0.9, 0.8, 6),
    Sampling(0.9, 0.9, 20, 0.1, 1.5),
]


def test_a_distribution_by_hand() -> None:
    """Shares of 1/2, 1/4, 1/8, 1/8 at temperature 1."""
    logits = torch.tensor([1.0, 2.0, 4.0, 1.0]).log()
    whole = [1 / 8, 1 / 4, 1 / 2, 1 / 8]
    by_hand = {
        Sampling(1.0): whole,
        Sampling(0.0): [0, 0, 1, 0],
        Sampling(0.5): [1 / 22, 4 / 22, 16 / 22, 1 / 22],  # temperature 1/2 squares the odds
        Sampling(1.0, top_k=2): [0, 1 / 3, 2 / 3, 0],
        Sampling(1.0, top_p=0.5): [0, 0, 1, 0],  # the first alone has the mass
        Sampling(1.0, top_p=0.6): [0, 1 / 3, 2 / 3, 0],
        Sampling(1.0, top_k=3): whole,  # equal ones stay together
        Sampling(1.0, top_p=0.8): whole,
        Sampling(1.0, top_p=0.6, top_k=1): [0, 0, 1, 0],
        Sampling(1.0, top_p=0.65, top_k=2): [0, 0, 1, 0],  # of the two, the first has a mass of 2/3
        Sampling(1.0, top_p=0.7, top_k=2): [0, 1 / 3, 2 / 3, 0],
        Sampling(1.0, min_p=0.4): [0, 1 / 3, 2 / 3, 0],
        Sampling(1.0, min_p=0.6): [0, 0, 1, 0],
    }
    for sampling, expected in by_hand.items():
        assert distribution(logits, sampling).tolist() == pytest.approx(expected, abs=1e-6), sampling


@pytest.mark.parametrize("sampling", SETTINGS)
def test_what_is_drawn_follows_the_distribution(sampling: Sampling) -> None:
    """Each token's count is its share of the draws, within five standard deviations."""
    logits = torch.randn(40, generator=torch.Generator().manual_seed(2))
    count = 4000
    keys = torch.tensor([noise_key(seed, 0) for seed in range(count)], dtype=torch.int32)
    counts = torch.bincount(sampling.choose(logits.expand(count, -1), keys), minlength=40)
    share = distribution(logits, sampling)
    assert ((counts - count * share).abs() <= 5 * (count * share * (1 - share)).sqrt()).all()
    assert (counts[share == 0] == 0).all()


@pytest.mark.parametrize("sampling", SETTINGS)
def test_tokens_and_probabilities_are_those_of_generation(tiny_model: Transformer, sampling: Sampling) -> None:
    prompt = [3, 1, 4, 1, 5]
    trace = sampling_trace(tiny_model, prompt, sampling, seed=7, max_new_tokens=12)
    pieces = list(
        wb.stream(
            tiny_model, prompt, seed=7, max_new_tokens=12, temperature=sampling.temperature, top_p=sampling.top_p,
            top_k=sampling.top_k, min_p=sampling.min_p, repetition_penalty=sampling.repetition_penalty,
        )
    )  # fmt: skip
    assert list(trace.tokens) == [piece.token for piece in pieces] and trace.finish_reason == "length"
    assert trace.logprobs.tolist() == [piece.logprob for piece in pieces]  # the same operations: not one bit apart
    assert (trace.shares > 0).all() and (trace.kept >= 1).all()


def test_the_numbers_are_those_of_one_run_of_the_whole_text(tiny_model: Transformer) -> None:
    prompt, sampling = [3, 1, 4, 1, 5], Sampling(0.8, 0.9, 20)
    trace = sampling_trace(tiny_model, prompt, sampling, seed=3, max_new_tokens=10, alternatives=4)
    with torch.no_grad():
        logits = tiny_model(torch.tensor([[*prompt, *trace.tokens]]))[0, len(prompt) - 1 : -1].double()
    own = logits.log_softmax(-1)
    taken = own[range(10), list(trace.tokens)]
    # float32, cached against whole: other orders of sums
    np.testing.assert_allclose(trace.logprobs, taken, atol=1e-4)
    np.testing.assert_allclose(trace.entropy, torch.distributions.Categorical(logits=logits).entropy(), atol=1e-4)
    assert trace.ranks.tolist() == [int((row > row[t]).sum()) + 1 for row, t in zip(own, trace.tokens, strict=True)]
    np.testing.assert_array_equal(trace.other_tokens, own.topk(4).indices)
    np.testing.assert_allclose(trace.other_logprobs, own.topk(4).values, atol=1e-4)
    for step, row in enumerate(logits):
        share = distribution(row.float(), sampling)
        assert trace.shares[step] == pytest.approx(float(share[trace.tokens[step]]), abs=1e-4)
        assert trace.kept[step] == int((share > 0).sum())
        np.testing.assert_allclose(trace.other_shares[step], share.numpy()[trace.other_tokens[step]], atol=1e-4)


def test_greedy_is_the_first_and_the_table_counts_from_one(tiny_model: Transformer) -> None:
    trace = sampling_trace(tiny_model, [1, 2, 3], Sampling(), max_new_tokens=4)
    table = trace.frame()
    assert table["step"].tolist() == [1, 2, 3, 4] and table["position"].tolist() == [3, 4, 5, 6]
    assert set(table["rank"]) == {1} and set(table["drawn_probability"]) == {1.0} and set(table["kept"]) == {1}
    assert set(table["drawn_entropy"]) == {0.0}
    np.testing.assert_allclose(table["probability"], np.exp(table["logprob"]))
    others = trace.alternatives()
    assert len(others) == 4 * 8 and others[others["rank"] == 1]["token"].tolist() == list(trace.tokens)
    assert (table["entropy"] < math.log(tiny_model.config.vocab_size)).all()
    assert trace.figure(stamp={"of": 1}).layout.meta == {"kind": "surprise", "of": 1}


def test_text_that_is_broken_off_keeps_what_there_is(tiny_model: Transformer) -> None:
    steps = choices(tiny_model, [1, 2, 3], Sampling(1.0), seed=1, max_new_tokens=30)
    first = [next(steps), next(steps)]
    part = gathered([1, 2, 3], first)
    assert isinstance(part, SamplingTrace) and part.finish_reason is None
    assert part.tokens == sampling_trace(tiny_model, [1, 2, 3], Sampling(1.0), seed=1, max_new_tokens=2).tokens
    with pytest.raises(DataError, match="No token"):
        gathered([1, 2, 3], [])
    with pytest.raises(GenerationError, match="no tokens"):
        choices(tiny_model, [], Sampling())


def test_a_full_context_ends_the_text(tiny_model: Transformer) -> None:
    context = tiny_model.config.max_seq_len
    trace = sampling_trace(tiny_model, [1] * (context - 2), Sampling(), max_new_tokens=10)
    assert trace.finish_reason == "context" and len(trace.tokens) == 2


@pytest.mark.parametrize("hooks", [HOOKS, LONG_HOOKS])
def test_head_metrics_of_one_query_are_its_row(
    tiny_model: Transformer, tokens: torch.Tensor, hooks: tuple[str, ...]
) -> None:
    with torch.no_grad():
        _, cap = tiny_model.run_with_capture(tokens[:1], hooks)
    metrics = head_metrics(cap, queries=[9])
    assert metrics.n_queries == 1
    for layer in metrics.layers:
        rows = query_metrics(cap, layer)
        for name, values in rows.values.items():
            np.testing.assert_allclose(metrics.values[name][layer], values[0, :, 9], rtol=1e-5, err_msg=name)
        assert query_metrics(cap, layer, queries=[9, 4]).queries.tolist() == [9, 4]
