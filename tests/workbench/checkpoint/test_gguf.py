"""GGUF files: logits against Hugging Face's model, configurations, and damaged files."""

import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import workbench as wb
from tests.workbench.checkpoint.checkpoints import gguf_name, hf_llama, hf_model, make_config, write_gguf
from tests.workbench.checkpoint.test_gguf_blocks import TYPES, decoded, random_rows
from workbench.checkpoint import convert, fingerprint, read_config
from workbench.checkpoint.encoded_tensor import EncodedTensor
from workbench.checkpoint.gguf import quantisation
from workbench.checkpoint.manifest import open_checkpoint
from workbench.cli import main
from workbench.config import LinearScaling, Llama3Scaling, YarnScaling
from workbench.errors import CheckpointError, ConfigError, WorkbenchError
from workbench.gguf_file import gguf_metadata, read_header

gguf = pytest.importorskip("gguf", reason="gguf is not installed")

pytestmark = pytest.mark.filterwarnings("ignore:.*this GGUF file has no tokenizer")
IDS = torch.arange(40).view(1, -1) * 7 % 128


def assert_equal_logits(ours: Any, theirs: Any, ids: Tensor = IDS, atol: float = 1e-5) -> None:
    with torch.no_grad():
        expected = theirs(ids).logits
        assert expected.std() > 0.1
        assert torch.allclose(ours(ids), expected, atol=atol, rtol=1e-5), (ours(ids) - expected).abs().max()


def rounded(theirs: Any, kind: str) -> Any:
    """The model with matrices as they are after they were stored in a type."""
    number = gguf.GGMLQuantizationType[kind]
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.dim() == 2:
                stored = gguf.quants.quantize(parameter.numpy(), number)
                parameter.copy_(torch.from_numpy(gguf.quants.dequantize(stored, number)))
    return theirs


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("F32", torch.float32),
        ("F16", torch.float16),
        ("BF16", torch.bfloat16),
        ("Q8_0", torch.bfloat16),
        ("Q5_1", torch.bfloat16),
        ("Q5_0", torch.bfloat16),
        ("Q4_1", torch.bfloat16),
        ("Q4_0", torch.bfloat16),
    ],
)
@pytest.mark.parametrize("tied", [False, True])
def test_logits_equal_hugging_face(tmp_path: Path, kind: str, dtype: torch.dtype, tied: bool) -> None:
    theirs = hf_model(make_config(tied_output=tied))
    file = write_gguf(theirs, tmp_path / "model.gguf", kind=kind)
    ours = wb.load_model(file, dtype="float32")
    # The rows of q and k are in another order in the file, which rounding to blocks along a row does not notice.
    assert_equal_logits(ours, rounded(theirs, kind))
    assert ours.config == make_config(tied_output=tied)
    assert wb.load_model(tmp_path).dtype == dtype


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS", "TQ1_0", "MXFP4"])
def test_logits_of_k_quants(tmp_path: Path, kind: str) -> None:
    """Random blocks, decoded by the test's own decoder, in Hugging Face's model."""
    config = make_config(dim=256, n_layers=1, ffn_dim=256)
    theirs = hf_model(config)
    blocks, values = {}, {}
    for seed, (name, tensor) in enumerate(theirs.state_dict().items()):
        if tensor.dim() != 2:
            continue
        rows = random_rows(kind, *tensor.shape, seed=seed, scale=1e-3)
        blocks[gguf_name(name)], matrix = rows, decoded(kind, rows)
        if "q_proj" in name or "k_proj" in name:  # from adjacent pairs to halves, the inverse of the converter's rule
            count = config.n_heads if "q_proj" in name else config.n_kv_heads
            matrix = matrix.reshape(count, -1, 2, 256).swapaxes(1, 2).reshape(matrix.shape)
        values[name] = matrix
    theirs.load_state_dict(values, strict=False)
    file = write_gguf(theirs, tmp_path / "model.gguf", kind=kind, blocks=blocks)
    with torch.no_grad():
        expected = theirs(IDS).logits
        assert torch.allclose(wb.load_model(file, dtype="float32")(IDS), expected, atol=1e-3 * expected.std().item())


