"""LoRA adapters merged on load, against peft's own merge."""

import json
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import workbench as wb
from tests.workbench.checkpoint.checkpoints import hf_model, make_config
from workbench.checkpoint import convert, fingerprint
from workbench.checkpoint.adapter import with_adapter
from workbench.checkpoint.assemble import MappedPages, Target, assemble
from workbench.checkpoint.manifest import open_checkpoint
from workbench.cli import main
from workbench.config import ModelConfig
from workbench.errors import CheckpointError, WorkbenchWarning

peft = pytest.importorskip("peft", reason="peft is not installed")
# peft and transformers warn of each other's deprecated names; a warning of ours is still an error.
pytestmark = pytest.mark.filterwarnings("ignore", "error::workbench.errors.WorkbenchWarning")

QKVO = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]
IDS = torch.arange(40).view(1, -1) * 7 % 128


def write_base(folder: Path, config: ModelConfig | None = None) -> Any:
    """A random base in Hugging Face's layout."""
    theirs = hf_model(config or make_config())
    theirs.save_pretrained(folder)
    return theirs


def write_adapter(base: Path, folder: Path, **settings: Any) -> Path:
    """An adapter with random factors, and random values in modules_to_save, written by peft."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    model = peft.get_peft_model(
        transformers.LlamaForCausalLM.from_pretrained(base, dtype=torch.float32),
        peft.LoraConfig(task_type="CAUSAL_LM", **{"r": 4, "lora_alpha": 12} | settings),
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    return folder


def merged_by_peft(base: Path, adapter: Path, dtype: torch.dtype = torch.float32) -> Any:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    theirs = transformers.LlamaForCausalLM.from_pretrained(base, dtype=dtype)
    return peft.PeftModel.from_pretrained(theirs, adapter).merge_and_unload().eval()


def assert_equal_logits(ours: Any, theirs: Any, other: Any | None = None) -> None:
    with torch.no_grad():
        expected = theirs(IDS).logits
        assert torch.allclose(ours(IDS), expected, atol=1e-5, rtol=1e-5), (ours(IDS) - expected).abs().max()
        if other is not None:
            assert (expected - other(IDS).logits).abs().max() > 0.01, "the adapter changes nothing"


SETTINGS: dict[str, dict[str, Any]] = {
    "attention": {"target_modules": ["q_proj", "v_proj"]},
    "all weights": {"target_modules": [*QKVO, *MLP]},
    "all-linear": {"target_modules": "all-linear"},
    "a regular expression": {"target_modules": r"model\.layers\.1\..*(q|k|down)_proj"},
    "rank-stabilised": {"target_modules": QKVO, "use_rslora": True},
    "rank and alpha patterns": {
        "target_modules": [*QKVO, *MLP],
        "rank_pattern": {"q_proj": 6, r"layers\.1\.mlp\.up_proj": 2, "model.layers.0.self_attn.o_proj": 1},
        "alpha_pattern": {"k_proj": 1, r"0\.mlp\.(up|down)_proj": 31.5},
    },
    "rank patterns, rank-stabilised": {"target_modules": QKVO, "rank_pattern": {"v_proj": 9}, "use_rslora": True},
    "layers to transform": {"target_modules": QKVO, "layers_to_transform": [1]},
    "layers to transform, with a pattern": {
        "target_modules": QKVO,
        "layers_to_transform": 0,
        "layers_pattern": "layers",
    },
    "excluded modules": {"target_modules": QKVO, "exclude_modules": ["layers.0.self_attn.q_proj"]},
    "excluded by an expression": {"target_modules": QKVO, "exclude_modules": r".*\.1\.self_attn\.(k|o)_proj"},
    "saved modules": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    "saved norms and projection": {
        "target_modules": ["q_proj", "down_proj"],
        "modules_to_save": ["input_layernorm", "k_proj", "model.norm"],
    },
    "embedding": {"target_modules": ["embed_tokens", "v_proj"]},
    "embedding and output": {"target_modules": ["embed_tokens", "lm_head"]},
    "dropout": {"target_modules": QKVO, "lora_dropout": 0.3},
    "fan in, fan out": {"target_modules": QKVO, "fan_in_fan_out": True},
    "bias without biases": {"target_modules": QKVO, "bias": "lora_only"},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_equals_the_merge_of_peft(tmp_path: Path, name: str) -> None:
    base = write_base(tmp_path / "base")
    adapter = write_adapter(tmp_path / "base", tmp_path / "adapter", **SETTINGS[name])
    ours = wb.load_model(tmp_path / "base", adapter=adapter)
    assert_equal_logits(ours, merged_by_peft(tmp_path / "base", adapter), base)


TIED: dict[str, dict[str, Any]] = {
    "embedding saved": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "output saved": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "both saved": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]},
    "saved and kept tied": {
        "target_modules": ["q_proj"],
        "modules_to_save": ["embed_tokens"],
        "ensure_weight_tying": True,
    },
    "neither": {"target_modules": QKVO},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "output": {"target_modules": ["lm_head", "q_proj"]},
    "both": {"target_modules": ["lm_head", "embed_tokens"]},
    "kept tied": {"target_modules": ["embed_tokens"], "ensure_weight_tying": True},
}


@pytest.mark.parametrize("name", TIED)
def test_a_tied_base_computes_what_the_adapter_was_trained_for(tmp_path: Path, name: str) -> None:
    """As peft's model before the merge, because its merge adds a change of one table to both."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    base = write_base(tmp_path / "base", make_config(tied_output=True))
    adapter = write_adapter(tmp_path / "base", tmp_path / "adapter", **TIED[name])
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(theirs, adapter).eval()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", WorkbenchWarning)
        ours = wb.load_model(tmp_path / "base", adapter=adapter)
    assert_equal_logits(ours, theirs, base)
    warned = [str(warning.message) for warning in caught if warning.category is WorkbenchWarning]
    assert warned == list(ours.notes) and bool(warned) == (
        not {"embed_tokens", "lm_head"}.isdisjoint(TIED[name]["target_modules"])
    )
    assert ours.config.tied_output == (name in ("neither", "saved and kept tied"))


