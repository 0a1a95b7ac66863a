"""Text from a model: prefill, decode, sample; of many unequal prompts at once, whole or streamed.

Each row gets what it would get alone. Randomness comes from one seed a row and does not depend on the device.
Interventions and captures act as in any other run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from workbench.errors import GenerationError
from workbench.hooks.capture import Capture, Request
from workbench.hooks.capture import run as run_capture
from workbench.inference import continuous_batching
from workbench.inference.sampling import Sampling
from workbench.inference.sequence import FinishReason, GenerationState, Prompt
from workbench.layers import tensor_parallel
from workbench.layers.kv_cache import KVCache

if TYPE_CHECKING:
    from workbench.model import Transformer


@dataclass(frozen=True)
class Piece:
    """One streamed step: a token, its log-probability (nats, before temperature), and the text it completed.

    `text` is empty while a character's bytes, or a stop string, may still be incomplete. `finish_reason` is set on the
    last piece. `capture` holds what was asked for at this step.
    """

    token: int
    logprob: float
    text: str
    finish_reason: FinishReason | None
    capture: Capture | None = None


@dataclass(frozen=True)
class Generation:
    """A finished continuation. `text` ends before the stop string or stop token; it is None without a tokenizer.

    `tokens` and `logprobs` (nats, before temperature) hold every token that was generated, the stopping one included.
    """

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str | None
    finish_reason: FinishReason
    captures: tuple[Capture, ...] = ()


def generate(
    model: Transformer,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    seeds: Sequence[int] | None = None,
    stop: Sequence[str] = (),
    stop_tokens: Iterable[int] | None = None,
    batch_size: int = 16,
) -> list[Generation]:
    """Continue each prompt: text (a begin token is put before it) or token ids (taken as they are).

    seed: row i draws from seed + i, so a row can be repeated alone; or give each row's own in `seeds`.
    stop_tokens: default the tokenizer's.
    Raises: GenerationError for an empty or over-long prompt, or settings that cannot be used.
    """
    if isinstance(prompts, str):
        raise GenerationError("prompts must be a list; put the one prompt in brackets.")
    sampling = Sampling(temperature, top_p, top_k)
    own = [seed + i for i in range(len(prompts))] if seeds is None else list(seeds)
    if len(own) != len(prompts):
        raise GenerationError(f"{len(prompts)} prompts need as many seeds, found {len(own)}.")
    rows = [
        GenerationState.start(model, prompt, max_new_tokens, seed=each, stop=stop, stop_tokens=stop_tokens)
        for prompt, each in zip(prompts, own, strict=True)
    ]
    if rows:
        continuous_batching.run(model, rows, partial(_draw, sampling), batch_size=batch_size)
    return [_finished(row) for row in rows]


def stream(
    model: Transformer,
    prompt: Prompt,
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    stop: Sequence[str] = (),
    stop_tokens: Iterable[int] | None = None,
    capture: str | Sequence[str] = (),
) -> Iterator[Piece]:
    """The continuation of one prompt, a token at a time.

    capture: hook names to keep at each step; the first step's capture covers the prompt, each later one a token.
    Raises: as `generate`; UnknownHookError.
    """
    sampling = Sampling(temperature, top_p, top_k)
    row = GenerationState.start(model, prompt, max_new_tokens, seed=seed, stop=stop, stop_tokens=stop_tokens)
    request = Request.of(model.config, capture) if capture else None
    return _pieces(model, row, sampling, request)


def _pieces(model: Transformer, row: GenerationState, sampling: Sampling, request: Request | None) -> Iterator[Piece]:
    for captured in _decode(model, row, sampling, request):
        yield Piece(row.tokens[-1], row.logprobs[-1], row.new_text(), row.finish_reason, captured)


def _finished(row: GenerationState) -> Generation:
    assert row.finish_reason is not None
    return Generation(row.prompt, tuple(row.tokens), tuple(row.logprobs), row.text, row.finish_reason)


def _draw(sampling: Sampling, rows: Sequence[GenerationState], logits: Tensor) -> None:
    """Shapes: logits [row, vocab] float32"""
    uniform = torch.zeros(len(rows))
    if sampling.temperature > 0:
        uniform = torch.stack([torch.rand((), generator=row.generator) for row in rows])
    chosen = tensor_parallel.broadcast(sampling.choose(logits, uniform.to(logits.device)))
    logprobs = logits.gather(-1, chosen.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)
    for row, token, logprob in zip(rows, chosen.tolist(), logprobs.tolist(), strict=True):
        row.take(token, logprob)


def _decode(
    model: Transformer, row: GenerationState, sampling: Sampling, request: Request | None
) -> Iterator[Capture | None]:
    """Decode one row until it is finished, one yield a step. The key/value cache lives as long as this does."""
    tokens = torch.tensor([row.prompt], device=model.device)
    cache = model.empty_cache(1, len(row.prompt) + row.room)
    while row.finish_reason is None:
        with torch.no_grad():
            logits, captured = _last_logits(model, tokens, cache, request)
            _draw(sampling, [row], logits)
        yield captured
        tokens = torch.tensor([[row.tokens[-1]]], device=model.device)


def _last_logits(
    model: Transformer, tokens: Tensor, cache: KVCache, request: Request | None
) -> tuple[Tensor, Capture | None]:
    """Shapes: tokens [batch, pos] -> logits after the last position, [batch, vocab]"""
    if request is not None:
        logits, captured = run_capture(model, tokens, request, cache=cache)
        return logits[:, -1], captured
    hidden = model.hidden(tokens, cache)
    return model.unembed(hidden[:, -1:], start=cache.length - 1)[:, 0], None
