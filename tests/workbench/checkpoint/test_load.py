"""Loading: the logits of Hugging Face's model, the same bits from both layouts, and any sharding."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.workbench.checkpoint.checkpoints import hf_model, make_config, write_meta
from workbench.checkpoint import load_model, read_config
from workbench.checkpoint.tensors import tensor_specs
from workbench.config import Llama3Scaling, ModelConfig
from workbench.errors import ConfigError

SHAPES: dict[str, dict[str, Any]] = {
    "mha": {"n_kv_heads": 8},
    "gqa": {},
    "mqa": {"n_kv_heads": 1},
    "tied": {"tied_output": True},
    "scaled": {"rope_scaling": Llama3Scaling(factor=8.0, original_context=32)},
    "scaled 32, tied": {"rope_scaling": Llama3Scaling(factor=32.0, original_context=32), "tied_output": True},
    "wide heads": {"head_dim": 16},
}


@pytest.fixture(params=SHAPES)
def config(request: pytest.FixtureRequest) -> ModelConfig:
    return make_config(**SHAPES[request.param])


@torch.no_grad()
@pytest.mark.parametrize("pieces", [1, 3])
def test_logits_of_hugging_face(config: ModelConfig, tmp_path: Path, pieces: int) -> None:
    theirs = hf_model(config)
    shard = 10**9 if pieces == 1 else sum(p.nbytes for p in theirs.parameters()) // pieces
    theirs.save_pretrained(tmp_path, max_shard_size=shard)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (pieces > 1)
    ours = load_model(tmp_path, device="cpu")
    assert ours.config == config == read_config(tmp_path)
    assert ours.dtype == torch.float32 and ours.tokenizer is None
    tokens = torch.randint(config.vocab_size, (2, 70), generator=torch.Generator().manual_seed(1))
    difference = (ours(tokens) - theirs(tokens).logits).abs().max()
    assert difference <= 1e-4
    assert theirs(tokens).logits.abs().max() > 0.1, "logits of nothing would agree too"


@torch.no_grad()
@pytest.mark.parametrize(("shards", "suffix"), [(1, "pth"), (2, "pth"), (1, "safetensors"), (4, "safetensors")])
def test_both_layouts_give_the_same_bits(tmp_path: Path, shards: int, suffix: str) -> None:
    config = make_config(n_kv_heads=4)
    hf_model(config).to(torch.bfloat16).save_pretrained(tmp_path / "hf")
    from_hf = load_model(tmp_path / "hf", device="cpu")
    write_meta(from_hf, tmp_path / "meta", shards=shards, suffix=suffix)
    from_meta = load_model(tmp_path / "meta", device="cpu")
    assert from_meta.config == from_hf.config
    assert from_meta.dtype == torch.bfloat16
    weights = dict(from_meta.named_parameters())
    assert set(weights) == {spec.name for spec in tensor_specs(config)}
    for name, weight in from_hf.named_parameters():
        assert torch.equal(weight, weights[name]), name
    tokens = torch.randint(config.vocab_size, (2, 33), generator=torch.Generator().manual_seed(1))
    assert torch.equal(from_hf(tokens), from_meta(tokens))


def test_embedding_divided_by_columns(tmp_path: Path) -> None:
    """Llama 2's shards, and some converters', divide the embedding's columns."""
    model = load_saved(tmp_path / "hf")
    write_meta(model, tmp_path / "meta", shards=2, embedding_axis=1)
    again = load_model(tmp_path / "meta", device="cpu")
    assert torch.equal(again.get_parameter("tok_embeddings.weight"), model.get_parameter("tok_embeddings.weight"))


def load_saved(path: Path, **changes: Any) -> Any:
    hf_model(make_config(**changes)).save_pretrained(path)
    return load_model(path, device="cpu")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", torch.float32])
def test_cast_on_the_way(tmp_path: Path, dtype: str | torch.dtype) -> None:
    model = load_saved(tmp_path)
    expected_dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    other = load_model(tmp_path, device="cpu", dtype=dtype)
    assert other.dtype == expected_dtype
    for name, weight in model.named_parameters():
        assert torch.equal(weight.to(expected_dtype), other.get_parameter(name)), name


def test_the_file_is_not_changed_by_training(tmp_path: Path) -> None:
    model = load_saved(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(2)
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_weights_have_gradients(tmp_path: Path) -> None:
    model = load_saved(tmp_path, tied_output=True)
    model(torch.tensor([[1, 2, 3]])).logsumexp(-1).sum().backward()
    assert all(weight.grad is not None and weight.grad.abs().max() > 0 for weight in model.parameters())


def test_one_table_under_two_names_is_tied(tmp_path: Path) -> None:
    """As in Meta's small 3.2 models, whose params.json does not state it."""
    model = load_saved(tmp_path / "hf", tied_output=True)
    state = dict(model.state_dict())
    state["output.weight"] = state["tok_embeddings.weight"]
    write_meta(model, tmp_path / "meta", state=state, leave_out=("tied_output",))
    again = load_model(tmp_path / "meta", device="cpu")
    assert again.config.tied_output and read_config(tmp_path / "meta").tied_output
    assert "output.weight" not in again.state_dict()


def test_a_tied_copy_and_old_tables_are_accepted(tmp_path: Path) -> None:
    model = load_saved(tmp_path / "hf", tied_output=True)
    state = dict(model.state_dict())
    state["output.weight"] = state["tok_embeddings.weight"].clone()
    state["rope.freqs"] = 10_000.0 ** -(torch.arange(0, 8, 2) / 8)
    write_meta(model, tmp_path / "meta", state=state)
    assert load_model(tmp_path / "meta", device="cpu").config == model.config


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"device": "quantum"}, "unknown device 'quantum'"),
        ({"device": "cuda:99"}, "there is no device cuda:99"),
        ({"device": "cuda:99999999999"}, "unknown device"),
        ({"device": "mps"}, "device mps is not supported; use 'auto', 'cpu', 'cuda'"),
        ({"device": "xpu:1"}, "device xpu:1 is not supported"),
        ({"device": torch.device("meta")}, "device meta is not supported"),
        ({"device": None}, "unknown device None"),
        ({"device": ""}, "unknown device ''"),
        ({"dtype": None}, "unknown dtype None"),
        ({"dtype": "int8"}, "unknown dtype 'int8'"),
        ({"dtype": torch.int64}, "unknown dtype"),
    ],
)
def test_unavailable_device_and_dtype(tmp_path: Path, how: dict[str, Any], message: str) -> None:
    load_saved(tmp_path)
    with pytest.raises(ConfigError, match=message):
        load_model(tmp_path, **how)


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch is built with CUDA")
def test_cuda_without_cuda(tmp_path: Path) -> None:
    load_saved(tmp_path)
    with pytest.raises(ConfigError, match=r"no device cuda; this torch is built without CUDA\. Use 'cpu' or 'auto'"):
        load_model(tmp_path, device="cuda")


@pytest.mark.gpu
@torch.no_grad()
@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_load_to_a_gpu(tmp_path: Path, dtype: str) -> None:
    model = load_saved(tmp_path)
    other = load_model(tmp_path, device="cuda", dtype=dtype)
    assert other.device.type == "cuda"
    for name, weight in model.named_parameters():
        assert torch.equal(weight.to(other.dtype), other.get_parameter(name).cpu()), name
