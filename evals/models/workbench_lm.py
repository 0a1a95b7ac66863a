"""The workbench's model behind lm-eval's model interface: log-likelihoods and generated text.

Prompts are handled as in lm-eval's Hugging Face backend: one begin token, truncation on the left if a prompt is too
long, generated text ends before the first stop string. Knows nothing of tasks, data or scores.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lm_eval.models  # noqa: F401 - must be imported before we register, else every built-in model is hidden
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import get_model, model_registry, register_model
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text

import workbench as wb
from evals.models.generation_args import DEFAULT_TOKENS, GenerationArgs, sample_seeds
from evals.models.response_cache import ENGINE, ResponseCache, model_identity, overwritten_error, sha256_of_ids
from evals.models.token_trace import TokenTraces
from evals.models.units import TEXTS_PER_UNIT, generations_per_unit, new_tokens, scores_per_unit
from evals.runtime.progress import Bar, bar
from workbench import provenance
from workbench.checkpoint import load_model
from workbench.errors import ChatError, CheckpointError, DataError, TokenizerError, WorkbenchWarning
from workbench.hooks.intervention import described_interventions
from workbench.text.chat import BUILTIN, ChatPrompt, chat_prompt, template_source, warn_of_builtin_format

if TYPE_CHECKING:
    from workbench import Transformer
    from workbench.hooks.intervention import Intervention
    from workbench.text.tokenizer import Tokenizer

_DEFAULT_BATCH_SIZE = 32
# Llama 3's vocabulary always splits after a line break and before a letter, so lines can be encoded separately. Prompts
# share most of their lines: those of a task its examples, the four of a question all but one.
_LINES = re.compile(r"(?<=\n)(?=[A-Za-z])")


@register_model("workbench")
class WorkbenchLM(TemplateLM):
    """`pretrained` is a checkpoint's folder, "demo", or a loaded model.

    Arguments have the names that lm-eval's command line uses for every model. `token_traces` collects the token ids for
    the samples file; `response_cache` returns cached responses and shares the rest with other processes.
    """

    def __init__(
        self,
        pretrained: str | Path | Transformer,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
        dtype: str = "auto",
        *,
        adapter: str | Path | None = None,
        seed: int = 0,
        progress: bool = True,
    ) -> None:
        super().__init__()
        if isinstance(pretrained, str | Path):
            pretrained = load_model(pretrained, device=device or "auto", dtype=dtype, adapter=adapter)
        elif adapter is not None:
            raise DataError("an adapter is merged when a model is loaded; pass it to load_model.")
        self.model = pretrained
        if self.model.tokenizer is None:
            raise TokenizerError(
                "benchmarks need a tokenizer: this checkpoint has no tokenizer.model or tokenizer.json."
            )
        self._tokenizer: Tokenizer = self.model.tokenizer
        # "auto": the model chooses the batch size.
        requested = None if batch_size is None or str(batch_size).startswith("auto") else int(batch_size)
        self.batch_size = min(filter(None, (requested, max_batch_size)), default=None)
        begin = self._tokenizer.bos_id
        self._begin = None if begin is None else self._tokenizer.name(begin)
        self._line = lru_cache(maxsize=1 << 16)(partial(_encoded, self._tokenizer))
        self._chats: dict[str, ChatPrompt] = {}
        self._template: str | None = None
        self._without_system = False
        self._device = self.model.device
        self._seed = seed
        self._quiet = not progress
        self.token_traces = TokenTraces()
        self.response_cache = ResponseCache()
        self._source: provenance.ModelSource | None = None  # as it was when the run began
        self.packages: tuple[str, ...] = ()
        self.not_finite: set[tuple[str, int]] = set()  # (task, doc_id) of questions whose logits were not finite

    # --- identity of the model

    def identity(self, run: str) -> tuple[Any, ...] | None:
        """The identity that responses are cached under; None if there is none."""
        self._source = self.model.source
        return model_identity(self.model)

    @property
    def checkpoint_sha256(self) -> str | None:
        source = self.model.source
        return source and source.checkpoint_sha256

    def check_unchanged(self) -> None:
        """Raises: CheckpointError if the model is no longer the one that was loaded, in memory or in its files."""
        if self._source and (path := self._source.overwritten):
            raise overwritten_error(path)
        if self.model.source is None:
            raise CheckpointError(
                "the model's weights changed in memory while it answered. The answers from before the change are saved."
            )

    def apply_interventions(self, interventions: Sequence[Intervention]) -> AbstractContextManager[Any]:
        return self.model.intervene(*interventions)

    def provenance(self) -> dict[str, Any]:
        changes = described_interventions(self.model)
        return {**provenance.describe(self.model.source), "engine": ENGINE, "interventions": changes}

    @property
    def dtype_name(self) -> str:
        return str(self.model.dtype).removeprefix("torch.")

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())

    def replay(self, task: str, row: Mapping[str, Any]) -> dict[str, Any]:
        """The token ids that replay a sample."""
        return self.token_traces.replay(task, row)

    # --- lm-eval's tokenizer interface

    @property
    def eot_token_id(self) -> int | None:
        return self._tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        return self._tokenizer.prefix_id

    @property
    def max_length(self) -> int:
        return self.model.config.max_seq_len

    @property
    def tokenizer_name(self) -> str:
        return f"workbench-{self._tokenizer.sha256[:16]}"

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids after the begin token, if the checkpoint's files say that a text starts with it; a text that starts
        with its own, as chats do, gets no second one.

        Special tokens are parsed where the format of a chat wrote them, and in a text that starts with the begin token;
        in other texts they are plain text.
        """
        begin = (
            self._begin_ids(string)
            if add_special_tokens is None
            else self._tokenizer.encode("", bos=add_special_tokens)
        )
        chat = self._chats.get(string)
        return begin + (self._lines(string, self._begins(string)) if chat is None else self._chat_ids(chat))

    def _begins(self, text: str) -> bool:
        return self._begin is not None and text.startswith(self._begin)

    def _begin_ids(self, text: str) -> list[int]:
        return self._tokenizer.encode("", bos=not self._begins(text))

    def _lines(self, text: str, special: bool) -> list[int]:
        lines = _LINES.split(text) if self._tokenizer.splits_at_lines else (text,)
        return [token for line in lines for token in self._line(line, special)]

    def _chat_ids(self, chat: ChatPrompt) -> list[int]:
        return chat.ids(self._tokenizer) if chat.quoted else self._lines(chat.text, True)

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Ids of a context and its continuation; the white space at a context's end is scored, as in lm-eval."""
        chat = self._chats.get(context)
        if chat is None:
            return super()._encode_pair(context, continuation)
        begin = self._begin_ids(context)
        whole = begin + self._chat_ids(chat.followed_by(self._tokenizer, continuation))
        before = begin + self._chat_ids(ChatPrompt(context.rstrip(), chat.quoted))
        return before, whole[len(before) :]

    # --- chats

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation as text in the checkpoint's format; without a generation prompt its last message is left
        open. A template that refuses a system message gets the conversation without it, as in lm-eval.

        Raises: ChatError for a conversation that the template refuses.
        """
        options: dict[str, Any] = {
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": not add_generation_prompt,
            "template": self._template,
        }
        try:
            prompt = chat_prompt(self._tokenizer, chat_history, **options)
        except ChatError as error:
            without_system = [message for message in chat_history if message["role"] != "system"]
            if len(without_system) == len(chat_history):
                raise
            prompt = chat_prompt(self._tokenizer, without_system, **options)
            if not self._without_system:
                self._without_system = True
                text = f"system messages are left out of this run's chats: {error}"
                warnings.warn(text, WorkbenchWarning, stacklevel=2)
        self._remember(prompt)
        return prompt.text

    def _remember(self, prompt: ChatPrompt) -> None:
        """lm-eval passes texts; a text alone does not say which special tokens are the format's own."""
        self._chats[prompt.text] = prompt

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The text of the chat template, "llama3" for the built-in format; empty without a template.

        Chats are written with the same one from then on. Raises: ChatError if the checkpoint has none of this name.
        """
        if not chat_template:
            return ""
        name = None if chat_template is True else chat_template
        source = template_source(self._tokenizer, name=name)
        self._template = name
        if source is None:
            origin = self.model.source
            warn_of_builtin_format(self._tokenizer, origin.path if origin else None)
        return source or BUILTIN

    # --- log-likelihoods

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        scores: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        self.not_finite |= without_number(requests, [value for value, _ in scores])
        return scores

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        **kwargs: Any,
    ) -> list[tuple[float, bool]]:
        for texts, context, answer in requests:
            self.token_traces.add_scored(texts, context, answer, room=self.max_length + 1 - len(answer))
        # The four answers of a question share one long context: hash it once.
        contexts = {texts[0]: context for texts, context, _ in requests}
        context_hashes = {text: sha256_of_ids(ids) for text, ids in contexts.items()}
        questions = [("loglikelihood", context_hashes[texts[0]], list(answer)) for texts, _, answer in requests]

        def ask(indices: Sequence[int]) -> list[Any]:
            pairs = [requests[i][1:] for i in indices]
            scores = wb.score(self.model, pairs, not_finite="keep", **self._score_arguments(pairs))
            return [[number_or_none(value), greedy] for value, greedy in scores]

        tokens = new_tokens([*contexts.values()]) + sum(len(answer) for *_, answer in requests)
        unit = scores_per_unit(self._device.type, 2 * self.parameters * tokens / max(1, len(requests)))
        with self._bar(len(requests), "scoring", disable_tqdm) as bar:
            scores = self.response_cache.get_or_compute(questions, ask, unit=unit, on_progress=bar.update)
        return [(math.nan if value is None else value, greedy) for value, greedy in scores]

    def _score_arguments(self, pairs: Sequence[tuple[list[int], list[int]]]) -> dict[str, int]:
        if self.batch_size is None:
            return {}
        longest = max(min(len(context) + len(answer) - 1, self.max_length) for context, answer in pairs)
        return {"batch_tokens": self.batch_size * longest}

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        texts = [self.tok_encode(request.args[0], add_special_tokens=False) for request in requests]
        limits = {} if self.batch_size is None else {"batch_tokens": self.batch_size * self.max_length}

        def ask(indices: Sequence[int]) -> list[Any]:
            unit_texts = [texts[i] for i in indices]
            totals = wb.score_rolling(self.model, unit_texts, prefix=self.prefix_token_id, not_finite="keep", **limits)
            return [number_or_none(total) for total in totals]

        with self._bar(len(requests), "scoring", disable_tqdm) as bar:
            stored = self.response_cache.get_or_compute(
                [("rolling", sha256_of_ids(text)) for text in texts], ask, unit=TEXTS_PER_UNIT, on_progress=bar.update
            )
        totals = [math.nan if total is None else total for total in stored]
        self.not_finite |= without_number(requests, totals)
        return totals

    # --- generation

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        texts: dict[int, str] = {}
        by_arguments: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            by_arguments.setdefault(repr(request.args[1]), []).append(i)
        with self._bar(len(requests), "generating", disable_tqdm) as bar:
            for members in by_arguments.values():
                args = generation_args(requests[members[0]].args[1], self.max_length)
                room = self.max_length - args.tokens
                prompts = [self.tok_encode(requests[i].args[0]) for i in members]
                seeds = self._seeds([requests[i] for i in members], args)
                answers = self._generate([prompt[-room:] for prompt in prompts], args, seeds, bar)
                for i, prompt, answer in zip(members, prompts, answers, strict=True):
                    texts[i] = self._text(answer["tokens"], args.stop)
                    key = (str(requests[i].task_name), int(requests[i].doc_id or 0))
                    self.token_traces.add_generated(key, prompt, answer, room=room)
                    if not _finite(answer):
                        self.not_finite.add(key)
        return [texts[i] for i in range(len(requests))]

    def _seeds(self, requests: Sequence[Instance], args: GenerationArgs) -> list[int]:
        if args.temperature == 0:
            return [0] * len(requests)
        return sample_seeds([(request.task_name, request.doc_id, request.idx) for request in requests], self._seed)

    def _generate(
        self, prompts: Sequence[list[int]], args: GenerationArgs, seeds: Sequence[int], bar: Bar
    ) -> list[Any]:
        """The generated continuation of each prompt: tokens, logprobs, finish_reason."""

        rows = self.batch_size or _DEFAULT_BATCH_SIZE

        def ask(indices: Sequence[int]) -> list[Any]:
            outputs = wb.generate(
                self.model,
                [prompts[i] for i in indices],
                max_new_tokens=args.tokens,
                temperature=args.temperature,
                top_p=args.top_p,
                top_k=args.top_k,
                min_p=args.min_p,
                repetition_penalty=args.repetition_penalty,
                seeds=[seeds[i] for i in indices],
                stop=args.stop,
                batch_size=rows,
                not_finite="keep",
            )
            return [
                {
                    "tokens": list(output.tokens),
                    "logprobs": list(output.logprobs),
                    "finish_reason": output.finish_reason,
                }
                for output in outputs
            ]

        pairs = zip(prompts, seeds, strict=True)
        questions = [("generate", sha256_of_ids(prompt), args.key, seed) for prompt, seed in pairs]
        tokens = sum(map(len, prompts)) // max(1, len(prompts)) + args.tokens
        unit = generations_per_unit(self._device.type, 2 * self.parameters * tokens, self.batch_size)
        return self.response_cache.get_or_compute(questions, ask, unit=unit, on_progress=bar.update)

    def _text(self, tokens: Sequence[int], stop: Sequence[str]) -> str:
        """The text of an answer before the first stop string, without special tokens, as in lm-eval."""
        special = set(self._tokenizer.special_tokens.values())
        text = self._tokenizer.decode(token for token in tokens if token not in special)
        return postprocess_generated_text(text, list(stop), None)

    def _bar(self, total: int, what: str, disable: bool) -> Bar:
        return bar(total, what, disable or self._quiet)


def number_or_none(value: float) -> float | None:
    """None for NaN: stored answers are JSON, which has no NaN."""
    return None if math.isnan(value) else value


def without_number(requests: Sequence[Instance], values: Sequence[float]) -> set[tuple[str, int]]:
    """The (task, doc_id) of the requests whose value is NaN."""
    pairs = zip(requests, values, strict=True)
    return {(str(request.task_name), int(request.doc_id or 0)) for request, value in pairs if math.isnan(value)}


def _finite(answer: Mapping[str, Any]) -> bool:
    """Whether an answer's logits were finite. Answers of earlier versions have NaN as log-probabilities instead."""
    return answer["finish_reason"] != "not_finite" and all(map(math.isfinite, answer["logprobs"]))


