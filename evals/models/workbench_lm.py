"""Our model behind lm-eval's model interface: tokens in, log-likelihoods and continuations out.

What lm-eval's own Hugging Face backend does with a prompt is done here too: one begin token, the left side
cut where a prompt is too long, text ended before the first stop string. Knows nothing of tasks, data or
scores.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lm_eval.models  # noqa: F401 - registering before it is imported would hide every built-in model
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import get_model, model_registry, register_model
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text

import workbench as wb
from evals.models.generation_args import Decoding, seeds_of
from evals.models.response_cache import ENGINE, Recall, digest, identity
from evals.models.token_trace import Traces
from evals.runtime.progress import Bar, bar
from workbench import provenance
from workbench.checkpoint import load_model
from workbench.errors import DataError, TokenizerError
from workbench.hooks.intervention import active_interventions
from workbench.text.chat_format import encode_chat
from workbench.text.vocabulary_files import LLAMA3_PATTERN

if TYPE_CHECKING:
    from workbench import Transformer
    from workbench.hooks.intervention import Intervention
    from workbench.text.tokenizer import Tokenizer

_GENERATED_AT_MOST = 256  # where a task sets no limit; lm-eval's own default
_ROWS_AT_ONCE = 32
# What is asked together and kept together: many enough for full batches, few enough to lose little by a kill.
_SCORED_TOGETHER, _TEXTS_TOGETHER, _CONTINUED_TOGETHER = 512, 16, 64
_BATCHES_TOGETHER = 4  # rows that finish make room for others until the unit runs dry: of one batch they would not


# Behind a line break and before a letter, Llama 3's pattern splits whatever else there is: lines may be encoded one by
# one. Prompts have most of them in common: those of a task its examples, the four of a question all but one.
_LINES = re.compile(r"(?<=\n)(?=[A-Za-z])")


@register_model("workbench")
class WorkbenchLM(TemplateLM):
    """`pretrained` is a checkpoint's folder, "demo", or a model that is loaded already.

    Arguments bear the names that lm-eval's command line gives to every model. `traces` keeps the ids for whoever
    writes the samples down; `recall` gives what was answered before, and shares the rest with other processes.
    """

    def __init__(
        self,
        pretrained: str | Path | Transformer,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
        dtype: str = "auto",
        *,
        seed: int = 0,
        progress: bool = True,
    ) -> None:
        super().__init__()
        if isinstance(pretrained, str | Path):
            pretrained = load_model(pretrained, device=device or "auto", dtype=dtype)
        self.model = pretrained
        if self.model.tokenizer is None:
            raise TokenizerError("benchmarks need text: this checkpoint has no tokenizer.model or tokenizer.json.")
        self._tokenizer: Tokenizer = self.model.tokenizer
        # "auto" is lm-eval's word for: you decide.
        given = None if batch_size is None or str(batch_size).startswith("auto") else int(batch_size)
        self.batch_size = min(filter(None, (given, max_batch_size)), default=None)
        self._line = lru_cache(maxsize=1 << 16)(partial(_encoded, self._tokenizer))
        self._device = self.model.device
        self._seed = seed
        self._quiet = not progress
        self.traces = Traces()
        self.recall = Recall()
        self.packages: tuple[str, ...] = ()

    # --- whose answers these are

    def identity(self, run: str) -> tuple[Any, ...] | None:
        """The name that answers are kept under; None if there is none."""
        return identity(self.model)

    def changed(self, interventions: Sequence[Intervention]) -> AbstractContextManager[Any]:
        return self.model.intervene(*interventions)

    def origin(self) -> dict[str, Any]:
        changes = [change.to_dict() for change in active_interventions(self.model) if change is not None]
        return {**provenance.describe(self.model.source), "engine": ENGINE, "interventions": changes}

    @property
    def dtype_name(self) -> str:
        return str(self.model.dtype).removeprefix("torch.")

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())

    def replay(self, task: str, row: Mapping[str, Any]) -> dict[str, Any]:
        """The token ids of a sample, which replay it."""
        return self.traces.replay(task, row)

    # --- what lm-eval asks of a tokenizer

    @property
    def eot_token_id(self) -> int:
        return self._tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        return self._tokenizer.bos_id

    @property
    def max_length(self) -> int:
        return self.model.config.max_seq_len

    @property
    def tokenizer_name(self) -> str:
        return f"workbench-{self._tokenizer.sha256[:16]}"

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids behind one begin token; a text that brings its own, as chats do, gets no second.

        Special tokens are read as such only in a text that begins with one: in any other they are plain text.
        """
        begins = string.startswith("<|begin_of_text|>")
        bos = not begins if add_special_tokens is None else add_special_tokens
        ids = [self._tokenizer.bos_id] if bos else []
        for part in _LINES.split(string) if self._tokenizer.pattern == LLAMA3_PATTERN else (string,):
            ids += self._line(part, begins)
        return ids

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation as text, special tokens by name; without a generation prompt its last message is
        open.

        Raises: ChatError for a role that Llama 3 has not.
        """
        ids = encode_chat(self._tokenizer, chat_history, add_generation_prompt=add_generation_prompt)
        if not add_generation_prompt:
            ids = ids[:-1]
        return self._tokenizer.decode(ids)

    def chat_template(self, chat_template: bool | str = False) -> str:
        return "llama3" if chat_template else ""

    # --- log-likelihoods

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        **kwargs: Any,
    ) -> list[tuple[float, bool]]:
        for texts, context, answer in requests:
            self.traces.scored(texts, context, answer, room=self.max_length + 1 - len(answer))
        # Four answers stand behind one text, whose ids are the same for all, and many.
        names = {text: digest(ids) for text, ids in {texts[0]: context for texts, context, _ in requests}.items()}
        questions = [("loglikelihood", names[texts[0]], list(answer)) for texts, _, answer in requests]

        def ask(places: Sequence[int]) -> list[Any]:
            pairs = [requests[i][1:] for i in places]
            return [[value, greedy] for value, greedy in wb.score(self.model, pairs, **self._score_arguments(pairs))]

        with self._bar(len(requests), "scoring", disable_tqdm) as bar:
            found = self.recall.answers(questions, ask, unit=_SCORED_TOGETHER, done=bar.update)
        return [(value, greedy) for value, greedy in found]

    def _score_arguments(self, pairs: Sequence[tuple[list[int], list[int]]]) -> dict[str, int]:
        if self.batch_size is None:
            return {}
        longest = max(min(len(context) + len(answer) - 1, self.max_length) for context, answer in pairs)
        return {"batch_tokens": self.batch_size * longest}

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        texts = [self.tok_encode(request.args[0], add_special_tokens=False) for request in requests]
        room = {} if self.batch_size is None else {"batch_tokens": self.batch_size * self.max_length}

        def ask(places: Sequence[int]) -> list[Any]:
            some = [texts[i] for i in places]
            return list(wb.score_rolling(self.model, some, prefix=self.prefix_token_id, **room))

        with self._bar(len(requests), "scoring", disable_tqdm) as bar:
            return self.recall.answers(
                [("rolling", digest(text)) for text in texts], ask, unit=_TEXTS_TOGETHER, done=bar.update
            )

    # --- generation

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        texts: dict[int, str] = {}
        alike: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            alike.setdefault(repr(request.args[1]), []).append(i)
        with self._bar(len(requests), "generating", disable_tqdm) as bar:
            for members in alike.values():
                asked = _decoding(requests[members[0]].args[1], self.max_length)
                room = self.max_length - asked.tokens
                prompts = [self.tok_encode(requests[i].args[0]) for i in members]
                seeds = self._seeds([requests[i] for i in members], asked)
                found = self._continued([prompt[-room:] for prompt in prompts], asked, seeds, bar)
                for i, prompt, answer in zip(members, prompts, found, strict=True):
                    texts[i] = self._text(answer["tokens"], asked.stop)
                    key = (str(requests[i].task_name), int(requests[i].doc_id or 0))
                    self.traces.generated(key, prompt, answer, room=room)
        return [texts[i] for i in range(len(requests))]

    def _seeds(self, requests: Sequence[Instance], asked: Decoding) -> list[int]:
        if asked.temperature == 0:
            return [0] * len(requests)
        return seeds_of([(request.task_name, request.doc_id, request.idx) for request in requests], self._seed)

    def _continued(self, prompts: Sequence[list[int]], asked: Decoding, seeds: Sequence[int], bar: Bar) -> list[Any]:
        """What follows each prompt: tokens, logprobs, finish_reason."""

        rows = self.batch_size or _ROWS_AT_ONCE

        def ask(places: Sequence[int]) -> list[Any]:
            done = wb.generate(
                self.model,
                [prompts[i] for i in places],
                max_new_tokens=asked.tokens,
                temperature=asked.temperature,
                top_p=asked.top_p,
                top_k=asked.top_k,
                seeds=[seeds[i] for i in places],
                stop=asked.stop,
                batch_size=rows,
            )
            return [
                {"tokens": list(one.tokens), "logprobs": list(one.logprobs), "finish_reason": one.finish_reason}
                for one in done
            ]

        pairs = zip(prompts, seeds, strict=True)
        questions = [("generate", digest(prompt), vars(asked), seed) for prompt, seed in pairs]
        unit = max(_CONTINUED_TOGETHER, _BATCHES_TOGETHER * rows)
        return self.recall.answers(questions, ask, unit=unit, done=bar.update)

    def _text(self, tokens: Sequence[int], stop: Sequence[str]) -> str:
        """The text of an answer before the first stop string; special tokens are no part of it, as in lm-eval."""
        special = set(self._tokenizer.special_tokens.values())
        text = self._tokenizer.decode(token for token in tokens if token not in special)
        return postprocess_generated_text(text, list(stop), None)

    def _bar(self, total: int, what: str, disable: bool) -> Bar:
        return bar(total, what, disable or self._quiet)


def _encoded(tokenizer: Tokenizer, text: str, special: bool) -> tuple[int, ...]:
    return tuple(tokenizer.encode(text, allow_special=special))


def _decoding(arguments: dict[str, Any], max_length: int) -> Decoding:
    Decoding.check(arguments)
    return Decoding.of(normalize_gen_kwargs(arguments, _GENERATED_AT_MOST), max_length)


def built(backend: str, arguments: Mapping[str, Any], **more: Any) -> Any:
    """One of lm-eval's own models.

    Raises: DataError if it has no model of this name, or the model cannot be made of these arguments.
    """
    try:
        kind = get_model(backend)
    except ValueError as error:
        raise DataError(
            f"lm-eval has no model {backend!r}; it has {', '.join(sorted(model_registry.keys()))}."
        ) from error
    try:
        return kind.create_from_arg_obj(
            dict(arguments), {key: value for key, value in more.items() if value is not None}
        )
    except (TypeError, ValueError, OSError, ImportError, AssertionError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"lm-eval's model {backend!r} cannot be made of {dict(arguments)}: {first}") from error
