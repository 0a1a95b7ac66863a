"""Jobs: starting, watching, killing, resuming, with and without the server that started them."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("lm_eval", reason="lm_eval is not installed")

from dashboard.jobs import eval_request, jobs, supervisor
from dashboard.jobs.eval_request import EvalRequest
from dashboard.jobs.jobs import Job
from evals.cli import run
from evals.results.runs import list_runs
from evals.runtime.process_start import process_start_time
from evals.store.store import Store, unfinished
from workbench.errors import DataError, WorkbenchError

# Stands in for the evaluation in tests of the process handling; the value of the first option selects its behaviour.
STAND_IN = """
import os, signal, sys, time
model = sys.argv[3].partition("=")[2]
print("\\rone\\rtwo\\r", "last \\u202e words", flush=True)
if model == "deaf":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    print("deaf", flush=True)
if model == "orphans" and os.fork() == 0:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    print("child", os.getpid(), flush=True)
    time.sleep(60)
if model.isdigit():
    sys.exit(int(model))
print("ready", flush=True)
time.sleep(60)
"""


@pytest.fixture
def results(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "results"
    for job in jobs.jobs(tmp_path / "results")[0]:
        if job.active:
            jobs.kill(job)
            until(lambda job=job: not jobs.find(job.folder.parents[1], job.id).active)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eval_request, "WORKBENCH", (sys.executable, "-P", "-c", STAND_IN))
    monkeypatch.setattr(EvalRequest, "settings", lambda self: {**vars(self), "changes": ""})


def until(true: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.03)


def ended(results: Path, name: str) -> Job:
    until(lambda: not jobs.find(results, name).active)
    return jobs.find(results, name)


def said(results: Path, name: str, text: str) -> Job:
    """Wait until a line of the job's log starts with this text."""
    until(lambda: any(line.startswith(text) for line in jobs.tail(jobs.find(results, name)).splitlines()))
    until(lambda: jobs.find(results, name).status != jobs.STARTING)
    return jobs.find(results, name)


def life(model: str, name: str = "job") -> EvalRequest:
    return EvalRequest(name, model, ("demo_mmlu",))


# --- the evaluation itself ------------------------------------------------------------------------------------


def test_a_real_run_is_killed_seen_dead_resumed_and_finished(results: Path, checkpoint: Path) -> None:
    request, notes = EvalRequest(
        "real", str(checkpoint), ("demo_mmlu", "demo_gsm8k"), limit=40, ablate="L0H1"
    ).checked()
    assert notes == []
    job = jobs.start(results, request)
    assert job.status in (jobs.STARTING, jobs.RUNNING) and job.settings["changes"] == "ablate L0H1"
    # The first unit of questions is answered, and the next one is not.
    until(lambda: (now := jobs.find(results, "real")).progress is not None and now.progress.what == "generating")
    now = jobs.find(results, "real")
    assert now.progress is not None and now.progress.total == 40 and now.child is not None
    os.kill(now.child, signal.SIGKILL)
    dead = ended(results, "real")
    assert (dead.status, dead.code) == (jobs.FAILED, -9) and "killed by SIGKILL" in dead.status_text
    left = jobs.unfinished_run(dead)
    assert left is not None and left.run.status == "interrupted"
    assert left.answers in (160, 192)  # four choices each, and the first unit of generated answers if it was quick
    again = jobs.resume(results, left)
    assert (again.id, again.attempt) == ("real", 2)
    done = ended(results, "real")
    assert (done.status, done.code) == (jobs.FINISHED, 0), jobs.tail(done)
    assert jobs.unfinished_run(done) is None and jobs.orphaned_runs(results) == ([], [])
    (run,) = list_runs(results)
    assert run.path.parent == done.output and sorted(run.tasks) == ["demo_gsm8k", "demo_mmlu"]
    text = jobs.log(done).decode()
    assert text.count("$ ") == 2 and "--ablate=L0H1" in text and "eval resume" in text


