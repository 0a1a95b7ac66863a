"""Scores answers from another program like a run of our own: the task's filters and metrics, the sandbox, the store,
the same results files.

Only the answers are known, not the model and not its prompts: a sample shows the task's prompt without examples.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals import sandbox, stats
from evals.results import answer_counts, runs
from evals.results.runs import Run
from evals.run import evaluate, external_answers, fenced_programs, lm_eval_record, lm_eval_runner, run_records
from evals.run.external_answers import Answers, QuestionKey
from evals.run.settings import Settings
from evals.runtime.distributed import ALONE
from evals.runtime.printing import echo
from evals.sandbox.packages import PACKAGES
from evals.store.store import Store, store_errors
from evals.tasks import letter_extraction, presets
from workbench import provenance
from workbench.errors import DataError

if TYPE_CHECKING:
    from evals.sandbox import Engine, Limits
    from evals.tasks.code_metrics import CodeGrader
    from evals.tasks.registry import LoadedTasks


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

    Several answers to a code problem are samples: pass@k is computed for every k that the problem with the fewest
    samples allows. If an answer has a Markdown fence, a second score, `fenced`, is that of the programs inside the
    fences, see `fenced_programs`. For multiple choice, two of lm-eval's filters extract the letter from text, and each
    gives a score: `get_response` of mmlu_generative (the first line, ignoring blanks, case and punctuation) and
    `custom-extract` of mmlu_pro (the first letter after "answer is"); a third score, `letter-in-text`, is added if an
    answer is more than a letter, see `letter_extraction.letter`. Text is used as it is; a task's stop
    strings are not applied.

    preset, chat: the prompt preset of the answers, see `presets`; by default that of the run whose sample log this is,
    else lm-eval's. missing_wrong: questions without an answer count as wrong; otherwise they are left out, and n says
    how many were answered. engine: the sandbox for programs; by default the one that works here.
    Raises: DataError for an unknown task, missing data, or a line that is not an answer; SandboxError if no sandbox
    works here.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
    began = run_records.Began()
    paths = external_answers.files(samples)
    from evals.tasks import registry
    from evals.tasks.code_metrics import CodeGrader

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    grader = CodeGrader(engine=engine) if limits is None else CodeGrader(limits=limits, engine=engine)
    logged_preset = _logged_preset(paths)
    preset, chat = preset or logged_preset[0], logged_preset[1] if chat is None else chat
    loaded = registry.load(presets.tasks(preset, [task], chat=chat), root=data, grader=grader, preset=preset, chat=chat)
    code = bool(loaded.runs_code())
    if code and engine is None:
        sandbox.require()
    docs = {name: [dict(doc) for doc in loaded_task.eval_docs] for name, loaded_task in loaded.tasks.items()}
    lines = (answer for path in paths for answer in external_answers.read(path))
    answers = external_answers.match(
        lines, docs, sampled=code, choices=lambda name, doc: _choices(loaded.tasks[name], doc)
    )
    if code:
        fenced_programs.add_score(loaded, chain.from_iterable(answers.texts.values()))
    elif answers.texts:
        letter_extraction.use_letter_extraction(loaded, list(chain.from_iterable(answers.texts.values())))
    all_questions = {(name, number) for name, rows in docs.items() for number in range(len(rows))}
    unanswered = all_questions - answers.answered
    scored = all_questions if missing_wrong else answers.answered
    fewest_samples = min(map(len, answers.texts.values()), default=1)
    grader.k = stats.ks(fewest_samples)
    model = ExternalAnswersModel(answers, _select_tasks(loaded, scored), scored, samples_per_question=fewest_samples)
    about = {
        "file": str(samples.absolute()),
        "sha256": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths},
        "lines": answers.lines,
        "questions": len(all_questions),
        "answered": len(answers.answered),
        "missing": len(unanswered),
        "missing_counted": "as wrong" if missing_wrong else "not at all",
        "unknown": len(answers.unknown),
        "duplicates": len(answers.duplicates),
        "empty": len(answers.empty),
        "repaired": len(answers.repaired),
        "partial": bool(unanswered) and not missing_wrong,
    }
    _print_summary(about, answers)
    provenance_entry = {
        "path": None,
        "checkpoint_sha256": None,
        "dtype": "unknown",
        "device": "unknown",
        "versions": provenance.versions("lm-eval", "datasets", "llama-workbench", *(PACKAGES if code else ())),
        "tasks": [task],
        "preset": preset,
        "chat": chat,
        "answers": about,
        **run_records.data_hashes(model.loaded),
        "sandbox": run_records.sandbox_info(grader, loaded),
    }
    name = model_name or samples.name.split(".")[0]
    settings = Settings(tasks=(task,), output=output, data=data, num_fewshot=0, preset=preset)
    return _score_and_write(model, grader, settings, name, provenance_entry, began)


def _logged_preset(paths: Sequence[Path]) -> tuple[str, bool]:
    """The preset and chat setting of the run that wrote these logs; lm-eval's without chat for any other file.

    Raises: DataError if the logs are from runs with different presets or chat settings.
    """
    results_files = (
        path for log in paths for path in log.parent.glob("results_*.json") if log.stem.endswith(path.stem[7:])
    )
    presets_found = {
        (about.get("preset") or "lm-eval", bool(about.get("chat"))) for about in map(_provenance, results_files)
    }
    if len(presets_found) > 1:
        raise DataError(
            f"{paths[0].parent} has logs of runs with different presets or chat settings; give one run's log."
        )
    return presets_found.pop() if presets_found else ("lm-eval", False)


def _provenance(path: Path) -> dict[str, Any]:
    return runs.read_run(path).provenance


class ExternalAnswersModel:
    """A model for lm-eval that returns the answers of a file."""

    rank, world_size = 0, 1

    def __init__(
        self, answers: Answers, loaded: LoadedTasks, scored: set[QuestionKey], *, samples_per_question: int
    ) -> None:
        self.answers, self.loaded, self.samples_per_question = answers, loaded, samples_per_question
        self.not_finite: set[tuple[str, int]] = set()  # NaN in a file of answers is refused
        self.questions: dict[str, list[int]] = {name: [] for name in loaded.tasks}
        for name, number in sorted(scored):
            self.questions[name].append(number)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        last = []
        for request in requests:
            # A question without an answer gets as many wrong samples as the others have at least.
            texts = self.answers.texts.get(self._question(request), [""] * self.samples_per_question)
            # lm-eval adds one answer per request; the task's filter takes any number.
            request.resps.extend(texts[:-1])
            last.append(texts[-1])
        return last

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        results = []
        for request in requests:
            choices = self.answers.choices.get(self._question(request))
            if choices is None:
                # No choice was made: the correct one gets the lowest score, so that it is not right by chance.
                gold = self.loaded.tasks[request.task_name].doc_to_target(request.doc)
                choices = tuple((-1.0 if number == gold else 0.0, False) for number in range(request.idx + 1))
            results.append(choices[request.idx])
        return results

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        raise DataError(
            "a task that scores whole texts (loglikelihood_rolling) cannot be scored from a file of answers."
        )

    def replay(self, task: str, row: Mapping[str, Any]) -> dict[str, Any]:
        """Nothing: the token ids of answers from another program are not known."""
        return {}

    def _question(self, request: Any) -> QuestionKey:
        return request.task_name, self.questions[request.task_name][request.doc_id]


def _choices(task: Any, doc: Mapping[str, Any]) -> int:
    """How many choices a question has; 0 where it has none."""
    return len(task.doc_to_choice(doc)) if task.OUTPUT_TYPE == "multiple_choice" else 0


def _select_tasks(loaded: LoadedTasks, questions: set[QuestionKey]) -> LoadedTasks:
    """Only the tasks that have a question to score; groups are dropped if any task was dropped."""
    names = {name for name, _ in questions}
    if names == set(loaded.tasks):
        return loaded
    return replace(loaded, tasks={name: loaded.tasks[name] for name in sorted(names)}, groups={}, group_map={})


def _score_and_write(
    model: ExternalAnswersModel,
    grader: CodeGrader,
    settings: Settings,
    name: str,
    provenance_entry: dict[str, Any],
    began: run_records.Began,
) -> Run:
    """Score, write the results files, and register the run in the store."""
    from evals.tasks.code_metrics import VerdictCache

    evaluate.check_output(settings.output)
    request = {
        "model": None,
        "device": "",
        "dtype": "",
        "settings": settings.to_dict(),
        "answers": provenance_entry["answers"],
    }
    with Store.open(settings.output) as store:
        run_id = store.register(request)
        writer = store.writer(run_id)
        grader.verdict_cache = VerdictCache(store, writer)
        try:
            lm: Any = model
            lm_eval_runner.prepare(model.loaded, settings)
            results = lm_eval_runner.ask(lm, model.loaded, settings, ALONE, questions=model.questions)
            results.pop("failed")  # there is one task: if it fails, `ask` raises
            logged = results.pop("samples")
            results["task_hashes"] = lm_eval_record.task_hashes(logged)
            rows = {task: list(_samples(task, task_rows, model, grader)) for task, task_rows in logged.items()}
            for task, numbers in model.questions.items():
                unjudged = {row["doc_id"] for row in rows[task] if answer_counts.is_not_judged(row)}
                results["n-samples"][task]["effective"] = len(numbers) - len(unjudged)
            results |= {
                **lm_eval_record.general(None, settings),
                "config": {
                    **lm_eval_record.config(None, settings),
                    "model": name,
                    "model_args": {"answers": provenance_entry["answers"]["file"]},
                },
                "n-shot": {},  # not known
                "date": began.at,
                "lm_eval_version": provenance_entry["versions"].get("lm-eval"),
                "model_source": "answers",
                "model_name": name,
                "total_evaluation_time_seconds": str(began.seconds),
                runs.PROVENANCE: {
                    **provenance_entry,
                    "run": run_id,
                    "not_run": {},
                    "programs": run_records.program_counts(rows),
                    **answer_counts.of_samples(rows),
                },
            }
            with store_errors(settings.output, again="run the command again"):
                run = runs.write(settings.output, results, rows, at=began.at)
            metrics, verdicts = run_records.metrics(run), run_records.verdicts(rows)
            store.finish(run_id, results=run.path.name, metrics=metrics, samples=verdicts)
        except BaseException as error:
            with suppress(DataError):  # the store may be what failed
                store.fail(run_id, str(error) or type(error).__name__)
            raise
        finally:
            writer.close()
            grader.verdict_cache = None
    return run


def _samples(
    task: str, rows: list[dict[str, Any]], model: ExternalAnswersModel, grader: CodeGrader
) -> Iterator[dict[str, Any]]:
    lm: Any = model
    answered = model.answers.answered
    for row in run_records.samples(task, rows, lm, grader):
        yield row if (task, row["doc_id"]) in answered else {**row, "missing": True}


def _print_summary(about: Mapping[str, Any], answers: Answers) -> None:
    parts = [f"answers to {about['answered']} of {about['questions']} questions, in {about['lines']} lines"]
    if about["missing"]:
        effect = "count as wrong" if about["missing_counted"] == "as wrong" else "are not counted"
        parts.append(f"{about['missing']} without an answer {effect}")
    kinds = (
        ("unknown questions", answers.unknown),
        ("duplicate answers, not used", answers.duplicates),
        ("lines with neither text nor numbers, taken as no answer", list(answers.empty.values())),
        ("lines with broken characters, replaced by U+FFFD", answers.repaired),
    )
    for kind, where in kinds:
        if where:
            more = f" and {len(where) - 3} more" if len(where) > 3 else ""
            parts.append(f"{len(where)} {kind} ({', '.join(where[:3])}{more})")
    echo("; ".join(parts), err=True)
