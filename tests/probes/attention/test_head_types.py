"""Head types: numbers by hand, a model whose heads are known, SciPy's distance, and the demo checkpoint's heads."""

import itertools
import random

import numpy as np
import pytest
import torch

import workbench as wb
from probes.attention import head_types, kv_groups, toy_induction_model
from probes.attention.head_metrics import HOOKS, PATTERN, induction_scores
from workbench.errors import DataError
from workbench.hooks.capture import Capture
from workbench.layers.rope import frequencies
from workbench.model import Transformer
from workbench.training.demo_data import corpus

BLOCKS = (8, 10, 12, 16)  # what the 32 tokens of the hand-set model have room for


def scores(**values: list[float]) -> head_types.HeadScores:
    """One layer with one head, a value per prompt."""
    return head_types.HeadScores({name: np.array(row, float).reshape(-1, 1, 1) for name, row in values.items()})


def test_intervals_by_hand() -> None:
    """Of n prompts that say 0 or 1, a resample's mean is binomial: the interval's ends are its quantiles over n."""
    result = scores(x=[0.0] * 10 + [1.0] * 10, same=[0.4] * 20)
    assert result.mean("x").item() == 0.5
    low, high = result.interval("x")
    # 2.5% and 97.5% of Binomial(20, 1/2) are 6 and 14; the resamples' quantiles are within one of them.
    assert low.item() == pytest.approx(6 / 20, abs=0.05) and high.item() == pytest.approx(14 / 20, abs=0.05)
    assert [end.item() for end in result.interval("same")] == pytest.approx([0.4, 0.4])
    assert result.interval("x") == result.interval("x")


def test_undefined_prompts_are_left_out() -> None:
    result = scores(x=[0.2, np.nan, 0.6], never=[np.nan] * 3)
    assert result.mean("x").item() == pytest.approx(0.4)
    low, high = result.interval("x")
    assert low.item() == pytest.approx(0.2) and high.item() == pytest.approx(0.6)
    assert np.isnan(result.mean("never")).all() and np.isnan(result.interval("never")).all()
    single = scores(x=[0.3]).frame()
    assert single["mean"].item() == 0.3 and single["low"].isna().all() and single["high"].isna().all()


def test_catalogue_by_hand() -> None:
    result = scores(previous=[0.5, 0.5, 0.5], distance=[1.0, 2.0, 6.0])
    rules = {"previous": head_types.Rule("previous", 0.5), "near": head_types.Rule("distance", 3.0, below=True)}
    table = head_types.catalogue(result, rules=rules).frame().set_index("type")
    assert table.loc["previous", ["mean", "low", "high", "sure"]].tolist() == [0.5, 0.5, 0.5, True]
    assert table.loc["near", "mean"] == 3.0 and not table.loc["near", "sure"]  # the interval reaches 6
    strict = {"near": head_types.Rule("distance", 2.9, below=True)}
    assert head_types.catalogue(result, rules=strict).frame().empty
    with pytest.raises(DataError, match="sink_1.*measured: distance, previous"):
        head_types.catalogue(result, rules={"sink": head_types.Rule("sink_1", 0.3)})


def test_the_hand_set_circuit_is_catalogued() -> None:
    """Every head whose job was set by hand is found, and no head is taken for one."""
    model = toy_induction_model.induction_model()
    blocks = head_types.repeat_scores(model, blocks=BLOCKS)
    prompts = torch.stack([torch.randperm(32, generator=torch.Generator().manual_seed(i)) for i in range(8)])
    result = head_types.catalogue(blocks, head_types.text_scores(model, prompts.tolist()))
    assert result.of("previous") == [toy_induction_model.PREVIOUS]
    # Without repeats, all that the duplicate-token head can see of its token is the token itself.
    assert set(result.of("local")) == {toy_induction_model.PREVIOUS, toy_induction_model.DUPLICATE}
    assert result.of("induction") == [toy_induction_model.INDUCTION]
    assert result.of("duplicate") == [toy_induction_model.DUPLICATE]
    assert result.of("sink") == []
    idle = set(itertools.product(range(2), range(4))) - {
        toy_induction_model.PREVIOUS,
        toy_induction_model.INDUCTION,
        toy_induction_model.DUPLICATE,
    }
    assert set(result.of("uniform")) == idle
    assert result.is_sure("induction")[toy_induction_model.INDUCTION]
    figure = result.figure()
    drawn = {trace.name: list(zip(trace.y, trace.x, strict=True)) for trace in figure.data}
    assert drawn["induction"] == [toy_induction_model.INDUCTION]
    assert sum(map(len, drawn.values())) == 8


def test_a_fixed_distance_is_no_induction() -> None:
    """A head that always looks 15 back matches the prefix in blocks of 16 and in no others."""
    model = toy_induction_model.induction_model()
    angles = frequencies(128, 1e6)[:32]
    turned = torch.view_as_real(torch.polar(torch.ones_like(angles), -15 * angles)).flatten()
    with torch.no_grad():
        model.layers[0].attention.wq.weight.view(4, 128, -1)[2, :64, 96] = 6 * turned
    blocks = head_types.repeat_scores(model, blocks=BLOCKS)
    by_length = blocks.values["induction"][:, 0, 2].reshape(len(BLOCKS), -1).mean(1)
    assert by_length[3] > 0.95 and (by_length[:3] < 0.05).all()
    rules = {"induction": head_types.RULES["induction"]}
    assert (0, 2) not in head_types.catalogue(blocks, rules=rules).of("induction")
    # The previous-token head is gone, so the circuit is broken too.
    assert head_types.catalogue(blocks, rules=rules).of("induction") == []


