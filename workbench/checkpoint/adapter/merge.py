"""A base checkpoint with a LoRA adapter merged into its weights.

Nothing is merged before it is read: a changed weight becomes an encoded tensor, W + B A alpha / r, computed in float32
for the part that is read. What cannot be merged exactly is refused by name.
Source: Hu et al. 2021 (arXiv 2106.09685); rank-stabilised LoRA arXiv 2312.03732; peft's file format.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import regex
import torch
from torch import Tensor

from workbench.checkpoint.adapter.settings import EMBEDDING_MODULE, OUTPUT_MODULE, AdapterSettings, adapter_files
from workbench.checkpoint.encoded_tensor import EncodedTensor, Index, StoredTensor
from workbench.checkpoint.files import ADAPTER
from workbench.checkpoint.manifest import Checkpoint
from workbench.checkpoint.pieces import Piece, Weight
from workbench.checkpoint.tensors import EMBEDDING, output_spec
from workbench.checkpoint.weight_file import open_tensors
from workbench.errors import CheckpointError
from workbench.layers import rope

_KEY = regex.compile(r"(?P<module>.+)\.((?P<part>lora_[AB])(\.[^.]+)?\.weight|(?P<part>lora_embedding_[AB])(\.[^.]+)?)")
_SAVED = regex.compile(r"(?P<module>.+?)(\.(?P<kind>modules_to_save|base_layer|original_module)(\.default)?)?\.weight")

_TABLES = {EMBEDDING_MODULE, OUTPUT_MODULE}


@dataclass(frozen=True)
class LowRankSum(EncodedTensor):
    """W + B A scale, for a stored part of W that begins at `offset` of the complete weight.

    Shapes: `up` (B) [rows, r] and `down` (A) [r, columns] of the complete weight.
    """

    base: StoredTensor
    up: Tensor
    down: Tensor
    scale: float
    offset: tuple[int, ...]

    def read(self, index: Index) -> Tensor:
        rows, columns = (
            slice(part.start + start, part.stop + start) for part, start in zip(index, self.offset, strict=True)
        )
        change = self.up[rows].float() @ self.down[:, columns].float() * self.scale
        return self.base[index].float() + change


@dataclass(frozen=True)
class Replacement(EncodedTensor):
    """A weight that the adapter replaces; by default it is kept in the base's dtype."""

    values: Tensor

    def read(self, index: Index) -> Tensor:
        return self.values[index]


class _LowRank(NamedTuple):
    """The two factors of one module: change = up down scale."""

    up: Tensor
    down: Tensor
    scale: float


def with_adapter(checkpoint: Checkpoint, folder: str | Path) -> Checkpoint:
    """The checkpoint with an adapter merged into its weights.

    Exact:  as peft's `merge_and_unload` in float32. If the base ties the output to the embedding and the adapter
        changes one of them, as peft's model before the merge: its merge would change both.
    Raises: CheckpointError if the adapter does not fit the checkpoint, holds tensors that belong to no weight of it, or
        is of a kind that is not a sum of W and B A.
    """
    config_file, weights_file = adapter_files(folder)
    adapter = _Adapter(config_file, weights_file, checkpoint)
    weights, config, notes = checkpoint.weights, checkpoint.config, checkpoint.notes
    if adapter.unties:
        embedding = next(weight for weight in weights if weight.spec.name == EMBEDDING)
        weights = (*weights, Weight(output_spec(config), embedding.stored_name, embedding.pieces, half_split=False))
        config = replace(config, tied_output=False)
    if adapter.unties and adapter.low_rank.keys() & _TABLES:
        notes = (
            *notes,
            f"{config_file.parent}: the adapter changes the embedding or the output, which the base ties; they "
            "are separate here, as the adapter was trained. peft's merge_and_unload would change both.",
        )
    return replace(checkpoint, config=config, weights=tuple(map(adapter.merged, weights)), notes=notes)


