"""`workbench probe`: tables on stdout, files with their origin, figures, and mistakes answered in a line or two."""

import inspect
import io
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import workbench as wb
from probes import cli
from probes.attention import head_metrics, head_types
from probes.base import command
from probes.logits import component_attribution, logit_attribution, logit_lens, tuned_lens
from probes.norms import rms_norms
from probes.patching import ablation
from probes.rope import formulas, loss_by_position
from workbench.cli import main

PROMPT = "one two three. one two three."
RUN = ("--prompt", PROMPT, "--device", "cpu")


@pytest.fixture
def probe(capsys: pytest.CaptureFixture[str]):
    """Run `workbench probe ...` in this process: exit code, stdout, stderr."""

    def call(*argv: Any) -> tuple[int, str, str]:
        code = main(["probe", *map(str, argv)])
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture(scope="module")
def demo() -> wb.Transformer:
    return wb.load_model("demo", device="cpu").eval()


COMMANDS = [
    pytest.param(command, shlex.split(example), id=command.__name__)
    for topic in cli.TOPICS
    for command, example in topic
]
SHORTENED = {  # what keeps a command short enough for a test
    "ablation": ["--draws", "3"],
    "tuned-lens": ["--steps", "1", "--length", "16"],
}


@pytest.mark.parametrize(("command", "example"), COMMANDS)
def test_every_probe_prints_a_table_and_writes_its_files(
    probe, tmp_path: Path, command: Any, example: list[str]
) -> None:
    device = ["--device", "cpu"] if "device" in inspect.signature(command).parameters else []
    name = cli.name_of(command)
    argv = [name, *example, *device, *SHORTENED.get(name, [])]
    code, out, err = probe(*argv)
    assert code == 0, err
    assert len(out.splitlines()) > 2 or out == "none found\n"
    file = tmp_path / "found.csv"
    assert probe(*argv, "-o", file)[0] == 0
    table = pd.read_csv(file)
    about = json.loads((tmp_path / "found.csv.json").read_text())
    assert len(about["checkpoint_sha256"]) == 64 and about["versions"]["torch"] == torch.__version__
    if out != "none found\n":
        assert out.split("\n")[0].split() == list(table.columns)
    page = tmp_path / "found.html"
    code, _, err = probe(*argv, "-o", page)
    assert code == 0 and about["checkpoint_sha256"] in page.read_text()
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".partial")] == []


def test_a_file_holds_what_the_function_returns(probe, tmp_path: Path, demo: wb.Transformer) -> None:
    file = tmp_path / "heads.parquet"
    assert probe("heads", *RUN, "--output", file)[0] == 0
    ids = demo.tokenizer.encode(PROMPT, bos=True)
    with torch.no_grad():
        _, cap = demo.run_with_capture(torch.tensor([ids]), head_metrics.HOOKS)
    pd.testing.assert_frame_equal(pd.read_parquet(file), head_metrics.head_metrics(cap).frame())
    about = json.loads((tmp_path / "heads.parquet.json").read_text())
    assert about["n_tokens"] == len(ids)
    assert about["result"] == "HeadMetrics"


def test_a_prompt_from_a_file_is_the_same_prompt(probe, tmp_path: Path) -> None:
    text = tmp_path / "prompt.txt"
    text.write_text(PROMPT, encoding="utf-8")
    assert probe("rms", "--file", text, "--device", "cpu") == probe("rms", *RUN)


def test_options_reach_the_probe(probe, demo: wb.Transformer) -> None:
    code, out, _ = probe("massive", *RUN, "--threshold", "0.5", "--ratio", "2")
    assert code == 0
    table = pd.read_csv(io.StringIO(out), sep=r"\s+")
    ids = demo.tokenizer.encode(PROMPT, bos=True)
    with torch.no_grad():
        _, cap = demo.run_with_capture(torch.tensor([ids]), rms_norms.HOOKS)
    expected = rms_norms.massive_activations(cap, threshold=0.5, ratio=2).frame().head(command.MAX_PRINTED_ROWS)
    assert table["dim"].tolist() == expected["dim"].tolist()
    code, out, _ = probe("induction", "--block", "5", "--device", "cpu")
    shown = pd.read_csv(io.StringIO(out), sep=r"\s+")["induction"].to_numpy()
    assert shown == pytest.approx(head_metrics.induction_scores(demo, block=5).induction.ravel(), abs=1e-5)


