"""Scopes of interventions: left in any order, in any thread, seen and cleared from outside."""

import contextvars
import gc
import itertools
import threading
import warnings
import weakref
from collections.abc import Iterator

import pytest
import torch

import workbench as wb
from workbench.errors import InterventionError, WorkbenchWarning
from workbench.hooks import hook_points

TOKENS = torch.randint(0, 96, (2, 10), generator=torch.Generator().manual_seed(0))
CHANGES = (wb.Ablate("L1H2"), wb.Scale("L0.mlp", 0.5), wb.Add("blocks.2.hook_resid_pre", 1.0))


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_scopes_are_left_in_any_order(tiny_model, order: tuple[int, ...]) -> None:
    plain = tiny_model(TOKENS)
    scopes = [tiny_model.intervene(change) for change in CHANGES]
    for scope in scopes:
        scope.__enter__()
    left = list(CHANGES)
    for i in order:
        scopes[i].__exit__(None, None, None)
        left.remove(CHANGES[i])
        assert wb.active_interventions(tiny_model) == tuple(left)
        alone = contextvars.Context().run(_run_under, tiny_model, left)  # the same in a context without the scopes
        assert torch.equal(tiny_model(TOKENS), alone)
    assert torch.equal(tiny_model(TOKENS), plain) and not hook_points.active(tiny_model)


def _run_under(model: wb.Transformer, changes: list[wb.Ablate]) -> torch.Tensor:
    with torch.no_grad(), model.intervene(*changes):
        result: torch.Tensor = model(TOKENS)
    return result


def _holding(model: wb.Transformer, change: wb.Ablate) -> Iterator[torch.Tensor]:
    with model.intervene(change):
        while True:
            yield model(TOKENS)


def test_interleaved_generators_take_their_own_scope_away(tiny_model) -> None:
    plain = tiny_model(TOKENS)
    first, second = _holding(tiny_model, CHANGES[0]), _holding(tiny_model, CHANGES[1])
    next(first), next(second)
    first.close()
    assert wb.active_interventions(tiny_model) == (CHANGES[1],)
    assert torch.equal(next(second), contextvars.Context().run(_run_under, tiny_model, [CHANGES[1]]))
    second.close()
    assert wb.active_interventions() == () and torch.equal(tiny_model(TOKENS), plain)


def test_a_generator_closed_in_another_thread_leaves_nothing(tiny_model) -> None:
    plain, problems = tiny_model(TOKENS), []

    def close() -> None:
        try:
            held.close()
        except BaseException as error:  # whatever it is, the test must see it
            problems.append(error)

    held = _holding(tiny_model, CHANGES[0])
    next(held)
    thread = threading.Thread(target=close)
    thread.start()
    thread.join()
    assert not problems
    assert wb.active_interventions() == () and torch.equal(tiny_model(TOKENS), plain)


def test_a_scope_left_elsewhere_does_not_keep_the_model() -> None:
    class Model:
        pass

    model = Model()
    scope = hook_points.subscribe(model, hook_points.Subscription(frozenset(["hook_embed"])))
    scope.__enter__()
    contextvars.Context().run(scope.__exit__, None, None, None)
    gone = weakref.ref(model)
    del scope, model
    gc.collect()
    assert gone() is None


def test_a_thread_gets_interventions_only_with_the_context(tiny_model) -> None:
    results: dict[str, torch.Tensor] = {}

    def run(name: str) -> None:
        with torch.no_grad():
            results[name] = tiny_model(TOKENS)

    plain = tiny_model(TOKENS)
    with tiny_model.intervene(CHANGES[0]):
        changed, context = tiny_model(TOKENS), contextvars.copy_context()
        for thread in (
            threading.Thread(target=run, args=("plain",)),
            threading.Thread(target=context.run, args=(run, "changed")),
        ):
            thread.start()
            thread.join()
    assert torch.equal(results["plain"], plain) and torch.equal(results["changed"], changed)
    assert not torch.equal(plain, changed)
    context.run(run, "after")  # the block has been left, in this context too
    assert torch.equal(results["after"], plain)


def test_interventions_are_cleared_for_one_model_or_for_all(tiny_model, tiny_config) -> None:
    other = wb.Transformer(tiny_config)
    scopes = [tiny_model.intervene(CHANGES[0]), other.intervene(CHANGES[1]), tiny_model.intervene(CHANGES[2])]
    for scope in scopes:
        scope.__enter__()
    assert wb.active_interventions() == CHANGES
    wb.clear_interventions(tiny_model)
    assert wb.active_interventions() == (CHANGES[1],)
    wb.clear_interventions()
    assert wb.active_interventions() == ()
    for scope in scopes:
        scope.__exit__(None, None, None)  # what was cleared is left without an error
    with scopes[0]:  # and a scope that was left may be entered again
        assert wb.active_interventions() == (CHANGES[0],)
        with pytest.raises(InterventionError, match="already entered"):
            scopes[0].__enter__()
    assert wb.active_interventions() == ()


def test_positions_that_no_run_reaches_are_named(tiny_model) -> None:
    for positions, missed in (([500], "500"), ([3, 10, 11], "10, 11")):
        with (
            pytest.warns(WorkbenchWarning, match=f"no run reached position {missed}, so nothing was changed there"),
            tiny_model.intervene(wb.Ablate("L1H2", positions=positions)),
        ):
            tiny_model(TOKENS)


def test_positions_of_the_logits_are_those_that_are_unembedded(tiny_model) -> None:
    change = wb.Add("hook_logits", 1.0, positions=[3, 9])
    with pytest.warns(WorkbenchWarning, match="hook_logits: no run reached position 3,"), tiny_model.intervene(change):
        tiny_model.unembed(tiny_model.hidden(TOKENS)[:, -1:], start=9)


def test_only_the_positions_that_are_unembedded_are_reached(tiny_model) -> None:
    with (
        pytest.warns(WorkbenchWarning, match="no run reached position 3, so"),
        tiny_model.intervene(wb.Add("hook_logits", 1.0, positions=[2, 3, 7])),
    ):
        hidden = tiny_model.hidden(TOKENS)[:, [2, 7]]
        tiny_model.unembed(hidden, positions=torch.tensor([2, 7]))


def test_positions_reached_later_or_never_run_are_no_reason_to_warn(tiny_model) -> None:
    cache = tiny_model.empty_cache(2, 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with tiny_model.intervene(wb.Ablate("L1H2", positions=[2, 8])):
            tiny_model(TOKENS[:, :8], cache)
            tiny_model(TOKENS[:, 8:9], cache)
        with tiny_model.intervene(wb.Ablate("L1H2", positions=[500])):
            pass
        with tiny_model.intervene(wb.Ablate("L1H2", positions=[3])):
            tiny_model.unembed(torch.zeros(1, 1, 32), start=9)  # reaches no head
        with pytest.raises(ZeroDivisionError), tiny_model.intervene(wb.Ablate("L1H2", positions=[500])):
            tiny_model(TOKENS)
            raise ZeroDivisionError


def test_what_is_not_an_intervention_is_refused(tiny_model) -> None:
    for wrong in ([wb.Ablate("L1H2")], "L1H2", None, wb.Ablate):
        with pytest.raises(InterventionError, match="expected interventions"):
            tiny_model.intervene(wrong)
