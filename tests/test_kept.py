"""Files and addresses of the first version open today, with the numbers that it wrote.

`tests/kept/README.md` says how the files were made. Every test works on a copy. The tests use the command line and
the public API, so that modules may move.
"""

import base64
import csv
import json
import re
import shutil
import sqlite3
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lm_eval", reason="lm_eval is not installed")
pytest.importorskip("streamlit", reason="streamlit is not installed")

import streamlit as st
from streamlit.testing.v1 import AppTest
from torch.nn.modules.module import register_module_forward_pre_hook

import workbench as wb
from workbench.cli import main

# The only names that are neither public API nor command line: how `workbench app` hands its options to the server.
APP_MODEL, APP_RESULTS = "WORKBENCH_APP_MODEL", "WORKBENCH_APP_RESULTS"
APP_MORE_MODELS, APP_CAPTURES = "WORKBENCH_APP_MORE_MODELS", "WORKBENCH_APP_CAPTURES"

FIRST_VERSION = Path(__file__).parent / "kept" / "first_version"
PLAIN, CHANGED, OUTSIDE = (
    f"evaluated/results_2026-11-30T15-31-{end}.json" for end in ("29.529633", "33.176523", "39.604079")
)
STARTED = "started/results_2026-11-30T15-31-51.951580.json"
HALFWAY = "20261130-153137-a15392"
ASKED = ["--model", "demo", "--tasks", "demo_mmlu,demo_gsm8k", "--limit", "5", "--device", "cpu", "--dtype", "float32"]

# Of each run: task, metric, filter, n, value, low, high.
SCORES = {
    PLAIN: [
        ("demo_mmlu", "acc", "none", 5, 0.8, 0.3755346297625253, 0.9637758913675698),
        ("demo_gsm8k", "exact_match", "strict-match", 5, 0.6, 0.2307242812760128, 0.882379225767352),
        ("demo_gsm8k", "exact_match", "flexible-extract", 5, 0.6, 0.2307242812760128, 0.882379225767352),
    ],
    CHANGED: [
        ("demo_mmlu", "acc", "none", 5, 0.8, 0.3755346297625253, 0.9637758913675698),
        ("demo_gsm8k", "exact_match", "strict-match", 5, 0.0, 0.0, 0.43448246478317476),
        ("demo_gsm8k", "exact_match", "flexible-extract", 5, 0.0, 0.0, 0.43448246478317476),
    ],
    OUTSIDE: [
        ("demo_gsm8k", "exact_match", "strict-match", 3, 1 / 3, 0.06149194472039624, 0.7923403991979522),
        ("demo_gsm8k", "exact_match", "flexible-extract", 3, 2 / 3, 0.20765960080204776, 0.9385080552796037),
    ],
    STARTED: [("demo_mmlu", "acc", "none", 2, 0.5, 0.09453120573423074, 0.9054687942657693)],
}
# Of each run and task: which questions are right, by the first filter.
RIGHT = {
    (PLAIN, "demo_mmlu"): [1, 0, 1, 1, 1],
    (PLAIN, "demo_gsm8k"): [0, 1, 1, 1, 0],
    (CHANGED, "demo_mmlu"): [1, 0, 1, 1, 1],
    (CHANGED, "demo_gsm8k"): [0, 0, 0, 0, 0],
    (OUTSIDE, "demo_gsm8k"): [1, 0, 0],
    (STARTED, "demo_mmlu"): [1, 0],
}


def unpack(target: Path) -> Path:
    """Copy the files. Indexes become SQLite databases again, and files of answers become binary again."""
    shutil.copytree(FIRST_VERSION, target)
    for path in target.rglob("*.base64"):
        path.with_suffix("").write_bytes(base64.b64decode(path.read_text()))
        path.unlink()
    for path in target.rglob("store.sql"):
        index = sqlite3.connect(path.with_suffix(".sqlite"))
        index.executescript(path.read_text())
        index.close()
        path.unlink()
    return target


