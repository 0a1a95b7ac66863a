"""Runs page: start benchmarks as separate processes, watch, cancel and resume them."""

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
from dashboard.jobs.eval_request import Benchmark, EvalRequest, benchmarks, need_lm_eval
from dashboard.jobs.jobs import Job
from dashboard.layout.page import Head, Help, card, empty, page, show_error, table_height
from dashboard.session import computed, url_state
from dashboard.session.settings import Settings
from dashboard.session.shared_cache import process_cache
from dashboard.token_text import plain, printable
from evals.store.store import UnfinishedRun
from evals.tasks.presets import PRESETS
from workbench.checkpoint.sources.names import resolve
from workbench.errors import WorkbenchError
from workbench.text.tokenizer_files import find_tokenizer

ABOUT = Help(
    "Benchmarks run as separate processes. They continue when this page is closed or reloaded, and when the server "
    "ends. Answers are saved as they come, and a stopped run resumes where it stopped.",
    [
        "**Requests**: a question with four choices makes four requests, a generated answer one. They are counted "
        "when a batch is answered and saved.",
        "**Time left** is estimated from the speed since this start; answers saved before do not count.",
        "**Cancel** interrupts the process, and kills it if it has not ended after 15 seconds.",
        "**Failed** means any end without success; the exit code and the last lines of the log show the reason.",
        f"At most {jobs.MAX_CONCURRENT} run at once, because each loads its own copy of the model.",
    ],
    {"lm-eval": "https://github.com/EleutherAI/lm-evaluation-harness"},
)
EACH = "1s"
FIRST_CHOICE = "demo_mmlu"  # takes a few seconds on the demo checkpoint
LAST_LINES = 12
WORDS = {"scoring": "choices scored", "generating": "answers generated"}


def show() -> None:
    with page("Runs", "Start, watch, cancel and resume benchmarks.", ABOUT) as head:
        need_lm_eval()
        results = Settings.from_env().results
        left, right = st.columns([1, 1.25])
        with left, card("Start a benchmark", key="start_card"):
            _form(results)
        listed, problems = jobs.jobs(results)
        job = None
        with right, card("Started from here", key="jobs"):
            for line in problems:
                show_error("A job's record is damaged; the others are shown.", line)
            if listed:
                # All three containers exist before one is filled: a fragment that is drawn again has to find its place.
                table, choice, opened = st.container(), st.container(), st.container()
                with choice:
                    job = _choose(listed)
                with table:
                    _live(_table, results, listed)
                with opened:
                    _live(_opened, results, listed, job.id)
            else:
                empty("No benchmark was started here yet. Choose benchmarks on the left, and press Start.")
        _orphaned_runs(results)
        _take_away(head, results, job)


def _live(draw: Callable[..., None], results: Path, listed: list[Job], *args: str) -> None:
    """Draw a part of the page each second while a job runs; draw the whole page when a job starts or ends."""
    statuses = {job.id: job.status for job in listed}
    drawn_with_the_page = iter([listed])

    def drawn() -> None:
        with _errors_shown("This cannot be shown now."):
            now = next(drawn_with_the_page, None)
            if now is None:
                now, _ = jobs.jobs(results)
                if {job.id: job.status for job in now} != statuses:
                    st.rerun()
            draw(results, now, *args)

    drawn.__qualname__ = f"{draw.__qualname__}_live"  # Streamlit identifies fragments by this name
    st.fragment(drawn, run_every=EACH if any(job.active for job in listed) else None)()


@contextmanager
def _errors_shown(summary: str) -> Iterator[None]:
    """Show a WorkbenchError as a message; the page's own handler does not cover fragments."""
    try:
        yield
    except WorkbenchError as error:
        show_error(summary, str(error))


# --- starting -------------------------------------------------------------------------------------------------


@process_cache("Looking for datasets …", max_entries=1, ttl=60)
def _benchmarks() -> list[Benchmark]:
    return benchmarks()


