"""SentencePiece models, and the files made of the same pieces, against the library `sentencepiece`."""

import sys
from pathlib import Path
from typing import Any

import pytest

from tests.workbench.text.texts import byte_fallback_json, texts, train_sentencepiece, write_json
from workbench.errors import MissingExtraError, TokenizerError
from workbench.text.tokenizer import Tokenizer

sentencepiece = pytest.importorskip("sentencepiece", reason="sentencepiece is not installed")


@pytest.fixture(scope="module")
def lines(shared_data: Path) -> list[str]:
    return (shared_data / "tinyshakespeare" / "input.txt").read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="module")
def model(lines: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_sentencepiece(lines[:8000], tmp_path_factory.mktemp("spm"))


@pytest.fixture(scope="module")
def theirs(model: Path) -> Any:
    return sentencepiece.SentencePieceProcessor(model_file=str(model))


def gguf_file(model: Path, target: Path) -> Path:
    """The same pieces in a GGUF file, written by the library `gguf`."""
    gguf = pytest.importorskip("gguf", reason="gguf is not installed")
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(model))
    ids = range(pieces.vocab_size())
    kinds = {"is_unknown": 2, "is_control": 3, "is_unused": 5, "is_byte": 6}
    writer = gguf.GGUFWriter(target, "llama")
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([pieces.id_to_piece(i) for i in ids])
    writer.add_token_scores([pieces.get_score(i) for i in ids])
    writer.add_token_types([next((kind for name, kind in kinds.items() if getattr(pieces, name)(i)), 1) for i in ids])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return target


