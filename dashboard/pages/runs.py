"""Runs: start a benchmark in a process of its own, watch it, stop it, take it up again."""

import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import streamlit as st

from dashboard.data import runs
from dashboard.data.samples import FIRST
from dashboard.jobs import jobs
from dashboard.jobs.eval_request import EvalRequest, Listed, benchmarks, need_lm_eval
from dashboard.jobs.jobs import Job
from dashboard.layout.page import Head, Help, card, empty, page, show_error, table_height
from dashboard.session import computed, url_state
from dashboard.session.settings import Settings
from dashboard.session.shared_cache import process_cache
from dashboard.token_text import plain, printable
from evals.store.store import UnfinishedRun
from evals.tasks.presets import PRESETS
from workbench.errors import WorkbenchError

ABOUT = Help(
    "Benchmarks, started from here as processes of their own. They go on when this page is left or reloaded and when "
    "the server ends; what they answered is kept at every moment, and a stopped one is taken up where it was.",
    [
        "**Requests**: a question of four choices makes four, a written answer one. They are counted when a batch of "
        "them is answered and kept.",
        "**Time left** goes by the pace since this start; what was kept from before does not count.",
        "**Cancel** interrupts the process, and kills it if it has not ended 15 seconds later.",
        "**Failed** is every end but success: the exit code, and the last lines of the log, say which.",
        f"At most {jobs.MAX_CONCURRENT} run at once, because each loads the model anew.",
    ],
    {"lm-eval": "https://github.com/EleutherAI/lm-evaluation-harness"},
)
EACH = "1s"
FIRST_CHOICE = "demo_mmlu"  # takes a moment on the demo checkpoint
LAST_LINES = 12
WORDS = {"scoring": "choices scored", "generating": "answers written"}


def show() -> None:
    with page("Runs", "Start a benchmark, watch it, stop it, take it up again.", ABOUT) as head:
        need_lm_eval()
        results = Settings.from_env().results
        left, right = st.columns([1, 1.25])
        with left, card("Start a benchmark", key="start_card"):
            _form(results)
        found, problems = jobs.jobs(results)
        job = None
        with right, card("Started from here", key="jobs"):
            for line in problems:
                show_error("A job's record is damaged; the others are shown.", line)
            if found:
                # All three are there before one is filled: what is drawn again by itself has to find its place.
                table, choice, opened = st.container(), st.container(), st.container()
                with choice:
                    job = _choose(found)
                with table:
                    _live(_table, results, found)
                with opened:
                    _live(_opened, results, found, job.id)
            else:
                empty("Nothing was started from here yet. Choose benchmarks on the left, and press Start.")
        _strays(results)
        _take_away(head, results, job)


def _live(draw: Callable[..., None], results: Path, found: list[Job], *given: str) -> None:
    """Draw a part of the page each second while something runs; when something begins or ends, the whole page."""
    statuses = {job.id: job.status for job in found}
    drawn_with_the_page = iter([found])

    def drawn() -> None:
        with _told("This cannot be shown now."):
            now = next(drawn_with_the_page, None)
            if now is None:
                now, _ = jobs.jobs(results)
                if {job.id: job.status for job in now} != statuses:
                    st.rerun()
            draw(results, now, *given)

    drawn.__qualname__ = f"{draw.__qualname__}_live"  # what Streamlit tells fragments apart by
    st.fragment(drawn, run_every=EACH if any(job.active for job in found) else None)()


@contextmanager
def _told(summary: str) -> Iterator[None]:
    """The page's own boundary does not reach into what is drawn again by itself."""
    try:
        yield
    except WorkbenchError as error:
        show_error(summary, str(error))


# --- starting -------------------------------------------------------------------------------------------------


@process_cache("Looking for questions …", most=1, seconds=60)
def _benchmarks() -> list[Listed]:
    return benchmarks()


