"""`Request`: which hooks, heads and positions a capture holds, and how many bytes that takes."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from workbench.config import ModelConfig
from workbench.errors import CaptureError
from workbench.hooks import hook_points
from workbench.hooks.hook_points import FROM_INPUTS, KEY_MASS, MAP, PATTERN, SCORES, layer_of, point_of
from workbench.layers.attention_stats import STATS, map_side

# One position, the same positions in all rows, or the positions of each row.
Positions = int | Sequence[int] | Sequence[Sequence[int]] | Tensor
LOGITS = "hook_logits"


@dataclass(frozen=True)
class Request:
    """The requested content of a capture: hook names, and which of their heads and positions.

    `positions` are those of every row of the batch, `row_positions` those of each; None for all. Negative ones count
    from the end of the run, until `within` has made them absolute.
    """

    names: tuple[str, ...]
    heads: tuple[int, ...] | None = None
    positions: tuple[int, ...] | None = None
    row_positions: tuple[tuple[int, ...], ...] | None = None

    @classmethod
    def of(
        cls,
        config: ModelConfig,
        names: str | Iterable[str],
        *,
        layers: Sequence[int] | None = None,
        heads: Sequence[int] | None = None,
        positions: Positions | None = None,
        batch: int = 1,
    ) -> Request:
        """A checked request. `positions` as a tensor [batch] are one position of each row; [batch][n], n of each.

        Raises: UnknownHookError for a name or layer, CaptureError for heads or positions that cannot be meant.
        """
        layers = None if layers is None else _whole_numbers(layers, "layers")
        names = [names] if isinstance(names, str) or not isinstance(names, Iterable) else list(names)
        if not all(isinstance(name, str) for name in names):
            raise CaptureError(f"the names of hooks must be text, or a list of it; found {names!r:.80}.")
        full = hook_points.expand(names, config, layers=layers)
        if not full:
            raise CaptureError("nothing to capture: no hook in the requested layers matches the names.")
        heads = None if heads is None else _whole_numbers(heads, "heads")
        if heads is not None and (not heads or min(heads) < 0 or max(heads) >= config.n_heads):
            raise CaptureError(f"the model has heads 0 to {config.n_heads - 1}, found {list(heads)}.")
        request = cls(full, None if heads is None else tuple(sorted(set(heads))))
        if positions is None:
            return request
        if isinstance(positions, Tensor) and positions.dim() == 1 and batch > 1:
            if len(positions) != batch:
                raise CaptureError(
                    f"a tensor of positions has one position of each of the {batch} rows, found {len(positions)}. "
                    "Pass a list for the same positions in all rows."
                )
            positions = positions[:, None]
        rows: Any = positions.tolist() if hasattr(positions, "tolist") else positions
        rows = list(rows) if isinstance(rows, Iterable) and not isinstance(rows, str) else rows
        if not isinstance(rows, Iterable) or not any(map(_is_row, rows)):
            return replace(request, positions=_whole_numbers(rows, "positions"))
        if not all(map(_is_row, rows)):
            raise CaptureError("positions are numbers, or a list of numbers for each row; found both.")
        return replace(request, row_positions=tuple(_whole_numbers(row, "positions") for row in rows))

    def within(self, batch: int, start: int, end: int) -> Request:
        """The request with absolute positions, ascending, in a run of `batch` rows from `start` to before `end`.

        Raises: CaptureError for positions outside the run, and rows that do not have equally many.
        """
        if self.row_positions is None:
            if self.positions is None:
                return self
            return replace(self, positions=_absolute(self.positions, start, end))
        rows = tuple(_absolute(row, start, end) for row in self.row_positions)
        if len(rows) != batch or len({len(row) for row in rows}) != 1:
            raise CaptureError(
                f"positions of each row need {batch} rows with equally many different positions; found {len(rows)} "
                f"rows with {sorted({len(row) for row in rows})}."
            )
        if len(set(rows)) == 1:
            return replace(self, positions=rows[0], row_positions=None)
        return replace(self, row_positions=rows)

    @property
    def n_positions(self) -> int | None:
        """Number of captured positions of a row; None for all."""
        if self.row_positions is not None:
            return len(self.row_positions[0])
        return None if self.positions is None else len(self.positions)

    def kv_heads(self, config: ModelConfig) -> tuple[int, ...] | None:
        """The key/value heads of the requested heads."""
        if self.heads is None:
            return None
        return tuple(sorted({head // config.group_size for head in self.heads}))

    def n_bytes(
        self,
        config: ModelConfig,
        batch: int,
        seqlen: int,
        past: int,
        itemsize: int,
        *,
        dense: bool = False,
        shared: bool = True,
    ) -> dict[str, int]:
        """Bytes needed for each name.

        A layer's q and k count once, for the first name that needs them. dense: patterns and their summaries are
        computed in the run. shared: nothing edits the run, so that names of one tensor share its memory: it counts for
        the first of them.
        """
        rows = seqlen if self.n_positions is None else self.n_positions
        dense = dense or self.row_positions is not None
        sizes: dict[str, int] = {}
        counted: set[str] = set()
        n_heads = config.n_heads if self.heads is None else len(self.heads)
        kv = self.kv_heads(config)
        n_kv_heads = config.n_kv_heads if kv is None else len(kv)
        whole = self.heads is None and self.n_positions is None
        for name in self.names:
            point = point_of(name)
            if name.endswith(FROM_INPUTS):
                if dense:
                    sizes[name] = batch * n_heads * 4 * _cells(name, rows, past + seqlen)
                    continue
                prefix = name[: name.index("attn.")]
                parts = {"attn.hook_rot_q": n_heads * rows, "attn.hook_rot_k": n_kv_heads * (past + seqlen)}
                sizes[name] = 0
                for tensor, n_vectors in parts.items():
                    held = shared and whole and prefix + tensor in self.names
                    if not held and prefix + tensor not in counted:
                        sizes[name] += batch * config.head_dim * n_vectors * itemsize
                        counted.add(prefix + tensor)
                continue
            count = batch * rows
            for axis in point.axes:
                width = point.width(axis, config)
                if axis == "head" and self.heads is not None:
                    width = n_heads if width == config.n_heads else n_kv_heads
                count *= width or 1
            sizes[name] = count * (4 if name.endswith(("hook_scale", LOGITS)) else itemsize)
            if shared and self.n_positions is None and _same_tensor(name) in self.names:
                sizes[name] = 0
        return sizes


def _same_tensor(name: str) -> str:
    """The hook before this one that has the same tensor if nothing edits it: the stream between two layers."""
    layer = layer_of(name)
    if layer is None or not name.endswith("hook_resid_pre"):
        return ""
    return f"blocks.{layer - 1}.hook_resid_post" if layer else "hook_embed"


def _cells(name: str, rows: int, keys: int) -> int:
    """Number of elements of one head's pattern, scores or summary."""
    if name.endswith((SCORES, PATTERN)):
        return rows * keys
    if name.endswith(MAP):
        return map_side(rows) * map_side(keys)
    return keys if name.endswith(KEY_MASS) else rows * len(STATS)


def _is_row(value: object) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, str) and getattr(value, "ndim", 1) > 0


def _whole_numbers(values: object, what: str) -> tuple[int, ...]:
    """Raises: CaptureError for anything else, masks of booleans included."""
    values = values.tolist() if hasattr(values, "tolist") else values
    try:
        listed: list[Any] = list(values) if isinstance(values, Iterable) else [values]
        listed = [value.item() if isinstance(value, Tensor) else value for value in listed]
        if isinstance(values, str) or any(isinstance(value, bool) for value in listed):
            raise TypeError
        return tuple(operator.index(value) for value in listed)
    except (TypeError, ValueError, RuntimeError):
        raise CaptureError(f"{what} must be whole numbers, found {str(values)[:80]}.") from None


def _absolute(positions: Sequence[int], start: int, end: int) -> tuple[int, ...]:
    absolute = sorted({end + position if position < 0 else position for position in positions})
    if not absolute or absolute[0] < start or absolute[-1] >= end:
        also = f" (from the end: -1 to {start - end})" if end > start else ""
        raise CaptureError(f"this run has positions {start} to {end - 1}{also}, found {list(positions)[:8]}.")
    return tuple(absolute)
