"""What every probe's result promises: named axes, a tidy table, a figure of its own, a view that loads nothing."""

import functools
import html
import importlib
import pkgutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import torch

import probes
import workbench as wb
from probes.attention import head_map, head_metrics, head_types, key_mass, kv_groups, retrieval_heads
from probes.base import non_finite
from probes.base.result import Result
from probes.comparison import compare_models, compare_runs
from probes.flow import information_flow_routes, rollout, value_weighted
from probes.generation import token_choices
from probes.logits import component_attribution, input_salience, logit_attribution, logit_lens, tuned_lens
from probes.mlp import neurons as neuron_probes
from probes.norms import during_generation, norm_linearity, rms_norms
from probes.patching import ablation, activation_patching, attribution_patching, path_patching
from probes.patching.prompt_pairs import LogitDifference, Pair
from probes.rope import formulas, head_scores, loss_by_position, what_if_heads
from workbench.hooks.capture import Capture
from workbench.inference.sampling import Sampling
from workbench.model import Transformer

BUDGET = 1_500_000  # bytes of a figure
HOSTILE = "</td><script>alert(1)</script>"
MODULES = [
    importlib.import_module(module.name)
    for module in pkgutil.walk_packages(probes.__path__, "probes.")
    if not module.name.endswith(("cli", "commands", "figures", "drawing"))
]


def below(kind: type[Result]) -> Iterator[type[Result]]:
    for child in kind.__subclasses__():
        yield child
        yield from below(child)


