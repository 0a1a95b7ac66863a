"""Token traces: the token ids of a run's prompts and answers, collected until its samples are written.

Knows nothing of models or tasks.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class GeneratedTrace:
    """One generated answer as tokens: all that is needed to replay it.

    Units: logprobs in nats, one for each generated token.
    """

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: str
    cut: int


@dataclass(frozen=True)
class TruncatedPrompt:
    """The token ids of a prompt as the model saw them, and how many were truncated on the left."""

    ids: array[int]
    cut: int


class TokenTraces:
    """Generated answers by (task, doc_id), and scored answers by their texts."""

    def __init__(self) -> None:
        self._generated: dict[tuple[str, int], list[GeneratedTrace]] = {}
        self._contexts: dict[str, TruncatedPrompt] = {}
        self._answers: dict[tuple[str, str], tuple[int, ...]] = {}

    def add_scored(self, texts: tuple[str, str], context: Sequence[int], answer: Sequence[int], *, room: int) -> None:
        """Add an answer that was scored after a context, of which the model sees at most the last `room` ids."""
        self._answers[texts] = tuple(answer)
        if texts[0] not in self._contexts:
            # An array of machine integers: few-shot prompts of a whole benchmark are millions of tokens.
            seen = context[-room:]
            self._contexts[texts[0]] = TruncatedPrompt(array("i", seen), len(context) - len(seen))

    def add_generated(
        self, key: tuple[str, int], prompt: Sequence[int], answer: Mapping[str, Any], *, room: int
    ) -> None:
        """Add a generated answer to a prompt, of which the model sees at most the last `room` ids."""
        seen, logprobs = tuple(prompt[-room:]), tuple(answer["logprobs"])
        trace = GeneratedTrace(
            seen, tuple(answer["tokens"]), logprobs, answer["finish_reason"], len(prompt) - len(seen)
        )
        self._generated.setdefault(key, []).append(trace)

    def replay(self, task: str, row: Mapping[str, Any]) -> dict[str, Any]:
        """The token ids that replay a sample."""
        arguments = row["arguments"]
        if len(arguments[0]) == 1:  # rolling: there is only the text
            return {}
        if isinstance(arguments[0][1], str):
            context = self._contexts[arguments[0][0]]
            ids = [self._answers[context_text, answer] for context_text, answer in arguments]
            return {"prompt_ids": list(context.ids), "choice_ids": [list(answer) for answer in ids], "cut": context.cut}
        samples = self._generated[task, row["doc_id"]]
        return {
            "prompt_ids": list(samples[0].prompt),
            "generated_ids": [list(sample.tokens) for sample in samples],
            "logprobs": [[round(value, 6) for value in sample.logprobs] for sample in samples],
            "finish_reason": [sample.finish_reason for sample in samples],
            "cut": samples[0].cut,
        }
