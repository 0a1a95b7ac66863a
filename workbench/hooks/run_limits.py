"""Limits of a run: the context that a model was trained for, and the layer at which a run stops."""

from __future__ import annotations

import operator
import warnings

from workbench.errors import WorkbenchError, WorkbenchWarning
from workbench.hooks import hook_points


def warn_beyond_context(model: object, context: int, past: int, n_tokens: int) -> None:
    """Warn if a run passes the end of the model's context, unless its rotary embedding was changed for that."""
    end = past + n_tokens
    if past <= context < end and all(s.rotary_override is None for s in hook_points.active(model)):
        warnings.warn(
            f"a run of {end:,} tokens is longer than the model's context of {context:,}; "
            "its numbers there are not those of a trained model.",
            WorkbenchWarning,
            stacklevel=3,
        )


def layer_number(stop_at_layer: int, n_layers: int) -> int:
    """The layer at which a run stops, counted from 0; a negative number counts from the last.

    Raises: WorkbenchError for a number that the model does not have.
    """
    try:
        stop = operator.index(stop_at_layer)
    except TypeError:
        stop = n_layers + 1
    if isinstance(stop_at_layer, bool) or not -n_layers <= stop <= n_layers:
        raise WorkbenchError(f"stop_at_layer is {-n_layers} to {n_layers} in this model, found {stop_at_layer!r}.")
    return stop + n_layers if stop < 0 else stop
