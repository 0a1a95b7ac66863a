"""Index of task names: benchmarks with local data, all of lm-eval's tasks, and the user's own tasks in YAML files.

Reads definitions only: no questions, no code next to the definitions.
"""

from __future__ import annotations

import difflib
import hashlib
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import lm_eval.tasks
import yaml
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import Entry, TaskIndex
from lm_eval.tasks._yaml_loader import load_yaml

from evals.runtime.printing import echo
from evals.store import foreign_code
from workbench.errors import DataError

WORKBENCH_TASKS = Path(__file__).parent
LM_EVAL_TASKS = Path(lm_eval.tasks.__file__).parent
# Indexing all of lm-eval's tasks takes seconds; these are the ones with local data.
_LLAMA = ("gsm8k", "mmlu", "mmlu_cot", "arc_challenge")
_FOLDERS = ("mmlu/default", "gsm8k", "humaneval", *(f"llama3/instruct/{name}" for name in _LLAMA))
# Tags over many benchmarks: the few folders above do not have all of their tasks.
EXCLUDED = {"chain_of_thought", "self_consistency", "math_word_problems"}
_NAME = re.compile(rb"""^(?:task|group):[ \t]*["']?([^\s"'#\[\]{}]+)""", re.M)

Index = dict[str, Entry]


@cache
def manager() -> TaskManager:
    """lm-eval's task manager for the few folders of `names`."""
    with quiet():
        return TaskManager(
            include_defaults=False, include_path=[*(LM_EVAL_TASKS / name for name in _FOLDERS), WORKBENCH_TASKS]
        )


@cache
def full_manager() -> TaskManager:
    """lm-eval's task manager for all of its tasks; takes seconds."""
    with quiet():
        return TaskManager(include_path=[WORKBENCH_TASKS])


def names() -> list[str]:
    """Every benchmark with local data: tasks, groups and tags."""
    return [name for name in manager().all_tasks if name not in EXCLUDED]


def entries(name: str, include: Sequence[Path] = ()) -> Index:
    """The index in which a name is looked up: the user's own tasks, and lm-eval's; it may not have the name.

    include: the user's folders of task definitions; their names have priority, as in lm-eval.
    Raises: DataError for a folder that does not exist, or without tasks.
    """
    own = own_tasks(include)
    if name in own:
        return own_index(own, name)
    ours = manager().task_index
    if name in ours and name not in EXCLUDED:
        return {**ours, **own}
    # Searching the files for the name takes a tenth of the time of indexing them, and is enough for a typo.
    if not any(name.encode() in path.read_bytes() for path in LM_EVAL_TASKS.rglob("*.yaml")):
        return {**ours, **own}
    return {**full_manager().task_index, **own}


def own_tasks(include: Sequence[Path]) -> Index:
    """The user's own tasks in these folders. Raises: DataError as `entries`."""
    own: Index = {}
    for folder in include:
        own |= _read(folder)[0]
    return own


def own_index(own: Index, name: str) -> Index:
    """The user's tasks, with lm-eval's tasks that a group of them refers to."""
    wanted, known = _referenced(own, name), {**manager().task_index, **own}
    return known if wanted <= known.keys() else {**full_manager().task_index, **own}


def at_path(path: Path) -> tuple[list[str], Index]:
    """The names that a YAML file, or a folder of them, defines for a run, and their index.

    Of a folder, tasks that belong to one of its groups are not named again.
    Raises: DataError if there is no task, or the file cannot be read.
    """
    siblings, _ = _read(path if path.is_dir() else path.parent, deep=False)
    if path.is_dir():
        defined = [name for name, entry in siblings.items() if entry.yaml_path]  # without tags
        members = set().union(*(_referenced(siblings, name) - {name} for name in defined))
        return [name for name in defined if name not in members], siblings
    entry = _entry(path)
    if entry is None:
        raise DataError(f"{path} defines no task; expected a YAML file of lm-eval with the key task, group or class.")
    return [entry.name], {**siblings, entry.name: entry}


def near(name: str) -> list[str]:
    """Up to three names like this one, of all tasks of lm-eval, without regard to upper case."""
    by_lower = {other.lower(): other for other in [*_all_names(), *names()]}
    if name.lower() in by_lower:
        return [by_lower[name.lower()]]
    ours = difflib.get_close_matches(name.lower(), [other.lower() for other in names()], n=3)
    others = difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.7)
    return [by_lower[match] for match in difflib.get_close_matches(name.lower(), {*ours, *others}, n=3)]


