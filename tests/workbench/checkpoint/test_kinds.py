"""Every kind of Llama checkpoint: it loads with the logits of transformers, or one sentence refuses it."""

import ast
import json
import re
import warnings
from pathlib import Path

import pytest
import torch

from tests.workbench.checkpoint.kind_builders import hf, llama3_vocabulary, rope, rows_and_tokens
from tests.workbench.checkpoint.kinds import KINDS, Kind
from workbench.checkpoint import convert, load_model, read_config, read_shape
from workbench.checkpoint.files import Layout
from workbench.checkpoint.stated_config import stated_config
from workbench.errors import ConfigError, WorkbenchError, WorkbenchWarning

ROWS = [row for rows in KINDS.values() for row in rows]


@torch.no_grad()
@pytest.mark.parametrize("row", [row for row in ROWS if row.build], ids=lambda row: f"{row.kind}: {row.example}"[:70])
def test_kind(tmp_path: Path, row: Kind) -> None:
    assert row.build is not None
    folder = tmp_path / "model"
    theirs = row.build(folder)
    if row.result.startswith("refused"):
        assert row.says
        with pytest.raises(WorkbenchError, match=row.says) as refusal:
            load_model(folder, device="cpu")
        text = str(refusal.value)
        assert str(folder) in text and len(text) < 600 and text.count("\n") <= 1
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ours = load_model(folder, device="cpu")
    assert len(ours.notes) == len(caught) == (row.says is not None), ours.notes
    assert row.says is None or re.search(row.says, ours.notes[0]), ours.notes
    assert {name: getattr(ours.config, name) for name, _ in row.config} == dict(row.config)
    assert read_config(folder) == ours.config
    tokens = torch.randint(theirs.config.vocab_size, (2, row.context), generator=torch.Generator().manual_seed(1))
    expected = theirs(tokens).logits
    assert expected.std() > 0.3
    assert (ours(tokens) - expected).abs().max() <= 1e-5


def test_every_row_has_a_check() -> None:
    assert len({(row.kind, row.example) for row in ROWS}) == len(ROWS) > 120
    folder = Path(__file__).parents[1]
    for row in ROWS:
        assert (row.build is None) != (row.proof is None), row
        assert row.proof or row.result.startswith(("loads", "refused")), row
        if row.proof is None:
            continue
        file, _, function, case = re.fullmatch(r"([\w/]+\.py)(::)(\w+)(?:\[(.*)\])?", row.proof).groups()  # type: ignore[union-attr]
        tree = ast.parse((folder / file).read_text(encoding="utf-8"))
        names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert function in names and function.startswith("test_"), row.proof
        texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
        assert case is None or case in texts, row.proof


def test_llama_1_of_65b_has_a_note(tmp_path: Path) -> None:
    """Its file is that of a Llama 2 without grouped heads; the shape alone is needed to see it."""
    params = {"dim": 8192, "multiple_of": 256, "n_heads": 64, "n_layers": 80, "norm_eps": 1e-5, "vocab_size": -1}
    (tmp_path / "params.json").write_text(json.dumps(params))
    file = tmp_path / "consolidated.00.pth"
    layout = Layout("meta", tmp_path, tmp_path / "params.json", (file,))
    config, notes = stated_config(layout, {file: {"tok_embeddings.weight": torch.empty(32_000, 8192, device="meta")}})
    assert (config.vocab_size, config.max_seq_len, config.rope_theta, config.ffn_dim) == (32_000, 4096, 10_000.0, 22016)
    assert len(notes) == 1 and 'Llama 1\'s 65B, add "max_seq_len": 2048' in notes[0]
    (tmp_path / "params.json").write_text(json.dumps(params | {"max_seq_len": 2048}))
    assert stated_config(layout, {file: {"tok_embeddings.weight": torch.empty(32_000, 8192, device="meta")}})[1] == ()


@pytest.mark.parametrize(
    ("rows", "columns", "shards", "size"),
    [(32_000, 512, 2, 32_000), (16_000, 1024, 2, 32_000), (32_000, 1024, 1, 32_000)],
)
def test_vocabulary_of_minus_one(tmp_path: Path, rows: int, columns: int, shards: int, size: int) -> None:
    """The embedding's rows, whether its shards divide columns (Llama 2) or rows (Llama 3)."""
    (tmp_path / "params.json").write_text(json.dumps({"dim": 1024, "n_heads": 8, "n_layers": 2, "vocab_size": -1}))
    files = tuple(tmp_path / f"consolidated.{number:02d}.pth" for number in range(shards))
    table = {"tok_embeddings.weight": torch.empty(rows, columns, device="meta")}
    config, _ = stated_config(Layout("meta", tmp_path, tmp_path / "params.json", files), dict.fromkeys(files, table))
    assert config.vocab_size == size


def test_vocabulary_of_a_folder_without_weights(tmp_path: Path) -> None:
    params = {"dim": 64, "n_heads": 8, "n_layers": 2, "vocab_size": -1}
    (tmp_path / "params.json").write_text(json.dumps(params))
    with pytest.raises(ConfigError, match="vocab_size is -1; set it to the size of the tokenizer"):
        read_shape(tmp_path)
    llama3_vocabulary(tmp_path)
    config, weights = read_shape(tmp_path)
    assert (config.vocab_size, config.rope_theta, weights) == (512, 500_000.0, False)


@pytest.mark.parametrize("scaling", ["linear", "yarn"])
def test_converting_another_rope(tmp_path: Path, scaling: str) -> None:
    """Hugging Face's layout states it, and transformers reads the same logits; Meta's cannot."""
    from transformers import LlamaForCausalLM

    values = (
        {} if scaling == "linear" else {"original_max_position_embeddings": 32, "mscale": 0.7, "mscale_all_dim": 1.0}
    )
    theirs = hf(tmp_path / "hf", **rope(scaling, factor=8.0, **values))
    again = convert(tmp_path / "hf", tmp_path / "again", layout="hf")
    tokens = torch.randint(128, (1, 256), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(LlamaForCausalLM.from_pretrained(again)(tokens).logits, theirs(tokens).logits)
    assert read_config(again) == read_config(tmp_path / "hf")
    with pytest.raises(ConfigError, match=f"cannot state RoPE of type {scaling}; use Hugging Face's layout"):
        convert(tmp_path / "hf", tmp_path / "meta", layout="meta")
    assert not (tmp_path / "meta").exists()


def test_converting_padded_rows(tmp_path: Path) -> None:
    rows_and_tokens(tmp_path / "hf", 640)
    meta_folder = convert(tmp_path / "hf", tmp_path / "meta", layout="meta")
    model = load_model(meta_folder, device="cpu")
    assert model.config.vocab_size == 640 and model.tokenizer and model.tokenizer.vocab_size == 512
    padded = "a tokenizer of exactly vocab_size tokens; this one has 512, but the model has 640 rows"
    with pytest.warns(WorkbenchWarning, match=padded), pytest.warns(WorkbenchWarning, match="no key for the context"):
        convert(tmp_path / "hf", tmp_path / "pth", layout="meta", container="pth")