def test_scores_are_those_of_the_patterns(tiny_model: Transformer) -> None:
    prompts = [[3, 1, 4, 1, 5, 9, 2, 6], [5, 3, 5, 8, 9]]
    result = head_types.text_scores(tiny_model, prompts)
    for row, ids in enumerate(prompts):
        with torch.no_grad():
            _, cap = tiny_model.run_with_capture(torch.tensor([ids]), HOOKS)
        for layer, head in itertools.product(range(3), range(4)):
            a = cap[f"blocks.{layer}.{PATTERN}"][0, head]
            later = range(1, len(ids))
            assert result.values["previous"][row, layer, head] == pytest.approx(np.mean([a[i, i - 1] for i in later]))
            assert result.values["sink_1"][row, layer, head] == pytest.approx(np.mean([a[i, 0] for i in later]))
            distance = np.mean([sum((i - j) * float(a[i, j]) for j in range(i)) for i in later])
            assert result.values["distance"][row, layer, head] == pytest.approx(distance, abs=1e-5)
    blocks = head_types.repeat_scores(tiny_model, blocks=(8,), batch=3, seed=2)
    reference = induction_scores(tiny_model, block=8, batch=3, seed=2)
    assert blocks.mean("induction") == pytest.approx(reference.induction, abs=1e-6)
    assert blocks.mean("duplicate") == pytest.approx(reference.duplicate, abs=1e-6)


def test_group_similarity_is_scipys(captured: Capture) -> None:
    distance = pytest.importorskip("scipy.spatial.distance", reason="SciPy comes with the eval extra")
    result = kv_groups.group_similarity(captured)
    a = captured.pattern(1).double().numpy()  # [batch, head, query_pos, key_pos]
    for i, j in itertools.combinations(range(4), 2):
        expected = distance.jensenshannon(a[:, i, 1:], a[:, j, 1:], base=2, axis=-1).mean()
        assert result.distance[1, i, j] == result.distance[1, j, i] == pytest.approx(expected, abs=1e-5)
    assert result.within[1] == pytest.approx((result.distance[1, 0, 1] + result.distance[1, 2, 3]) / 2)
    across = [result.distance[1, i, j] for i in (0, 1) for j in (2, 3)]
    assert result.across[1] == pytest.approx(np.mean(across))
    assert (result.distance >= 0).all() and (result.distance <= 1).all()


def test_heads_with_one_query_and_one_key_are_one(tiny_model: Transformer, tokens: torch.Tensor) -> None:
    """Equal queries in a group that shares its key: distance 0 within, while the groups still differ."""
    with torch.no_grad():
        for block in tiny_model.layers:
            rows = block.attention.wq.weight.view(4, 8, 32)
            rows[1], rows[3] = rows[0], rows[2]
        _, cap = tiny_model.run_with_capture(tokens, HOOKS)
    result = kv_groups.group_similarity(cap)
    assert result.within == pytest.approx(np.zeros(3), abs=1e-3)  # a root of float32 rounding
    assert (result.across > 0.05).all()
    table = result.frame()
    assert list(table.columns) == ["layer", "within", "across", "ratio"]


def test_mistakes_say_what_to_do(tiny_model: Transformer, tokens: torch.Tensor) -> None:
    with pytest.raises(DataError, match="prompt 1 has 1 token"):
        head_types.text_scores(tiny_model, [[1, 2], [1]])
    with pytest.raises(DataError, match="no prompts"):
        head_types.text_scores(tiny_model, [])


def demo_prompts(model: Transformer, count: int = 12) -> list[list[int]]:
    """Documents of the kinds that the demo checkpoint knows, cut to 96 tokens."""
    shares = {"quiz": 0.4, "statement": 0.2, "problem": 0.2, "function": 0.2}
    documents = corpus.Corpus(corpus.Mix(shares)).documents(random.Random(11))
    texts = ("".join(segment.text for segment in document.segments) for document in documents)
    return [model.tokenizer.encode(text, bos=True)[:96] for text in itertools.islice(texts, count)]


def test_the_demo_has_a_previous_token_head_and_sinks() -> None:
    model = wb.load_model("demo", device="cpu").eval()
    prompts = demo_prompts(model, 24)
    rules = {kind: head_types.RULES[kind] for kind in ("previous", "sink")}
    halves = prompts[:12], prompts[12:]
    result, again = (head_types.catalogue(head_types.text_scores(model, half), rules=rules) for half in halves)
    strongest = result.of("previous")[:1]
    assert strongest and strongest == again.of("previous")[:1]  # on other text too
    assert (result.is_sure("sink") & again.is_sure("sink")).any()
