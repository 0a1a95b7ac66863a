"""Generating answers to GSM8K with our engine and with lm-eval's own backend, with a fixed length for each answer.

Random weights do not stop by themselves. In both, the end token becomes the most likely one where a question's answer
is as long as its reference solution, put as a chain of thought, so that lengths are real and the same for both. Only
that is changed: prompts, stop strings, batches and forwards are each program's own.
"""

from __future__ import annotations

import importlib
import json
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer as FastTokenizer
from torch import Tensor
from transformers import LlamaForCausalLM, LogitsProcessor, LogitsProcessorList, PreTrainedTokenizerFast

import workbench as wb
from benchmarks.timing import Timing, interleaved
from evals.models.workbench_lm import WorkbenchLM
from evals.tasks import registry
from evals.tasks.code_metrics import CodeGrader
from workbench.inference import prefix_tree
from workbench.text.tokenizer import Tokenizer

LIKELY = 1e4  # a logit above all others
MOST = 256  # tokens of an answer: lm-eval's own limit

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Asked:
    """Questions as requests of lm-eval, and how long each prompt's answer is, its end token included."""

    requests: list[Instance]
    lengths: dict[Ids, int]

    @property
    def minimum(self) -> int:
        """Tokens that must go through a model: each distinct beginning once, and every generated token but the last."""
        distinct = prefix_tree.grow([prefix_tree.key(ids) for ids in self.lengths], min_tokens_saved=1, pack=False)
        return distinct.minimum + sum(n - 1 for n in self.lengths.values())


def questions(lm: WorkbenchLM, data: Path, n: int) -> Asked:
    """The first `n` of GSM8K's test questions under lm-eval's eight fixed examples."""
    task = registry.load(("gsm8k_cot",), root=data, grader=CodeGrader()).tasks["gsm8k_cot"]
    task.set_config("num_fewshot", 8)
    task.set_fewshot_seed(1234)
    task.build_all_requests(limit=n, rank=0, world_size=1)
    lengths = {
        tuple(lm.tok_encode(request.args[0])): answer_length(lm, request.doc["answer"]) for request in task.instances
    }
    assert len(lengths) == len(task.instances), "a question comes twice"
    return Asked(task.instances, lengths)


def answer_length(lm: WorkbenchLM, solution: str) -> int:
    """Tokens of a reference solution written as the examples write theirs, and the end token."""
    return min(MOST, len(lm.tok_encode(chain_of_thought(solution), add_special_tokens=False)) + 1)


def chain_of_thought(solution: str) -> str:
    """Without the calculator's notes, on one line, the result in a sentence."""
    steps, _, result = re.sub(r"<<.*?>>", "", solution).partition("\n#### ")
    return f" {' '.join(steps.split())} The answer is {result.strip()}."


@dataclass(frozen=True)
class Answered:
    """Seconds of each round, tokens of each forward (padding included), and how many texts are the same."""

    lengths: list[int]
    minimum: int
    batch_size: int
    timing: Timing
    ours: list[int]
    theirs: list[int]
    equal: int


def compare(
    reference: LlamaForCausalLM, model: wb.Transformer, data: Path, n: int, batch_sizes: Sequence[int], rounds: int
) -> Answered:
    """Both programs over the same questions in turn; HFLM at the size that was fastest in one run of each."""
    assert model.tokenizer is not None
    lm = WorkbenchLM(model, progress=False)
    requested = questions(lm, data, n)
    hflm = EndingHFLM(reference, model.tokenizer, requested.lengths)

    made: dict[Ids, int] = {}

    def ours() -> list[str]:
        with ending(requested.lengths, lm.eot_token_id, made):
            return lm.generate_until(requested.requests, disable_tqdm=True)

    def theirs(size: int) -> list[str]:
        hflm.batch_size_per_gpu = size
        return hflm.generate_until(requested.requests, disable_tqdm=True)

    with counting(reference) as our_tokens:
        texts = ours()
    assert made == requested.lengths, "our answers do not end where they are to end"
    trials = {}
    for size in batch_sizes:
        hflm.made.clear()
        begin = time.perf_counter()
        with counting(reference) as their_tokens:
            other = theirs(size)
        trials[size] = time.perf_counter() - begin, their_tokens, other
        assert hflm.made == requested.lengths, "HFLM's answers do not end where they are to end"
    best = min(trials, key=trials.__getitem__)
    _, their_tokens, other = trials[best]
    runs: dict[str, Any] = {"ours": ours, "HFLM": lambda: theirs(best)}
    timing = interleaved(runs, rounds=rounds, device=str(model.device), warm_up=0)  # both have run
    equal = sum(mine == text for mine, text in zip(texts, other, strict=True))
    return Answered(list(requested.lengths.values()), requested.minimum, best, timing, our_tokens, their_tokens, equal)