@pytest.fixture
def first(tmp_path: Path) -> Path:
    return unpack(tmp_path / "first")


@pytest.fixture(scope="module")
def model() -> wb.Transformer:
    return wb.load_model("demo", device="cpu", dtype="float32")


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run the program; returns what it prints on stdout."""

    def run(*words: str | Path) -> str:
        capsys.readouterr()
        code = main([str(word) for word in words])
        printed = capsys.readouterr()
        assert code == 0, printed.err
        return printed.out

    return run


@pytest.fixture
def computed() -> Iterator[list[tuple[int, ...]]]:
    """The shape of what every module of a model reads, in order."""
    shapes: list[tuple[int, ...]] = []

    def note(module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        shapes.extend(tuple(value.shape) for value in inputs[:1] if isinstance(value, torch.Tensor))

    hook = register_module_forward_pre_hook(note)
    yield shapes
    hook.remove()


def scores_of(printed: str) -> list[tuple[Any, ...]]:
    columns = ("task", "metric", "filter", "n", "value", "low", "high")
    return [tuple(score[name] for name in columns) for score in json.loads(printed)["scores"]]


def assert_same_scores(scores: list[tuple[Any, ...]], expected: list[tuple[Any, ...]]) -> None:
    assert [score[:4] for score in scores] == [score[:4] for score in expected]
    for score, other in zip(scores, expected, strict=True):
        assert score[4:] == pytest.approx(other[4:], abs=1e-9), score[:3]


def answers_in(folder: Path) -> list[tuple[Any, ...]]:
    """Where the index of a store says that each answer lies."""
    index = sqlite3.connect(folder / "store.sqlite")
    try:
        return index.execute("SELECT key, file, offset, item, run FROM responses ORDER BY key").fetchall()
    finally:
        index.close()


def samples_beside(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Of each task what was answered and how it was judged, out of the sample files of a run."""
    columns = ("doc_id", "filter", "target", "arguments", "resps", "filtered_resps", "acc", "exact_match", "replay")
    stamp = path.stem.removeprefix("results_")
    return {
        file.name.removeprefix("samples_").removesuffix(f"_{stamp}.jsonl"): [
            {name: row[name] for name in columns if name in row}
            for row in map(json.loads, file.read_text(encoding="utf-8").splitlines())
        ]
        for file in path.parent.glob(f"samples_*_{stamp}.jsonl")
    }


# --- results --------------------------------------------------------------------------------------------------


def test_runs_are_listed(first: Path, command: Callable[..., str]) -> None:
    rows = json.loads(command("eval", "list", "--results", first, "--json"))
    unfinished = [row for row in rows if row["status"] != "finished"]
    assert [(row["run"], row["status"], row["answers_kept"]) for row in unfinished] == [(HALFWAY, "interrupted", 20)]
    assert unfinished[0]["resume"] == f"workbench eval resume {HALFWAY} --results {first / 'halfway'}"
    finished = {row["path"]: (row["model"], sorted(row["tasks"])) for row in rows if row["status"] == "finished"}
    both = ["demo_gsm8k", "demo_mmlu"]
    assert finished == {
        str(first / PLAIN): ("demo", both),
        str(first / CHANGED): ("demo", both),
        str(first / OUTSIDE): ("somebody", ["demo_gsm8k"]),
        str(first / STARTED): ("demo", ["demo_mmlu"]),
    }
    assert "[interrupted]" in command("eval", "show", HALFWAY, "--results", first)


@pytest.mark.parametrize("run", SCORES)
def test_scores_are_those_that_were_written(first: Path, command: Callable[..., str], run: str) -> None:
    # By the file, and by a part of the run's name.
    assert_same_scores(scores_of(command("eval", "show", first / run, "--json")), SCORES[run])
    part = Path(run).stem.removeprefix("results_")
    printed = command("eval", "show", part, "--results", first, "--json")
    assert_same_scores(scores_of(printed), SCORES[run])
    about = json.loads(printed)["provenance"]
    changes = [{"kind": "ablate", "target": "L4H0"}] if run == CHANGED else []
    assert about.get("interventions", []) == changes
    assert f"{100 * SCORES[run][0][4]:.1f}" in command("eval", "show", first / run)