def test_plain_tensors_stay_in_the_mapped_file_and_blocks_are_decoded_in_parts(tmp_path: Path) -> None:
    theirs = hf_model(make_config())
    plain = open_checkpoint(write_gguf(theirs, tmp_path / "plain.gguf", kind="F16"))
    assert all(isinstance(weight.pieces[0].tensor, Tensor) for weight in plain.weights)
    assert not any(weight.half_split for weight in plain.weights)
    encoded = open_checkpoint(write_gguf(theirs, tmp_path / "encoded.gguf", kind="Q8_0"))
    matrices = [weight for weight in encoded.weights if len(weight.spec.shape) == 2]
    assert all(isinstance(weight.pieces[0].tensor, EncodedTensor) for weight in matrices)


def test_convert_writes_the_decoded_weights(tmp_path: Path) -> None:
    theirs = hf_model(make_config())
    file = write_gguf(theirs, tmp_path / "model.gguf", kind="Q4_0")
    convert(file, tmp_path / "hf", layout="hf")
    ours, again = wb.load_model(file), wb.load_model(tmp_path / "hf")
    assert ours.dtype == again.dtype == torch.bfloat16
    for name, parameter in ours.state_dict().items():
        assert torch.equal(parameter, again.state_dict()[name].to(parameter.dtype)), name


# Which file a path names


def test_a_folder_with_one_file_or_several(tmp_path: Path) -> None:
    theirs = hf_model(make_config())
    write_gguf(theirs, tmp_path / "first.gguf")
    assert_equal_logits(wb.load_model(tmp_path), theirs)
    write_gguf(theirs, tmp_path / "second.gguf")
    with pytest.raises(CheckpointError, match="2 GGUF files; name one of them: first.gguf, second.gguf"):
        wb.load_model(tmp_path)
    assert_equal_logits(wb.load_model(tmp_path / "second.gguf"), theirs)
    theirs.save_pretrained(tmp_path)  # with a config.json the folder is Hugging Face's
    assert read_config(tmp_path) == make_config()


def split(file: Path, folder: Path, parts: int = 2) -> list[Path]:
    """The file in parts, as llama.cpp's gguf-split writes them: the metadata in the first."""
    reader = gguf.GGUFReader(file)
    folder.mkdir()
    paths = []
    for number in range(parts):
        paths.append(folder / f"model-{number + 1:05d}-of-{parts:05d}.gguf")
        writer = gguf.GGUFWriter(paths[-1], "llama")
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", parts)
        if not number:
            for key, field in reader.fields.items():
                if key.startswith("llama."):
                    writer.add_key_value(key, field.contents(), field.types[0])
        for tensor in reader.tensors[number::parts]:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return paths


def test_split_files(tmp_path: Path) -> None:
    theirs = hf_model(make_config())
    parts = split(write_gguf(theirs, tmp_path / "model.gguf"), tmp_path / "parts", 3)
    for path in (tmp_path / "parts", *parts):
        assert_equal_logits(wb.load_model(path), theirs)
    assert fingerprint(parts[0]) == fingerprint(tmp_path / "parts")
    parts[1].unlink()
    with pytest.raises(CheckpointError, match="00002-of-00003.gguf is missing"):
        wb.load_model(tmp_path / "parts")


def test_the_hash_follows_the_file(tmp_path: Path) -> None:
    file = write_gguf(hf_model(make_config()), tmp_path / "model.gguf")
    source = wb.load_model(file).source
    assert source is not None and source.path == file and source.checkpoint_sha256 == fingerprint(file)
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(1, 1))
    assert fingerprint(file) != source.checkpoint_sha256


