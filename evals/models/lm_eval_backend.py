"""Any of lm-eval's own models (`hf`, `vllm`, `local-completions`, ...) behind the response cache.

Returns cached responses and passes everything else to the model. Does not know how the model computes.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.models.response_cache import Compute, ResponseCache, overwritten_error
from evals.models.units import TEXTS_PER_UNIT, generations_per_unit, scores_per_unit
from evals.runtime.progress import bar
from evals.store.store import cache_key
from workbench import provenance
from workbench.checkpoint.sources.names import REAL_MODEL, resolve
from workbench.errors import DataError

if TYPE_CHECKING:
    from workbench.hooks.intervention import Intervention

# The versions of these packages also affect the answers.
PACKAGES = ("transformers", "vllm", "accelerate")


def pretrained(model: str | Path) -> str:
    """A model as other libraries know it: "smollm2" is our own name for a folder."""
    return str(resolve(model) if str(model) == REAL_MODEL else model)


class Backend:
    """One of lm-eval's models behind the response cache.

    Answers of a local checkpoint are reused by every later run with the same backend, arguments, versions and files. A
    model that is only a name (a server, a hub) may change at any time: its answers are reused only when the same run is
    resumed.
    """

    def __init__(
        self,
        lm: Any,
        name: str,
        arguments: Mapping[str, Any],
        *,
        seed: int = 0,
        files: tuple[provenance.FileState, ...] = (),
    ) -> None:
        """`files` are those of the model's folder before it was loaded."""
        self.lm, self.name, self.arguments, self._seed = lm, name, dict(arguments), seed
        self._files = files
        self.response_cache = ResponseCache()
        self.packages = PACKAGES
        self.not_finite: set[tuple[str, int]] = set()  # (task, doc_id) of questions with NaN as a log-likelihood
        # lm-eval sees one process: with several it would sample different few-shot examples in each.
        self.rank, self.world_size = 0, 1

    @classmethod
    def of(
        cls,
        name: str,
        model: Any,
        arguments: Mapping[str, Any],
        *,
        batch_size: int | None = None,
        seed: int = 0,
        device: str = "auto",
        dtype: str = "auto",
    ) -> Backend:
        """lm-eval's backend of this name; the model's path becomes `pretrained` unless `arguments` set the model.

        Raises: DataError if lm-eval has no such backend, or cannot create it.
        """
        from evals.models.workbench_lm import create_model

        arguments = dict(arguments)
        if model is not None and not isinstance(model, str | Path):
            raise DataError(f"the backend {name!r} loads its own model; give a path or --model_args.")
        if model and not {"pretrained", "model"} & set(arguments):
            arguments["pretrained"] = pretrained(model)
        if dtype != "auto":
            arguments.setdefault("dtype", dtype)
        # Without a device most of lm-eval's models take CUDA, also where there is none.
        where = device if device != "auto" else None if _has_cuda() else "cpu"
        folder = _folder(arguments)
        files = provenance.file_states(_files(folder)) if folder else ()
        lm = create_model(name, arguments, batch_size=batch_size, device=where)
        return cls(lm, name, arguments, seed=seed, files=files)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.lm, name)

    # --- identity of the model

    @property
    def checkpoint(self) -> Path | None:
        """The local folder of the model, if it has one."""
        return _folder(self.arguments)

    @cached_property
    def checkpoint_sha256(self) -> str | None:
        """SHA-256 of the model's folder, hex; None for a model that is only a name."""
        folder = self.checkpoint
        return None if folder is None else folder_sha256(folder)

    def identity(self, run: str) -> tuple[Any, ...] | None:
        """The identity that responses are cached under; None if the model's files changed while it was loaded."""
        folder = self.checkpoint
        versions = provenance.versions("lm-eval", *PACKAGES)
        arguments = {key: str(value) for key, value in self.arguments.items()}
        if folder is None:
            return ("lm-eval", self.name, arguments, versions, run)
        parts = {key: folder_sha256(Path(value)) for key, value in arguments.items() if Path(value).is_dir()}
        if self._files and provenance.file_states(_files(folder)) != self._files:
            return None
        same = {key: value for key, value in arguments.items() if key not in parts}
        return ("lm-eval", self.name, same, parts, versions, str(getattr(self.lm, "device", None)))

    def check_unchanged(self) -> None:
        """Raises: CheckpointError if a file of the model's folder was written to since it was loaded."""
        folder = self.checkpoint
        if folder is None:
            return
        if path := provenance.overwritten(self._files, lambda: folder_sha256(folder) == self.checkpoint_sha256):
            raise overwritten_error(path)

    def apply_interventions(self, interventions: Sequence[Intervention]) -> AbstractContextManager[Any]:
        assert not interventions, "Settings rejects interventions for other backends"
        return nullcontext()

    def provenance(self) -> dict[str, Any]:
        model_name = self.arguments.get("pretrained") or self.arguments.get("model") or self.name
        model_entry = {
            "path": Path(str(model_name)).name,
            "checkpoint_sha256": self.checkpoint_sha256,
        }
        return provenance.describe(None) | model_entry | {"interventions": []}

    @property
    def dtype_name(self) -> str:
        model = getattr(self.lm, "model", None)
        return str(getattr(model, "dtype", self.arguments.get("dtype", "unknown"))).removeprefix("torch.")

    @property
    def parameters(self) -> int | None:
        count = getattr(getattr(self.lm, "model", None), "num_parameters", None)
        return int(count()) if callable(count) else None

    @property
    def device(self) -> str:
        return str(getattr(self.lm, "_device", None) or "unknown")

    @property
    def _device_type(self) -> str:
        return self.device.partition(":")[0]

    @property
    def max_length(self) -> int | None:
        return getattr(self.lm, "max_length", None)

    @property
    def eot_token_id(self) -> int | None:
        return getattr(self.lm, "eot_token_id", None)

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The text of the chat template; empty without one, and for a server, which has its own.

        Raises: DataError if lm-eval finds no template where it must apply one itself.
        """
        if not chat_template:
            return ""
        try:
            text = self.lm.chat_template(chat_template)
        except ValueError as error:  # several templates, and no default
            raise DataError(f"--apply_chat_template: {error}") from error
        if text is None:
            raise DataError(f"--apply_chat_template: lm-eval's model {self.name!r} has no chat template here.")
        return str(text)

    def replay(self, task: str, row: Mapping[str, Any]) -> dict[str, Any]:
        """Nothing: the token ids that such a model saw are not known."""
        return {}

    # --- lm-eval's model interface

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        def ask(places: Sequence[int]) -> list[Any]:
            with self._errors():
                scores = self.lm.loglikelihood([requests[i] for i in places], disable_tqdm=True)
            return [[_number_or_none(value), bool(greedy)] for value, greedy in scores]

        questions = [("loglikelihood", *request.args) for request in requests]
        scores = self._answers(questions, ask, scores_per_unit(self._device_type, math.inf), "scoring")
        values = self._with_nan(requests, [value for value, _ in scores])
        return [(value, greedy) for value, (_, greedy) in zip(values, scores, strict=True)]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        def ask(places: Sequence[int]) -> list[Any]:
            with self._errors():
                totals = self.lm.loglikelihood_rolling([requests[i] for i in places], disable_tqdm=True)
            return [_number_or_none(total) for total in totals]

        totals = self._answers([("rolling", *r.args) for r in requests], ask, TEXTS_PER_UNIT, "scoring")
        return self._with_nan(requests, totals)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        import torch

        def ask(places: Sequence[int]) -> list[Any]:
            # The seed depends on the unit only, not on what ran before it: a resumed run samples the same.
            torch.manual_seed(int.from_bytes(cache_key(self._seed, *questions[places[0]])[:6], "big"))
            with self._errors():
                texts = self.lm.generate_until([requests[i] for i in places], disable_tqdm=True)
            return [str(text) for text in texts]

        seen: Counter[str] = Counter()
        questions: list[tuple[Any, ...]] = []
        for request in requests:
            # With sampling, a repeated question is a new question.
            text = json.dumps(request.args, sort_keys=True, default=str)
            questions.append(("generate", text, self._seed, seen[text]))
            seen[text] += 1
        unit = generations_per_unit(self._device_type, 0)
        return self._answers(questions, ask, unit, "generating")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Errors of lm-eval's model as one line. Raises: DataError"""
        from evals.models.workbench_lm import first_line

        try:
            yield
        except Exception as error:  # of another library: any kind
            raise DataError(
                f"lm-eval's model {self.name!r} failed ({type(error).__name__}): {first_line(error)}"
            ) from error

    def _with_nan(self, requests: Sequence[Any], stored: Sequence[float | None]) -> list[float]:
        """Stored values with NaN for None; notes the questions that have it."""
        values = [math.nan if value is None else value for value in stored]
        self.not_finite |= {
            (str(r.task_name), int(r.doc_id or 0)) for r, v in zip(requests, values, strict=True) if math.isnan(v)
        }
        return values

    def _answers(self, questions: Sequence[Sequence[Any]], ask: Compute, unit: int, what: str) -> list[Any]:
        with bar(len(questions), what, not self.response_cache.team.is_main) as progress:
            return self.response_cache.get_or_compute(questions, ask, unit=unit, on_progress=progress.update)


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _number_or_none(value: Any) -> float | None:
    """None for NaN: stored answers are JSON, which has no NaN."""
    return None if math.isnan(number := float(value)) else number


def _folder(arguments: Mapping[str, Any]) -> Path | None:
    paths = [arguments[key] for key in ("pretrained", "model") if key in arguments]
    return Path(paths[0]) if paths and Path(paths[0]).is_dir() else None


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def folder_sha256(folder: Path) -> str:
    """SHA-256 over the names and contents of a folder's files."""
    sha = hashlib.sha256()
    for path in _files(folder):
        sha.update(str(path.relative_to(folder)).encode() + b"\0")
        with path.open("rb") as file:
            sha.update(hashlib.file_digest(file, "sha256").digest())
    return sha.hexdigest()
