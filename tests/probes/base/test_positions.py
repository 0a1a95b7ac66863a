"""Every probe of a capture: positions are those of the run, whatever was captured, and padded rows are refused."""

import functools
import importlib
import inspect
import pkgutil
import typing
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch

import probes
import workbench as wb
from probes.attention import head_map, head_metrics, key_mass, kv_groups
from probes.base.result import Result
from probes.comparison import compare_runs
from probes.flow import information_flow_routes, rollout, value_weighted
from probes.logits import component_attribution, logit_attribution, logit_lens, tuned_lens
from probes.mlp import neurons
from probes.norms import norm_linearity, rms_norms
from probes.patching import path_patching
from probes.rope import formulas, head_scores, what_if_heads
from workbench.errors import CaptureError, HookError
from workbench.hooks.capture import Capture
from workbench.layers.kv_cache import KVCache
from workbench.model import Transformer

POSITIONS, START = [5, 9], 4


class Probe(NamedTuple):
    """How to call a probe, the column of its positions, and columns that depend on which other positions there are."""

    call: Callable[[Transformer, Capture], Any]
    column: str = "pos"
    relative: tuple[str, ...] = ()


BY_POSITION: dict[str, Probe] = {
    "input_rms": Probe(lambda m, cap: rms_norms.input_rms(cap)),
    "contribution_ratios": Probe(lambda m, cap: rms_norms.contribution_ratios(cap)),
    "massive_activations": Probe(
        lambda m, cap: rms_norms.massive_activations(cap, threshold=0.1, ratio=0), relative=("ratio",)
    ),
    "linearised_norm": Probe(lambda m, cap: norm_linearity.linearised_norm(m, cap)),
    "recentring": Probe(lambda m, cap: norm_linearity.recentring(cap)),
    "query_metrics": Probe(lambda m, cap: head_metrics.query_metrics(cap, 1), "query", ("duplicate",)),
    "strongest_keys": Probe(lambda m, cap: head_map.strongest_keys(cap, 1, 2, 9), "query"),
    "logit_lens": Probe(lambda m, cap: logit_lens.logit_lens(m, cap, targets=[5])),
    "decode_streams": Probe(
        lambda m, cap: logit_lens.decode_streams(m, cap, lambda _, x: x, k=2, targets=[], position=None, row=0)
    ),
    "tuned_lens": Probe(lambda m, cap: tuned_lens.tuned_lens(m, cap, tuned_lens.TunedLens.zero(m))),
    "compare": Probe(lambda m, cap: compare_runs.compare(cap, cap).logits),
}
"""Probes whose table has a row for each captured position."""

AT_A_POSITION: dict[str, Probe] = {
    "logit_attribution": Probe(lambda m, cap: logit_attribution.logit_attribution(m, cap, [5], position=9)),
    "neuron_attribution": Probe(lambda m, cap: component_attribution.neuron_attribution(m, cap, [5], position=9)),
}
"""Probes of one position, which they are told: the field `position` and the same numbers."""

OVER_POSITIONS: dict[str, Probe] = {
    "head_metrics": Probe(lambda m, cap: head_metrics.head_metrics(cap)),
    "group_similarity": Probe(lambda m, cap: kv_groups.group_similarity(cap)),
    "outlier_dimensions": Probe(lambda m, cap: rms_norms.outlier_dimensions(cap)),
    "neuron_statistics": Probe(lambda m, cap: neurons.neuron_statistics(cap)),
    "key_mass": Probe(lambda m, cap: key_mass.key_mass(cap)),
    "band_contribution": Probe(lambda m, cap: head_scores.band_contribution(cap, 1, 2)),
    "relative_invariance": Probe(lambda m, cap: head_scores.relative_invariance(cap, 1, 2)),
    "score_by_distance": Probe(lambda m, cap: head_scores.score_by_distance(cap, 1, 2)),
}
"""Probes that sum up the captured positions: their tables name none."""