def _form(results: Path) -> None:
    listed = _benchmarks()
    ready = sorted((one.name for one in listed if one.missing is None), key=lambda name: name != FIRST_CHOICE)
    model = computed.model_path()
    with st.form("start_form", border=False):
        st.text(f"Model: {plain(model)}")
        tasks = url_state.url_widget(
            st.multiselect, "Benchmarks", ready, key="tasks", default=ready[:1], max_selections=20,
            help="Those whose questions are here; the others stand below, with what is missing.",
        )  # fmt: skip
        name = st.text_input("Name", key="run_name", max_chars=64, placeholder="made of the model and the time",
                             help="The folder below the results folder that it writes to.")  # fmt: skip
        limit, shots, preset = st.columns(3)
        with limit:
            questions = url_state.url_widget(
                st.number_input, "Questions per task", 1, None, None, key="limit", step=1, placeholder="all",
            )  # fmt: skip
        with shots:
            examples = url_state.url_widget(
                st.number_input, "Few-shot examples", 0, 64, None, key="shots", step=1, placeholder="default",
            )  # fmt: skip
        with preset:
            way = url_state.url_widget(
                st.selectbox, "Preset", list(PRESETS), key="preset",
                help="lm-eval's own way, or Meta's for the figures of the model cards.",
            )  # fmt: skip
        ablate, rope = st.columns(2)
        with ablate:
            off = url_state.url_widget(
                st.text_input, "Set to zero", key="ablate", max_chars=500, placeholder="L5H3,L2.mlp",
                help="Heads and sublayers that are ablated for the whole run.",
            )  # fmt: skip
        with rope:
            other = url_state.url_widget(
                st.text_input, "Other rotation", key="rope_scaling", max_chars=100, placeholder="yarn=4",
                help="Of the rotary embedding: interpolation=2, ntk=4, yarn=4, theta=500000.",
            )  # fmt: skip
        seed, chat, go = st.columns([1, 1.2, 1], vertical_alignment="bottom")
        with seed:
            number = url_state.url_widget(
                st.number_input, "Seed", 0, 2**31 - 1, 1234, key="run_seed", step=1,
                help="Of the examples and of sampling.",
            )  # fmt: skip
        with chat:
            turns = url_state.url_widget(
                st.toggle, "Chat format", key="in_chat", help="Ask in the model's chat format."
            )
        with go:
            pressed = st.form_submit_button("Start", type="primary", width="stretch")
    if pressed:
        asked = EvalRequest(
            name or "", model, tuple(tasks), questions, examples, way, bool(turns), off or "", other or "", int(number)
        )
        with _told("It was not started."):
            checked, notes = asked.checked()
            job = jobs.start(results, checked)
            st.session_state["_notes"] = {job.id: notes}
            _open(job)
    missing = pd.DataFrame([(one.name, one.missing) for one in listed if one.missing], columns=["name", "missing"])
    with st.expander(f"{len(missing)} benchmarks whose questions are not here"):
        st.dataframe(
            missing, hide_index=True, height=240, column_config={"name": "Benchmark", "missing": "What is missing"}
        )


def _open(job: Job) -> None:
    """Show a job from the next run of the page on."""
    url_state.set_url_param("job", job.id)
    st.rerun()


# --- what was started -----------------------------------------------------------------------------------------


def _choose(found: list[Job]) -> Job:
    name = url_state.url_selectbox("Job", [job.id for job in found], key="job", width=420)
    return next(job for job in found if job.id == name)


def _table(results: Path, found: list[Job]) -> None:
    st.dataframe(
        pd.DataFrame(
            {
                "job": printable(job.id for job in found),
                "status": [_status(job) for job in found],
                "share": [_share(job) for job in found],
                "tasks": printable(", ".join(job.about["tasks"]) for job in found),
                "started": [_clock(job.created)[5:-3] for job in found],
                "took": [_took(job.seconds) for job in found],
            }
        ),
        hide_index=True,
        height=table_height(len(found), most=400),
        column_config={
            "job": "Job",
            "status": st.column_config.TextColumn("Status", width=115),
            "share": st.column_config.ProgressColumn(
                "Requests",
                format="percent",
                min_value=0,
                max_value=1,
                width=90,
                help="Answered, of those of the kind that is being asked.",
            ),  # fmt: skip
            "tasks": "Benchmarks",
            "started": "Started",
            "took": "Took",
        },
    )


def _opened(results: Path, found: list[Job], name: str) -> None:
    job = next(job for job in found if job.id == name)
    for note in st.session_state.get("_notes", {}).get(job.id, []):
        st.warning(plain(note))
    say = {jobs.FINISHED: st.success, jobs.FAILED: st.error, jobs.ELSEWHERE: st.warning}.get(job.status, st.info)
    say(job.ending)
    left = None
    if job.active:
        share, text = _progress(job)
        st.progress(share, text)
    elif job.status != jobs.FINISHED:
        left = jobs.open_run(job)
        if left is not None:
            st.text(f"{left.answers:,} answers are kept; Resume asks the rest.")
    with st.container(horizontal=True, vertical_alignment="center", key="job_buttons"):
        _buttons(results, job, left)
    st.text(plain(_facts(job)))
    st.caption("The last lines of its log")
    lines = jobs.tail(job).splitlines()
    wrap = job.status != jobs.FINISHED  # messages are long, tables are wide
    st.code(plain("\n".join(lines[-LAST_LINES:])) or " ", language=None, wrap_lines=wrap)
    if len(lines) > LAST_LINES:
        with st.expander(f"The last {len(lines)} lines"):
            st.code(plain("\n".join(lines)), language=None, wrap_lines=wrap, height=400)


def _buttons(results: Path, job: Job, left: UnfinishedRun | None) -> None:
    with _told("This could not be done."):
        if job.status in (jobs.STARTING, jobs.RUNNING) and st.button("Cancel", key="cancel"):
            jobs.cancel(job)
            st.rerun()
        if job.status == jobs.STOPPING and st.button("Kill", key="kill", help="Do not wait for it any longer."):
            jobs.kill(job)
            st.rerun()
        if left is not None and st.button("Resume", key="resume", type="primary"):
            jobs.resume(results, left)
            st.rerun()
        if job.status == jobs.FINISHED:
            _links(job)
        st.download_button(
            "Whole log", lambda: jobs.log(job), file_name=f"{job.id}.txt", mime="text/plain", on_click="ignore",
            key="whole_log",
        )  # fmt: skip
        if not job.active:
            with st.popover("Delete", help="Forget this job; its results stay."):
                st.text(f"The record and the log go; {plain(str(job.output))} stays.")
                if st.button("Delete the record", key="delete"):
                    jobs.delete(job)
                    url_state.clear_url_param("job")
                    st.rerun()


