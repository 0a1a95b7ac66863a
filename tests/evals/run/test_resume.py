"""A killed run ends, resumed, with the results of one left alone; no answer is served for another question."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

pytest.importorskip("lm_eval", reason="lm_eval is not installed")

import workbench as wb
from evals import sandbox
from evals.models import generation_args, response_cache, workbench_lm
from evals.results.runs import Run, list_runs
from evals.run.evaluate import evaluate, resume
from evals.run.settings import Settings
from evals.store.store import Store
from workbench.cli import main
from workbench.errors import CheckpointError, DataError
from workbench.model import Transformer

Save = Callable[..., Path]


@pytest.fixture
def saved(speaking_model: Transformer, tmp_path: Path) -> Save:
    """Write the model as a checkpoint, changed in one respect."""

    def save(name: str, *, scale: float = 1.0, tokenizer: bytes = b"", context: int = 640) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        assert speaking_model.tokenizer is not None
        config = {**speaking_model.config.to_meta(), "max_seq_len": context}
        (folder / "params.json").write_text(json.dumps(config))
        (folder / "tokenizer.model").write_bytes(speaking_model.tokenizer.to_tiktoken() + tokenizer)
        weights = {key: value * scale for key, value in speaking_model.state_dict().items()}
        save_file(weights, folder / "consolidated.00.safetensors")
        return folder

    return save


def comparable(run: Run) -> tuple[Any, ...]:
    """All that a run wrote, but for times, its name, and the commit, which may move while a test runs."""
    data = json.loads(run.path.read_text())
    for key in ("date", "total_evaluation_time_seconds", "git_hash"):
        data.pop(key)
    for key in ("run", "commit"):
        data["workbench"].pop(key)
    samples = [path.read_text() for path in sorted(run.path.parent.glob(f"samples_*{run.stamp}.jsonl"))]
    rows = [[json.loads(line) for line in text.splitlines()] for text in samples]
    for task_rows in rows:
        for row in task_rows:
            for execution in row.get("execution", ()):
                execution.pop("seconds")
    return data, rows


ASKED = ["--tasks", "demo_mmlu,demo_gsm8k", "--limit", "60", "--device", "cpu", "--dtype", "float32"]
# Units of a few questions, each of which takes a moment, so that a kill lies inside one or between two.
SMALL_UNITS = """
import sys, time
import workbench as wb
from evals.models import units
units._FEWEST_SCORES, units._MOST_SCORES = 8, 8
units._FEWEST_GENERATIONS, units._MOST_GENERATIONS = 2, 2
def slowly(ask):
    def asked(*given, **options):
        time.sleep(0.1)
        return ask(*given, **options)
    return asked
