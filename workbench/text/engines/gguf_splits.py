"""How a text is split before byte-level merges, by the names in `tokenizer.ggml.pre` of GGUF files.

Source: llama.cpp's llama-vocab.cpp for the names, and the published tokenizer.json of each family for its pattern.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from workbench.errors import TokenizerError
from workbench.text.vocabulary_files import LLAMA3_PATTERN

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_DIGIT = r"\p{N}"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2 = rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
_WORD = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
_CAPITALS = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
_SIGNS = rf" ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
_TEKKEN = rf"{_WORD}|{_CAPITALS}|\p{{N}}|{_SIGNS}"
_GPT4O = rf"{_WORD}{_CONTRACTION}?|{_CAPITALS}{_CONTRACTION}?|\p{{N}}{{1,3}}|{_SIGNS}"
_BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"


@dataclass(frozen=True)
class Splits:
    """Patterns that split a text one after the other; what is between two matches stays, as a part of its own.

    ignore_merges: a part that is a token is not merged from smaller ones.
    adds_bos: whether a begin token is put before a text if the file does not say it.
    """

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    adds_bos: bool = False

    def pre_tokenizer(self) -> Any:
        """The steps in the library `tokenizers`."""
        from tokenizers import Regex, pre_tokenizers

        steps = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in self.patterns]
        return pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


_DEFAULT = Splits((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"))
_FAMILIES: dict[str, Splits] = {
    "default": _DEFAULT,
    "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2": Splits((LLAMA3_PATTERN,), True, True),
    "dbrx smaug-bpe chatglm-bpe glm4": Splits((LLAMA3_PATTERN,)),
    "gpt-2 phi-2 gigachat a.x-4.0 mellum exaone4 mpt olmo jais trillion granite-docling": Splits((_GPT2,)),
    "smollm starcoder refact command-r codeshell exaone minerva-7b": Splits((_DIGIT, _GPT2)),
    "qwen2 deepseek-r1-qwen kormo megrez stablelm2 hunyuan solar-open grok-2": Splits((_QWEN2,)),
    "tekken": Splits((_TEKKEN,), True, True),
    "gpt-4o llama4 kanana2": Splits((_GPT4O,)),
    "bloom poro-chat gpt3-finnish": Splits((_BLOOM,)),
    "viking": Splits((_BLOOM, _DIGIT)),
}
_BY_NAME = {name: splits for names, splits in _FAMILIES.items() for name in names.split()}


def splits_of(pre: object) -> tuple[Splits, tuple[str, ...]]:
    """The splitting of a name, and what a user should know of it.

    Raises: TokenizerError for a name that is not known.
    """
    if pre is None:
        note = (
            "the GGUF file does not say how its tokenizer splits a text; llama.cpp's default is used, which may differ."
        )
        return _DEFAULT, (note,)
    splits = _BY_NAME.get(str(pre))
    if splits is None:
        raise TokenizerError(f"the GGUF file's splitting {str(pre)[:40]!r} (tokenizer.ggml.pre) is not known.")
    return splits, ()
