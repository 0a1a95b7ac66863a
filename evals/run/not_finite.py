"""Questions whose logits were not finite: they get no score, and the others of their task are scored as always.

Does not know how a model answers: it lists these questions itself, as (task, doc_id).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any


class NotFiniteAnswer(str):
    """Stands for the answers to a question whose logits were not finite."""


ANSWER = NotFiniteAnswer("not finite")


def leave_out(name: str, task: Any, questions: Collection[tuple[str, int]]) -> None:
    """Make an lm-eval task give no metrics for these questions; `questions` is read after the model has answered."""
    apply_filters, process_results = task.apply_filters, task.process_results

    def filters() -> None:
        apply_filters()
        for instance in task.instances:
            if (name, instance.doc_id) in questions:
                instance.filtered_resps = dict.fromkeys(instance.filtered_resps, ANSWER)

    def metrics(doc: Any, results: Any) -> dict[str, Any]:
        if any(isinstance(result, NotFiniteAnswer) for result in results):
            return {}
        return dict(process_results(doc, results))

    task.apply_filters, task.process_results = filters, metrics
