"""pass@k for generated programs as an lm-eval metric; the programs run in the sandbox.

Replaces lm-eval's `code_eval`, which downloads its metric from the hub and has no sandbox. Knows nothing of models.
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
from evals.sandbox import Engine, Limits, Program, ProgramRun, packages
from evals.sandbox.limits import BENCHMARK_SECONDS
from evals.store.store import Store, Writer, cache_key

Docs = Sequence[dict[str, Any]]
Programs = list[list[str]]
Filter = Callable[[list[list[str]], Docs], Programs]


@cache
def functions(module: Path) -> dict[str, Any]:
    """The functions of one of lm-eval's modules, without its import-time code, which downloads and runs `code_eval`."""
    nodes = [
        node
        for node in ast.parse(module.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef)
        or (isinstance(node, ast.Import) and all(alias.name != "evaluate" for alias in node.names))
        or (isinstance(node, ast.ImportFrom) and node.module != "evaluate")
    ]
    names: dict[str, Any] = {}
    exec(compile(ast.Module(nodes, []), str(module), "exec"), names)
    return names


def resolve_functions(config: Any) -> Any:
    """A task definition with its `!function` entries, which are PATH/MODULE.NAME in lm-eval's index, as functions."""
    if isinstance(config, dict):
        return {key: resolve_functions(value) for key, value in config.items()}
    if isinstance(config, list):
        return [resolve_functions(value) for value in config]
    if isinstance(config, str) and config.startswith("/") and "\n" not in config:
        stem, _, name = config.rpartition(".")
        if stem and Path(f"{stem}.py").is_file():
            return functions(Path(f"{stem}.py"))[name]
    return config


RULES = 2
"""Increased whenever the sandbox would give the same program a different verdict."""

# Verdicts that do not depend on the load of the machine; only these are stored.
_REPRODUCIBLE = ("passed", "failed", "forbidden", "no code")
_VERDICTS_PER_WRITE = 64


class VerdictCache:
    """Verdicts of programs in a store. lm-eval deep-copies the task definitions that refer to it: all share one."""

    def __init__(self, store: Store, writer: Writer) -> None:
        self._store, self._writer = store, writer

    def __deepcopy__(self, memo: Any) -> VerdictCache:
        return self

    def read(self, names: Sequence[bytes]) -> dict[bytes, Any]:
        return self._store.read(names)[0]

    def add(self, verdicts: Mapping[bytes, Any]) -> None:
        self._writer.add(verdicts)


@dataclass
class CodeGrader:
    """Runs the programs of one evaluation in parallel, and stores the result of each.

    All programs run after the last was generated, so they do not compete with the model. Each distinct program runs
    once, or not at all if `verdict_cache` has its result. `engine` None uses the sandbox that works here, `workers`
    None depends on the number of cores; `k` replaces the task's own values of k.
    """

    limits: Limits = Limits(seconds=BENCHMARK_SECONDS)
    engine: Engine | None = None
    workers: int | None = None
    k: tuple[int, ...] = ()
    verdict_cache: VerdictCache | None = None
    runs: dict[tuple[str, str], ProgramRun] = field(default_factory=dict, repr=False)

    def program_filter(self, join: Filter | None, tests_of: Callable[[dict[str, Any]], str]) -> Filter:
        """A filter for lm-eval that turns answers into programs and then runs all of them.

        join: the task's own filter; None if an answer is already a program. tests_of: the tests of a question.
        """

        def run_all(resps: list[list[str]], docs: Docs) -> Programs:
            programs = [list(resp) for resp in resps] if join is None else join(resps, docs)
            tests = [tests_of(doc) for doc in docs]
            jobs = {(code, test): doc for codes, test, doc in zip(programs, tests, docs, strict=True) for code in codes}
            self._run({key: _program(*key, doc) for key, doc in jobs.items() if key not in self.runs})
            return programs

        return run_all

    def _run(self, programs: Mapping[tuple[str, str], Program]) -> None:
        """Get the results of these programs, from the verdict cache where possible."""
        if not programs:
            return
        engine = repr(self.engine or sandbox.require())
        environment = ("program", RULES, platform.python_version(), packages.in_words(), engine)
        keys = {
            key: cache_key(*environment, self.limits.to_dict(), asdict(program)) for key, program in programs.items()
        }
        stored = self.verdict_cache.read(list(keys.values())) if self.verdict_cache else {}
        self.runs |= {key: ProgramRun(**stored[name]) for key, name in keys.items() if name in stored}
        to_run = [key for key in programs if key not in self.runs]
        new: dict[bytes, Any] = {}
        with bar(len(programs), "running programs", disable=self.verdict_cache is None) as progress:
            progress.update(len(programs) - len(to_run))
            missing = (programs[key] for key in to_run)
            for index, run in sandbox.run_all(missing, limits=self.limits, engine=self.engine, workers=self.workers):
                self.runs[to_run[index]] = run
                if run.verdict in _REPRODUCIBLE:
                    new[keys[to_run[index]]] = asdict(run)
                if self.verdict_cache and len(new) >= _VERDICTS_PER_WRITE:
                    self.verdict_cache.add(new)
                    new = {}
                progress.update()
        self.runs |= {key: self.runs.pop(key) for key in to_run}  # in their order, not as they finished
        if self.verdict_cache:
            self.verdict_cache.add(new)

    def pass_at_k(self, references: list[str], predictions: list[list[str]], k: list[int]) -> dict[str, float]:
        """lm-eval's metric: the unbiased estimate from each problem's programs, which have already run.

        Empty, so that the problem has no score, if its tests could not run.
        """
        of_problem = zip(predictions, references, strict=True)
        if any(self.runs[code, tests].verdict == "not judged" for codes, tests in of_problem for code in codes):
            return {}
        counts = [
            (len(codes), sum(self.runs[code, tests].passed for code in codes))
            for codes, tests in zip(predictions, references, strict=True)
        ]
        return {f"pass@{n}": sum(stats.pass_at_k(*count, n) for count in counts) / len(counts) for n in self.k or k}


def _program(code: str, tests: str, doc: dict[str, Any]) -> Program:
    """A program and its tests. The tests run with the problem's prompt (HumanEval) or the program's imports (MBPP)."""
    if "entry_point" in doc:
        return Program(code, tests, entry_point=doc["entry_point"], context=doc.get("prompt", ""))
    return Program(code, tests, share_imports=True)
