"""Files next to a Hugging Face tokenizer: roles, added tokens, and chat templates.

Roles and added tokens are read as transformers reads them: tokenizer_config.json, special_tokens_map.json,
added_tokens.json, generation_config.json, config.json, chat_template.jinja and additional_chat_templates/.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from workbench.errors import TokenizerError
from workbench.small_files import read_json, read_text
from workbench.text.engines.engine import AddedToken, Engine
from workbench.text.roles import Roles, with_templates

_ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")  # the order in which transformers adds their tokens
_LISTS = ("additional_special_tokens", "extra_special_tokens")


@dataclass(frozen=True)
class SideFiles:
    """The contents of the files; empty for a file that does not exist."""

    folder: Path
    tokenizer_config: Mapping[str, Any]
    special_tokens_map: Mapping[str, Any]
    added_tokens: Mapping[str, Any]
    generation_config: Mapping[str, Any]
    config: Mapping[str, Any]
    chat_templates: Mapping[str, str]

    @classmethod
    def read(cls, folder: Path) -> SideFiles:
        """The files in a folder.

        Raises: TokenizerError if one is not JSON, or a chat template is not text.
        """
        tokenizer_config = _read_object(folder / "tokenizer_config.json")
        return cls(
            folder,
            tokenizer_config,
            _read_object(folder / "special_tokens_map.json"),
            _read_object(folder / "added_tokens.json"),
            _read_object(folder / "generation_config.json"),
            _read_object(folder / "config.json"),
            _templates(folder, tokenizer_config),
        )

    def named(self, role: str) -> str | None:
        """The name of a role's token, such as "bos"."""
        token = self._named(role)
        return None if token is None else token.content

    def _named(self, role: str) -> AddedToken | None:
        tokens = (_added(file.get(f"{role}_token"), self.folder) for file in self._files)
        return next((token for token in tokens if token is not None), None)

    @property
    def _files(self) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        return self.tokenizer_config, self.special_tokens_map

    def tokens(self) -> list[AddedToken]:
        """Added tokens in the order of transformers: by id where the files give one, then those with a role."""
        entries = self.tokenizer_config.get("added_tokens_decoder") or {}
        where = self.folder / "tokenizer_config.json"
        if not isinstance(entries, dict):
            raise TokenizerError(f"{where}: added_tokens_decoder must be an object of tokens by id.")
        tokens: dict[str, AddedToken] = {}
        for key, entry in entries.items():
            token = _added(entry, self.folder)
            if token is None or not str(key).isdecimal() or len(str(key)) > 9:
                raise TokenizerError(f"{where}: added_tokens_decoder has an entry that is not a token with an id.")
            tokens[token.content] = replace(token, id=int(key))
        for name, number in self.added_tokens.items():
            if isinstance(number, int) and not isinstance(number, bool):
                tokens.setdefault(name, AddedToken(name, id=number))
        for token in (*map(self._named, _ROLES), *self._more()):
            if token is not None:
                tokens[token.content] = replace(tokens.get(token.content, token), special=True)
        return sorted(tokens.values(), key=lambda token: (token.id is None, token.id or 0))

    def _more(self) -> Iterator[AddedToken | None]:
        for file in self._files:
            for name in _LISTS:
                entries = file.get(name) or []
                values = entries.values() if isinstance(entries, dict) else entries if isinstance(entries, list) else ()
                yield from (_added(value, self.folder) for value in values)

    def roles(self, engine: Engine) -> Roles:
        """An engine's roles, with what these files say of them.

        Raises: TokenizerError for an id that is not a number.
        """
        roles = engine.roles
        stops = {
            token
            for content, name in ((self.generation_config, "generation_config.json"), (self.config, "config.json"))
            for token in _ids(content.get("eos_token_id"), self.folder / name)
        }
        notes = roles.notes
        adds = self.tokenizer_config.get("add_bos_token")
        if isinstance(adds, bool) and adds != roles.adds_bos:
            if roles.adds_bos:
                notes += (
                    "tokenizer_config.json says add_bos_token false, but the post-processor of tokenizer.json adds the "
                    "begin token; no begin token is put before a text.",
                )
            roles = replace(roles, adds_bos=adds)
        roles = replace(
            roles,
            bos_id=self._role("bos", engine, roles.bos_id),
            eos_id=self._role("eos", engine, roles.eos_id),
            unk_id=self._role("unk", engine, roles.unk_id),
            pad_id=self._role("pad", engine, roles.pad_id),
            notes=notes,
        )
        return with_templates(roles, self.chat_templates, engine.token_id, stops)

    def _role(self, role: str, engine: Engine, own: int | None) -> int | None:
        name = self.named(role)
        token = None if name is None else engine.token_id(name)
        if token is not None:
            return token
        if own is not None:
            return own
        for content, file in ((self.generation_config, "generation_config.json"), (self.config, "config.json")):
            for token in _ids(content.get(f"{role}_token_id"), self.folder / file):
                if token in engine.ids:
                    return token
        return None


def _ids(value: object, where: Path) -> list[int]:
    values: list[Any] = value if isinstance(value, list) else [] if value is None else [value]
    for token in values:
        if isinstance(token, bool) or not isinstance(token, int):
            raise TokenizerError(f"{where}: a token id must be a number, found {_short(token)}.")
    return [token for token in values if token >= 0]  # some files have -1 for "none"


def _added(value: object, folder: Path) -> AddedToken | None:
    if value is None or value == "":
        return None
    if isinstance(value, str):
        return AddedToken(value, special=True)
    if isinstance(value, dict) and isinstance(value.get("content"), str):
        flags = ("special", "single_word", "lstrip", "rstrip", "normalized")
        return AddedToken(value["content"], **{flag: value.get(flag) is True for flag in flags})
    raise TokenizerError(f"{folder}: a special token must be text or an object with content, found {_short(value)}.")


def _short(value: object) -> str:
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    return repr(str(value)[:40])


def _templates(folder: Path, tokenizer_config: Mapping[str, Any]) -> dict[str, str]:
    """Chat templates by name; a file has precedence over tokenizer_config.json, as in transformers."""
    value = tokenizer_config.get("chat_template")
    templates: dict[str, str] = {}
    if isinstance(value, str):
        templates = {"default": value}
    elif isinstance(value, list) and all(
        isinstance(entry, dict) and isinstance(entry.get("name"), str) and isinstance(entry.get("template"), str)
        for entry in value
    ):
        templates = {entry["name"]: entry["template"] for entry in value}
    elif value is not None:
        raise TokenizerError(
            f"{folder / 'tokenizer_config.json'}: "
            "chat_template must be text or a list of objects with name and template."
        )
    files = {path.stem: path for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    if (folder / "chat_template.jinja").is_file():
        files["default"] = folder / "chat_template.jinja"
    if files:  # transformers then ignores the templates of tokenizer_config.json
        return {name: read_text(path, TokenizerError) for name, path in sorted(files.items())}
    return templates


def _read_object(path: Path) -> dict[str, Any]:
    return read_json(path, TokenizerError) if path.exists() else {}