def test_info_says_how_the_weights_are_stored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_gguf(hf_model(make_config()), tmp_path / "model.gguf", kind="Q8_0")
    n_blocks, n_plain = make_config().n_params - 5 * 64, 5 * 64
    stored = quantisation((file,))
    assert stored.types == {"Q8_0": 16, "F32": 5}
    assert stored.bits_per_weight == pytest.approx((8.5 * n_blocks + 32 * n_plain) / make_config().n_params)
    assert main(["info", str(file)]) == 0
    assert "Q8_0 (16 tensors), F32 (5 tensors); 8.6" in capsys.readouterr().out
    assert main(["info", str(file), "--json"]) == 0
    assert '"Q8_0": 16' in capsys.readouterr().out


# Metadata


def divisors_of_llama_cpp(theta: float, head_dim: int, factor: float, context: int = 8192) -> Tensor:
    """The divisors as conversion/llama.py in llama.cpp computes them, written down again."""
    values = []
    for pair in range(head_dim // 2):
        wavelength = 2 * np.pi * theta ** (2 * pair / head_dim)
        if wavelength < context / 4:
            values.append(1.0)
        elif wavelength > context:
            values.append(factor)
        else:
            smooth = (context / wavelength - 1) / 3
            values.append(1 / ((1 - smooth) / factor + smooth))
    return torch.tensor(values, dtype=torch.float32)


@pytest.mark.parametrize(("factor", "context"), [(8.0, 8192), (32.0, 8192), (4.0, 1024), (16.0, 5000)])
def test_the_scaling_of_llama_3_is_read_from_the_divisors(tmp_path: Path, factor: float, context: int) -> None:
    scaling = Llama3Scaling(factor=factor, original_context=context)
    config = make_config(
        n_heads=2, n_kv_heads=1, rope_theta=500_000.0, rope_scaling=scaling, max_seq_len=int(context * factor)
    )
    theirs = hf_model(config)
    divisors = divisors_of_llama_cpp(500_000.0, 32, factor, context)
    assert len(divisors.unique()) > 1
    file = write_gguf(theirs, tmp_path / "model.gguf", extra={"rope_freqs.weight": divisors})
    assert read_config(file) == config
    ids = torch.arange(600).view(1, -1) % 128
    assert_equal_logits(wb.load_model(file), theirs, ids, atol=1e-4)


@pytest.mark.parametrize(
    ("scaling", "metadata"),
    [
        (LinearScaling(4.0), {"type": "linear", "factor": 4.0}),
        (YarnScaling(4.0, 64), {"type": "yarn", "factor": 4.0, "original_context_length": 64}),
        (
            YarnScaling(8.0, 32, beta_fast=24.0, beta_slow=2.0),
            {
                "type": "yarn",
                "factor": 8.0,
                "original_context_length": 32,
                "yarn_beta_fast": 24.0,
                "yarn_beta_slow": 2.0,
            },
        ),
    ],
)
def test_linear_and_yarn_scaling_are_read_from_the_metadata(
    tmp_path: Path, scaling: Any, metadata: dict[str, Any]
) -> None:
    config = make_config(n_heads=2, n_kv_heads=1, rope_scaling=scaling)
    rope: dict[str, Any] = {"rope_type": metadata["type"], "rope_theta": config.rope_theta, "factor": scaling.factor}
    if isinstance(scaling, YarnScaling):
        rope |= {"beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow}
        rope["original_max_position_embeddings"] = scaling.original_context
    theirs = hf_llama(num_attention_heads=2, num_key_value_heads=1, head_dim=32, rope_parameters=rope)
    keys = {f"rope.scaling.{name}": value for name, value in metadata.items()}
    file = write_gguf(theirs, tmp_path / "model.gguf", metadata=keys)
    assert read_config(file) == config
    assert_equal_logits(wb.load_model(file), theirs, torch.arange(200).view(1, -1) % 128)
    attention = {"rope.scaling.yarn_attn_factor": 0.5, **keys}
    with pytest.raises(ConfigError, match="yarn_attn_factor"):
        read_config(write_gguf(theirs, tmp_path / "other.gguf", metadata=attention))


def test_divisors_without_a_ramp(tmp_path: Path) -> None:
    """A head of two dimensions has one pair, which says nothing of the context."""
    config = make_config(n_heads=32, n_kv_heads=2)
    theirs = hf_model(config)
    ones = {"rope_freqs.weight": torch.ones(1)}
    assert read_config(write_gguf(theirs, tmp_path / "ones.gguf", extra=ones)).rope_scaling is None
    odd = {"rope_freqs.weight": torch.full((1,), 3.0)}
    with pytest.raises(ConfigError, match="rope_freqs.weight is not Llama 3.1's RoPE scaling"):
        read_config(write_gguf(theirs, tmp_path / "odd.gguf", extra=odd))


def test_other_divisors_are_refused(tmp_path: Path) -> None:
    theirs = hf_model(make_config(n_heads=2, n_kv_heads=1, rope_theta=500_000.0))
    divisors = divisors_of_llama_cpp(500_000.0, 32, 8.0)
    changed = divisors.clone()
    changed[10] *= 1.01
    for number, values in enumerate((changed, divisors[:-1], divisors * 0, divisors * torch.nan, divisors.flip(0))):
        file = write_gguf(theirs, tmp_path / f"{number}.gguf", extra={"rope_freqs.weight": values})
        with pytest.raises(ConfigError, match="rope_freqs.weight"):
            read_config(file)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"expert_count": 8}, "expert_count is 8"),
        ({"attention.sliding_window": 100}, "sliding_window is 100"),
        ({"rope.dimension_count": 4}, "rope.dimension_count is 4"),
        ({"attention.value_length": 4}, "value_length is 4"),
        ({"attention.causal": False}, "attention.causal"),
        ({"logit_scale": 0.5}, "logit_scale"),
        ({"rope.scaling.type": "longrope", "rope.scaling.factor": 4.0}, "longrope"),
        ({"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}, "original_context_length is missing"),
        ({"block_count": None}, "llama.block_count is missing"),
        ({"block_count": 5}, "missing"),
        ({"block_count": 1}, "not a weight"),
        ({"embedding_length": "64"}, "must be a whole number"),
        ({"embedding_length": 32}, "head_count|wrong shape|dimensions"),
        ({"attention.head_count_kv": [2, 1]}, "head_count_kv"),
        ({"attention.head_count": 0}, "n_heads|head"),
        ({"attention.layer_norm_rms_epsilon": None}, "layer_norm_rms_epsilon is missing"),
        ({"attention.layer_norm_rms_epsilon": float("nan")}, "must be a number"),
        ({"vocab_size": 100}, "wrong shape"),
        ({"block_count": 2**32 - 1}, "4,294,967,295.*missing"),
    ],
)
def test_metadata_that_does_not_fit_is_refused(tmp_path: Path, metadata: dict[str, Any], message: str) -> None:
    file = write_gguf(hf_model(make_config()), tmp_path / "model.gguf", metadata=metadata)
    with pytest.raises(WorkbenchError, match=message) as error:
        wb.load_model(file)
    assert len(str(error.value)) < 600


