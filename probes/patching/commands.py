"""Commands for activation patching, path patching, logit paths and composition scores."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from probes.base.cli_options import ON_A_PROMPT, Device, File, Model, Output, Prompt
from probes.base.command import Origin, capture, check, deliver, labels, labels_of, load
from workbench.errors import DataError

if TYPE_CHECKING:
    from probes.patching.activation_patching import Patching
    from probes.patching.prompt_pairs import Pair
    from workbench.model import Transformer
    from workbench.text.tokenizer import Tokenizer

Clean = Annotated[str, typer.Option("--prompt", help="Clean prompt; the begin token is added if the model uses one.")]
Corrupted = Annotated[str, typer.Option(help="Corrupted prompt, with the same number of tokens.")]
Answer = Annotated[
    str, typer.Option(help="Correct token after the clean prompt: text (its first token), as ' Paris', or token id.")
]
Wrong = Annotated[str, typer.Option(help="Wrong token, whose logit is subtracted: text or token id.")]
Dtype = Annotated[str, typer.Option(help="bfloat16, float16, float32, or auto: the checkpoint's dtype.")]
Noise = Annotated[bool, typer.Option("--noise", help="Patch corrupted activations into the clean run instead.")]

EXAMPLE = " --prompt 'b c d b' --corrupted 'b f d b' --answer ' c' --wrong ' f'"


def patch(
    prompt: Clean,
    corrupted: Corrupted,
    answer: Answer,
    wrong: Wrong,
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

    loaded, pair, origin = _pair(model, prompt, corrupted, answer, wrong, device, dtype)
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
    prompt: Clean,
    corrupted: Corrupted,
    answer: Answer,
    wrong: Wrong,
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
    loaded, pair, origin = _pair(model, prompt, corrupted, answer, wrong, device, dtype)
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
    from workbench.command_options import tokenizer_of

    if wrong and not answer:
        raise DataError("--wrong needs --answer; give both.")
    loaded, cap, origin = capture(
        model, prompt, file, {*component_attribution.SOURCE_HOOKS, "ln_final.hook_out"}, device
    )
    target = logit_attribution.likeliest(loaded, cap, position=position)[-1]
    if answer:
        tokenizer = tokenizer_of(loaded, model)
        target = _token(tokenizer, "--answer", answer)
        target = (target, _token(tokenizer, "--wrong", wrong)) if wrong else target
    result = path_patching.logit_paths(loaded, cap, target, position=position)
    origin = replace(origin, extra={**(origin.extra or {}), "target": target, "position": result.position})
    deliver(result, output, origin, labels=labels(loaded, cap))


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


def _pair(
    model: str, prompt: str, corrupted: str, answer: str, wrong: str, device: str, dtype: str
) -> tuple[Transformer, Pair, Origin]:
    """The model, the two prompts as tokens with the answers' logit difference as target, and their origin."""
    import torch

    from probes.patching.prompt_pairs import LogitDifference, Pair
    from workbench.command_options import tokenizer_of

    loaded = load(model, device, dtype)
    tokenizer = tokenizer_of(loaded, model)
    sequences = [tokenizer.encode(text, bos=True) for text in (prompt, corrupted)]
    if len(sequences[0]) != len(sequences[1]):
        raise DataError(
            f"--prompt has {len(sequences[0])} tokens and --corrupted has {len(sequences[1])}; "
            "change the words so that both have the same number."
        )

    target = LogitDifference(_token(tokenizer, "--answer", answer), _token(tokenizer, "--wrong", wrong))
    if target.answer == target.wrong:
        raise DataError(f"--answer {answer!r} and --wrong {wrong!r} begin with the same token; use different ones.")
    pair = Pair(torch.tensor([sequences[0]]), torch.tensor([sequences[1]]), target)
    extra = {"corrupted_tokens": len(sequences[1]), "answer": target.answer, "wrong": target.wrong}
    return loaded, pair, Origin(model, loaded, len(sequences[0]), extra, sequences[0])


def _token(tokenizer: Tokenizer, option: str, text: str) -> int:
    """The first token of an option's text, or the token id that it gives."""
    pieces = [int(text)] if text.isdecimal() else tokenizer.encode_continuation(text)
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
