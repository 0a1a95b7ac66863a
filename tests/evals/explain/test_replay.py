"""Replay of stored samples: the same model gives the same numbers; another model gives an error or a warning."""

import json
import shlex
import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import save_file

pytest.importorskip("lm_eval", reason="lm_eval is not installed")

import workbench as wb
from evals.explain import baseline_run
from evals.explain.replay import model_of, replay, sample
from evals.results.runs import Run, read_run
from evals.run.evaluate import evaluate, request_of
from evals.run.settings import Settings
from evals.store.store import Store
from workbench.cli import main
from workbench.errors import DataError
from workbench.model import Transformer

TASKS = ("demo_mmlu", "demo_gsm8k")
CHANGE = (wb.Ablate("L1H2"), wb.RopeScaling(yarn=2.0))


def saved(model: Transformer, folder: Path, *, scale: float = 1.0, tokenizer: bytes = b"") -> Path:
    folder.mkdir()
    assert model.tokenizer is not None
    (folder / "params.json").write_text(json.dumps(model.config.to_meta()))
    (folder / "tokenizer.model").write_bytes(model.tokenizer.to_tiktoken() + tokenizer)
    save_file(
        {name: scale * value for name, value in model.state_dict().items()}, folder / "consolidated.00.safetensors"
    )
    return folder


@pytest.fixture(scope="module")
def made(speaking_model: Transformer, tmp_path_factory: pytest.TempPathFactory) -> tuple[Transformer, Run, Run]:
    """A checkpoint's model, a run of it, and a run with interventions, in one store."""
    root = tmp_path_factory.mktemp("replay")
    folder = saved(speaking_model, root / "checkpoint")
    settings = Settings(tasks=TASKS, output=root / "out", limit=4)
    plain = evaluate(folder, settings, device="cpu", dtype="float32")
    changed = evaluate(folder, replace(settings, interventions=CHANGE), device="cpu", dtype="float32")
    return wb.load_model(folder, device="cpu", dtype="float32").eval(), plain, changed


def edited(run: Run, folder: Path, task: str, change: Callable[[dict[str, Any]], None]) -> Run:
    """A copy of a run in which the sample of question 1 is changed."""
    for path in run.path.parent.glob(f"*{run.stamp}*"):
        shutil.copy(path, folder)
    path = folder / f"samples_{task}_{run.stamp}.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        if row["doc_id"] == 1:
            change(row)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_run(folder / run.path.name)


@pytest.mark.parametrize("which", [0, 1])
def test_choices_have_the_stored_log_probabilities(made: tuple[Transformer, Run, Run], which: int) -> None:
    model, run = made[0], made[1 + which]
    for doc_id in range(4):
        replayed = replay(model, run, "demo_mmlu", doc_id)
        assert replayed.agrees and replayed.difference < 1e-4, str(replayed)
        # By the public function, under the interventions by hand.
        assert replayed.choice_ids is not None
        with model.intervene(*(CHANGE if which else ())):
            scored = wb.score(model, [(replayed.prompt_ids, choice) for choice in replayed.choice_ids])
        assert replayed.stored == pytest.approx([value for value, _ in scored], abs=1e-4)
        assert "within" in str(replayed)
    # The interventions matter: the other run's numbers are others.
    other = replay(model, made[2 - which], "demo_mmlu", 0)
    assert np.abs(other.stored - replay(model, run, "demo_mmlu", 0).stored).max() > 1e-2


def test_generated_tokens_have_the_stored_log_probabilities(made: tuple[Transformer, Run, Run]) -> None:
    model, *runs = made
    for run in runs:
        replayed = replay(model, run, "demo_gsm8k", 2)
        assert (
            replayed.agrees
            and replayed.generated_ids is not None
            and len(replayed.generated_ids) == len(replayed.stored) > 0
        )
        assert replayed.row["generated_logprobs"] == pytest.approx(replayed.recomputed, abs=1e-4)


