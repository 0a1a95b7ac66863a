"""`RopeScaling`: an intervention that runs a model with another RoPE theta or another context-extension method.

The mathematics is in `workbench.layers.rope`.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from typing import Any, ClassVar

import torch

from workbench.config import Llama3Scaling, ModelConfig
from workbench.errors import ConfigError, DataError, InterventionError
from workbench.hooks.hook_points import Subscription
from workbench.hooks.intervention import Intervention
from workbench.hooks.specification import number
from workbench.layers import rope


@dataclass(frozen=True, kw_only=True)
class RopeScaling(Intervention):
    """Rotate q and k of every layer by other frequencies: at most one scaling, which replaces the model's own.

    `theta` alone keeps the model's own scaling. `interpolation`, `ntk` and `yarn` are context-extension factors. YaRN
    also multiplies rotated q and k by its temperature, 0.1 ln(factor) + 1, unless `temperature` is set; `truncate`
    rounds the ends of its ramp to whole pairs, as in its published code and in `YarnScaling`.
    If several are active, the innermost one applies. A key/value cache holds rotated keys, so the whole sequence must
    run under the same scaling: start with an empty cache inside the block, and do not use that cache outside it.
    Raises: ConfigError for more than one scaling, or a factor below 1.
    Source: arXiv 2306.15595 (interpolation), 2309.00071 (NTK-aware theta, YaRN); Llama 3.1.
    Exact:  a factor of 1 is the unscaled model to the last bit; `llama3` and `yarn` are a model loaded with that
            scaling.
    """

    theta: float | None = None
    llama3: Llama3Scaling | None = None
    interpolation: float | None = None
    ntk: float | None = None
    yarn: float | None = None
    temperature: float | None = None
    truncate: bool = True
    kind: ClassVar[str] = "rope_scaling"

    def __post_init__(self) -> None:
        if isinstance(self.llama3, dict):  # as JSON has it
            known = {f.name for f in fields(Llama3Scaling)}
            if not set(self.llama3) <= known:
                raise InterventionError(f"llama3 has the fields {', '.join(sorted(known))}; found {self.llama3!r}.")
            numbers = {name: number(value, f"llama3's {name}") for name, value in self.llama3.items()}
            object.__setattr__(self, "llama3", Llama3Scaling(**numbers))
        if self.llama3 is not None and not isinstance(self.llama3, Llama3Scaling):
            raise InterventionError(f"llama3 must be a Llama3Scaling, found {self.llama3!r}.")
        for name, value in asdict(self.llama3).items() if self.llama3 else ():
            if not math.isfinite(number(value, f"llama3's {name}")):
                raise ConfigError(f"llama3's {name} must be finite, found {value}.")
        for name in ("theta", "interpolation", "ntk", "yarn", "temperature"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, number(getattr(self, name), name))
        if not isinstance(self.truncate, bool):
            raise InterventionError(f"truncate must be true or false, found {self.truncate!r}.")
        if self.yarn is None and not self.truncate:
            raise ConfigError("truncate=False is a choice of YaRN; set yarn=FACTOR too.")
        if self.temperature is not None and not 0 < self.temperature < float("inf"):
            raise ConfigError(f"temperature must be positive, found {self.temperature}.")

    def rotary(self, config: ModelConfig) -> rope.Rotary:
        """The rotary embedding of a model of this shape under this scaling.

        Raises: ConfigError for a scaling that does not fit, or whose frequencies are not finite numbers.
        """
        try:
            return _rotary(self, config)
        except OverflowError as error:
            raise ConfigError(f"the frequencies of {self.to_dict()} are not finite.") from error

    def subscription(self, config: ModelConfig) -> Subscription:
        """This scaling on a model of this shape."""
        self.rotary(config)  # raises before the run if the scaling does not fit
        return Subscription(frozenset(), rotary_override=self.rotary)

    def to_dict(self) -> dict[str, Any]:
        """The kind, and the parameters that are set; with YaRN always how the ends of its ramp are rounded."""
        parameters = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
        if self.yarn is None:
            del parameters["truncate"]
        if self.llama3 is not None:
            parameters["llama3"] = asdict(self.llama3)
        return {"kind": self.kind, **parameters}


def scaling_of(text: str, config: ModelConfig) -> RopeScaling:
    """The scaling that `NAME=NUMBER` stands for; llama3 extends the model's own context by that factor.

    Raises: DataError for anything else; ConfigError for a factor below 1.
    """
    name, _, number = text.partition("=")
    try:
        value = float(number)
    except ValueError:
        name = ""
    if name == "llama3":
        return RopeScaling(llama3=Llama3Scaling(value, original_context=config.original_context))
    if name not in ("theta", "interpolation", "ntk", "yarn"):
        raise DataError(
            f"a scaling is theta, interpolation, ntk, yarn or llama3 with a number, such as yarn=4; found {text!r}."
        )
    parameter: dict[str, Any] = {name: value}
    return RopeScaling(**parameter)


@lru_cache(maxsize=32)
def _rotary(scaling: RopeScaling, config: ModelConfig) -> rope.Rotary:
    with torch.inference_mode(False):  # cached between runs, so it must work under autograd too
        freqs = rope.what_if_frequencies(
            config,
            theta=scaling.theta,
            llama3=scaling.llama3,
            interpolation=scaling.interpolation,
            ntk=scaling.ntk,
            yarn=scaling.yarn,
            truncate=scaling.truncate,
            dtype=torch.float32,  # as in the model
        )
    if not bool(freqs.isfinite().all()):
        raise ConfigError(f"the frequencies of {scaling.to_dict()} are not finite.")
    temperature = scaling.temperature
    if temperature is None:
        replaced = any(method is not None for method in (scaling.llama3, scaling.interpolation, scaling.ntk))
        temperature = 1.0 if replaced else rope.temperature(config.rope_scaling)
        if scaling.yarn is not None:
            temperature = rope.yarn_temperature(scaling.yarn)
    return rope.Rotary(freqs, temperature)
