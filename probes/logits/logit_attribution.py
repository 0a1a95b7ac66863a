"""Direct logit attribution: the contributions of the embedding, every head and every MLP to a logit.

Llama has no biases, so these contributions sum to the logit if the final norm's scale is kept as it was in the run.
The frozen scale is the approximation: without a part, the scale would be different. So each contribution comes with
`removed`: the direct loss of the logit if the part is removed and the norm's scale is computed again. Neither number
includes the reaction of later layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from probes.base import capture_access
from probes.base.result import Result, frozen, tidy
from probes.base.weights import head_writer, unembedding
from probes.logits.logit_lens import check_token_ids, token_text
from probes.norms.norm_linearity import linearisation, rms_norm
from workbench.errors import HookError
from workbench.hooks.capture import Capture
from workbench.model import Transformer

HOOKS = (
    "hook_embed",
    "blocks.*.attn.hook_z",
    "blocks.*.hook_mlp_out",
    "blocks.*.hook_resid_post",
    "ln_final.hook_scale",
    "ln_final.hook_out",
)
"""Hooks to capture for `logit_attribution`."""

Target = int | tuple[int, int]
"""A token, or a pair of tokens for the difference of their logits: the first minus the second."""


# --- by part of the model -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LogitAttribution(Result):
    """Contribution of each part of the model to the logits of some tokens at one position.

    `values` is [token, part]; `parts` names the columns: (kind, layer, head), with kind "embed", "head" or "mlp" and
    -1 where a part has no layer or head. `logits` [token] are the model's own; `error` is the largest difference
    between them and the sum of the parts. `removed` [token, part] is the logit's loss without the part, with the norm's
    scale computed again; `frozen_error` [part] is the error of the frozen scale for the normed stream without the part,
    as a share of the true change. `text` maps a token to its bytes as ASCII.
    """

    position: int
    tokens: tuple[Target, ...]
    parts: tuple[tuple[str, int, int], ...]
    values: np.ndarray
    logits: np.ndarray
    error: float
    removed: np.ndarray
    frozen_error: np.ndarray
    text: dict[int, str]

    AXES = {
        "values": ("token", "part"),
        "removed": ("token", "part"),
        "frozen_error": ("part",),
        "logits": ("token",),
    }
    FIGURE = "probes.logits.figures.attribution"
    UNITS = "logits; frozen_error a share of the true change"

    def frame(self) -> pd.DataFrame:
        """One row per token and part: token, minus, kind, layer, head, contribution, removed, frozen_error.

        `minus` is the token whose logit is subtracted, or -1.
        """
        scale_error = np.broadcast_to(self.frozen_error, self.values.shape)
        columns = {"contribution": self.values, "removed": self.removed, "frozen_error": scale_error}
        table = target_table(self.tokens, {"part": range(len(self.parts))}, columns)
        part_of_row = table.pop("part").to_numpy()
        for at, name in enumerate(("kind", "layer", "head")):
            table.insert(2 + at, name, np.array([part[at] for part in self.parts])[part_of_row])
        return table


@torch.no_grad()
def logit_attribution(
    model: Transformer, cap: Capture, tokens: Sequence[Target], *, position: int = -1, row: int = 0
) -> LogitAttribution:
    """Direct logit attribution: (c * gain / r_final) . W_U[token] for every part c of the stream.

    A pair of tokens gives the difference of their logits, along W_U[first] - W_U[second].
    Shapes: tokens [token] -> [token, part]; position is absolute, or negative from the last captured one
    Units:  logits, computed in float32; `removed` and `frozen_error` in float64.
    Raises: MissingHookError if one of `HOOKS` was not captured; HookError for some heads only, left-padded rows, an
            unknown token or position, or a model that is split over processes.
    Source: arXiv 2211.00593; 2507.02559 for the error of the frozen scale.
    Exact:  the parts sum to the logit, up to `error` (bfloat16 streams round at every addition).
    """
    capture_access.unpadded(cap)
    at, row = capture_access.place(cap, position), capture_access.row_of(cap, row)
    config = cap.config
    if cap.heads is not None:
        raise HookError("attribution needs every head, or the parts do not sum to the logit; capture without heads=.")
    readout = unembedding_directions(model, tokens)  # [token, dim]
    direction = readout / cap["ln_final.hook_scale"][row, at].float()
    x = cap[f"blocks.{config.n_layers - 1}.hook_resid_post"][row, at]
    parts: list[tuple[str, int, int]] = [("embed", -1, -1)]
    measures = [_measure_parts(model, x, cap["hook_embed"][row, at, None], readout, direction)]
    for layer in range(config.n_layers):
        z = cap[f"blocks.{layer}.attn.hook_z"][row, at].float()  # [head, head_dim]
        heads = torch.einsum("ehd,hd->he", head_writer(model, layer), z)  # [head, dim]
        mlp = cap[f"blocks.{layer}.hook_mlp_out"][row, at, None].float()  # [1, dim]
        measures.append(_measure_parts(model, x, torch.cat([heads, mlp]), readout, direction))
        parts += [*(("head", layer, head) for head in range(config.n_heads)), ("mlp", layer, -1)]
    values, removed, scale_error = (torch.cat(pieces, -1) for pieces in zip(*measures, strict=True))
    logits = _logits(model, cap["ln_final.hook_out"][row, at : at + 1], tokens)
    return LogitAttribution(
        int(capture_access.positions(cap)[at]), tuple(tokens), tuple(parts), frozen(values), frozen(logits),
        float((values.sum(-1) - logits).abs().max()), frozen(removed), frozen(scale_error), target_texts(model, tokens),
    )  # fmt: skip


def likeliest(model: Transformer, cap: Capture, *, position: int = -1, row: int = 0) -> list[Target]:
    """Default targets: the difference of the two most likely next tokens, then each of the two."""
    out = cap["ln_final.hook_out"][capture_access.row_of(cap, row), capture_access.place(cap, position)]
    with torch.no_grad():
        first, second = model.unembed(out[None])[0].topk(2).indices.tolist()
    return [(first, second), first, second]


# --- what they share ------------------------------------------------------------------------------------------


def _measure_parts(
    model: Transformer, x: Tensor, written: Tensor, readout: Tensor, direction: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Contributions, `removed` and `frozen_error`. Shapes: written [part, dim] -> [token, part] twice, [part]"""
    gain, eps = model.norm.weight.double(), model.config.norm_eps
    _, scale_error = linearisation(x.double(), -written.double(), gain, eps)
    return direction @ written.float().T, logits_lost_without(model, x, written, readout), scale_error


