"""Fixtures: a small checkpoint, two runs, and the app in AppTest."""

from collections.abc import Callable
from pathlib import Path

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from dashboard.session import shared_cache
from dashboard.session.settings import ROOT, Settings
from tests.dashboard.world import write_checkpoint, write_results


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_results(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Path], None]:
    """Set the environment that a server's process is started with."""

    def configure(model: str, results: Path) -> None:
        st.cache_resource.clear()
        shared_cache.clear_all()
        for name, value in Settings(model, results).to_env().items():
            monkeypatch.setenv(name, value)

    return configure


@pytest.fixture
def app(serve: Callable[[str, Path], None], checkpoint: Path, results: Path) -> Callable[..., AppTest]:
    """Opens a page in a new session, with URL parameters."""
    serve(str(checkpoint), results)

    def open_page(page: str = "overview", **params: object) -> AppTest:
        session = AppTest.from_file(str(ROOT / "app.py"), default_timeout=60)
        address = {name: str(value) for name, value in params.items()}
        session.query_params.update(address)
        if page != "overview":
            session.run()  # only then does Streamlit know the pages
            session.switch_page(f"dashboard/pages/{page}.py")
            # The overview has read the prompt already, and hands it on; the rest is this page's own.
            session.query_params.clear()
            session.query_params.update({name: value for name, value in address.items() if name != "prompt"})
        return session.run()

    return open_page
