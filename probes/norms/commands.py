"""Commands for the norms: gains, input RMS, and comparison with a linear norm and with LayerNorm."""

from __future__ import annotations

from typing import Annotated

import typer

from probes.base.cli_options import ON_A_PROMPT, Device, File, Model, Output, Prompt, without
from probes.base.command import Origin, capture, check, config, deliver, labels, labels_of, load, tokens


@without("intervene", "ablate")
def gains(model: Model = "demo", output: Output = None, device: Device = "auto") -> None:
    """Norms: quantiles and extreme dimensions of the gains."""
    check(output)
    from probes.norms import rms_norms

    loaded = load(model, device)
    result = rms_norms.gain_statistics(loaded)
    deliver(result, output, Origin(model, loaded))


def rms(
    model: Model = "demo", prompt: Prompt = None, file: File = None, output: Output = None, device: Device = "auto"
) -> None:
    """Norms: input RMS (the divisor) of every norm and token."""
    check(output)
    from probes.norms import rms_norms

    loaded, cap, origin = capture(model, prompt, file, [h for h in rms_norms.HOOKS if h.endswith("hook_scale")], device)
    deliver(rms_norms.input_rms(cap), output, origin, labels=labels(loaded, cap))


def norm_times(
    model: Model = "demo",
    tokens: Annotated[int, typer.Option(min=1, help="Number of random tokens to normalise.")] = 512,
    output: Output = None,
) -> None:
    """Norms: run time of RMSNorm and LayerNorm on this CPU."""
    check(output)
    from probes.norms import norm_linearity

    result = norm_linearity.norm_times(config(model), tokens=tokens)
    deliver(result, output, Origin(model))


def linear(
    model: Model = "demo",
    prompt: Prompt = None,
    file: File = None,
    final: Annotated[bool, typer.Option("--final", help="Measure every part at the final norm.")] = False,
    output: Output = None,
    device: Device = "auto",
) -> None:
    """Norms: error of a linear approximation, part by part."""
    check(output)
    from probes.norms import norm_linearity

    loaded, cap, origin = capture(model, prompt, file, norm_linearity.HOOKS, device)
    result = norm_linearity.linearised_norm(loaded, cap, final=final)
    deliver(result, output, origin)


def recentring(
    model: Model = "demo", prompt: Prompt = None, file: File = None, output: Output = None, device: Device = "auto"
) -> None:
    """Norms: difference that LayerNorm's mean subtraction makes."""
    check(output)
    from probes.norms import norm_linearity

    _, cap, origin = capture(model, prompt, file, norm_linearity.HOOKS, device)
    deliver(norm_linearity.recentring(cap), output, origin)


def generated_norms(
    model: Model = "demo",
    prompt: Prompt = None,
    file: File = None,
    steps: Annotated[int, typer.Option(min=1, help="Tokens to generate with greedy decoding.")] = 32,
    output: Output = None,
    device: Device = "auto",
) -> None:
    """Norms: input RMS during generation."""
    check(output)
    from probes.norms import during_generation as probe

    loaded, ids, origin = tokens(model, prompt, file, device)
    result = probe.generated_norms(loaded, ids, steps=steps)
    deliver(result, output, origin, labels=labels_of(loaded, result.tokens))


COMMANDS = (
    (gains, ""),
    (rms, ON_A_PROMPT),
    (generated_norms, ON_A_PROMPT),
    (linear, ON_A_PROMPT),
    (recentring, ON_A_PROMPT),
    (norm_times, ""),
)
