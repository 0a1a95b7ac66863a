"""A thousand randomly broken checkpoints: one short error at once, or the weights that were saved.

Values of weights are not changed: they have no checksum to verify. A broken tokenizer may leave a model without
text, with a warning. To cover another kind of checkpoint, add it to `originals`.
"""

import json
import random
import shutil
import signal
import struct
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.workbench.checkpoint.checkpoints import hf_model, make_config, write_gguf
from workbench.checkpoint import convert, load_model
from workbench.errors import WorkbenchError, WorkbenchWarning
from workbench.model import Transformer
from workbench.text.tokenizer import Tokenizer

gguf = pytest.importorskip("gguf", reason="gguf is not installed")

SECONDS, MEMORY = 5.0, 1 << 30  # most for one checkpoint
Original = tuple[Path, dict[str, Tensor]]


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> list[Original]:
    root = tmp_path_factory.mktemp("originals")
    tokenizer = Tokenizer.from_ranks({bytes([b]): b for b in range(256)})
    config = make_config(
        dim=32, n_kv_heads=4, ffn_dim=48, vocab_size=tokenizer.vocab_size, rope_theta=500_000.0, max_seq_len=8_192
    )
    theirs = hf_model(config)
    theirs.save_pretrained(root / "hf", max_shard_size=sum(p.nbytes for p in theirs.parameters()) // 3)
    (root / "hf" / "tokenizer.json").write_text(json.dumps(tokenizer.to_hf_json()))
    convert(root / "hf", root / "meta", layout="meta", shards=2)
    convert(root / "hf", root / "pth", layout="meta", container="pth")
    (root / "gguf").mkdir()
    write_gguf(theirs, root / "gguf" / "model.gguf")
    folders = [root / "hf", root / "meta", root / "pth", root / "gguf"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", WorkbenchWarning)  # this GGUF file has no tokenizer
        return [(folder, dict(load_model(folder, device="cpu").named_parameters())) for folder in folders]


# A change of one folder; it may leave the folder as it was.
Change = Callable[[random.Random, Path], None]

JUNK = [
    b"",
    b"\0" * 64,
    b"{}",
    b"[]",
    b"null",
    b'"text"',
    b'{"a":' * 200_000,
    b"[" * 200_000,
    b'{"a": ' + b"9" * 6_000 + b"}",
    b"<!DOCTYPE html><title>Sign in</title>",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 1\n",
    b"PK\3\4" + b"\0" * 100,
    b"PK\5\6" + b"\0" * 18,
    b"\x80\2}q\0.",
    b"\x80\2cposix\nsystem\n(X\4\0\0\0trueR.",
    struct.pack("<Q", 2**63) + b"{}",
    struct.pack("<Q", 2) + b"{}",
    b"GGUF\3\0\0\0" + b"\xff" * 16,
    "{}".encode("utf-16"),
    b"\xff\xfe" * 500,
]
VALUES: list[Any] = [
    None, True, False, -1, 0, 1, 2, 3, 7, 2**31, 2**63, 10**9, 10**400, 0.5, 1e-300, 1e308, float("nan"), float("inf"),
    "", "text", "\x1b[31m\n" * 2_000, "x" * 100_000, [], [[]], [0] * 10_000, {}, {"a": {"a": {}}}, {"type": "x" * 900},
]  # fmt: skip
STRAYS = [
    "consolidated.02.safetensors", "consolidated.07.pth", "consolidated.20240501.pth", "consolidated.99999999.pth",
    "model.safetensors", "pytorch_model.bin", "model-00009-of-00009.safetensors", "adapter_config.json", "params.json",
    "config.json", "model.gguf", "tokenizer.model", "tokenizer.json", "tokenizer_config.json", "generation_config.json",
    "special_tokens_map.json", "model.safetensors.index.json", "pytorch_model.bin.index.json", "chat_template.jinja",
]  # fmt: skip


def a_file(rng: random.Random, folder: Path, *suffixes: str) -> Path | None:
    files = sorted(file for file in folder.iterdir() if not suffixes or file.suffix in suffixes)
    return rng.choice(files) if files else None


def without_values(data: bytes, file: Path) -> list[int]:
    """Places of a file outside the values of weights."""
    if file.suffix == ".safetensors":
        return list(range(8 + int.from_bytes(data[:8], "little")))
    if file.suffix == ".gguf":
        return list(range(gguf.GGUFReader(file).data_offset))
    places = set(range(len(data)))
    if file.suffix == ".pth":
        with zipfile.ZipFile(file) as archive:
            for member in archive.infolist():
                if "/data/" in member.filename:
                    start = member.header_offset + 30 + sum(struct.unpack_from("<2H", data, member.header_offset + 26))
                    places -= set(range(start, start + member.file_size))
    return sorted(places)


def flip_bits(rng: random.Random, folder: Path) -> None:
    file = a_file(rng, folder)
    assert file is not None
    data = bytearray(file.read_bytes())
    places = without_values(bytes(data), file)
    for place in rng.sample(places, min(rng.choice([1, 1, 1, 2, 8]), len(places))):
        data[place] ^= 1 << rng.randrange(8)
    file.write_bytes(data)


def flip_a_bit(rng: random.Random, folder: Path, suffix: str) -> None:
    """Flip one bit of a file with this suffix, outside the values of the weights."""
    file = a_file(rng, folder, suffix)
    if file is not None:
        data = bytearray(file.read_bytes())
        data[rng.choice(without_values(bytes(data), file))] ^= 1 << rng.randrange(8)
        file.write_bytes(data)


def flip_bits_of_a_pth(rng: random.Random, folder: Path) -> None:
    flip_a_bit(rng, folder, ".pth")


def flip_bits_of_a_gguf(rng: random.Random, folder: Path) -> None:
    flip_a_bit(rng, folder, ".gguf")


def truncate(rng: random.Random, folder: Path) -> None:
    file = a_file(rng, folder)
    assert file is not None
    data = file.read_bytes()
    file.write_bytes(data[: rng.choice([0, 1, 8, 100, len(data) // 2, len(data) - 1, rng.randrange(len(data))])])


def insert_bytes(rng: random.Random, folder: Path) -> None:
    file = a_file(rng, folder)
    assert file is not None
    data = file.read_bytes()
    place = rng.choice([0, len(data), rng.choice(without_values(data, file))])
    file.write_bytes(data[:place] + rng.randbytes(rng.choice([1, 4, 64])) + data[place:])


def replace_with_junk(rng: random.Random, folder: Path) -> None:
    file = a_file(rng, folder)
    assert file is not None
    file.write_bytes(rng.choice(JUNK))


def swap_files(rng: random.Random, folder: Path) -> None:
    files = sorted(folder.iterdir())
    if len(files) < 2:
        return
    first, second = rng.sample(files, 2)
    if first.stem[:12] == second.stem[:12] == "consolidated":
        return  # Meta's shards do not say which one they are
    contents = first.read_bytes(), second.read_bytes()
    first.write_bytes(contents[1])
    second.write_bytes(contents[0])


def remove_a_file(rng: random.Random, folder: Path) -> None:
    file = a_file(rng, folder)
    assert file is not None
    file.unlink()
    how = rng.randrange(3)
    if how == 1:
        file.mkdir()
    elif how == 2:
        file.symlink_to("nowhere")


def add_a_stray_file(rng: random.Random, folder: Path) -> None:
    file = folder / rng.choice(STRAYS)
    other = a_file(rng, folder)
    if not file.exists() and other is not None:
        file.write_bytes(rng.choice([rng.choice(JUNK), other.read_bytes()]))


def nodes(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in a JSON value, as the container and the key or index in it; of long ones, the ends."""
    if not isinstance(value, (dict, list)):
        return
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    for key in keys if len(keys) <= 40 else keys[:20] + keys[-20:]:
        yield value, key
        yield from nodes(value[key])


def change_json(rng: random.Random, folder: Path, *, only: tuple[str, ...] = ()) -> None:
    files = sorted(file for file in folder.glob("*.json") if not only or file.name in only)
    if not files:
        return
    file = rng.choice(files)
    value = json.loads(file.read_bytes())
    places = list(nodes(value))
    container, key = rng.choice(places)
    how = rng.randrange(5)
    if how == 0:
        del container[key]
    elif how == 1 and isinstance(container, dict):
        container[rng.choice(["x", key + "2", "\x1b]8;;x\x07" * 50, "y" * 9_000])] = container.pop(key)
    else:
        container[key] = rng.choice(VALUES)
    text = json.dumps(value)
    if how == 3 and isinstance(container, dict):
        text = text.replace(json.dumps({key: container[key]})[1:-1], f"{json.dumps(key)}: " + "[" * 100_000, 1)
    file.write_text(text)


def change_tokenizer(rng: random.Random, folder: Path) -> None:
    change_json(rng, folder, only=("tokenizer.json",))


def change_configuration(rng: random.Random, folder: Path) -> None:
    change_json(rng, folder, only=("config.json", "params.json"))


def change_safetensors_header(rng: random.Random, folder: Path) -> None:
    file = a_file(rng, folder, ".safetensors")
    if file is None:
        return
    data = file.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    container, key = rng.choice([place for place in nodes(header) if place[0] is not header.get("__metadata__")])
    container[key] = rng.choice([*VALUES, "F8_E4M3", "I8", "BOOL", "F16", "BF16", "F64", [2**62, 2**62], [10**9] * 8])
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data[end:])


def change_tensors_of_a_pth(rng: random.Random, folder: Path) -> None:
    file = a_file(rng, folder, ".pth")
    if file is None:
        return
    state: dict[Any, Any] = torch.load(file, weights_only=True)
    name = rng.choice(sorted(state))
    tensor = state[name]
    key, value = rng.choice(
        [
            (name, tensor.to_sparse()),
            (name, tensor.to("meta")),
            (name, tensor.int()),
            (name, tensor.to(torch.float8_e4m3fn)),
            (name, tensor.to(torch.complex64)),
            (name, tensor.flatten()),
            (name, tensor[:0]),
            (name, tensor * float("nan")),
            (name, torch.ones(1).expand(10**6, 10**6)),
            (name, tensor.tolist()),
            (name, {"a": tensor}),
            (3, tensor),
            (("a", 1), tensor),
            ("\x1b[31m" + "x" * 10_000, tensor),
            ("step", 3),
            ("step", torch.tensor(3)),
        ]
    )
    content: Any = {**state, key: value}
    torch.save(rng.choice([content, {"model": content}, [content], {"a": {"b": content}}]), file)


CHANGES: list[Change] = [
    flip_bits, truncate, insert_bytes, replace_with_junk, swap_files, remove_a_file, add_a_stray_file, change_json,
    change_tokenizer, change_configuration, flip_bits_of_a_pth, flip_bits_of_a_gguf, change_tensors_of_a_pth,
    change_safetensors_header,
]  # fmt: skip
# Changes that need one kind of checkpoint; the others are made to all kinds.
ONLY = {
    flip_bits_of_a_pth: "pth",
    flip_bits_of_a_gguf: "gguf",
    change_tensors_of_a_pth: "pth",
    change_safetensors_header: "hf",
}


def too_slow(signum: int, frame: FrameType | None) -> None:
    raise TimeoutError(f"more than {SECONDS} s")


def status(name: str) -> int:
    """A line of the kernel's account of this process's memory, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024


def same_weights(model: Transformer, saved: dict[str, Tensor]) -> bool:
    found = dict(model.named_parameters())
    return found.keys() == saved.keys() and all(torch.equal(found[name], saved[name]) for name in saved)


def check(folder: Path, saved: dict[str, Tensor], seed: int) -> bool:
    """Load a changed checkpoint and encode a text; whether it was refused. AssertionError if it misbehaves."""
    resettable = Path("/proc/self/clear_refs").exists()
    if resettable:
        Path("/proc/self/clear_refs").write_text("5")
        before = status("VmRSS")
    start, refused, notes = time.monotonic(), "", list[warnings.WarningMessage]()
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        with warnings.catch_warnings(record=True) as notes:
            warnings.simplefilter("always")
            model = load_model(folder, device="cpu")
            if model.tokenizer is not None:
                ids = model.tokenizer.encode("Hello, world! 12345\n")
                model.tokenizer.decode(ids)
    except WorkbenchError as error:
        refused = str(error)
        assert refused and len(refused) < 600 and refused.count("\n") <= 1 and "\x1b" not in refused, (seed, refused)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    assert time.monotonic() - start < SECONDS, seed
    if resettable:
        assert status("VmHWM") - before < MEMORY, seed
    for note in notes:
        assert issubclass(note.category, WorkbenchWarning) and len(str(note.message)) < 600, (seed, note.message)
    if refused:
        return True
    rotary = model.config.n_heads, model.config.n_kv_heads, model.config.head_dim
    # Another legal number of heads reorders the rows of wq and wk.
    assert rotary != (8, 4, 4) or same_weights(model, saved), (seed, model.config)
    return False


def run(originals: list[Original], folder: Path, seeds: range) -> int:
    previous, refused = signal.signal(signal.SIGALRM, too_slow), 0
    try:
        for seed in seeds:
            rng = random.Random(seed)
            change = rng.choice(CHANGES)
            original, saved = rng.choice([o for o in originals if o[0].name == ONLY.get(change, o[0].name)])
            shutil.copytree(original, folder)
            try:
                change(rng, folder)
                refused += check(folder, saved, seed)
            except Exception as error:
                pytest.fail(f"seed {seed}, {original.name}, {change.__name__}: {type(error).__name__}: {error!s:.2000}")
            finally:
                shutil.rmtree(folder)
    finally:
        signal.signal(signal.SIGALRM, previous)
    return refused


def test_a_few_broken_checkpoints(originals: list[Original], tmp_path: Path) -> None:
    assert run(originals, tmp_path / "broken", range(90)) > 30


@pytest.mark.slow
def test_a_thousand_broken_checkpoints(originals: list[Original], tmp_path: Path) -> None:
    assert run(originals, tmp_path / "broken", range(1_000)) > 400
