"""The Runs page: the form, a job in each state, and invalid requests."""

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

pytest.importorskip("lm_eval", reason="lm_eval is not installed")

from dashboard.jobs import eval_request, jobs, supervisor
from dashboard.jobs.eval_request import EvalRequest
from dashboard.jobs.jobs import Job
from dashboard.session.settings import ROOT
from evals.results.runs import list_runs
from evals.runtime.progress import Progress
from evals.store.store import Store
from tests.dashboard.world import write_results

App = Callable[..., AppTest]
# In place of the evaluation: it ends with the code that its seed names, or not by itself.
STAND_IN = """
import sys, time
given = dict(part.split("=", 1) for part in sys.argv[3:] if "=" in part)
print("said \\x1b[1m <b>and</b> \\u202e", flush=True)
code = given["--seed"]
sys.exit(int(code)) if code not in ("99", "1234") else time.sleep(60)
"""
FOREVER = 99  # and 1234, the seed of a run of the tour


@pytest.fixture
def world(tmp_path: Path, serve: Callable[[str, Path], None], app: App, checkpoint: Path) -> Iterator[Path]:
    """A separate results folder; jobs that still run are ended after the test."""
    app()
    serve(str(checkpoint), tmp_path)
    yield tmp_path
    for job in jobs.jobs(tmp_path)[0]:
        if job.active:
            jobs.kill(settled(tmp_path, job.id, jobs.STARTING))
            settled(tmp_path, job.id, jobs.RUNNING, jobs.STOPPING)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eval_request, "WORKBENCH", (sys.executable, "-P", "-X", "utf8", "-c", STAND_IN))


@pytest.fixture
def opened(app: App, world: Path, serve: Callable[[str, Path], None], checkpoint: Path) -> Callable[..., AppTest]:
    def open_page(**params: object) -> AppTest:
        session = app()
        serve(str(checkpoint), world)
        session.switch_page("dashboard/pages/runs.py")
        session.query_params.clear()
        session.query_params.update({name: str(value) for name, value in params.items()})
        return session.run()

    return open_page


def begun(root: Path, checkpoint: Path, seed: int, name: str = "mine") -> Job:
    return jobs.start(root, EvalRequest(name, str(checkpoint), ("demo_mmlu",), limit=3, seed=seed))


def settled(root: Path, name: str, *passing: str) -> Job:
    """The job, once it has left these states."""
    deadline = time.monotonic() + 60
    while (job := jobs.find(root, name)).status in passing:
        assert time.monotonic() < deadline
        time.sleep(0.03)
    return job


def ended(root: Path, name: str = "mine") -> Job:
    return settled(root, name, *jobs.ACTIVE)


def said(session: AppTest) -> str:
    kinds = ("error", "warning", "success", "info", "text", "caption", "code", "markdown")
    return "\n".join(str(element.value) for kind in kinds for element in session.get(kind))


def press(session: AppTest, label: str) -> AppTest:
    return next(button for button in session.button if button.label == label).click().run()


def buttons(session: AppTest) -> set[str]:
    return {button.label for button in session.button}


def test_nothing_yet_says_how_to_begin(opened: App) -> None:
    session = opened()
    assert not session.exception and "Choose benchmarks on the left, and press Start." in said(session)
    (tasks,) = session.multiselect
    assert set(tasks.options) >= {"demo_mmlu", "demo_gsm8k", "demo_humaneval"} and tasks.value == ["demo_mmlu"]
    missing = session.dataframe[0].value.set_index("name")["missing"]
    assert missing["mmlu_llama"].startswith("meta-llama/Llama") or "is not in" in missing["mmlu_llama"]
    assert not set(missing.index) & set(tasks.options)