EVERYTHING = {
    "target_modules": [*QKVO, *MLP, "embed_tokens", "lm_head"],
    "modules_to_save": ["norm"],
    "rank_pattern": {"k_proj": 2},
}


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Any]:
    """A base, an adapter of all weights, and peft's merge of both."""
    folder = tmp_path_factory.mktemp("adapted")
    write_base(folder / "base")
    adapter = write_adapter(folder / "base", folder / "adapter", **EVERYTHING)
    return folder / "base", adapter, merged_by_peft(folder / "base", adapter)


@pytest.mark.parametrize(("layout", "shards"), [("meta", 1), ("meta", 2), ("hf", 3)])
def test_the_layout_of_the_base_does_not_matter(
    adapted: tuple[Path, Path, Any], tmp_path: Path, layout: Any, shards: int
) -> None:
    base, adapter, theirs = adapted
    convert(base, tmp_path / "base", layout=layout, shards=shards)
    assert_equal_logits(wb.load_model(tmp_path / "base", adapter=adapter), theirs)


def test_each_part_of_a_tensor_parallel_run(adapted: tuple[Path, Path, Any]) -> None:
    base, adapter, _ = adapted
    checkpoint = with_adapter(open_checkpoint(base), adapter)
    pages = MappedPages(checkpoint.layout.weight_files)
    for weight in checkpoint.weights:
        complete, first, second = (
            assemble(weight, pages, Target(torch.float32, torch.device("cpu"), rank, size))
            for rank, size in ((0, 1), (0, 2), (1, 2))
        )
        if weight.spec.split is None:
            assert torch.equal(first, complete) and torch.equal(second, complete)
        else:
            assert torch.allclose(torch.cat((first, second), weight.spec.split), complete, atol=1e-6)