def _form(results: Path) -> None:
    available = _benchmarks()
    ready = sorted(
        (benchmark.name for benchmark in available if benchmark.missing is None), key=lambda name: name != FIRST_CHOICE
    )
    model = computed.model_path()
    if st.session_state.pop("_started", False):
        st.session_state["run_name"] = ""  # a second run needs another name
    wordless = not _has_tokenizer(model)
    if wordless:
        st.info("This model has no tokenizer, so it cannot answer questions. Add a tokenizer to its folder, or select "
                "another model.")  # fmt: skip
    with st.form("start_form", border=False, enter_to_submit=False):
        st.text(f"Model: {plain(model)}")
        tasks = url_state.url_widget(
            st.multiselect, "Benchmarks", ready, key="tasks", default=ready[:1], max_selections=20,
            help="Benchmarks whose data is available; the others are listed below, with what is missing.",
        )  # fmt: skip
        name = st.text_input("Name", key="run_name", max_chars=64, placeholder="default: model and time",
                             help="Name of the output folder inside the results folder.")  # fmt: skip
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
            preset_name = url_state.url_widget(
                st.selectbox, "Preset", list(PRESETS), key="preset",
                help="Prompt preset: lm-eval's (default), or Meta's to reproduce its model-card numbers.",
            )  # fmt: skip
        ablate, rope = st.columns(2)
        with ablate:
            ablated = url_state.url_widget(
                st.text_input, "Ablate", key="ablate", max_chars=500, placeholder="L5H3,L2.mlp",
                help="Heads and sublayers that are set to zero for the whole run.",
            )  # fmt: skip
        with rope:
            rope_scaling = url_state.url_widget(
                st.text_input, "RoPE scaling", key="rope_scaling", max_chars=100, placeholder="yarn=4",
                help="Examples: interpolation=2, ntk=4, yarn=4, theta=500000.",
            )  # fmt: skip
        seed, chat, submit = st.columns([1, 1.2, 1], vertical_alignment="bottom")
        with seed:
            number = url_state.url_widget(
                st.number_input, "Seed", 0, 2**31 - 1, 1234, key="run_seed", step=1,
                help="For the few-shot examples and for sampling.",
            )  # fmt: skip
        with chat:
            turns = url_state.url_widget(st.toggle, "Chat format", key="in_chat", help="Use the model's chat format.")
        with submit:
            pressed = st.form_submit_button("Start", type="primary", width="stretch", disabled=wordless)
    if pressed:
        request = EvalRequest(
            name or "",
            model,
            tuple(tasks),
            questions,
            examples,
            preset_name,
            bool(turns),
            ablated or "",
            rope_scaling or "",
            int(number),
        )
        with _errors_shown("The benchmark was not started."):
            checked, notes = request.checked()
            job = jobs.start(results, checked)
            st.session_state["_notes"] = {job.id: notes}
            st.session_state["_started"] = True
            _open(job)
    missing = pd.DataFrame(
        [(benchmark.name, benchmark.missing) for benchmark in available if benchmark.missing],
        columns=["name", "missing"],
    )
    with st.expander(f"{len(missing)} benchmarks without data"):
        st.dataframe(
            missing, hide_index=True, height=240, column_config={"name": "Benchmark", "missing": "What is missing"}
        )


def _has_tokenizer(model: str) -> bool:
    """Whether a model's folder has a tokenizer; True if that cannot be told, because the job says what is wrong."""
    try:
        return model == "demo" or find_tokenizer(resolve(model)) is not None
    except WorkbenchError:
        return True


def _open(job: Job) -> None:
    """Open a job and draw the page again."""
    url_state.set_url_param("job", job.id)
    st.rerun()


# --- jobs -----------------------------------------------------------------------------------------------------


def _choose(listed: list[Job]) -> Job:
    name = url_state.url_selectbox("Job", [job.id for job in listed], key="job", width=420)
    return next(job for job in listed if job.id == name)


def _table(results: Path, listed: list[Job]) -> None:
    st.dataframe(
        pd.DataFrame(
            {
                "job": printable(job.id for job in listed),
                "status": [_status(job) for job in listed],
                "share": [_share(job) for job in listed],
                "tasks": printable(", ".join(job.settings["tasks"]) for job in listed),
                "started": [_clock(job.created)[5:-3] for job in listed],
                "took": [_duration(job.seconds) for job in listed],
            }
        ),
        hide_index=True,
        height=table_height(len(listed), max_height=400),
        column_config={
            "job": "Job",
            "status": st.column_config.TextColumn("Status", width=115),
            "share": st.column_config.ProgressColumn(
                "Requests",
                format="percent",
                min_value=0,
                max_value=1,
                width=90,
                help="Share of requests answered, in the current stage.",
            ),  # fmt: skip
            "tasks": "Benchmarks",
            "started": "Started",
            "took": "Took",
        },
    )


def _opened(results: Path, listed: list[Job], name: str) -> None:
    job = next(job for job in listed if job.id == name)
    for note in st.session_state.get("_notes", {}).get(job.id, []):
        st.warning(plain(note))
    draw_status = {jobs.FINISHED: st.success, jobs.FAILED: st.error, jobs.OTHER_HOST: st.warning}.get(
        job.status, st.info
    )
    draw_status(job.status_text)
    unfinished = None
    if job.active:
        share, text = _progress(job)
        st.progress(share, text)
    elif job.status != jobs.FINISHED:
        unfinished = jobs.unfinished_run(job)
        if unfinished is not None:
            st.text(f"{unfinished.answers:,} answers are saved; Resume runs the rest.")
    with st.container(horizontal=True, vertical_alignment="center", key="job_buttons"):
        _buttons(results, job, unfinished)
    st.text(plain(_facts(job)))
    st.caption("Last lines of the log")
    lines = jobs.tail(job).splitlines()
    wrap = job.status != jobs.FINISHED  # messages are long, tables are wide
    st.code(plain("\n".join(lines[-LAST_LINES:])) or " ", language=None, wrap_lines=wrap)
    if len(lines) > LAST_LINES:
        with st.expander(f"Last {len(lines)} lines"):
            st.code(plain("\n".join(lines)), language=None, wrap_lines=wrap, height=400)


