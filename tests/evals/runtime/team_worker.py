"""One of the processes of test_distributed.py, started by torchrun: the command, in units of a few questions."""

import os
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

import workbench as wb
from evals.models import units
from workbench.cli import main

units._FEWEST_SCORES, units._MOST_SCORES = 8, 8
units._FEWEST_GENERATIONS, units._MOST_GENERATIONS = 2, 2


def slowly(ask: Callable[..., Any]) -> Callable[..., Any]:
    """Every unit takes a moment, so that a kill lies inside a run; and says who asked it."""

    def asked(*given: Any, **options: Any) -> Any:
        time.sleep(float(os.environ.get("SLOWLY", "0")))
        print(f"rank {os.environ.get('RANK', 0)} asked {len(given[1])}", file=sys.stderr, flush=True)
        return ask(*given, **options)

    return asked


if __name__ == "__main__":
    if "MACHINES" in os.environ:
        socket.gethostname = lambda: f"machine{os.environ['RANK']}"  # type: ignore[assignment]
    wb.score, wb.generate = slowly(wb.score), slowly(wb.generate)
    sys.exit(main(sys.argv[1:]))
