"""The logit lens: the model's predictions if it ended at the embedding, or after any block.

The final norm is applied to the stream of every layer, with the stream's own scale. Early layers write in directions
that the unembedding was not trained for, so a high divergence there says little; `probes.logits.tuned_lens` corrects
for it.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from probes.base import arguments, capture_access
from probes.base.result import Result, frozen, tidy
from workbench.errors import HookError
from workbench.hooks.capture import Capture
from workbench.model import Transformer

HOOKS = ("hook_embed", "blocks.*.hook_resid_post", "ln_final.hook_out")
"""Hooks to capture for `logit_lens` and the tuned lens."""

EMBED = -1  # the layer number of the stream before block 0
MAX_LOGITS = 1 << 23  # computed at once: positions come in blocks of this many logits, 32 MiB in float32


@dataclass(frozen=True)
class TokenCurves(Result):
    """Log-probability and rank of some tokens by layer. Arrays are [layer, pos, token]; layer -1 is the embedding.

    `logprobs` is in nats; `ranks` is the token's rank in the layer's prediction, 0 for the top token. `text` maps a
    token to its bytes as ASCII.
    """

    layers: tuple[int, ...]
    positions: tuple[int, ...]
    tokens: tuple[int, ...]
    logprobs: np.ndarray
    ranks: np.ndarray
    text: dict[int, str]

    AXES = {"logprobs": ("layer", "pos", "token"), "ranks": ("layer", "pos", "token")}
    FIGURE = "probes.logits.figures.token_curves"
    UNITS = "logprob in nats; rank from 0"

    def frame(self) -> pd.DataFrame:
        """One row per layer, position and token: layer, pos, token, logprob, rank, text."""
        axes = {"layer": self.layers, "pos": self.positions, "token": self.tokens}
        return tidy(axes, {"logprob": self.logprobs, "rank": self.ranks}).assign(
            text=lambda table: table["token"].map(lambda token: self.text.get(token, ""))
        )


@dataclass(frozen=True)
class LogitLens(Result):
    """Top predictions of each layer; layer -1 is the embedding. `ids` and `logprobs` are [layer, pos, k].

    `kl` [layer, pos] is the divergence of the final distribution from the layer's, in nats; `rank` [layer, pos] is the
    rank of the final top token in the layer's prediction, 0 for the first. `tokens` [pos] are the prompt's tokens;
    `text` maps a token to its bytes as ASCII; `curves` has the requested target tokens.
    """

    layers: tuple[int, ...]
    positions: tuple[int, ...]
    tokens: tuple[int, ...]
    ids: np.ndarray
    logprobs: np.ndarray
    kl: np.ndarray
    rank: np.ndarray
    curves: TokenCurves
    text: dict[int, str]

    AXES = {
        "ids": ("layer", "pos", "k"),
        "logprobs": ("layer", "pos", "k"),
        "kl": ("layer", "pos"),
        "rank": ("layer", "pos"),
    }
    FIGURE = "probes.logits.figures.lens_grid"
    UNITS = "logprob and kl in nats; rank of the final top token from 0; layer -1 is the embedding"

    def frame(self) -> pd.DataFrame:
        """One row per layer and position: layer, pos, token (the most likely), logprob, kl, rank, text."""
        columns = {"token": self.ids[..., 0], "logprob": self.logprobs[..., 0], "kl": self.kl, "rank": self.rank}
        return tidy({"layer": self.layers, "pos": self.positions}, columns).assign(
            text=lambda table: table["token"].map(lambda token: self.text.get(token, ""))
        )


def logit_lens(
    model: Transformer,
    cap: Capture,
    *,
    k: int = 5,
    targets: Sequence[int] = (),
    position: int | None = None,
    row: int = 0,
) -> LogitLens:
    """Top-k tokens decoded from the stream after every captured block, and from the embedding if it was captured.

    At every captured position, or at one: absolute, or negative from the last captured one. Memory is linear in the
    positions: the logits of `MAX_LOGITS` / vocab positions are computed at once. The cost is one unembedding,
    2 * dim * vocab FLOPs, per layer and position.
    Shapes: hook_resid_post [layer, batch, pos, dim] -> [layer, pos, k]; `curves` [layer, pos, target]
    Units:  natural log (nats), computed in float32 from the model's own logits.
    Raises: MissingHookError if `hook_resid_post` was captured for no layer, or `ln_final.hook_out` was not; HookError
            for a target outside the vocabulary, a position that was not captured, or left-padded rows.
    Source: nostalgebraist 2020; the final norm is applied first.
    Exact:  the last layer equals the model's own output.
    """
    return decode_streams(model, cap, lambda layer, stream: stream, k=k, targets=targets, position=position, row=row)


@torch.no_grad()
def decode_streams(
    model: Transformer,
    cap: Capture,
    translate: Callable[[int, Tensor], Tensor],
    *,
    k: int,
    targets: Sequence[int],
    position: int | None,
    row: int,
) -> LogitLens:
    """The logit lens after `translate` changes each stream; its arguments are the layer and the stream.

    Shapes: translate's stream [pos, dim] -> [pos, dim]
    """
    arguments.at_least(1, k=k)
    capture_access.unpadded(cap)
    row = capture_access.row_of(cap, row)
    check_token_ids(model, targets)
    streams = residual_streams(cap)
    at = (
        slice(None)
        if position is None
        else slice(capture_access.place(cap, position), capture_access.place(cap, position) + 1)
    )
    streams = {layer: stream[row, at] for layer, stream in streams.items()}
    final_out = cap["ln_final.hook_out"][row, at]  # [pos, dim]
    target_ids = torch.tensor(list(targets), device=final_out.device, dtype=torch.int64)
    blocks = []
    for part in position_blocks(len(final_out), model.config.vocab_size):
        final = model.unembed(final_out[part]).log_softmax(-1)  # [pos, vocab]
        best = final.argmax(-1, keepdim=True)
        by_layer = []
        for layer, stream in streams.items():
            logprobs_here = model.unembed(model.norm(translate(layer, stream[part]), None)).log_softmax(-1)
            top = logprobs_here.topk(min(k, logprobs_here.shape[-1]), -1)
            chosen = logprobs_here[:, target_ids]  # [pos, target]
            ranks = [(logprobs_here > logprobs_here[:, token, None]).sum(-1) for token in target_ids]
            kl = torch.nn.functional.kl_div(logprobs_here, final, reduction="none", log_target=True).sum(-1)
            rank = (logprobs_here > logprobs_here.gather(-1, best)).sum(-1)
            by_layer.append((top.indices, top.values, kl, rank, chosen, torch.stack(ranks, -1) if ranks else chosen))
        blocks.append([torch.stack(layers) for layers in zip(*by_layer, strict=True)])  # each [layer, pos, ...]
    ids, logprobs, kl, rank, chosen, ranks = (frozen(torch.cat(parts, 1)) for parts in zip(*blocks, strict=True))
    positions = capture_access.positions(cap)[at]
    prompt = cap.tokens[row].cpu()[positions - cap.start].tolist()
    text = token_text(model, {*prompt, *targets, *ids.ravel().tolist()})
    layers, places = tuple(streams), tuple(positions.tolist())
    curves = TokenCurves(layers, places, tuple(targets), chosen, ranks, text)
    return LogitLens(layers, places, tuple(prompt), ids, logprobs, kl, rank, curves, text)


def residual_streams(cap: Capture) -> dict[int, Tensor]:
    """The captured streams by layer, the embedding at -1. Shapes: -> each [batch, pos, dim]

    Raises: MissingHookError if the stream was captured after no block.
    """
    first = {EMBED: cap["hook_embed"]} if "hook_embed" in cap else {}
    layers = capture_access.layers(cap, "hook_resid_post")
    return first | {layer: cap[f"blocks.{layer}.hook_resid_post"] for layer in layers}


def position_blocks(count: int, vocab_size: int) -> Iterator[slice]:
    """Slices of positions, each with at most `MAX_LOGITS` logits."""
    step = max(1, MAX_LOGITS // vocab_size)
    return (slice(start, start + step) for start in range(0, count, step))


def check_token_ids(model: Transformer, tokens: Iterable[int]) -> None:
    """Refuse token ids outside the vocabulary. Raises: HookError"""
    for token in tokens:
        if not isinstance(token, (int, np.integer)) or not 0 <= token < model.config.vocab_size:
            raise HookError(f"token ids are 0 to {model.config.vocab_size - 1}, found {token!r}.")


def token_text(model: Transformer, tokens: Iterable[int]) -> dict[int, str]:
    """Each token's bytes as ASCII with escapes; empty if the model has no tokenizer."""
    tokenizer = model.tokenizer
    if tokenizer is None:
        return {}
    known = sorted({token for token in tokens if tokenizer.has_token(token)})  # some vocabularies are padded
    return {token: repr(tokenizer.token_bytes(token))[2:-1] for token in known}
