"""Commands for activation patching, path patching, logit paths and composition scores."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from probes.base.cli_options import ON_A_PROMPT, Device, File, Model, Output, Prompt, without
from probes.base.command import RUN, Origin, capture, check, deliver, labels, labels_of, load
from workbench.errors import DataError

if TYPE_CHECKING:
    from probes.patching.activation_patching import Patching
    from probes.patching.prompt_pairs import Pair
    from workbench.model import Transformer

Clean = Annotated[
    str | None, typer.Option("--prompt", help="Clean prompt; the begin token is added if the model uses one.")
]
Corrupted = Annotated[str | None, typer.Option(help="Corrupted prompt, with the same number of tokens.")]
CorruptedIds = Annotated[str | None, typer.Option(help="Token ids of the corrupted prompt, instead of its text.")]
Answer = Annotated[
    str, typer.Option(help="Correct token after the clean prompt: text (its first token), as ' Paris', or token id.")
]
Wrong = Annotated[str, typer.Option(help="Wrong token, whose logit is subtracted: text or token id.")]
Dtype = Annotated[str, typer.Option(help="bfloat16, float16, float32, or auto: the checkpoint's dtype.")]
Noise = Annotated[bool, typer.Option("--noise", help="Patch corrupted activations into the clean run instead.")]

EXAMPLE = " --prompt 'b c d b' --corrupted 'b f d b' --answer ' c' --wrong ' f'"


def patch(
    answer: Answer,
    wrong: Wrong,
    prompt: Clean = None,
    corrupted: Corrupted = None,
    corrupted_ids: CorruptedIds = None,
    model: Model = "demo",
    what: Annotated[
        Literal[
            "resid_pre",
            "resid_mid",
            "resid_post",
            "attn_out",
            "mlp_out",
            "heads",
            "q",
            "k",
            "v",
            "pattern",
            "heads_by_position",
            "q_by_position",
            "k_by_position",
            "v_by_position",
            "pattern_by_position",
        ],
        typer.Option(
            help="Activation to patch: residual stream, sublayer output, or a head's output, queries, keys, values or "
            "pattern. k and v are of key/value heads."
        ),
    ] = "resid_pre",
    noise: Noise = False,
    gradient: Annotated[
        bool, typer.Option("--gradient", help="Also estimate from one gradient, and show the error of the estimate.")
    ] = False,
    dtype: Dtype = "auto",
    output: Output = None,
    device: Device = "auto",
) -> None:
    """Patching: share of a logit difference per activation."""
    check(output)
    from probes.patching import activation_patching, attribution_patching

    loaded = load(model, device, dtype)
    sides = _sides(loaded, model, (prompt, corrupted), corrupted_ids)
    pair, origin = _pair(loaded, model, sides, (answer, wrong))
    direction: activation_patching.Direction = "noise" if noise else "denoise"
    result = activation_patching.patching(loaded, pair, what, direction=direction)
    _note(result, loaded, pair)
    origin = replace(origin, extra={**(origin.extra or {}), "what": result.what, "direction": direction})
    if gradient:
        estimate = attribution_patching.attribution_patching(loaded, pair, what, direction=direction)
        deliver(attribution_patching.gradient_error(result, estimate), output, origin)
        return
    deliver(result, output, origin, labels=labels_of(loaded, pair.clean[0].tolist()))


def path(
    answer: Answer,
    wrong: Wrong,
    prompt: Clean = None,
    corrupted: Corrupted = None,
    corrupted_ids: CorruptedIds = None,
    model: Model = "demo",
    to: Annotated[str, typer.Option(help="Receiver heads, for example L4H1,L5H0; default: the logits.")] = "",
    through: Annotated[Literal["q", "k", "v"], typer.Option(help="Input of the receivers.")] = "q",
    noise: Noise = False,
    freeze_mlps: Annotated[bool, typer.Option("--freeze-mlps", help="Freeze the MLPs as well as other heads.")] = False,
    dtype: Dtype = "auto",
    output: Output = None,
    device: Device = "auto",
) -> None:
    """Paths: effect of each head on others or on the logits."""
    check(output)
    from probes.base.head_names import parse
    from probes.patching import path_patching

    receivers = parse(to) if to else []
    loaded = load(model, device, dtype)
    sides = _sides(loaded, model, (prompt, corrupted), corrupted_ids)
    pair, origin = _pair(loaded, model, sides, (answer, wrong))
    result = path_patching.path_patching(
        loaded, pair, receivers, through=through, direction="noise" if noise else "denoise", freeze_mlps=freeze_mlps
    )
    _note(result, loaded, pair)
    extra = {"to": to or "logits", "through": through, "direction": result.direction, "mlps_frozen": freeze_mlps}
    deliver(result, output, replace(origin, extra={**(origin.extra or {}), **extra}))


def logit_paths(
    model: Model = "demo",
    prompt: Prompt = None,
    file: File = None,
    answer: Annotated[str, typer.Option(help="Target token, as in patch; default: the second most likely token.")] = "",
    wrong: Annotated[str, typer.Option(help="Token whose logit is subtracted.")] = "",
    position: Annotated[int, typer.Option(help="Position that predicts the target; -1 is the last.")] = -1,
    output: Output = None,
    device: Device = "auto",
) -> None:
    """Paths: contribution of heads to a logit from each token."""
    check(output)
    from probes.logits import component_attribution, logit_attribution
    from probes.patching import path_patching

    if wrong and not answer:
        raise DataError("--wrong needs --answer; give both.")
    loaded, cap, origin = capture(
        model, prompt, file, {*component_attribution.SOURCE_HOOKS, "ln_final.hook_out"}, device
    )
    target = logit_attribution.likeliest(loaded, cap, position=position)[-1]
    if answer:
        target = _token(loaded, "--answer", answer)
        target = (target, _token(loaded, "--wrong", wrong)) if wrong else target
    result = path_patching.logit_paths(loaded, cap, target, position=position)
    origin = replace(origin, extra={**(origin.extra or {}), "target": target, "position": result.position})
    deliver(result, output, origin, labels=labels(loaded, cap))


@without("intervene", "ablate")
def composition(
    model: Model = "demo",
    through: Annotated[Literal["q", "k", "v"], typer.Option(help="Input of the reader in the figure.")] = "k",
    output: Output = None,
    device: Device = "auto",
) -> None:
    """Paths: Q-, K- and V-composition scores between heads."""
    check(output)
    from probes.patching import path_patching

    loaded = load(model, device)
    deliver(path_patching.composition(loaded), output, Origin(model, loaded), through=through)


def _note(result: Patching, loaded: Transformer, pair: Pair) -> None:
    """Warn on stderr if the model's dtype is too coarse for the difference between clean and corrupted."""
    import torch

    with torch.no_grad():
        largest = float(loaded(pair.clean.to(loaded.device))[:, -1].abs().max())
    difference = abs(float(result.clean.mean() - result.corrupted.mean()))
    rounding = largest * torch.finfo(loaded.dtype).eps
    if difference < 100 * rounding:
        name = str(loaded.dtype).removeprefix("torch.")
        print(f"note: clean and corrupted differ by {difference:.3g}, and {name} rounds logits here by {rounding:.2g};"
              " use --dtype float32, or answers that differ more", file=sys.stderr)  # fmt: skip


