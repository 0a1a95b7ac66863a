"""Parts of the dashboard that need no page: settings, model facts, samples, packed patterns, the server command."""

import base64
import gc
import hashlib
import io
import json
import re
import struct
import sys
import tomllib
import weakref
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import typer
from plotly.offline import get_plotlyjs_version

from dashboard import cli
from dashboard.components.token_strip import pack
from dashboard.data import model_facts
from dashboard.data.runs import as_sample
from dashboard.layout import figure_margins, preload
from dashboard.layout.downloads import parquet
from dashboard.layout.figure import CODE, figure_json
from dashboard.layout.figure_help import FIGURE_HELP
from dashboard.session import gc_freeze
from dashboard.session.settings import ROOT, Settings
from evals.results.runs import list_runs
from probes.base.drawing import Theme
from workbench.config import ModelConfig
from workbench.errors import CheckpointError

PUBLISHED = (
    "79542150855a52c567260e3137095dbe2b744e6d702a5cabe67da246942fba7a"  # sha256 of npm's plotly.js-cartesian-dist-min
)


def test_settings_survive_the_way_to_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Settings.from_env(Settings("model", Path("runs")).to_env()) == Settings(
        str(tmp_path / "model"), tmp_path / "runs"
    )
    assert Settings.from_env({}).model == "demo"
    assert Settings.from_env(Settings("demo").to_env()).model == "demo"


def test_cache_bytes_are_those_of_the_published_8b() -> None:
    config = ModelConfig(
        dim=4096, n_layers=32, n_heads=32, n_kv_heads=8, ffn_dim=14336, vocab_size=128256, max_seq_len=131072
    )
    table = model_facts.cache_bytes(config, itemsize=2).set_index("kind")
    assert table.loc["GQA", "bytes_per_token"] == 128 * 1024
    assert table.loc["GQA", "bytes_at_context"] == 16 * 1024**3
    assert table.loc["MHA", "bytes_per_token"] == 4 * 128 * 1024


def test_parts_hold_every_parameter_once(tiny_model) -> None:  # type: ignore[no-untyped-def]
    table = model_facts.parameters_by_part(tiny_model.config)
    assert table["parameters"].sum() == sum(parameter.numel() for parameter in tiny_model.parameters())
    assert table.set_index("part").loc["Norms", "parameters"] == 32 * (2 * 3 + 1)
    assert table["share"].sum() == pytest.approx(1)


def test_packed_patterns_read_back_row_by_row() -> None:
    pattern = np.array([[1, np.nan, np.nan], [0.25, 0.75, np.nan], [0, 0.5, 0.5]])
    packed = base64.b64decode(pack(pattern))
    assert struct.unpack("<6H", packed) == (65535, 16384, 49151, 0, 32768, 32768)


def test_samples_replay_the_answer_that_was_given(results: Path) -> None:
    run = next(run for run in list_runs(results) if run.path.parent.name == "first")
    quiz = run.samples("tiny_quiz")
    wrong = as_sample(run, "tiny_quiz", quiz.iloc[5])
    assert (wrong.answer, wrong.target, wrong.correct) == ("B", "A", 0.0)
    assert wrong.ids == (306, 65, 66, 67, 65, 66, 69)
    assert wrong.reference == f"{run.name}/tiny_quiz/5"
    generated = as_sample(run, "tiny_sums", run.samples("tiny_sums").iloc[0])
    assert generated.ids == (65, 66, 67, 68, 69, 70, 71)
    assert (generated.answer, generated.target, generated.finish) == ("1", "1", "stop")


def test_a_sample_without_token_ids_says_so(results: Path) -> None:
    run = list_runs(results)[0]
    row = run.samples("tiny_sums").iloc[0].drop(["prompt_ids", "generated_ids"])
    assert as_sample(run, "tiny_sums", row).ids is None


def test_a_wrong_model_path_is_refused_before_a_server_starts() -> None:
    with pytest.raises(CheckpointError, match="nowhere: no such file or directory"):
        cli.main(model=["nowhere"], check=True)


def test_a_taken_port_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(cli.ServerError, match=rf"Port {taken.getsockname()[1]} .* --port"):
            cli.main(model=["demo"], port=taken.getsockname()[1])


