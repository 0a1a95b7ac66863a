"""The user's own lm-eval tasks in YAML files: as lm-eval runs them, with store and resume, only if they are named."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="lm_eval is not installed")

import lm_eval
import yaml
from lm_eval.tasks import TaskManager

from evals.results import answer_counts
from evals.results.runs import Run, read_run
from evals.run.evaluate import evaluate, resume
from evals.run.settings import Settings
from evals.store import foreign_code
from evals.store.store import Store
from workbench.cli import main
from workbench.errors import DataError

LIMIT = 12
CODE = """
def shout(doc):
    return f"Question: {doc['question'].upper()}\\nAnswer:"


def only_digits(responses, docs):
    return [["".join(c for c in answer if c.isdigit()) for answer in answers] for answers in responses]


def process(doc, results):
    (logprob, greedy), = results
    return {"logprob": logprob, "is_greedy": float(greedy)}


def longest(items):
    return max(items)


def docs(dataset):
    return dataset.filter(lambda doc: doc["number"] % 2 == 0)
"""
FILES = {
    "part.inc": """
dataset_path: json
dataset_kwargs: {data_files: {test: "{data}", dev: "{data}"}}
test_split: test
""",
    "own_choice.yaml": """
include: part.inc
task: own_choice
output_type: multiple_choice
doc_to_text: !function code.shout
doc_to_choice: "{{choices}}"
doc_to_target: "{{number % 3}}"
fewshot_split: dev
fewshot_config: {sampler: first_n}
num_fewshot: 2
metric_list:
  - {metric: acc}
  - {metric: acc_norm}
""",
    "own_text.yaml": """
include: part.inc
task: own_text
tag: own_tag
output_type: generate_until
doc_to_text: "{{question}} ="
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 8}
filter_list:
  - {name: raw, filter: [{function: take_first}]}
  - {name: digits, filter: [{function: custom, filter_fn: !function code.only_digits}, {function: take_first}]}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true, ignore_case: true}
""",
    "own_likelihood.yaml": """
include: part.inc
task: own_likelihood
tag: own_tag
output_type: loglikelihood
process_docs: !function code.docs
doc_to_text: "{{question}}"
doc_to_target: " {{answer}}"
process_results: !function code.process
metric_list:
  - {metric: logprob, aggregation: mean, higher_is_better: true}
  - {metric: is_greedy, aggregation: !function code.longest, higher_is_better: true}
""",
    "own_rolling.yaml": """
include: part.inc
task: own_rolling
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list:
  - {metric: word_perplexity}
  - {metric: bits_per_byte}
""",
}
REQUESTED = ("own_text", "own_likelihood", "own_rolling", "own_group")
# A program that kills itself when the model is called for the second time.
KILLED = """
import os, signal, sys
import workbench as wb
calls = []
def killing(function):
    def call(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return call
wb.score, wb.generate = killing(wb.score), killing(wb.generate)
from workbench.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own tasks")
    rows: list[dict[str, Any]] = [
        {"number": n, "question": f"{n} plus {n + 2}", "answer": str(2 * n + 2), "choices": [" a", " bb", " ccc"]}
        for n in range(30)
    ]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "code.py").write_text(CODE)
    for name, text in FILES.items():
        (folder / name).write_text(text.replace("{data}", str(folder / "data.jsonl")))
    inside = {
        **yaml.safe_load((folder / "part.inc").read_text()),
        "task": "own_inside",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": 1,
        "metric_list": [{"metric": "acc"}],
    }
    average = [{"metric": "acc", "weight_by_size": True}]
    group = {"group": "own_group", "task": ["own_choice", inside], "aggregate_metric_list": average}
    (folder / "own_group.yaml").write_text(yaml.safe_dump(group))
    return folder


@pytest.fixture(scope="module")
def demo_hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "hf"
    assert main(["convert", "demo", str(folder), "--layout", "hf"]) == 0
    return folder


