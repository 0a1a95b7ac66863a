"""Reports have the same content in every format, escape all text, and load nothing from the network."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from markdown_it import MarkdownIt

from evals import stats
from evals.compare import published
from evals.report import markup, report
from evals.results.runs import Run, write
from workbench.errors import DataError

HOSTILE = r"<script>alert(1)</script>|a_b & $x$ #1 50% `c` \\end{tabular} **d**"


def run_of(folder: Path, **changes: Any) -> Run:
    """Two subjects in a group, and a generation task with two filters."""
    data = {
        "results": {
            "s_a": {"acc,none": 0.8, "acc_stderr,none": 0.1333},
            "s_b": {"acc,none": 0.4, "acc_stderr,none": 0.0910},
            "words": {"exact_match,strict-match": 0.2, "exact_match_stderr,strict-match": 0.2, "bleu,none": 31.5},
            "s": {"acc,none": 0.5, "acc_stderr,none": 0.0781},
        },
        "group_subtasks": {"s": ["s_a", "s_b"]},
        "configs": {"s_a": {}, "s_b": {}, "words": {}},
        "n-shot": {"s_a": 5, "s_b": 5, "words": 0},
        "n-samples": {
            "s_a": {"original": 10, "effective": 10},
            "s_b": {"original": 30, "effective": 30},
            "words": {"original": 5, "effective": 5},
        },
        "model_name": "tiny",
        "date": 1_700_000_000.0,
        "workbench": {"checkpoint_sha256": "ab" * 32, "dtype": "float32", "seed": 7, "versions": {"torch": "2.13.0"}},
        **changes,
    }
    return write(folder, data, {})


def of_card(folder: Path, score: float, shots: int, **changes: Any) -> Run:
    """A complete run of GSM8K with chain of thought."""
    return run_of(
        folder,
        results={"gsm8k_cot": {"exact_match,strict-match": score, "exact_match_stderr,strict-match": 0.01}},
        group_subtasks={},
        configs={"gsm8k_cot": {}},
        **{"n-shot": {"gsm8k_cot": shots}, "n-samples": {"gsm8k_cot": {"original": 1319, "effective": 1319}}},
        **changes,
    )


class Page(HTMLParser):
    """Rows of cells' texts, and every tag with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self._cell = True
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self._cell = self._cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._cell:
            self.rows[-1][-1] += data


def markdown_rows(text: str) -> list[list[str]]:
    """The cell texts of the tables, read by an independent parser."""
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(text)
    rows: list[list[str]] = []
    for before, token in zip(tokens, tokens[1:], strict=False):
        if before.type == "tr_open":
            rows.append([])
        if before.type in ("th_open", "td_open"):
            kinds = {child.type for child in token.children or []}
            assert kinds <= {"text", "text_special"}, f"{token.content} is more than text: {kinds}"
            rows[-1].append("".join(child.content for child in token.children or []))
    return rows


def test_one_run_has_groups_subjects_and_origin(tmp_path: Path) -> None:
    made = report.build([run_of(tmp_path)])
    whole, members = made.tables
    assert whole.head == ("task", "metric", "shots", "n", "score", "95% interval")
    low, high = (f"{100 * end:.1f}" for end in stats.wilson(20, 40))
    assert whole.rows[0] == ("s", "acc, micro", "5", "40", "50.0", f"{low} - {high}")
    assert whole.rows[1][:5] == ("s", "acc, macro", "5", "40", "60.0")
    assert whole.rows[3] == ("words", "bleu", "0", "5", "31.5", ""), "no proportion, and no interval"
    assert members.title == "Members of s" and [row[0] for row in members.rows] == ["s_a", "s_b"]
    (badge,) = made.badges
    assert badge.startswith("words: no interval for bleu")
    ((name, about),) = made.origins
    assert name.startswith(tmp_path.name)
    assert {("checkpoint_sha256", "ab" * 32), ("dtype", "float32"), ("versions", "torch 2.13.0")} <= set(about)


def test_what_is_partial_is_badged(tmp_path: Path) -> None:
    counts = {"s_a": {"original": 100, "effective": 10}, "s_b": {"original": 30, "effective": 30}}
    own = {"not_run": {"code": "no sandbox"}, "interventions": [{"kind": "ablate"}]}
    made = report.build([run_of(tmp_path, workbench=own, **{"n-samples": counts})])
    assert made.badges == (
        "partial: 10 of 100 questions of s_a",
        "partial: code was not run: no sandbox",
        'the run used interventions: [{"kind": "ablate"}]',
    )
    assert made.tables[0].rows[0][3] == "40 of 130" and made.tables[1].rows[1][3] == "30"
    table = report.frame([run_of(tmp_path, **{"n-samples": counts})])
    assert dict(zip(table.task, table.partial, strict=True))["s_a"]
    assert '<li><span class="badge">partial: 10 of 100' in report.document(
        [run_of(tmp_path, **{"n-samples": counts})]
    ).text("html")