@cache
def _all_names() -> tuple[str, ...]:
    """Names in lm-eval's files, read without parsing them."""
    found = (match for path in LM_EVAL_TASKS.rglob("*.yaml") for match in _NAME.findall(path.read_bytes()))
    return tuple(sorted({match.decode(errors="replace") for match in found}))


def check_folder(folder: Path) -> None:
    """Print what is wrong with the definitions of a folder of the user: unreadable files, names that replace others.

    Raises: DataError for a folder that does not exist, or without tasks.
    """
    own, problems = _read(folder)
    taken = [name for name in own if name in manager().task_index]
    problems += [f"{name}: the definition in {folder} is used instead of lm-eval's." for name in taken]
    for problem in problems:
        echo(problem, err=True)
    if not own:
        raise DataError(f"{folder} has no task definitions; expected YAML files as lm-eval's.")


def _read(folder: Path, *, deep: bool = True) -> tuple[Index, list[str]]:
    """The tasks of a folder of the user, and what is wrong with its files. deep: its subfolders too."""
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder with task definitions.")
    index: Index = {}
    found = []
    for path in sorted(folder.glob("**/*.yaml" if deep else "*.yaml")):
        try:
            entry = _entry(path)
        except DataError as error:
            found.append(f"not read: {error}")
            continue
        if entry is None:
            continue  # a part that other files include
        if entry.name in index:
            found.append(f"not read: {path} defines {entry.name!r}, as {index[entry.name].yaml_path} does.")
            continue
        index[entry.name] = entry
        TaskIndex._register_tags(entry.name, (entry.cfg or {}).get("tag"), index)
    return index, found


def _entry(path: Path) -> Entry | None:
    """The task or group of a YAML file; None for a file without one.

    Raises: DataError if it is not readable.
    """
    try:
        config = load_yaml(path, resolve_func=False)
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise DataError(f"{path} is not a readable task definition: {' '.join(str(error).split())[:300]}") from error
    config.pop("task_list", None)
    name = config.get("group") if "group" in config else config.get("task")
    if name is None:
        return None
    if not isinstance(name, str) or not re.fullmatch(r"[\w.:+ -]+", name):
        raise DataError(
            f"{path}: the name {str(name)[:80]!r} is not valid; use letters, digits and the characters _.:+-"
        )
    return Entry(name=name, kind=TaskIndex._kind_of(config), yaml_path=path.resolve(), cfg=config)


def definition_sha256(entry: Entry) -> str | None:
    """SHA-256 of a task's definition and of the code and definitions next to it; None for a task that is installed."""
    path = entry.yaml_path
    if path is None or path.is_relative_to(LM_EVAL_TASKS) or path.is_relative_to(WORKBENCH_TASKS):
        return None
    sha = hashlib.sha256(repr(entry.cfg).replace(str(path.parent), "").encode())
    for file in sorted(file for file in path.parent.iterdir() if file.suffix in (".py", *foreign_code.YAML)):
        sha.update(f"{file.name}\n".encode() + file.read_bytes())
    return sha.hexdigest()


def _referenced(index: Index, name: str) -> set[str]:
    """A name and the names of all tasks that it stands for, as far as the index knows them."""
    todo, seen = [name], set()
    while todo:
        current = todo.pop()
        if current in seen:
            continue
        seen.add(current)
        if (entry := index.get(current)) is not None:
            todo += [*entry.tags] if entry.cfg is None else list(_children(entry.cfg.get("task")))
    return seen


def _children(members: Any) -> Iterator[str]:
    """The names of tasks and groups that a group's list refers to; its inline definitions are not names."""
    for member in members if isinstance(members, list) else ():
        if isinstance(member, str):
            yield member
        elif isinstance(member, dict) and isinstance(member.get("task"), list):
            yield from _children(member["task"])
        elif isinstance(member, dict) and not is_inline(member):
            yield str(member.get("task") or member.get("group"))


def is_inline(member: dict[str, Any]) -> bool:
    """Whether a member of a group is a definition of its own: it says where its questions come from."""
    return any(key in member for key in ("dataset_path", "custom_dataset", "class", "include"))


@contextmanager
def quiet() -> Iterator[None]:
    """Hide lm-eval's warnings about names that several of its files have, and what is said as an error later."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
