"""Alignment of two captures: the tokens and hooks that they share, and their tensors, one block of tokens at a time.

Computes no differences. If a capture has q and k in place of a pattern, the pattern is computed block by block.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from probes.base import capture_access
from workbench.config import ModelConfig
from workbench.errors import HookError
from workbench.hooks.capture import Capture
from workbench.hooks.capture_request import Request
from workbench.hooks.hook_points import PATTERN, SCORES, compute, expand, hook_names, layer_of, point_of
from workbench.hooks.values import position_axis
from workbench.layers.rope import to_adjacent

Align = Literal["equal", "prefix", "suffix"]
"""Which tokens of two captures are compared. "equal": all, which must be the same; "prefix": the shared beginning;
"suffix": the shared end, for the same text after two contexts."""

CELLS = 1 << 21  # numbers of one side in memory at once: 16 MiB of float64


@dataclass(frozen=True)
class Aligned:
    """Two captures, the hooks that can be compared, and the positions of the shared tokens in each.

    `rows_a` and `rows_b` index the captured positions; `positions` are the absolute positions in A. `left_out` maps
    every other hook to the reason why it is not compared.
    """

    a: Capture
    b: Capture
    hooks: tuple[str, ...]
    left_out: Mapping[str, str]
    rows_a: Tensor
    rows_b: Tensor
    positions: np.ndarray

    def heads(self, name: str) -> tuple[int, ...]:
        """The heads of a hook, numbered as in the model; empty if the hook has no head axis."""
        point = point_of(name)
        if "head" not in point.axes:
            return ()
        if point.width("head", self.a.config) == self.a.config.n_heads and not name.endswith(("hook_k", "hook_v")):
            return capture_access.heads(self.a)
        kv_heads = self.a.request.kv_heads(self.a.config)
        return tuple(range(self.a.config.n_kv_heads)) if kv_heads is None else kv_heads

    def blocks(self, name: str) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Blocks of tokens with the values of both sides; a hook without heads is treated as one head.

        Scores that both sides mask are 0; a pattern is returned as its natural logarithm, -inf where masked.
        Shapes: -> float64 [batch, pos, head, width], twice
        """
        widths = [_numbers_per_token(cap, name) for cap in (self.a, self.b)]
        step = max(1, CELLS // max(widths))
        for start in range(0, len(self.positions), step):
            rows = slice(start, min(start + step, len(self.positions)))
            x, y = _read(self.a, name, self.rows_a[rows]), _read(self.b, name, self.rows_b[rows])
            y = y.to(x.device)
            if name.endswith((SCORES, PATTERN)):  # keys that one side does not have are masked there
                keys = max(x.shape[-1], y.shape[-1])
                x, y = (F.pad(side, (0, keys - side.shape[-1]), value=-torch.inf) for side in (x, y))
            if name.endswith(SCORES):
                masked = x.isneginf() & y.isneginf()
                x, y = x.masked_fill(masked, 0.0), y.masked_fill(masked, 0.0)
            yield rows, x, y


def align_captures(a: Capture, b: Capture, *, align: Align = "equal") -> Aligned:
    """Match two captures by tokens and hook names.

    Raises: HookError if no token is shared, the positions or the pair orders differ, or no hook can be compared.
    """
    for cap in (a, b):
        capture_access.unpadded(cap)
    orders = [cap.provenance.get("pair_order", "adjacent") for cap in (a, b)]
    if orders[0] != orders[1]:
        raise HookError(
            f"q and k are in {orders[0]} order in A and {orders[1]} in B; `workbench.layers.rope` can permute them."
        )
    shift, first, end = _shared(a, b, align)
    at_a, at_b = capture_access.positions(a), capture_access.positions(b)
    rows_a = ((at_a >= first) & (at_a < end)).nonzero().squeeze(-1)
    rows_b = ((at_b - shift >= first) & (at_b - shift < end)).nonzero().squeeze(-1)
    if not torch.equal(at_a[rows_a], at_b[rows_b] - shift) or not len(rows_a):
        raise HookError("the captures have different positions of the shared tokens; capture the same positions.")
    hooks, left_out = _hooks(a, b, shift)
    if not hooks:
        raise HookError(f"no hook of the two captures can be compared: {'; '.join(_grouped_reasons(left_out))}.")
    device_a, device_b = a.tokens.device, b.tokens.device
    positions = at_a[rows_a].numpy()
    return Aligned(a, b, hooks, left_out, rows_a.to(device_a), rows_b.to(device_b), positions)


def capture_from_tensors(
    config: ModelConfig, tokens: Tensor, tensors: Mapping[str, Tensor], *, half_split: bool = False
) -> Capture:
    """A capture made from another implementation's tensors, by this project's hook names, to compare a port with.

    Captures have q and k in Meta's order, adjacent pairs. Set `half_split` if the tensors are in Hugging Face's order;
    hook_q, hook_k, hook_rot_q and hook_rot_k are then permuted.
    Shapes: tokens [batch, pos] int64; every tensor as the hook table's axes, over all heads and positions
    Raises: UnknownHookError for a name, HookError for a shape, that the hook table does not have.
    """
    permuted = {}
    for name in expand(list(tensors), config):
        x, point = tensors[name], point_of(name)
        sizes = {"batch": tokens.shape[0], **dict.fromkeys(("pos", "query_pos", "key_pos"), tokens.shape[1])}
        expected = tuple(sizes.get(axis) or point.width(axis, config) for axis in point.axes)
        if tuple(x.shape) != expected:
            raise HookError(f"{name} must have shape [{', '.join(point.axes)}] = {expected}; found {tuple(x.shape)}.")
        if half_split and name.endswith(("attn.hook_q", "attn.hook_k", "hook_rot_q", "hook_rot_k")):
            x = to_adjacent(x.movedim(-1, 0), 1).movedim(0, -1)
        permuted[name] = x.to(tokens.device)
    return Capture(
        config, tokens, Request(tuple(permuted)), 0, permuted, {}, {"pair_order": "adjacent", "interventions": []}
    )


def _shared(a: Capture, b: Capture, align: Align) -> tuple[int, int, int]:
    """Shift of the shared tokens from A to B, and the absolute positions of the first and the end in A."""
    if a.tokens.shape[0] != b.tokens.shape[0]:
        raise HookError(f"A has {a.tokens.shape[0]} batch rows and B has {b.tokens.shape[0]}; compare the same rows.")
    x, y = a.tokens.cpu(), b.tokens.cpu()
    n = min(x.shape[1], y.shape[1])
    if align == "suffix":
        same = (x[:, x.shape[1] - n :] == y[:, y.shape[1] - n :]).all(0).flip(0)
        shared = int(same.long().cumprod(0).sum())
        end_a, end_b = a.start + x.shape[1], b.start + y.shape[1]
        shift, first, end = end_b - end_a, end_a - shared, end_a
    else:
        if a.start != b.start:
            raise HookError(f'A begins at position {a.start} and B at {b.start}; use align="suffix" for shared ends.')
        same = (x[:, :n] == y[:, :n]).all(0)
        shared = int(same.long().cumprod(0).sum())
        shift, first, end = 0, a.start, a.start + shared
        if align == "equal" and not (shared == x.shape[1] == y.shape[1]):
            lengths = f"{x.shape[1]} and {y.shape[1]} tokens"
            raise HookError(
                f"the captures have different tokens ({lengths}, the first {shared} are the same); use "
                'align="prefix" to compare the shared beginning, or align="suffix" for the shared end.'
            )
    if not shared:
        raise HookError(f"the captures share no token at their {'end' if align == 'suffix' else 'beginning'}.")
    return shift, first, end


def _hooks(a: Capture, b: Capture, shift: int) -> tuple[tuple[str, ...], dict[str, str]]:
    deeper = a.config if a.config.n_layers >= b.config.n_layers else b.config
    hooks, left_out = [], {}
    for name in hook_names(deeper):
        if name in a and name in b:
            reason = _why_not_comparable(a, b, name, shift)
        elif name in a or name in b:
            reason = f"captured only in {'A' if name in a else 'B'}"
        else:
            continue
        if reason:
            left_out[name] = reason
        else:
            hooks.append(name)
    return tuple(hooks), left_out


def _why_not_comparable(a: Capture, b: Capture, name: str, shift: int) -> str:
    """Why a hook in both captures cannot be compared; empty if it can."""
    point = point_of(name)
    if not capture_access.of_tokens(name):
        return "a summary of the pattern"
    shapes = [
        tuple(f"{point.width(axis, cap.config)} {axis}" for axis in point.axes if point.width(axis, cap.config))
        for cap in (a, b)
    ]
    if shapes[0] != shapes[1]:
        return f"{', '.join(shapes[0])} in A, {', '.join(shapes[1])} in B"
    if "head" in point.axes and capture_access.heads(a) != capture_access.heads(b):
        return "different heads were captured"
    return "keys differ after different contexts" if shift and name.endswith((SCORES, PATTERN)) else ""


def _grouped_reasons(left_out: Mapping[str, str]) -> list[str]:
    """Each reason once, with its hooks as the hook table names them."""
    names_by_reason: dict[str, list[str]] = {}
    for name, reason in left_out.items():
        names_by_reason.setdefault(reason, []).append(point_of(name).name)
    return [f"{', '.join(dict.fromkeys(names))} ({reason})" for reason, names in names_by_reason.items()]


def _numbers_per_token(cap: Capture, name: str) -> int:
    """Count of numbers per token at a hook, over batch rows and heads."""
    point, batch = point_of(name), cap.tokens.shape[0]
    keys = cap.start + cap.tokens.shape[1]
    sizes = (keys if axis == "key_pos" else point.width(axis, cap.config) or 1 for axis in point.axes)
    return batch * int(np.prod(list(sizes)))


def _read(cap: Capture, name: str, rows: Tensor) -> Tensor:
    """Values of some tokens at a hook. Shapes: rows [pos] -> float64 [batch, pos, head, width]"""
    axes, layer = point_of(name).axes, layer_of(name)
    if name in cap.tensors:
        x = cap.tensors[name].detach().index_select(position_axis(point_of(name)), rows).double()
        x = x.log() if name.endswith(PATTERN) else x
    else:
        assert layer is not None
        inputs = cap.inputs[layer].narrow(None, rows)
        n_keys = int(inputs.mask.positions.max()) + 1  # none of these queries sees a later key
        inputs = replace(inputs, q=inputs.q.detach(), k=inputs.k[:, :, :n_keys].detach())
        x = compute(f"blocks.{layer}.{SCORES}", inputs).double()
        # A logarithm can represent weights that are too small for float32.
        x = x.log_softmax(-1) if name.endswith(PATTERN) else x
    if "query_pos" in axes:
        return x.transpose(1, 2)
    return x if "head" in axes else x.unsqueeze(2)