@contextmanager
def ending(lengths: dict[Ids, int], end: int, made: dict[Ids, int]) -> Iterator[None]:
    """Our engine draws the end token when an answer has its length; `made` records the length of each answer."""
    module = importlib.import_module("workbench.inference.generate")  # the package's name for it is the function's
    draw = module.draw

    def drawn(sampling: Any, rows: Sequence[Any], logits: Tensor) -> None:
        for i, row in enumerate(rows):
            if len(row.tokens) + 1 == lengths[row.prompt]:
                logits[i, end] = LIKELY
        draw(sampling, rows, logits)
        made.update((row.prompt, len(row.tokens)) for row in rows if row.finish_reason is not None)

    with mock.patch.object(module, "draw", drawn):
        yield


class EndingHFLM(HFLM):
    """lm-eval's backend, which draws the end token when an answer has its length."""

    def __init__(self, reference: LlamaForCausalLM, tokenizer: Tokenizer, lengths: dict[Ids, int]) -> None:
        super().__init__(pretrained=reference, tokenizer=_fast(tokenizer), batch_size=1)
        reference.generation_config.eos_token_id = sorted(tokenizer.stop_ids)
        self.lengths = lengths
        self.made: dict[Ids, int] = {}  # tokens of each prompt's answer

    def _model_generate(self, context: Tensor, **arguments: Any) -> Tensor:
        real = arguments["attention_mask"].bool()
        prompts = [tuple(row[mask].tolist()) for row, mask in zip(context, real, strict=True)]
        wanted = torch.tensor([self.lengths[prompt] for prompt in prompts], device=context.device)
        ends = LogitsProcessorList([_Ends(context.shape[1], wanted, self.eot_token_id)])
        whole = super()._model_generate(context, logits_processor=ends, **arguments)
        for prompt, row in zip(prompts, whole[:, context.shape[1] :].tolist(), strict=True):
            self.made[prompt] = row.index(self.eot_token_id) + 1
        return whole


class _Ends(LogitsProcessor):
    def __init__(self, width: int, lengths: Tensor, end: int) -> None:
        self._width, self._lengths, self._end = width, lengths, end

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores[self._lengths == input_ids.shape[1] + 1 - self._width, self._end] = LIKELY
        return scores


def _fast(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    named = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>", "pad_token": "<|end_of_text|>"}
    fast = FastTokenizer.from_str(json.dumps(tokenizer.to_hf_json()))
    return PreTrainedTokenizerFast(tokenizer_object=fast, **named)


@contextmanager
def counting(reference: LlamaForCausalLM) -> Iterator[list[int]]:
    """Tokens of every forward while the block lasts: our model's, and Hugging Face's."""
    seen: list[int] = []
    hidden = wb.Transformer.hidden

    def noted(self: wb.Transformer, tokens: Tensor, cache: Any = None) -> Tensor:
        seen.append(tokens.numel())
        return hidden(self, tokens, cache)

    hook = reference.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((args[0] if args else kwargs["input_ids"]).numel()), with_kwargs=True
    )
    try:
        with mock.patch.object(wb.Transformer, "hidden", noted):
            yield seen
    finally:
        hook.remove()
