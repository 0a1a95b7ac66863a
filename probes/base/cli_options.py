"""What the commands share: their options, their examples, and the shape of a command that measures one head."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from probes.base.command import capture, check, deliver, labels

Model = Annotated[str, typer.Option(help="A Meta or Hugging Face checkpoint folder, or 'demo'.")]
Prompt = Annotated[str | None, typer.Option(help="Text to run; begin-of-text is put before it.")]
File = Annotated[Path | None, typer.Option(help="Read the text from this UTF-8 file instead.")]
Layer = Annotated[int, typer.Option(min=0, help="The head's layer.")]
Head = Annotated[int, typer.Option(min=0, help="The head.")]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="A .csv, .parquet or .html file to write.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ... or auto.")]

ON_A_PROMPT = " --prompt 'one two one two'"
"""What the example of a command on a prompt adds to the model."""

ON_A_HEAD = f" --layer 2 --head 1{ON_A_PROMPT}"


def of_head(name: str, probe: str, summary: str) -> Callable[..., None]:
    """A command that measures one head on a prompt.

    probe: the whole path of the function, as `probes.rope.head_scores.band_contribution`; it is imported when the
    command runs.
    """
    path, _, function = probe.rpartition(".")

    def command(
        layer: Layer,
        head: Head,
        model: Model = "demo",
        prompt: Prompt = None,
        file: File = None,
        output: Output = None,
        device: Device = "auto",
    ) -> None:
        check(output)
        module = importlib.import_module(path)
        loaded, cap, origin = capture(model, prompt, file, module.HOOKS, device, layer=layer)
        found = getattr(module, function)(cap, layer, head)
        deliver(found, output, origin, **({"labels": labels(loaded, cap)} if function == "head_map" else {}))

    command.__name__ = name
    command.__doc__ = summary
    return command