WHOLE: dict[str, Probe] = {
    "head_map": Probe(lambda m, cap: head_map.head_map(cap, 1, 2)),
    "mean_map": Probe(lambda m, cap: key_mass.mean_map(cap, 1, 2)),
    "source_attribution": Probe(lambda m, cap: component_attribution.source_attribution(m, cap, [5], (1, 2))),
    "logit_paths": Probe(lambda m, cap: path_patching.logit_paths(m, cap, 5)),
    "rollout": Probe(lambda m, cap: rollout.rollout(cap)),
    "attention_flow": Probe(lambda m, cap: rollout.attention_flow(cap)),
    "weighted_pattern": Probe(lambda m, cap: value_weighted.weighted_pattern(m, cap, 1)),
    "first_token": Probe(lambda m, cap: value_weighted.first_token(m, cap)),
    "context_mixing": Probe(lambda m, cap: value_weighted.context_mixing(m, cap)),
    "attention_contributions": Probe(lambda m, cap: information_flow_routes.attention_contributions(m, cap, 1)),
    "stream_contributions": Probe(lambda m, cap: information_flow_routes.stream_contributions(m, cap)),
    "routes": Probe(lambda m, cap: information_flow_routes.routes(m, cap)),
    "what_if": Probe(lambda m, cap: head_scores.what_if(cap, 1, 2, formulas.model_frequencies(m.config))),
    "what_if_heads": Probe(lambda m, cap: what_if_heads.what_if_heads(cap, formulas.model_frequencies(m.config))),
}
"""Probes that need every position from 0, and refuse anything else."""

CHECKS_EVERYTHING = {"non_finite"}
"""Reads whatever was captured, padding too: a NaN in the padding is one."""

ALL = {**BY_POSITION, **AT_A_POSITION, **OVER_POSITIONS, **WHOLE}


def probes_of_a_capture() -> set[str]:
    """Names of the public functions of `probes` that make a result of a capture."""
    names = set()
    for module in pkgutil.walk_packages(probes.__path__, "probes."):
        if module.name.endswith(("cli", "cli_options", "command", "commands", "figures", "drawing")):
            continue
        loaded = importlib.import_module(module.name)
        for name, function in inspect.getmembers(loaded, inspect.isfunction):
            if function.__module__ != module.name or name.startswith("_"):
                continue
            kinds = typing.get_type_hints(inspect.unwrap(function))
            made = kinds.pop("return", None)
            if Capture in kinds.values() and inspect.isclass(made) and issubclass(made, Result):
                names.add(name)
    return names


