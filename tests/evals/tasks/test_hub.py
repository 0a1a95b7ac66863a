"""Any task of lm-eval, from a local copy of its data set, from the hub where that is allowed, and in no other way."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("lm_eval", reason="lm_eval is not installed")

import datasets
from lm_eval.tasks import TaskManager

from evals.tasks import hub, local_data, registry
from evals.tasks.code_metrics import CodeGrader
from workbench.errors import DataError


def write(path: Path, rows: list[local_data.Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Every connection is refused, and kept a record of; the process's switches are put back."""
    connections: list[str] = []

    def refuse(*arguments: Any, **keywords: Any) -> NoReturn:
        connections.append(str(arguments))
        raise OSError("connections are refused here")

    for name in ("getaddrinfo", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, os.environ.get(name, "1"))
    for module, names in hub._SWITCHES.items():
        for name in names:
            monkeypatch.setattr(f"{module}.{name}", True)
    yield connections


def requests(task: Any, *, chat: bool) -> list[Any]:
    """A task's first requests, in a chat format that shows every role and turn."""

    def template(messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        text = "".join(f"[{m['role']}]{m['content']}\n" for m in messages)
        return text + "[assistant]" * add_generation_prompt

    shown = {"apply_chat_template": True, "fewshot_as_multiturn": True, "chat_template": template} if chat else {}
    task.set_fewshot_seed(1234)
    task.build_all_requests(limit=3, tokenizer_name="none", **shown)
    return [(request.doc_id, request.request_type, request.args) for request in task.instances]


@pytest.mark.parametrize(
    ("name", "dataset", "config", "folder", "chat"),
    [
        ("mmlu_llama_anatomy", "hails/mmlu_no_train", "anatomy", "llama3/instruct/mmlu", True),
        ("mmlu_cot_llama_virology", "hails/mmlu_no_train", "virology", "llama3/instruct/mmlu_cot", True),
        ("gsm8k_llama", "openai/gsm8k", "main", "llama3/instruct/gsm8k", True),
        ("gsm8k_cot_llama", "openai/gsm8k", "main", "gsm8k", True),
        ("gsm8k", "openai/gsm8k", "main", "gsm8k", False),
        ("mmlu_anatomy", "cais/mmlu", "anatomy", "mmlu/default", False),
    ],
)
def test_prompts_are_lm_evals_own(
    shared_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    dataset: str,
    config: str,
    folder: str,
    chat: bool,
) -> None:
    """lm-eval reads the same rows as parquet by itself: its loader takes a folder of the data set's name."""
    rows = local_data.load(dataset, config, shared_data)
    for split, these in rows.items():
        write(tmp_path / dataset / config / f"{split}-00000-of-00001.parquet", these)
    splits = "\n".join(f"  - split: {split}\n    path: {config}/{split}-*" for split in rows)
    readme = f"---\nconfigs:\n- config_name: {config}\n  data_files:\n{splits}\n---\n"
    (tmp_path / dataset / "README.md").write_text(readme)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    theirs = TaskManager(include_defaults=False, include_path=str(registry.LM_EVAL_TASKS / folder)).load([name])[
        "tasks"
    ][name]
    ours = registry.load([name], root=shared_data, grader=CodeGrader()).tasks[name]
    assert requests(ours, chat=chat) == requests(theirs, chat=chat)
    assert [f.name for f in ours._filters] == [f.name for f in theirs._filters]
    assert ours._metric_fn_list.keys() == theirs._metric_fn_list.keys()
    assert len(ours.eval_docs) == len(theirs.eval_docs) == len(rows["test"])


def test_the_llama_variants_hold_all_questions(shared_data: Path) -> None:
    for group in ("mmlu_llama", "mmlu_cot_llama"):
        loaded = registry.load([group], root=shared_data, grader=CodeGrader())
        assert len(loaded.tasks) == 57 and len(loaded.groups) == 5
        assert sum(len(task.eval_docs) for task in loaded.tasks.values()) == 14_042
    tasks = registry.load(["gsm8k_llama", "gsm8k_cot_llama", "gsm8k_cot"], root=shared_data, grader=CodeGrader()).tasks
    assert [len(task.eval_docs) for task in tasks.values()] == [1_319] * 3


ARC = {
    "id": "x1",
    "question": "Which is a metal?",
    "choices": {"text": ["wood", "iron", "glass", "salt"], "label": ["A", "B", "C", "D"]},
    "answerKey": "B",
}


@pytest.mark.parametrize("readme", [True, False])
def test_a_task_that_is_not_ours_reads_a_local_copy(tmp_path: Path, readme: bool, no_network: list[str]) -> None:
    copy = tmp_path / "hub" / "allenai" / "ai2_arc"
    for split in ("train", "validation", "test"):
        write(copy / "ARC-Challenge" / f"{split}-00000-of-00001.parquet", [{**ARC, "id": split}] * 2)
    if readme:
        splits = "".join(f"\n  - split: {s}\n    path: ARC-Challenge/{s}-*" for s in ("train", "validation", "test"))
        (copy / "README.md").write_text(f"---\nconfigs:\n- config_name: ARC-Challenge\n  data_files:{splits}\n---\n")
    loaded = registry.load(["arc_challenge"], root=tmp_path, grader=CodeGrader())
    (request, *_) = requests(loaded.tasks["arc_challenge"], chat=False)
    assert request == (0, "loglikelihood", ("Question: Which is a metal?\nAnswer:", " wood"))
    assert [doc["id"] for doc in loaded.tasks["arc_challenge"].eval_docs] == ["test", "test"]
    assert len(loaded.tasks["arc_challenge"].data_sha256 or "") == 64
    assert no_network == []


def test_a_task_that_is_a_program_reads_a_local_copy(tmp_path: Path, no_network: list[str]) -> None:
    row = {"id": "1", "title": "Iron", "context": "It rusts.", "question": "Does what?"}
    row["answers"] = {"text": ["rusts"], "answer_start": [3]}
    for split in ("train", "validation"):
        write(tmp_path / "hub" / "lighteval" / "squad_v2" / "squad_v2" / f"{split}-0.parquet", [row] * 2)
    task = registry.load(["squadv2"], root=tmp_path, grader=CodeGrader()).tasks["squadv2"]
    task.set_config("num_fewshot", 0)
    task.build_all_requests(limit=1)
    expected = "Title: Iron\n\nBackground: It rusts.\n\nQuestion: Does what?\n\nAnswer:"
    assert task.instances[0].args[0] == expected and no_network == []


def test_a_group_of_others_reads_one_copy(tmp_path: Path) -> None:
    row = {"question": "q?", "options": ["a", "b"], "answer": "A", "cot_content": "A: Let's think step by step. x"}
    names = ("biology", "business", "chemistry", "computer science", "economics", "engineering", "health", "history")
    names += ("law", "math", "other", "philosophy", "physics", "psychology")
    rows = [{**row, "category": name} for name in names]
    for split in ("test", "validation"):
        write(tmp_path / "hub" / "TIGER-Lab" / "MMLU-Pro" / "data" / f"{split}-00000-of-00001.parquet", rows)
    loaded = registry.load(["mmlu_pro_llama"], root=tmp_path, grader=CodeGrader())
    assert {name: task.eval_docs[0]["category"] for name, task in loaded.tasks.items()} == {
        f"mmlu_pro_llama_{name.replace(' ', '_')}": name for name in names
    }
    assert loaded.group_map == {"mmlu_pro_llama": list(loaded.tasks)}


def test_offline_nothing_is_asked_for_and_what_to_do_is_said(tmp_path: Path, no_network: list[str]) -> None:
    hub.allow_network(False)
    for name, message in (
        ("arc_challenge", r"'allenai/ai2_arc' is not in .*hub/allenai/ai2_arc: .*prepare allenai/ai2_arc=.*--online"),
        ("gsm8k", r"expected .*test\.jsonl"),
        ("mbpp", r"'google-research-datasets/mbpp' is not in .*--online"),
    ):
        with pytest.raises(DataError, match=message):
            registry.load([name], root=tmp_path, grader=CodeGrader())
    assert no_network == []


def test_online_is_asked_for_only_where_it_is_allowed(
    shared_data: Path, tmp_path: Path, no_network: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    downloads: list[tuple[str, str | None]] = []

    def load_dataset(path: str, name: str | None = None, **arguments: Any) -> dict[str, Any]:
        downloads.append((path, name))
        return {split: datasets.Dataset.from_list([{"question": "2+2?", "answer": "#### 4"}]) for split in splits}

    splits = ("train", "test")
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    hub.allow_network(True)
    loaded = registry.load(["gsm8k"], root=tmp_path, grader=CodeGrader(), online=True)
    assert downloads == [("openai/gsm8k", "main")] and len(loaded.tasks["gsm8k"].eval_docs) == 1
    # What is there is not asked for.
    loaded = registry.load(["gsm8k"], root=shared_data, grader=CodeGrader(), online=True)
    assert len(downloads) == 1 and len(loaded.tasks["gsm8k"].eval_docs) == 1_319 and no_network == []


def test_the_switch_reaches_the_libraries(no_network: list[str]) -> None:
    import huggingface_hub

    hub.allow_network(True)
    assert os.environ["HF_HUB_OFFLINE"] == "0" and not datasets.config.HF_HUB_OFFLINE
    with pytest.raises(Exception, match="refused"):
        huggingface_hub.HfApi().dataset_info("org/name")
    assert no_network, "nothing was asked although it is allowed"
    no_network.clear()
    hub.allow_network(False)
    assert os.environ["HF_HUB_OFFLINE"] == "1" and datasets.config.HF_HUB_OFFLINE
    with pytest.raises(Exception, match="offline mode"):
        huggingface_hub.HfApi().dataset_info("org/name")
    assert no_network == []


def test_a_copy_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    copy = tmp_path / "hub" / "allenai" / "ai2_arc"
    (copy / "ARC-Challenge").mkdir(parents=True)
    (copy / "ARC-Challenge" / "test.parquet").write_bytes(b"PAR1 no parquet")
    with pytest.raises(DataError, match="ai2_arc cannot be read as configuration"):
        registry.load(["arc_challenge"], root=tmp_path, grader=CodeGrader())


def test_a_group_names_all_missing_sets_at_once(tmp_path: Path, no_network: list[str]) -> None:
    hub.allow_network(False)
    with pytest.raises(DataError) as error:
        registry.load(["agieval_en"], root=tmp_path, grader=CodeGrader())
    parts = ("aqua-rat", "gaokao-english", "logiqa-en", "lsat-ar", "lsat-lr", "lsat-rc", "math", "sat-en", "sat-math")
    assert str(error.value).startswith("10 datasets of agieval_en are not in ") and "\n" not in str(error.value)
    assert all(f"hails/agieval-{part}" in str(error.value) for part in (*parts, "sat-en-without-passage"))
    assert no_network == []


def test_a_group_lacks_only_what_is_missing(tmp_path: Path) -> None:
    hub.allow_network(False)
    row = {"id": "x", **ARC}
    for split in ("train", "validation", "test"):
        write(tmp_path / "hub" / "allenai" / "ai2_arc" / "ARC-Easy" / f"{split}-0.parquet", [row])
    (tmp_path / "g.yaml").write_text("group: g\ntask: [arc_easy, hellaswag, piqa]\n")
    with pytest.raises(DataError) as error:
        registry.load([str(tmp_path / "g.yaml")], root=tmp_path, grader=CodeGrader())
    assert "2 datasets of g are not in" in str(error.value) and "ai2_arc" not in str(error.value)


def test_a_mean_of_numpy_has_a_standard_error(tmp_path: Path) -> None:
    from lm_eval.api.metrics import mean

    rows = [
        {"doc_id": str(i), "title": "t", "context": "c", "question": "q", "text": "x", "value": "y"} for i in range(3)
    ]
    write(tmp_path / "hub" / "hazyresearch" / "based-squad" / "validation-0.parquet", rows)
    task = registry.load(["squad_completion"], root=tmp_path, grader=CodeGrader()).tasks["squad_completion"]
    assert task.aggregation() == {"contains": mean}
