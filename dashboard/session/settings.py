"""The server's settings: its models and folders. They do not change while the process runs."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent

_MODEL, _RESULTS = "WORKBENCH_APP_MODEL", "WORKBENCH_APP_RESULTS"
_MORE, _CAPTURES = "WORKBENCH_APP_MORE_MODELS", "WORKBENCH_APP_CAPTURES"


@dataclass(frozen=True)
class Settings:
    """`model` is "demo" or a checkpoint folder, `more` are further ones to select; `results` is the folder of benchmark
    runs, `captures` the folder of saved captures, by default a folder in `results`. The folders need not exist."""

    model: str = "demo"
    results: Path = ROOT / "results"
    more: tuple[str, ...] = ()
    captures: Path | None = None

    @property
    def captures_folder(self) -> Path:
        return self.results / "captures" if self.captures is None else self.captures

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> "Settings":
        return cls(
            env.get(_MODEL, cls.model),
            Path(env.get(_RESULTS, cls.results)),
            tuple(json.loads(env.get(_MORE, "[]"))),
            Path(env[_CAPTURES]) if env.get(_CAPTURES) else None,
        )

    def to_env(self) -> dict[str, str]:
        """The environment variables that pass these settings to the server's process; paths are made absolute."""
        model, *more = (path if path == "demo" else str(Path(path).resolve()) for path in (self.model, *self.more))
        captures = "" if self.captures is None else str(self.captures.resolve())
        return {_MODEL: model, _RESULTS: str(self.results.resolve()), _MORE: json.dumps(more), _CAPTURES: captures}
