"""The README is true: its commands and its Python run, its links and folders exist, and it is short."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
PACKAGES = {"workbench", "evals", "probes", "dashboard"}


def blocks(language: str, text: str = TEXT) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def commands(text: str) -> list[list[str]]:
    return [
        shlex.split(line, comments=True)
        for block in blocks("console", text)
        for line in block.splitlines()
        if line.strip()
    ]


COMMANDS = commands(TEXT)
CONTRIBUTING = (ROOT / "docs" / "contributing.md").read_text(encoding="utf-8")
MAKE = [command for command in [*COMMANDS, *commands(CONTRIBUTING)] if command[0] == "make"]

# What keeps a command short enough for a test, and what says that it did its work.
SHORTENED = {("workbench", "eval"): ["--limit", "2"], ("workbench", "app"): ["--check"]}


def test_there_are_commands_of_both_kinds() -> None:
    assert {command[0] for command in COMMANDS} == {"make", "workbench"}
    assert ["make", "demo"] in COMMANDS
    assert ["make", "test"] in COMMANDS


@pytest.mark.parametrize("command", sorted(map(list, set(map(tuple, MAKE)))), ids=" ".join)
def test_make_knows_the_target(command: list[str]) -> None:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    done = subprocess.run([*command, "--dry-run"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


OURS = [
    pytest.param(command, marks=pytest.mark.real if "smollm2" in command else ())
    for command in COMMANDS
    if command[0] == "workbench"
]


@pytest.mark.slow
@pytest.mark.parametrize("command", OURS, ids=lambda command: " ".join(command[:3]))
def test_command_runs(command: list[str], tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if "smollm2" in command:
        folder = request.getfixturevalue("smollm2")
        if "SMOLLM2" in os.environ:  # not in the data folder, where the name finds it
            if command[1] == "fetch":
                pytest.skip("SMOLLM2 names another folder")
            (tmp_path / "smollm2").symlink_to(folder)
    (tmp_path / "workbench").symlink_to(ROOT / "workbench")  # the README's paths start at the project's root
    argv = [*command[1:], *SHORTENED.get(tuple(command[:2]), [])]
    program = "import sys; from workbench.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-P", "-c", program, *argv], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    written = {path.name for path in tmp_path.iterdir()} - {"workbench", "smollm2"}
    named = {Path(value).parts[0] for option, value in zip(argv, argv[1:], strict=False) if option == "--output"}
    assert written >= named
    assert done.stdout.strip() or command[1] == "app"


def test_python_runs(tmp_path: Path) -> None:
    for block in blocks("python"):
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", block], cwd=tmp_path, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        shape, change, *_ = done.stdout.splitlines()
        assert shape.startswith("torch.Size([1, ")
        assert float(re.findall(r"[\d.]+", change)[0]) > 0


def test_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", ["architecture", "contributing", "style"])
def test_paths_in_the_docs_exist(page: str) -> None:
    """Those in backticks; ROOM and NAME stand for any."""
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    for path in re.findall(r"`((?:workbench|evals|probes|dashboard|tests|tools|docs|benchmarks)/[\w./-]+)`", text):
        if not re.search(r"ROOM|NAME", path):
            assert (ROOT / path).exists(), f"{page}.md names {path}"


def test_tree_is_the_tree() -> None:
    """A line names one or more files or folders, then says in a clause what they hold."""
    (tree,) = blocks("text")
    shown: set[str] = set()
    parent = ""
    for line in tree.splitlines():
        indent, names, clause = re.match(r"( *)((?:\S+ )*\S+)  +(\S.*)", line).groups()
        for name in names.split():
            path = (parent if indent else "") + name
            assert (ROOT / path).exists(), path
            assert (ROOT / path).is_dir() == name.endswith("/"), path
            shown.add(path)
        assert clause
        parent = parent if indent else names
    assert tracked_folders() - shown == set()


def tracked_folders() -> set[str]:
    """Folders of the project, and those directly in its packages; hidden ones aside."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    folders: set[str] = set()
    for path in map(Path, filter(None, listing.stdout.split("\0"))):
        depth = 2 if path.parts[0] in PACKAGES else 1
        folders |= {"/".join(path.parts[:n]) + "/" for n in range(1, depth + 1) if len(path.parts) > n}
    return {folder for folder in folders if not folder.startswith(".")}


def test_it_is_short() -> None:
    lines = TEXT.splitlines()
    assert len(lines) <= 150
    assert [line for line in lines if len(line) > 120] == []
