"""The tokenizer against known ids, against Hugging Face's, and on difficult text."""

import base64
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from workbench.errors import TokenizerError
from workbench.text.roles import LLAMA3_SPECIALS
from workbench.text.tokenizer import Tokenizer, find_tokenizer
from workbench.text.vocabulary_files import LLAMA3_PATTERN


@pytest.fixture(scope="session")
def llama3_file(shared_data: Path) -> Path:
    return shared_data / "tokenizers" / "llama3" / "tokenizer.model"


@pytest.fixture(scope="session")
def llama3(llama3_file: Path) -> Tokenizer:
    return Tokenizer.from_file(llama3_file)


@pytest.fixture(scope="session")
def shakespeare(shared_data: Path) -> str:
    return (shared_data / "tinyshakespeare" / "input.txt").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def hf_json(llama3_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer.json made from the same ranks by Hugging Face's own converter."""
    convert = pytest.importorskip("transformers.convert_slow_tokenizer", reason="transformers is not installed")
    converter = convert.TikTokenConverter(
        vocab_file=str(llama3_file),
        extra_special_tokens=list(Tokenizer.from_file(llama3_file).special_tokens),
    )
    path = tmp_path_factory.mktemp("hf") / "tokenizer.json"
    converter.converted().save(str(path))
    return path


def small_ranks() -> dict[bytes, int]:
    """All bytes, then "he", "ll", "hell", "hello", " hello"; small enough to check by hand."""
    merged = [b"he", b"ll", b"hell", b"hello", b" hello"]
    return {bytes([b]): b for b in range(256)} | {token: 256 + i for i, token in enumerate(merged)}


@pytest.fixture
def small() -> Tokenizer:
    return Tokenizer.from_ranks(small_ranks())


def test_known_ids(llama3: Tokenizer) -> None:
    assert llama3.encode("This is a test sentence.") == [2028, 374, 264, 1296, 11914, 13]
    assert llama3.encode("This is a test sentence.", bos=True, eos=True)[::7] == [128000, 128001]
    assert llama3.vocab_size == 128_256
    assert (llama3.bos_id, llama3.eos_id, llama3.eom_id, llama3.eot_id) == (128000, 128001, 128008, 128009)
    assert llama3.special("<|start_header_id|>") == 128006
    assert llama3.special("<|end_header_id|>") == 128007
    assert llama3.special("<|finetune_right_pad_id|>") == 128004
    assert llama3.special("<|python_tag|>") == 128010
    assert llama3.special("<|reserved_special_token_2|>") == 128012
    assert llama3.special("<|reserved_special_token_245|>") == 128255
    assert llama3.stop_ids == {128001, 128008, 128009}


def test_merges_worked_by_hand(small: Tokenizer) -> None:
    assert small.encode("hello hello") == [259, 260]
    assert small.encode("hellhe 12") == [258, 256, 32, 49, 50]
    assert small.tokens([258, 256]) == [b"hell", b"he"]
    assert small.vocab_size == 261 + 256
    assert small.bos_id == 261
    assert small.eot_id == 261 + 9


def test_round_trip_of_a_long_text_equals_one_piece(llama3: Tokenizer, shakespeare: str) -> None:
    ids = llama3.encode(shakespeare)
    assert llama3.decode(ids, errors="strict") == shakespeare
    assert ids == llama3._engine.encoding.encode_ordinary(shakespeare)


def test_random_bytes_round_trip(llama3: Tokenizer) -> None:
    data = random.Random(0).randbytes(20_000)
    assert llama3.decode_bytes(llama3.encode_bytes(data)) == data
    text = data.decode("latin-1")
    assert llama3.decode(llama3.encode(text), errors="strict") == text
    valid = "naïve 漢字 🙂"
    assert llama3.encode_bytes(valid.encode()) == llama3.encode(valid)


def test_equal_to_hugging_face_on_the_same_ranks(llama3: Tokenizer, hf_json: Path, shakespeare: str) -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="the tokenizers package is not installed")
    theirs = tokenizers.Tokenizer.from_file(str(hf_json))
    rng = random.Random(1)
    alphabet = "ab Z9 \n\t\r'sLL.,!\u00a0é漢🙂\u0301\u2028"
    texts = ["".join(rng.choices(alphabet, k=200)) for _ in range(200)]
    for text in [*texts, shakespeare[:50_000], "It's 12345.67  \n\n  they'LL\r\nx"]:
        assert llama3.encode(text) == theirs.encode(text, add_special_tokens=False).ids


def test_hugging_face_file_gives_the_same_tokenizer(llama3: Tokenizer, hf_json: Path) -> None:
    ours = Tokenizer.from_file(hf_json)
    assert ours.to_tiktoken() == llama3.to_tiktoken()
    assert ours.special_tokens == llama3.special_tokens
    assert ours.encode("This is a test sentence.") == [2028, 374, 264, 1296, 11914, 13]
    assert ours.sha256 != llama3.sha256  # the hash is the file's