def test_a_server_that_dies_is_a_failed_check(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dying = [sys.executable, "-c", "print('no such thing'); exit(3)"]
    monkeypatch.setattr(cli, "server_command", lambda port, app: dying)
    with pytest.raises(typer.Exit) as ended:
        cli.main(model=["demo"], check=True)
    assert ended.value.exit_code == 1
    assert "ended with code 3" in (output := capsys.readouterr().err) and "no such thing" in output


@pytest.mark.slow
def test_the_check_starts_a_server_and_stops_it(
    checkpoint: Path, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as ended:
        cli.main(model=[str(checkpoint)], results=results, check=True)
    assert ended.value.exit_code == 0
    assert "Dashboard healthy at http://127.0.0.1:" in capsys.readouterr().err


def test_parquet_holds_columns_of_several_types_as_text() -> None:
    table = pd.DataFrame({"answer": [1, "B", None], "logprobs": [[-1.0], [-2.0, -3.0], []], "n": [1, 2, 3]})
    back = pd.read_parquet(io.BytesIO(parquet(table)))
    assert back["answer"].tolist()[:2] == ["1", "B"] and pd.isna(back["answer"][2])
    assert [list(values) for values in back["logprobs"]] == table["logprobs"].tolist()
    assert back["n"].tolist() == [1, 2, 3]
    assert table["answer"][0] == 1  # what came in is as it was


def test_every_figure_with_a_title_says_what_it_shows() -> None:
    """`chart` looks up the help text by the figure's kind; the tests of the pages draw them all."""
    assert all(text.count("](https://") >= 1 and text[0].isupper() and "$" not in text for text in FIGURE_HELP.values())


def test_what_is_set_aside_is_freed_by_an_unload() -> None:
    class Loop:
        def __init__(self) -> None:
            self.me = self

    gc.collect()
    before = gc.get_freeze_count()
    gc.disable()  # only explicit collections
    try:
        gone = weakref.ref(Loop())
        gc_freeze.freeze_objects("a page of its own")
        gc.collect()
        assert gone() is not None and gc.get_freeze_count() > before
        gc_freeze.collect_all()
        assert gone() is None and gc.get_freeze_count() > 0
    finally:
        gc.enable()
        gc.unfreeze()


def test_the_code_that_is_read_ahead_lies_where_it_is_looked_for() -> None:
    """If Streamlit moves these files, the first switch of pages becomes slow, and no other test notices it."""
    assert [name.partition(".")[0] for name in preload._FILES] == list(preload._KINDS)


def test_the_code_that_draws_figures_is_plotlys_own(project_root: Path) -> None:
    """The bundle has the version of the plotly package and is unchanged, and no other file is served."""
    code = project_root / "static" / Path(CODE).name
    assert sorted((project_root / "static").iterdir()) == [project_root / "static" / "LICENSE", code]
    assert code.name == f"plotly-cartesian-{get_plotlyjs_version()}.min.js"
    assert hashlib.sha256(code.read_bytes()).hexdigest() == PUBLISHED


def test_the_code_that_draws_figures_knows_every_kind_of_trace_that_they_have(project_root: Path) -> None:
    """Plotly silently draws an unknown kind as lines, which is intended for scattergl only."""
    built = (project_root / "static" / Path(CODE).name).read_text(encoding="utf-8")
    sources = [file for part in ("probes", "evals", "dashboard") for file in (project_root / part).rglob("*.py")]
    known = {name.lower() for name in dir(go)}
    named = re.compile(r"\bgo\.([A-Z]\w+)\(|\.add_([a-z0-9]+)\(")
    made = {"".join(match) for file in sources for match in named.findall(file.read_text(encoding="utf-8"))}
    kinds = {name.lower() for name in made} & known - {"figure", "layout", "scattergl"}
    assert {"bar", "heatmap", "scatter"} <= kinds
    assert [kind for kind in sorted(kinds) if f'name:"{kind}"' not in built] == []


def test_a_figure_is_sent_in_the_colours_of_the_page() -> None:
    fig = go.Figure(go.Heatmap(z=np.eye(3, dtype=np.float32)), {"meta": {"kind": "map"}, "height": 300})
    light, dark = (json.loads(figure_json(fig, theme)) for theme in get_args(Theme))
    paper = tomllib.loads((ROOT / ".streamlit" / "config.toml").read_text())["theme"]["dark"]["backgroundColor"]
    assert [sent["layout"]["template"]["layout"]["paper_bgcolor"] for sent in (light, dark)] == ["#ffffff", paper]
    assert light["layout"]["meta"] == {"kind": "map"} and light["data"] == dark["data"]
    for sent in (light, dark):
        go.layout.Template(sent["layout"]["template"])  # plotly knows every name in it


def test_margins_hold_the_longest_label() -> None:
    def sent(fig: go.Figure) -> dict[str, dict]:
        parts = json.loads(fig.to_json())
        figure_margins.set_margins(parts)
        return parts["layout"]

    def figure(names: list[str], **below: object) -> dict[str, dict]:
        fig = go.Figure(go.Heatmap(x=names, y=names, z=np.zeros((len(names), len(names)))))
        fig.update_xaxes(type="category", **below)
        fig.update_yaxes(type="category", title="query").update_layout(margin={"l": 20, "b": 30})
        return sent(fig)

    turned = figure(["1 a", "2 &lt;abcdefghij"], tickangle=-90)
    assert turned["yaxis"]["automargin"] is turned["xaxis"]["automargin"] is False
    widest = 10 * 7 + 3 * 4  # of `2 <abcdefghij` the space, i and j are narrow
    assert widest + 16 <= turned["margin"]["b"] <= widest + 17
    assert turned["margin"]["l"] == turned["margin"]["b"] + 20  # and the title
    wide = figure(["1 漢字漢字"], tickangle=-90)
    assert wide["margin"]["b"] == 7 + 4 + 4 * 13 + 16
    may_turn = figure(["1 a", "2 abcdefghij"])
    assert "automargin" not in may_turn["xaxis"] and may_turn["margin"]["b"] == 30
    numbers = sent(go.Figure(go.Scatter(x=[1, 2], y=[3, 4]), {"margin": {"l": 20}}))
    assert numbers["margin"]["l"] == 20 and numbers["xaxis"]["automargin"] is False