def test_runs_side_by_side(tmp_path: Path) -> None:
    a, b = run_of(tmp_path / "a"), run_of(tmp_path / "b", **{"n-shot": {"s_a": 0, "s_b": 0, "words": 0}})
    alike, unlike = report.build([a, run_of(tmp_path / "c")]).tables[0], report.build([a, b]).tables[0]
    assert alike.head[2:] == ("shots", "n", "A: score", "A: 95% interval", "B: score", "B: 95% interval")
    assert unlike.head[2:6] == ("A: shots", "A: n", "A: score", "A: 95% interval")
    assert unlike.rows[0][2:5] == ("5", "40", "50.0") and unlike.rows[0][6:9] == ("0", "40", "50.0")
    other = run_of(tmp_path / "d", results={"new": {"acc,none": 0.5}}, group_subtasks={}, configs={"new": {}})
    rows = report.build([a, other]).tables[0].rows
    assert rows[-1][0] == "new" and rows[-1][2:4] != ("", "") and rows[0][-2:] == ("", "")
    with pytest.raises(DataError, match="1 to 26 runs; found 0"):
        report.build([])


def test_all_formats_have_the_same_cells(tmp_path: Path) -> None:
    runs = [run_of(tmp_path / name) for name in "ab"]
    made = report.build(runs)
    expected = [list(row) for table in made.tables for row in (table.head, *table.rows)]
    assert Page(report.document(runs).text("html")).rows == expected
    assert markdown_rows(report.document(runs).text("md")) == expected
    plain = re.sub(r"\\([_%&#$])", r"\1", report.document(runs).text("latex"))
    lines = [line.removesuffix(r" \\").split(" & ") for line in plain.splitlines() if line.endswith(r"\\")]
    assert lines == expected


def test_hostile_names_are_text_everywhere(tmp_path: Path) -> None:
    task = HOSTILE.replace("/", "|")  # a task's name is part of a file name
    run = run_of(
        tmp_path,
        results={task: {"acc,none": 0.5, "acc_stderr,none": 0.1}},
        configs={task: {}},
        group_subtasks={},
        model_name=HOSTILE,
        **{"n-samples": {task: {"original": 9, "effective": 4}}},
    )
    page = Page(report.document([run]).text("html"))
    assert page.rows[1][0] == task
    assert markdown_rows(report.document([run]).text("md"))[1][0] == task
    text = report.document([run]).text("latex")
    assert text.count(r"\end{tabular}") == text.count(r"\begin{tabular}") == 1
    assert not re.search(r"(?<!\\)[$#]", text.split("\n", 1)[1]), "active characters are escaped"
    assert pd.read_csv(_saved(run, "csv", tmp_path)).task[0] == task


def test_the_page_is_static_and_alone(tmp_path: Path) -> None:
    page = Page(report.document([run_of(tmp_path)]).text("html"))
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "img", "iframe", "object", "form"}
    assert not {
        name for _, attributes in page.tags for name in attributes if name in ("src", "href") or name[:2] == "on"
    }
    assert "url(" not in report.document([run_of(tmp_path)]).text("html")


def test_a_table_of_words_alone_may_break_its_lines() -> None:
    table = markup.Table("Words", ("", "A", "B"), (("hash", "ab" * 32, "[x]"),), left=3)
    made = markup.Report("r", ("a badge",), (table,), (), ())
    tex = markup.latex(made)
    assert r"\begin{tabular}{lp{.38\linewidth}p{.38\linewidth}}" in tex and r"ab\allowbreak{}ab" in tex
    assert r"\fbox{\parbox{.95\linewidth}{\textbf{a badge}}}" in tex and "{[}x]" in tex
    assert '<table class="prose">' in markup.html(made)


def test_long_tables_go_on_in_another_tabular(tmp_path: Path) -> None:
    names = [f"t{i}" for i in range(95)]
    run = run_of(
        tmp_path,
        results={name: {"acc,none": 0.5} for name in names},
        configs=dict.fromkeys(names, {}),
        group_subtasks={},
    )
    parts = report.document([run]).text("latex").split(r"\begin{tabular}")[1:]
    assert [part.count(r"\\") - 1 for part in parts] == [40, 40, 15]


