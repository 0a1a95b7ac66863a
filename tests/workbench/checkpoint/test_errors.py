"""An error in a checkpoint gives one message that names file, tensor, expected and found."""

import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.workbench.checkpoint.checkpoints import hf_model, make_config, write_meta
from workbench.checkpoint import fingerprint, load_model, read_config
from workbench.errors import CheckpointError, WorkbenchError, WorkbenchWarning
from workbench.text.tokenizer import Tokenizer

WQ = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture
def hf(tmp_path: Path) -> Path:
    """One file."""
    hf_model(make_config(n_kv_heads=4)).save_pretrained(tmp_path / "hf")
    return tmp_path / "hf"


@pytest.fixture
def hf_sharded(tmp_path: Path) -> Path:
    """Files with an index."""
    model = hf_model(make_config(n_kv_heads=4))
    model.save_pretrained(tmp_path / "many", max_shard_size=sum(p.nbytes for p in model.parameters()) // 3)
    return tmp_path / "many"


@pytest.fixture
def meta(hf: Path, tmp_path: Path) -> Path:
    """Two PyTorch shards."""
    write_meta(load_model(hf, device="cpu"), tmp_path / "meta", shards=2)
    return tmp_path / "meta"


def edit_file(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    if file.suffix == ".pth":
        state = torch.load(file, weights_only=True)
        change(state)
        torch.save(state, file)
    else:
        state = load_file(file)
        change(state)
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, file, metadata={"format": "pt"})


def edit_json(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))


def complaint(path: Path) -> str:
    with pytest.raises(WorkbenchError) as caught:
        load_model(path, device="cpu")
    assert isinstance(caught.value, CheckpointError), repr(caught.value)
    text = str(caught.value)
    assert str(path) in text and text.count("\n") <= 1
    return text


def poke(state: dict[str, Any], name: str, at: tuple[int, ...], value: float) -> None:
    state[name] = state[name].clone()
    state[name][at] = value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop(WQ), rf"safetensors: tensor '{WQ}' is missing; expected \[64, 64\] by config.json, found"),
        (lambda s: s.pop("lm_head.weight"), r"'lm_head.weight' is missing; expected \[128, 64\].*tied to the emb"),
        (lambda s: s.update({WQ: s[WQ][:-8]}), r"wrong shape; expected \[64, 64\] by config.json, found \[56, 64\]"),
        (lambda s: s.update({WQ: s[WQ][:32]}), r"found \[32, 64\]: this may be one of 2 shards"),
        (lambda s: s.update({WQ: s[WQ].flatten()}), r"expected \[64, 64\] by config.json, found \[4096\]"),
        (lambda s: s.update({WQ: s[WQ].to(torch.int8)}), r"expected a floating type, found torch.int8"),
        (lambda s: poke(s, WQ, (3, 5), float("nan")), r"expected finite values, found nan at \[3, 5\] \(1 of 4096\)"),
        (lambda s: poke(s, "model.norm.weight", (7,), float("-inf")), r"'model.norm.weight': .* found -inf at \[7\]"),
        (
            lambda s: s.update({"model.layers.2.mlp.up_proj.weight": s[WQ].clone()}),
            r"'model.layers.2.mlp.up_proj.weight' "
            r"\[64, 64\] is not a weight of the Llama with 2 layers in config.json \(1 such",
        ),
        (lambda s: s.update({WQ.replace("weight", "bias"): torch.zeros(64)}), r"q_proj.bias' \[64\] is not a weight"),
    ],
)
def test_wrong_tensors(hf: Path, change: Callable[[dict[str, Any]], Any], message: str) -> None:
    edit_file(hf / "model.safetensors", change)
    assert re.search(message, complaint(hf))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("norm.weight"), r"consolidated.01.pth: tensor 'norm.weight' is missing; expected \[64\]"),
        (
            lambda s: s.update({"output.weight": s["output.weight"][:-1]}),
            r"01.pth: .*expected \[64, 64\] by params.json "
            r"in 2 shards, found \[63, 64\]",
        ),
        (lambda s: s["norm.weight"].add_(1), r"01.pth: tensor 'norm.weight': expected the same values as in"),
        (
            lambda s: poke(s, "layers.0.feed_forward.w2.weight", (9, 2), float("inf")),
            r"consolidated.01.pth: tensor "
            r"'layers.0.feed_forward.w2.weight': expected finite values, found inf at \[9, 2\]",
        ),
        (
            lambda s: s.update({"norm.weight": s["norm.weight"].half()}),
            r"expected torch.float32 .*, found torch.float16",
        ),
        (lambda s: s.update(step=[3]), r"01.pth: expected tensors only, found 'step' of list"),
    ],
)
def test_wrong_shard(meta: Path, change: Callable[[dict[str, Any]], Any], message: str) -> None:
    edit_file(meta / "consolidated.01.pth", change)
    assert re.search(message, complaint(meta))