def _sides(
    loaded: Transformer, model: str, texts: tuple[str | None, str | None], corrupted_ids: str | None
) -> list[list[int]]:
    """The tokens of the clean and the corrupted prompt."""
    from workbench.command_options import encode_text, token_ids

    ids = RUN.get().ids
    if (ids is None, corrupted_ids is None) != (texts[0] is not None, texts[1] is not None):
        raise DataError(
            "give --prompt and --corrupted, or --ids and --corrupted-ids: each of the two prompts as a text or as ids."
        )
    clean = encode_text(loaded, model, texts[0]) if texts[0] is not None else token_ids(ids or "", loaded)
    if texts[1] is not None:
        return [clean, encode_text(loaded, model, texts[1])]
    return [clean, token_ids(corrupted_ids or "", loaded, option="--corrupted-ids")]


def _pair(loaded: Transformer, model: str, sides: list[list[int]], answers: tuple[str, str]) -> tuple[Pair, Origin]:
    """The two prompts with the answers' logit difference as target, and their origin."""
    import torch

    from probes.patching.prompt_pairs import LogitDifference, Pair

    if len(sides[0]) != len(sides[1]):
        raise DataError(
            f"--prompt has {len(sides[0])} tokens and --corrupted has {len(sides[1])}; "
            "change the words so that both have the same number."
        )
    answer, wrong = answers
    target = LogitDifference(_token(loaded, "--answer", answer), _token(loaded, "--wrong", wrong))
    if target.answer == target.wrong:
        raise DataError(f"--answer {answer!r} and --wrong {wrong!r} begin with the same token; use different ones.")
    pair = Pair(torch.tensor([sides[0]]), torch.tensor([sides[1]]), target)
    extra = {"corrupted_tokens": len(sides[1]), "answer": target.answer, "wrong": target.wrong}
    return pair, Origin(model, loaded, len(sides[0]), extra, sides[0])


def _token(model: Transformer, option: str, text: str) -> int:
    """The first token of an option's text, or the token id that it gives."""
    if model.tokenizer is None and not text.isdecimal():
        raise DataError(f"{option} {text!r}: the model has no tokenizer; give a token id.")
    pieces = [int(text)] if model.tokenizer is None or text.isdecimal() else model.tokenizer.encode_continuation(text)
    if not pieces:
        raise DataError(f"{option} is empty; give the text of a token, as ' Paris', or a token id.")
    if len(pieces) > 1:
        print(f"note: {option} {text!r} is {len(pieces)} tokens; the first one is used", file=sys.stderr)
    return pieces[0]


COMMANDS = (
    (patch, EXAMPLE),
    (path, EXAMPLE),
    (logit_paths, ON_A_PROMPT),
    (composition, ""),
)