def _links(job: Job) -> None:
    run = next((run for run in runs.runs()[0] if run.path.parent.resolve() == job.output), None)
    if run is None:
        st.text("Its results are no longer in the results folder.")
        return
    st.page_link("dashboard/pages/benchmarks.py", label="Open in Benchmarks →", query_params={"run": run.name})
    if run.tasks:
        address = {"run": run.name, "task": run.tasks[0], "doc": FIRST}
        st.page_link("dashboard/pages/samples.py", label="Open in Samples →", query_params=address)


def _status(job: Job) -> str:
    return f"{job.status}, exit {job.code}" if job.code is not None and job.status != jobs.FINISHED else job.status


def _share(job: Job) -> float | None:
    if job.status == jobs.FINISHED:
        return 1.0
    return job.progress.done / job.progress.total if job.progress and job.progress.total else None


def _progress(job: Job) -> tuple[float, str]:
    told = job.progress
    if told is None or job.status == jobs.STARTING:
        return 0.0, "The questions are read and the model is loaded …"
    words = f"{WORDS.get(told.what, 'requests answered')}: {told.done:,} of {told.total:,}"
    if told.done == told.total:
        return 1.0, f"{words}; more questions, or the scores, follow"
    if told.done == told.first:
        return told.done / told.total, f"{words}; the first batch is under way"
    if told.seconds_left is not None:
        # The file is as old as the last batch; the next one has been under way since.
        words += f"; about {_took(max(0.0, told.seconds_left - (time.time() - told.at)))} left"
    return told.done / told.total, words


def _facts(job: Job) -> str:
    about = job.about
    asked = [
        ", ".join(about["tasks"]),
        "all questions" if about["limit"] is None else f"{about['limit']:g} questions of each",
        *([] if about["num_fewshot"] is None else [f"{about['num_fewshot']} examples"]),
        *(["chat format"] if about["chat"] else []),
        f"asked as by {about['preset']}",
        f"seed {about['seed']}",
    ]
    times = [f"started {_clock(job.created)}", f"took {_took(job.seconds)}"]
    times += [f"attempt {job.attempt}"] if job.attempt > 1 else []
    return "\n".join(
        [
            f"Model: {about['model']}",
            f"Asked: {' · '.join(asked)}",
            f"Changed: {about['changes']}",
            f"Time: {' · '.join(times)}",
            f"Results: {job.output}",
        ]
    )


def _strays(results: Path) -> None:
    found, problems = jobs.orphaned_runs(results)
    for line in problems:
        show_error("A store below the results folder cannot be read.", line)
    if not found:
        return
    with card("Not finished, and not started from here", key="strays"):
        about = [one.run.settings.get("settings", {}) for one in found]
        st.dataframe(
            pd.DataFrame(
                {
                    "run": printable(one.run.id for one in found),
                    "status": [one.run.status for one in found],
                    "tasks": printable(", ".join(these.get("tasks", [])) for these in about),
                    "model": printable(one.run.settings.get("model") or "in memory" for one in found),
                    "answers": [one.answers for one in found],
                    "started": [_clock(one.run.started) for one in found],
                    "error": printable((one.run.error or "").partition("\n")[0] for one in found),
                    "folder": printable(one.root for one in found),
                }
            ),
            hide_index=True,
            height=table_height(len(found), most=300),
            column_config={
                "run": "Run",
                "status": "Status",
                "tasks": "Benchmarks",
                "model": "Model",
                "answers": st.column_config.NumberColumn("Answers kept", format="localized"),
                "started": "Started",
                "error": "What stopped it",
                "folder": "Folder",
            },
        )
        stopped = {one.run.id: one for one in found if one.run.status != "running"}
        if not stopped:
            return
        with st.container(horizontal=True, vertical_alignment="bottom", key="stray_controls"):
            name = st.selectbox("Run", list(stopped), key="stray", width=300)
            pressed = st.button("Resume it", key="resume_stray")
        if pressed and name in stopped:
            with _told("It was not taken up."):
                _open(jobs.resume(results, stopped[name]))


# --- what can be taken away -----------------------------------------------------------------------------------


def _took(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _take_away(head: Head, results: Path, job: Job | None) -> None:
    lines = ["from dashboard.jobs.jobs import frame", "", f"frame({str(results)!r})"]
    head.code("\n".join(lines))
    if job is not None:
        with head.tools.popover("Command", help="The same run from a terminal"):
            st.code(plain(shlex.join(job.command)), language=None, wrap_lines=True)
    head.data({"jobs": lambda: jobs.frame(results)})


show()
