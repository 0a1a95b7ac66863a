"""What the residual stream says about the output: direct logit attribution, and the logit lens.

Llama has no biases, so the contributions of the embedding, every head and every MLP sum to the logit, once the final
norm's scale is taken as it was in the run. That scale is the approximation: a part that were missing would change it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from probes import reading
from probes.results import frozen, tidy
from workbench import parallel
from workbench.capture import Capture
from workbench.errors import HookError
from workbench.model import Transformer

HOOKS = (
    "hook_embed",
    "blocks.*.attn.hook_z",
    "blocks.*.hook_mlp_out",
    "blocks.*.hook_resid_post",
    "ln_final.hook_scale",
    "ln_final.hook_out",
)
"""What to capture for `logit_attribution` and `logit_lens`."""


@dataclass(frozen=True)
class LogitAttribution:
    """What each part of the model adds to the logits of some tokens at one position.

    `values` is [token, part]; `parts` names the columns: (kind, layer, head), with kind "embed", "head" or "mlp" and
    -1 where a part has no layer or head. `logits` [token] are the model's own; `error` is the largest difference
    between them and the sum of the parts.
    """

    position: int
    tokens: tuple[int, ...]
    parts: tuple[tuple[str, int, int], ...]
    values: np.ndarray
    logits: np.ndarray
    error: float

    def frame(self) -> pd.DataFrame:
        """One row per token and part: token, kind, layer, head, contribution."""
        table = tidy({"token": self.tokens, "part": range(len(self.parts))}, {"contribution": self.values})
        which = table.pop("part").to_numpy()
        for at, name in enumerate(("kind", "layer", "head")):
            table.insert(1 + at, name, np.array([part[at] for part in self.parts])[which])
        return table


@torch.no_grad()
def logit_attribution(
    model: Transformer, cap: Capture, tokens: Sequence[int], *, position: int = -1, row: int = 0
) -> LogitAttribution:
    """Direct logit attribution: (c * gain / r_final) . W_U[token] for every part c of the stream.

    Shapes: tokens [token] -> [token, part]; position is absolute, or negative from the last captured one
    Units:  logits, computed in float32.
    Raises: MissingHookError if one of `HOOKS` was not captured; HookError for some heads only, an unknown token or
            position, or a model that is split over processes.
    Source: arXiv 2211.00593.
    Exact:  the parts sum to the logit; `error` says how nearly (bfloat16 streams round at every addition).
    """
    at, row = _place(cap, position), reading.row_of(cap, row)
    config = cap.config
    if cap.heads is not None:
        raise HookError("attribution needs every head, or the parts do not sum; capture without heads=.")
    for token in tokens:
        if not 0 <= token < config.vocab_size:
            raise HookError(f"token ids are 0 to {config.vocab_size - 1}, found {token}.")
    unembedding = _unembedding(model)[list(tokens)].float()  # [token, dim]
    gain = model.norm.weight.float()
    direction = unembedding * gain / cap["ln_final.hook_scale"][row, at].float()  # [token, dim]
    parts: list[tuple[str, int, int]] = [("embed", -1, -1)]
    values = [direction @ cap["hook_embed"][row, at].float()]
    for layer, block in enumerate(model.layers):
        z = cap[f"blocks.{layer}.attn.hook_z"][row, at].float()  # [head, head_dim]
        back = (direction @ block.attention.wo.weight.float()).unflatten(-1, (config.n_heads, -1))
        values += (back * z).sum(-1).unbind(-1)  # one [token] per head
        values.append(direction @ cap[f"blocks.{layer}.hook_mlp_out"][row, at].float())
        parts += [*(("head", layer, head) for head in range(config.n_heads)), ("mlp", layer, -1)]
    found = torch.stack(values, -1)  # [token, part]
    logits = model.unembed(cap["ln_final.hook_out"][row, at : at + 1])[0, list(tokens)]
    return LogitAttribution(
        int(reading.positions(cap)[at]),
        tuple(tokens),
        tuple(parts),
        frozen(found),
        frozen(logits),
        float((found.sum(-1) - logits).abs().max()),
    )


@dataclass(frozen=True)
class LogitLens:
    """What the stream after each block would predict. `ids` and `logprobs` are [layer, pos, k].

    `kl` [layer, pos] is the divergence of the final distribution from the layer's, in nats; `rank` [layer, pos] the
    place of the final top token in the layer's order, 0 for the first.
    """

    layers: tuple[int, ...]
    positions: tuple[int, ...]
    ids: np.ndarray
    logprobs: np.ndarray
    kl: np.ndarray
    rank: np.ndarray

    def frame(self) -> pd.DataFrame:
        """One row per layer and position: layer, pos, token (the likeliest), logprob, kl, rank."""
        columns = {"token": self.ids[..., 0], "logprob": self.logprobs[..., 0], "kl": self.kl, "rank": self.rank}
        return tidy({"layer": self.layers, "pos": self.positions}, columns)


@torch.no_grad()
def logit_lens(model: Transformer, cap: Capture, *, k: int = 5, row: int = 0) -> LogitLens:
    """Top-k tokens decoded from the residual stream after every captured block.

    Shapes: hook_resid_post [layer, batch, pos, dim] -> [layer, pos, k]
    Units:  natural log (nats), computed in float32 from the model's own logits.
    Raises: MissingHookError if `hook_resid_post` was captured for no layer, or `ln_final.hook_out` was not.
    Source: nostalgebraist 2020; the final norm is applied first.
    Exact:  the last layer equals the model's own output.
    """
    row = reading.row_of(cap, row)
    layers = reading.layers(cap, "hook_resid_post")
    final = model.unembed(cap["ln_final.hook_out"][row]).log_softmax(-1)  # [pos, vocab]
    best = final.argmax(-1, keepdim=True)
    ids, logprobs, kl, rank = [], [], [], []
    for layer in layers:
        stream = model.norm(cap[f"blocks.{layer}.hook_resid_post"][row], None)
        here = model.unembed(stream).log_softmax(-1)
        top = here.topk(min(k, here.shape[-1]), -1)
        ids.append(top.indices)
        logprobs.append(top.values)
        kl.append(torch.nn.functional.kl_div(here, final, reduction="none", log_target=True).sum(-1))
        rank.append((here > here.gather(-1, best)).sum(-1))
    stacked = (frozen(torch.stack(values)) for values in (ids, logprobs, kl, rank))
    return LogitLens(layers, tuple(reading.positions(cap).tolist()), *stacked)


def _place(cap: Capture, position: int) -> int:
    """Index of an absolute position in the captured ones; negative ones count from the last."""
    held = reading.positions(cap).tolist()
    if position < 0 and -position <= len(held):
        return len(held) + position
    if position not in held:
        raise HookError(f"this capture holds positions {held[0]} to {held[-1]} ({len(held)} of them), not {position}.")
    return held.index(position)


def _unembedding(model: Transformer) -> Tensor:
    if parallel.size() > 1:
        raise HookError("logit attribution reads whole weights; load the model in one process.")
    weight: Tensor = (model.tok_embeddings if model.output is None else model.output).weight  # type: ignore[assignment]
    return weight
