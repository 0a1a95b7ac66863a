"""Text generation: prefill, decode, sample; for many prompts of unequal length at once, or streamed for one.

Each prompt gets the text that it would get alone. Randomness comes from one seed per prompt and does not depend on the
device. Interventions and captures act as in any other run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from workbench.errors import GenerationError
from workbench.hooks.capture import Capture
from workbench.hooks.capture_request import Request
from workbench.hooks.capture_run import Run, check_budget
from workbench.hooks.capture_run import run as run_capture
from workbench.inference import continuous_batching
from workbench.inference.counts import whole_number
from workbench.inference.generation_state import FinishReason, GenerationState, Prompt
from workbench.inference.not_finite import Handling, check_handling, not_finite_error
from workbench.inference.sampling import Sampling
from workbench.layers import tensor_parallel
from workbench.layers.kv_cache import KVCache
from workbench.layers.memory import out_of_memory, too_little_memory

if TYPE_CHECKING:
    from workbench.model import Transformer
    from workbench.text.tokenizer import Tokenizer

_CHECKED = 1 << 62  # the budget of a step: all steps were checked together, before the first


@dataclass(frozen=True)
class Piece:
    """One step of a stream: a token, its log-probability (nats, before temperature), and the text that it completes.

    `text` is empty while a character's bytes, or a stop string, may still be incomplete. `finish_reason` is set on the
    last piece. `capture` is the capture of this step, if one was requested.
    """

    token: int
    logprob: float
    text: str
    finish_reason: FinishReason | None
    capture: Capture | None = None


@dataclass(frozen=True)
class Generation:
    """A finished continuation. `text` ends before the stop string or stop token; it is None without a tokenizer.

    `tokens` and `logprobs` (nats, before penalty and temperature) hold every token that was generated, the stopping one
    included. `finish_reason` is "not_finite" if the logits after the last token were NaN or infinite. `captures`: one
    capture per token if hooks were requested; the first covers the prompt, each later one the token before.
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
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    seeds: Sequence[int] | None = None,
    stop: Sequence[str] = (),
    stop_tokens: Iterable[int] | None = None,
    batch_size: int = 16,
    not_finite: Handling = "raise",
    capture: str | Sequence[str] = (),
    budget: int | None = None,
) -> list[Generation]:
    """Continue each prompt: text (a begin token is added) or token ids (used as they are).

    seed: prompt i uses seed + i, so it can be repeated alone; or pass one seed per prompt in `seeds`.
    Ids for which the tokenizer has no token are never chosen. min_p, repetition_penalty and the others: `Sampling`.
    stop_tokens: default: the tokenizer's.
    not_finite: "keep" ends a sequence with this finish reason where "raise" raises an error.
    capture: hook names to capture at each step, as in `stream`. The prompts are then generated one after another, so
    that each capture is that of its prompt alone.
    budget: most bytes of all captures; None: half of the memory that is free now.
    Raises: GenerationError for an empty or over-long prompt, or settings that cannot be used; NotFiniteError;
            CaptureBudgetError, before anything is generated.
    """
    if isinstance(prompts, str) or not hasattr(prompts, "__len__"):
        raise GenerationError("prompts must be a list; put a single prompt in brackets.")
    sampling = Sampling(temperature, top_p, top_k, min_p, repetition_penalty)
    batch_size = whole_number("batch_size", batch_size, least=1)
    check_handling(not_finite, GenerationError)
    first_seed = whole_number("seed", seed)
    if seeds is not None and not isinstance(seeds, Iterable):
        raise GenerationError(f"seeds must be a list of whole numbers; found {seeds!r:.80}.")
    prompt_seeds = [first_seed + i for i in range(len(prompts))] if seeds is None else list(seeds)
    if len(prompt_seeds) != len(prompts):
        raise GenerationError(f"{len(prompts)} prompts need as many seeds, found {len(prompt_seeds)}.")
    start = partial(GenerationState.start, model, max_new_tokens=max_new_tokens, stop=stop, stop_tokens=stop_tokens)
    sequences = [start(prompt, seed=prompt_seed) for prompt, prompt_seed in zip(prompts, prompt_seeds, strict=True)]
    if capture:
        request = _checked_request(model, capture, sequences, budget)
        return [_captured(model, sequence, sampling, request, not_finite) for sequence in sequences]
    sampler = partial(draw, sampling)
    if sequences:
        continuous_batching.run(model, sequences, sampler, batch_size=batch_size)
    for i, sequence in enumerate(sequences):
        if sequence.finish_reason != "not_finite":
            continue
        if len(sequences) > 1:
            # A masked NaN times its weight of 0 is NaN: it may have come from the padding.
            sequence = sequences[i] = start(sequence.prompt, seed=sequence.seed)
            continuous_batching.run(model, [sequence], sampler, batch_size=1)
        if sequence.finish_reason == "not_finite" and not_finite == "raise":
            raise not_finite_error(model, sequence.ids)
    return [_finished(sequence) for sequence in sequences]


