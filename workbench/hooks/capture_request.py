"""`Request`: which hooks, heads and positions a capture holds, and how many bytes that takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from workbench.config import ModelConfig
from workbench.errors import CaptureError
from workbench.hooks import hook_points
from workbench.hooks.hook_points import FROM_INPUTS, layer_of, point_of


@dataclass(frozen=True)
class Request:
    """The requested content of a capture: hook names, and which of their heads and positions."""

    names: tuple[str, ...]
    heads: tuple[int, ...] | None = None
    positions: tuple[int, ...] | None = None

    @classmethod
    def of(
        cls,
        config: ModelConfig,
        names: str | Iterable[str],
        *,
        layers: Sequence[int] | None = None,
        heads: Sequence[int] | None = None,
        positions: Sequence[int] | None = None,
    ) -> Request:
        """Raises: UnknownHookError for a name or layer, CaptureError for heads or positions out of range."""
        full = hook_points.expand(names, config, layers=layers)
        if not full:
            raise CaptureError("nothing to capture: no hook in the requested layers matches the names.")
        if heads is not None and (not heads or min(heads) < 0 or max(heads) >= config.n_heads):
            raise CaptureError(f"the model has heads 0 to {config.n_heads - 1}, found {list(heads)}.")
        return cls(
            full,
            None if heads is None else tuple(sorted(set(heads))),
            None if positions is None else tuple(sorted(set(positions))),
        )

    def kv_heads(self, config: ModelConfig) -> tuple[int, ...] | None:
        """The key/value heads of the requested heads."""
        if self.heads is None:
            return None
        return tuple(sorted({head // config.group_size for head in self.heads}))

    def n_bytes(self, config: ModelConfig, batch: int, seqlen: int, past: int, itemsize: int) -> dict[str, int]:
        """Bytes needed for each name. A layer's q and k count once, for the first name that needs them."""
        rows = seqlen if self.positions is None else len(self.positions)
        sizes: dict[str, int] = {}
        counted_layers: set[int | None] = set()
        for name in self.names:
            point = point_of(name)
            if name.endswith(FROM_INPUTS):
                heads = config.n_heads if self.heads is None else len(self.heads)
                kv = self.kv_heads(config)
                keys = (config.n_kv_heads if kv is None else len(kv)) * (past + seqlen)
                is_first = layer_of(name) not in counted_layers
                counted_layers.add(layer_of(name))
                sizes[name] = batch * config.head_dim * (heads * rows + keys) * itemsize if is_first else 0
                continue
            count = batch * rows
            for axis in point.axes:
                width = point.width(axis, config)
                if axis == "head" and self.heads is not None:
                    width = len(self.heads) if width == config.n_heads else len(self.kv_heads(config) or ())
                count *= width or 1
            sizes[name] = count * (4 if name.endswith(("hook_scale", "hook_logits")) else itemsize)
        return sizes
