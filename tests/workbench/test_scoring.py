"""Scores against log-probabilities computed the plain way."""

import pytest
import torch

import workbench as wb
from workbench.errors import WorkbenchError
from workbench.scoring import score_tokens


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

    made = [(ids(1, 40), ids(1, 6)) for _ in range(n)]
    shared = made[0][0]
    made += [(shared, [token]) for token in (3, 4, 5, 6)]  # four answers to one question
    made += [(shared, [3, 9, 9]), (shared[:-1], [shared[-1], 7])]  # the same input as the answers, another split
    with torch.no_grad():
        best = int(model(torch.tensor([shared]))[0, -1].argmax())
    return [*made, (shared, [best])]


def test_scores_equal_the_plain_way_in_the_order_of_the_requests(tiny_model) -> None:
    asked = requests(tiny_model)
    for got, request in zip(wb.score(tiny_model, asked), asked, strict=True):
        total, greedy = plain(tiny_model, *request)
        assert got[0] == pytest.approx(total, abs=1e-4) and got[1] == greedy
    assert wb.score(tiny_model, asked)[-1][1]


def test_batch_size_changes_nothing(tiny_model) -> None:
    asked = requests(tiny_model)
    alone = wb.score(tiny_model, asked, batch_tokens=1)
    together = wb.score(tiny_model, asked, batch_tokens=100_000)
    for one, other in zip(alone, together, strict=True):
        assert one[0] == pytest.approx(other[0], abs=1e-5) and one[1] == other[1]


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
    ((got, _),) = wb.score(tiny_model, [(long, [5, 6])])
    assert got == pytest.approx(plain(tiny_model, long[-127:], [5, 6])[0], abs=1e-4)


def test_rolling_windows(tiny_model) -> None:
    text = torch.randint(0, 96, (300,), generator=torch.Generator().manual_seed(1)).tolist()
    windows = [([1], text[:128]), ([text[127]], text[128:256]), ([text[255]], text[256:])]
    expected = sum(plain(tiny_model, *window)[0] for window in windows)
    got = wb.score_rolling(tiny_model, [text, [4, 5]], prefix=1)
    assert got[0] == pytest.approx(expected, abs=1e-3)
    assert got[1] == pytest.approx(plain(tiny_model, [1], [4, 5])[0], abs=1e-5)


def test_what_cannot_be_scored_is_said(tiny_model) -> None:
    for request, message in (
        (([], [1]), "at least one token"),
        (([1], []), "at least one token"),
        (([1], [1] * 129), "longer than the context of 128"),
    ):
        with pytest.raises(WorkbenchError, match=message):
            wb.score(tiny_model, [request])
