"""`tokenizer.json` files of many kinds against the library `tokenizers`, and SmolLM2's against the file of its GGUF."""

import copy
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.workbench.text.texts import texts, write_json
from workbench.errors import TokenizerError
from workbench.text.tokenizer import Tokenizer

tokenizers = pytest.importorskip("tokenizers", reason="the tokenizers package is not installed")

FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
Spec = dict[str, Any]


@pytest.fixture(scope="module")
def small_json() -> Spec:
    """All bytes, five merges and Llama 3's special tokens, without a begin token before a text."""
    merged = [b"in", b" t", b"he", b" the", b"12"]
    ranks = {bytes([b]): b for b in range(256)} | {token: 256 + i for i, token in enumerate(merged)}
    return Tokenizer.from_ranks(ranks).to_hf_json()


def both(spec: Spec, folder: Path) -> tuple[Tokenizer, Any]:
    path = write_json(folder / "tokenizer.json", spec)
    return Tokenizer.from_file(path), tokenizers.Tokenizer.from_file(str(path))


def assert_equal(ours: Tokenizer, theirs: Any, text: str) -> None:
    theirs.encode_special_tokens = True
    plain = theirs.encode(text, add_special_tokens=False).ids
    assert ours.encode(text) == plain, ascii(text)
    assert ours.decode(plain) == theirs.decode(plain, skip_special_tokens=False), ascii(text)
    theirs.encode_special_tokens = False
    assert ours.encode(text, allow_special=True) == theirs.encode(text, add_special_tokens=False).ids, ascii(text)


def change(*path: str | int, **values: object) -> Callable[[Spec], None]:
    def edit(spec: Spec) -> None:
        target: Any = spec
        for key in path:
            target = target[key]
        target.update(values)

    return edit


STEPS = ("pre_tokenizer", "pretokenizers")
SPLIT = (*STEPS, 0)


def first_step(step: Spec) -> Callable[[Spec], None]:
    return lambda spec: spec["pre_tokenizer"]["pretokenizers"].insert(0, step)


def model_of(**model: object) -> Callable[[Spec], None]:
    """Another model, with a vocabulary of its own and without added tokens."""

    def edit(spec: Spec) -> None:
        spec.update(
            model=model, added_tokens=[], post_processor=None, pre_tokenizer={"type": "Whitespace"}, decoder=None
        )

    return edit