def test_tiktoken_content_is_the_file(llama3: Tokenizer, llama3_file: Path) -> None:
    assert llama3.to_tiktoken() == llama3_file.read_bytes()


def test_special_text_is_text_unless_allowed(llama3: Tokenizer) -> None:
    text = "a<|eot_id|><|begin_of_text|>b"
    plain = llama3.encode(text)
    assert max(plain) < 128_000
    assert llama3.decode(plain) == text
    assert llama3.encode(text, allow_special=True) == [64, 128009, 128000, 65]


def test_special_token_across_a_cut(small: Tokenizer) -> None:
    text = "a" * 399_995 + "<|eot_id|>" + "b"
    ids = small.encode(text, allow_special=True)
    assert ids.count(small.eot_id) == 1 and len(ids) == 399_997


@pytest.mark.parametrize("unit", ["a", " ", "\n", "\t ", "!", "7", "é", "漢", "🙂", "\u00a0"])
def test_long_runs_take_linear_time(llama3: Tokenizer, unit: str) -> None:
    text = (unit * 1_000_000)[:1_000_000]
    begin = time.perf_counter()
    ids = llama3.encode(text)
    assert time.perf_counter() - begin < 20, "a second or so is usual; quadratic time would be hours"
    assert llama3.decode(ids, errors="strict") == text


def test_runs_are_cut_as_in_the_reference(llama3: Tokenizer) -> None:
    text = "x " + "a" * 60_000 + "  end"
    pieces = [text[:25_002], text[25_002:50_002], text[50_002:]]
    assert llama3.encode(text) == [i for piece in pieces for i in llama3._engine.encoding.encode_ordinary(piece)]


def test_text_without_spaces_is_cut_at_line_breaks(llama3: Tokenizer) -> None:
    text = "\n".join("漢字かな交じり文" * n for n in (3, 5, 7)) + "\n"
    text = (text * 4_000)[:450_000]
    assert llama3.encode(text) == llama3._engine.encoding.encode_ordinary(text)


def test_decode_strict_and_lossy(llama3: Tokenizer) -> None:
    ids = llama3.encode("🙂")
    assert len(ids) > 1
    assert llama3.decode(ids[:1]) == "\ufffd"
    with pytest.raises(TokenizerError, match="not UTF-8 at byte 0"):
        llama3.decode(ids[:1], errors="strict")
    assert b"".join(llama3.tokens(ids)) == "🙂".encode()
    assert llama3.token_bytes(128009) == b"<|eot_id|>"


@pytest.mark.parametrize("token", [-1, 128_256, 10**9])
def test_unknown_id(llama3: Tokenizer, token: int) -> None:
    with pytest.raises(TokenizerError, match=rf"{token} is not in the vocabulary, which ends at 128255"):
        llama3.decode([1, token])


def test_empty_and_wrong_input(small: Tokenizer) -> None:
    assert small.encode("") == []
    assert small.decode([]) == ""
    with pytest.raises(TokenizerError, match="encode takes text, found bytes"):
        small.encode(b"abc")  # type: ignore[arg-type]
    with pytest.raises(TokenizerError, match="no special token"):
        small.special("<|nope|>")


def write_ranks(path: Path, ranks: dict[bytes, int]) -> Path:
    path.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items()))
    return path


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda r: r.pop(b"ll"), "ranks are not 0..259"),
        (
            lambda r: r.pop(b" hello") and r.pop(b"A") and r.update({b"hello": 65}),
            "ranks are not|have no rank",
        ),
        (lambda r: r.update({b"xx": 3}), "ranks are not"),
    ],
)
def test_damaged_ranks(tmp_path: Path, damage: object, message: str) -> None:
    ranks = small_ranks()
    damage(ranks)  # type: ignore[operator]
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.from_file(write_ranks(tmp_path / "tokenizer.model", ranks))


def test_truncated_file(tmp_path: Path) -> None:
    path = write_ranks(tmp_path / "tokenizer.model", small_ranks())
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(TokenizerError, match="line 261"):
        Tokenizer.from_file(path)


def test_missing_file_and_directory(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="no such file"):
        Tokenizer.from_file(tmp_path / "tokenizer.model")
    with pytest.raises(TokenizerError, match="no tokenizer.model or"):
        Tokenizer.from_file(tmp_path)
    write_ranks(tmp_path / "tokenizer.model", small_ranks())
    assert find_tokenizer(tmp_path) == tmp_path / "tokenizer.model"
    assert Tokenizer.from_file(tmp_path).encode("hello") == [259]