def test_a_run_of_the_terminal_is_taken_up_as_a_job(results: Path, checkpoint: Path) -> None:
    command = [sys.executable, "-P", "-m", "workbench", "eval", "run", f"--model={checkpoint}", "--tasks=demo_gsm8k"]
    alone = subprocess.Popen(
        [*command, "--limit=15", f"--output={results / 'mine'}"], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    until(lambda: any(unfinished.run.status == "running" for unfinished in jobs.orphaned_runs(results)[0]))
    (orphan,) = jobs.orphaned_runs(results)[0]
    with pytest.raises(DataError, match="is still running"):
        jobs.resume(results, orphan)
    alone.kill()
    alone.wait()
    (orphan,) = jobs.orphaned_runs(results)[0]
    assert orphan.run.status == "interrupted"
    job = jobs.resume(results, orphan)
    assert job.id == orphan.run.id and job.settings["tasks"] == ["demo_gsm8k"] and job.settings["limit"] == 15
    assert jobs.orphaned_runs(results)[0] == []  # it is a job's now
    assert ended(results, job.id).status == jobs.FINISHED


# --- process handling -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "status", "words"),
    [
        (0, jobs.FINISHED, "The job finished (exit code 0)."),
        (run.EXIT_PARTIAL, jobs.FINISHED, "without the tasks that cannot run here"),
        (2, jobs.FAILED, "The job failed with exit code 2."),
    ],
)
def test_the_exit_code_tells_how_it_ended(results: Path, stand_in: None, code: int, status: str, words: str) -> None:
    jobs.start(results, life(str(code)))
    job = ended(results, "job")
    assert (job.status, job.code) == (status, code) and words in job.status_text
    assert job.seconds is not None and 0 <= job.seconds < 30


def test_a_cancelled_job_ends_by_its_interrupt(results: Path, stand_in: None) -> None:
    jobs.start(results, life("slow"))
    jobs.cancel(said(results, "job", "ready"))
    job = ended(results, "job")
    assert job.status == jobs.CANCELLED and job.code in (130, -signal.SIGINT)
    assert "KeyboardInterrupt" in jobs.tail(job) and "The job was cancelled" in job.status_text


def test_a_cancel_before_the_start_is_heard(results: Path, stand_in: None) -> None:
    jobs.cancel(jobs.start(results, life("slow")))
    assert ended(results, "job").status == jobs.CANCELLED


def test_what_does_not_listen_is_killed_with_all_it_started(results: Path, stand_in: None) -> None:
    jobs.start(results, life("orphans"))
    job = said(results, "job", "child ")
    orphan = next(int(line.split()[1]) for line in jobs.tail(job).splitlines() if line.startswith("child "))
    since = process_start_time(orphan)
    assert since is not None
    jobs.cancel(said(results, "job", "ready"))
    assert ended(results, "job").status == jobs.CANCELLED
    until(lambda: process_start_time(orphan) != since)

    jobs.start(results, life("deaf", "other"))
    jobs.cancel(said(results, "other", "ready"))
    time.sleep(0.3)
    stopping = jobs.find(results, "other")
    assert stopping.status == jobs.STOPPING
    jobs.kill(stopping)
    assert (ended(results, "other").status, ended(results, "other").code) == (jobs.CANCELLED, -9)


def test_the_grace_ends_by_itself(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from dashboard.jobs import supervisor; supervisor.KILL_AFTER_S = 1; "
    )
    program += "supervisor.watch(Path(sys.argv[1]))"
    stand_in = [sys.executable, "-P", "-c", STAND_IN, "eval", "run", "--model=deaf"]
    supervisor.write(tmp_path / supervisor.JOB, {"command": stand_in, "attempt": 1, "environment": {}})
    watching = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], start_new_session=True)
    until(lambda: (tmp_path / supervisor.LOG).exists() and "\nready\n" in (tmp_path / supervisor.LOG).read_text())
    watching.send_signal(signal.SIGINT)
    assert watching.wait(timeout=20) == 0
    assert json.loads((tmp_path / supervisor.STATE).read_text())["code"] == -9