def test_thresholds_and_lines_reach_the_catalogue(probe, tmp_path: Path, demo: wb.Transformer) -> None:
    text, file = tmp_path / "prompts.txt", tmp_path / "found.csv"
    text.write_text("one two three one two\n\nfour five six four five\n", encoding="utf-8")
    options = ("--file", text, "--device", "cpu", "--threshold", "previous=0.2", "--threshold", "induction=0.05")
    assert probe("catalogue", *options, "-o", file)[0] == 0
    prompts = [demo.tokenizer.encode(line, bos=True) for line in ("one two three one two", "four five six four five")]
    rules = head_types.with_thresholds(["previous=0.2", "induction=0.05"])
    expected = head_types.catalogue(
        head_types.text_scores(demo, prompts), head_types.repeat_scores(demo), rules=rules
    ).frame()
    pd.testing.assert_frame_equal(pd.read_csv(file), expected, check_dtype=False)
    assert json.loads((tmp_path / "found.csv.json").read_text())["thresholds"]["previous"] == 0.2


def test_ablation_takes_the_heads_that_are_named(probe, demo: wb.Transformer) -> None:
    options = ("--block", "8", "--draws", "2", "--device", "cpu")
    code, out, _ = probe("ablation", "--heads", "L2H3,L5H0", "--apart-from", "L2H2", *options)
    result = ablation.induction_ablation(demo, [(2, 3), (5, 0)], block=8, n_draws=2, apart_from=[(2, 2)])
    assert code == 0 and out.strip() == result.frame().to_string(index=False).strip()


def test_positions_runs_each_scaling_on_windows_of_the_text(probe, demo: wb.Transformer, tmp_path: Path) -> None:
    file = tmp_path / "p.csv"
    argv = ("--length", "8", "--scaling", "theta=100", "--scaling", "llama3=2", "--output", file)
    assert probe("positions", *RUN, *argv)[0] == 0
    table = pd.read_csv(file)
    assert table["run"].unique().tolist() == ["plain", "theta=100", "llama3=2"]
    ids = demo.tokenizer.encode(PROMPT, bos=True)
    cut = loss_by_position.windows(ids[1:], 8, bos=ids[0])
    runs = {
        "theta=100": [wb.RopeScaling(theta=100.0)],
        "llama3=2": [wb.RopeScaling(llama3=wb.Llama3Scaling(2.0, original_context=demo.config.max_seq_len))],
    }
    expected = loss_by_position.loss_by_position(demo, cut, runs).frame()
    pd.testing.assert_frame_equal(table, expected, check_exact=False, rtol=1e-5)
    for wrong in ("yarn", "turn=3", "ntk=many"):
        code, _, err = probe("positions", *RUN, "--scaling", wrong)
        assert code == 2 and "a scaling is theta" in err
    assert probe("positions", *RUN, "--scaling", "ntk=0.5")[0] == 2
    assert "longer text" in probe("positions", *RUN, "--length", "500")[2]


def test_sampled_takes_the_settings_of_generation(probe, demo: wb.Transformer) -> None:
    code, out, _ = probe("sampled", *RUN, "--steps", "4", "--temperature", "0.8", "--seed", "3")
    assert code == 0
    (expected,) = wb.generate(demo, [PROMPT], max_new_tokens=4, temperature=0.8, seed=3)
    names, *rows = (line.split() for line in out.splitlines())
    assert [int(row[names.index("token")]) for row in rows[: len(expected.tokens)]] == list(expected.tokens)


def test_turned_and_generated_take_their_options(probe, demo: wb.Transformer) -> None:
    code, out, _ = probe("turned", *RUN, "--scaling", "theta=10000")  # the demo's own: nothing moves
    assert code == 0 and pd.read_csv(io.StringIO(out), sep=r"\s+")["moved"].max() < 1e-5
    moved = pd.read_csv(io.StringIO(probe("turned", *RUN)[1]), sep=r"\s+")["moved"]
    assert moved.min() > 1e-5 and moved.median() > 1e-3
    assert probe("turned", *RUN, "--scaling", "yarn")[0] == 2
    code, out, _ = probe("generated-norms", *RUN, "--steps", "2")
    n_tokens = len(demo.tokenizer.encode(PROMPT, bos=True))
    shown = pd.read_csv(io.StringIO(out), sep=r"\s+")
    assert code == 0 and shown["step"].tolist()[: n_tokens + 1] == [0] * n_tokens + [1]


