"""Several models on one server: listing, memory estimates, parallel loading, switching, unloading."""

import shutil
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import streamlit as st
import torch
from streamlit.testing.v1 import AppTest

from dashboard.panels import compare_sides
from dashboard.session import computed, models, shared_cache
from dashboard.session.settings import ROOT, Settings
from tests.dashboard.page_text import numbers
from tests.dashboard.world import write_checkpoint
from workbench.errors import CheckpointError, DataError


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("larger") / "larger", layers=6)


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch, checkpoint: Path, larger: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A server that was started with two models."""
    st.cache_resource.clear()
    settings = Settings(str(larger), tmp_path / "results", (str(checkpoint),))
    for name, value in settings.to_env().items():
        monkeypatch.setenv(name, value)
    return larger, checkpoint


def session(page: str, **address: object) -> AppTest:
    app = AppTest.from_file(str(ROOT / "app.py"), default_timeout=60)
    app.query_params.update({name: str(value) for name, value in address.items()})
    app.run()
    app.switch_page(f"dashboard/pages/{page}.py")
    app.query_params.update({name: str(value) for name, value in address.items()})
    return app.run()


def test_settings_carry_all_models_and_the_captures_folder(tmp_path: Path) -> None:
    settings = Settings("demo", tmp_path / "runs", (str(tmp_path / "a"), "demo"), tmp_path / "kept")
    assert Settings.from_env(settings.to_env()) == settings
    assert Settings("demo", tmp_path).captures_folder == tmp_path / "captures"


def test_ids_are_names_that_tell_folders_apart(two: tuple[Path, Path]) -> None:
    first, second = models.served()
    assert first.id.startswith("larger-") and second.id.startswith("tiny-") and first.path == str(two[0])
    assert models.served() == (first, second)  # the same each time: links carry them


def test_the_cost_is_that_of_the_weights_and_of_a_full_cache(checkpoint: Path) -> None:
    estimate = models.memory_estimate(str(checkpoint))
    assert estimate.weights == sum(t.numel() * 4 for t in torch.load(checkpoint / "consolidated.00.pth").values())
    assert estimate.cache == 2 * 4 * 2 * 8 * 4 * 2048  # k and v, layers, heads, head size, bytes, positions
    assert estimate.free > 0 and "are free" in str(estimate)


@pytest.mark.parametrize("typed", ["/nowhere/at/all", "\0", "~nobody-of-this-name/x"])
def test_what_is_no_checkpoint_is_not_added(two: tuple[Path, Path], typed: str) -> None:
    with pytest.raises(CheckpointError, match="no such file or directory"):
        models.add(typed)
    assert len(models.served()) == 2


def test_an_empty_folder_and_too_large_a_model_are_not_added(
    two: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CheckpointError):
        models.add(str(tmp_path))
    monkeypatch.setattr(models, "free_memory", lambda device: 1000)
    with pytest.raises(DataError, match=r"1000 B are free\. Unload a model"):
        models.add(str(two[1]))


def test_a_slow_load_holds_up_nobody_who_looks_at_another_model(
    two: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, quick = map(str, two)
    inside, go_on = threading.Event(), threading.Event()
    load = models.wb.load_model

    def loading(path: str, **options: Any) -> Any:
        if path == slow:
            inside.set()
            assert go_on.wait(30)
        return load(path, **options)

    monkeypatch.setattr(models.wb, "load_model", loading)
    pool = models.pool()
    waiting = threading.Thread(target=pool.get, args=(slow,))
    waiting.start()
    assert inside.wait(30)
    assert pool.get(quick).config.n_layers == 4  # while the other is still being loaded
    assert list(pool.loaded_bytes()) == [quick]
    go_on.set()
    waiting.join(30)
    assert set(pool.loaded_bytes()) == {slow, quick}
    models.unload(slow)
    assert list(pool.loaded_bytes()) == [quick]


def test_a_load_that_ends_while_memory_is_counted_disturbs_nobody() -> None:
    pool = models.ModelPool()

    class Loading(torch.nn.Module):
        def parameters(self, recurse: bool = True) -> Any:
            pool._loaded.setdefault("another", torch.nn.Linear(1, 1))  # type: ignore[arg-type]
            return super().parameters(recurse)

    pool._loaded["one"] = Loading()  # type: ignore[assignment]
    assert pool.loaded_bytes() == {"one": 0}
    assert set(pool.loaded_bytes()) == {"one", "another"}


def test_unloading_leaves_nothing_of_the_model(two: tuple[Path, Path]) -> None:
    _, served = models.served()
    model = models.pool().get(served.path)
    converted = compare_sides._load_in_dtype("key", model, "bfloat16")
    references = [weakref.ref(model), weakref.ref(converted)]
    del model, converted
    assert all(ref() is not None for ref in references)
    computed.unload(served)
    assert [ref() for ref in references] == [None, None]


def test_what_is_computed_once_for_all_is_computed_anew_after_an_unload(two: tuple[Path, Path]) -> None:
    calls = []

    @shared_cache.process_cache("Computing …", max_entries=2)
    def compute(key: str) -> int:
        calls.append(key)
        return len(calls)

    assert [compute("a"), compute("a")] == [1, 1]
    computed.unload(models.served()[1])
    assert compute("a") == 2


def test_progress_reaches_its_end(checkpoint: Path) -> None:
    fractions: list[float] = []
    models.ModelPool().get(str(checkpoint), fractions.append)
    assert fractions == sorted(fractions) and fractions[-1] == 1 and len(fractions) > 10


def test_the_address_chooses_the_model_and_switching_keeps_what_fits(two: tuple[Path, Path]) -> None:
    first, second = models.served()
    app = session("neurons", layer=5)
    assert app.selectbox(key="model").value == first.id and app.number_input(key="layer").value == 5
    app.selectbox(key="model").set_value(second.id).run()
    assert not app.exception and not app.error
    assert app.number_input(key="layer").value == 3  # that model has four layers
    assert str(two[1]) in "".join(code.value for code in app.code)
    other = session("neurons", model=second.id)
    assert other.selectbox(key="model").value == second.id and not other.error


def test_a_model_that_is_not_served_is_said_so(two: tuple[Path, Path]) -> None:
    app = AppTest.from_file(str(ROOT / "app.py"), default_timeout=60)
    app.query_params["model"] = "elsewhere-123456"
    app.run()
    assert not app.exception
    shown = models.served()[0].id
    message = f"model=elsewhere-123456 is not available here; showing {shown}. Add its folder on Overview"
    assert any(code.value.startswith(message) for code in app.code)
    assert app.selectbox(key="model").value == shown


def test_overview_adds_shows_and_unloads(app: Callable[..., AppTest], larger: Path) -> None:
    page = app()
    page.text_input(key="add_model").set_value(str(larger)).run()
    assert any("in 6 layers. It needs" in text.value for text in page.text)
    page.button(key="add_model_button").click().run()
    first, added = models.served()
    assert page.selectbox(key="model").value == added.id and not page.exception
    assert numbers(page)["Layers"] == "6"
    page.button(key=f"unload_{first.id}").click().run()
    assert list(models.pool().loaded_bytes()) == [str(larger)]
    page.button(key=f"look_{first.id}").click().run()
    assert numbers(page)["Layers"] == "4" and not page.exception


def test_a_view_that_takes_too_much_memory_says_so(
    app: Callable[..., AppTest], monkeypatch: pytest.MonkeyPatch
) -> None:
    from workbench.model import Transformer

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(Transformer, "run_with_capture", full)
    page = app("norms", prompt="the cat sat on")
    assert not page.exception and "not enough memory" in page.error[0].value


def test_a_name_is_added_as_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of the Hugging Face cache is called by its name, though its folder is called by a commit."""
    snapshot = tmp_path / "models--some-org--Small-Llama" / "snapshots" / ("0" * 40)
    shutil.copytree(ROOT / "workbench" / "assets" / "demo", snapshot)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    path, _ = models.inspect_checkpoint("some-org/Small-Llama")
    assert path == str(snapshot)
    assert models._id(path).startswith("Small-Llama-")
    with pytest.raises(CheckpointError, match="workbench fetch some-org/Other"):
        models.inspect_checkpoint("some-org/Other")
