"""Scores for generated programs, in the form lm-eval asks of a metric, with the sandbox doing the running.

Takes the place of lm-eval's `code_eval`, which fetches its metric from a hub and is no sandbox. Knows
nothing of models.
"""

from __future__ import annotations

import ast
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from evals import sandbox, stats
from evals.runtime.progress import bar
from evals.sandbox import Engine, Limits, Program, ProgramRun, source
from evals.store.store import Store, Writer, cache_key

Docs = Sequence[dict[str, Any]]
Programs = list[list[str]]
Filter = Callable[[list[list[str]], Docs], Programs]


@cache
def functions(module: Path) -> dict[str, Any]:
    """What a module of lm-eval's defines, less what it does on import: fetching `code_eval`, and running with it."""
    kept = [
        node
        for node in ast.parse(module.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef)
        or (isinstance(node, ast.Import) and all(alias.name != "evaluate" for alias in node.names))
        or (isinstance(node, ast.ImportFrom) and node.module != "evaluate")
    ]
    names: dict[str, Any] = {}
    exec(compile(ast.Module(kept, []), str(module), "exec"), names)
    return names


def resolved(config: Any) -> Any:
    """A definition with its `!function`s, which lm-eval's index has as PATH/MODULE.NAME, as functions."""
    if isinstance(config, dict):
        return {key: resolved(value) for key, value in config.items()}
    if isinstance(config, list):
        return [resolved(value) for value in config]
    if isinstance(config, str) and config.startswith("/") and "\n" not in config:
        stem, _, name = config.rpartition(".")
        if stem and Path(f"{stem}.py").is_file():
            return functions(Path(f"{stem}.py"))[name]
    return config


RULES = 1
"""Raised whenever the sandbox would judge the same program otherwise."""

# What became of these does not depend on how busy the machine was.
_LASTING = ("passed", "failed", "forbidden", "no code")
_KEPT_TOGETHER = 64

SECONDS = 10.0
"""What a program of a benchmark may take, where nothing else is said."""


class Verdicts:
    """What became of programs, kept in a store; lm-eval copies the definitions that hold it, and all share this one."""

    def __init__(self, store: Store, writer: Writer) -> None:
        self._store, self._writer = store, writer

    def __deepcopy__(self, memo: Any) -> Verdicts:
        return self

    def read(self, names: Sequence[bytes]) -> dict[bytes, Any]:
        return self._store.read(names)[0]

    def add(self, found: Mapping[bytes, Any]) -> None:
        self._writer.add(found)


@dataclass
class CodeGrader:
    """Runs the programs of one evaluation, several at a time, and remembers what became of each.

    All of them run after the last was generated, so model and programs never share the machine. The same program is
    run once, and not again where `kept` says what became of it. `engine` None is the sandbox that is found here,
    `workers` None what suits the cores; `k` stands in for the task's own numbers of samples.
    """

    limits: Limits = Limits(seconds=SECONDS)
    engine: Engine | None = None
    workers: int | None = None
    k: tuple[int, ...] = ()
    kept: Verdicts | None = None
    runs: dict[tuple[str, str], ProgramRun] = field(default_factory=dict, repr=False)

    def judging(self, join: Filter | None, tests_of: Callable[[dict[str, Any]], str]) -> Filter:
        """lm-eval's filter that makes programs of answers, which are run when it has made the last of them.

        join: the task's own filter; None where an answer is a program as it is. tests_of: its tests for a question.
        """

        def run_all(resps: list[list[str]], docs: Docs) -> Programs:
            programs = [list(resp) for resp in resps] if join is None else join(resps, docs)
            tests = [tests_of(doc) for doc in docs]
            jobs = {(code, test): doc for codes, test, doc in zip(programs, tests, docs, strict=True) for code in codes}
            self._run({key: _program(*key, doc) for key, doc in jobs.items() if key not in self.runs})
            return programs

        return run_all

    def _run(self, programs: Mapping[tuple[str, str], Program]) -> None:
        """Find out what becomes of these programs, from what is kept where it can be."""
        if not programs:
            return
        about = ("program", RULES, platform.python_version(), repr(self.engine or sandbox.require()))
        names = {key: cache_key(*about, self.limits.to_dict(), asdict(one)) for key, one in programs.items()}
        known = self.kept.read(list(names.values())) if self.kept else {}
        self.runs |= {key: ProgramRun(**known[name]) for key, name in names.items() if name in known}
        left = [key for key in programs if key not in self.runs]
        new: dict[bytes, Any] = {}
        with bar(len(programs), "running programs", disable=self.kept is None) as progress:
            progress.update(len(programs) - len(left))
            given = (programs[key] for key in left)
            for place, run in sandbox.run_all(given, limits=self.limits, engine=self.engine, workers=self.workers):
                self.runs[left[place]] = run
                if run.verdict in _LASTING:
                    new[names[left[place]]] = asdict(run)
                if self.kept and len(new) >= _KEPT_TOGETHER:
                    self.kept.add(new)
                    new = {}
                progress.update()
        if self.kept:
            self.kept.add(new)

    def pass_at_k(self, references: list[str], predictions: list[list[str]], k: list[int]) -> dict[str, float]:
        """lm-eval's metric: the unbiased estimate over each problem's programs, which were run before."""
        counts = [
            (len(codes), sum(self.runs[code, tests].passed for code in codes))
            for codes, tests in zip(predictions, references, strict=True)
        ]
        return {f"pass@{n}": sum(stats.pass_at_k(*count, n) for count in counts) / len(counts) for n in self.k or k}


def _program(code: str, tests: str, doc: dict[str, Any]) -> Program:
    """A program and its tests: HumanEval's beside the given part of the problem, MBPP's beside what it imports."""
    if "entry_point" in doc:
        return Program(code, tests, entry_point=doc["entry_point"], context=doc.get("prompt", ""))
    return Program(code, tests, context=source.imports(code))
