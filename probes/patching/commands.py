"""Commands that patch one run with another's activations: sweeps, paths between heads, and the weights behind them."""

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

Clean = Annotated[str, typer.Option("--prompt", help="The clean text; begin-of-text is put before it.")]
Corrupted = Annotated[str, typer.Option(help="The same in as many tokens, with what matters changed.")]
Answer = Annotated[
    str, typer.Option(help="What the clean text asks for, as ' Paris', by its first token or by number.")
]
Wrong = Annotated[str, typer.Option(help="What it is set against, in the same way.")]
Dtype = Annotated[str, typer.Option(help="bfloat16, float16, float32, or auto: the checkpoint's own.")]
Noise = Annotated[bool, typer.Option("--noise", help="Put corrupted activations into the clean run instead.")]

EXAMPLE = " --prompt 'b c d b' --corrupted 'b f d b' --answer ' c' --wrong ' f'"


def patch(
    prompt: Clean,
    corrupted: Corrupted,
    answer: Answer,
    wrong: Wrong,
    model: Model = "demo",
    what: Annotated[
        Literal["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "heads", "heads_by_position"],
        typer.Option(help="The stream before, amid or after layers, what a sublayer adds, or heads."),
    ] = "resid_pre",
    noise: Noise = False,
    gradient: Annotated[
        bool, typer.Option("--gradient", help="Estimate from one gradient too, and show how wrong that is.")
    ] = False,
    dtype: Dtype = "auto",
    output: Output = None,
    device: Device = "auto",
) -> None:
    """Patching: how much of a logit difference each place carries."""
    check(output)
    from probes.patching import activation_patching, attribution_patching

    loaded, pair, origin = _pair(model, prompt, corrupted, answer, wrong, device, dtype)
    direction: activation_patching.Direction = "noise" if noise else "denoise"
    result = activation_patching.patching(loaded, pair, what, direction=direction)
    _note(result, loaded)
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
    to: Annotated[str, typer.Option(help="Heads that receive, as L4H1,L5H0; without it, the logits.")] = "",
    through: Annotated[Literal["q", "k", "v"], typer.Option(help="The receivers' input.")] = "q",
    noise: Noise = False,
    freeze_mlps: Annotated[bool, typer.Option("--freeze-mlps", help="Hold the MLPs as well as other heads.")] = False,
    dtype: Dtype = "auto",
    output: Output = None,
    device: Device = "auto",
) -> None:
    """Paths: what each head sends to others, or to the logits."""
    check(output)
    from probes.base.head_names import parse
    from probes.patching import path_patching

    receivers = parse(to) if to else []
    loaded, pair, origin = _pair(model, prompt, corrupted, answer, wrong, device, dtype)
    result = path_patching.path_patching(
        loaded, pair, receivers, through=through, direction="noise" if noise else "denoise", freeze_mlps=freeze_mlps
    )
    _note(result, loaded)
    extra = {"to": to or "logits", "through": through, "direction": result.direction, "mlps_frozen": freeze_mlps}
    deliver(result, output, replace(origin, extra={**(origin.extra or {}), **extra}))


def logit_paths(
    model: Model = "demo",
    prompt: Prompt = None,
    file: File = None,
    answer: Annotated[str, typer.Option(help="A token as in patch; the two likeliest where not given.")] = "",
    wrong: Annotated[str, typer.Option(help="A token whose logit is subtracted.")] = "",
    position: Annotated[int, typer.Option(help="The position whose next token is asked for; -1 is the last.")] = -1,
    output: Output = None,
    device: Device = "auto",
) -> None:
    """Paths: what all heads carry to a logit from each token."""
    check(output)
    from probes.logits import component_attribution, logit_attribution
    from probes.patching import path_patching
    from workbench.commands import tokenizer_of

    if wrong and not answer:
        raise DataError("--wrong goes with --answer.")
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
    through: Annotated[Literal["q", "k", "v"], typer.Option(help="What the figure shows.")] = "k",
    output: Output = None,
    device: Device = "auto",
) -> None:
    """Paths: how much of what one head reads another can write."""
    check(output)
    from probes.patching import path_patching

    loaded = load(model, device)
    deliver(path_patching.composition(loaded), output, Origin(model, loaded), through=through)


def _note(result: Patching, loaded: Transformer) -> None:
    """Say on stderr where the model's dtype leaves the shares no digits."""
    import torch

    difference, eps = abs(float(result.clean.mean() - result.corrupted.mean())), torch.finfo(loaded.dtype).eps
    if difference < 100 * eps:
        name = str(loaded.dtype).removeprefix("torch.")
        print(f"note: clean and corrupted differ by {difference:.3g} only, and {name} rounds a logit of 1 by {eps:.2g}; "
              "ask for --dtype float32, or for answers further apart", file=sys.stderr)  # fmt: skip


def _pair(
    model: str, prompt: str, corrupted: str, answer: str, wrong: str, device: str, dtype: str
) -> tuple[Transformer, Pair, Origin]:
    """The model, the two texts as tokens with the two answers' logits as target, and where they come from."""
    import torch

    from probes.patching.prompt_pairs import LogitDifference, Pair
    from workbench.commands import tokenizer_of

    loaded = load(model, device, dtype)
    tokenizer = tokenizer_of(loaded, model)
    sequences = [tokenizer.encode(text, bos=True) for text in (prompt, corrupted)]
    if len(sequences[0]) != len(sequences[1]):
        raise DataError(
            f"--prompt is {len(sequences[0])} tokens and --corrupted {len(sequences[1])}; word them so that they have as many."
        )

    target = LogitDifference(_token(tokenizer, "--answer", answer), _token(tokenizer, "--wrong", wrong))
    if target.answer == target.wrong:
        raise DataError(f"--answer {answer!r} and --wrong {wrong!r} begin with the same token; name others.")
    pair = Pair(torch.tensor([sequences[0]]), torch.tensor([sequences[1]]), target)
    extra = {"corrupted_tokens": len(sequences[1]), "answer": target.answer, "wrong": target.wrong}
    return loaded, pair, Origin(model, loaded, len(sequences[0]), extra)


def _token(tokenizer: Tokenizer, option: str, text: str) -> int:
    """The token that an option's text begins with, or whose number it is."""
    pieces = [int(text)] if text.isdecimal() else tokenizer.encode(text)
    if not pieces:
        raise DataError(f"{option} is empty; give a token's text, as ' Paris', or its number.")
    if len(pieces) > 1:
        print(f"note: {option} {text!r} is {len(pieces)} tokens; its first stands for it", file=sys.stderr)
    return pieces[0]


COMMANDS = (
    (patch, EXAMPLE),
    (path, EXAMPLE),
    (logit_paths, ON_A_PROMPT),
    (composition, ""),
)
