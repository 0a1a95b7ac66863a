"""Exceptions for user errors.

    WorkbenchError
    ├── ConfigError            a model configuration is wrong or contradicts itself
    ├── CheckpointError        a checkpoint's files do not match the configuration
    ├── TokenizerError         a tokenizer file or a token id cannot be used
    ├── ChatError              messages that the chat format cannot represent
    ├── HookError
    │   ├── UnknownHookError   a name that is not in the hook table
    │   └── MissingHookError   a capture does not hold the hook that was read
    ├── CaptureError           a capture that cannot be made, saved or read
    │   └── CaptureBudgetError a capture is over its memory budget
    ├── InterventionError      an intervention that does not fit the model
    ├── GenerationError        a prompt or a sampling setting that cannot be used
    ├── NotFiniteError         logits that are NaN or infinite
    ├── ParallelError          a model cannot be split over the available processes
    ├── TrainingError          a recipe or a training folder that cannot be used
    ├── DataError              benchmark data that is missing or malformed
    ├── SandboxError           no sandbox is available to run generated code
    └── MissingExtraError      an optional package is not installed

`WorkbenchWarning` is for what a user should know of a run that goes on, for instance that a file was not used.

Each message says what is wrong, what was found and what to do, in one or two lines. What it quotes of a file is cut
and escaped, so that a file can neither flood nor command a terminal.
"""

from __future__ import annotations

MESSAGE_LIMIT = 590  # characters
_TAIL = 190  # of them, those kept from the end, where a message says what to do


def readable(text: str) -> str:
    """A message with control characters and other invisible ones escaped, and its middle cut if it is too long."""
    if len(text) > 2 * MESSAGE_LIMIT:
        text = text[:MESSAGE_LIMIT] + text[-MESSAGE_LIMIT:]
    text = "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
    if len(text) <= MESSAGE_LIMIT:
        return text
    return f"{text[: MESSAGE_LIMIT - _TAIL - 5]} ... {text[-_TAIL:]}"


class WorkbenchError(Exception):
    """Base class of all exceptions for user errors."""

    def __str__(self) -> str:
        return readable(super().__str__())


class ConfigError(WorkbenchError):
    """A model configuration is wrong or contradicts itself."""


class CheckpointError(WorkbenchError):
    """A checkpoint's files do not match the configuration."""


class TokenizerError(WorkbenchError):
    """A tokenizer file or a token id cannot be used."""


class ChatError(WorkbenchError):
    """Messages that the chat format cannot represent."""


class HookError(WorkbenchError):
    """A hook name that cannot be used here."""


class UnknownHookError(HookError):
    """A name or pattern that matches no row of the hook table."""


class MissingHookError(HookError):
    """A capture does not hold the hook that was read."""


class CaptureError(WorkbenchError):
    """A capture that cannot be made, saved or read."""


class CaptureBudgetError(CaptureError):
    """A capture is over its memory budget."""


class InterventionError(WorkbenchError):
    """An intervention that does not fit the model."""


class GenerationError(WorkbenchError):
    """A prompt or a sampling setting that cannot be used."""


class NotFiniteError(WorkbenchError):
    """Logits that are NaN or infinite. `hook` and `layer` are where that begins; None if not known, or no layer."""

    def __init__(self, message: str, *, hook: str | None = None, layer: int | None = None) -> None:
        super().__init__(message)
        self.hook = hook
        self.layer = layer


class ParallelError(WorkbenchError):
    """A model cannot be split over the available processes."""


class TrainingError(WorkbenchError):
    """A recipe or a training folder that cannot be used."""


class DataError(WorkbenchError):
    """Benchmark data that is missing or malformed."""


class SandboxError(WorkbenchError):
    """No sandbox is available to run generated code."""


class MissingExtraError(WorkbenchError):
    """An optional package is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed. Install it with: pip install -e '.[{extra}]' -c constraints.txt")
        self.package = package
        self.extra = extra


class WorkbenchWarning(UserWarning):
    """Something that a user should know of a run that goes on; the command line prints it in one line."""

    def __str__(self) -> str:
        return readable(super().__str__())
