"""The one place where lm-eval is let loose: it puts the tasks' questions to the model, and counts what is right.

Knows nothing of where questions come from, or where answers go.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from workbench.errors import DataError

if TYPE_CHECKING:
    from evals.models.lm_eval_backend import Backend
    from evals.models.workbench_lm import WorkbenchLM
    from evals.run.settings import Settings
    from evals.runtime.distributed import Team
    from evals.tasks.registry import Suites


def prepare(loaded: Suites, settings: Settings) -> None:
    """Set every task to the examples, seed and generation arguments that were asked for.

    Raises: DataError for more examples than a task has.
    """
    for name, task in loaded.tasks.items():
        fixed = task.get_config("num_fewshot")
        if settings.num_fewshot is None:
            task.set_config("num_fewshot", fixed or 0)
        elif fixed == 0 and settings.num_fewshot:
            # lm-eval's rule: a task that says 0 has no examples to give.
            print(f"{name} has no few-shot examples; --num_fewshot is not applied to it.", file=sys.stderr)
        else:
            task.set_config("num_fewshot", settings.num_fewshot)
        shots, there = task.get_config("num_fewshot"), _examples(task)
        if shots > there:
            raise DataError(f"{name} has {there} examples for a question's prompt; --num_fewshot {shots} are too many.")
        task.set_fewshot_seed(settings.seed)
        if settings.gen_kwargs and task.OUTPUT_TYPE == "generate_until":
            task.set_config("generation_kwargs", dict(settings.gen_kwargs), update=True)


def _examples(task: Any) -> int:
    """How many examples a prompt can have; where they are questions of the test itself, its own is none of them."""
    if not hasattr(task, "sampler"):
        return sys.maxsize
    same = getattr(task.fewshot_cfg, "split", None) == task.config.test_split
    return max(0, len(task.sampler.df) - same)


def ask(
    lm: WorkbenchLM | Backend,
    loaded: Suites,
    settings: Settings,
    team: Team,
    *,
    questions: Mapping[str, list[int]] | None = None,
) -> dict[str, Any]:
    """What lm-eval finds by asking, of each task these questions alone if they are given; see `prepare`."""
    from lm_eval import utils as lm_eval_utils
    from lm_eval.api import task as lm_eval_task
    from lm_eval.evaluator import evaluate as lm_eval_evaluate

    # Its bar is for one task's prompts, which take a moment, and MMLU has 57 tasks.
    lm_eval_task.tqdm = partial(tqdm, disable=True)
    _compile_once(lm_eval_utils.env)
    if not team.is_main:
        for task in loaded.tasks.values():
            # Answers are all that the others owe; filters would run the generated programs in every process.
            task.apply_filters = lambda: None
    # To lm-eval this is one process: it would draw other examples for the questions of each.
    found = lm_eval_evaluate(
        lm=lm,
        task_dict=loaded.as_dict(),
        limit=settings.limit,
        samples=None if questions is None else dict(questions),
        log_samples=True,
        apply_chat_template=settings.chat,
        fewshot_as_multiturn=settings.chats_in_turns,
        system_instruction=settings.system,
        confirm_run_unsafe_code=True,
    )
    assert found is not None, "only a process of a higher rank gets none"
    return dict(found)


def _compile_once(env: Any) -> None:
    """Let lm-eval keep its compiled templates: it compiles each anew for every question and every example, which for
    five examples takes longer than a small model's answer."""
    if not hasattr(env.from_string, "cache_info"):
        env.from_string = lru_cache(maxsize=4096)(env.from_string)
