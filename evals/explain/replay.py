"""A stored sample run again: on the very ids that were scored, under the run's own interventions, against what was
stored.

What is said of a replay is said of the stored answer only while the two agree. Knows nothing of tasks.
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
from workbench.hooks.intervention import Intervention, active_interventions
from workbench.inference.scoring import Scored, score_tokens
from workbench.model import Transformer

TOLERANCE = {"float32": 1e-3, "bfloat16": 0.5, "float16": 0.06}
"""Nats a token: how far a replay may be off, which runs a question by itself where the run had it in a batch.

Over 400 answers of the embedded checkpoint on a CPU the largest change was 2e-5 in float32, 0.21 in bfloat16 and 0.031
in float16; the last two are allowed twice that, float32 leaves room for larger models and other machines.
"""


@dataclass(frozen=True)
class Replay:
    """A stored sample and what the model says of the same ids now.

    `stored` and `recomputed` are nats: [choice] sums for multiple choice, [token] for a generated answer; `allowed`
    is how far each may be off. A generated answer's ids include the token that ended it.
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
        """Whether this is the stored answer, in one line."""
        worst = int(np.argmax(np.abs(self.stored - self.recomputed) - self.allowed)) if len(self.stored) else 0
        limit = float(self.allowed[worst]) if len(self.allowed) else 0.0
        if self.agrees:
            return f"the stored log-probabilities, within {self.difference:.1g} nats ({limit:g} allowed)"
        what = "choice" if self.choice_ids is not None else "token"
        return (
            f"this explains something else than the stored answer: {what} {worst} had {self.stored[worst]:.4f} nats "
            f"and has {self.recomputed[worst]:.4f} now ({limit:g} allowed)"
        )


def replay(model: Transformer, run: Run, task: str, doc_id: int, *, filter: str | None = None) -> Replay:
    """Run a sample again as the run did; `model` is the run's, as it was loaded.

    Raises: DataError for a model that is not the run's, an unknown sample, or one without its ids.
    """
    with under(model, run):
        return again(model, sample(run, task, doc_id, filter=filter), task)


def again(model: Transformer, row: Row, task: str) -> Replay:
    """`replay` of a sample that was read already, under whatever intervenes just now."""
    if row.get("prompt_ids") is None:
        raise DataError(f"{task}/{row['doc_id']} was stored without its token ids; run the benchmark again.")
    prompt = tuple(row["prompt_ids"])
    choices, generated = row.get("choice_ids"), row.get("generated_ids")
    if choices is not None:
        scored = score_tokens(model, [(prompt, choice) for choice in choices])
        return _replay(
            model, row, task, row["logprobs"], [one.total for one in scored], [len(choice) for choice in choices]
        )
    stored = row.get("generated_logprobs")
    if stored is None or len(stored) != len(generated):
        raise DataError(f"{task}/{row['doc_id']} was stored without a log-probability for each token; run it again.")
    tokens: list[Scored] = score_tokens(model, [(prompt, generated)]) if len(generated) else []
    return _replay(model, row, task, stored, [x for one in tokens for x in one.logprobs.tolist()], [1] * len(generated))


def _replay(
    model: Transformer, row: Row, task: str, stored: Sequence[float], now: Sequence[float], lengths: Sequence[int]
) -> Replay:
    per_token = TOLERANCE[str(model.dtype).removeprefix("torch.")]
    choices, generated = row.get("choice_ids"), row.get("generated_ids")
    return Replay(
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
    """One sample of a run; of several filters the one named, else the first whose answer is in the response.

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
    found = [row for row in rows if str(row["answer"]) in str(row.get("response", row["answer"]))]
    return dict((found or rows)[0])


# --- which model ----------------------------------------------------------------------------------------------


def changes_of(run: Run) -> tuple[Intervention, ...]:
    """The interventions that a run was made under."""
    return interventions.from_json(json.dumps(run.provenance.get("interventions") or []))


@contextmanager
def under(model: Transformer, run: Run) -> Iterator[None]:
    """The model as the run had it: its interventions in force, unless they are already.

    Raises: DataError for a model with another checkpoint, tokenizer or dtype, or under other interventions; or a run
            that does not say.
    """
    own = run.provenance
    if not own or own.get("backend", "workbench") != "workbench":
        raise DataError(f"{run.path.name} was not made by the workbench's own model; only such a run can be replayed.")
    source = model.source
    here = {
        "checkpoint_sha256": None if source is None else source.checkpoint_sha256,
        "tokenizer_sha256": None if source is None else source.tokenizer_sha256,
        "dtype": str(model.dtype).removeprefix("torch."),
    }
    for name, value in here.items():
        if own.get(name) != value:
            what = name.removesuffix("_sha256")
            found, wanted = (str(part or "none")[:16] for part in (value, own.get(name)))
            raise DataError(f"this model is not the run's: its {what} is {found}, the run's was {wanted}.")
    wanted_changes = changes_of(run)
    acting = [None if change is None else change.to_dict() for change in active_interventions(model)]
    if acting and acting != [change.to_dict() for change in wanted_changes]:
        raise DataError("the model is under other interventions than the run was; leave them, the run's own are used.")
    with model.intervene(*(() if acting else wanted_changes)):
        yield


def entry_of(run: Run) -> StoredRun:
    """What the store beside a run's results knows of it.

    Raises: DataError if there is no store, or it does not have the run.
    """
    name = run.provenance.get("run")
    if not name:
        raise DataError(f"{run.path.name} does not name its run in a store; the workbench's own runs do.")
    with Store.open(run.path.parent, create=False) as store:
        return store.run(name)


def model_of(run: Run, *, path: str | None = None, device: str = "auto") -> Transformer:
    """The model that a run was made on, loaded in its dtype from where it was, or from `path`.

    Raises: DataError if nobody knows where it was; `under` checks that it is the one.
    """
    if path is None:
        path = entry_of(run).settings["model"]
    if path is None:
        raise DataError("this run was made on a model in memory; name its checkpoint with --model.")
    dtype: Any = run.provenance.get("dtype", "auto")
    return load_model(path, device=device, dtype=dtype).eval()