def test_it_outlives_the_server_and_its_exit_code_is_known(results: Path) -> None:
    """The server ignores interrupts, like one that a script starts in the background; it starts a job and is killed."""
    program = f"""
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
from pathlib import Path
from dashboard.jobs import eval_request, jobs
eval_request.WORKBENCH = (sys.executable, "-P", "-c", {STAND_IN!r})
eval_request.EvalRequest.settings = lambda self: {{**vars(self), "changes": ""}}
jobs.start(Path({str(results)!r}), eval_request.EvalRequest("job", "slow", ("demo_mmlu",)))
os.kill(os.getpid(), signal.SIGKILL)
"""
    server = subprocess.run([sys.executable, "-c", program], check=False, timeout=60)
    assert server.returncode == -9
    job = said(results, "job", "ready")
    assert job.status == jobs.RUNNING
    jobs.cancel(job)
    until(lambda: not jobs.find(results, "job").active, 8)  # by the interrupt, not by the later kill
    job = jobs.find(results, "job")
    assert job.status == jobs.CANCELLED and job.code in (130, -signal.SIGINT)


def test_a_run_that_finishes_without_its_supervisor_has_finished(results: Path, stand_in: None) -> None:
    job = jobs.start(results, life("wait"))
    job = said(results, "job", "ready")
    with Store.open(job.output) as store:
        run = store.register({"settings": {}})
        assert job.pid is not None and job.child is not None
        os.kill(job.pid, signal.SIGKILL)
        os.killpg(job.child, signal.SIGKILL)
        assert ended(results, "job").status == jobs.FAILED
        store.finish(run, results="results_x.json")
        assert jobs.find(results, "job").status == jobs.FAILED, "there is no results file"
        (job.output / "results_x.json").write_text("{}")
    finished = jobs.find(results, "job")
    assert finished.status == jobs.FINISHED and finished.seconds is not None
    assert "finished" in finished.status_text and "exit code is not known" in finished.status_text


@pytest.mark.parametrize("created", [1e300, float("nan"), "x", None, [], 10**400])
def test_a_record_with_a_time_that_is_none_is_named(results: Path, stand_in: None, created: object) -> None:
    jobs.start(results, life("0", "good"))
    ended(results, "good")
    record = json.loads((results / jobs.FOLDER / "good" / supervisor.JOB).read_text())
    (results / jobs.FOLDER / "bad").mkdir()
    (results / jobs.FOLDER / "bad" / supervisor.JOB).write_text(json.dumps(record | {"created": created}))
    (results / jobs.FOLDER / "deep").mkdir()
    (results / jobs.FOLDER / "deep" / supervisor.JOB).write_text("[" * 100_000)
    known, problems = jobs.jobs(results)
    assert [job.id for job in known] == ["good"] and len(problems) == 2


def test_a_killed_supervisor_leaves_a_job_that_can_still_be_stopped(results: Path, stand_in: None) -> None:
    jobs.start(results, life("slow"))
    job = said(results, "job", "ready")
    assert job.pid is not None
    os.kill(job.pid, signal.SIGKILL)
    until(lambda: process_start_time(job.pid) is None)
    assert jobs.find(results, "job").status == jobs.RUNNING
    jobs.cancel(jobs.find(results, "job"))
    job = ended(results, "job")
    assert job.code is None and "ended without an exit code" in job.status_text


