"""Training recipe: all settings that determine the weights, read from a TOML file.

The training loop is in `train.py`. An unknown key is an error, because ignoring a setting would change the training.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from workbench.config import ModelConfig
from workbench.errors import TrainingError
from workbench.training.demo_data.corpus import KINDS, Mix

T = TypeVar("T")


@dataclass(frozen=True)
class Vocabulary:
    """Tokenizer training: number of ranks, number of documents, and the stage (from 1) that they come from."""

    ranks: int
    documents: int
    stage: int = 1


@dataclass(frozen=True)
class Optimisation:
    """AdamW with warm-up and cosine decay to `final_rate` of the peak, as for Llama 2.

    `prompt_weight` is the loss weight of tokens that cannot be predicted (a question, a number in it); answer tokens
    have weight 1.
    Units: `warmup` and `save_every` in steps, `length` in tokens, `batch` in sequences.
    """

    seed: int
    batch: int
    length: int
    rate: float
    warmup: int
    save_every: int
    final_rate: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-5
    weight_decay: float = 0.1
    clip: float = 1.0
    prompt_weight: float = 1.0
    init_std: float = 0.02
    autocast: bool = True


@dataclass(frozen=True)
class Stage:
    """A number of steps on one mix of text; with a `rate`, the learning-rate schedule starts again with this peak."""

    steps: int
    mix: Mix
    rate: float | None = None


@dataclass(frozen=True)
class Recipe:
    """A model, a tokenizer, an optimiser and the stages of the training text."""

    model: ModelConfig
    vocabulary: Vocabulary
    optimisation: Optimisation
    stages: tuple[Stage, ...]

    @property
    def steps(self) -> int:
        return sum(stage.steps for stage in self.stages)

    @property
    def digest(self) -> str:
        """SHA-256 of the recipe's content; a saved state is resumed only with the same digest."""
        return hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode()).hexdigest()

    def rate_at(self, step: int) -> float:
        """Learning rate of a step: linear warm-up, then cosine decay to `final_rate` of the peak.

        The schedule starts again at each stage that has a rate.
        """
        settings, start, length, peak = self.optimisation, 0, 0, self.optimisation.rate
        for stage in self.stages:
            if stage.rate is not None:
                if step < start + length:
                    break
                start, length, peak = start + length, 0, stage.rate
            length += stage.steps
        step -= start
        if step < settings.warmup:
            return peak * (step + 1) / settings.warmup
        progress = min(1.0, (step - settings.warmup) / max(1, length - settings.warmup))
        return peak * (settings.final_rate + (1 - settings.final_rate) * 0.5 * (1 + math.cos(math.pi * progress)))

    def stage_at(self, step: int) -> Stage:
        for stage in self.stages:
            if step < stage.steps:
                return stage
            step -= stage.steps
        return self.stages[-1]

    @classmethod
    def from_file(cls, path: str | Path) -> Recipe:
        """Raises: TrainingError if the file is missing, is not TOML, or has an unknown or missing key."""
        try:
            data = tomllib.loads(Path(path).read_text())
        except OSError as error:
            raise TrainingError(f"{path}: the recipe cannot be read ({error.strerror}).") from error
        except tomllib.TOMLDecodeError as error:
            raise TrainingError(f"{path}: not a TOML file ({error}).") from error
        return cls.from_dict(data, source=str(path))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, source: str = "recipe") -> Recipe:
        """Raises: TrainingError for an unknown or missing key."""
        _check(data, {"model", "vocabulary", "optimisation", "stages"}, source)
        stages = []
        for i, entry in enumerate(data["stages"]):
            location = f"{source}, stage {i + 1}"
            settings = {key: entry[key] for key in ("steps", "rate") if key in entry}
            mix = {key: value for key, value in entry.items() if key not in settings}
            stages.append(_make(Stage, {**settings, "mix": _make(Mix, mix, location)}, location))
            if unknown := set(entry["shares"]) - set(KINDS):
                raise TrainingError(
                    f"{location}: unknown kinds of document {sorted(unknown)}; the kinds are {', '.join(KINDS)}."
                )
        optimisation = dict(data["optimisation"])
        if "betas" in optimisation:
            optimisation["betas"] = tuple(optimisation["betas"])
        vocabulary = _make(Vocabulary, data["vocabulary"], f"{source}, [vocabulary]")
        if not 1 <= vocabulary.stage <= len(stages):
            raise TrainingError(
                f"{source}: [vocabulary] uses stage {vocabulary.stage}, but there are {len(stages)} stages."
            )
        return cls(
            _make(ModelConfig, data["model"], f"{source}, [model]"),
            vocabulary,
            _make(Optimisation, optimisation, f"{source}, [optimisation]"),
            tuple(stages),
        )


def _check(values: Mapping[str, Any], known: set[str], source: str, required: set[str] | None = None) -> None:
    unknown, missing = set(values) - known, (known if required is None else required) - set(values)
    if unknown or missing:
        raise TrainingError(f"{source}: unknown keys {sorted(unknown)}, missing keys {sorted(missing)}.")


def _make(kind: type[T], values: Mapping[str, Any], source: str) -> T:
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]
    required = {f.name for f in fields if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING}
    _check(values, {f.name for f in fields}, source, required)
    return kind(**values)