@pytest.mark.parametrize("keep", [0, 5, 100, 0.5, 0.999])
@pytest.mark.parametrize("layout", ["hf", "meta"])
def test_truncated_file(request: pytest.FixtureRequest, layout: str, keep: float) -> None:
    path = request.getfixturevalue(layout)
    file = path / ("model.safetensors" if layout == "hf" else "consolidated.01.pth")
    data = file.read_bytes()
    file.write_bytes(data[: keep if isinstance(keep, int) else int(len(data) * keep)])
    text = complaint(path)
    assert file.name in text and ("truncated, damaged" if keep else "is empty") in text


def test_not_a_weight_file(hf: Path, meta: Path) -> None:
    (hf / "model.safetensors").write_bytes(struct.pack("<Q", 2**60) + b"{}")
    assert "damaged" in complaint(hf)
    torch.save([torch.zeros(3)], meta / "consolidated.00.pth")
    assert "expected a dictionary of tensors, found list" in complaint(meta)


def test_code_in_a_file_is_not_run(meta: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"norm.weight": Evil()}, meta / "consolidated.00.pth")
    assert "holds code" in complaint(meta)
    assert not (tmp_path / "ran").exists()


def test_missing_shards(meta: Path, hf_sharded: Path) -> None:
    (meta / "consolidated.00.pth").unlink()
    assert "consolidated.00.pth is missing; found consolidated.01.pth" in complaint(meta)
    files = sorted(hf_sharded.glob("*.safetensors"))
    assert len(files) >= 3
    files[1].unlink()
    assert f"lists {files[1].name}, which does not exist (1 of {len(files)} missing)" in complaint(hf_sharded)


def test_last_shard_missing(meta: Path) -> None:
    (meta / "consolidated.01.pth").unlink()
    assert "this may be one of 2 shards, with the others missing" in complaint(meta)


def test_wrong_index(hf_sharded: Path) -> None:
    index = hf_sharded / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    other = next(file for file in weight_map.values() if file != weight_map[WQ])
    edit_json(index, lambda v: v["weight_map"].update({WQ: other}))
    assert re.search(rf"{other}: tensor '{WQ}' is missing; .*index.json lists it in this file", complaint(hf_sharded))
    edit_json(index, lambda v: v["weight_map"].pop(WQ))
    load_model(hf_sharded, device="cpu")  # it is there, if unlisted
    edit_json(index, lambda v: v["weight_map"].update({WQ: "../x.safetensors"}))
    assert "not in this directory" in complaint(hf_sharded)
    for name in ("x" * 5_000, "\ud800.safetensors", "a\0b", "..", ""):
        edit_json(index, lambda v, name=name: v["weight_map"].update({WQ: name}))
        assert "index.json: lists" in complaint(hf_sharded)
    index.write_text('{"metadata": {}}')
    assert "no weight_map" in complaint(hf_sharded)


def test_tensor_missing_from_every_file(hf_sharded: Path) -> None:
    index = hf_sharded / "model.safetensors.index.json"
    file = json.loads(index.read_text())["weight_map"][WQ]
    edit_json(index, lambda v: v["weight_map"].pop(WQ))
    edit_file(hf_sharded / file, lambda s: s.pop(WQ))
    assert re.search(rf"tensor '{WQ}' is missing; expected \[64, 64\]", complaint(hf_sharded))


def test_configuration_against_weights(hf: Path, meta: Path) -> None:
    edit_json(hf / "config.json", lambda v: v.update(tie_word_embeddings=True))
    assert "'lm_head.weight' differs from 'model.embed_tokens.weight', but config.json says" in complaint(hf)
    edit_json(hf / "config.json", lambda v: v.update(tie_word_embeddings=False, num_hidden_layers=3))
    assert "tensor 'model.layers.2.self_attn.q_proj.weight' is missing" in complaint(hf)
    edit_json(hf / "config.json", lambda v: v.update(num_hidden_layers=1))
    assert "is not a weight of the Llama with 1 layers" in complaint(hf)
    edit_json(meta / "params.json", lambda v: v.update(n_kv_heads=2))
    assert re.search(r"wk.weight' has the wrong shape; expected \[8, 64\] by params.json in 2", complaint(meta))