def logits_lost_without(model: Transformer, x: Tensor, written: Tensor, readout: Tensor) -> Tensor:
    """Loss of the logits when parts are removed from the last stream and the norm's scale is computed again.

    Shapes: x [dim], written [part, dim], readout [token, dim] with the gain -> [token, part]
    """
    ones, eps = torch.ones_like(x, dtype=torch.float64), model.config.norm_eps
    lost = rms_norm(x.double(), ones, eps) - rms_norm(x.double() - written.double(), ones, eps)
    return readout.double() @ lost.T


def unembedding_directions(model: Transformer, tokens: Sequence[Target]) -> Tensor:
    """Rows of the unembedding, or their differences, times the final gain. Shapes: -> [token, dim] float32"""
    if not tokens:
        raise HookError("no token to attribute to; give token ids or pairs of token ids.")
    check_token_ids(model, flat_ids(tokens))
    weight = unembedding(model)
    rows = [weight[t].float() if isinstance(t, int) else weight[t[0]].float() - weight[t[1]].float() for t in tokens]
    return torch.stack(rows) * model.norm.weight.float()


def _logits(model: Transformer, out: Tensor, tokens: Sequence[Target]) -> Tensor:
    """The model's own logits, or their differences. Shapes: out [1, dim] -> [token]"""
    logits = model.unembed(out)[0]
    return torch.stack([logits[t] if isinstance(t, int) else logits[t[0]] - logits[t[1]] for t in tokens])


def target_table(
    tokens: Sequence[Target], axes: dict[str, Sequence[object]], columns: dict[str, np.ndarray]
) -> pd.DataFrame:
    """A tidy table whose first columns are the token and the subtracted token."""
    table = tidy({"at": range(len(tokens)), **axes}, columns)
    pairs = np.array([(t, -1) if isinstance(t, int) else t for t in tokens])[table.pop("at").to_numpy()]
    table.insert(0, "token", pairs[:, 0])
    table.insert(1, "minus", pairs[:, 1])
    return table


def target_texts(model: Transformer, tokens: Sequence[Target]) -> dict[int, str]:
    """The bytes of each target token as ASCII."""
    return token_text(model, flat_ids(tokens))


def flat_ids(tokens: Sequence[Target]) -> list[int]:
    return [token for target in tokens for token in (target if isinstance(target, tuple) else (target,))]
