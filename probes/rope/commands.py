"""Commands about rotary position embedding: for a configuration, a text, or one head's q and k."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from probes.base.cli_options import ON_A_HEAD, ON_A_PROMPT, Device, File, Model, Output, Prompt, of_head
from probes.base.command import Origin, capture, check, config, deliver, split_begin, tokens


def wavelengths(model: Model = "demo", output: Output = None) -> None:
    """RoPE: wavelength of each frequency pair."""
    check(output)
    from probes.rope import formulas

    result = formulas.wavelengths(config(model))
    deliver(result, output, Origin(model))


def decay(model: Model = "demo", output: Output = None) -> None:
    """RoPE: score of identical vectors as distance grows."""
    check(output)
    from probes.rope import formulas

    deliver(formulas.decay(config(model)), output, Origin(model))


def positions(
    model: Model = "demo",
    prompt: Prompt = None,
    file: File = None,
    length: Annotated[
        int | None, typer.Option(min=2, help="Window length in tokens; default: the text, at most 4 contexts.")
    ] = None,
    scaling: Annotated[
        list[str] | None,
        typer.Option(help="NAME=NUMBER: theta, or a factor for interpolation, ntk, yarn or llama3. Repeatable."),
    ] = None,
    output: Output = None,
    device: Device = "auto",
) -> None:
    """RoPE: loss by position, with and without other scalings."""
    check(output)
    from probes.rope import loss_by_position as probe
    from workbench.hooks.rope_scaling import scaling_of

    loaded, ids, origin = tokens(model, prompt, file, device)
    (bos, body), context = split_begin(loaded, ids), loaded.config.max_seq_len
    length = min(len(ids), 4 * context) if length is None else length
    factor = max(1.0, length / context)
    scalings = scaling or [f"{name}={factor:g}" for name in ("interpolation", "ntk", "yarn")]
    runs = {text: [scaling_of(text, loaded.config)] for text in scalings}
    result = probe.loss_by_position(loaded, probe.windows(body, length, bos=bos), runs)
    deliver(result, output, origin)


def turned(
    model: Model = "demo",
    prompt: Prompt = None,
    file: File = None,
    scaling: Annotated[
        str, typer.Option(help="NAME=NUMBER: theta, or a factor for interpolation, ntk, yarn or llama3.")
    ] = "yarn=4",
    output: Output = None,
    device: Device = "auto",
) -> None:
    """RoPE: change of each head's pattern under a scaling."""
    check(output)
    from probes.rope import head_scores, what_if_heads
    from workbench.hooks.rope_scaling import scaling_of

    other = scaling_of(scaling, config(model)).rotary(config(model))
    _, cap, origin = capture(model, prompt, file, head_scores.HOOKS, device)
    result = what_if_heads.what_if_heads(cap, other.frequencies, temperature=other.temperature)

    deliver(result, output, replace(origin, extra={"scaling": scaling}), other=scaling)


bands = of_head(
    "bands", "probes.rope.head_scores.band_contribution", "RoPE: contribution of each frequency to a head's scores."
)
distance = of_head("distance", "probes.rope.head_scores.score_by_distance", "RoPE: one head's scores by distance.")
invariance = of_head(
    "invariance", "probes.rope.head_scores.relative_invariance", "RoPE: errors of shift invariance caused by rounding."
)

COMMANDS = (
    (wavelengths, ""),
    (decay, ""),
    (bands, ON_A_HEAD),
    (distance, ON_A_HEAD),
    (invariance, ON_A_HEAD),
    (positions, ON_A_PROMPT),
    (turned, ON_A_PROMPT),
)
