"""Float8 weights with scales: values to the bit, logits against transformers, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import workbench as wb
from tests.workbench.checkpoint.checkpoints import hf_model, make_config
from workbench.checkpoint.float8 import Float8, ScaledFloat8, float8_scaling
from workbench.checkpoint.manifest import open_checkpoint
from workbench.errors import CheckpointError, ConfigError, WorkbenchWarning

CONFIG = make_config(dim=160, n_heads=5, n_kv_heads=5, ffn_dim=200)  # no multiple of a block
IDS = torch.arange(30).view(1, -1) * 11 % 128
FBGEMM = {"quant_method": "fbgemm_fp8", "modules_to_not_convert": ["lm_head"], "activation_scale_ub": 1200.0}
FINE = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}


def compressed(strategy: str, **weights: Any) -> dict[str, Any]:
    scheme = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": strategy, **weights}
    group = {"targets": ["Linear"], "weights": scheme, "input_activations": None}
    return {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {"group_0": group}}


def write_float8(folder: Path, settings: dict[str, Any] | None, scale_name: str, shape: str) -> dict[str, Tensor]:
    """A checkpoint whose linear layers are float8 with scales of a shape; returns the values in float32."""
    theirs = hf_model(CONFIG)
    theirs.save_pretrained(folder)
    generator = torch.Generator().manual_seed(2)
    stored, values = {}, {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        values[name] = stored[name] = tensor.to(torch.bfloat16)
        if "proj" not in name:
            continue
        rows, columns = tensor.shape
        sizes = {"tensor": (1, 1), "rows": (rows, 1), "blocks": (-(-rows // 128), -(-columns // 128))}[shape]
        scales = torch.rand(sizes, generator=generator) * 0.01 + 0.001
        expanded = scales.repeat_interleave(-(-rows // sizes[0]) if shape != "blocks" else 128, 0)[:rows]
        expanded = expanded.repeat_interleave(columns if shape != "blocks" else 128, 1)[:, :columns]
        stored[name] = (tensor.float() / expanded).clamp(-448, 448).to(torch.float8_e4m3fn)
        stored[name.replace("weight", scale_name)] = scales.reshape(-1) if shape == "tensor" else scales
        values[name] = stored[name].float() * expanded
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text()) | {"dtype": "bfloat16"}
    if settings is not None:
        config["quantization_config"] = settings
    (folder / "config.json").write_text(json.dumps(config))
    return values


KINDS = {
    "fbgemm, rows": (FBGEMM, "weight_scale", "rows"),
    "fine-grained, blocks": (FINE, "weight_scale_inv", "blocks"),
    "fp8, one scale": ({"quant_method": "fp8", "activation_scheme": "static"}, "weight_scale", "tensor"),
    "compressed-tensors, tensor": (compressed("tensor"), "weight_scale", "tensor"),
    "compressed-tensors, channel": (compressed("channel"), "weight_scale", "rows"),
    "compressed-tensors, block": (compressed("block", block_structure=[128, 128]), "weight_scale", "blocks"),
}


@pytest.mark.parametrize("name", KINDS)
def test_logits_equal_those_of_scale_times_value(tmp_path: Path, name: str) -> None:
    values = write_float8(tmp_path, *KINDS[name])
    with pytest.warns(WorkbenchWarning, match="float8 with scales"):
        ours = wb.load_model(tmp_path, dtype="float32")
    theirs = hf_model(CONFIG)
    theirs.load_state_dict({name: tensor.float() for name, tensor in values.items()})
    with torch.no_grad():
        assert torch.allclose(ours(IDS), theirs(IDS).logits, atol=1e-5, rtol=1e-5)
    # To the bit, where the rows are not permuted.
    assert torch.equal(ours.layers[1].feed_forward.w2.weight, values["model.layers.1.mlp.down_proj.weight"])
    assert torch.equal(ours.layers[0].attention.wv.weight, values["model.layers.0.self_attn.v_proj.weight"])
    with pytest.warns(WorkbenchWarning):
        half = wb.load_model(tmp_path)
    assert half.dtype == torch.bfloat16 and half.notes
    assert torch.equal(half.layers[1].feed_forward.w2.weight, values["model.layers.1.mlp.down_proj.weight"].bfloat16())


def test_equals_transformers_dequantisation(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = make_config(dim=128, n_heads=4, n_kv_heads=4, ffn_dim=256)
    theirs = hf_model(config)
    theirs.save_pretrained(tmp_path)
    stored = {}
    for name, tensor in load_file(tmp_path / "model.safetensors").items():
        stored[name] = tensor
        if "proj" in name:
            stored[name] = (tensor * 300).to(torch.float8_e4m3fn)
            stored[name + "_scale_inv"] = torch.rand(tensor.shape[0] // 128, tensor.shape[1] // 128) / 300
    save_file(stored, tmp_path / "model.safetensors", {"format": "pt"})
    values = json.loads((tmp_path / "config.json").read_text()) | {"quantization_config": FINE}
    (tmp_path / "config.json").write_text(json.dumps(values))
    settings = transformers.FineGrainedFP8Config(dequantize=True)
    theirs = transformers.LlamaForCausalLM.from_pretrained(
        tmp_path, quantization_config=settings, dtype=torch.float32, device_map="cpu"
    )
    with pytest.warns(WorkbenchWarning, match="float8"):
        ours = wb.load_model(tmp_path, dtype="float32")
    with torch.no_grad():
        assert torch.allclose(ours(IDS), theirs(IDS).logits, atol=1e-5, rtol=1e-5)


def test_values_worked_by_hand() -> None:
    """E4M3: 1 sign bit, 4 exponent bits with bias 7, 3 bits of fraction; 0x38 is 1, 0xC4 -3, 0x01 2^-9, 0x7E 448."""
    stored = torch.tensor([[0x38, 0xC4, 0x01], [0x7E, 0x00, 0x34]], dtype=torch.uint8).view(torch.float8_e4m3fn)
    scales = torch.tensor([[0.5, 3.0]])
    tensor = ScaledFloat8(stored.shape, torch.bfloat16, stored, scales, (2, 2))
    expected = torch.tensor([[0.5, -1.5, 3 * 2**-9], [224.0, 0.0, 3 * 0.75]])
    assert torch.equal(tensor[(slice(0, 2), slice(0, 3))], expected)
    assert torch.equal(tensor[(slice(1, 2), slice(1, 3))], expected[1:, 1:])


def test_a_scale_in_another_file_than_its_weight(tmp_path: Path) -> None:
    values = write_float8(tmp_path, FBGEMM, "weight_scale", "rows")
    stored = load_file(tmp_path / "model.safetensors")
    scales = {name: stored.pop(name) for name in list(stored) if name.endswith("_scale")}
    (tmp_path / "model.safetensors").unlink()
    files = {"model-00001-of-00002.safetensors": stored, "model-00002-of-00002.safetensors": scales}
    for name, tensors in files.items():
        save_file(tensors, tmp_path / name)
    weight_map = {tensor: name for name, tensors in files.items() for tensor in tensors}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.warns(WorkbenchWarning):
        ours = wb.load_model(tmp_path, dtype="float32")
    assert torch.equal(ours.layers[1].feed_forward.w1.weight, values["model.layers.1.mlp.gate_proj.weight"])


def test_activation_scales_are_not_used(tmp_path: Path) -> None:
    write_float8(tmp_path, FBGEMM, "weight_scale", "rows")
    stored = load_file(tmp_path / "model.safetensors")
    for layer in "01":
        attention = f"model.layers.{layer}.self_attn."
        for name in ("q_proj.input_scale", "q_proj.input_scale_ub", "k_proj.k_scale", "k_proj.output_scale", "k_scale"):
            stored[attention + name] = torch.tensor([2.0])
    save_file(stored, tmp_path / "model.safetensors")
    with pytest.warns(WorkbenchWarning, match="activations are not quantised"):
        wb.load_model(tmp_path)


NAME = "model.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("settings", "change", "message"),
    [
        (FBGEMM, {NAME + "_scale": None}, "float8 and has no scale"),
        (FBGEMM, {NAME + "_scale": torch.ones(160, 2)}, r"shape \[160, 2\]"),
        (FBGEMM, {NAME + "_scale": torch.ones(2, 2)}, "one for each row"),
        (FBGEMM, {NAME + "_scale": torch.ones(160, 1, dtype=torch.int32)}, "floating type"),
        (FBGEMM, {NAME + "_scale_inv": torch.ones(160, 1)}, "2 scales"),
        (FBGEMM, {NAME + "_scale": torch.full((160, 1), torch.nan)}, "finite"),
        (FBGEMM, {"model.layers.0.self_attn.q_proj.weight_zero_point": torch.ones(160, 1)}, "not a weight"),
        (FBGEMM, {"model.norm.weight_scale": torch.ones(1)}, "not a weight"),
        (None, {}, "quantization_config"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, settings: dict[str, Any] | None, change: dict[str, Tensor | None], message: str
) -> None:
    write_float8(tmp_path, settings, "weight_scale", "rows")
    stored: dict[str, Any] = load_file(tmp_path / "model.safetensors") | change
    save_file({k: v for k, v in stored.items() if v is not None}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=message) as error:
        wb.load_model(tmp_path)
    assert len(str(error.value)) < 600


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, r"bitsandbytes.*dequantize\(\)"),
        ({"load_in_8bit": True}, r"bitsandbytes.*dequantize\(\)"),
        ({"quant_method": "awq", "bits": 4}, "awq"),
        ({"quant_method": "gptq", "bits": 4}, "gptq.*model that it was made from"),
        ({"quant_method": "torchao"}, "torchao"),
        ({"quant_method": "mxfp4"}, "mxfp4"),
        ({"quant_method": "x" * 5000}, "xxx"),
        ({"bits": 4}, "unknown"),
        ("fp8", "must be an object"),
        (compressed("group", num_bits=4, type="int"), r"4-bit int.*dequantize=True"),
        (compressed("channel", type="int"), "8-bit int"),
        (compressed("tensor") | {"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparse-24-bitmask"),
        (compressed("tensor") | {"config_groups": {}}, "compressed-tensors"),
        (FINE | {"weight_block_size": [0, 128]}, "block"),
        (FINE | {"weight_block_size": [128] * 900}, "block"),
    ],
)
def test_other_quantisations_are_refused_by_name(tmp_path: Path, settings: Any, message: str) -> None:
    hf_model(make_config()).save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text()) | {"quantization_config": settings}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=message) as error:
        wb.load_model(tmp_path)
    assert len(str(error.value)) < 600


def test_the_parts_of_a_tensor_parallel_run(tmp_path: Path) -> None:
    write_float8(tmp_path, FINE, "weight_scale_inv", "blocks")
    checkpoint = open_checkpoint(tmp_path)
    weight = next(weight for weight in checkpoint.weights if weight.spec.name == "layers.0.feed_forward.w2.weight")
    complete = weight.pieces[0].tensor[(slice(0, 160), slice(0, 200))]
    assert torch.equal(weight.pieces[0].tensor[(slice(0, 160), slice(100, 200))], complete[:, 100:])


def test_the_configuration_decides() -> None:
    assert float8_scaling({}, "config.json") is None
    assert float8_scaling({"quantization_config": FINE}, "config.json") == Float8("fp8", (128, 128))
    assert float8_scaling({"compression_config": compressed("tensor")}, "config.json") is not None
