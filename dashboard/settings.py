"""What the server was started with: the model and the folder of results. Fixed for the life of the process."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

_MODEL, _RESULTS = "WORKBENCH_APP_MODEL", "WORKBENCH_APP_RESULTS"


@dataclass(frozen=True)
class Settings:
    """`model` is "demo" or a checkpoint folder; `results` holds benchmark runs and need not exist."""

    model: str = "demo"
    results: Path = ROOT / "results"

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> "Settings":
        return cls(env.get(_MODEL, cls.model), Path(env.get(_RESULTS, cls.results)))

    def to_env(self) -> dict[str, str]:
        """The variables that hand these settings to the server's process; paths made absolute."""
        model = self.model if self.model == "demo" else str(Path(self.model).resolve())
        return {_MODEL: model, _RESULTS: str(self.results.resolve())}