def small_json() -> dict[str, Any]:
    """`small_ranks` in Hugging Face's format; only the byte alphabet comes from its package."""
    convert = pytest.importorskip("transformers.convert_slow_tokenizer", reason="transformers is not installed")
    spelled = convert.bytes_to_unicode()
    ranks = small_ranks()
    split = {"type": "Split", "pattern": {"Regex": LLAMA3_PATTERN}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "added_tokens": [{"content": name, "id": len(ranks) + i} | flags for i, name in enumerate(LLAMA3_SPECIALS)],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "model": {
            "type": "BPE",
            "ignore_merges": True,
            "vocab": {"".join(spelled[b] for b in token): rank for token, rank in ranks.items()},
            "merges": [["h", "e"], ["l", "l"], ["he", "ll"], ["hell", "o"], ["Ġ", "hello"]],
        },
    }


def edited(tmp_path: Path, **changes: object) -> Path:
    spec = small_json()
    for key, value in changes.items():
        *parents, last = key.split("__")
        target = spec
        for parent in parents:
            target = target[parent]
        target[last] = value
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(spec))
    return path


def test_small_tokenizer_json(tmp_path: Path, small: Tokenizer) -> None:
    ours = Tokenizer.from_file(edited(tmp_path))
    assert ours.encode("hello hello") == [259, 260]
    assert ours.special_tokens == small.special_tokens
    assert ours.sha256 != small.sha256
    old_style = edited(tmp_path, model__merges=["h e", "l l", "he ll", "hell o", "Ġ hello"])
    assert Tokenizer.from_file(old_style).to_tiktoken() == small.to_tiktoken()


def changed_steps(*steps: dict[str, Any]) -> dict[str, object]:
    split, byte_level = small_json()["pre_tokenizer"]["pretokenizers"]
    kinds = {"split": split, "byte_level": byte_level}
    chosen = [kinds[step["name"]] | step.get("with", {}) if "name" in step else step for step in steps]
    return {"pre_tokenizer__pretokenizers": chosen}


SPLIT, BYTE_LEVEL = {"name": "split"}, {"name": "byte_level"}
NOT_SPECIAL = {"content": "<drug>", "id": 517, "special": False} | dict.fromkeys(
    ("single_word", "lstrip", "rstrip", "normalized"), False
)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (lambda: {"model__byte_fallback": True}, "found SentencePiece BPE"),
        (lambda: {"normalizer": {"type": "NFC"}}, "does not normalise"),
        (lambda: {"pre_tokenizer": {"type": "Whitespace"}}, "found other steps .Whitespace"),
        (lambda: changed_steps({"type": "Digits", "individual_digits": True}, SPLIT, BYTE_LEVEL), "Digits, Split"),
        (lambda: changed_steps(SPLIT | {"with": {"invert": True}}, BYTE_LEVEL), "found other steps .Split"),
        (lambda: changed_steps(SPLIT | {"with": {"behavior": "Removed"}}, BYTE_LEVEL), "found other steps .Split"),
        (
            lambda: changed_steps(SPLIT | {"with": {"pattern": {"Regex": r"\\w+"}}}, BYTE_LEVEL),
            "found other steps .Split",
        ),
        (lambda: changed_steps(SPLIT, BYTE_LEVEL | {"with": {"add_prefix_space": True}}), "found other steps .Split"),
        (
            lambda: {"model__merges": [["l", "l"], ["h", "e"], ["he", "ll"], ["hell", "o"], ["Ġ", "hello"]]},
            "'h' . 'e' gives token 256, but the one before it gives 257",
        ),
        (lambda: {"model__merges": [["h", "e"]], "model__ignore_merges": False}, "no merge makes the token"),
        (lambda: {"added_tokens": [*small_json()["added_tokens"], NOT_SPECIAL]}, "1 added tokens are not special"),
    ],
)
def test_tokenizer_json_that_metas_file_cannot_state(
    tmp_path: Path, changes: Callable[[], dict[str, object]], message: str
) -> None:
    """It is read, because the library reads it, but never converted into something else."""
    tokenizer = Tokenizer.from_file(edited(tmp_path, **changes()))
    assert not tokenizer.has_meta_specials
    with pytest.raises(TokenizerError, match=f"cannot be written as Meta's tokenizer.model.*{message}"):
        tokenizer.to_tiktoken()


def test_early_names_of_special_tokens(tmp_path: Path) -> None:
    """Llama 3.0's file calls <|eom_id|> a reserved token; its id is the same."""
    added = small_json()["added_tokens"]
    added[8]["content"], added[10]["content"] = (
        "<|reserved_special_token_4|>x",
        "<|reserved_special_token_5|>x",
    )
    tokenizer = Tokenizer.from_file(edited(tmp_path, added_tokens=added))
    assert tokenizer.eom_id == 261 + 8 and tokenizer.eom_id in tokenizer.stop_ids
    assert tokenizer.special("<|python_tag|>") == 261 + 10
    assert max(tokenizer.encode("<|eom_id|>", allow_special=True)) < 261
