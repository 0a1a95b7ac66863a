"""The program: its output and error messages, and commands of the other packages."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint, version
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.main import get_command

import workbench as wb
from workbench import cli
from workbench.command_options import numbers
from workbench.errors import WorkbenchError
from workbench.hooks.interventions import to_json
from workbench.published import PUBLISHED

DEMO = Path(wb.__file__).parent / "assets" / "demo"
RECIPE = DEMO / "recipe.toml"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):
    """Run the program in this process: exit code, stdout, stderr."""

    def call(*argv: str) -> tuple[int, str, str]:
        code = cli.main(list(argv))
        out, err = capsys.readouterr()
        return code, out, err

    return call


def walk(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    ctx = typer.Context(command, info_name=" ".join(("workbench", *path)))
    yield path, command, ctx
    if hasattr(command, "list_commands"):
        for name in command.list_commands(ctx):
            yield from walk(command.get_command(ctx, name), (*path, name))


def test_every_command_has_help_with_an_example() -> None:
    help_texts = {path: command.get_help(ctx) for path, command, ctx in walk(get_command(cli.app))}
    assert {("info",), ("generate",), ("capture",), ("convert",), ("train",), ("app",)} <= set(help_texts)
    assert ("eval", "run") in help_texts
    names = {path: " ".join(("workbench", *path)) for path in help_texts}
    leaves = [path for path in help_texts if sum(name.startswith(names[path] + " ") for name in names.values()) == 0]
    assert [names[path] for path in leaves if names[path] not in example(help_texts[path])] == []
    assert [path for path, text in help_texts.items() if "Not available" in text.split("Commands:")[0]] == []


def example(help_text: str) -> str:
    """The text after `Example:` in a help text, on one line."""
    return " ".join(help_text.partition("Example")[2].split())


def test_examples_use_options_that_exist() -> None:
    for path, command, _ in walk(get_command(cli.app)):
        known = {option for param in command.params for option in param.opts} | {"--help"}
        for text in filter(None, [command.epilog, command.help]):
            for line in text.splitlines():
                _, marker, shown = line.partition("Example: ")
                if marker and not hasattr(command, "list_commands"):
                    words = shlex.split(shown)
                    assert words[: len(path) + 1] == ["workbench", *path], shown
                    assert {word for word in words if word.startswith("-")} <= known, shown


MISTAKES = {
    "unknown command": (["generat"], "No such command"),
    "unknown option": (["info", "demo", "--verbos"], "--verbos"),
    "missing argument": (["generate"], "Missing argument"),
    "a number out of range": (["generate", "demo", "x", "--top-p", "7"], "--top-p"),
    "not a number": (["generate", "demo", "x", "--seed", "many"], "--seed"),
    "no such model": (["info", "nowhere/at/all"], "nowhere/at/all"),
    "no such model to run": (["generate", "nowhere/at/all", "x"], "nowhere/at/all"),
    "no such device": (["generate", "demo", "x", "--device", "abacus"], "abacus"),
    "no such dtype": (["generate", "demo", "x", "--dtype", "float12"], "float12"),
    "unknown hook": (["capture", "demo", "x", "-o", "x.safetensors", "--hooks", "blocks.0.hook_z"], "hook_z"),
    "not a layer": (["capture", "demo", "x", "-o", "x", "--hooks", "hook_embed", "--layers", "a"], "--layers"),
    "nowhere to write": (["capture", "demo", "x", "-o", "no/where.safetensors", "--hooks", "hook_embed"], "no folder"),
    "an option without its value": (["generate", "demo", "x", "--stop"], "--stop"),
    "no such device to train on": (["train", str(RECIPE), "-o", "out", "--device", "abacus"], "abacus"),
    "no such layout": (["convert", "a", "b", "--layout", "gguf"], "gguf"),
    "no such checkpoint to convert": (["convert", "nowhere", "b", "--layout", "hf"], "nowhere"),
    "no such recipe": (["train", "nowhere.toml", "-o", "out"], "nowhere.toml"),
    "ids and a prompt": (["generate", "demo", "x", "--ids", "1"], "--ids"),
    "ids of no token": (["generate", "demo", "--ids", "1,999999"], "999999"),
    "ids that are no numbers": (["capture", "demo", "--ids", "a", "-o", "x", "--hooks", "hook_embed"], "--ids"),
    "neither prompt nor ids": (["capture", "demo", "-o", "x", "--hooks", "hook_embed"], "--ids"),
    "no such head to ablate": (["generate", "demo", "x", "--ablate", "L99H0"], "--ablate L99H0"),
    "no such interventions": (["generate", "demo", "x", "--intervene", "nowhere.json"], "--intervene nowhere.json"),
    "unknown benchmark": (["eval", "run", "--tasks", "no_such_task", "--output", "o"], "no_such_task"),
    "no such model to measure": (["eval", "run", "--model", "nowhere", "--tasks", "demo_mmlu"], "nowhere"),
    "no such model to show": (["app", "--model", "nowhere"], "nowhere"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_answered_in_two_lines(run, tmp_path: Path, monkeypatch, mistake: str) -> None:
    monkeypatch.chdir(tmp_path)
    argv, named = MISTAKES[mistake]
    code, out, err = run(*argv)
    assert code == 2
    assert out == ""
    assert named in err
    assert 1 <= len(err.strip().splitlines()) <= 2, err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_python_m_is_the_same_program_and_exits_with_its_code() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "workbench", "info", "nowhere/at/all"], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) <= 2


def test_a_bug_is_not_dressed_up_as_a_mistake(monkeypatch) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("workbench.checkpoint.read_shape", broken)
    with pytest.raises(ZeroDivisionError):
        cli.main(["info", "demo"])


def test_info_states_the_size_of_the_weights_themselves(run) -> None:
    model = wb.load_model("demo")
    code, out, err = run("info", "demo", "--json")
    facts = json.loads(out)
    assert (code, err) == (0, "")
    assert facts["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert facts["weight_bytes_by_dtype"] == {"bfloat16": 2 * facts["parameters"]}
    assert facts["checkpoint_sha256"] is None
    assert json.loads(run("info", "demo", "--hash", "--json")[1])["checkpoint_sha256"] == model.source.checkpoint_sha256
    code, out, _ = run("info", "demo")
    assert code == 0
    assert f"{facts['parameters']:,}" in out and "of bfloat16" in out and "SHA-256" not in out
    assert model.source.checkpoint_sha256 in run("info", "demo", "--hash")[1]


def test_info_checks_the_files_but_reads_no_values(run, tmp_path: Path, monkeypatch) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(DEMO, folder)
    weights = next(folder.glob("*.safetensors"))
    with weights.open("r+b") as stream:
        stream.seek(-2, 2)
        stream.write(b"\xff\xff")  # NaN, which loading finds
    assert run("info", str(folder))[0] == 0
    assert "expected finite values" in run("generate", str(folder), "x")[2]
    weights.write_bytes(weights.read_bytes()[:-2])
    code, out, err = run("info", str(folder))
    assert (code, out) == (2, "") and "truncated" in err and err.count("\n") == 1


def test_text_that_the_terminal_cannot_show_is_escaped(project_root: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(project_root), "PYTHONIOENCODING": "ascii"}
    command = [
        sys.executable,
        "-m",
        "workbench",
        "generate",
        "demo",
        "é",
        "--temperature",
        "5",
        "--max-new-tokens",
        "30",
    ]
    done = subprocess.run(command, env=environment, capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.isascii() and b"\\u" in done.stdout


def test_info_of_a_published_name_and_of_a_folder_without_weights(run, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = PUBLISHED["llama-3.2-1b"]
    by_name = json.loads(run("info", "llama-3.2-1b", "--json")[1])
    assert (by_name["parameters"], by_name["checkpoint_sha256"]) == (1_235_814_400, None)
    assert sum(by_name["parameters_by_part"].values()) == by_name["parameters"]
    assert by_name["kv_cache_bytes_per_token"] == 32 * 1024 and by_name["context"] == 131_072
    hf, meta = tmp_path / "hf", tmp_path / "meta"
    for folder in (hf, meta):
        folder.mkdir()
    (hf / "config.json").write_text(json.dumps(config.to_hf()))
    (hf / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00001-of-00002.safetensors"}}')
    params = {name: value for name, value in config.to_meta().items() if name != "tied_output"}  # as Meta writes it
    (meta / "params.json").write_text(json.dumps(params))
    assert json.loads(run("info", str(hf), "--json")[1]) == by_name
    assert json.loads(run("info", str(meta), "--json")[1]) == by_name
    Path("llama-3.2-1b").mkdir()  # a folder of that name is meant before the name
    code, out, err = run("info", "llama-3.2-1b")
    assert (code, out) == (2, "") and "neither params.json" in err


def test_info_counts_at_the_context_and_type_asked_for(run) -> None:
    short = json.loads(run("info", "llama-3-8b", "--json", "--context", "131072")[1])
    gqa = next(row for row in short["attention"] if row["this_model"])
    assert gqa["cache_bytes"] == 16 * 1024**3 and short["context"] == 131_072
    double = json.loads(run("info", "llama-3-8b", "--json", "--dtype", "float32")[1])
    assert double["kv_cache_bytes_per_token"] == 2 * short["kv_cache_bytes_per_token"]
    code, out, _ = run("info", "llama-3-8b", "--context", "131072")
    assert code == 0 and "GQA (this)" in out and "128.0 KiB" in out and "16.0 GiB" in out and "64.0 GiB" in out


def test_generate_prints_what_the_library_says(run) -> None:
    model = wb.load_model("demo")
    prompts = ["Question: ", "def add"]
    expected = wb.generate(model, prompts, max_new_tokens=8)
    code, out, _ = run("generate", "demo", *prompts, "--max-new-tokens", "8", "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [row["text"] for row in rows] == [generation.text for generation in expected]
    assert [row["tokens"] for row in rows] == [list(generation.tokens) for generation in expected]


def test_capture_writes_what_a_reader_gets_back(run, tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    name = "blocks.1.hook_resid_pre"
    code, out, _ = run("capture", "demo", "one two one two", "--hooks", name, "-o", str(path))
    assert code == 0
    assert str(path) in out
    captured = wb.Capture.load(path)
    model = wb.load_model("demo")
    ids = model.tokenizer.encode("one two one two", bos=True)
    assert captured.tokens.tolist() == [ids]
    assert captured[name].shape == (1, len(ids), model.config.dim)


def test_generate_and_capture_take_ids_and_interventions(run, tmp_path: Path) -> None:
    model = wb.load_model("demo")
    ids = model.tokenizer.encode("one two one two", bos=True)
    options = ["--ids", ",".join(map(str, ids)), "--ablate", "L2H1"]
    changes = tmp_path / "changes.json"
    changes.write_text(to_json([wb.Scale("L0.mlp", 0.5)]))
    with model.intervene(wb.Scale("L0.mlp", 0.5), wb.Ablate("L2H1")):
        expected = wb.generate(model, [ids], max_new_tokens=6)[0]
        logits = model(torch.tensor([ids]))
    options += ["--intervene", str(changes)]
    code, out, err = run("generate", "demo", *options, "--max-new-tokens", "6", "--json")
    row = json.loads(out)
    assert (code, row["tokens"], row["prompt"]) == (0, list(expected.tokens), ids)
    assert [change["kind"] for change in row["interventions"]] == ["scale", "ablate"]
    assert "ablate L2H1" in err and "scale L0.mlp x 0.5" in err
    code, out, _ = run("generate", "demo", *options, "--max-new-tokens", "6")
    assert (code, out) == (0, expected.text + "\n")
    path = tmp_path / "run.safetensors"
    code, _, err = run("capture", "demo", *options, "--hooks", "hook_logits", "-o", str(path))
    captured = wb.Capture.load(path)
    assert code == 0 and "ablate L2H1" in err
    assert captured.tokens.tolist() == [ids] and torch.allclose(captured["hook_logits"], logits, atol=1e-5)
    assert [change["kind"] for change in captured.provenance["interventions"]] == ["scale", "ablate"]


def test_generate_without_a_tokenizer_prints_ids(run, tmp_path: Path) -> None:
    folder = tmp_path / "bare"
    shutil.copytree(DEMO, folder, ignore=shutil.ignore_patterns("tokenizer*"))
    model = wb.load_model("demo")
    code, out, _ = run("generate", str(folder), "--ids", "1,2,5-7", "--max-new-tokens", "4")
    expected = wb.generate(model, [[1, 2, 5, 6, 7]], max_new_tokens=4, stop_tokens=())[0]
    assert (code, out.strip()) == (0, ",".join(map(str, expected.tokens)))


def test_a_special_token_in_a_typed_prompt_is_remarked_once(run, tmp_path: Path) -> None:
    argv = ["--hooks", "hook_embed", "-o", str(tmp_path / "x.safetensors")]
    for command in (["generate", "demo", "--max-new-tokens", "1"], ["capture", "demo", *argv]):
        code, _, err = run(*command, "<|begin_of_text|>one <|begin_of_text|>two")
        assert code == 0 and len(err.strip().splitlines()) == 1, err
        assert "<|begin_of_text|>" in err and "plain text" in err
        assert run(*command, "one two")[2] == ""


def test_capture_takes_positions_from_the_end(run, tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    options = ["--hooks", "blocks.1.hook_resid_pre", "-o", str(path), "--positions=0,-1"]
    assert run("capture", "demo", "--ids", "1,2,3,4,5", *options)[0] == 0
    assert wb.Capture.load(path).positions == (0, 4)
    code, _, err = run("capture", "demo", "--ids", "1,2,3", *options[:-1], "--positions=-4")
    assert code == 2 and "-1 to -3" in err


def test_convert_there_and_back(run, tmp_path: Path) -> None:
    there, back = tmp_path / "hf", tmp_path / "meta"
    source = Path(wb.__file__).parent / "assets" / "demo"
    assert run("convert", str(source), str(there), "--layout", "hf")[0] == 0
    assert run("convert", str(there), str(back), "--layout", "meta")[0] == 0
    first, second = wb.load_model("demo").state_dict(), wb.load_model(back).state_dict()
    assert first.keys() == second.keys()
    assert all((first[name] == second[name]).all() for name in first)


@pytest.mark.parametrize(("text", "expected"), [("0,2,5-7", [0, 2, 5, 6, 7]), (" 3 ", [3]), (None, None)])
def test_numbers(text: str | None, expected: list[int] | None) -> None:
    assert numbers(text, "--layers") == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("-1", [-1]), ("0,-2", [0, -2]), ("-3--1", [-3, -2, -1]), ("5-7,-1", [5, 6, 7, -1])]
)
def test_signed_numbers(text: str, expected: list[int]) -> None:
    assert numbers(text, "--positions", signed=True) == expected


@pytest.mark.parametrize("text", ["", "-", "--1", "-1-2", "-1--3", "7-5", "1.5", "0-9999999999", "9" * 50])
def test_not_signed_numbers(text: str) -> None:
    with pytest.raises(WorkbenchError, match="--positions"):
        numbers(text, "--positions", signed=True)


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "1,,2", "7-5", "0-99999999999", "²"])
def test_not_numbers(text: str) -> None:
    with pytest.raises(WorkbenchError, match="--layers"):
        numbers(text, "--layers")


def test_a_command_without_its_extra_says_what_to_install(run, monkeypatch) -> None:
    point = EntryPoint("chart", "no_such_package.cli:app [app]", cli.ENTRY_POINT_GROUP)
    monkeypatch.setattr(cli, "plugged_in", lambda: {"chart": point})
    code, out, err = run("chart", "anything", "--at", "all")
    assert (code, out) == (2, "")
    assert "no_such_package is not installed" in err
    assert "'.[app]'" in err
    code, out, err = run("--help")
    assert code == 0
    assert "chart" in out


def test_a_module_of_ours_that_is_not_there_is_a_bug(monkeypatch) -> None:
    point = EntryPoint("broken", "workbench.no_such_module:app [app]", cli.ENTRY_POINT_GROUP)
    monkeypatch.setattr(cli, "plugged_in", lambda: {"broken": point})
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        cli.main(["broken"])


def test_a_plugged_in_function_becomes_a_command(run, monkeypatch) -> None:
    point = EntryPoint("trim", "textwrap:dedent", cli.ENTRY_POINT_GROUP)
    seen = []

    def trim(text: str, width: int = 3) -> None:
        seen.append((text, width))

    monkeypatch.setattr(cli, "plugged_in", lambda: {"trim": point})
    monkeypatch.setattr(EntryPoint, "load", lambda self: trim)
    assert run("trim", "abc", "--width", "7") == (0, "", "")
    assert seen == [("abc", 7)]


def test_a_closed_pipe_is_no_error() -> None:
    command = f"{shlex.quote(sys.executable)} -m workbench train --help | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    assert done.stderr == ""


def test_generated_pages_are_up_to_date(project_root: Path) -> None:
    command = [sys.executable, str(project_root / "tools" / "docs.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    out, err = capsys.readouterr()
    assert out == f"workbench {version('llama-workbench')}\n" and err == ""
