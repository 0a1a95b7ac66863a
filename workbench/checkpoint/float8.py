"""Float8 weights with scales, in Hugging Face's layout: the value is scale times stored number, in float32.

`quantization_config` in config.json decides: `fbgemm_fp8` (a scale for each row), `fp8` (for blocks, usually of 128 by
128), `compressed-tensors` with 8-bit floats (for the tensor, rows or blocks). Scales of activations are not used: the
model computes in its own dtype. Other methods are refused by name.
Source: transformers' quantizers; the format of the library compressed-tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from workbench.checkpoint.encoded_tensor import EncodedTensor, Index, StoredTensor, TensorsByFile
from workbench.errors import CheckpointError, ConfigError

QUANTISATION_KEYS = ("quantization_config", "compression_config")
_FLOAT8 = tuple(
    getattr(torch, name)
    for name in ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")
    if hasattr(torch, name)
)
_SCALES = ("weight_scale", "weight_scale_inv")  # both are multiplied
# Scales of activations and of the key/value cache, next to a weight's module.
_UNUSED = ("input_scale", "input_scale_ub", "output_scale", "q_scale", "k_scale", "v_scale", "activation_scale")
_BLOCK = 128

_DEQUANTISE = {
    "bitsandbytes": "AutoModelForCausalLM.from_pretrained(FOLDER).dequantize().save_pretrained(NEW)",
    "compressed-tensors": (
        "AutoModelForCausalLM.from_pretrained(FOLDER, quantization_config=CompressedTensorsConfig(dequantize=True))"
        ".save_pretrained(NEW)"
    ),
}


class Float8(NamedTuple):
    """How a checkpoint's float8 weights are scaled: the method, and the shape of a block of several rows."""

    method: str
    block: tuple[int, int]


@dataclass(frozen=True)
class ScaledFloat8(EncodedTensor):
    """Float8 numbers times scales; each scale is that of a block of values.

    Shapes: `scales` [rows / block rows, columns / block columns], rounded up.
    """

    values: Tensor
    scales: Tensor
    block: tuple[int, int]

    def read(self, index: Index) -> Tensor:
        rows, columns = index
        scales = self.scales[_blocks(rows, self.block[0])][:, _blocks(columns, self.block[1])].float()
        return self.values[index].float() * scales


def _blocks(part: slice, size: int) -> Tensor:
    """The block of each row or column in a part."""
    return torch.arange(part.start, part.stop) // size


def float8_scaling(config: Mapping[str, Any], source: str) -> Float8 | None:
    """How the weights of a config.json are scaled; None if they are not quantised.

    Raises: ConfigError for a quantisation other than float8, by name, with what to do.
    """
    settings = next((config[key] for key in QUANTISATION_KEYS if config.get(key) is not None), None)
    if settings is None:
        return None
    if not isinstance(settings, dict):
        raise ConfigError(f"{source}: quantization_config must be an object, found {type(settings).__name__}.")
    method = settings.get("quant_method") or _method_of_old_files(settings)
    if method == "fbgemm_fp8":
        return Float8(method, (1, 0))
    if method == "fp8":
        return Float8(method, _block_shape(settings.get("weight_block_size"), source))
    if method == "compressed-tensors":
        return Float8(method, _compressed_tensors(settings, source))
    raise _refused(str(method)[:40], source)


def _method_of_old_files(settings: Mapping[str, Any]) -> str:
    if settings.get("load_in_8bit") or settings.get("load_in_4bit"):
        return "bitsandbytes"
    return "compressed-tensors" if "config_groups" in settings else "unknown"


def _refused(method: str, source: str, detail: str = "") -> ConfigError:
    if call := _DEQUANTISE.get(method):
        advice = f"dequantise them once with transformers: {call}"
    else:
        advice = "use the model that it was made from, or a GGUF file"
    return ConfigError(f"{source}: weights quantised with {method}{detail} cannot be loaded; {advice}.")


