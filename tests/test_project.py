"""The project's own files: pins that are true, and no trace of the machine it was written on."""

import os
import re
import subprocess
import tomllib
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path

import pytest

PIN = re.compile(r"^([a-z0-9][a-z0-9-]*)==([0-9][0-9a-z.]*)$")


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.fixture(scope="module")
def pins(project_root: Path) -> dict[str, str]:
    lines = (project_root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = [line for line in lines if line and not line.startswith("#")]
    assert [line for line in pinned if not PIN.match(line)] == [], "only name==version"
    assert pinned == sorted(pinned, key=lambda line: line.partition("==")[0])
    return dict(line.split("==") for line in pinned)


@pytest.fixture(scope="module")
def project(project_root: Path) -> dict[str, object]:
    with (project_root / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)["project"]


def test_pins_are_what_these_tests_run_with(pins: dict[str, str]) -> None:
    different = {}
    for name, pin in pins.items():
        try:
            installed = version(name).partition("+")[0]
        except PackageNotFoundError:
            continue  # another platform needs fewer packages
        if installed != pin:
            different[name] = (pin, installed)
    assert different == {}


def test_every_declared_dependency_is_pinned(project: dict, pins: dict[str, str]) -> None:
    declared = [*project["dependencies"], *sum(project["optional-dependencies"].values(), [])]
    names = {normal(re.split(r"[\[<>=!~; ]", line)[0]) for line in declared} - {project["name"]}
    assert names - pins.keys() == set()
    assert pins["torch"] == "2.13.0"


def test_declared_entry_points_are_installed_and_load(project: dict) -> None:
    for group, declared in project["entry-points"].items():
        installed = {point.name: point for point in entry_points(group=group)}
        for name, target in declared.items():
            assert installed[name].value == target
            assert callable(installed[name].load())


def tracked_text(root: Path) -> dict[str, str]:
    if not (root / ".git").exists():
        pytest.skip("not a git checkout")
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=True)
    texts = {}
    for name in filter(None, listing.stdout.split("\0")):
        try:
            texts[name] = (root / name).read_text(encoding="utf-8")
        except (UnicodeDecodeError, FileNotFoundError, IsADirectoryError):
            continue
    assert len(texts) > 50
    return texts


def test_no_line_names_the_machine_it_was_written_on(project_root: Path) -> None:
    here = {project_root, project_root.parent, Path.home(), Path(os.path.realpath(project_root))}
    places = {f"{path}/" for path in here} - {"//", "/tmp/", "/home/", "/opt/", "/srv/", "/src/", "/usr/"}
    addresses = re.compile(r"--(extra-)?index-url|--find-links|file:///|/(home|Users|root)/\w+/")
    wrong = [
        f"{name}:{number}: {line.strip()[:100]}"
        for name, text in tracked_text(project_root).items()
        if name != "tests/test_project.py"
        for number, line in enumerate(text.splitlines(), 1)
        if any(place in line for place in places) or addresses.search(line)
    ]
    assert wrong == []


def test_generated_things_are_not_tracked(project_root: Path) -> None:
    bad = re.compile(r"(^|/)(__pycache__|\.venv|[^/]+\.egg-info)(/|$)|\.pyc$|^(results|runs)/")
    assert [name for name in tracked_text(project_root) if bad.search(name)] == []
