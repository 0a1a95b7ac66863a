"""State of one sequence during generation: its tokens, when it ends, and which of its text is final.

Stop strings are searched in the decoded bytes, from the first place where the new token can complete one. This module
knows nothing of forwards or batches.
"""

from __future__ import annotations

import codecs
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from workbench.errors import GenerationError
from workbench.inference.counts import whole_number
from workbench.inference.sampling import noise_key

if TYPE_CHECKING:
    from workbench.model import Transformer
    from workbench.text.tokenizer import Tokenizer

FinishReason = Literal["stop", "length", "context", "not_finite"]
Prompt = str | Sequence[int]


@dataclass
class GenerationState:
    """The prompt's ids, the tokens generated so far, and the rules by which generation ends."""

    prompt: tuple[int, ...]
    limit: int
    context: int
    seed: int
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
    ) -> GenerationState:
        tokenizer, config = model.tokenizer, model.config
        max_new_tokens = whole_number("max_new_tokens", max_new_tokens, least=1)
        seed = whole_number("seed", seed)
        if not isinstance(stop, Sequence) or isinstance(stop, str) or not all(isinstance(s, str) and s for s in stop):
            raise GenerationError("stop must be a list of strings, none of them empty.")
        if tokenizer is None and (isinstance(prompt, str) or stop):
            raise GenerationError("this model has no tokenizer; pass token ids, and stop_tokens instead of stop.")
        if isinstance(prompt, str):
            assert tokenizer is not None
            prompt = tokenizer.encode(prompt, bos=True)
        ids = _token_ids("a prompt", prompt, config.vocab_size)
        if not ids:
            raise GenerationError("the prompt has no tokens; pass at least the begin token.")
        if len(ids) >= config.max_seq_len:
            raise GenerationError(
                f"a prompt of {len(ids)} tokens leaves no room in the context of {config.max_seq_len}; shorten it."
            )
        if stop_tokens is None:
            stop_tokens = () if tokenizer is None else tokenizer.stop_ids
        return cls(
            ids, max_new_tokens, config.max_seq_len, seed, tokenizer,
            tuple(s.encode() for s in stop), frozenset(_token_ids("stop_tokens", stop_tokens)),
        )  # fmt: skip

    def take(self, token: int, logprob: float) -> None:
        """Append a token, and set `finish_reason` if the sequence ends with it.

        A log-probability that is not finite means that no token could be chosen: the sequence ends without it.
        """
        if not math.isfinite(logprob):
            self.finish_reason = "not_finite"
            return
        self.tokens.append(token)
        self.logprobs.append(logprob)
        if token in self.stop_tokens:
            self.finish_reason = "stop"
            return
        if self.tokenizer is not None:
            before = len(self.bytes)
            self.bytes += self.tokenizer.token_bytes(token)
            starts = [self.bytes.find(stop, max(0, before - len(stop) + 1)) for stop in self.stops]
            matches = [start for start in starts if start >= 0]
            if matches:
                del self.bytes[min(matches) :]
                self.finish_reason = "stop"
                return
        if len(self.tokens) >= self.limit:
            self.finish_reason = "length"
        elif len(self.prompt) + len(self.tokens) >= self.context:
            self.finish_reason = "context"

    @property
    def ids(self) -> tuple[int, ...]:
        """The prompt and the generated tokens."""
        return (*self.prompt, *self.tokens)

    @property
    def noise_key(self) -> tuple[int, int]:
        """The key of the noise for the next token."""
        return noise_key(self.seed, len(self.tokens))

    @property
    def room(self) -> int:
        """Number of tokens that may still be generated."""
        return min(self.limit - len(self.tokens), self.context - len(self.prompt) - len(self.tokens))

    @property
    def text(self) -> str | None:
        """All text so far, up to a stop string; None without a tokenizer."""
        return None if self.tokenizer is None else self.bytes.decode("utf-8", "replace")

    def new_text(self) -> str:
        """Text that is final and not returned yet: no partial characters, no partial stop strings."""
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


def _token_ids(what: str, ids: object, vocab_size: int | None = None) -> tuple[int, ...]:
    """Raises: GenerationError for anything but whole numbers, below `vocab_size` if it is given."""
    if not isinstance(ids, Iterable) or isinstance(ids, str | bytes):
        raise GenerationError(
            f"{what} must be a list of token ids{' or a text' * (what != 'stop_tokens')}; found {ids!r:.80}."
        )
    checked = tuple(whole_number(f"a token id of {what}", token, least=0) for token in ids)
    if vocab_size is not None and max(checked, default=0) >= vocab_size:
        raise GenerationError(f"token id {max(checked)} of {what} is outside the vocabulary of {vocab_size}.")
    return checked