def _compressed_tensors(settings: Mapping[str, Any], source: str) -> tuple[int, int]:
    """Shape of a block, if all groups of weights are 8-bit floats."""
    groups = settings.get("config_groups")
    weights = (
        [group.get("weights") for group in groups.values() if isinstance(group, dict)]
        if isinstance(groups, dict)
        else []
    )
    schemes = [scheme for scheme in weights if isinstance(scheme, dict)]
    sparsity = settings.get("sparsity_config")
    if isinstance(sparsity, dict) and sparsity.get("format") not in (None, "dense"):
        raise _refused("compressed-tensors", source, f" ({str(sparsity['format'])[:40]})")
    if not schemes:
        raise _refused("compressed-tensors", source)
    for scheme in schemes:
        if scheme.get("num_bits") != 8 or scheme.get("type") != "float" or not scheme.get("symmetric", True):
            kind = f" ({str(scheme.get('num_bits'))[:10]}-bit {str(scheme.get('type'))[:20]})"
            raise _refused("compressed-tensors", source, kind)
    blocks = {_block_shape(scheme.get("block_structure"), source) for scheme in schemes}
    if len(blocks) > 1:
        raise ConfigError(f"{source}: blocks of several shapes, {sorted(blocks)}, cannot be loaded.")
    return blocks.pop()


def _block_shape(stated: Any, source: str) -> tuple[int, int]:
    if stated is None:
        return _BLOCK, _BLOCK
    if (
        not isinstance(stated, list)
        or len(stated) != 2
        or not all(isinstance(size, int) and not isinstance(size, bool) and 0 < size < 1 << 20 for size in stated)
    ):
        raise ConfigError(f"{source}: the shape of a block must be two positive numbers, found {str(stated)[:60]}.")
    return stated[0], stated[1]


def scaled(files: TensorsByFile, scaling: Float8 | None) -> tuple[TensorsByFile, tuple[str, ...]]:
    """The tensors of all files with float8 weights scaled and without the scales, and notes for the user.

    A weight and its scale may be in different files.
    Raises: CheckpointError for a float8 weight without a scale, or a scale of another shape.
    """
    float8 = {
        name: path
        for path, tensors in files.items()
        for name, tensor in tensors.items()
        if isinstance(tensor, Tensor) and tensor.dtype in _FLOAT8
    }
    if not float8:
        return files, ()
    everything = {name: tensor for tensors in files.values() for name, tensor in tensors.items()}
    table = everything.get("model.embed_tokens.weight")
    dtype = torch.bfloat16 if table is None or table.dtype.itemsize < 2 else table.dtype
    used: set[str] = set()
    weights: dict[str, StoredTensor] = {}
    for name, path in float8.items():
        names = [f"{name.removesuffix('weight')}{scale}" for scale in _SCALES]
        stored = [scale for scale in names if scale in everything]
        if scaling is None:
            raise CheckpointError(
                f"{path}: tensor {name[:120]!r} is float8, but no quantization_config in config.json says how it is "
                "scaled; use a folder with that key, as transformers writes it."
            )
        if len(stored) != 1 or not name.endswith(".weight"):
            raise CheckpointError(
                f"{path}: tensor {name[:120]!r} is float8 and has {len(stored) or 'no'} scales; "
                f"expected {_SCALES[0]} or {_SCALES[1]} next to it."
            )
        used.add(stored[0])
        weights[name] = _scaled(path, name, everything[name], everything[stored[0]], scaling, dtype)
    result = {
        path: {
            name: weights.get(name, tensor)
            for name, tensor in tensors.items()
            if name not in used and name.rpartition(".")[2] not in _UNUSED
        }
        for path, tensors in files.items()
    }
    note = (
        f"the weights are float8 with scales ({scaling.method if scaling else ''}) and are dequantised; activations "
        "are not quantised, so that results may differ slightly from those of a float8 runtime."
    )
    return result, (note,)


def _scaled(
    path: Path, name: str, values: StoredTensor, scale: StoredTensor, scaling: Float8, dtype: torch.dtype
) -> ScaledFloat8:
    if (
        not isinstance(values, Tensor)
        or not isinstance(scale, Tensor)
        or not scale.dtype.is_floating_point
        or values.dim() != 2
    ):
        raise CheckpointError(f"{path}: tensor {name[:120]!r}: expected a matrix with a scale of a floating type.")
    rows, columns = values.shape
    shape = tuple(scale.shape)
    height, width = scaling.block
    if scale.numel() == 1:
        return ScaledFloat8(values.shape, dtype, values, scale.reshape(1, 1), (rows, columns))
    if shape in ((rows,), (rows, 1)):
        return ScaledFloat8(values.shape, dtype, values, scale.reshape(rows, 1), (1, columns))
    if width and shape == (-(-rows // height), -(-columns // width)):
        return ScaledFloat8(values.shape, dtype, values, scale, (height, width))
    blocks = f", or one for each block of {height} by {width}" if width else ""
    raise CheckpointError(
        f"{path}: the scale of {name[:120]!r} {[rows, columns]} has the shape {list(shape)}; expected one for the "
        f"tensor, one for each row{blocks}."
    )
