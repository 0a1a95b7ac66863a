"""Every probe on a CUDA device gives what it gives on the CPU."""

from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
import torch

from probes.attention import head_map, head_metrics
from probes.generation import token_choices
from probes.logits import component_attribution, logit_attribution, logit_lens, tuned_lens
from probes.norms import rms_norms
from probes.rope import head_scores
from workbench.hooks.capture import Capture
from workbench.inference.sampling import Sampling
from workbench.model import Transformer

ON_A_CAPTURE: dict[str, Callable[[Transformer, Capture], Any]] = {
    "head_metrics": lambda model, cap: head_metrics.head_metrics(cap),
    "query_metrics": lambda model, cap: head_metrics.query_metrics(cap, 1),
    "head_map": lambda model, cap: head_map.head_map(cap, 1, 2, max_cells=7),
    "band_contribution": lambda model, cap: head_scores.band_contribution(cap, 2, 3),
    "score_by_distance": lambda model, cap: head_scores.score_by_distance(cap, 2, 3),
    "input_rms": lambda model, cap: rms_norms.input_rms(cap),
    "gain_statistics": lambda model, cap: rms_norms.gain_statistics(model),
    "massive_activations": lambda model, cap: rms_norms.massive_activations(cap, threshold=2, ratio=3),
    "outlier_dimensions": lambda model, cap: rms_norms.outlier_dimensions(cap, magnitude=2),
    "contribution_ratios": lambda model, cap: rms_norms.contribution_ratios(cap),
    "logit_attribution": lambda model, cap: logit_attribution.logit_attribution(model, cap, [3, 7]),
    "logit_lens": lambda model, cap: logit_lens.logit_lens(model, cap),
    "token_curves": lambda model, cap: logit_lens.logit_lens(model, cap, targets=[3, 7]).curves,
    "tuned_lens": lambda model, cap: tuned_lens.tuned_lens(
        model, cap, tuned_lens.train_tuned_lens(model, cap.tokens.cpu(), steps=2, batch=1)
    ),
    "neuron_attribution": lambda model, cap: component_attribution.neuron_attribution(model, cap, [3, (7, 3)], k=3),
    "source_attribution": lambda model, cap: component_attribution.source_attribution(model, cap, [3, (7, 3)], (1, 2)),
    "sampled": lambda model, cap: token_choices.sampling_trace(
        model, cap.tokens[0].tolist(), Sampling(0.8, 0.9), max_new_tokens=6
    ),
    "induction_scores": lambda model, cap: head_metrics.induction_scores(model, block=8),
}


@pytest.mark.gpu
@pytest.mark.parametrize("name", ON_A_CAPTURE)
def test_the_device_changes_nothing(tiny_model: Transformer, tokens: torch.Tensor, name: str) -> None:
    hooks = {
        *head_metrics.HOOKS,
        *head_scores.HOOKS,
        *rms_norms.HOOKS,
        *logit_attribution.HOOKS,
        *logit_lens.HOOKS,
        *component_attribution.HOOKS,
    }
    tables = []
    for device in ("cpu", "cuda"):
        model = tiny_model.to(device)
        with torch.no_grad():
            _, cap = model.run_with_capture(tokens.to(device), hooks)
        tables.append(ON_A_CAPTURE[name](model, cap).frame())
    pd.testing.assert_frame_equal(*tables, check_exact=False, rtol=1e-3, atol=1e-4)


def test_the_probes_of_this_list_run(tiny_model: Transformer, captured: Capture, tokens: torch.Tensor) -> None:
    """The list itself, where there is no device: every probe gives a table with rows."""
    with torch.no_grad():
        _, cap = tiny_model.run_with_capture(
            tokens, {*captured.names, *logit_attribution.HOOKS, *logit_lens.HOOKS, *component_attribution.HOOKS}
        )
    assert [name for name, probe in ON_A_CAPTURE.items() if probe(tiny_model, cap).frame().empty] == []
