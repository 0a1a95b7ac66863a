"""`workbench probe NAME`: one measurement of a model or a prompt, as a table, a file, or a figure.

The table goes to stdout, or to the file that --output names: .csv or .parquet, with an account of its origin beside
it, or .html for the figure. Every topic is a module with its commands, and lists them in `COMMANDS` with what an
example of each needs. Torch, pandas and plotly are imported only when a command needs them.
"""

from collections.abc import Callable

import typer

from probes.cli import comparison, flow, heads, logits, neurons, norms, patching, rope, sampled, stream

TOPICS = (heads, flow, rope, norms, sampled, stream, logits, patching, neurons, comparison)

app = typer.Typer(
    help="Measure a model's heads, rotary embedding, norms and residual stream.",
    epilog="Example: workbench probe heads --model demo --prompt 'one two one two'",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)


def name_of(command: Callable[..., None]) -> str:
    """A command's name on the command line."""
    return command.__name__.replace("_", "-")


for _topic in TOPICS:
    for _command, _example in _topic.COMMANDS:
        _name = name_of(_command)
        app.command(_name, epilog=f"Example: workbench probe {_name} --model demo{_example}")(_command)
