"""Options and examples that the commands share, and a factory for commands that measure one head."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from probes.base.command import RUN, RunOptions, capture, check, deliver, labels
from workbench.command_options import Ablate, Adapter, Device, Ids, Intervene

Model = Annotated[
    str,
    typer.Option(help="A checkpoint folder or GGUF file, 'demo', 'smollm2', or ORG/NAME in the Hugging Face cache."),
]
Prompt = Annotated[str | None, typer.Option(help="Text to run; the begin token is added if the model uses one.")]
File = Annotated[Path | None, typer.Option(help="Read the text from this UTF-8 file.")]
Layer = Annotated[int, typer.Option(min=0, help="Layer of the head.")]
Head = Annotated[int, typer.Option(min=0, help="Number of the head.")]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="File to write: .csv, .parquet or .html.")]

ON_A_PROMPT = " --prompt 'one two one two'"
"""Options in the example of a command that runs a prompt."""

ON_A_HEAD = f" --layer 2 --head 1{ON_A_PROMPT}"


Option = Literal["adapter", "ids", "intervene", "ablate"]
_SHARED: dict[Option, tuple[Any, Any]] = {
    "adapter": (Adapter, None), "ids": (Ids, None), "intervene": (Intervene, None), "ablate": (Ablate, ""),
}  # fmt: skip
_LEFT_OUT = "options_left_out"


def without(*options: Option) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Mark a command for which some of the shared options have no meaning: it reads weights alone, or needs a text."""

    def mark(command: Callable[..., None]) -> Callable[..., None]:
        setattr(command, _LEFT_OUT, options)
        return command

    return mark


def with_shared_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the options that all commands share, unless it has them already.

    A command that loads a model takes --adapter, --intervene and --ablate; one that takes a prompt also takes --ids.
    """
    signature = inspect.signature(command, eval_str=True)
    if "device" not in signature.parameters:
        return command
    left_out = {*signature.parameters, *getattr(command, _LEFT_OUT, ())}
    left_out |= set() if "prompt" in signature.parameters else {"ids"}
    added = [name for name in _SHARED if name not in left_out]

    @functools.wraps(command)
    def extended(**options: Any) -> None:
        shared = {name: options.pop(name) for name in added if name in options}
        with ExitStack() as scopes:
            token = RUN.set(RunOptions(**shared, scopes=scopes))
            try:
                command(**options)
            finally:
                RUN.reset(token)

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = list(signature.parameters.values())
    for name in added:
        annotation, default = _SHARED[name]
        parameters.append(inspect.Parameter(name, kind, default=default, annotation=annotation))
    extended.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    extended.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return extended


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
