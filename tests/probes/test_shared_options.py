"""Options that all probe commands share: token ids instead of a text, and interventions, which the output names."""

import inspect
import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import workbench as wb
from probes import cli
from probes.base.cli_options import with_shared_options
from probes.norms import rms_norms
from workbench.cli import main
from workbench.hooks.interventions import to_json
from workbench.text.tokenizer import Tokenizer

DEMO = Path(wb.__file__).parent / "assets" / "demo"
IDS, OTHER = "5,6,7,5,6,7", "5,9,7,5,6,7"
COMMANDS = {cli.name_of(command): (command, example) for topic in cli.TOPICS for command, example in topic}
WEIGHTS_ALONE = {"gains", "neuron", "entropy-neurons", "composition"}
NEEDS_TEXT = {"retrieval"}  # hides one text in another


def options_of(name: str) -> set[str]:
    return set(inspect.signature(with_shared_options(COMMANDS[name][0])).parameters)


WITH_IDS = sorted(name for name in COMMANDS if "ids" in options_of(name))
SHORTENED = {"tuned-lens": ["--train", "--steps", "1", "--length", "2"], "salience": ["--method", "gradient"]}
"""What else a command needs, or what keeps it short."""


@pytest.fixture
def probe(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(*argv: Any) -> tuple[int, str, str]:
        code = main(["probe", *map(str, argv), "--device", "cpu"])
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture(scope="module")
def wordless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo checkpoint without its tokenizer."""
    folder = tmp_path_factory.mktemp("wordless") / "demo"
    shutil.copytree(DEMO, folder, ignore=shutil.ignore_patterns("tokenizer*"))
    return folder


def test_every_command_has_them() -> None:
    """Those that load a model take interventions, unless they read weights alone; those that take a prompt take ids."""
    for name, (command, _) in COMMANDS.items():
        own, options = set(inspect.signature(command).parameters), options_of(name)
        loads = "device" in own
        assert ({"intervene", "ablate"} <= options) == (loads and name not in WEIGHTS_ALONE), name
        assert ("ids" in options) == ("prompt" in own and name not in NEEDS_TEXT), name
        assert ("adapter" in options) == loads, name


def argv_of(name: str) -> list[str]:
    """A command's example, with ids for its texts."""
    words, argv = shlex.split(COMMANDS[name][1]), []
    for option, value in zip(words[::2], words[1::2], strict=False):
        if option in ("--prompt", "--corrupted"):
            argv += ["--ids" if option == "--prompt" else "--corrupted-ids", IDS if option == "--prompt" else OTHER]
        elif option not in ("--answer", "--wrong", "--train", "--file", "--method"):
            argv += [option, value]
    argv += ["--answer", "3", "--wrong", "4"] if "--answer" in words else []
    return [name, *argv, *(["--ids", IDS] if "--ids" not in argv else []), *SHORTENED.get(name, [])]


@pytest.mark.parametrize("name", WITH_IDS)
def test_a_model_without_tokenizer_can_be_measured(probe: Any, wordless: Path, tmp_path: Path, name: str) -> None:
    """Its table has rows, and its figure can be drawn."""
    code, out, err = probe(*argv_of(name), "--model", wordless)
    assert code == 0 and (len(out.splitlines()) > 1 or out == "none found\n"), err
    code, _, err = probe(*argv_of(name), "--model", wordless, "-o", tmp_path / "f.html")
    assert code == 0 and (tmp_path / "f.html").stat().st_size > 10_000, err


def test_ids_are_run_as_they_are(probe: Any, tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    assert probe("rms", "--ids", IDS, "-o", file)[0] == 0
    model = wb.load_model("demo", device="cpu").eval()
    _, cap = model.run_with_capture(torch.tensor([[5, 6, 7, 5, 6, 7]]), rms_norms.HOOKS)
    expected = rms_norms.input_rms(cap).frame()["rms"].to_numpy()
    assert pd.read_csv(file)["rms"].to_numpy() == pytest.approx(expected, rel=1e-6)
    assert json.loads(Path(f"{file}.json").read_text())["n_tokens"] == 6


def test_interventions_act_and_are_named(probe: Any, tmp_path: Path) -> None:
    """On stderr, in the record and in the figure's title; a plain run has none of them."""
    changes = [wb.Scale("L2H1", 0.5), wb.Ablate("L1.mlp")]
    given = tmp_path / "changes.json"
    given.write_text(to_json(changes[:1]))
    run = ("rms", "--ids", IDS)
    file, page, plain = tmp_path / "t.csv", tmp_path / "f.html", tmp_path / "plain.csv"
    code, _, err = probe(*run, "--intervene", given, "--ablate", "L1.mlp", "-o", file)
    assert code == 0 and "under interventions: scale L2H1 x 0.5, ablate L1.mlp" in err
    model = wb.load_model("demo", device="cpu").eval()
    with model.intervene(*changes):
        _, cap = model.run_with_capture(torch.tensor([[5, 6, 7, 5, 6, 7]]), rms_norms.HOOKS)
    table = pd.read_csv(file)
    assert table["rms"].to_numpy() == pytest.approx(rms_norms.input_rms(cap).frame()["rms"].to_numpy(), rel=1e-6)
    assert json.loads(Path(f"{file}.json").read_text())["interventions"] == [change.to_dict() for change in changes]
    assert probe(*run, "--ablate", "L1.mlp", "-o", page)[0] == 0
    assert "under interventions: ablate L1.mlp" in page.read_text()
    assert probe(*run, "-o", plain)[0] == 0
    assert not table["rms"].equals(pd.read_csv(plain)["rms"])
    assert "interventions" not in json.loads(Path(f"{plain}.json").read_text())


def test_interventions_end_with_the_command(probe: Any) -> None:
    before = probe("rms", "--ids", IDS)[1]
    assert probe("rms", "--ids", IDS, "--ablate", "L1.mlp")[1] != before
    assert probe("rms", "--ids", IDS)[1] == before
    assert wb.active_interventions() == ()


def test_a_file_of_interventions_acts_in_the_second_run_of_a_comparison(probe: Any, tmp_path: Path) -> None:
    given, file = tmp_path / "changes.json", tmp_path / "t.csv"
    given.write_text(to_json([wb.Scale("L2H1", 0.5)]))
    assert probe("compare", "--ids", IDS, "--intervene", given, "--ablate", "L4.mlp", "-o", file)[0] == 0
    about = json.loads(Path(f"{file}.json").read_text())
    assert [change["target"] for change in about["interventions"]] == ["L2H1", "L4.mlp"]
    table = pd.read_csv(file).set_index("hook")["relative"]
    assert table["blocks.1.hook_resid_post"] == 0 and table["blocks.2.hook_attn_out"] > 0


def test_prompts_of_a_pair_are_texts_or_ids(probe: Any, tmp_path: Path) -> None:
    answers = ("--answer", "3", "--wrong", "4", "-o", tmp_path / "t.csv")
    tokenizer = wb.load_model("demo", device="cpu").tokenizer
    assert isinstance(tokenizer, Tokenizer)
    clean, corrupted = (",".join(map(str, tokenizer.encode(text, bos=True))) for text in ("b c d b", "b f d b"))
    tables = []
    for sides in (
        ("--prompt", "b c d b", "--corrupted", "b f d b"),
        ("--ids", clean, "--corrupted-ids", corrupted),
        ("--prompt", "b c d b", "--corrupted-ids", corrupted),
    ):
        assert probe("patch", *sides, *answers)[0] == 0
        tables.append(pd.read_csv(tmp_path / "t.csv"))
    assert tables[0].equals(tables[1]) and tables[0].equals(tables[2])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["rms"], "--prompt TEXT or --file PATH, or token ids with --ids"),
        (["rms", "--ids", "5", "--prompt", "a"], "one of them"),
        (["rms", "--ids", ""], "--ids takes numbers"),
        (["rms", "--ids", "5,x"], "--ids takes numbers"),
        (["rms", "--ids", "1280"], "token id 1280 is outside the vocabulary"),
        (["rms", "--ids", "5", "--ablate", "L99H1"], "--ablate L99H1: "),
        (["rms", "--ids", "5", "--intervene", "none.json"], "--intervene none.json: "),
        (["patch", "--ids", "5,6", "--answer", "3", "--wrong", "4"], "each of the two prompts"),
        (["patch", "--ids", "5,6", "--corrupted-ids", "5,1280", "--answer", "3", "--wrong", "4"], "--corrupted-ids: "),
        (["patch", "--ids", "5,6", "--corrupted-ids", "5", "--answer", "3", "--wrong", "4"], "the same number"),
        (["gains", "--ablate", "L1H1"], "No such option: --ablate"),
    ],
)
def test_mistakes_are_answered_in_a_line(probe: Any, argv: list[str], message: str) -> None:
    code, _, err = probe(*argv)
    assert code == 2 and message in err and len(err.splitlines()) <= 3


def test_a_text_for_a_model_without_tokenizer_is_refused(probe: Any, wordless: Path) -> None:
    for argv in (
        ["rms", "--prompt", "a"],
        ["patch", "--ids", IDS, "--corrupted-ids", OTHER, "--answer", " a", "--wrong", "4"],
        ["attribution", "--ids", IDS, "--token", " a"],
    ):
        code, _, err = probe(*argv, "--model", wordless)
        assert code == 2 and "tokenizer" in err