# One way to make each result, of the demo model and a capture of every hook on two rows of 96 tokens.
HOW: dict[str, Callable[[Transformer, Capture], Any]] = {
    "QueryMetrics": lambda m, cap: head_metrics.query_metrics(cap, 1),
    "HeadMetrics": lambda m, cap: head_metrics.head_metrics(cap),
    "InductionScores": lambda m, cap: head_metrics.induction_scores(m, block=8),
    "HeadMap": lambda m, cap: head_map.head_map(cap, 1, 2),
    "KeyMass": lambda m, cap: key_mass.key_mass(cap),
    "MeanMap": lambda m, cap: key_mass.mean_map(cap, 1, 2),
    "StrongestKeys": lambda m, cap: head_map.strongest_keys(cap, 1, 2, 20),
    "HeadScores": lambda m, cap: head_types.repeat_scores(m, blocks=(8,), batch=3),
    "Catalogue": lambda m, cap: head_types.catalogue(
        head_types.repeat_scores(m, blocks=(8,), batch=3), head_types.text_scores(m, cap.tokens[:, :24].tolist())
    ),
    "GroupSimilarity": lambda m, cap: kv_groups.group_similarity(cap),
    "AblationEffect": lambda m, cap: ablation.ablation_effect(
        m, head_metrics.repeated_blocks(m, block=8, batch=3, seed=0), [[(2, 3)], [(1, 0)]], target=ablation.copy_loss(8)
    ),
    "InductionAblation": lambda m, cap: ablation.induction_ablation(m, [(2, 3)], block=8, batch=3, n_draws=2),
    "BandContribution": lambda m, cap: head_scores.band_contribution(cap, 1, 2),
    "RelativeInvariance": lambda m, cap: head_scores.relative_invariance(cap, 1, 2),
    "ScoreByDistance": lambda m, cap: head_scores.score_by_distance(cap, 1, 2),
    "WhatIf": lambda m, cap: head_scores.what_if(cap, 1, 2, 2 * formulas.model_frequencies(m.config)),
    "RotationSensitivity": lambda m, cap: what_if_heads.what_if_heads(cap, 2 * formulas.model_frequencies(m.config)),
    "Wavelengths": lambda m, cap: formulas.wavelengths(m.config),
    "Decay": lambda m, cap: formulas.decay(m.config),
    "LossByPosition": lambda m, cap: loss_by_position.loss_by_position(
        m, cap.tokens, {"theta": [wb.RopeScaling(theta=9.0)]}
    ),
    "InputRms": lambda m, cap: rms_norms.input_rms(cap),
    "GainStatistics": lambda m, cap: rms_norms.gain_statistics(m),
    "MassiveActivations": lambda m, cap: rms_norms.massive_activations(cap, threshold=2, ratio=2),
    "OutlierDimensions": lambda m, cap: rms_norms.outlier_dimensions(cap),
    "ContributionRatios": lambda m, cap: rms_norms.contribution_ratios(cap),
    "LinearisedNorm": lambda m, cap: norm_linearity.linearised_norm(m, cap),
    "Recentring": lambda m, cap: norm_linearity.recentring(cap),
    "NormTimes": lambda m, cap: norm_linearity.norm_times(m.config, tokens=8, repeats=3),
    "NeuronStatistics": lambda m, cap: neuron_probes.neuron_statistics(cap),
    "NeuronTokens": lambda m, cap: _hostile(neuron_probes.neuron_tokens(m, 1, [5], k=3)),
    "EntropyNeurons": lambda m, cap: neuron_probes.entropy_neurons(m),
    "LogitLens": lambda m, cap: logit_lens.logit_lens(m, cap, targets=[5, 9]),
    "TokenCurves": lambda m, cap: logit_lens.logit_lens(m, cap, targets=[5, 9]).curves,
    "LensDivergence": lambda m, cap: tuned_lens.lens_divergence(m, cap.tokens, tuned_lens.TunedLens.zero(m)),
    "LogitAttribution": lambda m, cap: logit_attribution.logit_attribution(m, cap, [(5, 9), 5]),
    "NeuronAttribution": lambda m, cap: component_attribution.neuron_attribution(m, cap, [5], k=3),
    "SourceAttribution": lambda m, cap: component_attribution.source_attribution(m, cap, [5], (1, 2)),
    "InputSalience": lambda m, cap: input_salience.gradient_x_input(m, cap.tokens[0, :9], [(5, 9), 5]),
    "Rollout": lambda m, cap: rollout.rollout(cap),
    "AttentionFlow": lambda m, cap: rollout.attention_flow(cap, position=12),
    "WeightedPattern": lambda m, cap: value_weighted.weighted_pattern(m, cap, 1),
    "FirstToken": lambda m, cap: value_weighted.first_token(m, cap),
    "ContextMixing": lambda m, cap: value_weighted.context_mixing(m, cap),
    "AttentionContributions": lambda m, cap: information_flow_routes.attention_contributions(m, cap, 1),
    "StreamContributions": lambda m, cap: information_flow_routes.stream_contributions(m, cap),
    "Routes": lambda m, cap: information_flow_routes.routes(m, cap),
    "GeneratedNorms": lambda m, cap: during_generation.generated_norms(m, [5, 6, 7], steps=3),
    "GeneratedStream": lambda m, cap: during_generation.generated_stream(m, [5, 6, 7], steps=3),
    "SamplingTrace": lambda m, cap: token_choices.sampling_trace(
        m, [5, 6, 7], Sampling(temperature=0.8), max_new_tokens=3
    ),
    "RetrievalScores": lambda m, cap: retrieval_heads.retrieval_scores(
        m, [retrieval_heads.Haystack(row[:16], 3, 5) for row in cap.tokens.tolist()], least_recall=0
    ),
    "Comparison": lambda m, cap: _compared(m, cap),
    "HeadDifferences": lambda m, cap: _compared(m, cap).by_head,
    "LogitDifferences": lambda m, cap: _compared(m, cap).logits,
    "NonFinite": lambda m, cap: _overflowing(m, cap),
    "PathPatching": lambda m, cap: path_patching.path_patching(m, _pair(cap), [(2, 1)]),
    "Composition": lambda m, cap: path_patching.composition(m),
    "LogitPaths": lambda m, cap: path_patching.logit_paths(m, cap, (5, 9)),
    "Patching": lambda m, cap: activation_patching.patching(m, _pair(cap), layers=[1, 2]),
    "GradientError": lambda m, cap: attribution_patching.gradient_error(
        activation_patching.patching(m, _pair(cap), layers=[1, 2]),
        attribution_patching.attribution_patching(m, _pair(cap), layers=[1, 2]),
    ),
}


def _hostile(result: Any) -> Any:
    """The same with a text for every token that would be markup, if anything took it for some."""
    return replace(result, text=dict.fromkeys(result.text, HOSTILE))


def _pair(cap: Capture) -> Pair:
    """Two prompts of eight tokens, one of which differs."""
    clean = cap.tokens[:, :8]
    corrupted = clean.clone()
    corrupted[:, 5] = (clean[:, 5] + 7) % 1000
    return Pair(clean, corrupted, LogitDifference(7, 11))