def test_another_process_with_its_number_is_not_the_job(results: Path, stand_in: None) -> None:
    jobs.start(results, life("0"))
    folder = ended(results, "job").folder
    state = json.loads((folder / supervisor.STATE).read_text())
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    try:
        for key in ("pid", "child"):
            state[key] = other.pid
        supervisor.write(folder / supervisor.STATE, {**state, "code": None, "ended": None})
        job = jobs.find(results, "job")
        assert (job.status, job.code) == (jobs.FAILED, None)
        jobs.cancel(job)
        jobs.kill(job)
        time.sleep(0.1)
        assert other.poll() is None
        # The same number and the same beginning: that is the process.
        state |= {"born": process_start_time(other.pid), "child_born": process_start_time(other.pid)}
        supervisor.write(folder / supervisor.STATE, {**state, "code": None, "ended": None})
        assert jobs.find(results, "job").active
    finally:
        other.kill()
        other.wait()


def test_of_another_machine_nothing_is_claimed(results: Path, stand_in: None) -> None:
    jobs.start(results, life("0"))
    folder = ended(results, "job").folder
    for file in (supervisor.JOB, supervisor.STATE):
        values = json.loads((folder / file).read_text()) | {"host": "far", "code": None, "ended": None}
        supervisor.write(folder / file, values)
    job = jobs.find(results, "job")
    assert job.status == jobs.OTHER_HOST and "far" in job.status_text and not job.active


def test_a_process_that_never_came_is_a_failure(results: Path, stand_in: None) -> None:
    jobs.start(results, life("0"))
    folder = ended(results, "job").folder
    (folder / supervisor.STATE).unlink()
    assert jobs.find(results, "job").status == jobs.STARTING
    record = json.loads((folder / supervisor.JOB).read_text())
    supervisor.write(folder / supervisor.JOB, record | {"created": time.time() - jobs.START_TIMEOUT_S - 1})
    assert jobs.find(results, "job").status == jobs.FAILED


# --- what is refused ------------------------------------------------------------------------------------------


def test_names_are_taken_once_and_so_many_run_at_most(results: Path, stand_in: None) -> None:
    jobs.start(results, life("slow", "one"))
    with pytest.raises(DataError, match="the name one is already used"):
        jobs.start(results, life("slow", "one"))
    (results / "there").mkdir()
    with pytest.raises(DataError, match="the name there is already used"):
        jobs.start(results, life("slow", "there"))
    jobs.start(results, life("slow", "two"))
    with pytest.raises(DataError, match="at most 2 jobs can run at the same time"):
        jobs.start(results, life("slow", "three"))
    running = jobs.find(results, "one")
    with pytest.raises(DataError, match="one is running; cancel it first"):
        jobs.delete(running)
    assert [job.id for job in jobs.jobs(results)[0]] == ["two", "one"]
    jobs.kill(said(results, "one", "ready"))
    jobs.delete(ended(results, "one"))
    with pytest.raises(DataError, match="there is no job 'one'"):
        jobs.find(results, "one")
    jobs.start(results, life("0", "one"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "../up"}, "is not a valid folder name"),
        ({"name": ".jobs"}, "is not a valid folder name"),
        ({"name": "a\nb"}, "is not a valid folder name"),
        ({"tasks": ()}, "no benchmark is selected"),
        ({"tasks": ("demo_mlu",)}, "demo_mlu cannot be run: there is no benchmark with this name"),
        ({"tasks": ("gsm8k",)}, "openai/gsm8k is not in"),
        ({"limit": 2.5}, "the limit must be a number of questions"),
        ({"ablate": "L99H0"}, "--ablate L99H0"),
        ({"rope_scaling": "nothing"}, "--rope-scaling nothing"),
        ({"model": "/nowhere"}, "/nowhere"),
        ({"preset": "mine"}, "there is no preset 'mine'"),
    ],
)
def test_what_would_fail_later_is_refused_now(
    change: dict[str, object], message: str, tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path))
    good = EvalRequest("good", str(checkpoint), ("demo_mmlu",))
    assert good.checked() == (good, [])
    with pytest.raises(WorkbenchError, match=message):
        replace(good, **change).checked()


