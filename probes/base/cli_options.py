"""Options and examples that the commands share, and a factory for commands that measure one head."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from probes.base.command import ADAPTER, capture, check, deliver, labels

Model = Annotated[
    str,
    typer.Option(help="A checkpoint folder or GGUF file, 'demo', 'smollm2', or ORG/NAME in the Hugging Face cache."),
]
Prompt = Annotated[str | None, typer.Option(help="Text to run; the begin token is added if the model uses one.")]
File = Annotated[Path | None, typer.Option(help="Read the text from this UTF-8 file.")]
Layer = Annotated[int, typer.Option(min=0, help="Layer of the head.")]
Head = Annotated[int, typer.Option(min=0, help="Number of the head.")]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="File to write: .csv, .parquet or .html.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ... or auto.")]

Adapter = Annotated[Path | None, typer.Option(help="Folder of a LoRA adapter to merge into the model's weights.")]

ON_A_PROMPT = " --prompt 'one two one two'"
"""Options in the example of a command that runs a prompt."""

ON_A_HEAD = f" --layer 2 --head 1{ON_A_PROMPT}"


def with_adapter(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the option --adapter, if it loads a model and does not have the option already."""
    signature = inspect.signature(command, eval_str=True)
    if "device" not in signature.parameters or "adapter" in signature.parameters:
        return command

    @functools.wraps(command)
    def adapted(adapter: Path | None = None, **options: object) -> None:
        token = ADAPTER.set(adapter)
        try:
            command(**options)
        finally:
            ADAPTER.reset(token)

    option = inspect.Parameter("adapter", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation=Adapter)
    parameters = [*signature.parameters.values(), option]
    adapted.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    adapted.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return adapted


def of_head(name: str, probe: str, summary: str) -> Callable[..., None]:
    """Make a command that measures one head on a prompt.

    probe: the dotted path of the function, for example `probes.rope.head_scores.band_contribution`. It is imported when
    the command runs.
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
        result = getattr(module, function)(cap, layer, head)
        deliver(result, output, origin, **({"labels": labels(loaded, cap)} if function == "head_map" else {}))

    command.__name__ = name
    command.__doc__ = summary
    return command
