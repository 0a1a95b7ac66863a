"""Intervention options: the command-line options that change the model for a whole run, parsed and checked first.

Needs only the model's config.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.config import ModelConfig
from workbench.errors import DataError, InterventionError, WorkbenchError
from workbench.hooks import interventions
from workbench.hooks.intervention import Intervention
from workbench.hooks.interventions import Ablate, Scale, Targeted
from workbench.hooks.rope_scaling import scaling_of
from workbench.hooks.specification import ranges


@dataclass(frozen=True)
class InterventionOptions:
    """The values of the options: a file, and texts such as "L5H3,L2.mlp", "L5H3=0.5" and "yarn=4"."""

    file: Path | None = None
    ablate: str = ""
    scale: str = ""
    rope_scaling: str = ""

    def interventions(self, config: ModelConfig) -> tuple[Intervention, ...]:
        """The interventions, in this order: from the file, ablations, scalings, RoPE scaling.

        Raises: DataError, InterventionError, UnknownHookError or ConfigError, with the option's name, for a value that
                is not an intervention or does not fit a model of this shape.
        """
        options: tuple[tuple[str, Any, Callable[[Any], Iterable[Intervention]]], ...] = (
            ("--intervene", self.file, read),
            ("--ablate", self.ablate, lambda text: map(Ablate, _parts(text))),
            ("--scale", self.scale, lambda text: map(_scaled, _parts(text))),
            ("--rope-scaling", self.rope_scaling, lambda text: [scaling_of(text, config)]),
        )
        changes: list[Intervention] = []
        for option, value, parse in options:
            if not value:
                continue
            try:
                new = list(parse(value))
                for change in new:
                    change.subscription(config)
            except WorkbenchError as error:
                raise type(error)(f"{option} {value}: {error}") from error
            changes += new
        return tuple(changes)


def read(path: Path) -> tuple[Intervention, ...]:
    """The interventions of a JSON file, in the format of `workbench.hooks.interventions.to_json`.

    Raises: DataError if the file cannot be read, InterventionError if it does not describe interventions.
    """
    try:
        return interventions.from_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"the file cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise DataError("the file is not UTF-8 text; expected JSON.") from error


def described(changes: Iterable[Intervention]) -> str:
    """Interventions as short text, for example "ablate L5H3, yarn=4"."""
    return ", ".join(map(_words, changes)) or "none"


def described_record(record: object) -> str:
    """The interventions in a run's record (`provenance["interventions"]`) as short text; "" for a plain run."""
    if not record:
        return ""
    try:
        return described(interventions.from_json(json.dumps(record)))
    except (WorkbenchError, TypeError, ValueError):
        return "interventions that this version cannot read"


def _words(change: Intervention) -> str:
    if not isinstance(change, Targeted):
        fields = {key: value for key, value in change.to_dict().items() if key != "kind"}
        if fields.get("truncate") is True:  # YaRN's own way
            del fields["truncate"]
        return ", ".join(f"{key}={value}" for key, value in fields.items())
    where = f" heads {','.join(map(str, change.heads))}" if change.heads is not None else ""
    where += f" positions {ranges(change.positions).replace(', ', ',')}" if change.positions is not None else ""
    return f"{change.kind} {change.target}{where}" + (f" x {change.factor:g}" if isinstance(change, Scale) else "")


def _parts(text: str) -> list[str]:
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise InterventionError("a name is empty; separate heads and sublayers with commas, for example L5H3,L2.mlp.")
    return parts


def _scaled(text: str) -> Scale:
    target, _, number = text.partition("=")
    try:
        return Scale(target, float(number))
    except ValueError as error:
        raise InterventionError(f"{text!r} is not NAME=NUMBER; expected, for example, L5H3=0.5.") from error
