"""Tokenizer files that cannot be read: one short TokenizerError each, at once, without the file's content."""

import copy
import json
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from workbench.errors import TokenizerError, WorkbenchError
from workbench.text.tokenizer import Tokenizer

Spec = dict[str, Any]


@pytest.fixture(scope="module")
def spec() -> Spec:
    tokenizer = Tokenizer.from_ranks({bytes([b]): b for b in range(256)} | {b"he": 256, b"ll": 257})
    content = tokenizer.to_hf_json()
    content["added_tokens"] = content["added_tokens"][:3]
    return content


def use(tokenizer: Tokenizer) -> None:
    """Everything that reads a part of the file later."""
    tokenizer.decode(tokenizer.encode("Hello 123 wörld\n", bos=True, allow_special=True))
    tokenizer.tokens(tokenizer.encode("hell 12\n"))
    assert tokenizer.has_meta_specials in (True, False) and tokenizer.splits_at_lines in (True, False)


def complaint(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    start = time.perf_counter()
    with pytest.raises(TokenizerError) as caught:
        Tokenizer.from_file(path)
    assert time.perf_counter() - start < 5
    text = str(caught.value)
    assert path.name in text and len(text) - len(str(path)) < 300
    return text


def edit(change: Callable[[Spec], object]) -> Callable[[Spec], bytes]:
    def edited(spec: Spec) -> bytes:
        changed = copy.deepcopy(spec)
        change(changed)
        return json.dumps(changed).encode()

    return edited


BROKEN: dict[str, tuple[Callable[[Spec], bytes], str]] = {
    "vocabulary is a list": (edit(lambda s: s["model"].update(vocab=[])), "cannot read it"),
    "merge of one part": (edit(lambda s: s["model"]["merges"].append(["a"])), "cannot read it"),
    "merge of three parts": (edit(lambda s: s["model"]["merges"].append(["a", "b", "c"])), "cannot read it"),
    "merges null": (edit(lambda s: s["model"].update(merges=None)), "cannot read it"),
    "merge of no tokens": (edit(lambda s: s["model"]["merges"].append(["he", "zz"])), "cannot read it"),
    "steps null": (edit(lambda s: s["pre_tokenizer"].update(pretokenizers=None)), "cannot read it"),
    "step empty": (edit(lambda s: s.update(pre_tokenizer={})), "cannot read it"),
    "split without a pattern": (edit(lambda s: s["pre_tokenizer"]["pretokenizers"][0].pop("pattern")), "`pattern`"),
    "pattern not valid": (
        edit(lambda s: s["pre_tokenizer"]["pretokenizers"][0].update(pattern={"Regex": "("})),
        "unmatched parenthesis",
    ),
    "decoder unknown": (edit(lambda s: s.update(decoder={"type": "Nope"})), "cannot read it"),
    "begin not listed": (edit(lambda s: s["post_processor"].update(special_tokens={})), "does not have"),
    "id too large": (edit(lambda s: s["model"]["vocab"].update({"zz": 2**40})), "cannot read it"),
    "model absent": (lambda s: b"{}", "Model missing"),
    "a list": (lambda s: b"[]", "cannot read it"),
    "truncated": (lambda s: json.dumps(s).encode()[:3000], "EOF"),
    "not UTF-8": (lambda s: json.dumps(s).encode().replace(b"merges", b"m\xffrges"), "not UTF-8 at byte"),
    "UTF-16": (lambda s: json.dumps(s).encode("utf-16"), "not UTF-8 at byte 0"),
    "deep": (lambda s: b'{"a":' + b"[" * 200_000, "cannot read it"),
    "deep in a step": (
        lambda s: json.dumps(s).encode().replace(b'"normalizer": null', b'"normalizer": ' + b'{"a":' * 200_000),
        "cannot read it",
    ),
    "empty": (lambda s: b"", "is empty"),
    "git-lfs": (lambda s: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "HTML": (lambda s: b"\n<!DOCTYPE html><html></html>", "is a web page"),
}


@pytest.mark.parametrize("damage", BROKEN)
def test_one_short_error(spec: Spec, tmp_path: Path, damage: str) -> None:
    make, message = BROKEN[damage]
    assert message in complaint(tmp_path / "tokenizer.json", make(spec))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<html>", "is a web page"),
        (b"", "is empty"),
        (b"\n\x0e\n\x05<unk>\x15", "nor a whole SentencePiece model"),
        (b"IQ== 0\nnot a line\n", "line 2 is not 'base64 rank'"),
        (bytes(range(256)) * 40, "nor a whole SentencePiece model"),
        (b"GGUF\x03\x00\x00\x00", "tokenizer.model"),
    ],
)
def test_other_files_named_tokenizer_model(tmp_path: Path, data: bytes, message: str) -> None:
    assert message in complaint(tmp_path / "tokenizer.model", data)


def test_a_byte_order_mark_is_no_damage(spec: Spec, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(spec).encode())
    assert Tokenizer.from_file(path).encode("hell") == [256, 257]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    if isinstance(value, dict | list):
        keys = list(value)[:6] if isinstance(value, dict) else range(min(2, len(value)))
        for key in keys:
            yield from places(value[key], (*path, key))


@pytest.mark.parametrize("value", [None, [], {}, 0, -1, 1.5, "", "x", True, 2**40, [None], {"type": "Sequence"}])
def test_every_value_replaced(spec: Spec, tmp_path: Path, value: object) -> None:
    """Each place of the file in turn holds something else: it works, or it is a short error of ours."""
    path = tmp_path / "tokenizer.json"
    for place in places(spec):
        changed = copy.deepcopy(spec)
        target = changed
        for key in place[:-1]:
            target = target[key]
        target[place[-1]] = value
        path.write_text(json.dumps(changed))
        try:
            use(Tokenizer.from_file(path))
        except WorkbenchError as error:
            assert len(str(error)) - len(str(path)) < 300


def test_flipped_bytes(spec: Spec, tmp_path: Path) -> None:
    path, whole, rng = tmp_path / "tokenizer.json", json.dumps(spec).encode(), random.Random(0)
    read = 0
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data)
        try:
            use(Tokenizer.from_file(path))
            read += 1
        except WorkbenchError as error:
            assert len(str(error)) - len(str(path)) < 300
    assert 0 < read < 300


def test_an_error_at_encoding_is_ours(spec: Spec, tmp_path: Path) -> None:
    model = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "[UNK]"}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(spec | {"model": model, "added_tokens": [], "post_processor": None}))
    with pytest.raises(TokenizerError, match="the text cannot be encoded .WordLevel error"):
        Tokenizer.from_file(path).encode("b")


def test_a_file_that_is_too_large(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(TokenizerError, match="a file of this kind has at most 268,435,456"):
        Tokenizer.from_file(path)
