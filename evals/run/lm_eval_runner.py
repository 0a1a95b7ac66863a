"""The only module that calls lm-eval's evaluator, which sends the tasks' questions to the model and scores the answers.

Does not know where questions come from, or where results are written.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from evals.models.generation_args import override
from evals.run import chosen_questions, failures, not_finite
from evals.runtime.printing import echo
from workbench.errors import DataError

if TYPE_CHECKING:
    from evals.models.lm_eval_backend import Backend
    from evals.models.workbench_lm import WorkbenchLM
    from evals.run.settings import Settings
    from evals.runtime.distributed import Team
    from evals.tasks.registry import LoadedTasks


def prepare(loaded: LoadedTasks, settings: Settings) -> None:
    """Set the questions, few-shot examples, seed and generation arguments of every task.

    Raises: DataError for more examples than a task has, or a question that it does not have.
    """
    chosen_questions.ask_only(loaded, settings.questions)
    if settings.predict_only:
        chosen_questions.without_scores(loaded)
    for name, task in loaded.tasks.items():
        fixed = task.get_config("num_fewshot")
        if settings.num_fewshot is None:
            task.set_config("num_fewshot", fixed or 0)
        elif fixed == 0 and settings.num_fewshot:
            # lm-eval's rule: a task with num_fewshot 0 has no examples.
            echo(f"{name} has no few-shot examples; --num_fewshot is not applied to it.", err=True)
        else:
            task.set_config("num_fewshot", settings.num_fewshot)
        shots, available = task.get_config("num_fewshot"), _examples(task)
        if shots > available:
            raise DataError(f"{name} has only {available} examples for a prompt; --num_fewshot {shots} is too many.")
        task.set_fewshot_seed(settings.seed)
        if settings.gen_kwargs and task.OUTPUT_TYPE == "generate_until":
            arguments = override(task.get_config("generation_kwargs") or {}, settings.gen_kwargs)
            task.set_config("generation_kwargs", arguments)


def _examples(task: Any) -> int:
    """How many examples a prompt can have. If they come from the test split, the question itself is not one of them."""
    if not hasattr(task, "sampler"):
        return sys.maxsize
    same = getattr(task.fewshot_cfg, "split", None) == task.config.test_split
    return max(0, len(task.sampler.df) - same)


def ask(
    lm: WorkbenchLM | Backend,
    loaded: LoadedTasks,
    settings: Settings,
    team: Team,
    *,
    questions: Mapping[str, list[int]] | None = None,
) -> dict[str, Any]:
    """lm-eval's results for these tasks; call `prepare` first. questions: evaluate only these, by task.

    A task whose answers cannot be scored does not stop the others: it has no results, and `failed` has the reason.
    Raises: DataError if that is so for all of them.
    """
    from lm_eval import evaluator_utils
    from lm_eval import utils as lm_eval_utils
    from lm_eval.api import task as lm_eval_task
    from lm_eval.evaluator import evaluate as lm_eval_evaluate

    # lm-eval draws a progress bar for each task's prompts, which take a moment; MMLU has 57 tasks.
    lm_eval_task.tqdm = partial(tqdm, disable=True)
    _compile_once(lm_eval_utils.env)
    if not team.is_main:
        for task in loaded.tasks.values():
            # Only the main process needs filters: they would run the generated programs in every process.
            task.apply_filters = lambda: None
    lm.not_finite.clear()
    for name, task in loaded.tasks.items():
        not_finite.leave_out(name, task, lm.not_finite)
    with failures.collected(loaded.tasks, evaluator_utils) as failed:
        # lm-eval sees one process: with several it would sample different few-shot examples in each.
        results = lm_eval_evaluate(
            lm=lm,
            task_dict=loaded.as_dict(),
            limit=settings.limit,
            samples=None if questions is None else dict(questions),
            log_samples=True,
            apply_chat_template=settings.chat_template,
            fewshot_as_multiturn=settings.chats_in_turns,
            system_instruction=settings.system,
            confirm_run_unsafe_code=True,
        )
    assert results is not None, "lm-eval returns None only for rank > 0"
    for name in settings.questions.keys() & results["n-samples"].keys():
        results["n-samples"][name]["effective"] = len(set(settings.questions[name]))
    if settings.predict_only:  # lm-eval counts questions that have a metric
        for name, rows in results["samples"].items():
            results["n-samples"][name]["effective"] = len({row["doc_id"] for row in rows})
    if failed.keys() >= loaded.tasks.keys():
        raise DataError(" ".join(f"{name}: {why}" for name, why in failed.items()))
    return {**failures.without(dict(results), failed), "failed": failed}


def _compile_once(env: Any) -> None:
    """Cache lm-eval's compiled templates. It compiles one again for every question and example; with five examples that
    takes longer than a small model's answer."""
    if not hasattr(env.from_string, "cache_info"):
        env.from_string = lru_cache(maxsize=4096)(env.from_string)
