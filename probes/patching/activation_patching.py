"""Activation patching: which activations carry the difference between a clean and a corrupted run.

Two prompts of the same length differ in what matters, and so does a target. A run of one prompt with one activation of
the other shows how much of the target's difference goes through that activation. A patch at a layer changes nothing in
earlier layers and nothing before the first token that differs. So runs start at the patched layer, from the unpatched
stream, with many patches of a layer in one batch, and patches that cannot change anything are not run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from probes.base.bootstrap import LEVEL, RESAMPLES, draws, percentiles
from probes.base.result import Result, frozen, tidy
from probes.patching.ablation import Target
from probes.patching.prompt_pairs import LogitDifference, Pair
from workbench.errors import HookError
from workbench.hooks import hook_points
from workbench.hooks.capture import Capture
from workbench.hooks.hook_points import PATTERN, Site, Subscription
from workbench.model import Transformer

What = Literal[
    "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out",
    "heads", "q", "k", "v", "pattern",
    "heads_by_position", "q_by_position", "k_by_position", "v_by_position", "pattern_by_position",
]  # fmt: skip
Direction = Literal["denoise", "noise"]

_BY_POSITION = "_by_position"
_OF_HEADS = {"heads": "attn.hook_z", "pattern": PATTERN, **{name: f"attn.hook_{name}" for name in "qkv"}}
SITES: Mapping[str, str] = {
    **{name: f"hook_{name}" for name in ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")},
    **_OF_HEADS,
    **{name + _BY_POSITION: site for name, site in _OF_HEADS.items()},
}
"""Hook point of each kind of patch. `heads` is a head's z; q and k are those before the rotation.

A kind of heads patches all positions together, or one with `_by_position`; a position of a pattern is its query. Kinds
k and v patch key/value heads, each for its whole group of query heads.
"""

MAX_TOKENS = 4096
"""Default for the number of tokens in one forward pass."""


@dataclass(frozen=True)
class Patching(Result):
    """A target under each patch, `patched` [layer, head, pos, prompt], with `clean` and `corrupted` [prompt].

    A head or position of -1 stands for all of them; for k and v, heads are key/value heads. `how` is "exact" if each
    patch was run, "gradient" if it was estimated. `layer_runs` counts the layers that were run, per prompt;
    `naive_layer_runs` counts those of whole runs. `group_size` is how many query heads share a key/value head; 1 for k
    and v.
    """

    what: What
    direction: Direction
    how: Literal["exact", "gradient"]
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    positions: tuple[int, ...]
    clean: np.ndarray
    corrupted: np.ndarray
    patched: np.ndarray
    layer_runs: int
    naive_layer_runs: int
    group_size: int

    AXES = {
        "clean": ("prompt",),
        "corrupted": ("prompt",),
        "patched": ("layer", "head", "pos", "prompt"),
        "restored": ("layer", "head", "pos"),
        "moved": ("layer", "head", "pos"),
    }
    FIGURE = "probes.patching.figures.patching"
    UNITS = "patched in the units of the target; restored is 0 for the corrupted run, 1 for the clean one"

    @property
    def restored(self) -> np.ndarray:
        """(patched - corrupted) / (clean - corrupted), each a mean over prompts: 1 is the clean run, 0 the corrupted.

        NaN everywhere if the target does not differ between the two runs: the share is then undefined.
        Shapes: -> [layer, head, pos]
        """
        return self._restored(np.full(len(self.clean), 1 / len(self.clean)))

    @property
    def moved(self) -> np.ndarray:
        """Share of the way from the patched run's own target to the other's: `restored`, or 1 - `restored` in noising.

        Shapes: -> [layer, head, pos]
        """
        return self.restored if self.direction == "denoise" else 1 - self.restored

    def _restored(self, weights: np.ndarray) -> np.ndarray:
        """Shapes: weights [..., prompt] -> [..., layer, head, pos]"""
        numerator = np.tensordot(weights, (self.patched - self.corrupted).transpose(3, 0, 1, 2), 1)
        denominator = (weights @ (self.clean - self.corrupted))[..., None, None, None]
        return (
            np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator != 0) + 0.0
        )  # no -0

    def interval(self, *, level: float = LEVEL, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Bootstrap interval of `restored` over prompts, low and high; NaN for a single prompt.

        Shapes: -> [layer, head, pos] twice
        """
        n_prompts = len(self.clean)
        if n_prompts < 2:
            undefined = np.full(self.patched.shape[:3], np.nan)
            return undefined, undefined
        return percentiles(self._restored(draws(n_prompts, RESAMPLES, seed) / n_prompts), level)

    def frame(self) -> pd.DataFrame:
        """One row per patch: layer, head, pos, patched (mean over prompts), restored, low, high."""
        low, high = self.interval()
        columns = {"patched": self.patched.mean(-1), "restored": self.restored, "low": low, "high": high}
        return tidy({"layer": self.layers, "head": self.heads, "pos": self.positions}, columns)


