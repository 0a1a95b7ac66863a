"""Byte-level tokenizers in GGUF files, written by the library `gguf`, against `tokenizers` with the published steps.

SentencePiece vocabularies in GGUF files are in test_sentencepiece.py, SmolLM2's own file in test_tokenizer_json.py.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.workbench.text.texts import texts, write_json
from workbench.errors import TokenizerError
from workbench.text.tokenizer import Tokenizer
from workbench.text.vocabulary_files import LLAMA3_PATTERN

gguf = pytest.importorskip("gguf", reason="gguf is not installed")
tokenizers = pytest.importorskip("tokenizers", reason="the tokenizers package is not installed")

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 1, 2, 3, 4, 5
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
GPT2 = BYTE_LEVEL | {"use_regex": True}


def split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
DIGITS = {"type": "Digits", "individual_digits": True}
# The steps of published tokenizer.json files, and whether a whole word that is a token is not merged.
PUBLISHED: dict[str, tuple[list[dict[str, Any]], bool]] = {
    "llama-bpe": ([split(LLAMA3_PATTERN), BYTE_LEVEL], True),
    "llama3": ([split(LLAMA3_PATTERN), BYTE_LEVEL], True),
    "smaug-bpe": ([split(LLAMA3_PATTERN), BYTE_LEVEL], False),
    "gpt-2": ([GPT2], False),
    "smollm": ([DIGITS, GPT2], False),
    "starcoder": ([DIGITS, GPT2], False),
    "qwen2": ([split(LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")), BYTE_LEVEL], False),
    "default": (
        # Matches are characters here, not bytes: ByteLevel comes last.
        [
            split(r"[\p{P}\$\+<=>\^~\|]+"),
            split(GPT2_PATTERN),
            split(r"\p{N}+"),
            split("[0-9][0-9][0-9]"),
            BYTE_LEVEL,
        ],  # fmt: skip
        False,
    ),
    "bloom": ([split(r" ?[^(\s|[.,!?…。，、।۔،])]+"), BYTE_LEVEL], False),
}


@pytest.fixture(scope="module")
def trained(shared_data: Path) -> Any:
    """A byte-level BPE of 2,000 tokens, trained by the library on Tiny Shakespeare and the words of these tests."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=2000,
        show_progress=False,
        special_tokens=["<|begin|>", "<|im_end|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    text = (shared_data / "tinyshakespeare" / "input.txt").read_text(encoding="utf-8")[:200_000]
    numbers = [f"{i} x{i}" for i in range(3000)]
    tokenizer.train_from_iterator([text, *numbers, *texts(2000, 1)], trainer)
    return tokenizer


def write_gguf(path: Path, spec: dict[str, Any], **changes: Any) -> Path:
    """The vocabulary of a `tokenizer.json` in a GGUF file, with an added token and an unused id after it."""
    vocab = sorted(spec["model"]["vocab"], key=spec["model"]["vocab"].__getitem__)
    special = {token["content"] for token in spec["added_tokens"]}
    merges = [" ".join(merge) for merge in spec["model"]["merges"]]
    keys: dict[str, Any] = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": [*vocab, "<think>", "[PAD0]"],
        "types": [CONTROL if token in special else NORMAL for token in vocab] + [USER_DEFINED, UNUSED],
        "merges": merges,
        "bos": 0,
        "eos": 1,
        "template": "{{ messages }}<|im_end|>",
    } | changes
    writer = gguf.GGUFWriter(path, "llama")
    writers = {
        "model": writer.add_tokenizer_model,
        "pre": writer.add_tokenizer_pre,
        "tokens": writer.add_token_list,
        "types": writer.add_token_types,
        "merges": writer.add_token_merges,
        "bos": writer.add_bos_token_id,
        "eos": writer.add_eos_token_id,
        "eot": writer.add_eot_token_id,
        "adds_bos": writer.add_add_bos_token,
        "template": writer.add_chat_template,
    }
    for name, value in keys.items():
        if value is not None:
            writers[name](value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def spec_of(trained: Any) -> dict[str, Any]:
    spec: dict[str, Any] = json.loads(trained.to_str())
    return spec


@pytest.mark.parametrize("pre", PUBLISHED)
def test_ids_are_those_of_the_published_steps(trained: Any, tmp_path: Path, pre: str) -> None:
    spec = spec_of(trained)
    steps, ignore_merges = PUBLISHED[pre]
    spec["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    spec["model"]["ignore_merges"] = ignore_merges
    spec["decoder"] = BYTE_LEVEL
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    number = len(spec["model"]["vocab"])
    spec["added_tokens"].append({"id": number, "content": "<think>", "special": False} | flags)
    theirs = tokenizers.Tokenizer.from_file(str(write_json(tmp_path / "tokenizer.json", spec)))
    theirs.encode_special_tokens = True
    ours = Tokenizer.from_file(write_gguf(tmp_path / "model.gguf", spec_of(trained), pre=pre))
    for text in texts(500, 3, ("<think>", "<|im_end|>", "[PAD0]")):
        ids = theirs.encode(text, add_special_tokens=False).ids
        assert ours.encode(text) == ids, ascii(text)
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=False)


def test_roles_come_from_the_metadata(trained: Any, tmp_path: Path) -> None:
    ours = Tokenizer.from_file(write_gguf(tmp_path / "a.gguf", spec_of(trained), adds_bos=True, eot=2))
    assert (ours.bos_id, ours.eos_id, ours.unk_id, ours.adds_bos) == (0, 1, None, True)
    assert ours.eot_id == 1  # the template's
    assert ours.stop_ids == {1, 2}
    assert ours.encode("<|im_end|>", allow_special=True, bos=True) == [0, 1]
    assert ours.vocab_size == len(spec_of(trained)["model"]["vocab"]) + 1  # the last id is unused
    assert ours.chat_template == "{{ messages }}<|im_end|>"


@pytest.mark.parametrize(("pre", "adds_bos"), [("llama-bpe", True), ("smollm", False)])
def test_a_begin_token_by_the_familys_rule(trained: Any, tmp_path: Path, pre: str, adds_bos: bool) -> None:
    assert Tokenizer.from_file(write_gguf(tmp_path / "a.gguf", spec_of(trained), pre=pre)).adds_bos == adds_bos
    said = write_gguf(tmp_path / "b.gguf", spec_of(trained), pre=pre, adds_bos=not adds_bos)
    assert Tokenizer.from_file(said).adds_bos != adds_bos


def test_the_hash_is_the_tokenizers_alone(trained: Any, tmp_path: Path) -> None:
    a, b = (Tokenizer.from_file(write_gguf(tmp_path / name, spec_of(trained))) for name in ("a.gguf", "b.gguf"))
    other = Tokenizer.from_file(write_gguf(tmp_path / "c.gguf", spec_of(trained), pre="smollm"))
    assert a.sha256 == b.sha256 != other.sha256


def test_a_file_without_a_splitting_is_noted(trained: Any, tmp_path: Path) -> None:
    ours = Tokenizer.from_file(write_gguf(tmp_path / "a.gguf", spec_of(trained), pre=None))
    assert "does not say how its tokenizer splits a text" in ours.notes[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pre": "kimi-k2"}, "splitting 'kimi-k2' .tokenizer.ggml.pre. is not known"),
        ({"model": "bert"}, "of the kind 'bert'"),
        ({"model": None}, "has no tokenizer"),
        ({"tokens": None}, "no list of tokens"),
        ({"types": [1, 2]}, "not as many token types"),
        ({"merges": ["he"]}, "not two tokens .'he'."),
        ({"merges": ["Ġ zzzz"]}, "cannot make one"),
        ({"tokens": ["a", "a"], "types": [1, 1], "merges": None}, "same token twice"),
    ],
)
def test_tokenizers_that_cannot_be_read(trained: Any, tmp_path: Path, changes: dict[str, object], message: str) -> None:
    path = write_gguf(tmp_path / "a.gguf", spec_of(trained), **changes)
    with pytest.raises(TokenizerError, match=message) as caught:
        Tokenizer.from_file(path)
    assert str(caught.value).startswith(str(path)) and len(str(caught.value)) - len(str(path)) < 300


def test_it_becomes_a_tokenizer_json(trained: Any, tmp_path: Path) -> None:
    ours = Tokenizer.from_file(write_gguf(tmp_path / "a.gguf", spec_of(trained), adds_bos=True))
    path = write_json(tmp_path / "tokenizer.json", ours.to_hf_json())
    theirs = tokenizers.Tokenizer.from_file(str(path))
    assert theirs.encode("To be").ids == ours.encode("To be", bos=True) == [0, *ours.encode("To be")]
    again = Tokenizer.from_file(path)
    assert again.adds_bos and again.bos_id == 0
    for text in texts(100, 6, ("<think>", "<|im_end|>")):
        assert again.encode(text) == ours.encode(text)