class _Adapter:
    """Tensors and scales of an adapter, checked against the modules of a checkpoint."""

    def __init__(self, config_file: Path, weights_file: Path, checkpoint: Checkpoint) -> None:
        self.weights_file = weights_file
        self.settings = AdapterSettings(config_file)
        specs = [weight.spec for weight in checkpoint.weights]
        self.tied = checkpoint.config.tied_output
        if self.tied:
            specs.append(output_spec(checkpoint.config))
        self.shapes = {spec.hf_name.removesuffix(".weight"): spec.shape for spec in specs}
        low_rank, self.replaced = self._sorted_tensors(open_tensors(weights_file))
        self.low_rank = {module: self._factors(module, parts) for module, parts in low_rank.items()}
        self._check_targets()
        self.unties = self.tied and self._separates_tables()

    def _sorted_tensors(self, tensors: Mapping[str, Tensor]) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
        """Factors by module and part, and replaced weights by module."""
        low_rank: dict[str, dict[str, Tensor]] = {}
        replaced: dict[str, Tensor] = {}
        shared: dict[str, Tensor] = {}  # the base's own table, which it stores once
        for name, tensor in tensors.items():
            if not isinstance(name, str) or not tensor.dtype.is_floating_point:
                raise self.unmatched(str(name))
            if (match := _KEY.fullmatch(name)) and (module := self._module(match["module"])):
                parts = low_rank.setdefault(module, {})
                if match["part"] in parts:
                    raise self.settings.error(f"several adapters in one file: {name[:120]!r} is there twice")
                parts[match["part"]] = tensor
            elif (match := _SAVED.fullmatch(name)) and (module := self._module(match["module"])):
                if match["kind"] == "original_module":
                    continue  # the base's own weight
                replaced[module] = tensor
                if self.tied and match["kind"] == "base_layer" and module in _TABLES:
                    shared |= dict.fromkeys(_TABLES, tensor)
            else:
                raise self.unmatched(name)
        replaced = shared | replaced
        for module, tensor in replaced.items():
            if tuple(tensor.shape) != self.shapes[module]:
                hint = ""
                if tensor.dim() == 2 and tensor.shape[1:] == self.shapes[module][1:]:
                    hint = "; resize the base to the adapter's tokens first (resize_token_embeddings)"
                raise self.misfit(module, tensor, self.shapes[module], hint)
        return low_rank, replaced

    def _module(self, name: str) -> str | None:
        """The checkpoint's module, in Hugging Face's names, that a stored name means."""
        name = name.removeprefix("base_model.model.")
        return next((module for module in (name, f"model.{name}") if module in self.shapes), None)

    def _factors(self, module: str, parts: Mapping[str, Tensor]) -> _LowRank:
        rows, columns = (*self.shapes[module], 0)[:2]
        if parts.keys() == {"lora_A", "lora_B"} and module != EMBEDDING_MODULE:
            up, down = parts["lora_B"], parts["lora_A"]
        elif parts.keys() == {"lora_embedding_A", "lora_embedding_B"} and module == EMBEDDING_MODULE:
            up, down = parts["lora_embedding_A"].T, parts["lora_embedding_B"].T
        else:
            raise self.settings.error(f"{module} needs lora_A and lora_B, found {', '.join(sorted(parts))}")
        rank = self.settings.rank(module)
        if tuple(up.shape) != (rows, rank):
            raise self.misfit(module, up, (rows, rank))
        if tuple(down.shape) != (rank, columns):
            raise self.misfit(module, down, (rank, columns))
        return _LowRank(up, down, self.settings.scale(module))

    def _check_targets(self) -> None:
        """The modules with factors must be those that the configuration targets."""
        follows_embedding = self.tied and self.settings.ties_tables
        for module, shape in self.shapes.items():
            source = EMBEDDING_MODULE if module == OUTPUT_MODULE and follows_embedding else module
            targeted = len(shape) == 2 and self.settings.is_target(source)
            if targeted and module not in self.low_rank:
                raise self.settings.error(
                    f"{module} is a target module, but {self.weights_file.name} has no tensors for it"
                )
            if not targeted and module in self.low_rank:
                raise self.settings.error(
                    f"{self.weights_file.name} has tensors for {module}, which is not a target module"
                )

    def _separates_tables(self) -> bool:
        """Whether a tied embedding and output differ with the adapter."""
        if self.low_rank.keys() & _TABLES:
            return True
        tables = [self.replaced.get(module) for module in (EMBEDDING_MODULE, OUTPUT_MODULE)]
        if tables[0] is None or tables[1] is None:
            return tables[0] is not tables[1]
        return not torch.equal(tables[0], tables[1])

    def merged(self, weight: Weight) -> Weight:
        """The weight as the adapter changes it."""
        module = weight.spec.hf_name.removesuffix(".weight")
        dtype = weight.pieces[0].tensor.dtype
        if (values := self.replaced.get(module)) is not None:
            piece = Piece(self.weights_file, Replacement(values.shape, dtype, values), (0,) * values.dim())
            weight = replace(weight, pieces=(piece,), half_split=weight.spec.rotary_heads > 0)
        if (factors := self.low_rank.get(module)) is None:
            return weight
        up, down, scale = factors
        if weight.spec.rotary_heads and not weight.half_split:
            up = rope.to_adjacent(up, weight.spec.rotary_heads)  # the adapter is in Hugging Face's order
        pieces = tuple(
            replace(piece, tensor=LowRankSum(piece.tensor.shape, dtype, piece.tensor, up, down, scale, piece.offset))
            for piece in weight.pieces
        )
        return replace(weight, pieces=pieces)

    def unmatched(self, name: str) -> CheckpointError:
        return CheckpointError(
            f"{self.weights_file}: tensor {name[:120]!r} belongs to no weight of this base; "
            "the adapter was made for another model, or is of another kind than LoRA."
        )

    def misfit(self, module: str, tensor: Tensor, expected: Iterable[int], hint: str = "") -> CheckpointError:
        return CheckpointError(
            f"{self.weights_file}: a tensor of {module} has the wrong shape; expected {list(expected)} by the base and "
            f"{ADAPTER}, found {list(tensor.shape)}{hint}."
        )
