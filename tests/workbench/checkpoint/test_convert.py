"""Conversion: lossless in both directions, any number of shards, readable by other software, no partial output."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from tests.workbench.checkpoint.checkpoints import hf_model, make_config, write_meta
from workbench.checkpoint import convert, fingerprint, load_model
from workbench.checkpoint.write import Entry, write_safetensors
from workbench.config import Llama3Scaling, ModelConfig
from workbench.config.meta_code import mlp_keys
from workbench.errors import CheckpointError, WorkbenchWarning
from workbench.text.tokenizer import Tokenizer


def tensors(path: Path) -> dict[str, Tensor]:
    tensors_by_name: dict[str, Tensor] = {}
    for file in sorted(path.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            tensors_by_name |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    return tensors_by_name


@pytest.fixture
def config() -> ModelConfig:
    # The context is the one that Meta's params.json implies.
    return make_config(n_kv_heads=4, vocab_size=128, rope_scaling=Llama3Scaling(), max_seq_len=131_072)


@pytest.fixture
def hf(tmp_path: Path, config: ModelConfig) -> Path:
    hf_model(config).to(torch.bfloat16).save_pretrained(tmp_path / "hf")
    return tmp_path / "hf"


@pytest.mark.parametrize("shards", [1, 2, 4])
@pytest.mark.parametrize("container", ["safetensors", "pth"])
def test_there_and_back(hf: Path, tmp_path: Path, shards: int, container: Any) -> None:
    meta = convert(hf, tmp_path / "meta", layout="meta", shards=shards, container=container)
    assert len(list(meta.glob(f"consolidated.*.{container}"))) == shards
    back = convert(meta, tmp_path / "back", layout="hf")
    assert (back / "model.safetensors").read_bytes() == (hf / "model.safetensors").read_bytes()
    first, second = load_model(hf, device="cpu"), load_model(meta, device="cpu")
    assert first.config == second.config
    for name, weight in first.named_parameters():
        assert torch.equal(weight, second.get_parameter(name)), name


def test_meta_there_and_back(hf: Path, tmp_path: Path) -> None:
    meta = convert(hf, tmp_path / "meta", layout="meta", shards=2)
    convert(meta, tmp_path / "between", layout="hf", shards=3)
    again = convert(tmp_path / "between", tmp_path / "again", layout="meta", shards=2)
    for file in sorted(meta.iterdir()):
        assert (again / file.name).read_bytes() == file.read_bytes(), file.name
    assert fingerprint(again) == fingerprint(meta)


def test_meta_shards_are_divided_as_meta_divides_them(hf: Path, tmp_path: Path) -> None:
    meta = convert(hf, tmp_path / "meta", layout="meta", shards=2)
    write_meta(load_model(hf, device="cpu"), tmp_path / "expected", shards=2, suffix="safetensors")
    for number in range(2):
        file = f"consolidated.{number:02d}.safetensors"
        with safe_open(meta / file, "pt") as ours, safe_open(tmp_path / "expected" / file, "pt") as expected:
            assert set(ours.keys()) == set(expected.keys())
            for name in expected.keys():  # noqa: SIM118
                assert torch.equal(ours.get_tensor(name), expected.get_tensor(name)), name


@torch.no_grad()
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("changes", [{}, {"tied_output": True}, {"head_dim": 16, "rope_scaling": Llama3Scaling()}])
def test_hugging_face_reads_what_is_written(tmp_path: Path, changes: dict[str, Any], shards: int) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = make_config(**changes)
    original = hf_model(config)
    original.save_pretrained(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "meta", layout="meta", shards=2)
    convert(tmp_path / "meta", tmp_path / "back", layout="hf", shards=shards)
    assert len(list((tmp_path / "back").glob("*.safetensors"))) == shards
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "back")
    tokens = torch.randint(config.vocab_size, (2, 40), generator=torch.Generator().manual_seed(1))
    assert torch.equal(theirs(tokens).logits, original(tokens).logits)


def test_safetensors_are_those_of_the_package(tmp_path: Path) -> None:
    state = {
        "b": torch.randn(3, 5).to(torch.bfloat16),
        "a": torch.randn(7).half(),
        "c": torch.randn(2, 2),
        "d": torch.randn(1, dtype=torch.float64),
        "a2": torch.randn(4, 6).to(torch.bfloat16).T.contiguous(),
    }
    save_file(state, tmp_path / "theirs", metadata={"format": "pt"})
    write_safetensors(tmp_path / "ours", [Entry(n, t.dtype, tuple(t.shape), lambda t=t: t) for n, t in state.items()])
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def small_tokenizer() -> Tokenizer:
    merges = [b"he", b"ll", b"hell", b"hello", b" hello"]
    return Tokenizer.from_ranks({bytes([b]): b for b in range(256)} | {t: 256 + i for i, t in enumerate(merges)})


def test_the_tokenizer_is_copied(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    tokenizer = small_tokenizer()
    config = make_config(vocab_size=tokenizer.vocab_size)
    hf_model(config).save_pretrained(tmp_path / "bare")
    meta = convert(tmp_path / "bare", tmp_path / "meta", layout="meta")
    (meta / "generation_config.json").unlink(missing_ok=True)  # its end token is that of transformers' defaults
    assert load_model(meta, device="cpu").tokenizer is None
    (meta / "tokenizer.model").write_bytes(tokenizer.to_tiktoken())
    (meta / "LICENSE").write_text("terms")

    hf = convert(meta, tmp_path / "hf", layout="hf")
    assert (hf / "tokenizer.model").read_bytes() == tokenizer.to_tiktoken()
    assert (hf / "LICENSE").read_text() == "terms"
    theirs = transformers.AutoTokenizer.from_pretrained(hf)
    text = "hello hello  12345 he'LL\n<|eot_id|>é🙂"
    assert theirs(text)["input_ids"] == tokenizer.encode(text, bos=True, allow_special=True)
    assert theirs.decode(tokenizer.encode(text)) == text
    assert json.loads((hf / "config.json").read_text())["eos_token_id"] == sorted(tokenizer.stop_ids)
    loaded = load_model(hf, device="cpu")
    assert loaded.tokenizer and loaded.source
    assert loaded.tokenizer.to_tiktoken() == tokenizer.to_tiktoken()
    assert loaded.source.tokenizer_sha256 == loaded.tokenizer.sha256
    assert loaded.source.checkpoint_sha256 == fingerprint(hf) != fingerprint(meta)

    (hf / "tokenizer.model").unlink()
    back = convert(hf, tmp_path / "back", layout="meta")
    assert (back / "tokenizer.model").read_bytes() == tokenizer.to_tiktoken()


def test_no_partial_output(hf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError("no space left on device")

    (hf / "LICENSE").write_text("terms")
    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(CheckpointError, match=r"meta: cannot be written \(no space left on device\)"):
        convert(hf, tmp_path / "meta", layout="meta")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf"]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"layout": "gguf"}, "unknown layout 'gguf'"),
        ({"layout": "meta", "shards": 3}, "n_heads 8 cannot be split into 3 shards"),
        ({"layout": "meta", "shards": 8}, "n_kv_heads 4 cannot be split into 8 shards"),
        ({"layout": "meta", "shards": 0}, "at least 1"),
        ({"layout": "hf", "container": "pth"}, "cannot be written as 'pth'"),
    ],
)
def test_user_errors_are_named(hf: Path, tmp_path: Path, how: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        convert(hf, tmp_path / "out", **how)
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_is_not_written_over(hf: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="config.json already"):
        convert(hf, hf, layout="meta")
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="a file already"):
        convert(hf, tmp_path / "file", layout="meta")


@dataclass
class ModelArgs:
    """The arguments of Meta's model, stated again: a key that is not here is an error in the first Llama 3's code."""

    dim: int = 4096
    n_layers: int = 32
    n_heads: int = 32
    n_kv_heads: int | None = None
    vocab_size: int = -1
    multiple_of: int = 256
    ffn_dim_multiplier: float | None = None
    norm_eps: float = 1e-5
    rope_theta: float = 500_000
    max_batch_size: int = 32
    max_seq_len: int = 2048

    def shapes(self, shards: int) -> dict[str, list[int]]:
        """Name and shape of each tensor that Meta's model has in one of its shards."""
        hidden = int(2 * (4 * self.dim) / 3)
        if self.ffn_dim_multiplier is not None:
            hidden = int(self.ffn_dim_multiplier * hidden)
        hidden = self.multiple_of * ((hidden + self.multiple_of - 1) // self.multiple_of) // shards
        head_dim = self.dim // self.n_heads
        q, kv = self.n_heads * head_dim // shards, (self.n_kv_heads or self.n_heads) * head_dim // shards
        table = [self.vocab_size // shards, self.dim]
        shapes = {"tok_embeddings.weight": table, "norm.weight": [self.dim], "output.weight": table}
        for layer in range(self.n_layers):
            shapes |= {
                f"layers.{layer}.attention.wq.weight": [q, self.dim],
                f"layers.{layer}.attention.wk.weight": [kv, self.dim],
                f"layers.{layer}.attention.wv.weight": [kv, self.dim],
                f"layers.{layer}.attention.wo.weight": [self.dim, q],
                f"layers.{layer}.feed_forward.w1.weight": [hidden, self.dim],
                f"layers.{layer}.feed_forward.w2.weight": [self.dim, hidden],
                f"layers.{layer}.feed_forward.w3.weight": [hidden, self.dim],
                f"layers.{layer}.attention_norm.weight": [self.dim],
                f"layers.{layer}.ffn_norm.weight": [self.dim],
            }
        return shapes


@dataclass
class NewerModelArgs(ModelArgs):
    """That of Llama 3.1 and later."""

    use_scaled_rope: bool = False


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tied_output": True},
        {"ffn_dim": 98, "norm_eps": 1e-6},
        {"rope_scaling": Llama3Scaling(), "max_seq_len": 131_072},
    ],
)
def test_metas_own_code_reads_pth(tmp_path: Path, changes: dict[str, Any], shards: int) -> None:
    config = make_config(**{"rope_theta": 500_000.0, "max_seq_len": 8_192} | changes)
    hf_model(config).save_pretrained(tmp_path / "hf")
    meta = convert(tmp_path / "hf", tmp_path / "meta", layout="meta", shards=shards, container="pth")
    params = json.loads((meta / "params.json").read_text())
    args = (NewerModelArgs if config.rope_scaling else ModelArgs)(max_seq_len=64, max_batch_size=1, **params)
    assert (args.norm_eps, args.rope_theta) == (config.norm_eps, config.rope_theta)
    for number in range(shards):
        state = torch.load(meta / f"consolidated.{number:02d}.pth", weights_only=True)
        assert {name: list(tensor.shape) for name, tensor in state.items()} == args.shapes(shards)
        if config.tied_output:
            assert torch.equal(state["output.weight"], state["tok_embeddings.weight"])
    first, second = load_model(tmp_path / "hf", device="cpu"), load_model(meta, device="cpu")
    assert second.config == first.config
    for name, weight in first.named_parameters():
        assert torch.equal(weight, second.get_parameter(name)), name


