"""Settings of a LoRA adapter, `adapter_config.json` of the library peft: which modules it changes, and by how much.

Modules have Hugging Face's names without `.weight`. What cannot be merged exactly is refused by name.
Source: peft's `LoraConfig` and its matching of module names.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import regex

from workbench.checkpoint.files import ADAPTER
from workbench.errors import CheckpointError
from workbench.small_files import read_json

EMBEDDING_MODULE, OUTPUT_MODULE = "model.embed_tokens", "lm_head"

_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")

# Settings that make the adapter something else than B A; false, empty or null means that they are not in use.
_REFUSED = {
    "use_dora": "DoRA",
    "lora_bias": "a bias in the adapter",
    "trainable_token_indices": "trainable token indices",
    "layer_replication": "replicated layers",
    "target_parameters": "target_parameters",
    "use_qalora": "QALoRA",
    "use_bdlora": "block-diagonal LoRA",
    "alora_invocation_tokens": "activated LoRA",
    "arrow_config": "Arrow",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
}
# Initialisations that also change the base's weights, so that the adapter fits only the changed base.
_CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


def adapter_files(folder: str | Path) -> tuple[Path, Path]:
    """Configuration and weights of an adapter folder.

    Raises: CheckpointError if one of them is missing.
    """
    root = Path(folder).expanduser()
    config = root / ADAPTER
    if not config.is_file():
        reason = "no such folder" if not root.is_dir() else f"holds no {ADAPTER}"
        raise CheckpointError(f"--adapter {root}: {reason}; pass a folder of a LoRA adapter, as peft writes it.")
    weights = next((root / name for name in _WEIGHTS if (root / name).is_file()), None)
    if weights is None:
        raise CheckpointError(f"--adapter {root}: holds {ADAPTER}, but neither {' nor '.join(_WEIGHTS)}.")
    return config, weights


class AdapterSettings:
    """The settings in one file.

    Raises: CheckpointError for an adapter that is not a sum of W and B A.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._values = read_json(file)
        self._refuse_other_kinds()
        if self._values.get("target_modules") is None:
            raise self.error("target_modules is missing")

    @property
    def ties_tables(self) -> bool:
        """Whether the output changes with the embedding if the base ties them."""
        return bool(self._values.get("ensure_weight_tying"))

    def rank(self, module: str) -> int:
        return int(self._number("r", "rank_pattern", module))

    def scale(self, module: str) -> float:
        """The factor of B A: alpha / r, or alpha / sqrt(r) for rank-stabilised LoRA."""
        rank = self.rank(module)
        return self._number("lora_alpha", "alpha_pattern", module) / (
            math.sqrt(rank) if self._values.get("use_rslora") else rank
        )

    def _refuse_other_kinds(self) -> None:
        kind = self._values.get("peft_type")
        if kind != "LORA":
            raise self.error(f"an adapter of type {str(kind)[:40]!r}; only LoRA can be merged")
        for name, meaning in _REFUSED.items():
            if self._values.get(name):
                raise self.error(f"{meaning} ({name}) cannot be merged here; merge it with peft's merge_and_unload")
        start = self._values.get("init_lora_weights")
        if isinstance(start, str) and start.lower().startswith(_CHANGED_BASE):
            raise self.error(
                f"init_lora_weights is {start[:40]!r}, which changes the base too; "
                "save the adapter with path_initial_model_for_weight_conversion"
            )

    def _number(self, name: str, pattern_name: str, module: str) -> float:
        """A setting of one module: that of the first pattern that ends the module's name, else the general one."""
        patterns = self._values.get(pattern_name) or {}
        if not isinstance(patterns, dict):
            raise self.error(f"{pattern_name} must be an object")
        value = self._values.get(name, 8)  # peft's default of both
        for pattern, special in patterns.items():
            if self._matches(rf"(.*\.)?({pattern})", module):
                value = special
                break
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e9
        if not is_number or (name == "r" and value < 1):
            raise self.error(f"{name} of {module} must be a number, found {str(value)[:40]}")
        return float(value)

    def is_target(self, module: str) -> bool:
        """Whether the adapter has factors for a module."""
        excluded, targets = self._values.get("exclude_modules"), self._values["target_modules"]
        saved = self._names("modules_to_save")
        if excluded and self._is_named(excluded, module):
            return False
        if any(self._matches(rf"(^|.*\.){name}($|\..*)", module) for name in saved):
            return False
        if isinstance(targets, str):
            if targets.lower() == "all-linear":
                return module not in (EMBEDDING_MODULE, OUTPUT_MODULE)
            return self._matches(targets, module)
        if not self._is_named(targets, module):
            return False
        layers = self._values.get("layers_to_transform")
        if layers is None or layers == [] or module in targets:
            return True
        patterns = self._names("layers_pattern") or [r"[^.]*"]
        numbers = [layers] if isinstance(layers, int) else layers
        for pattern in patterns:
            for number in numbers if isinstance(numbers, list) else ():
                if self._matches(rf"(.*?\.)?({pattern})\.{number}\..*", module):
                    return True
        return False

    def _is_named(self, names: Any, module: str) -> bool:
        if isinstance(names, str):
            return self._matches(names, module)
        return any(module == name or module.endswith(f".{name}") for name in self._listed(names))

    def _names(self, setting: str) -> list[str]:
        names = self._values.get(setting) or []
        return [names] if isinstance(names, str) else self._listed(names)

    def _listed(self, names: Any) -> list[str]:
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise self.error("module names must be a text or a list of texts")
        return names

    def _matches(self, pattern: str, module: str) -> bool:
        try:
            return regex.fullmatch(pattern, module, timeout=1) is not None
        except (regex.error, TimeoutError, RecursionError) as error:
            raise self.error(f"the pattern {pattern[:80]!r} cannot be used ({error})") from error

    def error(self, reason: str) -> CheckpointError:
        return CheckpointError(f"{self.file}: {reason}.")
