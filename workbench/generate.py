"""Text from a model: prefill, decode, sample; in batches of unequal prompts, whole or streamed.

Prompts of unequal length are padded at the left and masked, so that each row gets what it would get alone. Randomness
comes from one seed a row and does not depend on the device. Interventions and captures act as in any other run.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from workbench.cache import KVCache
from workbench.capture import Capture, Request
from workbench.capture import run as run_capture
from workbench.errors import GenerationError

if TYPE_CHECKING:
    from workbench.model import Transformer
    from workbench.tokenizer import Tokenizer

FinishReason = Literal["stop", "length", "context"]
Prompt = str | Sequence[int]


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Temperature 0 is greedy; top_k 0 and top_p 1 leave the distribution whole."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0

    def __post_init__(self) -> None:
        if not self.temperature >= 0 or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise GenerationError(
                f"sampling needs temperature >= 0, 0 < top_p <= 1 and top_k >= 0, found {self.temperature}, "
                f"{self.top_p} and {self.top_k}."
            )

    def choose(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """One token a row: the least whose cumulated probability, from the most likely down, exceeds `uniform`.

        Shapes: logits [batch, vocab] float32, uniform [batch] in [0, 1) -> [batch] int64
        """
        if self.temperature == 0:
            return logits.argmax(-1)
        probs = (logits / self.temperature).softmax(-1)
        probs, order = probs.sort(dim=-1, descending=True, stable=True)
        if self.top_k:
            probs = probs[:, : self.top_k]
        # top_p keeps a token while the mass before it is below top_p: always at least one.
        probs = probs.masked_fill(probs.cumsum(-1) - probs >= self.top_p, 0.0)
        cumulated = probs.cumsum(-1)
        place = (cumulated <= uniform.unsqueeze(-1) * cumulated[:, -1:]).sum(-1)
        place = place.clamp(max=int(probs.shape[1]) - 1)
        return order.gather(-1, place.unsqueeze(-1)).squeeze(-1)


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
        _Row.start(model, prompt, max_new_tokens, seed=each, stop=stop, stop_tokens=stop_tokens)
        for prompt, each in zip(prompts, own, strict=True)
    ]
    # Like lengths together: less padding. The results keep the order of the prompts.
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i].prompt))
    for first in range(0, len(order), batch_size):
        for _ in _decode(model, [rows[i] for i in order[first : first + batch_size]], sampling):
            pass
    return [row.finish() for row in rows]


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
    row = _Row.start(model, prompt, max_new_tokens, seed=seed, stop=stop, stop_tokens=stop_tokens)
    request = Request.of(model.config, capture) if capture else None
    return _pieces(model, row, sampling, request)


def _pieces(model: Transformer, row: _Row, sampling: Sampling, request: Request | None) -> Iterator[Piece]:
    for captured in _decode(model, [row], sampling, request):
        yield Piece(row.tokens[-1], row.logprobs[-1], row.new_text(), row.finish_reason, captured)


@dataclass
class _Row:
    """One continuation while it grows."""

    prompt: tuple[int, ...]
    limit: int
    context: int
    generator: torch.Generator
    tokenizer: Tokenizer | None
    stops: tuple[bytes, ...]
    stop_tokens: frozenset[int]
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    bytes: bytearray = field(default_factory=bytearray)
    finish_reason: FinishReason | None = None
    shown: int = 0
    decoder: codecs.IncrementalDecoder = field(default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace"))

    @classmethod
    def start(
        cls,
        model: Transformer,
        prompt: Prompt,
        max_new_tokens: int,
        *,
        seed: int,
        stop: Sequence[str],
        stop_tokens: Iterable[int] | None,
    ) -> _Row:
        tokenizer, config = model.tokenizer, model.config
        if max_new_tokens < 1:
            raise GenerationError(f"max_new_tokens must be at least 1, found {max_new_tokens}.")
        if isinstance(stop, str) or not all(stop):
            raise GenerationError("stop must be a list of strings, none of them empty.")
        if tokenizer is None and (isinstance(prompt, str) or stop):
            raise GenerationError("this model has no tokenizer: give token ids, and stop_tokens instead of stop.")
        if isinstance(prompt, str):
            assert tokenizer is not None
            prompt = tokenizer.encode(prompt, bos=True)
        if not prompt:
            raise GenerationError("a prompt has no tokens; give at least the begin token.")
        if len(prompt) >= config.max_seq_len:
            raise GenerationError(
                f"a prompt of {len(prompt)} tokens leaves no room in the context of {config.max_seq_len}; shorten it."
            )
        if stop_tokens is None:
            stop_tokens = () if tokenizer is None else tokenizer.stop_ids
        generator = torch.Generator().manual_seed(seed)
        return cls(
            tuple(prompt), max_new_tokens, config.max_seq_len, generator, tokenizer,
            tuple(s.encode() for s in stop), frozenset(stop_tokens),
        )  # fmt: skip

    def take(self, token: int, logprob: float) -> None:
        """Add a token and see whether the row ends with it."""
        self.tokens.append(token)
        self.logprobs.append(logprob)
        if token in self.stop_tokens:
            self.finish_reason = "stop"
            return
        if self.tokenizer is not None:
            before = len(self.bytes)
            self.bytes += self.tokenizer.token_bytes(token)
            found = [at for s in self.stops if (at := self.bytes.find(s, max(0, before - len(s) + 1))) >= 0]
            if found:
                del self.bytes[min(found) :]
                self.finish_reason = "stop"
                return
        if len(self.tokens) >= self.limit:
            self.finish_reason = "length"
        elif len(self.prompt) + len(self.tokens) >= self.context:
            self.finish_reason = "context"

    def new_text(self) -> str:
        """Text that is certain by now and was not shown yet: no half characters, no half stop strings."""
        safe = len(self.bytes)
        if self.finish_reason is None:
            for stop in self.stops:
                for n in range(min(len(stop) - 1, len(self.bytes)), 0, -1):
                    if self.bytes.endswith(stop[:n]):
                        safe = min(safe, len(self.bytes) - n)
                        break
        part = bytes(self.bytes[self.shown : safe]) if safe > self.shown else b""
        self.shown = max(self.shown, safe)
        return self.decoder.decode(part, final=self.finish_reason is not None)

    def finish(self) -> Generation:
        assert self.finish_reason is not None
        text = None if self.tokenizer is None else self.bytes.decode("utf-8", "replace")
        return Generation(self.prompt, tuple(self.tokens), tuple(self.logprobs), text, self.finish_reason)


def _decode(
    model: Transformer, rows: list[_Row], sampling: Sampling, request: Request | None = None
) -> Iterator[Capture | None]:
    """Decode a batch until every row is finished, one yield a step. The key/value cache lives as long as this does."""
    longest = max(len(row.prompt) for row in rows)
    pad = torch.tensor([longest - len(row.prompt) for row in rows], device=model.device)
    tokens = torch.tensor([[0] * (longest - len(row.prompt)) + list(row.prompt) for row in rows], device=model.device)
    room = max(min(row.limit, row.context - len(row.prompt)) for row in rows)
    cache = model.empty_cache(len(rows), longest + room, pad=pad if int(pad.max()) else None)
    while True:
        with torch.no_grad():
            last, captured = _last_logits(model, tokens, cache, request)
            uniform = torch.zeros(len(rows))
            if sampling.temperature > 0:
                uniform = torch.stack([torch.rand((), generator=row.generator) for row in rows])
            chosen = sampling.choose(last, uniform.to(model.device))
            logprobs = last.log_softmax(-1).gather(-1, chosen.unsqueeze(-1)).squeeze(-1)
        for row, token, logprob in zip(rows, chosen.tolist(), logprobs.tolist(), strict=True):
            if row.finish_reason is None:
                row.take(token, logprob)
        yield captured
        going = [i for i, row in enumerate(rows) if row.finish_reason is None]
        if not going:
            return
        if len(going) <= len(rows) // 2:  # leave the finished rows behind once they are half of the work
            kept = torch.tensor(going, device=model.device)
            cache, chosen = cache.select(kept), chosen[kept]
            rows = [rows[i] for i in going]
        tokens = chosen.unsqueeze(-1)


def _last_logits(
    model: Transformer, tokens: Tensor, cache: KVCache, request: Request | None
) -> tuple[Tensor, Capture | None]:
    """Shapes: tokens [batch, pos] -> logits after the last position, [batch, vocab]"""
    if request is not None:
        logits, captured = run_capture(model, tokens, request, cache=cache)
        return logits[:, -1], captured
    hidden = model.hidden(tokens, cache)
    return model.unembed(hidden[:, -1:], start=cache.length - 1)[:, 0], None