def test_runs_are_compared(first: Path, command: Callable[..., str]) -> None:
    compared = json.loads(command("eval", "compare", first / PLAIN, first / CHANGED, "--json"))
    columns = ("task", "filter", "n", "a", "b", "difference", "low", "high", "p", "only_a", "only_b")
    rows = [tuple(row[name] for name in columns) for row in compared["differences"]]
    low, high = -0.9681910152819684, 0.11104815813911123
    expected = [
        ("demo_mmlu", "none", 5, 0.8, 0.8, 0.0, -0.39597252124276505, 0.39597252124276505, 1.0, 0, 0),
        ("demo_gsm8k", "strict-match", 5, 0.6, 0.0, -0.6, low, high, 0.25, 3, 0),
        ("demo_gsm8k", "flexible-extract", 5, 0.6, 0.0, -0.6, low, high, 0.25, 3, 0),
    ]
    assert [row[:3] for row in rows] == [row[:3] for row in expected]
    for row, other in zip(rows, expected, strict=True):
        assert row[3:] == pytest.approx(other[3:], abs=1e-9), row[:2]
    assert [origin["name"] for origin in compared["origins"]] == ["interventions"]
    only_a = {(s["task"], s["doc_id"]) for s in compared["samples"] if s["right"] == "A"}
    assert only_a == {("demo_gsm8k", 1), ("demo_gsm8k", 2), ("demo_gsm8k", 3)}


@pytest.mark.parametrize("run", SCORES)
def test_samples_are_read(first: Path, tmp_path: Path, command: Callable[..., str], run: str) -> None:
    command("eval", "export", first / run, "--output", tmp_path / "exported")
    for (name, task), right in RIGHT.items():
        if name != run:
            continue
        (path,) = (tmp_path / "exported").glob(f"samples_{task}_*.csv")
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        assert [float(row["correct"]) for row in rows if row["filter"] == rows[0]["filter"]] == right
        assert [int(row["doc_id"]) for row in rows if row["filter"] == rows[0]["filter"]] == [*range(len(right))]


def test_a_sample_is_shown_and_replayed(first: Path, command: Callable[..., str]) -> None:
    shown = json.loads(command("eval", "show", first / PLAIN, "--sample", "demo_mmlu/1", "--json"))
    assert (shown["correct"], shown["answer"], shown["target"]) == (0.0, 0, "1")
    stored = [-0.696690559387207, -5.937047004699707, -1.7638740539550781, -1.119171142578125]
    assert shown["logprobs"] == stored
    text = command("eval", "show", first / PLAIN, "--sample", "demo_gsm8k/2")
    assert text.startswith("demo_gsm8k/2: right") and "613+839=1452" in text and "answer: 1452" in text
    sample = ["--sample", "demo_mmlu/1", "--explain", "--device", "cpu", "--json"]
    explained = json.loads(command("eval", "show", first / CHANGED, *sample))
    assert explained["explanation"]["agrees"] is True
    stored = [-0.6906013488769531, -5.977494239807129, -2.7577619552612305, -0.8397064208984375]
    assert explained["explanation"]["stored"] == stored
    assert explained["explanation"]["recomputed"] == pytest.approx(stored, abs=1e-3)


def test_answers_from_outside_have_the_same_score(first: Path, tmp_path: Path, command: Callable[..., str]) -> None:
    answers = first / "answers" / "somebody.jsonl"
    printed = command(
        "eval", "score", "--task", "demo_gsm8k", "--samples", answers, "--output", tmp_path / "new", "--json"
    )
    assert_same_scores(scores_of(printed), SCORES[OUTSIDE])


