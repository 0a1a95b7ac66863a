#!/usr/bin/env python
"""Write constraints.txt from what is installed here, the project itself and installers left out.

A local build tag (`2.13.0+cpu`) is dropped, so that each machine takes the build that suits it.
"""

import re
from importlib.metadata import distributions
from pathlib import Path

OUTPUT = Path(__file__).resolve().parent.parent / "constraints.txt"
LEFT_OUT = {"llama-workbench", "pip", "setuptools", "wheel"}
HEADER = """\
# Every version the tests ran with, on Python 3.11: pip install -c constraints.txt -e .
# `make constraints` writes this file from the installed versions.
"""


def main() -> None:
    pins = {
        re.sub(r"[-_.]+", "-", dist.metadata["Name"]).lower(): dist.version.partition("+")[0]
        for dist in distributions()
    }
    lines = [f"{name}=={pins[name]}\n" for name in sorted(pins.keys() - LEFT_OUT)]
    OUTPUT.write_text(HEADER + "".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
