"""Roles of tokens, stop tokens and chat templates from the files next to a tokenizer, against transformers' reading."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from tests.workbench.text.texts import write_json
from workbench.errors import TokenizerError
from workbench.text.tokenizer import Tokenizer

FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
BEGIN, END = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"


@pytest.fixture(scope="module")
def llama_json() -> dict[str, Any]:
    """256 bytes and Llama 3's 256 special tokens from 256 on; `<|eot_id|>` is 265."""
    return Tokenizer.from_ranks({bytes([b]): b for b in range(256)}).to_hf_json()


class Folder:
    """A Hugging Face folder with a tokenizer, written file by file."""

    def __init__(self, path: Path, spec: dict[str, Any]) -> None:
        self.path, self.spec = path, copy.deepcopy(spec)

    def add(self, *names: str, special: bool = True) -> None:
        for name in names:
            number = 256 + len(self.spec["added_tokens"])
            self.spec["added_tokens"].append({"id": number, "content": name, "special": special} | FLAGS)

    def read(self, **files: object) -> Tokenizer:
        write_json(self.path / "tokenizer.json", self.spec)
        write_json(self.path / "config.json", files.pop("config", {}))
        for name, content in files.items():
            write_json(self.path / f"{name}.json", content)
        return Tokenizer.from_file(self.path)


@pytest.fixture
def folder(tmp_path: Path, llama_json: dict[str, Any]) -> Folder:
    return Folder(tmp_path, llama_json)


def theirs(folder: Folder) -> Any:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    return transformers.PreTrainedTokenizerFast.from_pretrained(str(folder.path))


def test_renamed_begin_and_end(folder: Folder) -> None:
    """DeepSeek-R1-Distill-Llama renames Llama 3's first two tokens."""
    for token, name in zip(folder.spec["added_tokens"], (BEGIN, END), strict=False):
        token["content"] = name
    folder.spec["post_processor"] = None
    ours = folder.read(
        tokenizer_config={
            "add_bos_token": True,
            "bos_token": {"__type": "AddedToken", "content": BEGIN} | FLAGS,
            "eos_token": {"__type": "AddedToken", "content": END} | FLAGS,
            "pad_token": {"__type": "AddedToken", "content": END} | FLAGS,
            "chat_template": "{{ bos_token }}<｜User｜>{{ messages[0].content }}{{ eos_token }}",
        },
        generation_config={"bos_token_id": 256, "eos_token_id": 257},
    )
    assert (ours.bos_id, ours.eos_id, ours.pad_id, ours.adds_bos) == (256, 257, 257, True)
    assert ours.encode("a", bos=True) == [256, 97]
    assert ours.stop_ids == {257}  # the template does not use Llama 3's ends of turn
    assert ours.eot_id is None and ours.prefix_id == 256


@pytest.mark.parametrize("special", [True, False])
def test_chatml_on_llama_3(folder: Folder, special: bool) -> None:
    folder.add("<|im_start|>", "<|im_end|>", special=special)
    ours = folder.read(
        tokenizer_config={"bos_token": "<|begin_of_text|>", "eos_token": "<|im_end|>"},
        config={"eos_token_id": 513},
        generation_config={"eos_token_id": [513, 257]},
    )
    (folder.path / "chat_template.jinja").write_text("<|im_start|>user\n{{ messages[0].content }}<|im_end|>\n")
    ours = Tokenizer.from_file(folder.path)
    assert (ours.eos_id, ours.eot_id, ours.stop_ids) == (513, 513, {513, 257})
    assert ours.encode("x<|im_end|>", allow_special=True) == [120, 513]
    assert (513 in ours.encode("<|im_end|>")) != special  # a token that is not special is always matched
    assert ours.chat_template is not None and ours.chat_template.startswith("<|im_start|>")


