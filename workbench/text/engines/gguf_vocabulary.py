"""The tokenizer inside a GGUF file: its tokens, merges, scores and types, made into an engine.

Byte-level BPE ("gpt2") becomes a tokenizer of `tokenizers`, with the splitting that `tokenizer.ggml.pre` names; a
SentencePiece vocabulary ("llama") becomes a model of `sentencepiece`.
Source: docs/gguf.md in ggml's repository for the keys, llama.cpp's llama-vocab.cpp for the names and their defaults.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from workbench.errors import TokenizerError
from workbench.text.engines.engine import Engine
from workbench.text.engines.gguf_splits import Splits, splits_of
from workbench.text.engines.sentencepiece_engine import SentencePieceEngine
from workbench.text.engines.sentencepiece_model import Piece, sentencepiece_model
from workbench.text.engines.tokenizers_engine import TokenizersEngine, library_errors
from workbench.text.roles import Roles, with_templates

_KEY = "tokenizer.ggml."
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)  # the format's numbers of token types


def read_gguf_vocabulary(metadata: Mapping[str, Any]) -> tuple[Engine, Roles, str]:
    """The engine, roles and hash of a GGUF file's tokenizer.

    Raises: TokenizerError if the file has none, or one of a kind that is not known; MissingExtraError without
        sentencepiece.
    """
    kind = metadata.get(_KEY + "model")
    if kind is None:
        raise TokenizerError("this GGUF file has no tokenizer.")
    if kind not in ("gpt2", "llama"):
        raise TokenizerError(f"this GGUF file has a tokenizer of the kind {_short(kind)}; gpt2 and llama can be read.")
    tokens, types = _tokens(metadata)
    if kind == "gpt2":
        splits, notes = splits_of(metadata.get(_KEY + "pre"))
        engine: Engine = _byte_level(metadata, tokens, types, splits)
        adds_bos = splits.adds_bos
    else:
        engine, notes, adds_bos = _sentencepiece(metadata, tokens, types), (), True
    return (
        engine,
        _roles(metadata, replace(engine.roles, adds_bos=adds_bos, notes=notes), engine),
        gguf_sha256(metadata),
    )


def _tokens(metadata: Mapping[str, Any]) -> tuple[list[str], list[int]]:
    tokens = metadata.get(_KEY + "tokens")
    if not isinstance(tokens, list) or not tokens or not all(isinstance(token, str) for token in tokens):
        raise TokenizerError("this GGUF file's tokenizer has no list of tokens.")
    types = metadata.get(_KEY + "token_type") or [_NORMAL] * len(tokens)
    if not isinstance(types, list) or len(types) != len(tokens):
        raise TokenizerError(f"this GGUF file has {len(tokens):,} tokens, but not as many token types.")
    used = [token for token, kind in zip(tokens, types, strict=True) if kind != _UNUSED]
    try:
        "".join(used).encode()
    except UnicodeEncodeError:
        raise TokenizerError("this GGUF file's tokenizer has a token that is not UTF-8.") from None
    if len(set(used)) != len(used):
        raise TokenizerError("this GGUF file's tokenizer has the same token twice.")
    return tokens, types


def _byte_level(metadata: Mapping[str, Any], tokens: list[str], types: list[int], splits: Splits) -> TokenizersEngine:
    from tokenizers import AddedToken, Tokenizer, decoders, models

    vocab = {token: i for i, (token, kind) in enumerate(zip(tokens, types, strict=True)) if kind != _UNUSED}
    merges = []
    for merge in metadata.get(_KEY + "merges") or []:
        cut = str(merge).find(" ", 1)  # a part may itself begin with a space
        if cut < 0:
            raise TokenizerError(f"this GGUF file has a merge that is not two tokens ({_short(merge)}).")
        merges.append((merge[:cut], merge[cut + 1 :]))
    with library_errors("the library tokenizers cannot make one of this GGUF file's"):
        library = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=splits.ignore_merges))
        library.pre_tokenizer = splits.pre_tokenizer()
        library.decoder = decoders.ByteLevel()
        special, plain = [], []
        for token, kind in zip(tokens, types, strict=True):
            if kind in (_CONTROL, _UNKNOWN):
                special.append(AddedToken(token, special=True, normalized=False))
            elif kind == _USER_DEFINED:
                plain.append(AddedToken(token, special=False, normalized=False))
        library.add_special_tokens(special)
        library.add_tokens(plain)
        return TokenizersEngine(library)


def _sentencepiece(metadata: Mapping[str, Any], tokens: list[str], types: list[int]) -> SentencePieceEngine:
    scores = metadata.get(_KEY + "scores") or [0.0] * len(tokens)
    if not isinstance(scores, list) or len(scores) != len(tokens):
        raise TokenizerError(f"this GGUF file has {len(tokens):,} tokens, but not as many scores.")
    unknown = metadata.get(_KEY + "unknown_token_id", 0)
    kinds = list(types)
    if _UNKNOWN not in kinds and isinstance(unknown, int) and 0 <= unknown < len(kinds):
        kinds[unknown] = _UNKNOWN
    # An unused piece may have any name, also the same one as another.
    names = [f"[UNUSED_{i}]" if kinds[i] == _UNUSED else token for i, token in enumerate(tokens)]
    charsmap = metadata.get(_KEY + "precompiled_charsmap") or []
    return SentencePieceEngine(
        sentencepiece_model(
            [Piece(name, float(score), kind) for name, score, kind in zip(names, scores, kinds, strict=True)],
            add_dummy_prefix=metadata.get(_KEY + "add_space_prefix", True) is True,
            remove_extra_whitespaces=metadata.get(_KEY + "remove_extra_whitespaces", False) is True,
            byte_fallback=_BYTE in kinds,
            charsmap=bytes(int(byte) & 255 for byte in charsmap),
        )
    )


def _roles(metadata: Mapping[str, Any], own: Roles, engine: Engine) -> Roles:
    def id_of(name: str, default: int | None) -> int | None:
        token = metadata.get(f"{_KEY}{name}_token_id", default)
        return token if isinstance(token, int) and token in engine.ids else None

    adds = metadata.get(_KEY + "add_bos_token")
    roles = replace(
        own,
        bos_id=id_of("bos", own.bos_id),
        eos_id=id_of("eos", own.eos_id),
        unk_id=id_of("unknown", own.unk_id),
        pad_id=id_of("padding", own.pad_id),
        eot_id=id_of("eot", own.eot_id),
        eom_id=id_of("eom", own.eom_id),
        adds_bos=adds if isinstance(adds, bool) else own.adds_bos,
    )
    ends = [id_of(name, None) for name in ("eot", "eom")]
    return with_templates(roles, _templates(metadata), engine.token_id, [end for end in ends if end is not None])


def _templates(metadata: Mapping[str, Any]) -> dict[str, str]:
    key = "tokenizer.chat_template"
    texts = {name[len(key) + 1 :]: text for name, text in metadata.items() if name.startswith(f"{key}.")}
    texts["default"] = metadata.get(key)
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def gguf_sha256(metadata: Mapping[str, Any]) -> str:
    """A hash of the tokenizer alone, not of the file with its weights."""
    own = {name: value for name, value in sorted(metadata.items()) if name.startswith("tokenizer.")}
    return hashlib.sha256(json.dumps(own).encode()).hexdigest()


def _short(value: object) -> str:
    return repr(str(value)[:40])
