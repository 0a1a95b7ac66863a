"""A second score for programs inside Markdown fences, which lm-eval's filters take as part of the program.

lm-eval's own score stays as it is. Works on task objects; knows nothing of models.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evals.tasks.registry import LoadedTasks

NAME = "fenced"
"""The name of the filter, and so of the score."""
# An opening fence has a language, or a closing fence after it: an answer that continues a prompt's fence starts with
# the closing one.
_FENCE = re.compile(r"^[ \t]*(`{3,}|~{3,})[ \t]*([\w+-]*)[ \t]*\r?$", re.M)
_INDENT = "    "


def has_fence(text: str) -> bool:
    return bool(blocks(text))


def blocks(text: str) -> list[str]:
    """The contents of the fenced blocks of a Markdown text, with their indentation; one that is cut ends with it."""
    found: list[str] = []
    fences = list(_FENCE.finditer(text))
    while fences:
        opening = fences.pop(0)
        closing = next((fence for fence in fences if fence[1] == opening[1] and not fence[2]), None)
        if closing is None and not opening[2]:
            continue
        found.append(text[opening.end() + 1 : len(text) if closing is None else closing.start()])
        while fences and closing is not None and fences[0].start() <= closing.start():
            fences.pop(0)
        if closing is None:
            break
    return found


def program(text: str, entry_point: str | None = None) -> str:
    """The program of an answer: the first block that defines `entry_point`, else the first with a definition, else the
    first; the answer itself if it has no block.

    The body of the function alone, without its indentation, is indented: it continues the prompt.
    """
    parts = blocks(text)
    if not parts:
        return text
    name = re.escape(entry_point) if entry_point else r"\w+"
    defines = re.compile(rf"^\s*(?:async\s+)?def\s+{name}\b", re.M)
    chosen = next((part for part in parts if defines.search(part)), None)
    if chosen is None:
        chosen = next((part for part in parts if re.search(r"^\s*(?:async\s+)?def\s", part, re.M)), parts[0])
        first = next((line for line in chosen.splitlines() if line.strip()), "")
        if entry_point and first and not first[0].isspace():
            return textwrap.indent(chosen, _INDENT)
    return chosen


def add_score(loaded: LoadedTasks, answers: Iterable[str]) -> None:
    """Give the tasks whose answers are programs a second filter, if an answer has a fenced block."""
    if not any(map(has_fence, answers)):
        return
    for name in loaded.runs_code():
        task: Any = loaded.tasks[name]
        (ensemble,) = task._filters
        (make,) = ensemble.filters
        fenced = partial(make.func, filter_fn=_fenced(make.keywords["filter_fn"]))
        task._filters.append(replace(ensemble, name=NAME, filters=[fenced]))


def _fenced(judge: Callable[..., Any]) -> Callable[..., Any]:
    def judge_fenced(resps: Sequence[Sequence[str]], docs: Sequence[dict[str, Any]]) -> Any:
        programs = [
            [program(text, doc.get("entry_point")) for text in texts] for texts, doc in zip(resps, docs, strict=True)
        ]
        return judge(programs, docs)

    return judge_fenced
