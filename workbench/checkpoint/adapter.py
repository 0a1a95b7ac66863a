"""LoRA adapters (folders of the library peft): a base checkpoint with an adapter merged into its weights.

Nothing is merged before it is read: a changed weight becomes an encoded tensor, W + B A alpha / r, computed in float32
for the part that is read. What cannot be merged exactly is refused by name.
Source: Hu et al. 2021 (arXiv 2106.09685); rank-stabilised LoRA arXiv 2312.03732; peft's file format.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import regex
import torch
from torch import Tensor

from workbench.checkpoint.encoded_tensor import EncodedTensor, Index, StoredTensor
from workbench.checkpoint.files import ADAPTER
from workbench.checkpoint.manifest import Checkpoint, Piece, Weight
from workbench.checkpoint.tensors import EMBEDDING, output_spec
from workbench.checkpoint.weight_file import open_tensors
from workbench.errors import CheckpointError
from workbench.layers import rope
from workbench.small_files import read_json

_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")

_KEY = regex.compile(r"(?P<module>.+)\.((?P<part>lora_[AB])(\.[^.]+)?\.weight|(?P<part>lora_embedding_[AB])(\.[^.]+)?)")
_SAVED = regex.compile(r"(?P<module>.+?)(\.(?P<kind>modules_to_save|base_layer|original_module)(\.default)?)?\.weight")

_EMBEDDING_MODULE, _OUTPUT_MODULE = "model.embed_tokens", "lm_head"
_TABLES = {_EMBEDDING_MODULE, _OUTPUT_MODULE}

# Settings that make the adapter something else than B A; false, empty or null means that they are not in use.
_REFUSED = {
    "use_dora": "DoRA",
    "lora_bias": "a bias in the adapter",
    "trainable_token_indices": "trainable token indices",
    "layer_replication": "replicated layers",
    "target_parameters": "target_parameters",
    "use_qalora": "QALoRA",
    "use_bdlora": "block-diagonal LoRA",
    "alora_invocation_tokens": "activated LoRA",
    "arrow_config": "Arrow",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
}
# Initialisations that also change the base's weights, so that the adapter fits only the changed base.
_CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


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


def adapter_files(folder: str | Path) -> tuple[Path, Path]:
    """Configuration and weights of an adapter folder.

    Raises: CheckpointError if one of them is missing.
    """
    root = Path(folder).expanduser()
    config = root / ADAPTER
    if not config.is_file():
        reason = "no such folder" if not root.is_dir() else f"holds no {ADAPTER}"
        raise CheckpointError(f"--adapter {root}: {reason}; pass a folder of a LoRA adapter, as peft writes it.")
    weights = next((root / name for name in _WEIGHTS if (root / name).is_file()), None)
    if weights is None:
        raise CheckpointError(f"--adapter {root}: holds {ADAPTER}, but neither {' nor '.join(_WEIGHTS)}.")
    return config, weights


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
        self.config_file, self.weights_file = config_file, weights_file
        self.settings = read_json(config_file)
        self._refuse_other_kinds()
        specs = [weight.spec for weight in checkpoint.weights]
        self.tied = checkpoint.config.tied_output
        if self.tied:
            specs.append(output_spec(checkpoint.config))
        self.shapes = {spec.hf_name.removesuffix(".weight"): spec.shape for spec in specs}
        low_rank, self.replaced = self._sorted_tensors(open_tensors(weights_file))
        self.low_rank = {module: self._factors(module, parts) for module, parts in low_rank.items()}
        self._check_targets()
        self.unties = self.tied and self._separates_tables()

    def _refuse_other_kinds(self) -> None:
        kind = self.settings.get("peft_type")
        if kind != "LORA":
            raise self.error(f"an adapter of type {str(kind)[:40]!r}; only LoRA can be merged")
        for name, meaning in _REFUSED.items():
            if self.settings.get(name):
                raise self.error(f"{meaning} ({name}) cannot be merged here; merge it with peft's merge_and_unload")
        start = self.settings.get("init_lora_weights")
        if isinstance(start, str) and start.lower().startswith(_CHANGED_BASE):
            raise self.error(
                f"init_lora_weights is {start[:40]!r}, which changes the base too; "
                "save the adapter with path_initial_model_for_weight_conversion"
            )

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
                    raise self.error(f"several adapters in one file: {name[:120]!r} is there twice")
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
        if parts.keys() == {"lora_A", "lora_B"} and module != _EMBEDDING_MODULE:
            up, down = parts["lora_B"], parts["lora_A"]
        elif parts.keys() == {"lora_embedding_A", "lora_embedding_B"} and module == _EMBEDDING_MODULE:
            up, down = parts["lora_embedding_A"].T, parts["lora_embedding_B"].T
        else:
            raise self.error(f"{module} needs lora_A and lora_B, found {', '.join(sorted(parts))}")
        rank = int(self._number("r", "rank_pattern", module))
        if tuple(up.shape) != (rows, rank):
            raise self.misfit(module, up, (rows, rank))
        if tuple(down.shape) != (rank, columns):
            raise self.misfit(module, down, (rank, columns))
        alpha = self._number("lora_alpha", "alpha_pattern", module)
        return _LowRank(up, down, alpha / (math.sqrt(rank) if self.settings.get("use_rslora") else rank))

    def _number(self, name: str, pattern_name: str, module: str) -> float:
        """A setting of one module: that of the first pattern that ends the module's name, else the general one."""
        patterns = self.settings.get(pattern_name) or {}
        if not isinstance(patterns, dict):
            raise self.error(f"{pattern_name} must be an object")
        value = self.settings.get(name, 8)  # peft's default of both
        for pattern, special in patterns.items():
            if self._matches(rf"(.*\.)?({pattern})", module):
                value = special
                break
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e9
        if not is_number or (name == "r" and value < 1):
            raise self.error(f"{name} of {module} must be a number, found {str(value)[:40]}")
        return float(value)

    def _check_targets(self) -> None:
        """The modules with factors must be those that the configuration targets."""
        targets = self.settings.get("target_modules")
        if targets is None:
            raise self.error("target_modules is missing")
        follows_embedding = self.tied and bool(self.settings.get("ensure_weight_tying"))
        for module, shape in self.shapes.items():
            source = _EMBEDDING_MODULE if module == _OUTPUT_MODULE and follows_embedding else module
            targeted = len(shape) == 2 and self._is_target(source)
            if targeted and module not in self.low_rank:
                raise self.error(f"{module} is a target module, but {self.weights_file.name} has no tensors for it")
            if not targeted and module in self.low_rank:
                raise self.error(f"{self.weights_file.name} has tensors for {module}, which is not a target module")

    def _is_target(self, module: str) -> bool:
        excluded, targets = self.settings.get("exclude_modules"), self.settings["target_modules"]
        saved = self._names("modules_to_save")
        if excluded and self._is_named(excluded, module):
            return False
        if any(self._matches(rf"(^|.*\.){name}($|\..*)", module) for name in saved):
            return False
        if isinstance(targets, str):
            if targets.lower() == "all-linear":
                return module not in (_EMBEDDING_MODULE, _OUTPUT_MODULE)
            return self._matches(targets, module)
        if not self._is_named(targets, module):
            return False
        layers = self.settings.get("layers_to_transform")
        if layers is None or layers == [] or module in targets:
            return True
        patterns = self._names("layers_pattern") or [r"[^.]*"]
        numbers = [layers] if isinstance(layers, int) else layers
        for pattern in patterns:
            for number in numbers if isinstance(numbers, list) else ():
                if self._matches(rf"(.*?\.)?({pattern})\.{number}\..*", module):
                    return True
        return False

    def _is_named(self, names: Any, module: str) -> bool:
        if isinstance(names, str):
            return self._matches(names, module)
        return any(module == name or module.endswith(f".{name}") for name in self._listed(names))

    def _names(self, setting: str) -> list[str]:
        names = self.settings.get(setting) or []
        return [names] if isinstance(names, str) else self._listed(names)

    def _listed(self, names: Any) -> list[str]:
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise self.error("module names must be a text or a list of texts")
        return names

    def _matches(self, pattern: str, module: str) -> bool:
        try:
            return regex.fullmatch(pattern, module, timeout=1) is not None
        except (regex.error, TimeoutError, RecursionError) as error:
            raise self.error(f"the pattern {pattern[:80]!r} cannot be used ({error})") from error

    def _separates_tables(self) -> bool:
        """Whether a tied embedding and output differ with the adapter."""
        if self.low_rank.keys() & _TABLES:
            return True
        tables = [self.replaced.get(module) for module in (_EMBEDDING_MODULE, _OUTPUT_MODULE)]
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

    def error(self, reason: str) -> CheckpointError:
        return CheckpointError(f"{self.config_file}: {reason}.")
