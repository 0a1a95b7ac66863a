"""Any of lm-eval's own models (`hf`, `vllm`, `local-completions`, ...) with what ours has: answers that are kept.

Stands before the model and gives lm-eval what was answered before; everything else is the model's own. Knows nothing
of how the model computes.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.models.response_cache import Ask, Recall
from evals.runtime.progress import bar
from evals.store.store import cache_key
from workbench import provenance
from workbench.errors import DataError

if TYPE_CHECKING:
    from workbench.hooks.intervention import Intervention

# As in `evals.models.workbench_lm`: few enough to lose little by a kill.
_SCORED_TOGETHER, _TEXTS_TOGETHER, _CONTINUED_TOGETHER = 512, 16, 64
# Whose versions decide an answer too.
PACKAGES = ("transformers", "vllm", "accelerate")


class Backend:
    """One of lm-eval's models behind a store.

    Answers of a local checkpoint are served to every later run of the same backend, arguments, versions and files. Of
    a model behind a name alone (a server, a hub) nobody can say that it is the same tomorrow: its answers are served to
    the run that asked for them, when it is resumed, and to no other.
    """

    def __init__(self, lm: Any, name: str, arguments: Mapping[str, Any], *, seed: int = 0) -> None:
        self.lm, self.name, self.arguments, self._seed = lm, name, dict(arguments), seed
        self.recall = Recall()
        self.packages = PACKAGES
        # To lm-eval this is one process: it would draw other examples for the questions of each.
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
        """lm-eval's backend of this name, with the model's path as its `pretrained` where `arguments` have no other.

        Raises: DataError if lm-eval has no such backend, or cannot make it.
        """
        from evals.models.workbench_lm import built

        arguments = dict(arguments)
        if model is not None and not isinstance(model, str | Path):
            raise DataError(f"the backend {name!r} loads its own model: give a path or --model_args.")
        if model and not {"pretrained", "model"} & set(arguments):
            arguments["pretrained"] = str(model)
        if dtype != "auto":
            arguments.setdefault("dtype", dtype)
        where = None if device == "auto" else device
        lm = built(name, arguments, batch_size=batch_size, device=where)
        return cls(lm, name, arguments, seed=seed)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.lm, name)

    # --- whose answers these are

    @property
    def checkpoint(self) -> Path | None:
        """The local folder of the model, if it has one."""
        given = [self.arguments[key] for key in ("pretrained", "model") if key in self.arguments]
        return Path(given[0]) if given and Path(given[0]).is_dir() else None

    def identity(self, run: str) -> tuple[Any, ...]:
        folder = self.checkpoint
        versions = provenance.versions("lm-eval", *PACKAGES)
        arguments = {key: str(value) for key, value in self.arguments.items()}
        if folder is None:
            return ("lm-eval", self.name, arguments, versions, run)
        parts = {key: digest(Path(value)) for key, value in arguments.items() if Path(value).is_dir()}
        same = {key: value for key, value in arguments.items() if key not in parts}
        return ("lm-eval", self.name, same, parts, versions, str(getattr(self.lm, "device", None)))

    def changed(self, interventions: Sequence[Intervention]) -> AbstractContextManager[Any]:
        assert not interventions, "settings refuse them"
        return nullcontext()

    def origin(self) -> dict[str, Any]:
        folder = self.checkpoint
        named = self.arguments.get("pretrained") or self.arguments.get("model") or self.name
        own = {"path": Path(str(named)).name, "checkpoint_sha256": None if folder is None else digest(folder)}
        return provenance.describe(None) | own | {"interventions": []}

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
    def max_length(self) -> int | None:
        return getattr(self.lm, "max_length", None)

    @property
    def eot_token_id(self) -> int | None:
        return getattr(self.lm, "eot_token_id", None)

    def chat_template(self, chat_template: bool | str = False) -> str:
        return str(self.lm.chat_template(chat_template) or "") if chat_template else ""

    def replay(self, task: str, row: Mapping[str, Any]) -> dict[str, Any]:
        """Nothing: which ids such a model saw is its own affair."""
        return {}

    # --- what lm-eval asks

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        def ask(places: Sequence[int]) -> list[Any]:
            found = self.lm.loglikelihood([requests[i] for i in places], disable_tqdm=True)
            return [[float(value), bool(greedy)] for value, greedy in found]

        questions = [("loglikelihood", *request.args) for request in requests]
        found = self._answers(questions, ask, _SCORED_TOGETHER, "scoring")
        return [(value, greedy) for value, greedy in found]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        def ask(places: Sequence[int]) -> list[Any]:
            return [float(v) for v in self.lm.loglikelihood_rolling([requests[i] for i in places], disable_tqdm=True)]

        return self._answers([("rolling", *r.args) for r in requests], ask, _TEXTS_TOGETHER, "scoring")

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        import torch

        def ask(places: Sequence[int]) -> list[Any]:
            # What is drawn goes by the unit, whatever was asked before it: a resumed run draws the same.
            torch.manual_seed(int.from_bytes(cache_key(self._seed, *questions[places[0]])[:6], "big"))
            return [str(text) for text in self.lm.generate_until([requests[i] for i in places], disable_tqdm=True)]

        seen: Counter[str] = Counter()
        questions: list[tuple[Any, ...]] = []
        for request in requests:
            # The same question asked again, where answers are drawn, is another question.
            text = json.dumps(request.args, sort_keys=True, default=str)
            questions.append(("generate", text, self._seed, seen[text]))
            seen[text] += 1
        return self._answers(questions, ask, _CONTINUED_TOGETHER, "generating")

    def _answers(self, questions: Sequence[Sequence[Any]], ask: Ask, unit: int, what: str) -> list[Any]:
        with bar(len(questions), what, not self.recall.team.is_main) as progress:
            return self.recall.answers(questions, ask, unit=unit, done=progress.update)


def digest(folder: Path) -> str:
    """SHA-256 over the names and contents of a folder's files."""
    sha = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        sha.update(str(path.relative_to(folder)).encode() + b"\0")
        with path.open("rb") as file:
            sha.update(hashlib.file_digest(file, "sha256").digest())
    return sha.hexdigest()