def test_long_tables_are_cut_and_say_so(probe) -> None:
    code, out, err = probe("rms", *RUN)
    assert len(out.splitlines()) == command.MAX_PRINTED_ROWS + 1
    assert "--output" in err and "more rows" in err


def test_wavelengths_are_the_models_own(probe, tmp_path: Path) -> None:
    file = tmp_path / "w.csv"
    assert probe("wavelengths", "-o", file)[0] == 0
    config = wb.load_model("demo", device="cpu").config
    assert pd.read_csv(file)["wavelength"].to_numpy() == pytest.approx(formulas.wavelengths(config).wavelength)
    assert np.array_equal(pd.read_csv(file)["pair"], np.arange(config.head_dim // 2))


def test_the_lens_follows_tokens_and_uses_a_trained_lens(probe, tmp_path: Path, demo: wb.Transformer) -> None:
    text, saved, file = tmp_path / "text.txt", tmp_path / tuned_lens.FILE, tmp_path / "found.csv"
    text.write_text("One cat sat. Two cats sat. " * 20, encoding="utf-8")
    options = ("--file", text, "--device", "cpu", "--length", "16")
    code, out, err = probe("tuned-lens", "--train", *options, "--steps", "2", "--seed", "3", "--save", tmp_path)
    assert code == 0 and f"saved as {saved}" in err
    ids = demo.tokenizer.encode(text.read_text(), bos=True)
    windows = loss_by_position.windows(ids[1:], 16, bos=ids[0])
    n_test = -(-len(windows) // 5)
    made = tuned_lens.train_tuned_lens(demo, windows[:-n_test], steps=2, seed=3)
    expected = tuned_lens.lens_divergence(demo, windows[-n_test:], made).frame()
    assert out.strip() == expected.to_string(index=False).strip()
    code, out, _ = probe("tuned-lens", "--use", saved, *options)
    assert out.strip() == tuned_lens.lens_divergence(demo, windows, made).frame().to_string(index=False).strip()
    word = demo.tokenizer.decode([300])
    assert demo.tokenizer.encode(word) == [300], "a token whose text gives it again"
    assert probe("lens", *RUN, "--tuned", tmp_path, "--token", word, "--id", "7", "-o", file)[0] == 0
    prompt = torch.tensor([demo.tokenizer.encode(PROMPT, bos=True)])
    with torch.no_grad():
        _, cap = demo.run_with_capture(prompt, logit_lens.HOOKS)
    curves = tuned_lens.tuned_lens(demo, cap, made, targets=[300, 7]).curves.frame()
    pd.testing.assert_frame_equal(pd.read_csv(file, keep_default_na=False), curves, check_dtype=False, rtol=1e-5)
    for by in ("kl", "rank"):
        assert probe("lens", *RUN, "--by", by, "-o", tmp_path / "a.html")[0] == 0
    assert probe("lens", *RUN, "--id", "7", "--by", "rank", "--position", "2", "-o", tmp_path / "a.html")[0] == 0


def test_attribution_takes_its_tokens_and_what_to_split(probe, tmp_path: Path, demo: wb.Transformer) -> None:
    file = tmp_path / "found.csv"
    hooks = {*logit_attribution.HOOKS, *component_attribution.HOOKS}
    with torch.no_grad():
        prompt = torch.tensor([demo.tokenizer.encode(PROMPT, bos=True)])
        _, cap = demo.run_with_capture(prompt, hooks)
    likeliest, targets = logit_attribution.likeliest(demo, cap), [(300, 7), 300, 7]
    expected = {
        (): logit_attribution.logit_attribution(demo, cap, likeliest),
        ("--id", "7", "--position", "3"): logit_attribution.logit_attribution(demo, cap, [7], position=3),
        ("--id", "300", "--id", "7", "--neurons"): component_attribution.neuron_attribution(demo, cap, targets),
        ("--id", "300", "--id", "7", "--head", "L2H3"): component_attribution.source_attribution(
            demo, cap, targets, (2, 3)
        ),
    }
    for argv, result in expected.items():
        code, _, err = probe("attribution", *RUN, *argv, "-o", file)
        assert code == 0 and all(
            f'{token} "{text}"' in err for token, text in logit_attribution.target_texts(demo, result.tokens).items()
        )
        # Single precision written as text, from another run: a capture of other hooks changes no number.
        pd.testing.assert_frame_equal(pd.read_csv(file), result.frame(), check_dtype=False, rtol=1e-5, atol=1e-6)
        assert probe("attribution", *RUN, *argv, "-o", tmp_path / "found.html")[0] == 0


@pytest.mark.parametrize(
    ("argv", "say"),
    [
        (("lens", *RUN, "--token", "many of them"), "give one of them with --id"),
        (("lens", *RUN, "--id", "99999"), "0 to 1279"),
        (("lens", *RUN, "--id", "7", "--position", "99"), "not 99"),
        (("lens", *RUN, "--tuned", "no-such-lens"), "cannot be read"),
        (("tuned-lens", *RUN), "--train"),
        (("tuned-lens", *RUN, "--use", "a", "--save", "b"), "goes with --train"),
        (("tuned-lens", "--prompt", "a", "--train", "--length", "2", "--device", "cpu"), "give more text"),
        (("tuned-lens", *RUN, "--train", "--length", "99"), "longer text"),
        (("attribution", *RUN, "--neurons", "--head", "L0H0"), "one of them"),
        (("attribution", *RUN, "--head", "L0H9"), "not 9"),
        (("attribution", *RUN, "--head", "L9H0"), "layers 0 to 5"),
        (("attribution", *RUN, "--head", "nine"), "L2H3"),
        (("heads",), "--prompt"),
        (("heads", "--prompt", ""), "--prompt is empty"),
        (("heads", "--prompt", "a", "--file", "b"), "one of them"),
        (("heads", *RUN, "--output", "x.xlsx"), ".csv or .parquet or .html"),
        (("heads", *RUN, "--output", "no/such/folder/x.csv"), "no folder"),
        (("heads", "--file", "no-such-file.txt"), "no-such-file.txt"),
        (("heads", *RUN, "--model", "no-such-model"), "no-such-model"),
        (("bands", *RUN, "--layer", "99", "--head", "0"), "layers 0 to"),
        (("bands", *RUN, "--layer", "0", "--head", "99"), "99"),
        (("bands", *RUN), "--layer"),
        (("neuron", "--layer", "0", "--neuron", "99999", "--device", "cpu"), "0 to"),
        (("induction", "--block", "100000", "--device", "cpu"), "context"),
        (("ablation", "--heads", "L2H99", "--device", "cpu"), "heads 0 to 5"),
        (("ablation", "--heads", "two", "--device", "cpu"), "L2H3,L5H1"),
        (("catalogue", *RUN, "--threshold", "sinks=0.2"), "TYPE=NUMBER"),
        (("no-such-probe",), "no-such-probe"),
    ],
)
def test_mistakes_end_with_two_lines_at_most(probe, argv: tuple[str, ...], say: str) -> None:
    code, out, err = probe(*argv)
    assert code == 2
    assert out == ""
    assert say in err and "Traceback" not in err
    assert len(err.strip().splitlines()) <= 2


def test_a_file_that_is_no_text(probe, tmp_path: Path) -> None:
    path = tmp_path / "noise.bin"
    path.write_bytes(b"\xff\xfe\x00")
    code, _, err = probe("heads", "--file", path)
    assert code == 2 and "UTF-8" in err


def test_help_loads_nothing_heavy() -> None:
    script = (
        "import sys; from workbench.cli import main; main(['probe', '--help']);"
        "import re; light = re.compile(r'probes(\\.cli|\\.base\\.\\w+|\\.\\w+(\\.\\w*commands)?)?$');"
        "heavy = [m for m in sys.modules if m.partition('.')[0] == 'probes' and not light.match(m)];"
        "print(heavy + [m for m in ('pandas', 'plotly') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stderr.strip() == "[]", done.stderr


def test_a_missing_library_says_what_to_install(probe, monkeypatch: pytest.MonkeyPatch) -> None:
    find = command.importlib.util.find_spec
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None if name == "pandas" else find(name))
    code, _, err = probe("wavelengths")
    assert code == 2 and "'.[probe]'" in err
