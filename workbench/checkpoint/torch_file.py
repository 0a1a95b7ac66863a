"""Reads a weight file of PyTorch (`.pth`, `.bin`): a zip with one pickle and one member for each storage.

The zip is checked first, because torch maps it without looking at its checksums: a changed bit in the pickle or in
the directory could give a weight the values of another one. The pickle is read with `weights_only`, so no code runs.
"""

from __future__ import annotations

import re
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from workbench.errors import CheckpointError

PICKLE_LIMIT = 16 << 20  # bytes; that of a model of 126 layers has 0.2 MB
_LOCAL = struct.Struct("<4s5H3I2H")  # signature, version, flags, method, time, date, CRC, two sizes, two lengths
_HAS_DESCRIPTOR = 1 << 3
# Names under which training programs store a model's weights next to other state.
_NESTED = ("model", "state_dict", "model_state_dict", "module")


class _DamagedZipError(Exception):
    """The zip contradicts itself."""


def load_torch_file(path: Path) -> dict[str, Tensor]:
    """The tensors in a file that `torch.save` wrote, as views of the mapped file.

    Numbers and text next to the tensors are left out; weights under "model" or "state_dict" are found.
    Raises: CheckpointError if the file is damaged, holds code, or holds tensors that cannot be mapped.
    """
    try:
        with path.open("rb") as stream:
            start = stream.read(4)
            if start == b"PK\3\4":
                _check_zip(stream, path)
            elif start[:1] == b"\x80":
                raise CheckpointError(
                    f"{path}: is in the format of torch before 1.6, which has no checksums. Save it again with: "
                    "torch.save(torch.load(FILE, weights_only=True), FILE)."
                )
            else:
                raise _DamagedZipError("it does not begin as a zip does")
        content: Any = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # a damaged pickle raises anything
        code = re.search(r"GLOBAL (\S+) (?:was not an allowed|whose module)", str(error))
        if code:
            raise CheckpointError(
                f"{path}: holds code or objects other than tensors ({code[1][:80]}), refused. "
                "Save its state_dict again, or use a safetensors file."
            ) from None
        raise unreadable(path, error) from error
    return _tensors(path, content)


def unreadable(path: Path, error: Exception) -> CheckpointError:
    """The error for a weight file that a library cannot read, with the library's reason."""
    return CheckpointError(
        f"{path}: cannot be read; it is truncated, damaged or not a weight file "
        f"({path.stat().st_size:,} bytes; {_first_line(error)})."
    )


def _first_line(error: Exception) -> str:
    """The first line of an exception's text, cut, or the name of its type."""
    text = str(error).strip()
    return text.splitlines()[0][:160].rstrip(".") if text and "orch.load" not in text else type(error).__name__


def _check_zip(stream: BinaryIO, path: Path) -> None:
    """Check that members follow each other without a gap, as torch writes them, and the checksums of the small ones."""
    with zipfile.ZipFile(stream) as archive:
        members = sorted(archive.infolist(), key=lambda member: member.header_offset)
        names = [member.filename for member in members]
        root = names[0].partition("/")[0]
        if f"{root}/constants.pkl" in names:
            raise CheckpointError(f"{path}: is a TorchScript program, refused; save the model's state_dict instead.")
        if f"{root}/data.pkl" not in names or len(set(names)) < len(names):
            raise _DamagedZipError("it has no data.pkl, or a name twice")
        position = 0
        for member, following in zip(members, [*members[1:], None], strict=True):
            end = archive.start_dir if following is None else following.header_offset
            _check_member(stream, member, position, end)
            position = end
        for member in members:
            if member.filename.startswith(f"{root}/data/"):
                if member.compress_type != zipfile.ZIP_STORED:
                    raise CheckpointError(f"{path}: is compressed; save it again with torch.save.")
            elif member.file_size > PICKLE_LIMIT:
                raise CheckpointError(
                    f"{path}: {member.filename} has {member.file_size:,} bytes; expected at most {PICKLE_LIMIT:,}."
                )
            else:
                archive.read(member)  # raises if its checksum is wrong


def _check_member(stream: BinaryIO, member: zipfile.ZipInfo, start: int, end: int) -> None:
    """Check a member's own header, and what follows its data, against the directory."""
    stream.seek(start)
    signature, _, flags, method, *_, name_length, extra_length = _LOCAL.unpack(stream.read(_LOCAL.size))
    name = stream.read(name_length).decode("utf-8" if flags & 0x800 else "cp437")
    expected = (b"PK\3\4", member.header_offset, member.flag_bits, member.compress_type, member.orig_filename)
    if (signature, start, flags, method, name) != expected:
        raise _DamagedZipError(f"its directory and its member {member.filename[:60]!r} differ")
    data_end = start + _LOCAL.size + name_length + extra_length + member.compress_size
    stream.seek(data_end)
    rest = stream.read(min(end - data_end, 32)) if end >= data_end else None
    sizes = (member.CRC, member.compress_size, member.file_size)
    descriptors = [b""]
    if flags & _HAS_DESCRIPTOR:
        layouts = ("<4s3I", "<4sI2Q") if max(sizes) < 1 << 32 else ("<4sI2Q",)
        descriptors = [struct.pack(layout, b"PK\7\10", *sizes) for layout in layouts]
    if rest not in descriptors:
        raise _DamagedZipError(f"the size of its member {member.filename[:60]!r} is wrong")


def _tensors(path: Path, content: Any) -> dict[str, Tensor]:
    if isinstance(content, Mapping) and not any(isinstance(value, Tensor) for value in content.values()):
        content = next((content[key] for key in _NESTED if isinstance(content.get(key), Mapping)), content)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: expected a dictionary of tensors, found {type(content).__name__}.")
    tensors: dict[str, Tensor] = {}
    for name, value in content.items():
        if isinstance(value, (int, float, str, type(None))):
            continue
        if not isinstance(name, str):
            raise CheckpointError(f"{path}: expected names of tensors, found {type(name).__name__} {name!r:.80}.")
        if not isinstance(value, Tensor):
            raise CheckpointError(f"{path}: expected tensors only, found {name!r} of {type(value).__name__}.")
        if problem := _tensor_problem(value):
            raise CheckpointError(f"{path}: tensor {name!r} {problem}.")
        tensors[name] = value.detach()
    return tensors


def _tensor_problem(tensor: Tensor) -> str | None:
    if tensor.layout != torch.strided:
        return f"is sparse ({tensor.layout}); save it again with to_dense()"
    if tensor.device.type != "cpu":
        return f"has no values: it was saved from the {tensor.device.type} device; save it again from the CPU"
    if tensor.is_quantized:
        return f"is quantised ({tensor.dtype}); save it again with dequantize()"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return f"{list(tensor.shape)} has more values than are stored for it"
    return None
