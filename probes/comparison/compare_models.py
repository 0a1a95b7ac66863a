"""Comparison of two models on the same tokens, some layers at a time, so that neither run is in memory as a whole.

This module runs and captures; `probes.comparison.compare_runs` measures the differences.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from probes.base import arguments, capture_access
from probes.base.result import frozen
from probes.comparison.compare_runs import MEASURES, Comparison, HeadDifferences, compare
from workbench.errors import HookError
from workbench.hooks.capture_request import Request
from workbench.hooks.hook_points import HOOKS as HOOK_TABLE
from workbench.hooks.hook_points import SCORES, expand, hook_names, layer_of, point_of
from workbench.hooks.intervention import Intervention
from workbench.layers.memory import free_memory
from workbench.model import Transformer

HOOKS = tuple(
    point.name.replace("{l}", "*")
    for point in HOOK_TABLE
    if capture_access.of_tokens(point.name) and not point.name.endswith((SCORES, "hook_result"))
)
"""Hooks that `compare_runs` compares: all except scores (computed from q and k), hook_result (computed from z) and
summaries of patterns."""


@torch.no_grad()
def compare_runs(
    model_a: Transformer,
    model_b: Transformer,
    tokens: Tensor,
    names: str | Iterable[str] | None = None,
    *,
    changes: Sequence[Intervention] = (),
    budget: int | None = None,
) -> Comparison:
    """Run both models on the same tokens, B with the interventions `changes`, and compare some layers at a time.

    The budget limits how many layers of both are in memory at once; the models run once for each such group of layers.
    names: hooks to compare, default `HOOKS`. budget: maximum bytes of both captures; None: half of the free memory.
    Shapes: tokens [batch, pos] int64
    Units:  as `comparison.compare`.
    Raises: HookError if no hook can be compared; CaptureBudgetError if one layer's hooks are over the budget.
    """
    arguments.token_batch(tokens)
    budget = free_memory(model_a.device) // 2 if budget is None else budget
    names = [names] if isinstance(names, str) else list(names or HOOKS)
    parts = []
    for group in _layer_groups((model_a, model_b), tokens, names, budget):
        caps = []
        for model, active in ((model_a, ()), (model_b, changes)):
            with model.intervene(*active):
                _, cap = model.run_with_capture(tokens.to(model.device), group, logits=None, budget=budget)
            caps.append(cap)
        parts.append(compare(*caps))
        del caps, cap  # before the next group is captured
    one_sided: dict[str, str] = {}
    for side, model, other in (("A", model_a, model_b), ("B", model_b, model_a)):
        missing = set(expand(names, model.config)) - set(hook_names(other.config))
        one_sided |= dict.fromkeys(sorted(missing), f"only in {side}")
    return _merge(parts, one_sided)


def _layer_groups(
    models: Sequence[Transformer], tokens: Tensor, names: Sequence[str], budget: int
) -> list[tuple[str, ...]]:
    """Groups of hook names, in neighbouring layers, whose captures of both models fit into the budget."""
    sizes: dict[str, int] = {}
    for model in models:
        request = Request.of(model.config, names)
        itemsize = torch.empty(0, dtype=model.dtype).element_size()
        for name, size in request.n_bytes(model.config, *tokens.shape, 0, itemsize, shared=False).items():
            sizes[name] = sizes.get(name, 0) + size
    shared = set(hook_names(models[0].config)) & set(hook_names(models[1].config))
    sizes = {name: size for name, size in sizes.items() if name in shared}
    if not sizes:
        raise HookError("the two models have none of these hooks in common.")
    groups: list[list[str]] = [[]]
    used = 0
    pieces: dict[int | None, list[str]] = {}
    for name in sizes:
        pieces.setdefault(layer_of(name), []).append(name)
    for piece in pieces.values():
        size = sum(sizes[name] for name in piece)
        if groups[-1] and used + size > budget:
            groups.append([])
            used = 0
        groups[-1] += piece
        used += size
    return [tuple(group) for group in groups]


def _merge(parts: Sequence[Comparison], one_sided: Mapping[str, str]) -> Comparison:
    """Comparisons of several groups of hooks as one, in the order of a run."""
    hooks = [hook for part in parts for hook in part.hooks]
    order = np.array(sorted(range(len(hooks)), key=lambda i: _hook_order(hooks[i])), dtype=int)
    joined = {name: frozen(np.concatenate([getattr(p, name) for p in parts])[order]) for name in MEASURES}
    heads = [part.by_head for part in parts if part.by_head is not None]  # layers come in their order
    by_head = None
    if heads:
        arrays = {
            name: frozen(np.concatenate([getattr(part, name) for part in heads])) for name in HeadDifferences.AXES
        }
        named = [tuple(x for part in heads for x in getattr(part, field)) for field in ("hooks", "layers")]
        by_head = HeadDifferences(*named, heads[0].group_size, **arrays)
    return Comparison(
        tuple(hooks[i] for i in order),
        **joined,
        by_head=by_head,
        logits=next((part.logits for part in parts if part.logits is not None), None),
        left_out={name: reason for part in parts for name, reason in part.left_out.items()} | dict(one_sided),
    )


def _hook_order(hook: str) -> tuple[float, int]:
    """Sort key of a hook in the order of a run: by layer, then by the hook table."""
    point, layer = point_of(hook), layer_of(hook)
    row = HOOK_TABLE.index(point)
    if layer is not None:
        return layer, row
    return (-1 if hook == "hook_embed" else np.inf), row
