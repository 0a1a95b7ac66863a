"""Every exception that a user's mistake can raise.

    WorkbenchError
    ├── ConfigError            a model configuration is wrong or contradicts itself
    ├── CheckpointError        a checkpoint's files do not hold what the configuration promises
    ├── TokenizerError         a tokenizer file or a token id is not usable
    ├── ChatError              messages that the chat format cannot carry
    ├── HookError
    │   ├── UnknownHookError   a name that is not in the hook table
    │   └── MissingHookError   a capture that does not hold what was read from it
    ├── CaptureError           a capture that cannot be made, saved or read
    │   └── CaptureBudgetError a capture that would not fit its budget
    ├── InterventionError      an intervention that does not fit the model
    ├── GenerationError        a prompt or a sampling setting that cannot be used
    ├── ParallelError          a model that cannot be split over the processes at hand
    ├── TrainingError          a recipe or a training folder that cannot be used
    ├── DataError              benchmark data that is missing or malformed
    ├── SandboxError           no sandbox to run generated code in
    └── MissingExtraError      an optional package is not installed

Each message says what was wrong, what was found and what to do, in one or two lines.
"""

from __future__ import annotations


class WorkbenchError(Exception):
    """The root of every exception that a user's mistake can raise."""


class ConfigError(WorkbenchError):
    """A model configuration is wrong or contradicts itself."""


class CheckpointError(WorkbenchError):
    """A checkpoint's files do not hold what the configuration promises."""


class TokenizerError(WorkbenchError):
    """A tokenizer file or a token id is not usable."""


class ChatError(WorkbenchError):
    """Messages that the chat format cannot carry."""


class HookError(WorkbenchError):
    """A hook name that cannot be used here."""


class UnknownHookError(HookError):
    """A name or pattern that matches no row of the hook table."""


class MissingHookError(HookError):
    """A capture does not hold what was read from it."""


class CaptureError(WorkbenchError):
    """A capture that cannot be made, saved or read."""


class CaptureBudgetError(CaptureError):
    """A capture that would not fit its budget."""


class InterventionError(WorkbenchError):
    """An intervention that does not fit the model."""


class GenerationError(WorkbenchError):
    """A prompt or a sampling setting that cannot be used."""


class ParallelError(WorkbenchError):
    """A model that cannot be split over the processes at hand."""


class TrainingError(WorkbenchError):
    """A recipe or a training folder that cannot be used."""


class DataError(WorkbenchError):
    """Benchmark data that is missing or malformed."""


class SandboxError(WorkbenchError):
    """There is no sandbox to run generated code in."""


class MissingExtraError(WorkbenchError):
    """An optional package is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed. Install it with: pip install -e '.[{extra}]' -c constraints.txt")
        self.package = package
        self.extra = extra