def _buttons(results: Path, job: Job, unfinished: UnfinishedRun | None) -> None:
    with _errors_shown("The action failed."):
        if job.status in (jobs.STARTING, jobs.RUNNING) and st.button("Cancel", key="cancel"):
            jobs.cancel(job)
            st.rerun()
        if job.status == jobs.STOPPING and st.button("Kill", key="kill", help="Ends the process without waiting."):
            jobs.kill(job)
            st.rerun()
        if unfinished is not None and st.button("Resume", key="resume", type="primary"):
            jobs.resume(results, unfinished)
            st.rerun()
        if job.status == jobs.FINISHED:
            _links(job)
        st.download_button(
            "Full log", lambda: jobs.log(job), file_name=f"{job.id}.txt", mime="text/plain", on_click="ignore",
            key="whole_log",
        )  # fmt: skip
        if not job.active:
            with st.popover("Delete", help="Deletes the record of this job; its results stay."):
                st.text(f"The record and the log are deleted; {plain(str(job.output))} stays.")
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
        params = {"run": run.name, "task": run.tasks[0], "doc": FIRST}
        st.page_link("dashboard/pages/samples.py", label="Open in Samples →", query_params=params)


def _status(job: Job) -> str:
    return f"{job.status}, exit {job.code}" if job.code is not None and job.status != jobs.FINISHED else job.status


def _share(job: Job) -> float | None:
    if job.status == jobs.FINISHED:
        return 1.0
    return job.progress.done / job.progress.total if job.progress and job.progress.total else None


def _progress(job: Job) -> tuple[float, str]:
    progress = job.progress
    if progress is None or job.status == jobs.STARTING:
        return 0.0, "Loading the questions and the model …"
    words = f"{WORDS.get(progress.what, 'requests answered')}: {progress.done:,} of {progress.total:,}"
    if progress.done == progress.total:
        return 1.0, f"{words}; more requests, or the scores, follow"
    if progress.done == progress.first:
        return progress.done / progress.total, f"{words}; the first batch is running"
    if progress.seconds_left is not None:
        # The progress file was written after the last batch; subtract the time since then.
        words += f"; about {_duration(max(0.0, progress.seconds_left - (time.time() - progress.at)))} left"
    return progress.done / progress.total, words


def _facts(job: Job) -> str:
    about = job.settings
    settings = [
        ", ".join(about["tasks"]),
        "all questions" if about["limit"] is None else f"{about['limit']:g} questions of each",
        *([] if about["num_fewshot"] is None else [f"{about['num_fewshot']} examples"]),
        *(["chat format"] if about["chat"] else []),
        f"preset {about['preset']}",
        f"seed {about['seed']}",
    ]
    times = [f"started {_clock(job.created)}", f"took {_duration(job.seconds)}"]
    times += [f"attempt {job.attempt}"] if job.attempt > 1 else []
    return "\n".join(
        [
            f"Model: {about['model']}",
            f"Settings: {' · '.join(settings)}",
            f"Changed: {about['changes']}",
            f"Time: {' · '.join(times)}",
            f"Results: {job.output}",
        ]
    )


def _orphaned_runs(results: Path) -> None:
    orphans, problems = jobs.orphaned_runs(results)
    for line in problems:
        show_error("A store in the results folder cannot be read.", line)
    if not orphans:
        return
    with card("Unfinished runs that were not started here", key="strays"):
        about = [orphan.run.settings.get("settings", {}) for orphan in orphans]
        st.dataframe(
            pd.DataFrame(
                {
                    "run": printable(orphan.run.id for orphan in orphans),
                    "status": [orphan.run.status for orphan in orphans],
                    "tasks": printable(", ".join(settings.get("tasks", [])) for settings in about),
                    "model": printable(orphan.run.settings.get("model") or "in memory" for orphan in orphans),
                    "answers": [orphan.answers for orphan in orphans],
                    "started": [_clock(orphan.run.started) for orphan in orphans],
                    "error": printable((orphan.run.error or "").partition("\n")[0] for orphan in orphans),
                    "folder": printable(orphan.root for orphan in orphans),
                }
            ),
            hide_index=True,
            height=table_height(len(orphans), max_height=300),
            column_config={
                "run": "Run",
                "status": "Status",
                "tasks": "Benchmarks",
                "model": "Model",
                "answers": st.column_config.NumberColumn("Saved answers", format="localized"),
                "started": "Started",
                "error": "Error",
                "folder": "Folder",
            },
        )
        stopped = {orphan.run.id: orphan for orphan in orphans if orphan.run.status != "running"}
        if not stopped:
            return
        with st.container(horizontal=True, vertical_alignment="bottom", key="stray_controls"):
            name = st.selectbox("Run", list(stopped), key="stray", width=300)
            pressed = st.button("Resume it", key="resume_stray")
        if pressed and name in stopped:
            with _errors_shown("The run was not resumed."):
                _open(jobs.resume(results, stopped[name]))


# --- downloads ------------------------------------------------------------------------------------------------


def _duration(seconds: float | None) -> str:
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