@torch.no_grad()
def patching(
    model: Transformer,
    pair: Pair,
    what: What = "resid_pre",
    *,
    direction: Direction = "denoise",
    layers: Sequence[int] | None = None,
    budget: int = MAX_TOKENS,
) -> Patching:
    """The target under each patch of one kind (`SITES`): by layer and position, by head, or by head and position.

    Denoising runs the corrupted prompts with one activation of the clean run, and shows which activations are
    sufficient. Noising runs the clean prompts with one activation of the corrupted run, and shows which are necessary.
    `budget` is the maximum number of tokens per forward pass; each pass has at least one complete set of prompts.
    Half precision rounds logits, which makes shares of a small difference inaccurate: if clean and corrupted differ
    by less than 100 eps of the model's dtype times the largest logit, use `model.float()`.
    Shapes: -> [layer, head, pos, prompt]
    Units:  the target's own.
    Raises: HookError for a layer that the model does not have, or a target that does not return one number per prompt.
    Source: arXiv 2202.05262, 2211.00593, 2309.16042 (method and directions).
    Exact:  the same as a whole run with a `workbench.Patch`. A patch of the resid_post position that the target reads,
            after the last layer, restores 1; positions before the first differing token restore 0.
    """
    chosen, run = _checked_layers(model, layers), _PatchRuns.of(model, pair, what, direction)
    n_prompts, n_pos = pair.clean.shape
    batch, n_layers = max(1, budget // (n_prompts * n_pos)), model.config.n_layers
    patched, layer_runs = [], 2 * n_prompts * n_layers
    for layer in chosen:
        values = run.own_target.expand(len(run.places), -1).clone()  # [place, prompt]
        effective = [i for i, (_, pos) in enumerate(run.places) if pos < 0 or pos >= pair.first]
        for start in range(0, len(effective), batch):
            chunk = effective[start : start + batch]
            values[chunk] = run.patched(layer, [run.places[i] for i in chunk])
            layer_runs += len(chunk) * n_prompts * (n_layers - layer)
        patched.append(values)
    naive = (2 + len(chosen) * len(run.places)) * n_prompts * n_layers
    return _result(run, chosen, torch.stack(patched), ("exact", layer_runs, naive))


def of_key_value_heads(what: What) -> bool:
    """Whether the heads of a kind of patch are key/value heads."""
    return what.removesuffix(_BY_POSITION) in ("k", "v")


# --- the runs -------------------------------------------------------------------------------------------------

Place = tuple[int, int]
"""Head and position of a patch; -1 for all."""


@dataclass(frozen=True)
class _PatchRuns:
    """The run to patch (`base`), the run that patches come from (`source`), and the target in each."""

    model: Transformer
    tokens: Tensor
    target: Target
    what: What
    direction: Direction
    base: Capture
    source: Capture
    own_target: Tensor
    source_target: Tensor

    @classmethod
    def of(cls, model: Transformer, pair: Pair, what: What, direction: Direction) -> "_PatchRuns":
        if what not in SITES or direction not in ("denoise", "noise"):
            raise HookError(
                f"what must be one of {', '.join(SITES)}, and direction 'denoise' or 'noise'; "
                f"found {what!r} and {direction!r}."
            )
        sides = [side.to(model.device) for side in (pair.corrupted, pair.clean)]
        tokens, source_tokens = sides if direction == "denoise" else sides[::-1]
        with torch.no_grad():
            # Each of these streams is the input of the next layer: a patched run can start from it.
            stream_hooks = ["hook_embed", *(f"blocks.{i}.hook_resid_post" for i in range(model.config.n_layers - 1))]
            logits, base = model.run_with_capture(tokens, stream_hooks)
            own = _target_values(pair.target(logits, tokens), tokens)
            logits, source = model.run_with_capture(source_tokens, f"blocks.*.{SITES[what]}")
            other = _target_values(pair.target(logits, source_tokens), source_tokens)
        return cls(model, tokens, pair.target, what, direction, base, source, own, other)

    @property
    def heads(self) -> tuple[int, ...]:
        config, kind = self.model.config, self.what.removesuffix(_BY_POSITION)
        if kind not in _OF_HEADS:
            return (-1,)
        return tuple(range(config.n_kv_heads if of_key_value_heads(self.what) else config.n_heads))

    @property
    def positions(self) -> tuple[int, ...]:
        return (-1,) if self.what in _OF_HEADS else tuple(range(self.tokens.shape[1]))

    @property
    def places(self) -> list[Place]:
        return [(head, pos) for head in self.heads for pos in self.positions]

    def patched(self, layer: int, places: Sequence[Place]) -> Tensor:
        """The target under each of the given patches of one layer. Shapes: -> float64 [place, prompt]"""
        return torch.stack(
            [self.target_values(rows) for rows in self.patched_stream(layer, places).split(len(self.tokens))]
        )

    def patched_stream(self, layer: int, places: Sequence[Place]) -> Tensor:
        """The normalised final stream under each of the given patches. Shapes: -> [place * prompt, pos, dim]"""
        name, times = f"blocks.{layer}.{SITES[self.what]}", len(places)
        replacement = self.source[name].repeat(
            times, *[1] * (self.source[name].dim() - 1)
        )  # [place * prompt, pos, ...]
        chosen = _mask(replacement, places, of_pattern=name.endswith(PATTERN))

        def edit(_: Site, x: Tensor) -> Tensor:
            return torch.where(chosen, replacement, x)

        with hook_points.subscribe(self.model, Subscription(frozenset([name]), edit=edit)):
            return self.model.forward_from_layer(self.stream_before(layer).repeat(times, 1, 1), layer)

    def stream_before(self, layer: int) -> Tensor:
        """The unpatched stream before a layer. Shapes: -> [prompt, pos, dim]"""
        return self.base["hook_embed" if layer == 0 else f"blocks.{layer - 1}.hook_resid_post"]

    def target_values(self, normed: Tensor) -> Tensor:
        """The target of one set of prompts. Shapes: [prompt, pos, dim] -> [prompt]"""
        if isinstance(self.target, LogitDifference):
            position = self.target.place(normed.shape[1])
            return _target_values(
                self.target.at(self.model.unembed(normed[:, position : position + 1], start=position)[:, 0]),
                self.tokens,
            )
        return _target_values(self.target(self.model.unembed(normed), self.tokens), self.tokens)


def _mask(x: Tensor, places: Sequence[Place], *, of_pattern: bool = False) -> Tensor:
    """Mask of the entries that each place patches; a pattern has its heads before its queries.

    Shapes: x [place * prompt, pos, ...] -> bool, broadcasts to x
    """
    heads, positions = torch.tensor(places, device=x.device).unsqueeze(-1).unbind(1)  # each [place, 1]
    place_positions = torch.arange(x.shape[2 if of_pattern else 1], device=x.device)
    mask = ((positions < 0) | (positions == place_positions)).unsqueeze(-1)  # [place, pos, 1]
    if x.dim() == 4:
        head = torch.arange(x.shape[1 if of_pattern else 2], device=x.device)
        mask = mask & ((heads < 0) | (heads == head)).unsqueeze(1)  # [place, pos, head]
        mask = (mask.transpose(1, 2) if of_pattern else mask).unsqueeze(-1)
    return mask.repeat_interleave(len(x) // len(places), 0)


def _checked_layers(model: Transformer, layers: Sequence[int] | None) -> tuple[int, ...]:
    model_layers = range(model.config.n_layers)
    chosen = tuple(model_layers) if layers is None else tuple(sorted(set(layers)))
    if not chosen or any(layer not in model_layers for layer in chosen):
        raise HookError(f"the model has layers 0 to {len(model_layers) - 1}; found {list(layers or ())}.")
    return chosen


def _target_values(values: Tensor, tokens: Tensor) -> Tensor:
    found = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
    if found != tuple(tokens.shape[:1]):
        raise HookError(f"a target must return one number per prompt, shape ({len(tokens)},); found {found}.")
    return values.double().cpu()


def _result(
    run: _PatchRuns, layers: tuple[int, ...], patched: Tensor, how: tuple[Literal["exact", "gradient"], int, int]
) -> Patching:
    """Shapes: patched [layer, head * pos, prompt]"""
    corrupted, clean = (
        (run.own_target, run.source_target) if run.direction == "denoise" else (run.source_target, run.own_target)
    )
    values = patched.unflatten(1, (len(run.heads), len(run.positions)))
    group_size = 1 if of_key_value_heads(run.what) else run.model.config.group_size
    return Patching(
        run.what, run.direction, how[0], layers, run.heads, run.positions,
        frozen(clean), frozen(corrupted), frozen(values), how[1], how[2], group_size,
    )  # fmt: skip
