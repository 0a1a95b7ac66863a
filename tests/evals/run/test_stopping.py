"""A run that is stopped, or whose store comes from elsewhere: what is said, and what is not done unasked."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="lm_eval is not installed")

import workbench as wb
from dashboard.jobs import jobs
from evals.results import runs
from evals.results.runs import list_runs
from evals.run import run_records
from evals.run.evaluate import evaluate, resume
from evals.run.settings import Settings
from evals.store.store import Store, unfinished
from workbench.checkpoint.convert import convert
from workbench.cli import main
from workbench.errors import DataError

EVIL = 'open("WRITTEN", "w").close()\n'


def stopped(folder: Path, **settings: Any) -> str:
    """A store with a stopped run of these settings."""
    request = Settings(tasks=("demo_mmlu",), output=folder, limit=2, **settings).to_dict()
    with Store.open(folder) as store:
        run = store.register({"model": "", "device": "auto", "dtype": "auto", "settings": request})
        store.fail(run, "stopped", interrupted=True)
    return run


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    """A checkpoint folder whose Python file leaves a mark."""
    folder = tmp_path / "evil"
    folder.mkdir()
    auto = {"model_type": "evil", "auto_map": {"AutoConfig": "configuration_evil.EvilConfig"}}
    (folder / "config.json").write_text(json.dumps(auto))
    (folder / "configuration_evil.py").write_text(EVIL.replace("WRITTEN", str(tmp_path / "WRITTEN")))
    return folder


@pytest.mark.parametrize("said", [(), ("--backend", "hf"), ("--backend", "hf", "--model_args", "pretrained=/other")])
def test_a_store_does_not_choose_code(
    tmp_path: Path, evil: Path, capsys: pytest.CaptureFixture[str], said: tuple[str, ...]
) -> None:
    arguments = {"pretrained": str(evil), "trust_remote_code": True}
    run = stopped(tmp_path / "out", backend="hf", model_args=arguments)
    assert main(["eval", "resume", run, "--results", str(tmp_path / "out"), *said]) == 2
    printed = capsys.readouterr().err
    assert "trust_remote_code=True" in printed and "--backend hf --model_args ARGUMENTS" in printed
    assert not (tmp_path / "WRITTEN").exists()
    (left,), _ = unfinished(tmp_path / "out")
    with pytest.raises(DataError, match="continue it with `workbench eval resume` in a terminal"):
        jobs.resume(tmp_path / "out", left)
    assert main(["eval", "list", "--results", str(tmp_path / "out")]) == 0
    assert "if you trust the backend 'hf' with pretrained=" in capsys.readouterr().out


def test_what_the_user_says_again_is_done(tmp_path: Path) -> None:
    run = stopped(tmp_path, backend="dummy", model_args={"seed": 3})
    with pytest.raises(DataError, match="uses the backend 'dummy' with seed=3"):
        resume(tmp_path, run, backend="dummy")
    assert resume(tmp_path, run, backend="dummy", model_args={"seed": 3}).provenance["backend"] == "dummy"


@pytest.mark.parametrize(
    "settings", ["x", {"tasks": 3}, {"a": 1}, {"tasks": [], "interventions": 5}, {"include_path": 5}, None]
)
def test_settings_that_cannot_be_read_are_one_line(tmp_path: Path, settings: Any) -> None:
    with Store.open(tmp_path) as store:
        run = store.register({"model": "demo", "device": "auto", "dtype": "auto", "settings": settings})
        store.fail(run, "stopped", interrupted=True)
    with pytest.raises(DataError, match="cannot be (read|continued)"):
        resume(tmp_path, run)
    assert main(["eval", "list", "--results", str(tmp_path)]) == 0


def test_a_full_disk_under_the_results_is_told_as_under_the_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(runs.os, "replace", full)
    settings = Settings(tasks=("demo_mmlu",), output=tmp_path, limit=2)
    with pytest.raises(DataError, match="the disk of .* is full. All answers so far are saved"):
        evaluate("demo", settings)
    assert not list(tmp_path.glob("*.tmp"))
    monkeypatch.undo()
    with Store.open(tmp_path) as store:
        (row,) = store.runs()
    assert resume(tmp_path, row.id).scores


def test_a_run_of_another_host_can_be_dropped_and_says_how(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Store.open(tmp_path) as store, monkeypatch.context() as elsewhere:
        elsewhere.setattr(socket, "gethostname", lambda: "container-1")
        run = store.register({"model": "demo", "settings": {"tasks": ["demo_mmlu"]}})
    assert main(["eval", "list", "--results", str(tmp_path)]) == 0
    advice = f"recorded as running on container-1; if it has ended there, continue with `workbench eval resume {run}"
    assert advice in capsys.readouterr().out
    (left,), _ = unfinished(tmp_path)
    with pytest.raises(DataError, match="recorded as running on container-1; if it has ended there"):
        jobs.resume(tmp_path, left)
    drop = ["eval", "gc", "--drop", run, "--results", str(tmp_path)]
    assert main(drop) == 2 and "add --force" in capsys.readouterr().err
    assert main([*drop, "--force"]) == 0
    assert unfinished(tmp_path) == ([], [])


def test_force_does_not_drop_a_run_of_this_host(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Store.open(tmp_path) as store:
        run = store.register({"settings": {}})
        assert main(["eval", "gc", "--drop", run, "--force", "--results", str(tmp_path)]) == 2
    assert "still running" in capsys.readouterr().err


def test_a_continued_run_says_that_its_checkpoint_is_another_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, generate = tmp_path / "model", wb.generate
    convert("demo", folder, layout="meta")
    settings = Settings(tasks=("demo_mmlu", "demo_gsm8k"), output=tmp_path / "out", limit=2)
    fresh = evaluate(folder, replace(settings, output=tmp_path / "fresh"))

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no memory left")

    def stop(limit: int) -> str:
        monkeypatch.setattr(wb, "generate", broken)
        with pytest.raises(RuntimeError):
            evaluate(folder, replace(settings, limit=limit))
        monkeypatch.setattr(wb, "generate", generate)
        with Store.open(tmp_path / "out") as store:
            return store.runs()[0].id

    same = stop(2)
    capsys.readouterr()
    assert resume(tmp_path / "out", same).provenance["checkpoint_sha256"] == fresh.provenance["checkpoint_sha256"]
    assert "is not the checkpoint" not in capsys.readouterr().err
    changed = stop(3)
    params = json.loads((folder / "params.json").read_text())
    (folder / "params.json").write_text(json.dumps({**params, "norm_eps": 0.01}))
    resumed = resume(tmp_path / "out", changed)
    assert f"is not the checkpoint that run {changed} began with" in capsys.readouterr().err
    assert resumed.provenance["checkpoint_sha256"] != fresh.provenance["checkpoint_sha256"]


def test_a_clock_that_is_set_back_does_not_make_a_run_end_before_it_began(monkeypatch: pytest.MonkeyPatch) -> None:
    began = run_records.Began()
    monkeypatch.setattr(time, "time", lambda: began.at - 86_400)
    assert 0 <= began.seconds < 60


SLOW = """
import sys, time
import workbench as wb
from evals.models import units
units._FEWEST_GENERATIONS = units._MOST_GENERATIONS = 2
generate = wb.generate
def slowly(*given, **options):
    print("unit", flush=True)
    time.sleep(0.3)
    return generate(*given, **options)
wb.generate = slowly
from workbench.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_run_with_the_command_that_continues_it(tmp_path: Path, number: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, "eval", "run", "--tasks=demo_gsm8k", "--limit=60", f"--output={tmp_path}"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    for _ in range(3):
        assert process.stdout.readline() == "unit\n"
    process.send_signal(number)
    printed = process.communicate(timeout=60)
    assert process.returncode == {signal.SIGTERM: 143, signal.SIGINT: 130}[signal.Signals(number)], printed
    (left,), _ = unfinished(tmp_path)
    assert f"Run {left.run.id} was stopped. Its answers are saved; continue with" in printed[1]
    assert left.run.status == "interrupted" and left.answers >= 4 and not list_runs(tmp_path)
