"""Explanation of a choice between two tokens: attribution of the difference of their logits, and the logit lens.

Joins `probes.logits.logit_attribution` and `probes.logits.logit_lens` for token ids from another run, for example from
a benchmark. Runs the model once, under the active interventions; knows nothing about benchmarks.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from probes.base.result import frozen
from probes.logits import logit_attribution, logit_lens
from probes.logits.logit_attribution import LogitAttribution
from probes.logits.logit_lens import TokenCurves
from probes.norms.norm_linearity import linearisation
from workbench.errors import HookError
from workbench.hooks.capture import Capture
from workbench.hooks.hook_points import expand, layer_of
from workbench.hooks.intervention import active_interventions
from workbench.hooks.interventions import Targeted
from workbench.model import Transformer

HOOKS = (*dict.fromkeys((*logit_attribution.HOOKS, *logit_lens.HOOKS, "blocks.*.hook_attn_out")),)
"""What `explain` captures, at one position."""

_AFTER_THE_HEADS = ("attn.hook_result", "hook_attn_out")


@dataclass(frozen=True)
class Explanation:
    """Why one token is more likely than another at a position.

    `attribution` splits the logit of `token` minus that of `contrast_token`; `curves` are the logit lens of these two
    and the other requested tokens. `residual` is the part of `difference` (of the model's own logits) that the parts do
    not explain: rounding, or an intervention on the stream itself.
    """

    token: int
    contrast_token: int
    attribution: LogitAttribution
    curves: TokenCurves

    @property
    def position(self) -> int:
        return self.attribution.position

    @property
    def difference(self) -> float:
        """The model's logit of `token` minus that of `contrast_token`."""
        return float(self.attribution.logits[0])

    @property
    def residual(self) -> float:
        """The difference minus the sum of the parts."""
        return self.difference - float(self.attribution.values[0].astype(np.float64).sum())

    def frame(self) -> pd.DataFrame:
        """One row per part, as in `LogitAttribution`: kind, layer, head, contribution, removed, frozen_error."""
        return self.attribution.frame().drop(columns=["token", "minus"])

    def lens(self) -> pd.DataFrame:
        """One row per layer (-1 is the embedding) and token: layer, token, logprob, rank, text."""
        return self.curves.frame().drop(columns="pos")

    def figure(self, **options: Any) -> Any:
        """The figure of the attribution. `curves.figure()` is the figure of the lens."""
        return self.attribution.figure(**options)


@torch.no_grad()
def explain(
    model: Transformer,
    ids: Sequence[int],
    *,
    token: int,
    contrast_token: int,
    position: int = -1,
    other_tokens: Sequence[int] = (),
) -> Explanation:
    """Direct logit attribution of `token` minus `contrast_token`, and the logit lens of both and `other_tokens`.

    If an intervention changes a layer's attention output after its heads, the stream does not get what the heads wrote:
    that layer then has one part "attn" in place of its heads. What an intervention adds to the stream itself is in
    `residual`.
    Shapes: ids [pos], run up to `position` inclusive; negative positions count from the last
    Units:  logits; the lens in nats.
    Raises: HookError for an unknown position or token, one token twice, or a model that is split over processes.
    Exact:  the parts and `residual` sum to the difference of the model's own logits.
    """
    at = position + len(ids) if position < 0 else position
    if not 0 <= at < len(ids):
        raise HookError(f"there are {len(ids)} tokens, positions 0 to {len(ids) - 1}, not {position}.")
    if token == contrast_token:
        raise HookError(f"token {token} cannot be compared with itself; give two different tokens.")
    run = torch.tensor([list(ids[: at + 1])], device=model.device)
    _, cap = model.run_with_capture(run, HOOKS, positions=[at], logits=None)
    attribution = logit_attribution.logit_attribution(model, cap, [(token, contrast_token)], position=at)
    shown_tokens = tuple(dict.fromkeys((token, contrast_token, *other_tokens)))
    curves = logit_lens.logit_lens(model, cap, targets=shown_tokens, k=1).curves
    return Explanation(token, contrast_token, _merge_changed_heads(model, cap, attribution), curves)


def _merge_changed_heads(model: Transformer, cap: Capture, attribution: LogitAttribution) -> LogitAttribution:
    """The attribution with one part "attn" for each layer whose attention output is changed after its heads."""
    changes = [change for change in active_interventions(model) if isinstance(change, Targeted)]
    hooks = {name for change in changes for name in expand(change.hook, cap.config) if name.endswith(_AFTER_THE_HEADS)}
    changed = sorted({layer for name in hooks if (layer := layer_of(name)) is not None})
    if not changed:
        return attribution
    written = torch.stack([cap[f"blocks.{layer}.hook_attn_out"][0, 0].float() for layer in changed])  # [part, dim]
    x = cap[f"blocks.{cap.config.n_layers - 1}.hook_resid_post"][0, 0]
    readout = logit_attribution.unembedding_directions(model, attribution.tokens)
    values = readout / cap["ln_final.hook_scale"][0, 0].float() @ written.T
    removed = logit_attribution.logits_lost_without(model, x, written, readout)
    _, scale_error = linearisation(x.double(), -written.double(), model.norm.weight.double(), cap.config.norm_eps)
    kept_parts = [i for i, (kind, layer, _) in enumerate(attribution.parts) if kind != "head" or layer not in changed]
    parts = [attribution.parts[i] for i in kept_parts] + [("attn", layer, -1) for layer in changed]
    order = sorted(range(len(parts)), key=lambda i: (parts[i][1], parts[i][0] == "mlp", parts[i][2]))
    values, removed = (
        np.concatenate([old[:, kept_parts], frozen(new)], 1)[:, order]
        for old, new in ((attribution.values, values), (attribution.removed, removed))
    )
    error = float(np.abs(values.sum(-1) - attribution.logits).max())
    return replace(
        attribution,
        parts=tuple(parts[i] for i in order),
        values=frozen(values),
        removed=frozen(removed),
        frozen_error=frozen(np.concatenate([attribution.frozen_error[kept_parts], frozen(scale_error)])[order]),
        error=error,
    )