@pytest.fixture(scope="module", params=["tokenizer.model", "tokenizer.json", "gguf"])
def ours(request: pytest.FixtureRequest, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("files")
    if request.param == "tokenizer.json":
        return Tokenizer.from_file(write_json(folder / "tokenizer.json", byte_fallback_json(model)))
    return Tokenizer.from_file(gguf_file(model, folder / "model.gguf") if request.param == "gguf" else model)


def test_every_line_is_the_librarys(ours: Tokenizer, theirs: Any, lines: list[str]) -> None:
    for line in lines:
        ids = ours.encode(line)
        assert ids == theirs.encode(line)
        assert ours.decode(ids) == line


def test_random_texts_are_the_librarys(ours: Tokenizer, theirs: Any) -> None:
    for text in texts(5_000, seed=1):
        ids = ours.encode(text)
        assert ids == theirs.encode(text), ascii(text)
        # tokenizers writes ▁ as a space and removes one more; sentencepiece is the reference of its own files
        if isinstance(ours.source, Path) and ours.source.suffix != ".json":
            assert ours.decode(ids) == theirs.decode(ids), ascii(text)


def test_bytes_of_tokens_are_the_text(ours: Tokenizer) -> None:
    for text in texts(500, seed=2):
        if text:
            assert ours.decode_bytes(ours.encode(text)).decode() == " " + text.replace("▁", " "), ascii(text)
    assert ours.tokens([ours.encode_bytes(b"\xf0")[-1], 1]) == [b"\xf0", b"<s>"]


def test_any_bytes_can_be_encoded(ours: Tokenizer) -> None:
    data = bytes(range(0xF0, 0x100))
    assert ours.decode_bytes(ours.encode_bytes(data)) == data


def test_roles_come_from_the_file(ours: Tokenizer) -> None:
    assert (ours.bos_id, ours.unk_id, ours.adds_bos) == (1, 0, True)
    assert ours.encode("To be", bos=True)[0] == 1
    if ours.source is not None and ours.source.suffix != ".json":  # that file does not say which token is the end
        assert (ours.eos_id, ours.stop_ids, ours.encode("a", eos=True)[-1]) == (2, {2}, 2)
    assert ours.special("</s>") == 2
    assert ours.prefix_id == 1


def test_special_text_is_text_unless_allowed(ours: Tokenizer, theirs: Any) -> None:
    text = "a</s>b"
    assert not {1, 2} & set(ours.encode(text))
    assert ours.decode(ours.encode(text)) == text
    # Both parts begin with the space that the model puts before a text.
    assert ours.encode(text, allow_special=True) == [*theirs.encode("a"), 2, *theirs.encode("b")]


def test_special_tokens_are_decoded_by_name(model: Path) -> None:
    ours = Tokenizer.from_file(model)
    ids = [1, *ours.encode("To be"), 2, *ours.encode("or")]
    assert ours.decode(ids) == "<s>To be</s> or"
    assert ours.decode([2, 2]) == "</s></s>"


def test_added_tokens_beyond_the_model(model: Path, theirs: Any, tmp_path: Path) -> None:
    """A folder in Hugging Face's layout with the SentencePiece file alone, as many fine-tunes of Llama 2 are."""
    (tmp_path / "tokenizer.model").write_bytes(model.read_bytes())
    (tmp_path / "config.json").write_text("{}")
    write_json(
        tmp_path / "tokenizer_config.json",
        {
            "add_bos_token": False,
            "eos_token": "<|im_end|>",
            "pad_token": {"content": "<pad>"},
            "chat_template": "{{ x }}<|im_end|>",
            "added_tokens_decoder": {
                "1500": {"content": "<pad>", "special": True},
                "1501": {"content": "<|im_end|>", "special": True},
                "1505": {"content": "<think>", "special": False},
            },
        },
    )
    ours = Tokenizer.from_file(tmp_path)
    assert (ours.pad_id, ours.eos_id, ours.eot_id, ours.adds_bos) == (1500, 1501, 1501, False)
    assert ours.stop_ids == {1501}
    assert ours.encode("a<think>b", bos=True) == [*theirs.encode("a"), 1505, *theirs.encode("b")]
    assert ours.encode("<|im_end|>")[-1] < 1500
    assert ours.encode("<|im_end|>", allow_special=True) == [1501]
    assert ours.decode([*ours.encode("To"), 1501]) == "To<|im_end|>"
    assert ours.vocab_size == 1506 and not ours.has_token(1503)
    with pytest.raises(TokenizerError, match="1503 has no token"):
        ours.decode([1503])


def test_it_cannot_become_another_file(model: Path) -> None:
    ours = Tokenizer.from_file(model)
    assert not ours.has_meta_specials and ours.is_sentencepiece
    for write in (ours.to_tiktoken, ours.to_hf_json):
        with pytest.raises(TokenizerError, match="SentencePiece model cannot be written"):
            write()


def test_a_half_file_is_refused(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(model.read_bytes()[:5000])
    with pytest.raises(TokenizerError, match="nor a whole SentencePiece model"):
        Tokenizer.from_file(path)


def test_without_the_library(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(MissingExtraError, match=r"sentencepiece is not installed.*\[formats\]"):
        Tokenizer.from_file(model)


def test_llama_2s_own_file(shared_data: Path) -> None:
    path = shared_data / "tokenizers" / "llama2" / "tokenizer.model"
    ours, theirs = Tokenizer.from_file(path), sentencepiece.SentencePieceProcessor(model_file=str(path))
    assert ours.encode("Hello world", bos=True) == [1, 15043, 3186]
    assert (ours.vocab_size, ours.bos_id, ours.eos_id, ours.unk_id, ours.pad_id) == (32_000, 1, 2, 0, None)
    for text in texts(1_000, seed=4):
        assert ours.encode(text) == theirs.encode(text)
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text))


def test_a_continuation_has_no_space_of_its_own(ours: Tokenizer, theirs: Any) -> None:
    """A text in two parts has the ids of the whole, where a word ends between them."""
    for first, second in [("To be", " or not"), ("A 12", ", B"), ("line\n", "next"), ("", "")]:
        assert ours.encode(first) + ours.encode_continuation(second) == theirs.encode(first + second)
    assert ours.decode_bytes(ours.encode_continuation("or")) == b"or"
    assert ours.decode_bytes(ours.encode_bytes(b"or\xff not")) == b"or\xff not"