def test_defaults_and_lists_in_the_metadata(tmp_path: Path) -> None:
    metadata = {"attention.key_length": None, "attention.value_length": None, "rope.dimension_count": None}
    metadata |= {"attention.head_count_kv": [2, 2], "vocab_size": None, "attention.sliding_window": 256}
    metadata |= {"rope.freq_base": None, "rope.scaling.type": "linear", "rope.scaling.factor": 1.0}
    file = write_gguf(hf_model(make_config()), tmp_path / "model.gguf", metadata=metadata)
    assert read_config(file) == make_config()


def test_other_architectures_are_refused(tmp_path: Path) -> None:
    for architecture, message in (("qwen2", "'qwen2'; only 'llama'"), ("x" * 3000, "only 'llama'")):
        writer = gguf.GGUFWriter(tmp_path / "model.gguf", architecture)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        with pytest.raises(ConfigError, match=message) as error:
            wb.load_model(tmp_path / "model.gguf")
        assert len(str(error.value)) < 600


def test_tensors_that_do_not_belong_are_refused(tmp_path: Path) -> None:
    bias = {"blk.0.attn_q.bias": torch.ones(64)}
    file = write_gguf(hf_model(make_config()), tmp_path / "model.gguf", extra=bias)
    with pytest.raises(CheckpointError, match=r"blk.0.attn_q.bias.* is not a weight"):
        wb.load_model(file)


