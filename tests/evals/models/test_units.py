"""Units are small where an answer takes long, and the same for a run and its continuation."""

import itertools
import math
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.models import response_cache, units
from evals.models.response_cache import CachedResponses, ResponseCache
from evals.store.store import Store

CONTEXTS = st.lists(st.lists(st.integers(0, 2), max_size=8), max_size=6)


@given(CONTEXTS)
def test_tokens_of_a_common_prefix_count_once(contexts: list[list[int]]) -> None:
    def common(a: list[int], b: list[int]) -> int:
        return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))

    pairs = itertools.pairwise([[], *contexts])
    assert units.new_tokens(contexts) == sum(len(b) - common(a, b) for a, b in pairs)


def test_a_unit_of_a_cpu_has_at_most_128_scored_and_32_generated_answers_unless_they_take_less_than_a_minute() -> None:
    billion = 2e9 * 200  # FLOPs of 200 tokens of a model with a billion parameters
    assert units.scores_per_unit("cpu", billion) == units.scores_per_unit("cpu", math.inf) == 128
    assert units.scores_per_unit("cpu", 60 / 512 * 60e9) == 512
    assert units.generations_per_unit("cpu", 0) == 32
    assert units.generations_per_unit("cpu", 8 * billion * 5) == 4
    assert units.generations_per_unit("cpu", 0, batch_size=64) == 64, "a unit holds a batch of the user's size"
    assert units.scores_per_unit("cuda", billion) == 512 and units.generations_per_unit("cuda", billion) == 128


class Stop(BaseException):
    pass


@pytest.mark.parametrize("seconds", [0.0, 0.02], ids=["quick", "slow"])
def test_a_stopped_run_loses_only_the_unit_in_work(tmp_path: Any, seconds: float, monkeypatch: Any) -> None:
    monkeypatch.setattr(response_cache, "SAVE_EVERY_S", 0.05)
    questions, computed = [("q", i) for i in range(40)], []

    def compute(indices: Any) -> list[Any]:
        if len(computed) == 7:
            raise Stop
        time.sleep(seconds)
        computed.append(list(indices))
        return [i * i for i in indices]

    with Store.open(tmp_path) as store:
        run = store.register({})
        writer = store.writer(run)
        cache = ResponseCache(CachedResponses(store, writer, ("model",)))
        with pytest.raises(Stop):
            cache.get_or_compute(questions, compute, unit=4, on_progress=lambda n: None)
        assert store.response_counts() == {run: 28}
        computed.clear()
        answers = cache.get_or_compute(questions, compute, unit=4, on_progress=lambda n: None)
        writer.close()
    assert answers == [i * i for i in range(40)] and computed == [[28 + 4 * i + j for j in range(4)] for i in range(3)]
