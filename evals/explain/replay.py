"""Replay of a stored sample: the same token ids, under the run's interventions, compared with the stored values.

An analysis of a replay is valid for the stored answer only if the two agree. Does not use tasks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from evals.compare.matching import Row
from evals.results.runs import Run
from evals.store.store import Store, StoredRun
from workbench.checkpoint import load_model
from workbench.errors import DataError
from workbench.hooks import interventions
from workbench.hooks.intervention import Intervention, described_interventions
from workbench.inference.scoring import Scored, score_tokens
from workbench.model import Transformer

TOLERANCE = {"float32": 1e-3, "bfloat16": 0.5, "float16": 0.06}
"""Allowed difference of a replay in nats per token. It is not 0: a replay runs one question, the run used batches.

Over 400 answers of the embedded checkpoint on a CPU the largest difference was 2e-5 in float32, 0.21 in bfloat16 and
0.031 in float16. The last two limits are twice that; the float32 limit allows for larger models and other machines.
"""


@dataclass(frozen=True)
class ReplayedSample:
    """A stored sample and the log-probabilities that the model gives the same ids now.

    Shapes: stored, recomputed, allowed [choice] (sums over tokens) for multiple choice, [token] for a generated answer
    Units: nats; `allowed` is the largest allowed difference of each. Generated ids include the token that ended the
    answer.
    """

    task: str
    row: Row
    prompt_ids: tuple[int, ...]
    choice_ids: tuple[tuple[int, ...], ...] | None
    generated_ids: tuple[int, ...] | None
    stored: np.ndarray
    recomputed: np.ndarray
    allowed: np.ndarray

    @property
    def doc_id(self) -> int:
        return int(self.row["doc_id"])

    @property
    def difference(self) -> float:
        """The largest difference between stored and recomputed, in nats."""
        return float(np.abs(self.stored - self.recomputed).max(initial=0.0))

    @property
    def agrees(self) -> bool:
        return bool((np.abs(self.stored - self.recomputed) <= self.allowed).all())

    def __str__(self) -> str:
        """Whether the replay agrees with the stored answer, in one line."""
        worst = int(np.argmax(np.abs(self.stored - self.recomputed) - self.allowed)) if len(self.stored) else 0
        limit = float(self.allowed[worst]) if len(self.allowed) else 0.0
        if self.agrees:
            return f"matches the stored log-probabilities within {self.difference:.1g} nats ({limit:g} allowed)"
        what = "choice" if self.choice_ids is not None else "token"
        return (
            f"the replay does not match the stored answer: {what} {worst} had {self.stored[worst]:.4f} nats "
            f"and has {self.recomputed[worst]:.4f} now ({limit:g} allowed)"
        )


def replay(model: Transformer, run: Run, task: str, doc_id: int, *, filter: str | None = None) -> ReplayedSample:
    """Run a sample again as the run did; `model` must be the run's model, as loaded.

    Raises: DataError if the model is not the run's, the sample is unknown, or it was stored without token ids.
    """
    with under_interventions(model, run):
        return replay_row(model, sample(run, task, doc_id, filter=filter), task)


def replay_row(model: Transformer, row: Row, task: str) -> ReplayedSample:
    """Replay a sample that is already read, with the interventions that are active now."""
    if row.get("prompt_ids") is None:
        raise DataError(f"{task}/{row['doc_id']} was stored without token ids; run the benchmark again.")
    prompt = tuple(row["prompt_ids"])
    choices, generated = row.get("choice_ids"), row.get("generated_ids")
    if choices is not None:
        scored = score_tokens(model, [(prompt, choice) for choice in choices])
        return _replayed_sample(
            model,
            row,
            task,
            row["logprobs"],
            [scored_answer.total for scored_answer in scored],
            [len(choice) for choice in choices],
        )
    stored = row.get("generated_logprobs")
    if stored is None or len(stored) != len(generated):
        raise DataError(
            f"{task}/{row['doc_id']} was stored without a log-probability for each token; run the benchmark again."
        )
    tokens: list[Scored] = score_tokens(model, [(prompt, generated)]) if len(generated) else []
    return _replayed_sample(
        model,
        row,
        task,
        stored,
        [x for scored_answer in tokens for x in scored_answer.logprobs.tolist()],
        [1] * len(generated),
    )


def _replayed_sample(
    model: Transformer, row: Row, task: str, stored: Sequence[float], now: Sequence[float], lengths: Sequence[int]
) -> ReplayedSample:
    per_token = TOLERANCE[str(model.dtype).removeprefix("torch.")]
    choices, generated = row.get("choice_ids"), row.get("generated_ids")
    return ReplayedSample(
        task,
        row,
        tuple(row["prompt_ids"]),
        None if choices is None else tuple(map(tuple, choices)),
        None if choices is not None or generated is None else tuple(generated),
        np.array(stored, dtype=float),
        np.array(now, dtype=float),
        per_token * np.array(lengths, dtype=float),
    )


def sample(run: Run, task: str, doc_id: int, *, filter: str | None = None) -> Row:
    """One sample of a run. With several filters: the named one, otherwise the first whose answer is in the response.

    Raises: DataError if there is no such task, question or filter.
    """
    rows = [row for row in run.samples(task).to_dict("records") if row["doc_id"] == doc_id]
    if not rows:
        numbers = run.samples(task)["doc_id"]
        raise DataError(f"{task} has no question {doc_id} in this run; it has {numbers.min()} to {numbers.max()}.")
    if filter is not None:
        named = [row for row in rows if row["filter"] == filter]
        if not named:
            known = ", ".join(row["filter"] for row in rows)
            raise DataError(f"{task} has no filter {filter!r}; it has {known}.")
        return dict(named[0])
    with_answer = [row for row in rows if str(row["answer"]) in str(row.get("response", row["answer"]))]
    return dict((with_answer or rows)[0])


# --- which model ----------------------------------------------------------------------------------------------


def interventions_of(run: Run) -> tuple[Intervention, ...]:
    """The interventions that a run was made under."""
    return interventions.from_json(json.dumps(run.provenance.get("interventions") or []))


@contextmanager
def under_interventions(model: Transformer, run: Run) -> Iterator[None]:
    """The model with the run's interventions active, if they are not active already.

    Raises: DataError if the model has a different checkpoint, tokenizer, dtype or different interventions than the run,
            or if the run does not record them.
    """
    record = run.provenance
    if not record or record.get("backend", "workbench") != "workbench":
        raise DataError(f"{run.path.name} was not made with the workbench's own model; only such runs can be replayed.")
    source = model.source
    loaded = {
        "checkpoint_sha256": None if source is None else source.checkpoint_sha256,
        "tokenizer_sha256": None if source is None else source.tokenizer_sha256,
        "dtype": str(model.dtype).removeprefix("torch."),
    }
    for name, value in loaded.items():
        if record.get(name) != value:
            what = name.removesuffix("_sha256")
            now, then = (str(part or "none")[:16] for part in (value, record.get(name)))
            raise DataError(f"this model is not the run's model: its {what} is {now}, the run's was {then}.")
    run_changes = interventions_of(run)
    active = described_interventions(model)
    if active and active != [change.to_dict() for change in run_changes]:
        raise DataError(
            "the model is under other interventions than the run was; remove them, the run's interventions are applied "
            "automatically."
        )
    with model.intervene(*(() if active else run_changes)):
        yield


def stored_run(run: Run) -> StoredRun:
    """The entry of a run in the store of its results folder.

    Raises: DataError if there is no store, or it does not have the run.
    """
    name = run.provenance.get("run")
    if not name:
        raise DataError(f"{run.path.name} has no run name for the store; only runs made by the workbench have one.")
    with Store.open(run.path.parent, create=False) as store:
        return store.run(name)


def model_of(run: Run, *, path: str | None = None, device: str = "auto") -> Transformer:
    """Load the model of a run in the run's dtype, from its original path or from `path`.

    Raises: DataError if the original path is unknown. `under_interventions` checks that it is the same model.
    """
    if path is None:
        path = stored_run(run).settings["model"]
    if path is None:
        raise DataError("this run used a model in memory; pass its checkpoint with --model.")
    dtype: Any = run.provenance.get("dtype", "auto")
    return load_model(path, device=device, dtype=dtype, adapter=run.provenance.get("adapter")).eval()