def test_a_tensor_that_is_not_finite(tmp_path: Path) -> None:
    theirs = hf_model(make_config())
    rows = random_rows("Q8_0", 64, 96)
    rows[5, 34:36] = np.frombuffer(struct.pack("<e", np.inf), np.uint8)
    rows[5, 36] = 3
    file = write_gguf(theirs, tmp_path / "model.gguf", kind="Q8_0", blocks={"blk.1.ffn_down.weight": rows})
    with pytest.raises(CheckpointError, match=r"blk.1.ffn_down.weight.*finite.*\[5, 32\]"):
        wb.load_model(file)


# The header


def string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def header(n_tensors: int, n_keys: int, rest: bytes = b"", version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_keys) + rest


def tensor_info(name: bytes, sizes: list[int], kind: int, offset: int = 0) -> bytes:
    return string(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset)


LLAMA = string(b"general.architecture") + struct.pack("<I", 8) + string(b"llama")
DAMAGED = {
    "empty": b"",
    "the magic alone": b"GGUF",
    "another file": b"PK\x03\x04" * 10,
    "version 1": header(0, 0, version=1),
    "version 99": header(0, 0, version=99),
    "big-endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
    "no counts": b"GGUF\3\0\0\0\0\0",
    "2^60 tensors": header(1 << 60, 0),
    "2^60 keys": header(0, 1 << 60),
    "a million tensors": header(1_000_000, 0),
    "a key of 2^62 bytes": header(0, 1, struct.pack("<Q", 1 << 62)),
    "a text of 2^63 bytes": header(0, 1, string(b"a") + struct.pack("<IQ", 8, 1 << 63)),
    "2^50 elements": header(0, 1, string(b"a") + struct.pack("<IIQ", 9, 0, 1 << 50)),
    "2^40 texts": header(0, 1, string(b"a") + struct.pack("<IIQ", 9, 8, 1 << 40)),
    "lists of lists": header(0, 1, string(b"a") + struct.pack("<IIQ", 9, 9, 1) * 3),
    "unknown value type": header(0, 1, string(b"a") + struct.pack("<I", 77)),
    "unknown element type": header(0, 1, string(b"a") + struct.pack("<IIQ", 9, 77, 1)),
    "a key twice": header(0, 2, LLAMA + LLAMA),
    "key not UTF-8": header(0, 1, string(b"\xff\xfe") + struct.pack("<I", 99)),
    "100 dimensions": header(1, 1, LLAMA + tensor_info(b"a", [1] * 100, 0)),
    "no dimension": header(1, 1, LLAMA + tensor_info(b"a", [], 0)),
    "a size of 0": header(1, 1, LLAMA + tensor_info(b"a", [0, 4], 0)),
    "2^63 values": header(1, 1, LLAMA + tensor_info(b"a", [1 << 31, 1 << 32], 0)),
    "a tensor twice": header(2, 1, LLAMA + tensor_info(b"a", [1], 0) * 2 + bytes(64)),
    "beyond the end": header(1, 1, LLAMA + tensor_info(b"token_embd.weight", [64, 8], 0)),
    "offset 2^63": header(1, 1, LLAMA + tensor_info(b"token_embd.weight", [1], 0, 1 << 63)),
    "type 5000": header(1, 1, LLAMA + tensor_info(b"token_embd.weight", [32], 5000) + bytes(64)),
    "a type without blocks to decode": header(1, 1, LLAMA + tensor_info(b"token_embd.weight", [256], 15) + bytes(900)),
    "rows of half a block": header(1, 1, LLAMA + tensor_info(b"token_embd.weight", [16, 2], 8) + bytes(99)),
    "odd offset": header(1, 1, LLAMA + tensor_info(b"token_embd.weight", [2], 0, 3) + bytes(99)),
    "alignment 3": header(
        1, 2, LLAMA + string(b"general.alignment") + struct.pack("<II", 4, 3) + tensor_info(b"a", [1], 0) + bytes(64)
    ),
    "no tensor": header(0, 1, LLAMA),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files_are_one_error(tmp_path: Path, name: str) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(DAMAGED[name])
    for read in (wb.load_model, read_config):
        with pytest.raises(WorkbenchError, match="model.gguf") as error:
            read(file)
        assert len(str(error.value)) < 600 and "\n" not in str(error.value)


def test_truncated_and_changed_files(tmp_path: Path) -> None:
    """Cut anywhere it is one error; with a changed byte of the header it is one error, or loads."""
    data = write_gguf(hf_model(make_config(n_layers=1)), tmp_path / "model.gguf", kind="Q8_0").read_bytes()
    file = tmp_path / "changed.gguf"
    start = min(tensor.offset for tensor in read_header(tmp_path / "model.gguf").tensors.values())
    for number, length in enumerate([*range(0, start, 61), start, len(data) - 1]):
        file.write_bytes(data[:length])
        os.utime(file, ns=(number, number))
        with pytest.raises(WorkbenchError):
            wb.load_model(file)
    random = np.random.default_rng(0)
    refused = 0
    for number in range(150):
        changed = bytearray(data)
        changed[random.integers(4, start)] = random.integers(256)
        file.write_bytes(changed)
        os.utime(file, ns=(number, number))
        try:
            wb.load_model(file)
        except WorkbenchError as error:
            refused += 1
            assert len(str(error)) < 600
    assert 75 < refused < 150


def test_metadata_of_every_type(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_uint8("a", 255)
    writer.add_int8("b", -1)
    writer.add_uint64("c", 2**63)
    writer.add_float64("d", 0.1)
    writer.add_bool("e", True)
    writer.add_array("f", ["x", "<0x0A>", "é"])
    writer.add_array("g", [1.5, -2.0])
    writer.add_array("h", [True, False])
    writer.add_token_list([b"\xff\xfe", b"a"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    metadata = gguf_metadata(tmp_path / "model.gguf")
    assert [metadata[key] for key in "abcde"] == [255, -1, 2**63, 0.1, True]
    assert metadata["f"] == ["x", "<0x0A>", "é"] and metadata["g"] == [1.5, -2.0] and metadata["h"] == [True, False]
    assert [token.encode("utf-8", "surrogateescape") for token in metadata["tokenizer.ggml.tokens"]] == [
        b"\xff\xfe",
        b"a",
    ]


def test_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain numbers need no library; blocks say what to install."""
    theirs = hf_model(make_config())
    plain = write_gguf(theirs, tmp_path / "plain.gguf")
    encoded = write_gguf(theirs, tmp_path / "encoded.gguf", kind="Q4_0")
    from workbench.checkpoint import gguf as module

    module._decodable.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    assert_equal_logits(wb.load_model(plain), theirs)
    with pytest.raises(WorkbenchError, match="gguf is not installed.*formats"):
        wb.load_model(encoded)


# A real model


@pytest.mark.real
def test_a_real_model_equals_transformers(smollm2_gguf: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        smollm2_gguf.parent, gguf_file=smollm2_gguf.name, dtype=torch.float32
    )
    ours = wb.load_model(smollm2_gguf, dtype="float32")
    ids = torch.randint(0, 49_152, (2, 100), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(ours(ids), theirs(ids).logits, atol=1e-4, rtol=1e-5)
    stored = quantisation((smollm2_gguf,))
    assert str(stored).startswith("Q4_1 (210 tensors), F32 (61 tensors), Q8_0 (1 tensor); 5.74 bits per weight")


def test_types_cover_the_library() -> None:
    """Types that the library decodes and that have no test here use tables of points (grids)."""
    decodes = {kind.name for kind in gguf.quants._type_traits} - {"BF16"}
    assert decodes - TYPES.keys() <= {
        "IQ1_S",
        "IQ1_M",
        "IQ2_XXS",
        "IQ2_XS",
        "IQ2_S",
        "IQ3_XXS",
        "IQ3_S",
        "NVFP4",
        "Q1_0",
    }
