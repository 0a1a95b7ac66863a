"""A run on an embedded suite loads what it needs and no more: lm-eval's whole index alone takes seconds."""

import json
import subprocess
import sys
import time
from pathlib import Path

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
    asked = ["eval", "run", "--model", str(checkpoint), "--tasks", "demo_mmlu,demo_gsm8k", "--limit", "1"]
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *asked, "--output", str(tmp_path / "out")],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    seconds = time.perf_counter() - started
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [0, [False], []]
    # 2.3 s on two quiet cores, the run included; the bound is for a busy machine.
    assert seconds < 30
