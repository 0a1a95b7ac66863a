"""`workbench probe NAME`: one measurement of a model or a prompt, as a table, a file, or a figure.

The table is printed, or written to the --output file: .csv or .parquet with a JSON file of metadata next to it, or
.html for the figure. Every topic lists its commands in `COMMANDS` of its `commands.py`, each with the options of its
example. Torch, pandas and plotly are imported only when a command needs them.
"""

from collections.abc import Callable

import typer

from probes.attention.commands import COMMANDS as ATTENTION
from probes.base.cli_options import with_shared_options
from probes.comparison.commands import COMMANDS as COMPARISON
from probes.flow.commands import COMMANDS as FLOW
from probes.generation.commands import COMMANDS as GENERATION
from probes.logits.commands import COMMANDS as LOGITS
from probes.mlp.commands import COMMANDS as MLP
from probes.norms.commands import COMMANDS as NORMS
from probes.norms.stream_commands import COMMANDS as STREAM
from probes.patching.ablation_commands import COMMANDS as ABLATION
from probes.patching.commands import COMMANDS as PATCHING
from probes.rope.commands import COMMANDS as ROPE

# In the order of the help page.
TOPICS = (ATTENTION, ABLATION, FLOW, ROPE, NORMS, GENERATION, STREAM, LOGITS, PATCHING, MLP, COMPARISON)

app = typer.Typer(
    help="Measure a model's heads, rotary embedding, norms and residual stream.",
    epilog="Example: workbench probe heads --model demo --prompt 'one two one two'",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)


def name_of(command: Callable[..., None]) -> str:
    """The name of a command on the command line."""
    return command.__name__.replace("_", "-")


for _topic in TOPICS:
    for _command, _example in _topic:
        _name = name_of(_command)
        app.command(_name, epilog=f"Example: workbench probe {_name} --model demo{_example}")(
            with_shared_options(_command)
        )
