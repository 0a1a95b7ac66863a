"""`Capture`: the activations of a run at the requested hook points, with their provenance.

Scores, patterns and their summaries are not stored. The rotated q and k are stored, and a pattern is computed when it
is read, per layer, head and query range. Captures are saved to and loaded from safetensors with their provenance.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from workbench.config import ModelConfig, scaling_from_fields
from workbench.errors import CaptureError, MissingHookError
from workbench.hooks.capture_request import Request
from workbench.hooks.hook_points import PATTERN, compute, layer_of, point_of
from workbench.layers.attention import AttentionInputs
from workbench.layers.attention_mask import Mask
from workbench.model_cost import readable_bytes

FORMAT = "workbench capture 1"


@dataclass(frozen=True, repr=False)
class Capture:
    """Activations of a run at the requested hook points. Tensors stay on the model's device.

    Two names may share one tensor, as the stream after a layer and the one before the next do: copy a tensor before you
    write into it.
    Shapes: tokens [batch, pos] int64; the others as the hook table's axes, with `heads` and `positions` narrowed.
    heads, positions: the captured head numbers and absolute positions; None for all. At the key and value points, the
    key/value heads of `heads` are captured. pad [batch]: how many positions at the left of each row are padding, None
    for none.
    """

    config: ModelConfig
    tokens: Tensor
    request: Request
    start: int
    tensors: Mapping[str, Tensor]
    inputs: Mapping[int, AttentionInputs]
    provenance: Mapping[str, Any]
    pad: Tensor | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return self.request.names

    @property
    def heads(self) -> tuple[int, ...] | None:
        return self.request.heads

    @property
    def positions(self) -> tuple[int, ...] | None:
        """The captured positions. Raises: CaptureError if each row has its own; `row_positions` holds those."""
        if self.request.row_positions is not None:
            raise CaptureError("this capture has other positions in each row; read row_positions, or capture one row.")
        return self.request.positions

    @property
    def row_positions(self) -> tuple[tuple[int, ...], ...] | None:
        """The captured positions of each row, [batch][n], if they differ between rows."""
        return self.request.row_positions

    @property
    def n_bytes(self) -> int:
        """Size in bytes, including the q and k of lazily computed patterns. What two names share counts once.

        In a stream the keys of all steps are parts of one cache.
        """
        tensors = [*self.tensors.values(), *(t for i in self.inputs.values() for t in (i.q, i.k))]
        distinct = {(t.untyped_storage().data_ptr(), t.storage_offset(), t.numel()): t for t in tensors}
        return sum(t.numel() * t.element_size() for t in distinct.values())

    def __repr__(self) -> str:
        rows = Counter(point_of(name).name.replace("{l}", "*") for name in self.names)
        shown = [f"{row} ({n})" if n > 1 else row for row, n in rows.items()]
        more = f", and {len(shown) - 8} others" if len(shown) > 8 else ""
        positions: object = f"{self.start} to {self.start + self.tokens.shape[1] - 1}"
        if self.row_positions is not None:
            positions = f"{len(self.row_positions[0])} of each row"
        elif self.positions is not None:
            positions = _shown(self.positions)
        about = self.provenance
        changed = f", {len(about['interventions'])} interventions" if about.get("interventions") else ""
        return (
            f"Capture of {' x '.join(map(str, self.tokens.shape))} tokens, {about.get('model') or 'a model in memory'}"
            f" ({about.get('dtype')}, {self.tokens.device}){changed}\n"
            f"  hooks: {', '.join(shown[:8])}{more}\n"
            f"  positions: {positions}; heads: {'all' if self.heads is None else _shown(self.heads)}; "
            f"{readable_bytes(self.n_bytes)}"
        )

    def __contains__(self, name: object) -> bool:
        return name in self.request.names

    def __getitem__(self, name: str) -> Tensor:
        """The tensor at a hook point; a pattern, its scores or a summary is computed now.

        Raises: MissingHookError if it was not captured (names what to add).
        """
        if name in self.tensors:
            return self.tensors[name]
        layer = layer_of(name)
        if name in self and layer is not None and layer in self.inputs:
            return compute(name, self.inputs[layer])
        raise MissingHookError(f"this capture does not hold {name!r}; add it to the names of run_with_capture.")

    def axes(self, name: str) -> tuple[str, ...]:
        """Names of a tensor's axes."""
        if name not in self:
            raise MissingHookError(f"this capture does not hold {name!r}; add it to the names of run_with_capture.")
        return point_of(name).axes

    def layers(self, suffix: str) -> tuple[int, ...]:
        """The layers for which `blocks.{l}.{suffix}` was captured."""
        return tuple(layer for layer in range(self.config.n_layers) if f"blocks.{layer}.{suffix}" in self)

    def stack(self, suffix: str) -> Tensor:
        """`blocks.{l}.{suffix}` of every captured layer. Shapes: -> [layer, ...]"""
        layers = self.layers(suffix)
        if not layers:
            raise MissingHookError(
                f"this capture does not hold 'blocks.*.{suffix}'; add it to the names of run_with_capture."
            )
        return torch.stack([self[f"blocks.{layer}.{suffix}"] for layer in layers])

    def pattern(
        self, layer: int, *, heads: Sequence[int] | None = None, queries: Sequence[int] | None = None
    ) -> Tensor:
        """One layer's attention weights, for some heads (global numbers) and some queries (absolute positions).

        Shapes: -> float32 [batch, head, query_pos, key_pos]
        Raises: MissingHookError for a layer, head or query that was not captured.
        """
        name = f"blocks.{layer}.{PATTERN}"
        captured_heads = tuple(range(self.config.n_heads)) if self.heads is None else self.heads
        head_index = None if heads is None else self._index(captured_heads, heads, "head")
        end = self.start + self.tokens.shape[1]
        query_index = None
        if queries is not None:
            captured_queries = tuple(range(self.start, end)) if self.positions is None else self.positions
            query_index = self._index(captured_queries, queries, "position")
        if layer in self.inputs and name in self:
            return self.inputs[layer].narrow(head_index, query_index).pattern()
        pattern = self[name]
        if head_index is not None:
            pattern = pattern[:, head_index]
        return pattern if query_index is None else pattern[:, :, query_index]

    def _index(self, captured: Sequence[int], requested: Sequence[int], what: str) -> Tensor:
        index = {n: i for i, n in enumerate(captured)}
        try:
            return torch.tensor([index[n] for n in requested], device=self.tokens.device)
        except KeyError:
            raise MissingHookError(
                f"this capture holds {what}s {captured[0]} to {captured[-1]} ({len(captured)} of them), "
                f"not all of {list(requested)}."
            ) from None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the capture and its provenance as one safetensors file. Raises: CaptureError if that fails."""
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        path = Path(path)
        entries = {"tokens": self.tokens, **{f"tensor/{name}": t for name, t in self.tensors.items()}}
        for layer, inputs in self.inputs.items():
            entries[f"inputs/{layer}/q"], entries[f"inputs/{layer}/k"] = inputs.q, inputs.k
            entries[f"inputs/{layer}/kv_of"] = inputs.kv_of
            entries[f"inputs/{layer}/positions"] = inputs.mask.positions
            if inputs.mask.pad is not None:
                entries[f"inputs/{layer}/pad"] = inputs.mask.pad
        if self.pad is not None:
            entries["pad"] = self.pad
        about = {
            "config": asdict(self.config),
            "request": asdict(self.request),
            "start": self.start,
            "provenance": dict(self.provenance),
        }
        temporary = path.with_name(path.name + ".partial")
        tensors = {name: t.detach().cpu().contiguous().clone() for name, t in entries.items()}
        try:
            save_file(tensors, temporary, metadata={"format": FORMAT, "about": json.dumps(about)})
            os.replace(temporary, path)
        except (OSError, SafetensorError) as error:
            temporary.unlink(missing_ok=True)
            raise CaptureError(f"{path} cannot be written: {error}") from error

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, device: torch.device | str = "cpu") -> Capture:
        """Read a capture that `save` wrote, onto a device. Raises: CaptureError for any other file."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), framework="pt", device=str(device)) as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != FORMAT:
                    raise CaptureError(f"{path} is not a capture in the format that this version reads ({FORMAT}).")
                entries = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise CaptureError(f"{path} cannot be read as a capture: {error}") from error
        about = json.loads(metadata["about"])
        config = dict(about["config"])
        if config["rope_scaling"]:
            config["rope_scaling"] = scaling_from_fields(config["rope_scaling"])
        stored = about["request"]
        narrowed = {key: None if stored[key] is None else tuple(stored[key]) for key in ("heads", "positions")}
        rows = stored.get("row_positions")  # an older file has none
        request = Request(
            tuple(stored["names"]), **narrowed, row_positions=None if rows is None else tuple(map(tuple, rows))
        )
        inputs = {}
        for name in entries:
            if name.startswith("inputs/") and name.endswith("/q"):
                prefix = name[: -len("q")]
                mask = Mask(entries[prefix + "positions"], entries.get(prefix + "pad"))
                inputs[int(prefix.split("/")[1])] = AttentionInputs(
                    entries[name], entries[prefix + "k"], mask, entries[prefix + "kv_of"]
                )
        tensors = {name[len("tensor/") :]: t for name, t in entries.items() if name.startswith("tensor/")}
        pads = [inputs_of_layer.mask.pad for inputs_of_layer in inputs.values()]  # an older file has it only there
        return cls(
            ModelConfig(**config), entries["tokens"], request, about["start"],
            MappingProxyType(tensors), MappingProxyType(inputs), MappingProxyType(about["provenance"]),
            entries.get("pad", pads[0] if pads else None),
        )  # fmt: skip


def _shown(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:8])) + (f", ... ({len(numbers)})" if len(numbers) > 8 else "")
