"""Broken files: each gives one short error at once, or loads with the weights that were saved; code never runs."""

import json
import os
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.workbench.checkpoint.checkpoints import hf_model, make_config, write_meta
from workbench.checkpoint import load_model
from workbench.checkpoint.torch_file import PICKLE_LIMIT
from workbench.checkpoint.weight_file import open_tensors
from workbench.errors import CheckpointError
from workbench.small_files import LARGEST, read_json

STATE = {f"layers.{i}.weight": torch.arange(96.0).view(12, 8) + i for i in range(3)} | {"norm.weight": torch.ones(16)}
LFS = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'4d7a2146' * 8}\nsize 16060522497\n"


def refusal(read: Callable[[Path], Any], path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ") and len(text) < 600 and "\n" not in text and text.endswith(".")
    return text


@pytest.fixture
def pth(tmp_path: Path) -> Path:
    torch.save(STATE, tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


def equal(found: dict[str, torch.Tensor]) -> bool:
    return found.keys() == STATE.keys() and all(torch.equal(found[name], STATE[name]) for name in STATE)


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth", "config.json"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (LFS.encode(), "is a git-lfs pointer, not the file itself; fetch the file with: git lfs pull"),
        (b"\n<!DOCTYPE html>\n<html><title>Log in</title></html>", "is a web page, perhaps a login"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "is a web page"),
    ],
)
def test_content_of_another_kind(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    read = read_json if name.endswith("json") else open_tensors
    assert message in refusal(read, tmp_path / name)


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth", "config.json"])
def test_no_readable_file(tmp_path: Path, name: str) -> None:
    read, path = (read_json if name.endswith("json") else open_tensors), tmp_path / name
    assert "no such file" in refusal(read, path)
    path.symlink_to("../../blobs/0123abcd")
    assert "is a link to ../../blobs/0123abcd, which does not exist" in refusal(read, path)
    path.unlink()
    path.mkdir()
    assert "is a folder" in refusal(read, path)
    path.rmdir()
    os.mkfifo(path)  # reading it would never end
    assert "is not a regular file" in refusal(read, path)


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth", "config.json"])
def test_no_permission(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path, *args: object) -> None:  # as the system says it; root may read every file
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / name).write_bytes(b"{}")
    monkeypatch.setattr(Path, "open", denied)
    read = read_json if name.endswith("json") else open_tensors
    assert "cannot be opened (Permission denied)" in refusal(read, tmp_path / name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a":' + b"[" * 200_000, "nested too deep"),
        (b'{"a": "\xff' + b"x" * 100_000, "byte 7 is not UTF-8 text"),
        (b'{"a": ' + b"1" * 5_000 + b"}", "a number has too many digits"),
        (b'{"a": 1', "line 1 column 8"),
        (b"[1]", "expected a JSON object, found list"),
        (b"\0" * 100, "not readable as JSON"),
    ],
)
def test_damaged_json(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "config.json").write_bytes(content)
    assert message in refusal(read_json, tmp_path / "config.json")


def test_json_that_is_read(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1, "a": 2, "b": ' + b"1" * 400 + b"}")
    assert read_json(path) == {"a": 2, "b": int("1" * 400)}
    with path.open("wb") as stream:
        stream.truncate(LARGEST + 1)  # zeros that take no space on the disk
    path.write_bytes(b"{" + path.read_bytes()[1:])
    assert "a file of this kind has at most" in refusal(read_json, path)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (struct.pack("<Q", 2**60) + b"{}", "header too large"),
        (struct.pack("<Q", 10**6) + b"{}", "cannot be read"),
        (struct.pack("<Q", 8) + b"notjson!", "cannot be read"),
        (b"\x03\0\0", "cannot be read"),
    ],
)
def test_damaged_safetensors(tmp_path: Path, header: bytes, message: str) -> None:
    (tmp_path / "a.safetensors").write_bytes(header)
    assert message in refusal(open_tensors, tmp_path / "a.safetensors")


class Code:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_code_is_refused_in_one_plain_line(tmp_path: Path, pth: Path) -> None:
    torch.save({**STATE, "norm.weight": Code(tmp_path / "ran")}, pth)
    text = refusal(open_tensors, pth)
    assert "holds code or objects other than tensors (posix.mkdir), refused" in text
    assert not (tmp_path / "ran").exists() and "\x1b" not in text and "weights_only" not in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({3: torch.ones(1)}, "expected names of tensors, found int 3"),
        ({"norm.weight": torch.ones(16).to_sparse()}, r"'norm.weight' is sparse \(torch.sparse_coo\)"),
        ({"norm.weight": torch.ones(16, device="meta")}, "'norm.weight' has no values: .* the meta device"),
        ({"norm.weight": torch.ones(1).expand(16)}, r"\[16\] has more values than are stored"),
        ({"norm.weight": [1.0, 2.0]}, "expected tensors only, found 'norm.weight' of list"),
        ({"x\x1b[31m\n" + "y" * 9_000: [1.0]}, r"found 'x\\x1b\[31m\\nyyy.* of list"),
    ],
)
def test_tensors_of_another_kind(pth: Path, changes: dict[Any, Any], message: str) -> None:
    torch.save({**STATE, **changes}, pth)
    assert re.search(message, refusal(open_tensors, pth))


@pytest.mark.filterwarnings("ignore:.*quantize:UserWarning", "ignore:TypedStorage:UserWarning")
def test_quantised_tensor(pth: Path) -> None:
    quantised = torch.quantize_per_tensor(torch.ones(16), 0.1, 0, torch.qint8)
    torch.save({**STATE, "norm.weight": quantised}, pth)
    assert "is quantised (torch.qint8)" in refusal(open_tensors, pth)