@functools.cache
def captures() -> dict[str, Any]:
    """A model with all captures of one text: whole, of two positions, behind a cache, and of a padded row."""
    model = wb.load_model("demo", dtype="float32", device="cpu").eval()
    tokens = torch.randint(1000, (2, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        cache = model.empty_cache(2, 12)
        model(tokens[:, :START], cache)
        padded = KVCache.empty(model.config, 2, 12, dtype=model.dtype, device="cpu", pad=torch.tensor([0, 3]))
        return {
            "model": model,
            "whole": model.run_with_capture(tokens, "*")[1],
            "narrow": model.run_with_capture(tokens, "*", positions=POSITIONS)[1],
            "cached": model.run_with_capture(tokens[:, START:], "*", cache=cache)[1],
            "padded": model.run_with_capture(tokens, "*", cache=padded)[1],
            "by row": model.run_with_capture(tokens, "*", positions=[[3], [9]])[1],
            "from the end": model.run_with_capture(tokens, "*", positions=[-7, -3])[1],
        }


def made(probe: Probe, capture: str) -> Any:
    return probe.call(captures()["model"], captures()[capture])


def same_numbers(part: pd.DataFrame, whole: pd.DataFrame, relative: tuple[str, ...] = ()) -> None:
    """Every row of `part` is in `whole`, with the same numbers."""
    floats = list(part.select_dtypes("floating"))
    keys = [name for name in part if name not in floats]
    both = part.merge(whole, on=keys, how="left", suffixes=("", "_whole"), indicator=True)
    assert len(part) and len(both) == len(part) and (both["_merge"] == "both").all()
    for name in set(floats) - set(relative):
        assert np.allclose(both[name], both[f"{name}_whole"], rtol=1e-3, atol=1e-4, equal_nan=True), name


def test_every_probe_of_a_capture_is_tested_here() -> None:
    assert probes_of_a_capture() == ALL.keys() | CHECKS_EVERYTHING, "say in a table how it treats positions"


@pytest.mark.parametrize("capture", ["narrow", "cached", "from the end"])
@pytest.mark.parametrize("name", BY_POSITION)
def test_positions_are_those_of_the_run(name: str, capture: str) -> None:
    probe = BY_POSITION[name]
    part, whole = made(probe, capture).frame(), made(probe, "whole").frame()
    expected = {9} if name == "strongest_keys" else set(range(START, 12) if capture == "cached" else POSITIONS)
    assert set(part[probe.column]) == expected
    same_numbers(part, whole, probe.relative)


@pytest.mark.parametrize("capture", ["narrow", "cached"])
@pytest.mark.parametrize("name", AT_A_POSITION)
def test_a_position_is_that_of_the_run(name: str, capture: str) -> None:
    probe = AT_A_POSITION[name]
    result = made(probe, capture)
    assert result.position == 9
    same_numbers(result.frame(), made(probe, "whole").frame())


@pytest.mark.parametrize("capture", ["narrow", "cached"])
@pytest.mark.parametrize("name", OVER_POSITIONS)
def test_a_summary_names_no_position(name: str, capture: str) -> None:
    assert not {"pos", "query"} & set(made(OVER_POSITIONS[name], capture).frame())


def test_top_tokens_of_neurons_are_at_positions_of_the_run() -> None:
    assert set(made(OVER_POSITIONS["neuron_statistics"], "narrow").top_pos.ravel()) == set(POSITIONS)


def test_distances_are_those_of_the_captured_positions() -> None:
    assert made(OVER_POSITIONS["score_by_distance"], "narrow").distance.tolist() == [0, 4]
    cap = captures()["whole"]
    q, k = (cap[f"blocks.1.attn.hook_rot_{x}"][0] for x in "qk")
    score = float(q[9, 2] @ k[5, 2 // cap.config.group_size]) / cap.config.head_dim**0.5
    assert made(OVER_POSITIONS["score_by_distance"], "narrow").mean[1] == pytest.approx(score, rel=1e-4)


@pytest.mark.parametrize("capture", ["narrow", "cached"])
@pytest.mark.parametrize("name", WHOLE)
def test_what_needs_every_position_refuses_fewer(name: str, capture: str) -> None:
    with pytest.raises(HookError, match="every position from 0"):
        made(WHOLE[name], capture)


@pytest.mark.parametrize("name", sorted(ALL.keys() - {"outlier_dimensions"}))
def test_positions_of_each_row_are_refused(name: str) -> None:
    """A table has one column of positions for all rows. Outlier dimensions count tokens, wherever they are."""
    with pytest.raises(CaptureError, match="other positions in each row"):
        made(ALL[name], "by row")


@pytest.mark.parametrize("name", ALL)
def test_padded_rows_are_refused(name: str) -> None:
    with pytest.raises(HookError, match="left-padded"):
        made(ALL[name], "padded")


def test_padding_is_known_without_patterns_and_after_reading_a_file(tmp_path: Any) -> None:
    model = captures()["model"]
    cache = KVCache.empty(model.config, 1, 6, dtype=model.dtype, device="cpu", pad=torch.tensor([2]))
    with torch.no_grad():
        _, cap = model.run_with_capture(torch.arange(6)[None], rms_norms.HOOKS, cache=cache)
    cap.save(tmp_path / "padded.safetensors")
    with pytest.raises(HookError, match="left-padded"):
        rms_norms.input_rms(Capture.load(tmp_path / "padded.safetensors"))


def test_a_batch_without_padding_tokens_is_not_padded() -> None:
    model = captures()["model"]
    cache = KVCache.empty(model.config, 1, 6, dtype=model.dtype, device="cpu", pad=torch.tensor([0]))
    with torch.no_grad():
        _, cap = model.run_with_capture(torch.arange(6)[None], rms_norms.HOOKS, cache=cache)
    assert len(rms_norms.input_rms(cap).positions) == 6


def test_the_figure_of_norms_has_the_runs_positions() -> None:
    assert list(made(BY_POSITION["input_rms"], "narrow").figure().data[0].x) == ["5", "9"]
