"""Resource limits of a program. Does not know how they are enforced."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from workbench.errors import SandboxError

MIB = 1 << 20
_JUDGE_MEMORY = 512 * MIB
BENCHMARK_SECONDS = 10.0
"""Default time limit of a program that answers a benchmark; other programs have the default of `Limits`."""


@dataclass(frozen=True)
class Limits:
    """Resource limits of one program; they apply to each of its two processes separately.

    `cpu_seconds` defaults to `seconds` plus two. `processes` counts threads: new processes are always refused.
    `file_bytes` limits one file and the whole scratch folder, `files` the number of files there; `output_bytes` the
    stored part of each output stream. A lower limit of the process that starts the sandbox (`ulimit -n`) applies, too.
    Units:  seconds of wall-clock time for program and tests together, memory in bytes of address space.
    Raises: SandboxError if a limit is too small to start Python.
    """

    seconds: float = 5.0
    cpu_seconds: int | None = None
    memory: int = 512 * MIB
    processes: int = 64
    file_bytes: int = 16 * MIB
    open_files: int = 64
    output_bytes: int = 8 << 10
    files: int = 4096

    def __post_init__(self) -> None:
        least = {"memory": 64 * MIB, "processes": 1, "file_bytes": 1, "open_files": 16, "output_bytes": 256, "files": 1}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise SandboxError(f"the limit {name} must be at least {low}; found {getattr(self, name)}.")
        if not 0 < self.seconds < math.inf or self.cpu < 1:
            raise SandboxError(
                f"the limits seconds and cpu_seconds must be above 0; found {self.seconds:g} and {self.cpu}."
            )

    @property
    def cpu(self) -> int:
        """Seconds of processor time."""
        return math.ceil(self.seconds) + 2 if self.cpu_seconds is None else self.cpu_seconds

    def rlimits(self, *, shared_user: bool) -> dict[str, int]:
        """The limits by their kernel names; RLIMIT_NPROC counts per user, so it is left out if the user is shared."""
        limits = {
            "RLIMIT_CPU": self.cpu,
            "RLIMIT_AS": self.memory,
            "RLIMIT_FSIZE": self.file_bytes,
            "RLIMIT_NOFILE": self.open_files,
            "RLIMIT_CORE": 0,
        }
        return limits if shared_user else limits | {"RLIMIT_NPROC": self.processes}

    def of_judge(self) -> Limits:
        """The limits of the process with the tests: enough memory for what they import, whatever a program may have."""
        return replace(self, memory=max(self.memory, _JUDGE_MEMORY))

    @classmethod
    def of(cls, values: Mapping[str, Any], *, seconds: float) -> Limits:
        """Limits from values by name; other limits have their defaults, and `seconds` the one given here.

        Raises: SandboxError for an unknown limit, or a value that is not a number.
        """
        names = [field.name for field in fields(cls)]
        for name, value in values.items():
            if name not in names:
                raise SandboxError(f"there is no limit {name!r}; the limits are {', '.join(names)}.")
            kinds = (int, float) if name == "seconds" else (int,)
            if not isinstance(value, kinds) or isinstance(value, bool):
                what = "a number" if name == "seconds" else "an integer"
                raise SandboxError(f"the limit {name} must be {what}; found {value!r}.")
        return cls(**{"seconds": seconds, **values})

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"cpu_seconds": self.cpu}
