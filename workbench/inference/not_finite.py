"""Logits that are not finite: the error that says where a run's values stop being finite, and what to do.

The place is found by a second run, so that runs without this fault cost nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from workbench.errors import NotFiniteError, WorkbenchError
from workbench.hooks.hook_points import FROM_INPUTS, Site, Subscription, active, hook_names, subscribe
from workbench.layers.attention import AttentionInputs

if TYPE_CHECKING:
    from workbench.model import Transformer

Handling = Literal["raise", "keep"]  # what a function does if logits are not finite


def check_handling(value: object, error: type[WorkbenchError]) -> None:
    """Raises: `error` for a value that is not in `Handling`."""
    if value not in get_args(Handling):
        raise error(f"not_finite must be 'raise' or 'keep'; found {value!r:.80}.")


@torch.no_grad()
def first_not_finite(model: Transformer, ids: Sequence[int]) -> tuple[Site, int] | None:
    """The first hook point of a run at which a value is NaN or infinite, and its first token's position there.

    A logit of -inf is a token that cannot be chosen, and is not reported. None if every value is finite.
    """
    first: list[tuple[Site, int]] = []

    def observe(site: Site, x: Tensor | AttentionInputs) -> None:
        if first or isinstance(x, AttentionInputs):
            return
        wrong = ~x.isfinite()
        if site.name == "hook_logits":
            wrong &= x != -torch.inf
        if bool(wrong.any()):
            first.append((site, int(site.positions[wrong[0].flatten(1).any(1).nonzero()[0, 0]])))

    # Not the scores and patterns, which the fused attention does not compute, and not the copies of z.
    unused = (*FROM_INPUTS, "attn.hook_result")
    names = frozenset(name for name in hook_names(model.config) if not name.endswith(unused))
    with subscribe(model, Subscription(names, observe=observe)):
        model(torch.tensor([list(ids)], device=model.device))
    return first[0] if first else None


def not_finite_error(model: Transformer, ids: Sequence[int]) -> NotFiniteError:
    """The error for these token ids, whose logits were not finite."""
    dtype = str(model.dtype).removeprefix("torch.")
    first = first_not_finite(model, ids)
    place = "a second run of the same tokens has only finite values"
    if first is not None:
        site, position = first
        layer = "outside the layers" if site.layer is None else f"layer {site.layer}"
        place = f"NaN or infinity begins at {site.name} ({layer}), position {position}"
    changed = any(s.edit is not None or s.rotary_override is not None for s in active(model))
    if model.dtype == torch.float16:
        wider = "Use bfloat16 or float32: float16 ends at 65,504"
    else:
        wider = "Use float32" if model.dtype != torch.float32 else "Check the weights: no dtype here is wider"
    advice = f"{wider}{', or change the interventions' if changed else ''}."
    site_name, layer_number = (None, None) if first is None else (first[0].name, first[0].layer)
    return NotFiniteError(
        f"the model's logits are not finite in {dtype}: {place}. {advice}", hook=site_name, layer=layer_number
    )