def stream(
    model: Transformer,
    prompt: Prompt,
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    stop: Sequence[str] = (),
    stop_tokens: Iterable[int] | None = None,
    capture: str | Sequence[str] = (),
    budget: int | None = None,
) -> Iterator[Piece]:
    """The continuation of one prompt, token by token.

    capture: hook names to capture at each step; the first capture covers the prompt, each later one a single token. The
    captures of all steps share one copy of the keys, so a kept generation takes memory that grows linearly.
    budget: most bytes of all captures together, for `max_new_tokens` steps; None: half of the memory that is free now.
    Raises: as `generate`; UnknownHookError.
    """
    sampling = Sampling(temperature, top_p, top_k, min_p, repetition_penalty)
    sequence = GenerationState.start(model, prompt, max_new_tokens, seed=seed, stop=stop, stop_tokens=stop_tokens)
    request = _checked_request(model, capture, [sequence], budget) if capture else None
    return _pieces(model, sequence, sampling, request)


def _pieces(
    model: Transformer, sequence: GenerationState, sampling: Sampling, request: Request | None
) -> Iterator[Piece]:
    for captured in _decode(model, sequence, sampling, request):
        yield Piece(sequence.tokens[-1], sequence.logprobs[-1], sequence.new_text(), sequence.finish_reason, captured)


def _checked_request(
    model: Transformer, capture: str | Sequence[str], sequences: Sequence[GenerationState], budget: int | None
) -> Request:
    """The request for the captures of all steps. Raises: CaptureBudgetError, UnknownHookError."""
    request = Request.of(model.config, capture)
    shapes = [(1, len(sequence.prompt) + sequence.room - 1) for sequence in sequences]
    check_budget(model, shapes, request, Run(logits=None), budget=budget, cached=True)
    return request


def _captured(
    model: Transformer, sequence: GenerationState, sampling: Sampling, request: Request, not_finite: Handling
) -> Generation:
    captures = [captured for captured in _decode(model, sequence, sampling, request, not_finite) if captured]
    return replace(_finished(sequence), captures=tuple(captures))


def _finished(sequence: GenerationState) -> Generation:
    assert sequence.finish_reason is not None
    return Generation(
        sequence.prompt, tuple(sequence.tokens), tuple(sequence.logprobs), sequence.text, sequence.finish_reason
    )


def draw(sampling: Sampling, sequences: Sequence[GenerationState], logits: Tensor) -> None:
    """Choose the next token of each sequence and append it. Shapes: logits [batch, vocab] float32"""
    candidates = candidate_logits(sampling, sequences, logits)
    noise_keys = [sequence.noise_key for sequence in sequences] if sampling.temperature else []
    keys = torch.tensor(noise_keys, dtype=torch.int32, device=logits.device)
    chosen = tensor_parallel.broadcast(sampling.choose(candidates, keys))
    # NaN if any logit is NaN or +inf, or all are -inf.
    logprobs = logits.gather(-1, chosen.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)
    for sequence, token, logprob in zip(sequences, chosen.tolist(), logprobs.tolist(), strict=True):
        sequence.take(token, logprob)


def candidate_logits(sampling: Sampling, sequences: Sequence[GenerationState], logits: Tensor) -> Tensor:
    """The logits that tokens are chosen from: -inf for ids without a token, and after the repetition penalty.

    Shapes: logits [batch, vocab] -> [batch, vocab]
    """
    tokenizer = sequences[0].tokenizer
    missing = None if tokenizer is None else _ids_without_token(tokenizer, logits.shape[-1], logits.device)
    if missing is not None:
        logits = logits.masked_fill(missing, -torch.inf)
    if sampling.repetition_penalty != 1:
        logits = sampling.penalised(logits, [sequence.ids for sequence in sequences])
    return logits


@lru_cache(maxsize=8)
def _ids_without_token(tokenizer: Tokenizer, vocab_size: int, device: torch.device) -> Tensor | None:
    """A mask of the output's rows for which there is no token, as in padded embeddings; None if there are none.

    Shapes: [vocab] bool
    """
    missing = [not tokenizer.has_token(token) for token in range(vocab_size)]
    return torch.tensor(missing, device=device) if any(missing) else None


def _decode(
    model: Transformer,
    sequence: GenerationState,
    sampling: Sampling,
    request: Request | None,
    not_finite: Handling = "raise",
) -> Iterator[Capture | None]:
    """Decode one sequence until it ends, one yield per step. The key/value cache lives as long as this generator.

    Captures hold parts of the cache, which nothing writes a second time.
    """
    tokens = torch.tensor([sequence.prompt], device=model.device)
    cache = model.empty_cache(1, len(sequence.prompt) + sequence.room)
    while sequence.finish_reason is None:
        with torch.no_grad():
            logits, captured = _last_logits(model, tokens, cache, request)
            draw(sampling, [sequence], logits)
        if sequence.finish_reason == "not_finite":
            if not_finite == "keep":
                return
            raise not_finite_error(model, sequence.ids)
        yield captured
        tokens = torch.tensor([[sequence.tokens[-1]]], device=model.device)


def _last_logits(
    model: Transformer, tokens: Tensor, cache: KVCache, request: Request | None
) -> tuple[Tensor, Capture | None]:
    """Shapes: tokens [batch, pos] -> logits after the last position, [batch, vocab]"""
    if request is not None:
        settings = Run(logits="last", copies_keys=False)
        logits, captured = run_capture(model, tokens, request, settings, cache=cache, budget=_CHECKED)
        assert logits is not None
        return logits[:, -1], captured
    try:
        hidden = model.hidden(tokens, cache)
        return model.unembed(hidden[:, -1:], start=cache.length - 1)[:, 0], None
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
    raise too_little_memory(tokens.shape, model.device, "generate fewer tokens")
