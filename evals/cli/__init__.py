"""`workbench eval`: run benchmarks, list what there is, show what was found.

Results go to stdout, progress to stderr. Every topic is a module that lists its commands in `COMMANDS`, each with its
name and the arguments of an example. lm_eval and pandas are imported only when a command needs them.
"""

import typer

from evals.cli import data, reports, run, runs, samples, score

TOPICS = (run, runs, reports, data, score, samples)

app = typer.Typer(
    help="Run benchmarks on a checkpoint, and read what they found.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)

for _topic in TOPICS:
    for _name, _command, _example in _topic.COMMANDS:
        app.command(_name, epilog=f"Example: workbench eval {_name} {_example}".rstrip())(_command)
