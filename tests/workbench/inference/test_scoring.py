"""Scores against log-probabilities computed the plain way."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import workbench as wb
from tests.workbench.reference import hugging_face, ours
from workbench.errors import WorkbenchError
from workbench.inference import prefix_tree, scoring_batches
from workbench.inference.scoring import score_counted, score_steps, score_tokens


@torch.no_grad()
def plain(model, context, continuation) -> tuple[float, bool]:
    ids = [*context, *continuation]
    logprobs = model(torch.tensor([ids[:-1]])).log_softmax(-1)[0, len(context) - 1 :]
    targets = torch.tensor(continuation)
    total = logprobs.gather(-1, targets[:, None]).sum()
    return float(total), bool((logprobs.argmax(-1) == targets).all())


def requests(model, n: int = 30):
    generator = torch.Generator().manual_seed(0)

    def ids(low: int, high: int) -> list[int]:
        length = int(torch.randint(low, high, (), generator=generator))
        return torch.randint(0, 96, (length,), generator=generator).tolist()

    pairs = [(ids(1, 40), ids(1, 6)) for _ in range(n)]
    shared = pairs[0][0]
    pairs += [(shared, [token]) for token in (3, 4, 5, 6)]  # four answers to one question
    pairs += [(shared, [3, 9, 9]), (shared[:-1], [shared[-1], 7])]  # the same input as the answers, another split
    with torch.no_grad():
        best = int(model(torch.tensor([shared]))[0, -1].argmax())
    return [*pairs, (shared, [best])]


def test_scores_equal_the_plain_way_in_the_order_of_the_requests(tiny_model) -> None:
    pairs = requests(tiny_model)
    for score, request in zip(wb.score(tiny_model, pairs), pairs, strict=True):
        total, greedy = plain(tiny_model, *request)
        assert score[0] == pytest.approx(total, abs=1e-4) and score[1] == greedy
    assert wb.score(tiny_model, pairs)[-1][1]


def test_batch_size_changes_nothing(tiny_model) -> None:
    pairs = requests(tiny_model)
    alone = wb.score(tiny_model, pairs, batch_tokens=1)
    together = wb.score(tiny_model, pairs, batch_tokens=100_000)
    for (total, greedy), other in zip(alone, together, strict=True):
        assert total == pytest.approx(other[0], abs=1e-5) and greedy == other[1]


def test_answers_to_one_question_share_one_forward(tiny_model, monkeypatch) -> None:
    computed = []
    hidden = type(tiny_model).hidden
    monkeypatch.setattr(
        type(tiny_model), "hidden", lambda self, t, *a: computed.append(t.numel()) or hidden(self, t, *a)
    )
    wb.score(tiny_model, [([1, 2, 3, 4], [answer]) for answer in range(10)])
    assert computed == [4]


def test_each_token_s_log_probability(tiny_model) -> None:
    (scored,) = score_tokens(tiny_model, [([1, 2], [3, 4, 5])])
    steps = [plain(tiny_model, [1, 2, 3, 4][: 2 + i], [3 + i])[0] for i in range(3)]
    assert scored.logprobs.tolist() == pytest.approx(steps, abs=1e-5)


def test_a_long_input_loses_its_left(tiny_model) -> None:
    long = list(range(96)) + list(range(60))
    ((total, _),) = wb.score(tiny_model, [(long, [5, 6])])
    assert total == pytest.approx(plain(tiny_model, long[-127:], [5, 6])[0], abs=1e-4)


@pytest.mark.parametrize("stride", [None, 100, 30])
def test_rolling_windows_are_those_of_lm_eval(tiny_model, stride) -> None:
    utils = pytest.importorskip("lm_eval.utils", reason="lm_eval is not installed")
    text = torch.randint(0, 96, (300,), generator=torch.Generator().manual_seed(1)).tolist()
    windows = utils.get_rolling_token_windows(text, 1, 128, context_len=1 if stride is None else 128 - stride + 1)
    expected = sum(plain(tiny_model, *utils.make_disjoint_window(window))[0] for window in windows)
    totals = wb.score_rolling(tiny_model, [text, [4, 5], []], prefix=1, stride=stride)
    assert totals[0] == pytest.approx(expected, abs=2e-3)  # 1.5e3 nats in float32
    assert totals[1] == pytest.approx(plain(tiny_model, [1], [4, 5])[0], abs=1e-5)
    assert totals[2] == 0


def test_requests_that_cannot_be_scored_are_errors(tiny_model) -> None:
    for request, message in (
        (([], [1]), "at least one token"),
        (([1], []), "at least one token"),
        (([1], [1] * 129), "longer than the context of 128"),
    ):
        with pytest.raises(WorkbenchError, match=message):
            wb.score(tiny_model, [request])


@pytest.fixture
def forks_everywhere(monkeypatch) -> None:
    """Share prefixes and pack subtrees of a few tokens, so that small inputs produce every kind of batch."""
    monkeypatch.setattr(prefix_tree, "MAX_PACKED_TOKENS", 12)
    monkeypatch.setitem(scoring_batches.FORWARD_COST, "cpu", 4)


few_letters = st.lists(st.integers(0, 2), min_size=1, max_size=14)
random_requests = st.lists(st.tuples(few_letters, st.lists(st.integers(0, 2), min_size=1, max_size=5)), max_size=12)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(random_requests, st.sampled_from([1, 7, 40, 4096]), st.booleans())
def test_random_trees_equal_the_plain_way(tiny_model, forks_everywhere, pairs, batch_tokens, hooked) -> None:
    """Nested prefixes, contexts that are prefixes of others, duplicates; and hooks, which turn packing off."""
    with tiny_model.intervene(*([wb.Scale("blocks.0.hook_mlp_out", 1.5)] if hooked else [])):
        scores = wb.score(tiny_model, pairs, batch_tokens=batch_tokens)
        for (total, greedy), request in zip(scores, pairs, strict=True):
            expected, expected_greedy = plain(tiny_model, *request)
            assert (total, greedy) == (pytest.approx(expected, abs=1e-4), expected_greedy)


@torch.no_grad()
def test_scores_equal_transformers(forks_everywhere) -> None:
    reference = hugging_face(scaled=True)
    model = ours(reference)
    generator = torch.Generator().manual_seed(3)
    head = torch.randint(0, 120, (90,), generator=generator).tolist()
    questions = [[*head, *torch.randint(0, 120, (10 + 2 * i,), generator=generator).tolist()] for i in range(12)]
    pairs = [(question, answer) for question in questions for answer in ([5], [6], [7, 8], [7, 9, 3])]
    scores, counted = score_counted(model, pairs, batch_tokens=200)
    for scored, (context, answer) in zip(scores, pairs, strict=True):
        logprobs = reference(torch.tensor([[*context, *answer[:-1]]])).logits[0, len(context) - 1 :].log_softmax(-1)
        expected = logprobs.gather(-1, torch.tensor(answer)[:, None]).squeeze(-1)
        assert scored.logprobs.tolist() == pytest.approx(expected.tolist(), abs=1e-4)
        assert scored.greedy.tolist() == (logprobs.argmax(-1) == torch.tensor(answer)).tolist()
    inputs = [(*context, *answer[:-1]) for context, answer in pairs]
    assert counted.minimum == len({ids[: n + 1] for ids in inputs for n in range(len(ids))})
    assert counted.minimum <= counted.computed < 1.3 * counted.minimum, "the rest is padding"


def test_packing_and_shared_prefixes_are_really_used(tiny_model, forks_everywhere) -> None:
    """Ten questions after one prefix, two answers each: one forward for the prefix, one for ten packed suffixes."""
    pairs = [([*range(40), q, *range(8)], [answer, 5]) for q in range(60, 70) for answer in (1, 2)]
    scores, counted = score_counted(tiny_model, pairs)
    assert (counted.computed, counted.minimum, counted.forwards) == (40 + 10 * 11, 40 + 10 * 11, 2)
    assert counted.fraction == 1
    for scored, request in zip(scores, pairs, strict=True):
        assert scored.total == pytest.approx(plain(tiny_model, *request)[0], abs=1e-4)


def test_duplicates_are_computed_once_and_answered_each(tiny_model) -> None:
    pairs = [([1, 2, 3], [4, 5]), ([9], [9]), ([1, 2, 3], [4, 5])]
    (first, _, again), counted = score_counted(tiny_model, pairs)
    assert torch.equal(first.logprobs, again.logprobs)
    assert counted.minimum == 4 + 1
    assert score_counted(tiny_model, [])[1].fraction == 1


def test_batches_yield_each_request_once_when_it_is_finished(tiny_model, forks_everywhere) -> None:
    pairs = requests(tiny_model)
    batches = list(score_steps(tiny_model, pairs, batch_tokens=64))
    order = [i for batch in batches for i, _ in batch.finished]
    assert sorted(order) == list(range(len(pairs))) and len(batches) > 3
    assert all(batch.tokens <= 64 for batch in batches)


class Memory:
    """A machine on which a forward of more than `limit` tokens does not fit; `limit` may change after some forwards."""

    def __init__(self, model, monkeypatch, error: Exception, limits: dict[int, int]) -> None:
        self.tokens: list[int] = []  # of the forwards that fitted
        hidden = type(model).hidden

        def limited(model, tokens, *arguments):
            limit = limits[max(at for at in limits if at <= len(self.tokens))]
            if tokens.numel() > limit:
                raise error
            self.tokens.append(tokens.numel())
            return hidden(model, tokens, *arguments)

        monkeypatch.setattr(type(model), "hidden", limited)


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] data. DefaultCPUAllocator: can't allocate memory: you tried to"),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1024 bytes."),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["cuda", "linux", "windows"])
def test_the_budget_gives_way_to_memory_and_grows_again(tiny_model, monkeypatch, error) -> None:
    pairs = [([i % 96, (i * 7) % 96, *range(18)], [5]) for i in range(96)]
    expected = wb.score(tiny_model, pairs)
    memory = Memory(tiny_model, monkeypatch, error, {0: 100, 12: 1000})
    scores, counted = score_counted(tiny_model, pairs, batch_tokens=320)
    assert [total for total, _ in expected] == pytest.approx([scored.total for scored in scores], abs=1e-5)
    assert memory.tokens[0] == 80, "halved twice from 320"
    assert max(memory.tokens[:12]) <= 100 < max(memory.tokens), "it never grew again"
    assert counted.computed == sum(memory.tokens) == counted.minimum, "what failed is not counted"


def test_a_shared_prefix_that_does_not_fit_is_computed_in_chunks(tiny_model, forks_everywhere, monkeypatch) -> None:
    pairs = [([*range(60), q, *range(20)], [4]) for q in range(8)]
    expected = wb.score(tiny_model, pairs)
    memory = Memory(tiny_model, monkeypatch, OUT_OF_MEMORY[0], {0: 25})
    assert [total for total, _ in wb.score(tiny_model, pairs)] == pytest.approx([t for t, _ in expected], abs=1e-5)
    assert memory.tokens[:4] == [15, 15, 15, 15]


def test_too_little_memory_is_an_error_and_other_errors_pass(tiny_model, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        Memory(tiny_model, patch, OUT_OF_MEMORY[0], {0: 10})
        with pytest.raises(WorkbenchError, match="one input of 20 tokens"):
            wb.score(tiny_model, [(list(range(20)), [5])])
    Memory(tiny_model, monkeypatch, RuntimeError("shapes differ"), {0: 10})
    with pytest.raises(RuntimeError, match="shapes differ"):
        wb.score(tiny_model, [(list(range(20)), [5])])


def test_logits_are_held_within_a_budget(tiny_model, monkeypatch) -> None:
    text = torch.randint(0, 96, (100,), generator=torch.Generator().manual_seed(1)).tolist()
    expected = score_tokens(tiny_model, [([1], text)])[0].logprobs
    monkeypatch.setattr(scoring_batches, "LOGIT_BYTES", 7 * 4 * 96)
    shapes = []
    unembed = type(tiny_model).unembed
    monkeypatch.setattr(type(tiny_model), "unembed", lambda self, x: shapes.append(x.shape[:2]) or unembed(self, x))
    assert torch.allclose(score_tokens(tiny_model, [([1], text)])[0].logprobs, expected, atol=1e-5)
    assert shapes == [(1, 7)] * 14 + [(1, 2)]


def test_bfloat16_changes_with_the_batch_by_its_rounding_only(tiny_model) -> None:
    """A float32 sum rounds differently in another batch; in bfloat16 that is up to 2^-8 of a logit of size ten."""
    pairs, model = requests(tiny_model), tiny_model.bfloat16()
    alone, together = (score_tokens(model, pairs, batch_tokens=n) for n in (1, 100_000))
    for scored, other in zip(alone, together, strict=True):
        assert torch.allclose(scored.logprobs, other.logprobs, atol=0.08)


@pytest.mark.gpu
def test_scores_on_cuda_are_those_of_the_cpu(tiny_model, forks_everywhere, monkeypatch) -> None:
    monkeypatch.setitem(scoring_batches.FORWARD_COST, "cuda", 4)
    pairs = requests(tiny_model)
    expected = wb.score(tiny_model, pairs)
    scores = wb.score(tiny_model.to("cuda"), pairs, batch_tokens=64)
    assert [total for total, _ in scores] == pytest.approx([total for total, _ in expected], abs=1e-3)