# --- the store of answers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", [PLAIN, CHANGED])
@pytest.mark.parametrize("index", ["kept", "lost"])
def test_a_second_run_asks_the_model_nothing(
    first: Path, command: Callable[..., str], computed: list[tuple[int, ...]], run: str, index: str
) -> None:
    folder = first / "evaluated"
    before, files = answers_in(folder), sorted((folder / "responses").iterdir())
    assert len(before) == 2 * (5 * 4 + 5)
    if index == "lost":
        (folder / "store.sqlite").unlink()
    options = ["--ablate", "L4H0"] if run == CHANGED else []
    printed = command("eval", "run", *ASKED, *options, "--output", folder, "--json")
    assert computed == [], "the store holds these answers"
    assert_same_scores(scores_of(printed), SCORES[run])
    path = Path(json.loads(printed)["path"])
    assert path != first / run
    assert samples_beside(path) == samples_beside(first / run)
    assert answers_in(folder) == before and sorted((folder / "responses").iterdir()) == files


def test_a_stopped_run_goes_on(
    first: Path, tmp_path: Path, command: Callable[..., str], computed: list[tuple[int, ...]]
) -> None:
    folder = first / "halfway"
    before = answers_in(folder)
    assert len(before) == 5 * 4, "the multiple choice was answered, the word problems were not"
    contents = {path: path.read_bytes() for path in (folder / "responses").iterdir()}
    printed = command("eval", "resume", HALFWAY, "--results", folder, "--json")
    resumed = list(computed)
    assert_same_scores(scores_of(printed), SCORES[PLAIN])
    assert json.loads(printed)["provenance"]["run"] == HALFWAY
    after = answers_in(folder)
    assert set(before) < set(after) and len(after) == 5 * 4 + 5
    assert {path: path.read_bytes() for path in contents} == contents
    # It computes what a run of the word problems alone does, and no more.
    computed.clear()
    words = [word.replace("demo_mmlu,", "") for word in ASKED]
    command("eval", "run", *words, "--output", tmp_path / "alone")
    assert resumed == computed != []
    path = Path(json.loads(printed)["path"])
    whole, texts = samples_beside(path), samples_beside(first / PLAIN)
    assert whole["demo_mmlu"] == texts["demo_mmlu"]
    assert [row["resps"] for row in whole["demo_gsm8k"]] == [row["resps"] for row in texts["demo_gsm8k"]]
    assert main(["eval", "resume", HALFWAY, "--results", str(folder)]) == 2, "it is finished now"


# --- captures -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "hooks", "heads", "positions"),
    [
        (
            "quick",
            [
                "blocks.0.hook_resid_pre",
                "blocks.4.attn.hook_pattern",
                "blocks.5.attn.hook_pattern",
                "blocks.5.hook_resid_post",
            ],
            None,
            None,
        ),
        (
            "narrow",
            [
                "blocks.2.attn.hook_pattern",
                "blocks.2.attn.hook_z",
                "blocks.4.attn.hook_pattern",
                "blocks.4.attn.hook_z",
            ],
            (0, 3),
            (1, 2, 3),
        ),
    ],
)
def test_a_capture_opens_with_the_values_of_today(
    first: Path,
    model: wb.Transformer,
    name: str,
    hooks: list[str],
    heads: tuple[int, ...] | None,
    positions: tuple[int, ...] | None,
) -> None:
    capture = wb.Capture.load(first / "captures" / f"{name}.safetensors")
    assert model.tokenizer is not None and model.source is not None
    assert capture.tokens.tolist() == [model.tokenizer.encode("one two one two", bos=True)]
    assert list(capture.names) == hooks
    assert (capture.heads, capture.positions) == (heads, positions)
    assert capture.config == model.config
    assert capture.provenance["checkpoint_sha256"] == model.source.checkpoint_sha256
    assert (capture.provenance["dtype"], capture.provenance["interventions"]) == ("float32", [])
    with torch.no_grad():
        _, today = model.run_with_capture(capture.tokens, hooks, heads=heads, positions=positions)
    for hook in hooks:
        torch.testing.assert_close(capture[hook], today[hook], rtol=1e-4, atol=1e-4)


