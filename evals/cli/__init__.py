"""The commands of `workbench eval`: run benchmarks, list runs and tasks, show and compare results.

Results go to stdout, progress to stderr. Each module lists its commands in `COMMANDS`, with a name and the arguments
of an example. lm_eval and pandas are imported only when a command needs them.
"""

import typer

from evals.cli import data, reports, run, runs, samples, score
from evals.cli.lm_eval_flags import LmEvalCommand

TOPICS = (run, runs, reports, data, score, samples)

app = typer.Typer(
    help="Run benchmarks on a checkpoint and inspect the results.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)

for _topic in TOPICS:
    for _name, _command, _example in _topic.COMMANDS:
        _class = LmEvalCommand if _command is run.run else None
        app.command(_name, cls=_class, epilog=f"Example: workbench eval {_name} {_example}".rstrip())(_command)
