"""Scores for answers that were made elsewhere, by what a run of our own goes through: the task's filters and metrics,
the sandbox, the store, the same files.

Of the model nothing is known but what it answered. Prompts are not known either: a sample shows its question as the
task puts it without examples.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals import sandbox
from evals.results import runs
from evals.results.runs import Run
from evals.run import evaluate, external_answers, lm_eval_runner, run_records
from evals.run.external_answers import Answers, Place
from evals.run.settings import Settings
from evals.runtime.distributed import ALONE
from evals.store.store import Store
from evals.tasks import letter_extraction, presets
from workbench import provenance
from workbench.errors import DataError

if TYPE_CHECKING:
    from evals.sandbox import Engine, Limits
    from evals.tasks.code_metrics import CodeGrader
    from evals.tasks.registry import Suites

_KS = (1, 2, 5, 10, 20, 50, 100, 200)


def score(
    task: str,
    samples: Path,
    *,
    output: Path,
    data: Path | None = None,
    model_name: str | None = None,
    preset: str | None = None,
    chat: bool | None = None,
    missing_wrong: bool = False,
    limits: Limits | None = None,
    engine: Engine | None = None,
) -> Run:
    """Score a file of answers, or a folder of lm-eval's sample logs, and write results as a run does.

    A program's several answers are samples: pass@k for every k that the least sampled problem allows. Letters for
    multiple choice are taken from text by two of lm-eval's own rules, each a score: `get_response` of mmlu_generative,
    the first line less blanks, case and punctuation; `custom-extract` of mmlu_pro, the first letter after "answer is".
    Text is taken as it is: a task's stop strings are for whoever generates.

    preset, chat: whose way of asking the answers are to, see `presets`; by default that of the run whose sample log
    this is, else lm-eval's. missing_wrong: questions without an answer count as wrong; otherwise they are left out, and
    n says how many were answered. engine: what holds programs, by default the sandbox that is found here.
    Raises: DataError for an unknown task, missing data, or a line that is no answer; SandboxError without a sandbox.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
    started = time.time()
    paths = external_answers.files(samples)
    from evals.tasks import registry
    from evals.tasks.code_metrics import CodeGrader

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    judge = CodeGrader(engine=engine) if limits is None else CodeGrader(limits=limits, engine=engine)
    way = _way(paths)
    preset, chat = preset or way[0], way[1] if chat is None else chat
    loaded = registry.load(presets.tasks(preset, [task], chat=chat), root=data, judge=judge, preset=preset, chat=chat)
    code = bool(loaded.runs_code())
    if code and engine is None:
        sandbox.require()
    docs = {name: [dict(doc) for doc in one.eval_docs] for name, one in loaded.tasks.items()}
    read = (answer for path in paths for answer in external_answers.read(path))
    found = external_answers.match(
        read, docs, sampled=code, choices=lambda name, doc: _choices(loaded.tasks[name], doc)
    )
    if found.texts and not code:
        letter_extraction.ask_for_text(loaded)
    every = {(name, number) for name, rows in docs.items() for number in range(len(rows))}
    absent = every - found.places
    asked = every if missing_wrong else found.places
    least = min(map(len, found.texts.values()), default=1)
    judge.k = tuple(k for k in _KS if k <= least)
    given = Given(found, _only(loaded, asked), asked, least=least)
    about = {
        "file": str(samples.absolute()),
        "sha256": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths},
        "lines": found.lines,
        "questions": len(every),
        "answered": len(found.places),
        "missing": len(absent),
        "missing_counted": "as wrong" if missing_wrong else "not at all",
        "unknown": len(found.unknown),
        "duplicates": len(found.duplicates),
        "partial": bool(absent) and not missing_wrong,
    }
    _say(about, found)
    own = {
        "path": None,
        "checkpoint_sha256": None,
        "dtype": "unknown",
        "device": "unknown",
        "versions": provenance.versions("lm-eval", "datasets", "llama-workbench"),
        "tasks": [task],
        "preset": preset,
        "chat": chat,
        "answers": about,
        **run_records.hashes(given.loaded),
        "sandbox": run_records.sandboxed(judge, loaded),
    }
    name = model_name or samples.name.split(".")[0]
    settings = Settings(tasks=(task,), output=output, data=data, num_fewshot=0, preset=preset)
    return _written(given, judge, settings, name, own, started)


def _way(paths: Sequence[Path]) -> tuple[str, bool]:
    """The preset, and whether in a chat, of the run that these logs are of; lm-eval's for any other file.

    Raises: DataError if they are of runs that were asked in several ways.
    """
    results_files = (
        path for log in paths for path in log.parent.glob("results_*.json") if log.stem.endswith(path.stem[7:])
    )
    found = {(about.get("preset") or "lm-eval", bool(about.get("chat"))) for about in map(_provenance, results_files)}
    if len(found) > 1:
        raise DataError(f"{paths[0].parent} has logs of runs that were asked in several ways; give one run's log.")
    return found.pop() if found else ("lm-eval", False)


