"""What a program may use. Knows nothing of how it is held to that."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from workbench.errors import SandboxError

MIB = 1 << 20


@dataclass(frozen=True)
class Limits:
    """What one program may use before it is stopped; each of its two processes has these limits to itself.

    `cpu_seconds` defaults to two more than `seconds`. `processes` counts threads: other processes are refused whatever
    it says. `file_bytes` bounds one file and the whole scratch folder; `output_bytes` what is kept of each stream.
    Units:  seconds of wall-clock time for program and tests together, memory in bytes of address space.
    Raises: SandboxError where a limit leaves no room to start Python in.
    """

    seconds: float = 5.0
    cpu_seconds: int | None = None
    memory: int = 512 * MIB
    processes: int = 64
    file_bytes: int = 16 * MIB
    open_files: int = 64
    output_bytes: int = 8 << 10

    def __post_init__(self) -> None:
        least = {"memory": 64 * MIB, "processes": 1, "file_bytes": 1, "open_files": 16, "output_bytes": 256}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise SandboxError(f"the limit {name} must be at least {low}, found {getattr(self, name)}.")
        if not 0 < self.seconds < math.inf or self.cpu < 1:
            raise SandboxError(
                f"the limit seconds must be above 0 s, found {self.seconds:g} and cpu_seconds {self.cpu}."
            )

    @property
    def cpu(self) -> int:
        """Seconds of processor time."""
        return math.ceil(self.seconds) + 2 if self.cpu_seconds is None else self.cpu_seconds

    def rlimits(self, *, shared_user: bool) -> dict[str, int]:
        """The kernel's names for them; processes are counted for each user, and so not where one is shared."""
        limits = {
            "RLIMIT_CPU": self.cpu,
            "RLIMIT_AS": self.memory,
            "RLIMIT_FSIZE": self.file_bytes,
            "RLIMIT_NOFILE": self.open_files,
            "RLIMIT_CORE": 0,
        }
        return limits if shared_user else limits | {"RLIMIT_NPROC": self.processes}

    @classmethod
    def of(cls, given: Mapping[str, Any], *, seconds: float) -> Limits:
        """Limits by their names, the others as they are; `seconds` where it is not given.

        Raises: SandboxError for a name that is no limit, or a value that is no number.
        """
        names = [field.name for field in fields(cls)]
        for name, value in given.items():
            if name not in names:
                raise SandboxError(f"there is no limit {name!r}; there are {', '.join(names)}.")
            kinds = (int, float) if name == "seconds" else (int,)
            if not isinstance(value, kinds) or isinstance(value, bool):
                what = "number" if name == "seconds" else "whole number"
                raise SandboxError(f"the limit {name} is a {what}, found {value!r}.")
        return cls(**{"seconds": seconds, **given})

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"cpu_seconds": self.cpu}
