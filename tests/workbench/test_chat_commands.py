"""`workbench generate --chat`: the messages that are sent, and what is wrong with them in one line."""

import json
from pathlib import Path
from typing import Any

import pytest

import workbench as wb
from tests.workbench.text.conversations import CONVERSATIONS, TEMPLATES, TOOLS
from workbench.checkpoint import convert
from workbench.cli import main


@pytest.fixture(scope="module")
def hermes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo checkpoint with a chat template that has tools."""
    folder = tmp_path_factory.mktemp("hermes") / "hf"
    convert("demo", folder, layout="hf")
    (folder / "chat_template.jinja").write_text(TEMPLATES["hermes"])
    return folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    def call(model: str | Path, *argv: str) -> tuple[int, list[dict[str, Any]], str]:
        code = main(["generate", str(model), *argv, "--max-new-tokens", "4", "--json"])
        out, err = capsys.readouterr()
        return code, [json.loads(line) for line in out.splitlines()], err

    return call


def write(path: Path, value: Any) -> str:
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return str(path)


def test_the_messages_are_the_systems_the_files_and_the_prompts(hermes: Path, run: Any, tmp_path: Path) -> None:
    model = wb.load_model(hermes)
    assert model.tokenizer is not None
    turns, tools = CONVERSATIONS["turns"][0], write(tmp_path / "tools.json", TOOLS)
    file = write(tmp_path / "messages.json", turns)
    system, user = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "And?"}
    for argv, messages, used in (
        (["And?"], [user], None),
        (["And?", "--system", "Be brief."], [system, user], None),
        (["--messages", file], turns, None),
        (["--messages", file, "--system", "Be brief.", "And?", "--tools", tools], [system, *turns, user], TOOLS),
    ):
        code, (row,), err = run(hermes, "--chat", *argv)
        (expected,) = wb.generate(model, [wb.encode_chat(model.tokenizer, messages, tools=used)], max_new_tokens=4)
        assert (code, row["tokens"], err) == (0, list(expected.tokens), "")
    code, rows, _ = run(hermes, "--chat", "One", "Two", "--system", "Be brief.")
    assert code == 0 and [row["prompt"] for row in rows] == ["One", "Two"]
    _, (row,), _ = run(hermes, "--chat", "--messages", file)
    assert row["prompt"] == wb.render_chat(model.tokenizer, turns)


def test_the_built_in_format_is_named_unless_the_folder_is_metas(run: Any, tmp_path: Path) -> None:
    convert("demo", tmp_path / "hf", layout="hf")
    code, (row,), err = run(tmp_path / "hf", "--chat", "Hi")
    assert code == 0 and err.count("\n") == 1 and "Llama 3's format is used" in err
    assert run("demo", "--chat", "Hi") == (0, [row], "")


def test_tools_that_are_ignored_are_said(run: Any, tmp_path: Path) -> None:
    code, _, err = run("demo", "--chat", "Hi", "--tools", write(tmp_path / "tools.json", TOOLS))
    assert code == 0 and "warning: this chat template ignores tools" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "a prompt is missing"),
        (["--chat"], "a prompt is missing"),
        (["--chat", "--system", "x"], "a prompt is missing"),
        (["x", "--system", "y"], "need --chat"),
        (["--messages", "none.json"], "need --chat"),
        (["--chat", "--messages", "none.json"], "--messages none.json: no such file"),
        (["--chat", "--messages", "."], "--messages .: not readable as JSON"),
        (["--chat", "--messages", "[1"], "not readable as JSON"),
        (["--chat", "--messages", "[" * 200_000], "not readable as JSON"),
        (["--chat", "--messages", "\udcff"], "not readable as JSON"),
        (["--chat", "--messages", "[]"], "expected a JSON list of objects"),
        (["--chat", "--messages", '{"role": "user"}'], 'for instance [{"role": "user", "content": "Hi"}]'),
        (["--chat", "--messages", "[1]"], "expected a JSON list of objects"),
        (["--chat", "--messages", '[{"content": "x"}]'], "a message needs a role"),
        (["--chat", "--messages", '[{"role": "robot", "content": "x"}]'], "unknown role 'robot'"),
        (["--chat", "--messages", '[{"role": ["user"], "content": "x"}]'], "unknown role ['user']"),
        (["--chat", "x", "--tools", "{}"], "--tools"),
    ],
)
def test_mistakes_are_one_line(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argv: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    words = list(argv)
    if len(words) > 2 and words[-2] in ("--messages", "--tools") and not words[-1].endswith((".json", ".")):
        Path("file.json").write_bytes(words[-1].encode("utf-8", "surrogateescape"))
        words[-1] = "file.json"
    code, rows, err = run("demo", *words)
    assert (code, rows) == (2, []) and message in err
    assert err.count("\n") == 1 and len(err) < 600


def test_a_template_that_refuses_is_one_line(hermes: Path, run: Any, tmp_path: Path) -> None:
    convert("demo", tmp_path / "hf", layout="hf")
    (tmp_path / "hf" / "chat_template.jinja").write_text(TEMPLATES["llama31"])
    calls = [{"function": {"name": "f", "arguments": {}}}] * 2
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "", "tool_calls": calls}]
    code, rows, err = run(tmp_path / "hf", "--chat", "--messages", write(tmp_path / "m.json", messages))
    assert (code, rows) == (2, []) and "only supports single tool-calls" in err and err.count("\n") == 1