def _provenance(path: Path) -> dict[str, Any]:
    return runs.read_run(path).provenance


class Given:
    """Stands where lm-eval expects a model, and gives the answers of a file."""

    rank, world_size = 0, 1

    def __init__(self, found: Answers, loaded: Suites, asked: set[Place], *, least: int) -> None:
        self.found, self.loaded, self.least = found, loaded, least
        self.questions: dict[str, list[int]] = {name: [] for name in loaded.tasks}
        for name, number in sorted(asked):
            self.questions[name].append(number)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        last = []
        for request in requests:
            # Questions without an answer are as often wrong as the others were answered.
            texts = self.found.texts.get(self._place(request), [""] * self.least)
            # lm-eval adds one answer a request; the task's filter takes as many as there are.
            request.resps.extend(texts[:-1])
            last.append(texts[-1])
        return last

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        found = []
        for request in requests:
            choices = self.found.choices.get(self._place(request))
            if choices is None:
                # No choice was made: the right one is the least of all, so that it is no answer by chance.
                gold = self.loaded.tasks[request.task_name].doc_to_target(request.doc)
                choices = tuple((-1.0 if number == gold else 0.0, False) for number in range(request.idx + 1))
            found.append(choices[request.idx])
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        raise DataError("answers to a task that scores whole texts cannot be given in a file.")

    def replay(self, task: str, row: Mapping[str, Any]) -> dict[str, Any]:
        """Nothing: what was read and written elsewhere is not known as tokens."""
        return {}

    def _place(self, request: Any) -> Place:
        return request.task_name, self.questions[request.task_name][request.doc_id]


def _choices(task: Any, doc: Mapping[str, Any]) -> int:
    """How many choices a question has; 0 where it has none."""
    return len(task.doc_to_choice(doc)) if task.OUTPUT_TYPE == "multiple_choice" else 0


def _only(loaded: Suites, asked: set[Place]) -> Suites:
    """The tasks that have a question to score; a group is left out where a part of it has none."""
    names = {name for name, _ in asked}
    if names == set(loaded.tasks):
        return loaded
    return replace(loaded, tasks={name: loaded.tasks[name] for name in sorted(names)}, groups={}, group_map={})


def _written(
    given: Given, judge: CodeGrader, settings: Settings, name: str, own: dict[str, Any], started: float
) -> Run:
    """Score, write the files, and enter the run in the store."""
    from evals.tasks.code_metrics import Verdicts

    evaluate.check_place(settings.output)
    request = {"model": None, "device": "", "dtype": "", "settings": settings.to_dict(), "answers": own["answers"]}
    with Store.open(settings.output) as store:
        entered = store.register(request)
        writer = store.writer(entered)
        judge.kept = Verdicts(store, writer)
        try:
            lm: Any = given
            lm_eval_runner.prepare(given.loaded, settings)
            found = lm_eval_runner.ask(lm, given.loaded, settings, ALONE, questions=given.questions)
            logged = found.pop("samples")
            rows = {task: list(_samples(task, some, given, judge)) for task, some in logged.items()}
            for task, numbers in given.questions.items():
                found["n-samples"][task]["effective"] = len(numbers)
            found |= {
                "config": {"model": name, "model_args": {"answers": own["answers"]["file"]}},
                "n-shot": {},  # not known
                "date": started,
                "lm_eval_version": own["versions"].get("lm-eval"),
                "model_source": "answers",
                "model_name": name,
                "total_evaluation_time_seconds": str(time.time() - started),
                runs.PROVENANCE: {**own, "run": entered, "not_run": {}, "programs": run_records.programs(rows)},
            }
            finished = runs.write(settings.output, found, rows, at=started)
            metrics, verdicts = run_records.metrics(finished), run_records.verdicts(rows)
            store.finish(entered, results=finished.path.name, metrics=metrics, samples=verdicts)
        except BaseException as error:
            with suppress(DataError):  # the store may be what failed
                store.fail(entered, str(error) or type(error).__name__)
            raise
        finally:
            writer.close()
            judge.kept = None
    return finished


def _samples(task: str, rows: list[dict[str, Any]], given: Given, judge: CodeGrader) -> Iterator[dict[str, Any]]:
    lm: Any = given
    answered = given.found.places
    for row in run_records.samples(task, rows, lm, judge):
        yield row if (task, row["doc_id"]) in answered else {**row, "missing": True}


def _say(about: Mapping[str, Any], found: Answers) -> None:
    parts = [f"answers to {about['answered']} of {about['questions']} questions, from {about['lines']} lines"]
    if about["missing"]:
        parts.append(f"{about['missing']} without an answer count {about['missing_counted']}")
    for kind, where in (("unknown questions", found.unknown), ("further answers, not used", found.duplicates)):
        if where:
            more = f" and {len(where) - 3} more" if len(where) > 3 else ""
            parts.append(f"{len(where)} {kind} ({', '.join(where[:3])}{more})")
    print("; ".join(parts), file=sys.stderr)