def test_without_a_sandbox_programs_are_left_out_or_refused(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evals.sandbox.why_unavailable", lambda: "no bubblewrap")
    request = EvalRequest("code", str(checkpoint), ("demo_humaneval",))
    with pytest.raises(DataError, match="no sandbox is available: no bubblewrap"):
        request.checked()
    _, notes = replace(request, tasks=("demo_humaneval", "demo_mmlu")).checked()
    assert notes == ["demo_humaneval will be skipped: no sandbox is available (no bubblewrap)."]


def test_no_value_can_be_taken_for_another_option(tmp_path: Path) -> None:
    request = EvalRequest("n", "-m; rm -rf /", ("a", "b"), 0.5, 3, "meta", True, "--help", "yarn=4", 7)
    assert request.command(tmp_path)[len(eval_request.WORKBENCH) :] == [
        "eval", "run", "--model=-m; rm -rf /", "--tasks=a,b", f"--output={tmp_path}", "--limit=0.5", "--num_fewshot=3",
        "--preset=meta", "--ablate=--help", "--rope_scaling=yarn=4", "--seed=7", "--apply_chat_template",
    ]  # fmt: skip


def test_a_folder_that_cannot_be_written_and_a_full_disk_are_one_sentence(
    tmp_path: Path, stand_in: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be used"):
        jobs.start(tmp_path / "file", life("0"))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(supervisor, "write", full)
    with pytest.raises(DataError, match="is full; free some space"):
        jobs.start(tmp_path / "results", life("0"))
    assert jobs.jobs(tmp_path / "results") == ([], [])


def test_a_damaged_record_is_named_and_the_rest_shown(results: Path, stand_in: None) -> None:
    jobs.start(results, life("0"))
    ended(results, "job")
    (results / jobs.FOLDER / "bad").mkdir()
    (results / jobs.FOLDER / "bad" / supervisor.JOB).write_text("{")
    whole = json.loads((results / jobs.FOLDER / "job" / supervisor.JOB).read_text())
    damaged: dict[str, object] = {"about": {}, "tasks": {**whole["about"], "tasks": 1}, "none": None}
    damaged["limit"] = whole["about"] | {"limit": "few"}
    for name, about in damaged.items():
        (results / jobs.FOLDER / name).mkdir()
        (results / jobs.FOLDER / name / supervisor.JOB).write_text(json.dumps(whole | {"about": about}))
    readable, problems = jobs.jobs(results)
    assert [job.id for job in readable] == ["job"] and len(problems) == 1 + len(damaged)
    assert any("bad/job.json is not a valid job record" in problem for problem in problems)
    assert jobs.frame(results)["job"].tolist() == ["job"] and jobs.frame(results / "none").empty


def test_the_logs_end_is_what_a_terminal_would_show(results: Path, stand_in: None) -> None:
    jobs.start(results, life("0"))
    job = ended(results, "job")
    assert jobs.tail(job).splitlines()[-1] == " last \u202e words"  # the bar before it is written over
    (job.folder / supervisor.LOG).write_text("\n".join(f"line {i} " + "x" * 5000 for i in range(400)))
    shown = jobs.tail(job).splitlines()
    assert (
        len(shown) <= jobs.MAX_LOG_LINES and shown[-1].startswith("line 399") and len(shown[-1]) == jobs.MAX_LOG_COLUMNS
    )
    (job.folder / supervisor.LOG).unlink()
    assert jobs.tail(job) == ""


def test_where_the_questions_are_missing_it_is_said_how_they_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path))
    listed = {benchmark.name: benchmark.missing for benchmark in eval_request.benchmarks()}
    assert next(iter(listed)) == "demo_gsm8k" and listed["demo_mmlu"] is None
    assert listed["gsm8k"] == f"openai/gsm8k is not in {tmp_path}; add it with `workbench eval prepare FOLDER`"
    assert "`workbench eval prepare allenai/ai2_arc=FOLDER`" in str(listed["arc_challenge_llama"])
    assert unfinished(tmp_path) == ([], [])
