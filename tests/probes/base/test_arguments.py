"""Arguments that cannot work are refused in words by every probe that takes them, before torch meets them."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch

import workbench as wb
from probes.attention import head_map, head_metrics, head_types
from probes.base import arguments, non_finite
from probes.comparison import compare_models
from probes.logits import component_attribution, logit_attribution, logit_lens, tuned_lens
from probes.mlp import neurons
from probes.norms import during_generation, rms_norms
from probes.patching import ablation
from probes.rope import head_scores, loss_by_position
from workbench.errors import ConfigError, HookError, WorkbenchError
from workbench.hooks.capture import Capture
from workbench.model import Transformer

OF_TOKENS: dict[str, Callable[[Transformer, Any], Any]] = {
    "loss_by_position": lambda m, tokens: loss_by_position.loss_by_position(m, tokens, {}),
    "trace_non_finite": lambda m, tokens: non_finite.trace_non_finite(m, tokens),
    "ablation_effect": lambda m, tokens: ablation.ablation_effect(
        m, tokens, [[(1, 1)]], target=lambda logits, _: logits[:, -1, 0]
    ),
    "train_tuned_lens": lambda m, tokens: tuned_lens.train_tuned_lens(m, tokens, steps=1),
    "lens_divergence": lambda m, tokens: tuned_lens.lens_divergence(m, tokens, tuned_lens.TunedLens.zero(m)),
    "compare_runs": lambda m, tokens: compare_models.compare_runs(m, m, tokens, changes=[wb.Ablate("L1H1")]),
}
NO_TOKENS = {
    "floats": torch.rand(2, 8),
    "no rows": torch.zeros(0, 8, dtype=torch.int64),
    "no tokens": torch.zeros(2, 0, dtype=torch.int64),
    "one axis": torch.arange(5),
    "a list": [[5, 6]],
}
OF_IDS: dict[str, Callable[[Transformer, Capture, Any], Any]] = {
    "generated_norms": lambda m, _, ids: during_generation.generated_norms(m, ids, steps=2),
    "generated_stream": lambda m, _, ids: during_generation.generated_stream(m, ids, steps=2),
    "logit_attribution": lambda m, cap, ids: logit_attribution.logit_attribution(m, cap, ids),
    "neuron_attribution": lambda m, cap, ids: component_attribution.neuron_attribution(m, cap, ids),
    "logit_lens": lambda m, cap, ids: logit_lens.logit_lens(m, cap, targets=ids),
}
OF_A_COUNT: dict[str, Callable[[Transformer, Capture, int], Any]] = {
    "k of logit_lens": lambda m, cap, n: logit_lens.logit_lens(m, cap, k=n),
    "k of strongest_keys": lambda m, cap, n: head_map.strongest_keys(cap, 1, 1, 3, k=n),
    "max_cells of head_map": lambda m, cap, n: head_map.head_map(cap, 1, 1, max_cells=n),
    "batch of induction_scores": lambda m, cap, n: head_metrics.induction_scores(m, batch=n),
    "batch of repeat_scores": lambda m, cap, n: head_types.repeat_scores(m, batch=n),
    "max_queries of band_contribution": lambda m, cap, n: head_scores.band_contribution(cap, 1, 1, max_queries=n),
    "max_positions of relative_invariance": lambda m, cap, n: head_scores.relative_invariance(
        cap, 1, 1, max_positions=n
    ),
    "max_positions of score_by_distance": lambda m, cap, n: head_scores.score_by_distance(cap, 1, 1, max_positions=n),
    "top of gain_statistics": lambda m, cap, n: rms_norms.gain_statistics(m, top=n),
    "top of neuron_statistics": lambda m, cap, n: neurons.neuron_statistics(cap, top=n),
    "k of neuron_tokens": lambda m, cap, n: neurons.neuron_tokens(m, 1, [1], k=n),
    "k of neuron_attribution": lambda m, cap, n: component_attribution.neuron_attribution(m, cap, [5], k=n),
}


@functools.cache
def measured() -> tuple[Transformer, Capture]:
    model = wb.load_model("demo", dtype="float32", device="cpu").eval()
    return model, model.run_with_capture(torch.arange(12)[None], "*", logits=None)[1]


@pytest.mark.parametrize("tokens", NO_TOKENS)
@pytest.mark.parametrize("name", OF_TOKENS)
def test_what_is_no_batch_of_token_ids_is_refused(name: str, tokens: str) -> None:
    with pytest.raises(HookError, match=r"token ids, an int64 tensor of shape \[batch, pos\]"):
        OF_TOKENS[name](measured()[0], NO_TOKENS[tokens])


@pytest.mark.parametrize("ids", [["a"], [1.5], [-1], [9999]], ids=str)
@pytest.mark.parametrize("name", OF_IDS)
def test_what_is_no_token_id_is_refused(name: str, ids: list[Any]) -> None:
    with pytest.raises(WorkbenchError, match="token id"):
        OF_IDS[name](*measured(), ids)


@pytest.mark.parametrize("count", [0, -1, 1.5])
@pytest.mark.parametrize("name", OF_A_COUNT)
def test_a_count_below_one_is_refused(name: str, count: Any) -> None:
    with pytest.raises(
        HookError, match=rf"{name.split(' of ')[0]} must be a whole number of at least 1; found {count}"
    ):
        OF_A_COUNT[name](*measured(), count)


def test_no_queries_and_other_frequencies_are_refused() -> None:
    _, cap = measured()
    for probe in (
        lambda: head_metrics.head_metrics(cap, queries=[]),
        lambda: head_metrics.query_metrics(cap, 1, queries=[]),
    ):
        with pytest.raises(HookError, match="queries is empty"):
            probe()
    with pytest.raises(ConfigError, match="found list"):
        head_scores.what_if(cap, 1, 1, [1.0])  # type: ignore[arg-type]


def test_ids_of_a_prompt() -> None:
    for given in (
        [5, 6],
        torch.tensor([5, 6]),
        torch.tensor([[5, 6]], dtype=torch.int32),
        torch.tensor([5, 6]).numpy(),
    ):
        assert arguments.prompt_ids(given) == [5, 6]  # type: ignore[arg-type]
