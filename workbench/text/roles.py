"""What tokens are for: begin, end, end of turn, unknown, padding, and the chat templates that use them.

Roles come from files and are never assumed. Only Meta's own vocabulary has them by name, because its file has no other
place for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

NAMED_SPECIALS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|step_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
    "<|image|>",
)
N_SPECIAL = 256
LLAMA3_SPECIALS: tuple[str, ...] = NAMED_SPECIALS + tuple(
    f"<|reserved_special_token_{i + 2}|>" for i in range(N_SPECIAL - len(NAMED_SPECIALS))
)
"""The 256 special tokens in Meta's order; the first has the id that follows the last rank."""

TURN_ENDS = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<end_of_turn>",
    "<|end_of_turn|>",
    "<|endofturn|>",
    "<|end|>",
    "<|eot|>",
    "<|eom|>",
)
"""Tokens that end a turn in published chat templates; they count only if the checkpoint's own template has them."""
_MESSAGE_ENDS = ("<|eom_id|>", "<|eom|>")


@dataclass(frozen=True)
class Roles:
    """Ids by role, None for a role that no token has."""

    bos_id: int | None = None
    eos_id: int | None = None
    unk_id: int | None = None
    pad_id: int | None = None
    eot_id: int | None = None
    eom_id: int | None = None
    adds_bos: bool = False
    stop_ids: frozenset[int] = frozenset()
    chat_templates: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def chat_template(self) -> str | None:
        """The template named "default", or the only one."""
        only = next(iter(self.chat_templates.values())) if len(self.chat_templates) == 1 else None
        return self.chat_templates.get("default", only)


def meta_names(special_tokens: Mapping[str, int]) -> dict[str, int]:
    """Ids of Llama 3's named special tokens, if these are Llama 3's; empty otherwise.

    Early Llama 3 files call `<|eom_id|>` and others "reserved"; their ids never changed.
    """
    first = special_tokens.get(LLAMA3_SPECIALS[0])
    if first is None or not set(range(first, first + N_SPECIAL)) <= set(special_tokens.values()):
        return {}
    return {name: first + i for i, name in enumerate(NAMED_SPECIALS)}


def meta_roles(special_tokens: Mapping[str, int]) -> Roles:
    """Roles by Llama 3's names: what Meta's own code takes, whose files state none."""
    ids = meta_names(special_tokens) | dict(special_tokens)
    eos, eot, eom = (ids.get(name) for name in ("<|end_of_text|>", "<|eot_id|>", "<|eom_id|>"))
    bos = ids.get("<|begin_of_text|>")
    stops = frozenset(token for token in (eos, eot, eom) if token is not None)
    return Roles(bos, eos, None, ids.get("<|finetune_right_pad_id|>"), eot, eom, bos is not None, stops)


def with_templates(
    roles: Roles, templates: Mapping[str, str], token_id: Callable[[str], int | None], stops: Iterable[int]
) -> Roles:
    """Roles with chat templates: a template's ends of turn stop generation, together with `stops`.

    Without a template the vocabulary's own ends of turn stay.
    """
    stop_ids = frozenset(stops) if roles.eos_id is None else frozenset((*stops, roles.eos_id))
    if not templates:
        return replace(roles, stop_ids=stop_ids | roles.stop_ids)
    text = "\n".join(templates.values())
    named = {name: token_id(name) for name in TURN_ENDS if name in text}
    ends = {name: token for name, token in named.items() if token is not None}
    turn = next((token for name, token in ends.items() if name not in _MESSAGE_ENDS), None)
    message = next((token for name, token in ends.items() if name in _MESSAGE_ENDS), None)
    return replace(
        roles,
        eot_id=turn,
        eom_id=message if message is not None else roles.eom_id,
        stop_ids=stop_ids | frozenset(ends.values()),
        chat_templates=dict(templates),
    )