wb.score, wb.generate = slowly(wb.score), slowly(wb.generate)
from workbench.cli import main
sys.exit(main(sys.argv[1:]))
"""


def command(*arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", SMALL_UNITS, "eval", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=Path(__file__).parents[3],
    )  # fmt: skip


def answered(folder: Path) -> int:
    with Store.open(folder, create=False) as store:
        return int(store._index.execute("SELECT count(*) FROM responses").fetchone()[0])


@pytest.mark.slow
def test_ten_kills_change_nothing(saved: Save, tmp_path: Path) -> None:
    model = str(saved("checkpoint"))
    alone = tmp_path / "alone"
    undisturbed = command("run", "--model", model, *ASKED, "--output", str(alone))
    finish(undisturbed)
    (expected,) = list_runs(alone)

    killed, rng, progress = tmp_path / "killed", random.Random(5), [0]
    process = command("run", "--model", model, *ASKED, "--output", str(killed))
    total = answered(alone)
    for kill in range(10):
        # At a random moment behind the first answer that is new.
        while process.poll() is None:
            if (killed / "store.sqlite").exists() and answered(killed) > progress[-1]:
                break
            time.sleep(0.02)
        time.sleep(rng.random() * 0.2)
        assert process.poll() is None, f"the run ended before kill {kill}: {process.communicate()[1]}"
        process.send_signal(signal.SIGKILL)
        process.communicate()
        progress.append(answered(killed))
        with Store.open(killed) as store:
            (row,) = store.runs()
        assert row.status == "interrupted" and list_runs(killed) == []
        process = command("resume", row.id, "--results", str(killed))
    finish(process)
    assert all(later > earlier for earlier, later in zip(progress, progress[1:], strict=False)), progress
    (resumed,) = list_runs(killed)
    assert comparable(resumed) == comparable(expected)
    assert answered(killed) == total
    assert main(["eval", "resume", row.id, "--results", str(killed)]) == 2


@pytest.mark.slow
@pytest.mark.skipif(sandbox.why_unavailable() is not None, reason=f"no sandbox: {sandbox.why_unavailable()}")
def test_kills_from_the_first_moment_to_the_last_change_nothing(saved: Save, tmp_path: Path) -> None:
    """Wherever they fall: imports, the model, questions, programs in the sandbox, the files."""
    model = str(saved("checkpoint"))
    run_it = ("run", "--model", model, "--tasks", "demo_gsm8k,demo_humaneval", "--limit", "8", "--device", "cpu")
    alone, killed, rng = tmp_path / "alone", tmp_path / "killed", random.Random(3)
    began = time.monotonic()
    finish(command(*run_it, "--output", str(alone)))
    whole, stopped = time.monotonic() - began, []
    for part in range(8):
        process = command(*(_go_on(killed) or (*run_it, "--output", str(killed))))
        time.sleep((part + rng.random()) / 8 * whole)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        stopped.append(process.returncode == -signal.SIGKILL)
        if not _go_on(killed) and list_runs(killed):
            break
    if last := _go_on(killed):
        finish(command(*last))
    assert sum(stopped) >= 3, "too few of the kills met a process"
    (expected,), (resumed,) = list_runs(alone), list_runs(killed)
    assert comparable(resumed) == comparable(expected)
    assert not list(killed.glob("*.tmp"))


def finish(process: subprocess.Popen[str]) -> None:
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err


def _go_on(folder: Path) -> tuple[str, ...]:
    """The command that goes on with the run that was stopped last; none where there is none."""
    if not (folder / "store.sqlite").exists():
        return ()
    with Store.open(folder) as store:
        left = [row.id for row in store.runs() if row.status == "interrupted"]
    return ("resume", left[0], "--results", str(folder)) if left else ()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many questions were put to a model, one entry a batch."""
    counts: list[int] = []
    score, generate = wb.score, wb.generate

    def scoring(model: Transformer, pairs: Any, **options: Any) -> Any:
        counts.append(len(pairs))
        return score(model, pairs, **options)

    def generating(model: Transformer, prompts: Any, **options: Any) -> Any:
        counts.append(len(prompts))
        return generate(model, prompts, **options)

    monkeypatch.setattr(wb, "score", scoring)
    monkeypatch.setattr(wb, "generate", generating)
    return counts


SUITES = ("demo_mmlu", "demo_gsm8k")


def test_a_second_run_asks_nothing_and_finds_the_same(saved: Save, tmp_path: Path, asked: list[int]) -> None:
    settings = Settings(tasks=SUITES, output=tmp_path / "out", limit=3)
    first = evaluate(saved("checkpoint"), settings, dtype="float32")
    assert sum(asked) == 3 * 4 + 3
    asked.clear()
    second = evaluate(tmp_path / "checkpoint", settings, dtype="float32")
    assert asked == [] and comparable(first) == comparable(second)
    more = evaluate(tmp_path / "checkpoint", replace(settings, limit=5), dtype="float32")
    assert sum(asked) == 5 * 4 + 5 and more.data["n-samples"]["demo_mmlu"]["effective"] == 5