def test_stop_tokens_are_a_union(folder: Folder) -> None:
    ours = folder.read(config={"eos_token_id": [1, 2]}, generation_config={"eos_token_id": 3})
    assert ours.stop_ids == {1, 2, 3, 257, 264, 265}  # without a template Llama 3's own format ends its turns
    ours = folder.read(tokenizer_config={"chat_template": "a<|eot_id|>"}, config={}, generation_config={})
    assert ours.stop_ids == {257, 265} and ours.eot_id == 265


def test_a_template_names_ends_only_of_this_vocabulary(folder: Folder) -> None:
    ours = folder.read(tokenizer_config={"eos_token": "<|eot_id|>", "chat_template": "a<|im_end|>"})
    assert ours.eot_id is None and ours.stop_ids == {265}


@pytest.mark.parametrize("resized", [True, False])
def test_pad_token_beyond_the_rows(folder: Folder, resized: bool) -> None:
    if resized:
        folder.add("<pad>")
    ours = folder.read(tokenizer_config={"pad_token": "<pad>"}, special_tokens_map={"unk_token": {"content": "<unk>"}})
    assert (ours.pad_id, ours.unk_id, ours.vocab_size) == ((512, 513, 514) if resized else (513, 512, 514))
    assert (theirs(folder).pad_token_id, theirs(folder).unk_token_id) == (ours.pad_id, ours.unk_id)


def test_added_tokens_decoder_adds_as_transformers(folder: Folder) -> None:
    ours = folder.read(
        tokenizer_config={
            "bos_token": "<|begin_of_text|>",
            "added_tokens_decoder": {
                "513": {"content": "<b>", "special": False} | FLAGS,
                "512": {"content": "<a>", "special": True} | FLAGS,
            },
            "additional_special_tokens": ["<c>"],
        }
    )
    other = theirs(folder)
    for name in ("<a>", "<b>", "<c>"):
        assert ours.special(name) == other.convert_tokens_to_ids(name)
    assert ours.encode("x<a><b><c>", allow_special=True) == other.encode("x<a><b><c>", add_special_tokens=False)
    assert 513 in ours.encode("<b>") and 512 not in ours.encode("<a>")


@pytest.mark.parametrize("said", [None, True, False])
@pytest.mark.parametrize("template", [True, False])
def test_whether_a_begin_token_is_put_before(folder: Folder, said: bool | None, template: bool) -> None:
    if not template:
        folder.spec["post_processor"] = {
            "type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True,
        }  # fmt: skip
    config: dict[str, object] = {"bos_token": "<|begin_of_text|>"} | ({} if said is None else {"add_bos_token": said})
    ours = folder.read(tokenizer_config=config)
    assert ours.adds_bos == (template if said is None else said)
    assert ours.encode("a", bos=True) == [256, 97] if ours.adds_bos else [97]
    assert bool(ours.notes) == (template and said is False)
    if said is None:
        assert ours.encode("a", bos=True) == theirs(folder).encode("a")


def test_a_post_processor_in_a_sequence(folder: Folder) -> None:
    byte_level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    folder.spec["post_processor"] = {"type": "Sequence", "processors": [byte_level, folder.spec["post_processor"]]}
    ours = folder.read()
    assert (ours.bos_id, ours.adds_bos) == (256, True)


def test_no_roles_at_all(folder: Folder) -> None:
    folder.spec["added_tokens"], folder.spec["post_processor"] = [], None
    ours = folder.read()
    assert (ours.bos_id, ours.eos_id, ours.adds_bos, ours.stop_ids) == (None, None, False, frozenset())
    assert ours.encode("a", bos=True) == [97]
    for use in (lambda: ours.encode("a", eos=True), lambda: ours.prefix_id):
        with pytest.raises(TokenizerError, match="do not say which token is the end token"):
            use()
    assert folder.read(config={"bos_token_id": 65, "eos_token_id": 66}).bos_id == 65