@pytest.mark.parametrize("content", [[torch.ones(3)], torch.ones(3), "text", None, {"a": {"b": {}}}])
def test_not_a_dictionary_of_tensors(pth: Path, content: Any) -> None:
    torch.save(content, pth)
    assert "expected" in refusal(open_tensors, pth)


@pytest.mark.parametrize(
    "content",
    [
        {**STATE, "step": 3, "loss": 0.5, "name": "run", "note": None},
        {"model": STATE, "step": 3},
        {"state_dict": STATE, "optimizer": {"lr": 0.1}},
        {name: torch.nn.Parameter(tensor) for name, tensor in STATE.items()},
    ],
)
def test_other_values_beside_the_tensors(pth: Path, content: Any) -> None:
    torch.save(content, pth)
    found = open_tensors(pth)
    assert equal(found) and not any(tensor.requires_grad for tensor in found.values())


def test_shared_and_strided_storages(pth: Path) -> None:
    table = torch.randn(6, 4)
    torch.save({"a": table, "b": table, "c": table.T, "d": table[2:4]}, pth)
    found = open_tensors(pth)
    assert found["a"].data_ptr() == found["b"].data_ptr()
    assert torch.equal(found["c"], table.T) and torch.equal(found["d"], table[2:4])


def test_format_of_old_torch(pth: Path) -> None:
    torch.save(STATE, pth, _use_new_zipfile_serialization=False)
    text = refusal(open_tensors, pth)
    assert "format of torch before 1.6" in text and "mmap" not in text
    torch.save(torch.load(pth, weights_only=True), pth)  # what the message says
    assert equal(open_tensors(pth))


def repack(path: Path, change: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED) -> None:
    """Write a zip again with its members changed, and right checksums."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, change(name, content))


def test_repacked_zip(pth: Path) -> None:
    repack(pth, lambda _, content: content)
    assert equal(open_tensors(pth))
    repack(pth, lambda _, content: content, zipfile.ZIP_DEFLATED)
    assert "is compressed" in refusal(open_tensors, pth)


def test_huge_pickle_in_a_small_file(pth: Path) -> None:
    repack(pth, lambda name, c: c + bytes(600 << 20) if name.endswith("data.pkl") else c, zipfile.ZIP_DEFLATED)
    assert pth.stat().st_size < 1 << 20
    before = _peak_memory()
    assert f"expected at most {PICKLE_LIMIT:,}" in refusal(open_tensors, pth)
    assert _peak_memory() - before < 50 << 20


def test_values_beyond_the_end_of_the_file(pth: Path) -> None:
    """A pickle, with a right checksum, whose first storage and tensor are longer than the file."""
    long = struct.pack("<BI", ord("J"), 1 << 20)
    changes = {
        struct.pack("<BB", ord("K"), 96): long,
        b"K\x0cK\x08\x86": long + b"\x85",
        b"K\x08K\x01\x86": b"K\x01\x85",
    }

    def change(name: str, content: bytes) -> bytes:
        for old, new in changes.items() if name.endswith("data.pkl") else ():
            assert old in content
            content = content.replace(old, new, 1)
        return content

    repack(pth, change)
    assert "storage" in refusal(open_tensors, pth)


def test_torchscript(pth: Path) -> None:
    with zipfile.ZipFile(pth, "a") as archive:
        archive.writestr(f"{pth.stem}/constants.pkl", b"\x80\x02).")
    assert "TorchScript" in refusal(open_tensors, pth)


def test_one_changed_bit_never_loads_other_weights(pth: Path) -> None:
    """Outside the values of the weights, which have no checksum to verify."""
    data = pth.read_bytes()
    values = set()
    with zipfile.ZipFile(pth) as archive:
        for member in archive.infolist():
            if "/data/" in member.filename:
                start = member.header_offset + 30 + sum(struct.unpack_from("<2H", data, member.header_offset + 26))
                values.update(range(start, start + member.file_size))
    refused, places = 0, sorted(set(range(len(data))) - values)
    assert len(places) > 1_500
    for number, place in enumerate(places):
        changed = bytearray(data)
        changed[place] ^= 1 << number % 8
        pth.write_bytes(changed)
        try:
            assert equal(open_tensors(pth)), place
        except CheckpointError as error:
            assert len(str(error)) < 600
            refused += 1
    assert refused > len(places) / 2


def _peak_memory() -> int:
    """The most memory that this process has used, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.bool, torch.complex64])
def test_dtypes_that_are_no_weights(tmp_path: Path, dtype: torch.dtype) -> None:
    hf_model(make_config(n_kv_heads=4)).save_pretrained(tmp_path / "hf")
    model = load_model(tmp_path / "hf", device="cpu")
    state = {name: tensor.to(dtype) if "wq" in name else tensor for name, tensor in model.state_dict().items()}
    write_meta(model, tmp_path / "meta", state=state)
    text = refusal(lambda folder: load_model(folder.parent, device="cpu"), tmp_path / "meta" / "consolidated.00.pth")
    assert "layers.0.attention.wq.weight" in text and str(dtype) in text


def test_long_values_are_cut(tmp_path: Path) -> None:
    hf_model(make_config(n_kv_heads=4)).save_pretrained(tmp_path / "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    config["hidden_size"] = {"x": "\x1b]8;;http://example.org\x07" + "y" * 9_000}
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    with pytest.raises(Exception, match="hidden_size must be a whole number") as caught:
        load_model(tmp_path / "hf")
    assert len(str(caught.value)) < 600 and "\x1b" not in str(caught.value)
