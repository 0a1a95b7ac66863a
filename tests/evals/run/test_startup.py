"""A run on an embedded suite loads what it needs and no more: lm-eval's whole index alone takes seconds."""

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="lm_eval is not installed")

PROGRAM = """
import json, sys
from lm_eval.tasks import TaskManager
begun, made = [], TaskManager.__init__
def recorded(self, *given, **options):
    begun.append(options.get("include_defaults", True))
    made(self, *given, **options)
TaskManager.__init__ = recorded
from workbench.cli import main
code = main(sys.argv[1:])
heavy = {"transformers", "evaluate", "accelerate", "vllm", "sklearn", "nltk", "plotly", "streamlit", "fairscale"}
print(json.dumps([code, begun, sorted(heavy & set(sys.modules))]))
"""


def test_a_run_on_an_embedded_suite_begins_at_once(checkpoint: Path, tmp_path: Path) -> None:
    arguments = ["eval", "run", "--model", str(checkpoint), "--tasks", "demo_mmlu,demo_gsm8k", "--limit", "1"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments, "--output", str(tmp_path / "out")],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [0, [False], []]
    # Of processor time, the run included: 2.8 s on a fast machine, 5 to 8.6 s on a slow one.
    assert seconds < 15


def test_a_template_is_compiled_once(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from jinja2 import Environment

    from evals.run.evaluate import evaluate
    from evals.run.settings import Settings

    compiled: list[str] = []
    compile_ = Environment.compile

    def counted(self: Environment, source: Any, *given: Any, **options: Any) -> Any:
        compiled.append(str(source))
        return compile_(self, source, *given, **options)

    monkeypatch.setattr(Environment, "compile", counted)
    prompts = []
    for _ in range(2):
        run = evaluate(checkpoint, Settings(tasks=("demo_mmlu",), output=tmp_path / "out", limit=5, num_fewshot=2))
        prompts.append(list(run.samples("demo_mmlu").prompt))
    assert len(compiled) <= 4, "ten questions with two examples each have more than thirty texts"
    assert prompts[0] == prompts[1] and len(set(prompts[0])) == 5