@pytest.mark.parametrize("file", ["tokenizer_config.json", "generation_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "is a git-lfs pointer, not the file itself"),
        ("<!DOCTYPE html><html>", "is a web page"),
        ("", "is empty"),
        ("{", "not readable as JSON"),
    ],
)
def test_files_next_to_a_tokenizer_that_are_others(folder: Folder, file: str, content: str, problem: str) -> None:
    (folder.path / file).write_text(content)
    with pytest.raises(TokenizerError, match=f"{file}: {problem}"):
        folder.read()


def test_ids_that_are_written_as_floats(folder: Folder) -> None:
    assert folder.read(config={"eos_token_id": [257.0, 265]}).stop_ids >= {257, 265}
    with pytest.raises(TokenizerError, match="must be a number, found '257.5'"):
        folder.read(config={"eos_token_id": 257.5})


def test_templates_by_name(folder: Folder) -> None:
    named = [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]
    ours = folder.read(tokenizer_config={"chat_template": named})
    assert ours.chat_template == "d" and dict(ours.chat_templates) == {"default": "d", "tool_use": "t"}
    (folder.path / "chat_template.jinja").write_text("file")
    (folder.path / "additional_chat_templates").mkdir()
    (folder.path / "additional_chat_templates" / "rag.jinja").write_text("more")
    ours = Tokenizer.from_file(folder.path)
    assert dict(ours.chat_templates) == {"default": "file", "rag": "more"} and ours.chat_template == "file"
    other = theirs(folder).chat_template
    assert other == dict(ours.chat_templates)
    assert folder.read().chat_template == "file"


BROKEN: dict[str, object] = {
    "not JSON": b"{",
    "a list": b"[]",
    "not UTF-8": b"\xff{}",
    "deep": b'{"a":' + b"[" * 200_000,
    "a pointer of git-lfs": b"version https://git-lfs.github.com/spec/v1\n",
    "a number of 5,000 digits": b'{"a": ' + b"9" * 5000 + b"}",
}


@pytest.mark.parametrize(
    "name", ["tokenizer_config", "special_tokens_map", "added_tokens", "generation_config", "config"]
)
@pytest.mark.parametrize("damage", BROKEN)
def test_broken_files_are_named(folder: Folder, name: str, damage: str) -> None:
    folder.read()
    (folder.path / f"{name}.json").write_bytes(BROKEN[damage])  # type: ignore[arg-type]
    with pytest.raises(TokenizerError) as caught:
        Tokenizer.from_file(folder.path)
    assert f"{name}.json" in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer_config": {"bos_token": 5}}, "special token must be text"),
        ({"tokenizer_config": {"eos_token": ["a"]}}, "found a list"),
        ({"tokenizer_config": {"chat_template": 5}}, "chat_template must be text"),
        ({"tokenizer_config": {"chat_template": [{"name": "x"}]}}, "chat_template must be text"),
        ({"tokenizer_config": {"added_tokens_decoder": {"x": {"content": "a"}}}}, "not a token with an id"),
        ({"generation_config": {"eos_token_id": "2"}}, "token id must be a number, found '2'"),
        ({"generation_config": {"eos_token_id": [True]}}, "token id must be a number"),
    ],
)
def test_values_of_another_kind(folder: Folder, files: dict[str, object], message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        folder.read(**files)


def test_metas_folder_is_as_before(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_ranks({bytes([b]): b for b in range(256)})
    (tmp_path / "tokenizer.model").write_bytes(tokenizer.to_tiktoken())
    (tmp_path / "params.json").write_text(json.dumps({"dim": 8}))
    write_json(tmp_path / "generation_config.json", {"eos_token_id": 2})  # of another layout, copied by a conversion
    ours = Tokenizer.from_file(tmp_path)
    assert (ours.bos_id, ours.eos_id, ours.eot_id, ours.eom_id) == (256, 257, 265, 264)
    assert ours.stop_ids == {257, 264, 265} and ours.adds_bos and ours.chat_template is None
    assert ours.encode("a", bos=True, eos=True) == [256, 97, 257]
    assert ours.has_meta_specials