def test_the_merge_is_written_by_convert(adapted: tuple[Path, Path, Any], tmp_path: Path) -> None:
    base, adapter, theirs = adapted
    convert(base, tmp_path / "merged", layout="hf", adapter=adapter)
    assert_equal_logits(wb.load_model(tmp_path / "merged"), theirs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_narrow_base_is_merged_in_float32_and_rounded_once(tmp_path: Path, dtype: torch.dtype) -> None:
    hf_model(make_config()).to(dtype).save_pretrained(tmp_path / "base")
    adapter = write_adapter(tmp_path / "base", tmp_path / "adapter", target_modules=[*QKVO, *MLP])
    wide = merged_by_peft(tmp_path / "base", adapter)
    assert_equal_logits(wb.load_model(tmp_path / "base", adapter=adapter, dtype="float32"), wide)
    ours = wb.load_model(tmp_path / "base", adapter=adapter)
    assert ours.dtype == dtype
    expected = wide.model.layers[0].mlp.down_proj.weight.detach()
    assert torch.allclose(ours.layers[0].feed_forward.w2.weight.float(), expected.to(dtype).float(), rtol=2**-7)


def rewrite(adapter: Path, folder: Path, rename: Callable[[str], str], suffix: str = "safetensors") -> Path:
    """A copy of an adapter with other tensor names, or in the other container."""
    folder.mkdir()
    shutil.copy(adapter / "adapter_config.json", folder)
    tensors = {rename(name): tensor for name, tensor in load_file(adapter / "adapter_model.safetensors").items()}
    if suffix == "bin":
        torch.save(tensors, folder / "adapter_model.bin")
    else:
        save_file(tensors, folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("rename", "suffix"),
    [
        (lambda name: name, "bin"),
        (lambda name: name.removeprefix("base_model.model."), "safetensors"),
        (lambda name: re.sub(r"(lora_[AB])\.weight$", r"\1.default.weight", name), "safetensors"),
        (lambda name: re.sub(r"(lora_embedding_[AB])$", r"\1.default", name), "safetensors"),
        (lambda name: name.replace("model.norm.weight", "model.norm.modules_to_save.default.weight"), "safetensors"),
        (lambda name: name.replace("base_model.model.model.layers", "base_model.model.layers"), "safetensors"),
    ],
    ids=["bin", "no prefix", "default", "default embedding", "modules_to_save", "trained without the head"],
)
def test_other_names_of_the_tensors(
    adapted: tuple[Path, Path, Any], tmp_path: Path, rename: Callable[[str], str], suffix: str
) -> None:
    base, adapter, theirs = adapted
    renamed = rewrite(adapter, tmp_path / "adapter", rename, suffix)
    assert_equal_logits(wb.load_model(base, adapter=renamed), theirs)


def test_the_hash_and_the_source_cover_the_adapter(adapted: tuple[Path, Path, Any], tmp_path: Path) -> None:
    base, adapter, _ = adapted
    plain, both = wb.load_model(base).source, wb.load_model(base, adapter=adapter).source
    assert plain is not None and both is not None and (plain.adapter, both.adapter) == (None, adapter)
    assert plain.checkpoint_sha256 == fingerprint(base) != both.checkpoint_sha256
    assert both.checkpoint_sha256 == fingerprint(base, adapter=adapter) and both.name == "base+adapter"
    other = Path(shutil.copytree(adapter, tmp_path / "other"))
    assert fingerprint(base, adapter=other) == both.checkpoint_sha256
    settings = json.loads((other / "adapter_config.json").read_text()) | {"lora_alpha": 13}
    (other / "adapter_config.json").write_text(json.dumps(settings))
    assert fingerprint(base, adapter=other) != both.checkpoint_sha256
    loaded = wb.load_model(base, adapter=other).source
    assert loaded is not None and loaded.intact
    (other / "adapter_model.safetensors").write_bytes(b"x")
    assert not loaded.intact


Q = "base_model.model.model.layers.0.self_attn.q_proj."


def changed(adapter: Path, folder: Path, settings: dict[str, Any], tensors: dict[str, Any]) -> Path:
    rewrite(adapter, folder, lambda name: name)
    values = json.loads((folder / "adapter_config.json").read_text()) | settings
    (folder / "adapter_config.json").write_text(json.dumps(values))
    stored: dict[str, Any] = load_file(folder / "adapter_model.safetensors") | tensors
    save_file({k: v for k, v in stored.items() if v is not None}, folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("settings", "tensors", "message"),
    [
        ({"peft_type": "IA3"}, {}, "'IA3'; only LoRA"),
        ({"peft_type": "PREFIX_TUNING"}, {}, "PREFIX_TUNING"),
        ({"peft_type": None}, {}, "only LoRA"),
        ({"use_dora": True}, {}, "DoRA.*merge_and_unload"),
        ({"lora_bias": True}, {}, "lora_bias"),
        ({"trainable_token_indices": [1, 2]}, {}, "trainable_token_indices"),
        ({"layer_replication": [[0, 1]]}, {}, "layer_replication"),
        ({"target_parameters": ["mlp.experts"]}, {}, "target_parameters"),
        ({"alora_invocation_tokens": [1]}, {}, "alora_invocation_tokens"),
        ({"init_lora_weights": "pissa_niter_16"}, {}, "pissa.*path_initial_model"),
        ({"r": 5}, {}, "wrong shape"),
        ({"r": 0}, {}, "r of .* must be a number"),
        ({"r": "4"}, {}, "must be a number"),
        ({"lora_alpha": [1]}, {}, "lora_alpha"),
        ({"rank_pattern": [1]}, {}, "rank_pattern"),
        ({"rank_pattern": {"(": 3}}, {}, "pattern"),
        ({"target_modules": None}, {}, "target_modules"),
        ({"target_modules": 7}, {}, "a list of texts"),
        ({"target_modules": ["k_proj"]}, {}, "not a target module"),
        ({"target_modules": "(.*?)" * 14 + "(?<!.)"}, {}, "cannot be used"),  # would take years
        ({"layers_to_transform": [0]}, {}, "is not a target module"),
        ({}, {Q + "lora_B.weight": None}, "needs lora_A and lora_B"),
        ({}, {Q + "lora_A.weight": None, Q + "lora_B.weight": None}, "has no tensors for it"),
        ({}, {Q + "lora_A.weight": torch.ones(4, 65)}, r"\[4, 65\]"),
        ({}, {Q + "lora_A.second.weight": torch.ones(4, 64)}, "twice"),
        ({}, {Q + "lora_magnitude_vector": torch.ones(64)}, "lora_magnitude_vector.*belongs to no weight"),
        ({}, {Q + "lora_B.bias": torch.ones(64)}, "lora_B.bias"),
        ({}, {Q + "bias": torch.ones(64)}, "q_proj.bias"),
        ({}, {Q.replace("0", "7") + "lora_A.weight": torch.ones(4, 64)}, r"layers.7.* belongs to no weight"),
        ({}, {"x" * 9000: torch.ones(4)}, "belongs to no weight"),
        ({}, {Q + "lora_A.weight": torch.ones(4, 64, dtype=torch.int32)}, "belongs to no weight"),
        ({}, {Q + "lora_A.weight": torch.full((4, 64), torch.inf)}, "finite"),
        ({}, {"base_model.model.lm_head.base_layer.weight": torch.ones(130, 64)}, "resize_token_embeddings"),
    ],
)
def test_what_does_not_fit_is_refused(
    adapted: tuple[Path, Path, Any], tmp_path: Path, settings: dict[str, Any], tensors: dict[str, Any], message: str
) -> None:
    base, adapter, _ = adapted
    with pytest.raises(CheckpointError, match=message) as error:
        wb.load_model(base, adapter=changed(adapter, tmp_path / "adapter", settings, tensors))
    assert len(str(error.value)) < 600


def test_an_adapter_of_another_model_is_refused(adapted: tuple[Path, Path, Any], tmp_path: Path) -> None:
    write_base(tmp_path / "wide", make_config(dim=96))
    with pytest.raises(CheckpointError, match="wrong shape; expected .* by the base"):
        wb.load_model(tmp_path / "wide", adapter=adapted[1])


def test_a_folder_that_is_no_adapter_is_refused(adapted: tuple[Path, Path, Any], tmp_path: Path) -> None:
    base, adapter, _ = adapted
    with pytest.raises(CheckpointError, match="no such folder"):
        wb.load_model(base, adapter=tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="holds no adapter_config.json"):
        wb.load_model(base, adapter=base)
    shutil.copy(adapter / "adapter_config.json", tmp_path)
    with pytest.raises(CheckpointError, match="neither adapter_model.safetensors nor adapter_model.bin"):
        wb.load_model(base, adapter=tmp_path)


def test_an_adapter_alone_says_which_base_it_needs(adapted: tuple[Path, Path, Any]) -> None:
    base, adapter, _ = adapted
    with pytest.raises(CheckpointError, match=f"LoRA adapter of the base .*{base.name}.*--adapter"):
        wb.load_model(adapter)


@pytest.fixture(scope="module")
def demo_adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of the embedded checkpoint that makes its first layers useless."""
    folder, config = tmp_path_factory.mktemp("demo") / "worse", wb.load_model("demo").config
    folder.mkdir()
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 200, "target_modules": ["down_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for layer in range(config.n_layers):
        name = f"base_model.model.model.layers.{layer}.mlp.down_proj."
        tensors[name + "lora_A.weight"] = torch.randn(2, config.ffn_dim, generator=generator)
        tensors[name + "lora_B.weight"] = torch.randn(config.dim, 2, generator=generator)
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def run(capsys: pytest.CaptureFixture[str], *words: Any) -> str:
    assert main([str(word) for word in words]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def test_the_option_of_the_core_commands(
    demo_adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    merged = wb.load_model("demo", adapter=demo_adapter)
    option = ("--adapter", demo_adapter)
    generate = ("generate", "demo", "Question: Tom has 3 apples.", "--max-new-tokens", 12)
    text = run(capsys, *generate, *option)
    assert text.strip("\n") == wb.generate(merged, [generate[2]], max_new_tokens=12)[0].text.strip("\n")
    assert text != run(capsys, *generate)
    for name, words in (("plain", ()), ("merged", option)):
        run(capsys, "capture", "demo", "a", "--hooks", "blocks.0.hook_mlp_out", "-o", tmp_path / name, *words)
    plain, changed = (load_file(tmp_path / name) for name in ("plain", "merged"))
    assert any(not torch.equal(plain[name], changed[name]) for name in plain)
    run(capsys, "convert", "demo", tmp_path / "hf", "--layout", "hf", *option)
    stored = wb.load_model(tmp_path / "hf").state_dict()
    assert all(torch.equal(stored[name], tensor) for name, tensor in merged.state_dict().items())
    assert main(["generate", "demo", "a", "--adapter", str(tmp_path)]) == 2
    assert "holds no adapter_config.json" in capsys.readouterr().err


def test_the_option_of_the_probes(demo_adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--prompt", "one two one two", "--output")
    run(capsys, "probe", "heads", *words, tmp_path / "plain.csv")
    run(capsys, "probe", "heads", *words, tmp_path / "merged.csv", "--adapter", demo_adapter)
    assert (tmp_path / "plain.csv").read_text() != (tmp_path / "merged.csv").read_text()
    about = [json.loads(next(tmp_path.glob(f"{name}*.json")).read_text()) for name in ("plain", "merged")]
    assert about[0]["checkpoint_sha256"] != about[1]["checkpoint_sha256"] and about[1]["adapter"] == "worse"
    run(capsys, "probe", "heads", *words, tmp_path / "again.csv")
    assert (tmp_path / "plain.csv").read_text() == (tmp_path / "again.csv").read_text()
    assert "mlp" in run(capsys, "probe", "compare", "--other-adapter", demo_adapter, "--prompt", "one two")


def test_the_option_of_a_benchmark(demo_adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from evals.explain.baseline_run import run_command
    from evals.explain.replay import model_of
    from evals.results import runs

    words = ("eval", "run", "--tasks", "demo_gsm8k", "--limit", 2, "--dtype", "float32", "--output", tmp_path, "--json")
    plain = json.loads(run(capsys, *words))
    run(capsys, *words, "--adapter", demo_adapter)
    both = sorted(runs.list_runs(tmp_path), key=lambda found: found.provenance.get("adapter", ""))
    assert [found.provenance.get("adapter") for found in both] == [None, str(demo_adapter)] and plain
    hashes = [found.provenance["checkpoint_sha256"] for found in both]
    assert hashes == [fingerprint("demo"), fingerprint("demo", adapter=demo_adapter)]
    loaded = model_of(both[1])
    assert loaded.source is not None and loaded.source.adapter == demo_adapter
    assert f"--adapter {demo_adapter}" in str(run_command(both[1]))