def test_interventions_in_force_already_are_not_entered_twice(made: tuple[Transformer, Run, Run]) -> None:
    model, plain, changed = made
    with model.intervene(*CHANGE):
        assert replay(model, changed, "demo_mmlu", 0).agrees
        with pytest.raises(DataError, match="under other interventions"):
            replay(model, plain, "demo_mmlu", 0)
    with model.intervene(wb.Scale("L1H2", 0.0)), pytest.raises(DataError, match="under other interventions"):
        replay(model, changed, "demo_mmlu", 0)


@pytest.mark.parametrize(("what", "words"), [("weights", "checkpoint"), ("tokenizer", "tokenizer"), ("dtype", "dtype")])
def test_another_model_is_refused(
    made: tuple[Transformer, Run, Run], speaking_model: Transformer, tmp_path: Path, what: str, words: str
) -> None:
    run = made[1]
    scale, more = (1.01 if what == "weights" else 1.0), (b"\n" if what == "tokenizer" else b"")
    other = saved(speaking_model, tmp_path / "other", scale=scale, tokenizer=more)
    dtype = "bfloat16" if what == "dtype" else "float32"
    model = wb.load_model(other, device="cpu", dtype=dtype)
    with pytest.raises(DataError, match=f"not the run's model: its {words} is"):
        replay(model, run, "demo_mmlu", 0)


def _logprob(row: dict[str, Any]) -> None:
    row["filtered_resps"][2][0] = str(float(row["filtered_resps"][2][0]) + 0.01)


def _prompt(row: dict[str, Any]) -> None:
    row["replay"]["prompt_ids"][5] += 1


def _choice(row: dict[str, Any]) -> None:
    row["replay"]["choice_ids"][0][-1] += 1


def _token(row: dict[str, Any]) -> None:
    row["replay"]["generated_ids"][0][3] ^= 1


@pytest.mark.parametrize(
    ("task", "change"),
    [("demo_mmlu", _logprob), ("demo_mmlu", _prompt), ("demo_mmlu", _choice), ("demo_gsm8k", _token)],
)
def test_a_sample_changed_by_hand_is_noticed(
    made: tuple[Transformer, Run, Run], tmp_path: Path, task: str, change: Callable[[dict[str, Any]], None]
) -> None:
    model, run, _ = made
    run = edited(run, tmp_path, task, change)
    replayed = replay(model, run, task, 1)
    assert not replayed.agrees and "does not match the stored answer" in str(replayed)
    assert replay(model, run, task, 0).agrees


def test_what_cannot_be_replayed_says_why(made: tuple[Transformer, Run, Run], tmp_path: Path) -> None:
    model, run, _ = made
    with pytest.raises(DataError, match="no question 9 in this run; it has 0 to 3"):
        replay(model, run, "demo_mmlu", 9)
    with pytest.raises(DataError, match="no filter 'other'; it has strict-match, flexible-extract"):
        sample(run, "demo_gsm8k", 0, filter="other")
    without = edited(run, tmp_path, "demo_mmlu", lambda row: row.pop("replay"))
    with pytest.raises(DataError, match="without token ids"):
        replay(model, without, "demo_mmlu", 1)
    theirs = Run(run.path, {key: value for key, value in run.data.items() if key != "workbench"})
    with pytest.raises(DataError, match="not made with the workbench's own model"):
        replay(model, theirs, "demo_mmlu", 1)


def test_the_run_s_model_is_found(made: tuple[Transformer, Run, Run], tmp_path: Path) -> None:
    model, run, _ = made
    loaded = model_of(run, device="cpu")
    assert loaded.source is not None and model.source is not None and loaded.source.path == model.source.path
    moved = edited(run, tmp_path, "demo_mmlu", lambda row: None)
    with pytest.raises(DataError, match=r"has no store\.sqlite"):
        model_of(moved)
    assert replay(model_of(moved, path=str(model.source.path), device="cpu"), moved, "demo_mmlu", 1).agrees