def test_paths_that_are_not_checkpoints(tmp_path: Path, hf: Path, meta: Path) -> None:
    assert "no such file or directory" in complaint(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "neither params.json (Meta) nor config.json" in complaint(tmp_path / "empty")
    assert "is a file; pass the directory" in complaint(hf / "model.safetensors")
    (hf / "model.safetensors").rename(hf / "model.safetensors.part")
    assert "neither model.safetensors nor pytorch_model.bin" in complaint(hf)
    for file in meta.glob("*.pth"):
        file.unlink()
    assert "holds params.json, but no consolidated" in complaint(meta)
    (meta / "params.json").write_text("{'dim': 3}")
    assert "params.json" in str(pytest.raises(CheckpointError, read_config, meta).value)


def test_links_of_a_cache_that_lead_nowhere(hf: Path) -> None:
    for name in ("model.safetensors", "config.json"):
        (hf / name).unlink()
        (hf / name).symlink_to("../../blobs/0123abcd")
        assert f"{name}" in complaint(hf) and "link to" in complaint(hf) and "download" in complaint(hf)
    (hf / "config.json").unlink()
    (hf / "config.json").mkdir()
    assert "config.json: is a folder" in complaint(hf)


def test_broken_json_is_named(hf: Path) -> None:
    for content in ('{"hidden_size": ', "[]", "\xff"):
        (hf / "config.json").write_bytes(content.encode("latin-1"))
        assert "config.json" in complaint(hf)


def test_both_layouts_in_one_directory(hf: Path, meta: Path) -> None:
    for file in meta.iterdir():
        file.rename(hf / file.name)
    assert "holds both" in complaint(hf)


def test_a_tokenizer_never_keeps_a_model_from_loading(meta: Path) -> None:
    tokenizer = Tokenizer.from_ranks({bytes([b]): b for b in range(256)})
    (meta / "tokenizer.model").write_bytes(tokenizer.to_tiktoken())
    with pytest.warns(
        WorkbenchWarning, match="has 512 tokens, but the model has 128 embedding rows; it may be another"
    ):
        assert load_model(meta, device="cpu").tokenizer is not None
    (meta / "tokenizer.model").write_bytes(b"no tokenizer\xff")
    with pytest.warns(WorkbenchWarning, match="the tokenizer is not used .* works with token ids, without text"):
        model = load_model(meta, device="cpu")
    assert model.tokenizer is None and len(model.notes) == 1
    assert model(torch.tensor([[1, 2, 3]])).shape == (1, 3, 128)


@pytest.mark.parametrize(
    "raised", [KeyError("vocab"), RecursionError(), type("PanicException", (BaseException,), {})()]
)
def test_anything_that_a_tokenizer_raises_is_a_note(
    meta: Path, monkeypatch: pytest.MonkeyPatch, raised: BaseException
) -> None:
    def read(path: Path) -> Tokenizer:
        raise raised

    (meta / "tokenizer.model").write_bytes(b"any")
    monkeypatch.setattr(Tokenizer, "from_file", read)
    with pytest.warns(WorkbenchWarning, match=f"the tokenizer is not used .{type(raised).__name__}"):
        assert load_model(meta, device="cpu").tokenizer is None


@pytest.mark.parametrize("rows", [512, 520, 511, 640, 1024, 480])
def test_rows_and_tokens_may_differ(tmp_path: Path, rows: int) -> None:
    """Rows are padded to a round number; a pad token may be added without a row."""
    hf_model(make_config(vocab_size=rows)).save_pretrained(tmp_path)
    tokenizer = Tokenizer.from_ranks({bytes([b]): b for b in range(256)})
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer.to_hf_json()))
    model = load_model(tmp_path, device="cpu")
    assert model.tokenizer and model.tokenizer.vocab_size == 512 and model.notes == ()


def test_overflow_of_a_cast_is_an_error(hf: Path) -> None:
    edit_file(hf / "model.safetensors", lambda s: poke(s, WQ, (0, 0), 1e30))
    load_model(hf, device="cpu")
    with pytest.raises(CheckpointError, match="not finite as torch.float16, but are finite as torch.float32"):
        load_model(hf, device="cpu", dtype="float16")


def test_fingerprint_follows_content(hf: Path, tmp_path: Path) -> None:
    first = fingerprint(hf)
    assert re.fullmatch("[0-9a-f]{64}", first)
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in hf.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    assert fingerprint(copy) == first
    (copy / "README.md").write_text("not part of it")
    assert fingerprint(copy) == first
    edit_file(copy / "model.safetensors", lambda s: poke(s, WQ, (0, 0), 0.5))
    assert fingerprint(copy) != first
    second = fingerprint(copy)
    edit_json(copy / "config.json", lambda v: v.update(rms_norm_eps=1e-3))
    assert fingerprint(copy) not in (first, second)