WORDS = {word: i for i, word in enumerate(["[UNK]", "The", "the", "##y", "x", "##1", "1", "12", "can", "'", "t"])}
KINDS: dict[str, Callable[[Spec], None]] = {
    "bloom": change(*SPLIT, pattern={"Regex": r" ?[^(\s|[.,!?…。，、।۔،])]+"}),
    "numbers alone": change(*SPLIT, pattern={"Regex": r"\p{N}"}),
    "words alone": change(*SPLIT, pattern={"Regex": r"\w+"}),
    "a text instead of a pattern": change(*SPLIT, pattern={"String": " "}),
    "a pattern that matches nothing": change(*SPLIT, pattern={"Regex": "x*"}),
    "removed": change(*SPLIT, pattern={"Regex": r"\s+"}, behavior="Removed"),
    "removed, inverted": change(*SPLIT, behavior="Removed", invert=True),
    "merged with the next": change(*SPLIT, pattern={"Regex": r"\s"}, behavior="MergedWithNext"),
    "merged with the previous": change(*SPLIT, pattern={"Regex": r"\s"}, behavior="MergedWithPrevious"),
    "contiguous": change(*SPLIT, pattern={"Regex": r"\s"}, behavior="Contiguous"),
    "digits apart": first_step({"type": "Digits", "individual_digits": True}),
    "punctuation apart": first_step({"type": "Punctuation", "behavior": "Isolated"}),
    "merges needed": change("model", ignore_merges=False, merges=[["i", "n"], ["h", "e"]]),
    "space before": change(*STEPS, 1, add_prefix_space=True),
    "normalised": lambda spec: spec.update(normalizer={"type": "NFKC"}),
    "lower case": lambda spec: spec.update(normalizer={"type": "Lowercase"}),
    "token of a reader": lambda spec: spec["added_tokens"].append(
        {"id": 517, "content": "<think>", "special": False} | FLAGS | {"rstrip": True, "lstrip": True}
    ),
    "normalised token": lambda spec: spec["added_tokens"].append(
        {"id": 517, "content": "The", "special": False} | FLAGS | {"normalized": True, "single_word": True}
    ),
    "WordPiece": model_of(
        type="WordPiece", unk_token="[UNK]", continuing_subword_prefix="##", max_input_chars_per_word=50, vocab=WORDS
    ),
    "WordLevel": model_of(type="WordLevel", unk_token="[UNK]", vocab=WORDS),
    "Unigram": model_of(type="Unigram", unk_id=0, vocab=[[word, -float(i)] for word, i in WORDS.items()]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_ids_and_texts_are_the_librarys(small_json: Spec, tmp_path: Path, kind: str) -> None:
    spec = copy.deepcopy(small_json)
    KINDS[kind](spec)
    ours, theirs = both(spec, tmp_path)
    for text in [
        "Hello, world! It costs 12.50 (twice).",
        "1234567",
        "in the end",
        *texts(300, 5, ("<think>", "<|eot_id|>")),
    ]:
        assert_equal(ours, theirs, text)


@pytest.mark.parametrize(
    ("kind", "text", "count"),
    [
        ("bloom", "Hello, world! It costs 12.50 (twice).", 36),
        ("words alone", "Hello, world!", 13),
        ("digits apart", "1212121", 7),
        ("merges needed", "in the end", 8),
    ],
)
def test_nothing_is_lost_or_split_otherwise(small_json: Spec, tmp_path: Path, kind: str, text: str, count: int) -> None:
    """Counted by hand: bytes less one for every merge."""
    spec = copy.deepcopy(small_json)
    KINDS[kind](spec)
    ours, _ = both(spec, tmp_path)
    assert len(ours.encode(text)) == count
    assert ours.decode(ours.encode(text)) == text


def test_truncation_and_padding_of_a_file_are_not_applied(small_json: Spec, tmp_path: Path) -> None:
    cut = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    fill = {"strategy": {"Fixed": 30}, "direction": "Right", "pad_to_multiple_of": None}
    fill |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "!"}
    ours, _ = both(small_json | {"truncation": cut, "padding": fill}, tmp_path)
    assert ours.decode(ours.encode("a long text")) == "a long text"


def test_added_tokens_that_are_not_special_are_found(small_json: Spec, tmp_path: Path) -> None:
    spec = copy.deepcopy(small_json)
    spec["added_tokens"].append({"id": 517, "content": "<drug>", "special": False} | FLAGS)
    ours, _ = both(spec, tmp_path)
    assert ours.encode("x <drug>y<|eot_id|>")[:3] == [120, 32, 517]
    assert ours.special("<drug>") == 517 and "<drug>" not in ours.special_tokens
    assert ours.token_bytes(517) == b"<drug>"
    assert max(ours.encode("<|eot_id|>")) < 256


def test_ids_may_have_holes(small_json: Spec, tmp_path: Path) -> None:
    spec = copy.deepcopy(small_json)
    spec["model"]["vocab"] |= {token["content"]: token["id"] for token in spec["added_tokens"]} | {"Ġin": 900}
    ours, _ = both(spec, tmp_path)
    assert ours.vocab_size == 901 and ours.has_token(900) and not ours.has_token(899)
    with pytest.raises(TokenizerError, match="899 has no token"):
        ours.decode([899])
    with pytest.raises(TokenizerError, match="901 is not in the vocabulary, which ends at 900"):
        ours.token_bytes(901)


def test_bytes_of_tokens(small_json: Spec, tmp_path: Path) -> None:
    ours, _ = both(small_json, tmp_path)
    text = "naïve 漢字 🙂 the"
    assert b"".join(ours.tokens(ours.encode(text))) == text.encode()
    assert ours.decode(ours.encode(text)[:4]) == "na\ufffd" or ours.tokens(ours.encode("ï")) == [b"\xc3", b"\xaf"]
    wordpiece = copy.deepcopy(small_json)
    KINDS["WordPiece"](wordpiece)
    wordpiece["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": False}
    ours, theirs = both(wordpiece, tmp_path)
    ids = [1, 3, 4, 5]
    assert ours.tokens(ids) == [b" The", b"y", b" x", b"1"]
    assert ours.decode(ids) == theirs.decode(ids) == "They x1"


def test_an_id_that_the_library_gives_otherwise_is_noted(small_json: Spec, tmp_path: Path) -> None:
    spec = copy.deepcopy(small_json)
    spec["added_tokens"].append({"id": 700, "content": "<drug>", "special": False} | FLAGS)
    ours, theirs = both(spec, tmp_path)
    assert ours.special("<drug>") == theirs.token_to_id("<drug>") == 517
    assert "1 added tokens have another id than the file says (first: '<drug>', 517 for 700)" in ours.notes[0]


def test_two_threads_do_not_see_each_others_switch(small_json: Spec, tmp_path: Path) -> None:
    ours, _ = both(small_json, tmp_path)
    text = "<|eot_id|>" * 50
    wrong: list[bool] = []

    def work(allow: bool) -> None:
        for _ in range(200):
            wrong.append((max(ours.encode(text, allow_special=allow)) > 256) != allow)

    threads = [threading.Thread(target=work, args=(allow,)) for allow in (True, False)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wrong) == 400 and not any(wrong)


def test_half_characters_are_replaced(small_json: Spec, tmp_path: Path) -> None:
    ours, _ = both(small_json, tmp_path)
    assert ours.decode(ours.encode("a\ud800b")) == "a\ufffdb"


@pytest.mark.slow
def test_a_vocabulary_like_llama_3s(shared_data: Path, tmp_path: Path) -> None:
    """The same ids from the library and, by another way, from tiktoken on Meta's own file."""
    meta = Tokenizer.from_file(shared_data / "tokenizers" / "llama3")
    ours, theirs = both(meta.to_hf_json(), tmp_path)
    for text in texts(10_000, 7, ("<|eot_id|>", "<|begin_of_text|>", "<|nothing|>")):
        assert_equal(ours, theirs, text)
        assert ours.encode(text) == meta.encode(text), ascii(text)
    assert ours.to_tiktoken() == meta.to_tiktoken() and ours.has_meta_specials
    assert ours.stop_ids == meta.stop_ids and ours.encode("a", bos=True) == meta.encode("a", bos=True)
    assert ours.splits_at_lines


@pytest.mark.real
@pytest.mark.slow
def test_smollm2_and_its_gguf(smollm2: Path, smollm2_gguf: Path) -> None:
    theirs = tokenizers.Tokenizer.from_file(str(smollm2 / "tokenizer.json"))
    folder, gguf = Tokenizer.from_file(smollm2), Tokenizer.from_file(smollm2_gguf)
    for text in texts(10_000, 8, ("<|im_start|>", "<|im_end|>", "<|endoftext|>")):
        assert_equal(folder, theirs, text)
        assert gguf.encode(text) == folder.encode(text), ascii(text)
        assert gguf.encode(text, allow_special=True) == folder.encode(text, allow_special=True), ascii(text)
    names = (
        "bos_id eos_id unk_id pad_id eot_id eom_id adds_bos stop_ids prefix_id chat_template vocab_size special_tokens"
    )
    for name in names.split():
        assert getattr(gguf, name) == getattr(folder, name), name
    assert (folder.bos_id, folder.eos_id, folder.eot_id, folder.stop_ids) == (1, 2, 2, {2})
    assert not folder.adds_bos and folder.encode("1234", bos=True) == [33, 34, 35, 36]


@pytest.mark.real
@pytest.mark.slow
def test_long_texts_take_the_librarys_time(smollm2: Path, shared_data: Path) -> None:
    text = (shared_data / "tinyshakespeare" / "input.txt").read_text(encoding="utf-8")
    ours, theirs = Tokenizer.from_file(smollm2), tokenizers.Tokenizer.from_file(str(smollm2 / "tokenizer.json"))
    ids = ours.encode(text)

    def least(call: Callable[[], object]) -> float:
        seconds = []
        for _ in range(3):
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
        return min(seconds)

    assert least(lambda: ours.encode(text)) < 1.2 * least(lambda: theirs.encode(text, add_special_tokens=False).ids)
    assert least(lambda: ours.decode(ids)) < 1.5 * least(lambda: theirs.decode(ids, skip_special_tokens=False))


def test_a_file_of_its_own_states_its_roles_alone(small_json: Spec, tmp_path: Path) -> None:
    """The files next to it count for a folder, not for a bare file."""
    write_json(tmp_path / "tokenizer_config.json", {"bos_token": "<|eot_id|>", "add_bos_token": False})
    file, _ = both(small_json, tmp_path)
    folder = Tokenizer.from_file(tmp_path)
    assert file.bos_id == 261 and file.adds_bos
    assert folder.bos_id == 270 and not folder.adds_bos
    assert json.loads((tmp_path / "tokenizer.json").read_text()) == small_json