def test_the_form_starts_what_it_says(opened: App, world: Path, stand_in: None, checkpoint: Path) -> None:
    session = opened(limit=5, ablate="L0H1", run_seed=0)
    session.text_input(key="run_name").set_value("mine")
    session.number_input(key="shots").set_value(2)
    session.multiselect(key="tasks").set_value(["demo_mmlu", "demo_gsm8k"])
    press(session, "Start")
    assert not session.exception and not session.error
    job = ended(world)
    assert list(job.command[len(eval_request.WORKBENCH) :]) == [
        "eval", "run", f"--model={checkpoint}", "--tasks=demo_mmlu,demo_gsm8k", f"--output={world / 'mine'}",
        "--limit=5", "--num_fewshot=2", "--preset=lm-eval", "--ablate=L0H1", "--seed=0",
    ]  # fmt: skip
    session.run()
    assert session.success[0].value == "The job finished (exit code 0)."
    assert "5 questions of each · 2 examples" in said(session) and "ablate L0H1" in said(session)
    assert session.query_params["job"] == ["mine"] or session.query_params["job"] == "mine"
    # Another one, while the first is shown; then it goes again, and the page falls back to the first.
    session.text_input(key="run_name").set_value("other")
    press(session, "Start")
    ended(world, "other")
    session.run()
    assert not session.exception and session.selectbox(key="job").value == "other"
    press(session, "Delete the record")
    assert not session.exception and not session.error and session.selectbox(key="job").value == "mine"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("run_name", "../up", "is not a valid folder name"),
        ("ablate", "L77H0", "--ablate L77H0"),
        ("rope_scaling", "magic", "--rope-scaling magic"),
    ],
)
def test_a_mistake_is_one_sentence_and_starts_nothing(
    opened: App, world: Path, key: str, value: str, message: str
) -> None:
    session = opened()
    session.text_input(key=key).set_value(value)
    press(session, "Start")
    assert [error.value for error in session.error] == ["The benchmark was not started."]
    assert message in said(session) and jobs.jobs(world) == ([], [])


def test_a_running_job_shows_how_far_it_is_and_is_cancelled(
    opened: App, world: Path, stand_in: None, checkpoint: Path
) -> None:
    begun(world, checkpoint, FOREVER)
    job = settled(world, "mine", jobs.STARTING)
    session = opened(job="mine")
    assert "Loading the questions and the model" in str(session.get("progress")[0].proto.text)
    now = time.time()
    progress = Progress("scoring", done=30, total=120, first=10, since=now - 20, at=now)
    supervisor.write(job.folder / supervisor.PROGRESS, vars(progress))
    session.run()
    # By hand: 20 new ones took 20 s, 90 are left.
    text = session.get("progress")[0].proto.text
    assert text.startswith("choices scored: 30 of 120; about 1 min 30 s left") or "1 min 2" in text
    assert session.get("progress")[0].proto.value == 25
    assert {"Cancel"} <= buttons(session) and not {"Resume", "Kill"} & buttons(session)
    press(session, "Cancel")
    assert ended(world).status == jobs.CANCELLED
    session.run()
    assert "The job was cancelled" in session.info[0].value and "Cancel" not in buttons(session)


def test_a_dead_child_is_a_failure_with_its_code_and_last_words(
    opened: App, world: Path, stand_in: None, checkpoint: Path
) -> None:
    begun(world, checkpoint, 7)
    ended(world)
    session = opened()  # the only one is the one that is shown
    assert session.error[0].value == "The job failed with exit code 7."
    # As text, with nothing hidden; and nowhere as Markdown.
    assert any("said ⟨U+001B⟩[1m <b>and</b> ⟨U+202E⟩" in code.value for code in session.code)
    assert not any("<b>" in element.value for element in (*session.markdown, *session.caption))
    table = next(frame.value for frame in session.dataframe if "status" in frame.value)
    assert table["status"].tolist() == ["failed, exit 7"]
    assert "Resume" not in buttons(session)  # it had not begun a run
    press(session, "Delete the record")
    assert not session.exception and jobs.jobs(world) == ([], [])
    assert "Choose benchmarks on the left" in said(session)


def test_what_is_left_is_resumed(opened: App, world: Path, stand_in: None, checkpoint: Path) -> None:
    begun(world, checkpoint, 7)
    job = ended(world)
    with Store.open(job.output) as store:
        run = store.register({"model": str(checkpoint), "settings": {"tasks": ["demo_mmlu"]}})
        store.fail(run, "Killed", interrupted=True)
    session = opened(job="mine")
    assert "0 answers are saved; Resume runs the rest." in said(session)
    press(session, "Resume")
    again = jobs.find(world, "mine")
    assert again.attempt == 2 and list(again.command)[-4:-1] == ["eval", "resume", run]


def test_a_run_of_the_terminal_is_listed_with_its_error(opened: App, world: Path, checkpoint: Path) -> None:
    with Store.open(world / "theirs") as store:
        run = store.register({"model": str(checkpoint), "settings": {"tasks": ["demo_mmlu"], "interventions": []}})
        store.fail(run, "the disk is full <b>\nmore", interrupted=False)
    session = opened()
    table = next(frame.value for frame in session.dataframe if "answers" in frame.value)
    assert table[["run", "status", "error"]].values.tolist() == [[run, "failed", "the disk is full <b>"]]
    with Store.open(world / "theirs") as store:  # it was made on a model in memory, after all
        store._index.execute("UPDATE runs SET settings = '{\"model\": null}'")
    press(session, "Resume it")
    assert session.error[0].value == "The run was not resumed." and "not loaded from a path" in said(session)