def _compared(model: Transformer, cap: Capture) -> compare_runs.Comparison:
    return compare_models.compare_runs(model, model, cap.tokens[:, :16], changes=[wb.Ablate("L1H0")])


def _overflowing(model: Transformer, cap: Capture) -> non_finite.NonFinite:
    with model.intervene(wb.Scale("blocks.1.hook_mlp_out", float("inf"))):
        return non_finite.trace_non_finite(model, cap.tokens[:, :8])


@functools.cache
def measured() -> tuple[Transformer, Capture]:
    model = wb.load_model("demo", device="cpu").eval()
    tokens = torch.randint(1000, (2, 96), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model, model.run_with_capture(tokens, "*")[1]


@functools.cache
def made(name: str) -> Result:
    result = HOW[name](*measured())
    assert type(result).__name__ == name
    return result


RESULTS = pytest.mark.parametrize("name", HOW)


def test_every_result_is_tested_here() -> None:
    assert {kind.__name__ for kind in below(Result)} - HOW.keys() == set(), "say in HOW how to make one"


@RESULTS
def test_axes_are_those_of_the_arrays(name: str) -> None:
    result = made(name)
    assert result.AXES
    sizes: dict[str, set[int]] = {}
    for array, axes in result.AXES.items():
        array_values = getattr(result, array)
        for values in array_values.values() if isinstance(array_values, dict) else [array_values]:
            assert isinstance(values, np.ndarray) and values.ndim == len(axes), array
            for axis, size in zip(axes, values.shape, strict=True):
                sizes.setdefault(axis, set()).add(size)
    assert {axis for axis, different in sizes.items() if len(different) > 1} == set()
    fields = {field for field, value in vars(result).items() if isinstance(value, np.ndarray)}
    assert fields <= result.AXES.keys(), "every array's axes have names"


@RESULTS
def test_arrays_cannot_be_written(name: str) -> None:
    for array, value in vars(made(name)).items():
        for values in value.values() if isinstance(value, dict) else [value]:
            assert not (isinstance(values, np.ndarray) and values.flags.writeable), array


@RESULTS
def test_the_table_is_tidy(name: str) -> None:
    table = made(name).frame()
    assert isinstance(table.index, pd.RangeIndex) and len(table)
    assert all(isinstance(column, str) for column in table) and table.columns.is_unique
    assert not any(isinstance(cell, (list, tuple, dict, np.ndarray)) for cell in table.iloc[0])
    assert not table.duplicated().any(), "two rows say the same"


@RESULTS
def test_the_figure_says_what_it_shows(name: str) -> None:
    fig = made(name).figure(stamp={"of": "test"}, theme="dark")
    assert fig.layout.title.text and fig.layout.meta["kind"] and fig.layout.meta["of"] == "test"
    assert fig.layout.xaxis.title.text and fig.layout.yaxis.title.text
    assert all(trace.colorbar.title.text for trace in fig.data if isinstance(trace, go.Heatmap))
    assert len(fig.data) and len(fig.to_json()) < BUDGET


@RESULTS
def test_the_notebook_view_is_plain(name: str) -> None:
    result = made(name)
    assert type(result)._repr_html_ is Result._repr_html_
    page = result._repr_html_()
    assert name in page and all(array in page for array in result.AXES) and html.escape(result.UNITS) in page
    assert "<script" not in page and "http" not in page
    assert page.count("<table") == 1 and page.count("<tr") <= 9


def test_hostile_text_is_shown_as_text() -> None:
    assert "&lt;/td&gt;&lt;script&gt;" in made("NeuronTokens")._repr_html_()


def test_tables_and_notebook_views_load_no_plotly() -> None:
    names = ", ".join(module.__name__ for module in MODULES)
    program = f"""
import sys
import {names}
from probes.rope import formulas
from workbench.config import ModelConfig
config = ModelConfig(dim=32, n_layers=1, n_heads=2, n_kv_heads=1, ffn_dim=8, vocab_size=8, max_seq_len=64)
page = formulas.wavelengths(config)._repr_html_()
assert "Wavelengths" in page and "http" not in page
assert "plotly" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