def test_a_capture_that_the_dashboard_saved_opens(first: Path, tmp_path: Path, command: Callable[..., str]) -> None:
    capture = wb.Capture.load(first / "captures" / "saved.safetensors")
    assert capture.tokens.tolist() == [[1024, 97]] and len(capture.names) == 94
    assert capture.provenance["dtype"] == "bfloat16" and capture.provenance["checkpoint_sha256"]
    words = [word for hook in capture.names for word in ("--hooks", hook)]
    path = tmp_path / "today.safetensors"
    command("capture", "demo", "a", *words, "--device", "cpu", "--dtype", "bfloat16", "--output", path)
    today = wb.Capture.load(path)
    assert today.names == capture.names
    for hook in capture.names:
        old, new = capture[hook].float(), today[hook].float()
        # A bfloat16 has eight bits of precision, and every processor rounds its sums in its own way.
        torch.testing.assert_close(old, new, rtol=0.05, atol=0.05 * float(old.abs().max()), msg=hook)


# --- interventions --------------------------------------------------------------------------------------------


def intervention(entry: Mapping[str, Any]) -> Any:
    """An entry of the file as an object of the public API."""
    kinds = {"ablate": wb.Ablate, "scale": wb.Scale, "add": wb.Add, "patch": wb.Patch, "rope_scaling": wb.RopeScaling}
    values = dict(entry)
    kind: Any = kinds[values.pop("kind")]
    if "value" in values:
        stored = values["value"]
        data = base64.b64decode(stored["base64"])
        numbers = struct.unpack(f"<{len(data) // 4}f", data)
        values["value"] = torch.tensor(numbers, dtype=getattr(torch, stored["dtype"])).reshape(stored["shape"])
    if "llama3" in values:
        values["llama3"] = wb.Llama3Scaling(**values["llama3"])
    return kind(**values)


def with_yarn(entries: list[dict[str, Any]], *, truncate: bool) -> list[dict[str, Any]]:
    """The entries of the file, which does not say how YaRN rounds: the first version did not, now it does."""
    return [entry | ({"truncate": truncate} if "yarn" in entry else {}) for entry in entries]


def test_interventions_are_written_as_they_were(first: Path, model: wb.Transformer) -> None:
    entries = json.loads((first / "interventions.json").read_text())
    assert {entry["kind"] for entry in entries} == {"ablate", "scale", "add", "patch", "rope_scaling"}
    assert [intervention(entry).to_dict() for entry in entries] == with_yarn(entries, truncate=True)
    as_then = with_yarn(entries, truncate=False)
    changes = [intervention(entry) for entry in as_then]
    assert [change.to_dict() for change in changes] == as_then
    assert model.tokenizer is not None
    tokens = torch.tensor([model.tokenizer.encode("one two one two", bos=True)])
    with torch.no_grad(), model.intervene(*changes):
        logits = model(tokens)[0, -1, :6]
    expected = torch.tensor([-0.10549, -0.1078, -0.38993, -0.06169, -0.2292, -0.227])
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-3)


def test_a_file_of_interventions_applies(first: Path, tmp_path: Path, command: Callable[..., str]) -> None:
    words = ["--model", "demo", "--tasks", "demo_mmlu", "--limit", "1", "--device", "cpu", "--dtype", "float32"]
    file, as_then, output = first / "interventions.json", tmp_path / "then.json", tmp_path / "changed"
    entries = json.loads(file.read_text())
    printed = command("eval", "run", *words, "--intervene", file, "--output", tmp_path / "now", "--json")
    assert json.loads(printed)["provenance"]["interventions"] == with_yarn(entries, truncate=True)
    as_then.write_text(json.dumps(with_yarn(entries, truncate=False)))
    printed = command("eval", "run", *words, "--intervene", as_then, "--output", output, "--json")
    assert json.loads(printed)["provenance"]["interventions"] == with_yarn(entries, truncate=False)
    sample = json.loads(command("eval", "show", output, "--sample", "demo_mmlu/0", "--json"))
    assert sample["logprobs"] == pytest.approx([-2.5229, -7.9627, -0.0889, -5.4949], abs=2e-3)


