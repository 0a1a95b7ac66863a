"""Forest plots show the measured scores with their intervals, and escape markup in names."""

from pathlib import Path
from typing import Any

import pytest

from evals import stats
from evals.compare import published
from evals.compare.compare import compare
from evals.report import forest_plots
from evals.results.runs import Run, write

QUESTIONS = 40


def run_of(folder: Path, right: int, *, task: str = "gsm8k_cot", **changes: Any) -> Run:
    """One task of 40 questions, of which the first `right` are right."""
    samples = [
        {
            "doc_id": i,
            "doc": {"question": f"q{i}"},
            "target": "1",
            "arguments": {"gen_args_0": {"arg_0": f"q{i}", "arg_1": {}}},
            "resps": [["1"]],
            "filtered_resps": ["1" if i < right else "2"],
            "filter": "none",
            "metrics": ["exact_match"],
            "exact_match": float(i < right),
        }
        for i in range(QUESTIONS)
    ]
    data = {
        "results": {task: {"exact_match,none": right / QUESTIONS, "exact_match_stderr,none": 0.05, "bleu,none": 31.0}},
        "configs": {task: {}},
        "n-shot": {task: 8},
        "n-samples": {task: {"original": QUESTIONS, "effective": QUESTIONS}},
        **changes,
    }
    return write(folder, data, {task: samples})


def test_a_forest_has_every_proportion_with_its_interval(tmp_path: Path) -> None:
    runs = [run_of(tmp_path / name, right) for name, right in (("a", 10), ("b", 25))]
    fig = forest_plots.forest(runs, figures=published.scores_of_model("llama-3.1-8b-instruct"), stamp={"by": "test"})
    first, second, cross = fig.data
    assert list(first.x) == [25.0] and list(second.x) == [62.5] and list(first.y) == ["gsm8k_cot · exact_match"]
    low, high = stats.wilson(10, 40)
    assert first.x[0] + first.error_x.array[0] == pytest.approx(100 * high)
    assert first.x[0] - first.error_x.arrayminus[0] == pytest.approx(100 * low)
    assert (cross.name, list(cross.x)) == ("llama-3.1-8b-instruct, published", [84.5])
    assert fig.layout.meta == {"kind": "forest", "by": "test"}
    assert first.marker.color != second.marker.color and first.marker.symbol != second.marker.symbol


def test_in_a_card_there_are_the_tasks_asked_for_in_two_lines(tmp_path: Path) -> None:
    runs = [run_of(tmp_path / "a", 10, task="x\u202e · y"), run_of(tmp_path / "b", 25)]
    fig = forest_plots.forest(runs, keep=lambda score: score.task == "x\u202e · y", card=True)
    first, second = fig.data
    assert list(first.y) == ["x <br>y · exact_match"] and list(second.x) == []
    assert list(fig.layout.yaxis.categoryarray) == list(first.y) and fig.layout.title.text is None


def test_differences_are_filled_where_they_are_sure(tmp_path: Path) -> None:
    a, b, c = (run_of(tmp_path / name, right) for name, right in (("a", 10), ("b", 25), ("c", 12)))
    (sure,), (unsure,) = (forest_plots.differences(compare(a, other)).data for other in (b, c))
    assert list(sure.x) == [37.5] and list(sure.marker.symbol) == ["square"]
    assert list(unsure.x) == pytest.approx([5.0]) and list(unsure.marker.symbol) == ["square-open"]
    low, high = stats.paired_interval(0, 15, 40)
    assert sure.error_x.array[0] == pytest.approx(100 * high - 37.5)
    assert sure.error_x.arrayminus[0] == pytest.approx(37.5 - 100 * low)


def test_a_run_of_a_part_of_the_questions_is_called_so(tmp_path: Path) -> None:
    part = {"n-samples": {"gsm8k_cot": {"original": 400, "effective": QUESTIONS}}}
    whole, partial = forest_plots.forest([run_of(tmp_path / "a", 10), run_of(tmp_path / "b", 25, **part)]).data
    assert partial.name.endswith(" (partial)") and "partial" not in whole.name


def test_names_are_no_markup(tmp_path: Path) -> None:
    run = run_of(tmp_path / "<b>&a", 10, task="<i>x")
    (trace,) = forest_plots.forest([run]).data
    assert trace.name.startswith("&lt;b>&amp;a/") and list(trace.y) == ["&lt;i>x · exact_match"]


def test_a_page_needs_no_network(tmp_path: Path) -> None:
    path = tmp_path / "forest.html"
    forest_plots.save(forest_plots.forest([run_of(tmp_path / "a", 10)]), path)
    text = path.read_text(encoding="utf-8")
    assert '<script src="' not in text and "gsm8k_cot" in text