@pytest.mark.parametrize(
    ("dim", "ffn_dim"),
    [(4096, 14336), (8192, 28672), (16384, 53248), (2048, 8192), (3072, 8192), (4096, 11008), (576, 1536), (7, 1)],
)
def test_mlp_keys_give_the_size(dim: int, ffn_dim: int) -> None:
    for size in range(ffn_dim, ffn_dim + 40):
        multiple_of, multiplier = mlp_keys(dim, size)
        args = ModelArgs(dim=dim, n_layers=1, n_heads=1, multiple_of=multiple_of, ffn_dim_multiplier=multiplier)
        assert args.shapes(1)["layers.0.feed_forward.w1.weight"] == [size, dim]
    assert mlp_keys(4096, 14336) == (256, 1.3) and mlp_keys(4096, 11008) == (256, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head_dim": 16}, "computes head_dim as dim / n_heads, 64 / 8, but this model has 16"),
        ({"rope_scaling": Llama3Scaling(factor=32.0)}, "knows only the RoPE scaling .*factor=8.0.*has .*factor=32.0"),
        ({"rope_scaling": Llama3Scaling(original_context=128)}, "original_context=128"),
    ],
)
def test_what_metas_code_cannot_compute_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    hf_model(make_config(**changes)).save_pretrained(tmp_path / "hf")
    with pytest.raises(CheckpointError, match=message):
        convert(tmp_path / "hf", tmp_path / "meta", layout="meta", container="pth")
    assert not (tmp_path / "meta").exists()
    convert(tmp_path / "hf", tmp_path / "meta", layout="meta")  # what the message says
    assert load_model(tmp_path / "meta", device="cpu").config == make_config(**changes)


def test_lost_context_is_told(tmp_path: Path) -> None:
    hf_model(make_config(rope_theta=500_000.0)).save_pretrained(tmp_path / "hf")
    with pytest.warns(WorkbenchWarning, match="no key for the context of 256 tokens; .* the model has 8,192"):
        convert(tmp_path / "hf", tmp_path / "meta", layout="meta", container="pth")