# --- names ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def interface() -> dict[str, Any]:
    """The names of the first version: public names, hook points, and commands with their options."""
    return dict(json.loads((FIRST_VERSION / "interface.json").read_text()))


def test_public_names_are_there(interface: dict[str, Any]) -> None:
    assert set(interface["names"]) - set(wb.__all__) == set()
    assert [name for name in interface["names"] if not hasattr(wb, name)] == []


def test_hook_names_are_there_in_their_order(interface: dict[str, Any], model: wb.Transformer) -> None:
    old = interface["hook_names"]
    assert len(old) > 90
    assert [name for name in wb.hook_names(model.config) if name in old] == old


def test_every_command_has_its_options(interface: dict[str, Any], command: Callable[..., str]) -> None:
    missing = {}
    for name, old in interface["commands"].items():
        text = command(*name.split(), "--help")
        usage = " ".join(text.partition("\n\n")[0].split())
        assert usage.startswith(f"Usage: workbench {name} [OPTIONS]"), name
        columns = re.findall(r"^  (-.*?)(?:\s{2,}|$)", text, re.MULTILINE)
        options = {option for column in columns for option in re.findall(r"(?<![\w-])--?[A-Za-z][\w-]*", column)}
        if gone := set(old["options"]) - options:
            missing[name] = sorted(gone)
        assert len(usage.partition("[OPTIONS]")[2].split()) >= old["arguments"], name
    assert missing == {}


# --- addresses ------------------------------------------------------------------------------------------------

ADDRESSES = json.loads((FIRST_VERSION / "addresses.json").read_text())


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack(tmp_path_factory.mktemp("served") / "first")


@pytest.fixture
def browser(served: Path, monkeypatch: pytest.MonkeyPatch, project_root: Path) -> Callable[..., AppTest]:
    """Open an address in a session that remembers nothing, as a browser does."""
    st.cache_resource.clear()
    environment = {APP_MODEL: "demo", APP_RESULTS: str(served), APP_MORE_MODELS: "[]", APP_CAPTURES: ""}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    def visit(page: str, parameters: Mapping[str, Any]) -> AppTest:
        session = AppTest.from_file(str(project_root / "app.py"), default_timeout=60)
        if page != "overview":
            # AppTest opens pages by their files, which may move; Streamlit knows a page by the hash of its address.
            session._page_hash = page_hashes(project_root)[page]
        session.query_params.update(parameters)
        return session.run()

    return visit


_hashes: dict[str, str] = {}


def page_hashes(root: Path) -> dict[str, str]:
    """Streamlit's name of each page, by the last part of its address."""
    if not _hashes:
        session = AppTest.from_file(str(root / "app.py"), default_timeout=60).run()
        _hashes.update({about["url_pathname"]: name for name, about in session._registered_pages.items()})
    return _hashes


def controls(session: AppTest) -> dict[str, Any]:
    kinds = ("number_input", "selectbox", "text_area", "text_input", "toggle", "slider", "multiselect", "button_group")
    return {control.key: control.value for kind in kinds for control in getattr(session, kind) if control.key}


def test_every_page_has_an_address(browser: Callable[..., AppTest], project_root: Path) -> None:
    assert {address["page"] for address in ADDRESSES} == {"overview", *page_hashes(project_root)} - {""}


@pytest.mark.parametrize("address", ADDRESSES, ids=lambda address: address["page"])
def test_an_address_shows_what_it_did(browser: Callable[..., AppTest], address: dict[str, Any]) -> None:
    session = browser(address["page"], address["parameters"])
    assert not session.exception
    shown = controls(session)
    assert {name: shown.get(name) for name in address["values"]} == address["values"]
    texts = [element.value for kind in ("subheader", "text", "markdown") for element in getattr(session, kind)]
    assert [text for text in address["texts"] if not any(text in line for line in texts)] == []
    assert len(session.error) == address.get("errors", 0), [error.value for error in session.error]
