"""The command that measures a loss without some heads."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from probes.base import head_names
from probes.base.cli_options import Device, Model, Output
from probes.base.command import Origin, check, deliver, load


def ablation(
    model: Model = "demo",
    chosen: Annotated[
        str, typer.Option("--heads", help="Heads to take away, as L2H3,L5H1; without it, the induction heads found.")
    ] = "",
    block: Annotated[int, typer.Option(min=2, help="Random tokens that come twice.")] = 32,
    n_draws: Annotated[int, typer.Option("--draws", min=1, help="Random sets of as many heads.")] = 20,
    apart_from: Annotated[
        str, typer.Option(help="Heads that are not drawn either, as the previous-token heads: L4H0.")
    ] = "",
    mean: Annotated[bool, typer.Option("--mean", help="Replace a head by its mean instead of zero.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the random tokens and draws.")] = 0,
    output: Output = None,
    device: Device = "auto",
) -> None:
    """Heads: the loss on a repetition without some heads, against without random others."""
    check(output)
    from probes.patching import ablation as probe

    heads = head_names.parse(chosen) if chosen else None
    excluded = head_names.parse(apart_from) if apart_from else []
    loaded = load(model, device)
    replacement: Literal["zero", "mean"] = "mean" if mean else "zero"
    result = probe.induction_ablation(
        loaded, heads, block=block, n_draws=n_draws, seed=seed, replacement=replacement, apart_from=excluded
    )
    extra = {"block": block, "draws": n_draws, "seed": seed, "replacement": replacement, "apart_from": apart_from}
    deliver(result, output, Origin(model, loaded, extra=extra))


COMMANDS = ((ablation, " --heads L2H3,L5H0"),)