@pytest.mark.parametrize("what", ["weights", "tokenizer", "dtype", "context", "prompt", "intervention", "engine"])
def test_no_answer_is_served_for_anything_else(
    saved: Save, tmp_path: Path, asked: list[int], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(tasks=SUITES, output=tmp_path / "out", limit=2)
    evaluate(saved("one"), settings, dtype="float32")
    asked.clear()
    other, dtype = tmp_path / "one", "float32"
    if what == "weights":
        other = saved("other", scale=1.01)
    elif what == "tokenizer":
        other = saved("other", tokenizer=b"\n")
    elif what == "context":
        other = saved("other", context=512)
    elif what == "dtype":
        dtype = "bfloat16"
    elif what == "prompt":
        settings = replace(settings, num_fewshot=1)
    elif what == "intervention":
        settings = replace(settings, interventions=(wb.Ablate("L1H2"),))
    elif what == "engine":
        monkeypatch.setattr(response_cache, "ENGINE", response_cache.ENGINE + 1)
    evaluate(other, settings, dtype=dtype)
    assert sum(asked) == 2 * 4 + 2


@pytest.mark.parametrize("what", ["written", "data", "replaced", "config", "hook", "file"])
def test_a_model_changed_in_memory_answers_for_itself_alone(
    saved: Save, tmp_path: Path, asked: list[int], what: str
) -> None:
    settings = Settings(tasks=("demo_mmlu",), output=tmp_path / "out", limit=2)
    model = wb.load_model(saved("one"), dtype="float32")
    weight = model.layers[1].attention.wo.weight
    if what == "written":
        with torch.no_grad():
            weight[3] = 0
    elif what == "data":
        weight.data[:, 8:16] *= 0.5
    elif what == "replaced":
        model.layers[1].attention.wo.weight = torch.nn.Parameter(weight.detach().clone())
    elif what == "config":
        model.config = replace(model.config, norm_eps=0.1)
    elif what == "hook":
        model.layers[1].register_forward_hook(lambda module, given, out: out * 2)
    elif what == "file":
        saved("other", scale=1.01)
        (tmp_path / "other" / "consolidated.00.safetensors").replace(tmp_path / "one" / "consolidated.00.safetensors")
    run = evaluate(model, settings)
    assert sum(asked) == 2 * 4 and (run.provenance["checkpoint_sha256"] is None) == (what != "hook")
    asked.clear()
    assert evaluate(tmp_path / "one", settings, dtype="float32").provenance["checkpoint_sha256"]
    assert sum(asked) == 2 * 4, "the answers of the changed model were served for the checkpoint"


def overwrite(path: Path, *, keep_times: bool = False, mapped: bool = False) -> None:
    """Zero the second half of a file in place."""
    stat, size = path.stat(), path.stat().st_size
    if mapped:
        values = np.memmap(path, dtype=np.uint8, mode="r+")
        values[size // 2 :] = 0
        values.flush()
    else:
        with path.open("r+b") as file:
            file.seek(size // 2)
            file.write(bytes(size - size // 2))
    if keep_times:
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize("how", ["written", "with its old times", "mapped"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])  # of the file, so that weights are mapped; and converted
def test_a_checkpoint_written_to_during_a_run_keeps_no_answers_under_its_old_hash(
    saved: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, dtype: str, capsys: Any
) -> None:
    settings = Settings(tasks=SUITES, output=tmp_path / "out", limit=3)
    folder = saved("one")
    expected = evaluate(folder, replace(settings, output=tmp_path / "alone"), dtype=dtype)
    weights, generate = folder / "consolidated.00.safetensors", wb.generate
    original = weights.read_bytes()

    def overwriting(*given: Any, **options: Any) -> Any:
        overwrite(weights, keep_times=how == "with its old times", mapped=how == "mapped")
        return generate(*given, **options)

    monkeypatch.setattr(wb, "generate", overwriting)
    with pytest.raises(CheckpointError, match="was written to while the model answered"):
        evaluate(folder, settings, dtype=dtype)
    assert list_runs(tmp_path / "out") == [] and answered(tmp_path / "out") == 3 * 4, "the scored half was before"
    assert "continue with `workbench eval resume" in capsys.readouterr().err

    monkeypatch.setattr(wb, "generate", generate)
    with weights.open("r+b") as file:
        file.write(original)
    with Store.open(tmp_path / "out") as store:
        (row,) = store.runs()
    assert comparable(resume(tmp_path / "out", row.id)) == comparable(expected)


@pytest.mark.parametrize("what", ["replaced", "permissions"])
def test_a_checkpoint_whose_loaded_content_stays_does_not_stop_a_run(
    saved: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    settings, folder, generate = Settings(tasks=SUITES, output=tmp_path / "out", limit=3), saved("one"), wb.generate
    expected = evaluate(folder, replace(settings, output=tmp_path / "alone"), dtype="float32")
    other = saved("other", scale=1.01)

    def replacing(*given: Any, **options: Any) -> Any:
        if what == "permissions":
            (folder / "params.json").chmod(0o600)
        else:
            (other / "consolidated.00.safetensors").replace(folder / "consolidated.00.safetensors")
        return generate(*given, **options)

    monkeypatch.setattr(wb, "generate", replacing)
    assert comparable(evaluate(folder, settings, dtype="float32")) == comparable(expected)
    assert answered(tmp_path / "out") == 3 * 5


def test_weights_changed_in_memory_during_a_run_end_it(
    saved: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, generate = wb.load_model(saved("one"), dtype="float32"), wb.generate

    def changing(*given: Any, **options: Any) -> Any:
        model.layers[0].attention.wo.weight.data[3] = 0
        return generate(*given, **options)

    monkeypatch.setattr(wb, "generate", changing)
    with pytest.raises(CheckpointError, match="changed in memory"):
        evaluate(model, Settings(tasks=SUITES, output=tmp_path / "out", limit=3))
    assert answered(tmp_path / "out") == 3 * 4


def test_answers_under_an_own_function_are_kept_under_no_name(saved: Save, tmp_path: Path, asked: list[int]) -> None:
    settings = Settings(tasks=("demo_mmlu",), output=tmp_path / "out", limit=2)
    model = wb.load_model(saved("one"), dtype="float32")
    for _ in range(2):
        asked.clear()
        with model.intervene(wb.Hook("L1.mlp", lambda x, site: x * 2)):
            run = evaluate(model, settings)
        assert sum(asked) == 2 * 4 and [change["kind"] for change in run.provenance["interventions"]] == [
            "own function"
        ]
    asked.clear()
    assert evaluate(model, settings).provenance["interventions"] == []
    assert sum(asked) == 2 * 4, "the answers under the function were served for the checkpoint"


def test_a_kill_between_the_files_and_their_entry_leaves_one_result(
    saved: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, finish = Settings(tasks=SUITES, output=tmp_path / "out", limit=2), Store.finish

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Store, "finish", killed)
    with pytest.raises(KeyboardInterrupt):
        evaluate(saved("one"), settings, dtype="float32")
    monkeypatch.setattr(Store, "finish", finish)
    (early,) = list_runs(tmp_path / "out")
    resumed = resume(tmp_path / "out", early.provenance["run"])
    (only,) = list_runs(tmp_path / "out")
    assert only.path == resumed.path == early.path and comparable(only) == comparable(resumed)
    assert len(list((tmp_path / "out").glob("samples_*"))) == 2


def test_a_loaded_model_keeps_its_name_until_it_is_changed(saved: Save, tmp_path: Path) -> None:
    model = wb.load_model(saved("one"), dtype="float32")
    assert model.source is not None and model.source.path == tmp_path / "one"
    known = model.source.checkpoint_sha256
    (tmp_path / "one" / "consolidated.00.safetensors").unlink()  # its hash is known already
    assert model.source is not None and model.source.checkpoint_sha256 == known
    with model.intervene(wb.Ablate("L1H2")):
        assert model.source is not None
    model.norm.weight.data[0] += 1
    assert model.source is None


def test_decoding_arguments_are_part_of_the_question(
    saved: Save, tmp_path: Path, asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(tasks=("demo_gsm8k",), output=tmp_path / "out", limit=2)
    evaluate(saved("one"), settings, dtype="float32")
    of = generation_args.GenerationArgs.of
    monkeypatch.setattr(generation_args.GenerationArgs, "of", lambda *given: replace(of(*given), tokens=3))
    assert len(evaluate(tmp_path / "one", settings, dtype="float32").samples("demo_gsm8k").generated_ids[0]) <= 3
    assert sum(asked) == 4


def test_generation_arguments_of_the_run_are_part_of_the_question(
    saved: Save, tmp_path: Path, asked: list[int]
) -> None:
    settings = Settings(tasks=SUITES, output=tmp_path / "out", limit=2, gen_kwargs={"max_gen_toks": 4})
    first = evaluate(saved("one"), settings, dtype="float32")
    assert all(len(ids) <= 4 for ids in first.samples("demo_gsm8k").generated_ids)
    drawn = {"max_gen_toks": 4, "do_sample": True, "temperature": 1.0}
    for changes, number in (
        ({}, 0),
        ({"gen_kwargs": {"max_gen_toks": 5}}, 2),
        ({"gen_kwargs": drawn}, 2),
        ({"gen_kwargs": drawn}, 0),
        ({"gen_kwargs": drawn, "seed": 99}, 2),
        ({"gen_kwargs": {**drawn, "top_p": 0.9}}, 2),
        ({"system": "Be brief."}, 10),
    ):
        asked.clear()
        evaluate(tmp_path / "one", replace(settings, **changes), dtype="float32")
        assert sum(asked) == number, changes


def test_what_is_drawn_goes_by_the_question_not_by_its_place(speaking_model: Transformer) -> None:
    from lm_eval.api.instance import Instance

    def request(doc: int) -> Instance:
        arguments = ("Say something.", {"do_sample": True, "temperature": 1.0, "max_gen_toks": 6})
        return Instance("generate_until", {}, arguments, 0, metadata=("task", doc, 1))

    def drawn(docs: list[int]) -> list[str]:
        return workbench_lm.WorkbenchLM(speaking_model, seed=5, progress=False).generate_until(
            [request(doc) for doc in docs]
        )

    first = drawn([0, 1, 2, 2])
    assert len(set(first)) == 4, "questions differ, and so do repeats of one"
    assert drawn([2, 7, 0, 2, 1])[::2] == [first[2], first[0], first[1]]
    assert drawn([2, 7, 0, 2, 1])[3] == first[3]


def test_a_model_in_memory_keeps_nothing(speaking_model: Transformer, tmp_path: Path, asked: list[int]) -> None:
    settings = Settings(tasks=("demo_mmlu",), output=tmp_path, limit=2)
    for _ in range(2):
        asked.clear()
        evaluate(speaking_model, settings)
        assert sum(asked) == 8
    assert answered(tmp_path) == 0


def test_an_intervention_from_outside_is_part_of_the_question(saved: Save, tmp_path: Path, asked: list[int]) -> None:
    model = wb.load_model(saved("one"), dtype="float32")
    settings = Settings(tasks=("demo_mmlu",), output=tmp_path / "out", limit=2)
    with model.intervene(wb.Ablate("L0H1")):
        evaluate(model, settings)
        assert sum(asked) == 8
    evaluate(model, settings)
    assert sum(asked) == 16
    evaluate(model, replace(settings, interventions=(wb.Ablate("L0H1"),)))
    assert sum(asked) == 16, "the same change, described in the settings, is the same question"


def test_settings_survive_the_store() -> None:
    settings = Settings(
        tasks=("a", "b"), output=Path("x"), data=Path("/d"), limit=3, chat=True,
        interventions=(wb.Ablate("L1H2"), wb.Scale("L0.mlp", 0.5)),
    )  # fmt: skip
    back = Settings.from_dict(json.loads(json.dumps(settings.to_dict())))
    assert back.to_dict() == settings.to_dict() and back.tasks == ("a", "b")


def test_a_failed_run_says_why_and_goes_on(
    saved: Save, tmp_path: Path, asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(tasks=SUITES, output=tmp_path / "out", limit=3)
    generate = wb.generate

    def broken(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("no memory left")

    monkeypatch.setattr(wb, "generate", broken)
    with pytest.raises(torch.OutOfMemoryError):
        evaluate(saved("one"), settings, dtype="float32")
    with Store.open(tmp_path / "out") as store:
        (row,) = store.runs()
    assert (row.status, row.error) == ("failed", "no memory left")
    monkeypatch.setattr(wb, "generate", generate)
    asked.clear()
    finished = resume(tmp_path / "out", row.id)
    assert asked == [3] and finished.provenance["run"] == row.id, "the scored half was kept"
    with pytest.raises(DataError, match="is finished"):
        resume(tmp_path / "out", row.id)


def test_a_run_says_what_changed_its_model_from_outside(speaking_model: Transformer, tmp_path: Path) -> None:
    settings = Settings(tasks=("demo_mmlu",), output=tmp_path, limit=1, interventions=(wb.Scale("L0.mlp", 0.5),))
    with speaking_model.intervene(wb.Ablate("L0H1")):
        interventions = evaluate(speaking_model, settings).provenance["interventions"]
    assert [change["kind"] for change in interventions] == ["ablate", "scale"]