def _saved(run: Run, format: str, folder: Path, **options: Any) -> Path:
    path = folder / f"report.{format}"
    report.document([run], **options).save(format, path)
    return path


def test_tables_are_read_back_as_they_were(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    table = report.frame([run])
    from_parquet = pd.read_parquet(_saved(run, "parquet", tmp_path))
    pd.testing.assert_frame_equal(from_parquet, table, check_dtype=False)
    from_csv = pd.read_csv(_saved(run, "csv", tmp_path))
    assert from_csv.value.tolist() == table.value.tolist() and from_csv.low.iloc[0] == table.low.iloc[0]
    assert (from_csv.checkpoint_sha256 == "ab" * 32).all() and (from_csv.seed == 7).all()
    assert not list(tmp_path.glob("*.partial"))
    with pytest.raises(DataError, match="cannot be written: No such file"):
        report.document([run]).save("md", tmp_path / "absent" / "r.md")


def test_published_scores_are_the_sources() -> None:
    scores = published.published()
    assert len(scores) == 40 and all(0 < score.value < 1 and score.source.endswith("model card") for score in scores)
    (score,) = [f for f in published.scores_of_model("llama-3.1-8b-instruct") if f.task == "gsm8k_cot"]
    assert (score.value, score.shots, score.metric, score.source) == (0.845, "8", "em_maj1@1", "Llama 3.1 model card")
    with pytest.raises(DataError, match="no published scores for 'llama-2'; there are scores for llama-3-8b"):
        published.scores_of_model("llama-2")


def test_published_scores_stand_beside_measured_ones(tmp_path: Path) -> None:
    figures = published.scores_of_model("llama-3.1-8b-instruct")
    (near,) = published.compare_with_published(of_card(tmp_path / "a", 0.83, 8, chat_template="llama"), figures)
    assert near.published.value == 0.845 and near.difference == pytest.approx(-0.015)
    assert near.within and near.setup_differences == (), "2.0 points are a half-width at 83% of 1319"
    (far,) = published.compare_with_published(of_card(tmp_path / "b", 0.80, 0), figures)
    assert not far.within
    assert far.setup_differences == ("shots 0, published 8", "plain prompts, published for the instruct model")
    made = report.build([of_card(tmp_path / "c", 0.80, 0)], figures=figures)
    row = made.tables[-1].rows[0]
    assert row[-4:] == ("80.0", "84.5", "-4.5", "outside") and "shots 0, published 8" in row[5]
    table = report.frame([of_card(tmp_path / "d", 0.80, 0)], figures=figures)
    assert table.run.tolist()[-1] == "published" and table.value.tolist()[-1] == 0.845 and pd.isna(table.low.iloc[-1])


def test_a_macro_average_stands_beside_a_macro_average(tmp_path: Path) -> None:
    run = run_of(
        tmp_path,
        results={"mmlu_x": {"acc,none": 0.7}, "mmlu_y": {"acc,none": 0.6}, "mmlu": {"acc,none": 0.65}},
        group_subtasks={"mmlu": ["mmlu_x", "mmlu_y"]},
        **{
            "n-shot": {"mmlu_x": 5, "mmlu_y": 5},
            "n-samples": {f"mmlu_{x}": {"original": 50, "effective": 20} for x in "xy"},
        },
    )
    (comparison,) = published.compare_with_published(run, published.scores_of_model("llama-3.1-8b"))
    assert (comparison.score.average, comparison.published.value, comparison.setup_differences) == (
        "macro",
        0.667,
        ("40 of 100 questions",),
    )


def test_nothing_is_said_of_a_model_that_was_not_named(tmp_path: Path) -> None:
    run = of_card(tmp_path, 0.83, 8, model_name="llama-3.1-8b-instruct")
    assert "84.5" not in report.document([run]).text("md")
    assert published.models_of_size(8_030_261_248) == [
        "llama-3-8b", "llama-3.1-8b", "llama-3-8b-instruct", "llama-3.1-8b-instruct",
    ]  # fmt: skip
    assert published.models_of_size(2_853_312) == published.models_of_size(None) == []
    made = report.build([run_of(tmp_path)], figures=published.scores_of_model("llama-3.1-8b"))
    assert made.notes[-1] == "No published score of llama-3.1-8b is for a task of these runs."