def test_a_finished_job_leads_to_its_scores(opened: App, world: Path, stand_in: None, checkpoint: Path) -> None:
    begun(world, checkpoint, 0, name="first")
    ended(world, "first")
    write_results(world)  # which writes into first/, too
    session = opened(job="first")
    links = {link.proto.label: link.proto.query_string for link in session.get("page_link")}
    name = next(run.name for run in list_runs(world) if run.path.parent.name == "first")
    assert links["Open in Benchmarks →"] == f"run={name.replace('/', '%2F')}"
    assert "doc=first" in links["Open in Samples →"] and "task=tiny_quiz" in links["Open in Samples →"]


def test_an_address_of_a_deleted_job_is_no_dead_end(opened: App, world: Path, stand_in: None, checkpoint: Path) -> None:
    begun(world, checkpoint, 0)
    ended(world)
    session = opened(job="<b>gone</b>")
    assert not session.exception
    assert "job=<b>gone</b> is not available here; showing mine." in said(session)
    assert session.success[0].value == "The job finished (exit code 0)."


def test_without_lm_eval_it_says_what_to_install(opened: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    session = opened()
    assert session.error[0].value == "This view cannot be shown." and "lm_eval" in said(session)


def test_the_notebook_code_runs(opened: App, world: Path, stand_in: None, checkpoint: Path) -> None:
    begun(world, checkpoint, 0)
    ended(world)
    source = next(code.value for code in opened().code if code.language == "python")
    scope: dict[str, object] = {}
    lines = source.splitlines()
    exec("\n".join([*lines[:-1], f"found = {lines[-1]}"]), scope)
    assert scope["found"]["job"].tolist() == ["mine"]


def test_without_a_run_of_the_quiz_the_third_example_starts_one(
    world: Path, serve: Callable[[str, Path], None], stand_in: None
) -> None:
    serve("demo", world)
    session = AppTest.from_file(str(ROOT / "app.py"), default_timeout=60).run()
    assert {"An induction head", "The RoPE invariance", "Run the embedded quiz"} <= buttons(session)
    session.button(key="guide_run").click().run()
    assert not session.exception and not session.error
    (job,) = jobs.jobs(world)[0]
    assert session.header[0].value == "Runs" and session.selectbox(key="job").value == job.id
    assert "--tasks=demo_mmlu" in job.command and "--model=demo" in job.command


def test_the_name_is_cleared_after_a_start(
    opened: Callable[..., AppTest], world: Path, stand_in: None, checkpoint: Path
) -> None:
    session = opened()
    session.text_input(key="run_name").set_value("mine")
    session.number_input(key="run_seed").set_value(FOREVER)
    next(button for button in session.button if button.label == "Start").click().run()
    assert not session.exception and not session.error
    assert [job.id for job in jobs.jobs(world)[0]] == ["mine"]
    assert session.text_input(key="run_name").value == ""


def test_the_third_example_does_not_start_a_quiz_twice(
    world: Path, serve: Callable[[str, Path], None], stand_in: None
) -> None:
    running = jobs.start(world, EvalRequest("mine", "demo", ("demo_mmlu",), seed=FOREVER))
    serve("demo", world)
    session = AppTest.from_file(str(ROOT / "app.py"), default_timeout=60).run()
    session.button(key="guide_run").click().run()
    assert [job.id for job in jobs.jobs(world)[0]] == [running.id]
    assert session.selectbox(key="job").value == running.id and not session.exception


def test_a_model_without_a_tokenizer_is_not_started(
    opened: Callable[..., AppTest], world: Path, serve: Callable[[str, Path], None], checkpoint: Path, tmp_path: Path
) -> None:
    wordless = shutil.copytree(checkpoint, tmp_path / "wordless")
    (wordless / "tokenizer.model").unlink()
    session = opened()
    assert not next(button for button in session.button if button.label == "Start").proto.disabled
    serve(str(wordless), world)
    session = session.run()
    assert not session.exception
    assert any("has no tokenizer" in info.value for info in session.info)
    assert next(button for button in session.button if button.label == "Start").proto.disabled
