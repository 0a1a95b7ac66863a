"""Values of `Add` and `Patch`: a capture of any part of a run stands for that part, and for no other."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import workbench as wb
from workbench.errors import InterventionError, WorkbenchError
from workbench.hooks.hook_points import Site, Subscription, subscribe
from workbench.hooks.interventions import from_json, to_json

A, B = (torch.randint(0, 96, (1, 10), generator=torch.Generator().manual_seed(i)) for i in (0, 1))
STREAM, Z, V = "blocks.1.hook_resid_pre", "blocks.1.attn.hook_z", "blocks.1.attn.hook_v"
SCORES, PATTERN, NEURONS = "blocks.1.attn.hook_attn_scores", "blocks.1.attn.hook_pattern", "blocks.1.mlp.hook_post"
KV_HEADS = {V: 2}


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def under(model: wb.Transformer, *changes: wb.Patch, tokens: torch.Tensor = B) -> torch.Tensor:
    with model.intervene(*changes):
        return model(tokens)


def capture(model: wb.Transformer, name: str, start: int = 0, end: int = 10, **narrowed: list[int]) -> wb.Capture:
    """A capture of tokens `start` to `end` of A, after the others in a cache."""
    cache = model.empty_cache(1, 10)
    if start:
        model(A[:, :start], cache)
    return model.run_with_capture(A[:, start:end], name, cache=cache if start else None, **narrowed)[1]


def written_by_hand(
    model: wb.Transformer, name: str, positions: list[int], heads: list[int] | None, *, add: bool = False
) -> torch.Tensor:
    """Logits of B with some entries of the whole run of A, written by an edit that knows nothing of captures."""
    source = model.run_with_capture(A, name)[1][name]

    def write(_: Site, x: torch.Tensor) -> torch.Tensor:
        axis = 2 if name in (SCORES, PATTERN) else 1
        chosen = torch.zeros(x.shape, dtype=torch.bool)
        chosen.index_fill_(axis, torch.tensor(positions), True)
        if heads is not None:
            others = [head for head in range(x.shape[3 - axis]) if head not in heads]
            chosen.index_fill_(3 - axis, torch.tensor(others, dtype=torch.int64), False)
        return torch.where(chosen, x + source if add else source, x)

    with subscribe(model, Subscription(frozenset([name]), edit=write)):
        return model(B)


@st.composite
def partial_captures(draw: st.DrawFn) -> dict:
    """A hook, a cache start, the positions and heads that are captured, and those of them that are patched."""
    name, start = draw(st.sampled_from([STREAM, Z, V, SCORES, PATTERN, NEURONS])), draw(st.integers(0, 9))
    span = st.integers(start, 9)
    held = draw(st.none() | st.lists(span, min_size=1, unique=True))
    covered = sorted(held) if held is not None else list(range(start, 10))
    positions = draw(
        st.none() | st.permutations(covered).flatmap(lambda p: st.integers(1, len(p)).map(lambda n: p[:n]))
    )
    heads = draw(st.none() | st.lists(st.integers(0, 3), min_size=1, unique=True))
    has_heads = name not in (STREAM, NEURONS)
    width = KV_HEADS.get(name, 4)
    held_heads = sorted({head * width // 4 for head in (range(4) if heads is None else heads)})
    patched = draw(st.none() | st.lists(st.sampled_from(held_heads), min_size=1, unique=True)) if has_heads else None
    return {
        "name": name, "start": start, "held": held, "heads": heads, "positions": positions, "patched": patched,
        "expected": (positions or covered, (patched or held_heads) if has_heads else None),
    }  # fmt: skip


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=partial_captures(), kind=st.sampled_from([wb.Patch, wb.Add]))
def test_a_partial_capture_is_the_same_part_of_the_whole_one(tiny_model, case, kind) -> None:
    name = case["name"]
    cap = capture(tiny_model, name, case["start"], positions=case["held"], heads=case["heads"])
    change = kind(name, cap, positions=case["positions"], heads=case["patched"])
    expected = written_by_hand(tiny_model, name, *case["expected"], add=kind is wb.Add)
    assert torch.allclose(under(tiny_model, change), expected, atol=1e-4)
    (again,) = from_json(to_json([change]))
    assert torch.equal(under(tiny_model, again), under(tiny_model, change)) and again.to_dict() == change.to_dict()
    with tiny_model.intervene(change):  # token by token, keys are fewer than in the capture
        cache = tiny_model.empty_cache(1, 10)
        steps = torch.cat([tiny_model(B[:, i : i + 1], cache) for i in range(10)], 1)
    assert torch.allclose(steps, expected, atol=1e-4)


def test_a_head_s_capture_is_patched_at_that_head(tiny_model) -> None:
    cap = capture(tiny_model, Z, heads=[1, 3])
    both = written_by_hand(tiny_model, Z, list(range(10)), [1, 3])
    assert torch.allclose(under(tiny_model, wb.Patch(Z, cap)), both, atol=1e-5)
    assert torch.allclose(under(tiny_model, wb.Patch("L1H1", cap), wb.Patch("L1H3", cap)), both, atol=1e-5)
    for change in (lambda: wb.Patch("L1H0", cap), lambda: wb.Patch(Z, cap, heads=[3, 0])):
        with pytest.raises(InterventionError, match=r"holds heads 1, 3 of blocks.1.attn.hook_z, not 0"):
            change()


def test_what_a_capture_does_not_hold_is_refused(tiny_model) -> None:
    narrowed, continued = capture(tiny_model, STREAM, positions=[3, 5]), capture(tiny_model, STREAM, 8)
    for cap, positions, words in (
        (narrowed, [4], "holds positions 3, 5 of .*, not 4"),
        (narrowed, [3, 9], "not 9"),
        (continued, [0, 1], "holds positions 8, 9 of .*, not 0, 1"),
        (continued, [8, 9, 10], "not 10"),
    ):
        with pytest.raises(InterventionError, match=words):
            wb.Patch(STREAM, cap, positions=positions)
        with pytest.raises(InterventionError, match=words):
            wb.Add(STREAM, cap, positions=positions)
    with pytest.raises(InterventionError, match="heads 0 to 1, found \\[5\\]") as patch:
        wb.Patch(V, capture(tiny_model, V), heads=[5])
    with pytest.raises(InterventionError) as ablate:
        tiny_model.intervene(wb.Ablate(V, heads=[5]))
    assert str(patch.value) == str(ablate.value)
    with pytest.raises(InterventionError, match="the name of one hook"):
        wb.Patch("blocks.*.hook_resid_pre", narrowed)
    with pytest.raises(WorkbenchError, match="does not hold"):
        wb.Patch("blocks.2.hook_resid_pre", narrowed)


def test_a_capture_with_other_positions_in_each_row_is_refused(tiny_model) -> None:
    _, cap = tiny_model.run_with_capture(torch.cat([A, B]), STREAM, positions=[[3], [5]])
    with pytest.raises(WorkbenchError, match="other positions in each row"):
        wb.Patch(STREAM, cap)


def test_a_capture_of_one_token_is_not_spread_over_the_run(tiny_model) -> None:
    cap = capture(tiny_model, STREAM, end=1)
    expected = written_by_hand(tiny_model, STREAM, [0], None)
    assert torch.allclose(under(tiny_model, wb.Patch(STREAM, cap)), expected, atol=1e-5)


def test_a_prompt_s_capture_acts_while_the_text_goes_on(tiny_model) -> None:
    """Generation is longer than the capture: positions after it are not changed."""
    cap = capture(tiny_model, STREAM, end=6)
    whole = under(tiny_model, wb.Patch(STREAM, cap))
    with tiny_model.intervene(wb.Patch(STREAM, cap)):
        cache = tiny_model.empty_cache(1, 10)
        steps = [tiny_model(B[:, :6], cache)] + [tiny_model(B[:, i : i + 1], cache) for i in range(6, 10)]
    assert torch.allclose(torch.cat(steps, 1), whole, atol=1e-5)


def test_values_for_several_rows_are_refused_where_rows_are_reordered(tiny_model) -> None:
    """In `model(tokens)` each row gets its own; `score` gives the same number of a row whatever stands next to it."""
    both, ids = torch.cat([A, B]), [A[0].tolist(), B[0].tolist()]
    _, cap = tiny_model.run_with_capture(both.flip(0), STREAM)
    rows = [tiny_model.run_with_capture(row[None], STREAM)[1] for row in both.flip(0)]
    crossed = under(tiny_model, wb.Patch(STREAM, cap, positions=[4]), tokens=both)
    alone = [under(tiny_model, wb.Patch(STREAM, rows[i], positions=[4]), tokens=both[i : i + 1]) for i in (0, 1)]
    assert torch.allclose(crossed, torch.cat(alone), atol=1e-5)
    with tiny_model.intervene(wb.Patch(STREAM, cap, positions=[4])):
        for function in (
            lambda: wb.score(tiny_model, [(row[:6], row[6:]) for row in ids]),
            lambda: wb.score_rolling(tiny_model, ids, prefix=1),
            lambda: wb.generate(tiny_model, ids, max_new_tokens=1),
        ):
            with pytest.raises(
                InterventionError, match="has values for 2 rows, but (score|generate) orders rows itself"
            ):
                function()
    with tiny_model.intervene(wb.Patch(STREAM, rows[0], positions=[4])):
        scores = wb.score(tiny_model, [(row[:6], row[6:]) for row in ids])
    assert scores[0][0] == pytest.approx(
        sum(alone[0][0, i - 1].log_softmax(-1)[ids[0][i]].item() for i in range(6, 10)), abs=1e-4
    )


def test_shapes_are_checked_before_the_run(tiny_model) -> None:
    for change in (
        wb.Add("L0H0", torch.zeros(4)),
        wb.Add("blocks.1.hook_mlp_out", torch.randn(5)),
        wb.Patch("L0.mlp", torch.zeros(1, 1, 31)),
        wb.Patch(Z, torch.zeros(1, 1, 3, 8)),
        wb.Patch(Z, torch.zeros(1, 1, 4, 8), heads=[1]),
        wb.Patch(STREAM, torch.zeros(1, 10, 32), positions=[5]),  # row 0 of ten is not position 5
        wb.Add("hook_logits", torch.zeros(95)),
    ):
        with pytest.raises(InterventionError, match="which does not fit"):
            tiny_model.intervene(change)
    for change in (wb.Add(Z, torch.zeros(3, 3)), wb.Add("L0.mlp", torch.zeros(1, 1, 1, 32))):
        with pytest.raises(InterventionError, match="Pass all of these axes"):
            tiny_model.intervene(change)
    with pytest.raises(InterventionError, match="covers 4 keys"):
        under(tiny_model, wb.Add(SCORES, torch.zeros(4)))


def test_a_value_is_a_number_a_list_an_array_or_a_tensor(tiny_model) -> None:
    expected = under(tiny_model, wb.Add(STREAM, torch.full((32,), 0.5)))
    for value in (0.5, [0.5] * 32, torch.full((1, 1, 32), 0.5), torch.full((32,), 0.5).numpy()):
        assert torch.equal(under(tiny_model, wb.Add(STREAM, value)), expected)
    for wrong in (None, "0.5", [[1.0], [1.0, 2.0]], torch.zeros(3, dtype=torch.complex64), torch.zeros(0), object()):
        with pytest.raises(InterventionError, match="value"):
            wb.Add(STREAM, wrong)