@pytest.fixture(scope="module")
def ours(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    output = tmp_path_factory.mktemp("ours")
    settings = Settings(tasks=REQUESTED, output=output, limit=LIMIT, include_path=(folder,))
    return evaluate("demo", settings, device="cpu", dtype="float32")


@pytest.mark.slow
def test_every_kind_of_task_scores_as_on_lm_evals_own_backend(folder: Path, demo_hf: Path, ours: Run) -> None:
    theirs: dict[str, dict[str, Any]] = {"results": {}, "samples": {}}
    # lm-eval's backend puts two begin tokens before a rolling text if it adds them itself.
    for tasks, adds_begin in ((["own_text", "own_likelihood", "own_group"], True), (["own_rolling"], False)):
        results = lm_eval.simple_evaluate(
            "hf",
            model_args={
                "pretrained": str(demo_hf),
                "dtype": "float32",
                "device": "cpu",
                "add_bos_token": adds_begin,
            },
            tasks=tasks,
            task_manager=TaskManager(include_defaults=False, include_path=str(folder)),
            limit=LIMIT,
            fewshot_random_seed=1234,
        )
        assert results is not None
        theirs["results"] |= results["results"]
        theirs["samples"] |= results["samples"]
    assert set(theirs["results"]) == set(ours.data["results"])
    for name, scores in theirs["results"].items():
        assert set(scores) == set(ours.data["results"][name])
        for key, value in scores.items():
            mine = ours.data["results"][name][key]
            close = pytest.approx(value, abs=1e-4, rel=1e-4) if isinstance(value, float) else value
            assert mine == close, (name, key)
    for name, rows in theirs["samples"].items():
        stamp = ours.path.name.removeprefix("results_").removesuffix(".json")
        lines = (ours.path.parent / f"samples_{name}_{stamp}.jsonl").read_text().splitlines()
        mine = {(row["doc_id"], row["filter"]): row for row in map(json.loads, lines)}
        assert len(mine) == len(rows)
        for row in rows:
            same = mine[row["doc_id"], row["filter"]]
            assert same["prompt_hash"] == row["prompt_hash"] and same["target"] == str(row["target"])
            for metric in row["metrics"]:
                assert same[metric] == pytest.approx(row[metric], abs=1e-3), (name, row["doc_id"], metric)


def test_every_kind_has_scores_and_intervals(ours: Run) -> None:
    found = {(score.task, score.metric, score.filter): score for score in ours.scores}
    assert {name for name, _, _ in found} == {
        "own_choice", "own_text", "own_likelihood", "own_rolling", "own_group", "own_group::own_inside"
    }  # fmt: skip
    assert ("own_text", "exact_match", "digits") in found and ("own_text", "exact_match", "raw") in found
    for key in (
        ("own_choice", "acc", "none"),
        ("own_text", "exact_match", "raw"),
        ("own_likelihood", "logprob", "none"),
    ):
        low, high = found[key].low, found[key].high
        assert low is not None and high is not None and low - 1e-9 <= found[key].value <= high + 1e-9
    notes = answer_counts.notes(ours)
    for name, metrics in (("own_likelihood", "is_greedy"), ("own_rolling", "word_perplexity; bits_per_byte")):
        assert f"{name}: no interval for {metrics}: not a mean over questions" in "\n".join(notes)
    assert set(ours.provenance["definition_sha256"]) >= {"own_choice", "own_text"}


@pytest.mark.parametrize("where", ["file", "folder", "tag"])
def test_a_file_a_folder_and_a_tag_are_taken(where: str, folder: Path, tmp_path: Path) -> None:
    arguments = ["--model", "demo", "--device", "cpu", "--limit", "2", "--output", str(tmp_path)]
    tasks = {"file": str(folder / "own_group.yaml"), "folder": str(folder), "tag": "own_tag"}[where]
    include = ["--include_path", str(folder)] if where == "tag" else []
    assert main(["eval", "run", "--tasks", tasks, *include, *arguments]) == 0
    (path,) = tmp_path.glob("results_*.json")
    expected = {
        "file": {"own_group", "own_choice", "own_group::own_inside"},
        "folder": {"own_choice", "own_group::own_inside", *REQUESTED},
        "tag": {"own_text", "own_likelihood"},
    }[where]
    assert {score.task for score in read_run(path).scores} == expected


def test_a_killed_run_is_resumed_only_with_its_definitions_named(folder: Path, ours: Run, tmp_path: Path) -> None:
    arguments = ["eval", "run", "--model", "demo", "--device", "cpu", "--dtype", "float32", "--limit", str(LIMIT)]
    arguments += ["--tasks", ",".join(REQUESTED), "--include_path", str(folder), "--output", str(tmp_path)]
    killed = subprocess.run([sys.executable, "-c", KILLED, *arguments], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    with Store.open(tmp_path, create=False) as store:
        (stored,) = store.runs()
    assert stored.status != "finished"
    with pytest.raises(DataError, match=rf"can run any code.*--include_path '?{folder}"):
        resume(tmp_path, stored.id)
    with pytest.raises(DataError, match="can run any code"):
        resume(tmp_path, stored.id, include_path=[folder / "own_text.yaml", tmp_path])
    run = resume(tmp_path, stored.id, include_path=[folder])
    assert run.data["results"] == ours.data["results"]


BROKEN = {
    "no yaml": ("task: [", "not a readable task definition"),
    "a list": ("- task", "not a readable task definition"),
    "nothing": ("dataset_path: json\n", "defines no task"),
    "no dataset": ("task: t\noutput_type: generate_until\ndoc_to_text: x\ndoc_to_target: y\n", "names no dataset_path"),
    "no module": ("task: t\ndoc_to_text: !function absent.f\n", "t .*absent"),
    "a cycle": ("include: x.yaml\ntask: t\n", "nclude cycle"),
    "a wrong key": ("task: t\ndataset_path: json\nno_such_key: 1\n", "t cannot be loaded: TypeError"),
    "an unknown member": ("group: g\ntask: [absent_task]\n", "g has the task 'absent_task', which is not defined"),
    "a wrong name": ("task: ../../t\ndataset_path: json\n", "is not valid"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_definition_that_cannot_be_used_is_named_in_one_line(kind: str, tmp_path: Path) -> None:
    text, message = BROKEN[kind]
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(DataError, match=message) as error:
        evaluate("demo", Settings(tasks=(str(tmp_path / "x.yaml"),), output=tmp_path / "out"))
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_a_template_that_fails_is_said_before_the_model_is_loaded(folder: Path, tmp_path: Path) -> None:
    text = (folder / "own_text.yaml").read_text().replace("part.inc", str(folder / "part.inc"))
    (tmp_path / "code.py").write_text(CODE)
    (tmp_path / "x.yaml").write_text(text.replace("{{question}} =", "{{no_such_field}}"))
    with pytest.raises(DataError, match="own_text cannot be loaded: UndefinedError: 'no_such_field' is undefined"):
        evaluate("no such model", Settings(tasks=(str(tmp_path / "x.yaml"),), output=tmp_path / "out"))


def test_settings_of_older_runs_have_no_definitions() -> None:
    settings = Settings(tasks=("demo_mmlu",), output=Path("x"))
    assert "include_path" not in settings.to_dict() and settings.definitions == ()
    again = Settings.from_dict(json.loads(json.dumps(Settings(("t",), Path("x"), include_path=(Path("y"),)).to_dict())))
    assert again.include_path == (Path("y").absolute(),)


def test_a_name_of_lm_evals_is_replaced_and_a_broken_file_is_said(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (folder / "own_text.yaml").read_text().replace("part.inc", str(folder / "part.inc"))
    (tmp_path / "code.py").write_text(CODE)
    (tmp_path / "x.yaml").write_text(text.replace("task: own_text", "task: demo_mmlu").replace("tag: own_tag\n", ""))
    (tmp_path / "y.yaml").write_text("task: [")
    settings = Settings(tasks=("demo_mmlu",), output=tmp_path / "out", limit=2, include_path=(tmp_path,))
    run = evaluate("demo", settings, device="cpu")
    assert {score.filter for score in run.scores} == {"raw", "digits"}
    printed = capsys.readouterr().err
    assert printed.count(f"demo_mmlu: the definition in {tmp_path} is used instead of lm-eval's.") == 1
    assert printed.count(f"not read: {tmp_path / 'y.yaml'} is not a readable task definition") == 1
    with pytest.raises(DataError, match="has no task definitions"):
        evaluate("demo", Settings(tasks=("demo_mmlu",), output=tmp_path / "out", include_path=(tmp_path / "out",)))


def test_a_stored_run_says_which_definitions_it_names(folder: Path) -> None:
    settings = Settings(tasks=("own_text", str(folder / "own_text.yaml")), output=Path("x"), include_path=(folder,))
    request = json.loads(json.dumps({"model": "demo", "settings": settings.to_dict()}))
    assert foreign_code.summary(request) == f"the task definitions {folder}, {folder / 'own_text.yaml'}"
    expected = (
        f" --include_path '{folder}' --include_path '{folder / 'own_text.yaml'}'"  # the folder's name has a space
    )
    assert foreign_code.options(request) == expected
    plain = {"model": "demo", "settings": Settings(tasks=("demo_mmlu", "a/b.jsonl"), output=Path("x")).to_dict()}
    assert foreign_code.summary(plain) == foreign_code.options(plain) == ""