def _encoded(tokenizer: Tokenizer, text: str, special: bool) -> tuple[int, ...]:
    return tuple(tokenizer.encode(text, allow_special=special))


def generation_args(arguments: dict[str, Any], max_length: int) -> GenerationArgs:
    """A task's generation arguments, normalized as lm-eval's models do. Raises: DataError as `GenerationArgs.check`."""
    GenerationArgs.check(arguments)
    return GenerationArgs.of(normalize_gen_kwargs(arguments, DEFAULT_TOKENS), max_length)


def backends() -> list[str]:
    """The names of lm-eval's models."""
    return sorted(set(model_registry.keys()) - {"workbench"})


def create_model(backend: str, arguments: Mapping[str, Any], **more: Any) -> Any:
    """Create one of lm-eval's own models.

    Raises: DataError if there is no model of this name, or it cannot be created with these arguments.
    """
    try:
        model_class = get_model(backend)
    except ValueError as error:
        raise DataError(f"lm-eval has no model {backend!r}; it has {', '.join(backends())}.") from error
    except ImportError as error:
        package = (error.name or str(error)).partition(".")[0]
        raise DataError(
            f"lm-eval's model {backend!r} needs the package {package}, which is not installed: pip install {package}"
        ) from error
    try:
        return model_class.create_from_arg_obj(
            dict(arguments), {key: value for key, value in more.items() if value is not None}
        )
    except Exception as error:  # of another library: any kind
        raise DataError(
            f"lm-eval's model {backend!r} cannot be created with {dict(arguments)}: {first_line(error)}"
        ) from error


def first_line(error: BaseException) -> str:
    """What another library's error says, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
