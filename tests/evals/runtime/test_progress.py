"""What an evaluation says of its progress to other programs."""

from pathlib import Path

import pytest

from evals.models.response_cache import CachedResponses, ResponseCache
from evals.runtime import progress
from evals.runtime.distributed import ALONE
from evals.runtime.progress import Progress, bar, read
from evals.store.store import Store, cache_key


def test_time_left_counts_nothing_that_was_kept() -> None:
    # By hand: 30 of 50 new ones took 60 s, so the 20 that are left take 40.
    state = Progress("scoring", done=130, total=150, first=100, since=1000.0, at=1060.0)
    assert state.seconds_left == pytest.approx(40)
    assert Progress("scoring", 100, 150, 100, 1000.0, 1000.0).seconds_left is None


def test_every_unit_is_told_and_what_was_kept_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "progress.json"
    monkeypatch.setenv(progress.FILE, str(path))
    questions = [("q", i) for i in range(10)]
    seen = []
    with Store.open(tmp_path / "store") as store:
        run = store.register({})
        writer = store.writer(run)
        writer.add({cache_key("model", *question): "kept" for question in questions[:4]})

        def ask(places: range) -> list[str]:
            seen.append(read(path))
            return ["new" for _ in places]

        with bar(10, "scoring", False) as drawn:
            ResponseCache(CachedResponses(store, writer, ("model",)), ALONE).get_or_compute(
                questions, ask, unit=2, on_progress=drawn.update
            )
        writer.close()
    assert [(state.what, state.done, state.total, state.first) for state in seen if state] == [
        ("scoring", 4, 10, 4), ("scoring", 6, 10, 4), ("scoring", 8, 10, 4),
    ]  # fmt: skip
    last = read(path)
    assert last is not None and last.done == 10 and last.seconds_left == 0
    assert [file.name for file in tmp_path.iterdir() if file.suffix == ".tmp"] == []


def test_a_file_that_cannot_be_written_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(progress.FILE, str(tmp_path / "gone" / "progress.json"))
    with bar(2, "generating", False) as drawn:
        drawn.update(2)
    assert read(tmp_path / "gone" / "progress.json") is None


def test_what_is_no_progress_is_none(tmp_path: Path) -> None:
    for text in ("", "{", '{"what": "scoring"}', "[1]"):
        (tmp_path / "progress.json").write_text(text)
        assert read(tmp_path / "progress.json") is None