def test_the_plain_run_and_the_commands(made: tuple[Transformer, Run, Run], tmp_path: Path) -> None:
    model, plain, changed = made
    assert model.source is not None
    baseline = baseline_run.find_baseline(changed)
    assert baseline is not None and baseline.path == plain.path
    assert baseline_run.find_baseline(plain) is None, "a run is not its own counterpart"
    for name in ("checkpoint_sha256", "tokenizer_sha256", "data_sha256", "examples_sha256", "engine", "dtype"):
        about = {**changed.data, "workbench": {**changed.provenance, name: "another"}}
        assert changed.provenance[name] and baseline_run.find_baseline(Run(changed.path, about)) is None, name
    ours = f"workbench eval run --model {model.source.path} --tasks demo_mmlu,demo_gsm8k --output {plain.path.parent}"
    ours += " --device cpu --dtype float32 --limit 4"
    assert baseline_run.run_command(plain) == ours
    assert baseline_run.ablation_command(plain, (0, 3)) == f"{ours} --ablate L0H3"
    both = f"{ours} --ablate L1H2,L0H3 --rope-scaling yarn=2 --against {changed.provenance['run']}"
    assert baseline_run.ablation_command(changed, (0, 3)) == both
    assert baseline_run.run_command(plain, [wb.Add("blocks.0.hook_resid_post", [0.0] * 32)]) is None
    assert baseline_run.run_command(plain, [wb.Ablate("blocks.0.attn.hook_z", heads=[1])]) is None


def test_a_command_asks_for_the_settings_that_it_was_made_of(
    made: tuple[Transformer, Run, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings_of_run = Settings(
        tasks=("demo_mmlu", "demo_gsm8k"), output=tmp_path, data=tmp_path / "my data", limit=0.5,
        num_fewshot=2, batch_size=3, seed=7, chat=True, multiturn=False, system="Say 'A'.",
        gen_kwargs={"temperature": 0.5, "until": ["a b"]},
        preset="meta", samples=20, limits={"seconds": 7.5, "memory": 1 << 30}, online=True,
        adapter=tmp_path / "my adapter", include_path=(tmp_path / "my tasks", tmp_path / "more"),
        template="rag", predict_only=True,
        interventions=(wb.Ablate("L1H2"), wb.Scale("L0.mlp", 1 / 3)),
    )  # fmt: skip
    same = {"backend", "model_args"}  # no run of another backend has ids to replay
    same |= {"questions"}  # its option is that of samples
    assert all(getattr(settings_of_run, f.name) != f.default for f in fields(Settings) if f.name not in same), (
        "a new field"
    )
    model = str(made[0].source.path) if made[0].source else ""
    with Store.open(tmp_path) as store:
        name = store.register(request_of(model, settings_of_run, device="cpu", dtype="float32"))
    run = Run(tmp_path / "results_1.json", {"results": {}, "workbench": {"run": name}})
    command = baseline_run.run_command(run, settings_of_run.interventions)
    assert command is not None
    seen: list[tuple[Any, ...]] = []

    def evaluate(path: str, settings: Settings, **given: Any) -> Run:
        seen.append((path, settings.to_dict(), given["device"], given["dtype"]))
        raise DataError("enough")

    monkeypatch.setattr("evals.run.evaluate.evaluate", evaluate)
    assert main(shlex.split(command)[1:]) == 2
    assert seen == [(model, settings_of_run.to_dict(), "cpu", "float32")]


def test_the_difference_is_paired(made: tuple[Transformer, Run, Run]) -> None:
    _, plain, changed = made
    lines = baseline_run.difference_lines(plain, changed)
    a, b = (run.samples("demo_mmlu")["correct"].to_numpy() for run in (plain, changed))
    assert lines[0].startswith(f"demo_mmlu acc: {100 * a.mean():.2f} plain, {100 * b.mean():.2f} changed")
    assert lines[0].endswith(f"n 4, {int((b > a).sum())} became right and {int((a > b).sum())} wrong")
