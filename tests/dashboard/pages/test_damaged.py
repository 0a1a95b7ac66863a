"""Damaged and hostile results files and stores: each page shows the good runs, and names the bad files."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from evals.results.runs import PROVENANCE, list_runs
from evals.store.store import Store
from tests.dashboard.page_text import texts
from tests.evals.results.test_form import DAMAGED, write_damaged

App = Callable[..., AppTest]
Serve = Callable[[str, Path], None]
LENIENT = {
    "shots": {"n-shot": {"demo_mmlu": "x"}},
    "no date": {"date": None},
    "other runs' tasks": {"configs": {"x": {}}},
    "no tasks": {"configs": {}},
    "no provenance": {PROVENANCE: []},
    "null everywhere": {PROVENANCE: dict.fromkeys(("not_run", "not_finite", "programs", "versions", "interventions"))},
}


@pytest.fixture
def damaged(app: App, serve: Serve, results: Path, checkpoint: Path, tmp_path: Path) -> Path:
    root = shutil.copytree(results, tmp_path / "results")
    good = list_runs(root)[0]
    for number, changes in enumerate(LENIENT.values()):
        (root / f"odd{number}").mkdir()
        (root / f"odd{number}" / good.path.name).write_text(json.dumps({**good.data, **changes}))
    write_damaged(root)
    with Store.open(root / "stopped") as store:
        for settings in ("x", {"tasks": 3}, {"tasks": ["demo_mmlu"], "backend": "hf", "model_args": {"a": "\x1b[31m"}}):
            store.fail(store.register({"model": "demo", "settings": settings}), "stopped", interrupted=True)
    serve(str(checkpoint), root)
    return root


@pytest.mark.parametrize("page", ["overview", "benchmarks", "samples", "runs"])
def test_a_page_shows_the_good_runs_and_names_the_bad_files(
    app: App, serve: Serve, damaged: Path, checkpoint: Path, page: str
) -> None:
    session = app(page)
    assert not session.exception, [error.value for error in session.exception]
    if page in ("benchmarks", "samples"):
        good = {f"{run.path.parent.name}/{run.stamp}" for run in list_runs(damaged)}
        assert set(session.selectbox(key="run").options) == good and len(good) > len(LENIENT)
    if page == "benchmarks":
        shown = "\n".join(texts(session))
        assert f"results_{len(DAMAGED) - 1}.json" in shown and "results_deep.json" in shown


@pytest.mark.parametrize("number", range(len(LENIENT)), ids=LENIENT)
@pytest.mark.parametrize("page", ["benchmarks", "samples"])
def test_an_odd_run_is_shown_or_explained(app: App, damaged: Path, page: str, number: int) -> None:
    run = next(run for run in list_runs(damaged) if run.path.parent.name == f"odd{number}")
    session = app(page, run=run.name)
    assert not session.exception, [error.value for error in session.exception]
