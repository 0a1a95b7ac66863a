"""What the garbage collector need not look at after every run of a page.

Streamlit collects all garbage when a script has ended (`runner.postScriptGC`), and while it does, no other thread of
Python runs: with torch, plotly and pandas loaded that is 0.2 s, in which the last of a page waits to be sent.
"""

import gc
from functools import cache


@cache
def freeze_objects(page: str) -> None:
    """Leave what is there once a page is first shown in this process, code above all, out of later collections.

    What is part of no cycle is freed as ever; the rest waits for `free`.
    """
    gc.freeze()


def collect_all() -> None:
    """Collect what was set aside too, and set the rest aside again."""
    kept = gc.get_freeze_count()
    gc.unfreeze()
    gc.collect()
    if kept:
        gc.freeze()
