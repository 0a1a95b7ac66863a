"""Start time of a process, which distinguishes it from a later process with the same pid."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path


def process_start_time(pid: int) -> str | None:
    """The start time of a process, as text to compare; None if it has ended or is a zombie."""
    try:
        # The second field is the program's name, which may contain spaces and brackets.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
        return _start_time_without_proc(pid)
    return None if fields[0] in "ZX" else f"{boot}/{fields[19]}"


def _start_time_without_proc(pid: int) -> str | None:
    """The start time on systems without /proc, such as macOS."""
    command, language = ["ps", "-o", "stat=,lstart=", "-p", str(pid)], os.environ | {"LC_ALL": "C"}
    output = subprocess.run(command, capture_output=True, text=True, check=False, env=language)
    state, _, since = output.stdout.strip().partition(" ")
    return None if not state or state.startswith("Z") else since.strip()
