"""The store: whole after any death, one answer for one question, and errors that say what to do."""

import errno
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path
from typing import Any

import pytest

from evals.runtime.process_start import process_start_time
from evals.store import record_file, schema, store
from evals.store.store import Store, cache_key
from workbench.errors import DataError


@pytest.fixture
def opened(tmp_path: Path):
    with Store.open(tmp_path) as made:
        yield made


def kept(opened: Store, run: str, values: dict[bytes, Any]) -> None:
    writer = opened.writer(run)
    writer.add(values)
    writer.close()


def test_what_was_kept_is_read(opened: Store, tmp_path: Path) -> None:
    run = opened.register({"tasks": ["t"]})
    keys = [cache_key("a", i) for i in range(1300)]  # more than one query's worth
    writer = opened.writer(run)
    for first in range(0, 1300, 100):
        writer.add({key: [i, True] for i, key in enumerate(keys[first : first + 100], first)})
    writer.close()
    with Store.open(tmp_path, create=False) as again:
        responses, problems = again.read([*keys, cache_key("never")])
        assert problems == [] and responses == {key: [i, True] for i, key in enumerate(keys)}
        assert again.contains([keys[5], cache_key("never")]) == {keys[5]}


def test_keys_tell_every_part_apart() -> None:
    same = cache_key("m", [1, 2], {"b": 1, "a": [0.5]})
    assert same == cache_key("m", [1, 2], {"a": [0.5], "b": 1})
    others = [
        ("m", [1], [2], {}),
        ("m", [12], {}),
        ("m", [1, 2], {"b": 1, "a": [0.25]}),
        ("M", [1, 2], {}),
        ("m1", [2]),
    ]
    assert len({same, *(cache_key(*parts) for parts in others)}) == 6


def test_the_first_answer_stays(opened: Store) -> None:
    run = opened.register({})
    kept(opened, run, {cache_key(1): "first"})
    kept(opened, run, {cache_key(1): "second", cache_key(2): "third"})
    assert opened.read([cache_key(1), cache_key(2)])[0] == {cache_key(1): "first", cache_key(2): "third"}


def test_a_damaged_frame_is_asked_again_and_the_others_stay(opened: Store) -> None:
    run = opened.register({})
    writer = opened.writer(run)
    writer.add({cache_key(1): "one", cache_key(2): "two"})
    writer.add({cache_key(3): "three"})
    writer.close()
    (file,) = (opened.root / store.RESPONSES).glob("*.zz")
    data = bytearray(file.read_bytes())
    data[record_file.HEAD.size + 3] ^= 0xFF
    file.write_bytes(data)
    responses, problems = opened.read([cache_key(i) for i in (1, 2, 3)])
    assert responses == {cache_key(3): "three"}
    assert len(problems) == 1 and "byte 0 is damaged" in problems[0] and "computed again" in problems[0]
    assert opened.contains([cache_key(1), cache_key(2)]) == set()
    kept(opened, run, {cache_key(1): "one"})
    assert opened.read([cache_key(1)]) == ({cache_key(1): "one"}, [])


def test_a_file_that_is_gone_is_asked_again(opened: Store) -> None:
    kept(opened, opened.register({}), {cache_key(1): 1})
    next((opened.root / store.RESPONSES).glob("*.zz")).unlink()
    responses, problems = opened.read([cache_key(1)])
    assert responses == {} and "No such file" in problems[0]


def test_runs_and_their_ends(opened: Store) -> None:
    first, second = opened.register({"n": 1}), opened.register({"n": 2})
    assert [run.id for run in opened.runs()] in ([second, first], [first, second])
    assert {run.status for run in opened.runs()} == {"running"}
    with pytest.raises(DataError, match="still running"):
        opened.resume(first)
    metric, sample = ("t", "acc", "none", "", 2, 0.5, 0.1, 0.2, 0.8), ("t", 0, "none", "acc", 1.0)
    opened.finish(first, results="r.json", metrics=[metric], samples=[sample])
    opened.fail(second, "it rained")
    runs = {run.id: run for run in opened.runs()}
    assert (runs[first].status, runs[first].results, runs[first].settings) == ("finished", "r.json", {"n": 1})
    assert (runs[second].status, runs[second].error) == ("failed", "it rained")
    opened.resume(second)
    assert opened.run(second).status == "running" and opened.run(second).error is None
    with pytest.raises(DataError, match="there is no run 'x'"):
        opened.run("x")
    with pytest.raises(DataError, match="several runs start with '2'"):
        opened.run("2")


def test_a_dead_process_run_is_interrupted_and_goes_on(opened: Store, tmp_path: Path) -> None:
    program = f"from evals.store.store import Store; print(Store.open({str(tmp_path)!r}).register({{}}), flush=True)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()
    assert opened.run(run).status == "interrupted"
    opened.resume(run)
    assert opened.run(run).status == "running"


WRITE = """
import sys
from evals.store.store import Store, cache_key
with Store.open(sys.argv[1]) as opened:
    writer = opened.writer(opened.register({}))
    i = 0
    while True:
        writer.add({cache_key(sys.argv[2], i, j): [i, j] for j in range(5)})
        i += 1
        print(i, flush=True)
"""


def test_a_kill_at_any_moment_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    for attempt in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITE, str(tmp_path), str(attempt)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        for _ in range(10 + 7 * attempt):
            done = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read().split()
        process.stdout.close()
        process.wait()
        done = int(rest[-1]) if rest else done
        with Store.open(tmp_path) as opened:
            expected = {cache_key(str(attempt), i, j): [i, j] for i in range(done) for j in range(5)}
            assert opened.read(expected) == (expected, [])


def test_many_make_one_store_at_once(tmp_path: Path) -> None:
    def make(folder: Path, ready: threading.Barrier) -> None:
        ready.wait()
        with Store.open(folder) as mine:
            mine.register({})

    for attempt in range(40):  # without waiting for each other, 2 in 100 failed
        ready = threading.Barrier(6)
        threads = [threading.Thread(target=make, args=(tmp_path / str(attempt), ready)) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with Store.open(tmp_path / str(attempt), create=False) as opened:
            assert len(opened.runs()) == 6


def test_two_writers_at_once(tmp_path: Path) -> None:
    def write(who: int) -> None:
        with Store.open(tmp_path) as mine:
            writer = mine.writer(mine.register({"who": who}))
            for i in range(20):
                writer.add({cache_key(who, i): [who, i], cache_key("shared", i): i})
            writer.close()

    threads = [threading.Thread(target=write, args=(who,)) for who in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with Store.open(tmp_path) as opened:
        expected = {cache_key(who, i): [who, i] for who in range(3) for i in range(20)}
        expected |= {cache_key("shared", i): i for i in range(20)}
        assert opened.read(expected) == (expected, [])
        assert len(opened.runs()) == 3


def test_a_full_disk_is_told_and_loses_nothing(opened: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    run = opened.register({})
    writer = opened.writer(run)
    writer.add({cache_key(1): 1})
    sync = os.fsync

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match="is full. All answers so far are saved"):
        writer.add({cache_key(2): 2})
    monkeypatch.setattr(os, "fsync", sync)
    writer.add({cache_key(3): 3})
    writer.close()
    assert opened.read([cache_key(i) for i in (1, 2, 3)]) == ({cache_key(1): 1, cache_key(3): 3}, [])


def test_a_full_index_is_told(opened: Store) -> None:
    opened._index.execute(f"PRAGMA max_page_count = {opened._index.execute('PRAGMA page_count').fetchone()[0]}")
    with pytest.raises(DataError, match="is full"):
        for _ in range(200):
            opened.register({"text": "x" * 4000})
    assert all(run.status == "running" for run in opened.runs())


def test_of_two_that_take_up_a_run_one_gets_it(opened: Store, tmp_path: Path) -> None:
    run = opened.register({})
    opened.fail(run, "stopped")
    ready, outcomes = threading.Barrier(4), []

    def take() -> None:
        with Store.open(tmp_path) as mine:
            ready.wait()
            try:
                mine.resume(run)
                outcomes.append("taken")
            except DataError as error:
                outcomes.append(str(error))

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count("taken") == 1 and sum("still running" in outcome for outcome in outcomes) == 3


def test_a_lost_index_loses_no_answer(opened: Store, tmp_path: Path) -> None:
    runs = [opened.register({}) for _ in range(2)]
    for who, run in enumerate(runs):
        writer = opened.writer(run)
        writer.add({cache_key(who, i): [who, i] for i in range(3)})
        writer.add({cache_key(who, i): [who, i] for i in range(3, 5)})
        writer.close()
    files = [next((tmp_path / store.RESPONSES).glob(f"{run}.*.zz")) for run in runs]
    data = bytearray(files[0].read_bytes())
    data[record_file.HEAD.size + 3] ^= 0xFF  # its first frame; the second is whole
    files[0].write_bytes(data)
    files[1].write_bytes(files[1].read_bytes()[:-1])  # its second frame was cut short
    opened.close()
    for path in tmp_path.glob(f"{store.INDEX}*"):
        path.unlink()
    with Store.open(tmp_path) as again:
        whole = {cache_key(who, i): [who, i] for who, i in ((0, 3), (0, 4), (1, 0), (1, 1), (1, 2))}
        assert again.read([cache_key(who, i) for who in range(2) for i in range(5)]) == (whole, [])
        assert again.response_counts() == {runs[0]: 2, runs[1]: 3}


def test_a_frame_of_values_alone_is_read_as_ever(opened: Store) -> None:
    run = opened.register({})
    data = zlib.compress(json.dumps(["old", "older"]).encode())
    frame = record_file.HEAD.pack(len(data), zlib.crc32(data)) + data
    (opened.root / store.RESPONSES / "old.zz").write_bytes(frame)
    opened._index.execute("INSERT INTO responses VALUES (?, 'old.zz', 0, 1, ?)", (cache_key(1), run))
    assert opened.read([cache_key(1)]) == ({cache_key(1): "older"}, [])
    assert list(record_file.scan(opened.root / store.RESPONSES / "old.zz")) == []


@pytest.mark.parametrize("value", ["'{bro'", "'[1]'", "'3'"])
def test_a_damaged_entry_is_named_and_the_others_stay(opened: Store, tmp_path: Path, value: str) -> None:
    bad, good = opened.register({}), opened.register({"n": 1})
    opened.fail(good, "stopped")
    opened._index.execute(f"UPDATE runs SET settings = {value} WHERE id = ?", (bad,))
    assert opened.run(bad).status == "damaged" and opened.run(good).settings == {"n": 1}
    entries, problems = store.unfinished(tmp_path)
    assert [entry.run.id for entry in entries] == [good] and len(problems) == 1 and bad in problems[0]
    opened._index.execute("UPDATE runs SET settings = '{}', started = 'soon' WHERE id = ?", (bad,))
    assert opened.run(bad).status == "damaged"
    opened.remove(bad)
    assert [run.id for run in opened.runs()] == [good]


@pytest.mark.parametrize("item", [99999, "'x'"])
def test_a_wrong_place_is_asked_again(opened: Store, item: int | str) -> None:
    kept(opened, opened.register({}), {cache_key(1): 1})
    opened._index.execute(f"UPDATE responses SET item = {item}")
    responses, problems = opened.read([cache_key(1)])
    assert responses == {} and "computed again" in problems[0] and opened.contains([cache_key(1)]) == set()


def test_another_machine_s_answers_go_with_the_run(opened: Store, tmp_path: Path) -> None:
    first, second = opened.register({}), opened.register({})
    with Store.open(tmp_path / store.MACHINES / "away") as away:
        for who, run in enumerate((first, second)):
            writer = away.writer(run, rank=1)
            writer.add({cache_key(who): who})
            writer.close()
        with pytest.raises(DataError, match="one machine's part of the store"):
            away.gc()
        assert opened.gc() == (0, 0)
        opened.remove(first)
        assert opened.gc(dry_run=True)[0] == 1 and away.contains([cache_key(0)])
        assert opened.gc()[0] == 1
        assert away.contains([cache_key(0), cache_key(1)]) == {cache_key(1)}


def test_rubbish_and_newer_stores_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no store.sqlite"):
        Store.open(tmp_path, create=False)
    (tmp_path / store.INDEX).write_bytes(b"this is no database" * 100)
    with pytest.raises(DataError, match="is damaged"):
        Store.open(tmp_path)
    (tmp_path / store.INDEX).unlink()
    Store.open(tmp_path).close()
    with sqlite3.connect(tmp_path / store.INDEX) as index:
        index.execute("PRAGMA user_version = 99")
    index.close()
    with pytest.raises(DataError, match="version 99"):
        Store.open(tmp_path)


def test_an_older_store_is_brought_forward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store.open(tmp_path) as old:
        run = old.register({"n": 1})
        kept(old, run, {cache_key(1): 1})
    added = "ALTER TABLE runs ADD COLUMN note TEXT DEFAULT 'x';"
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, added))
    with Store.open(tmp_path) as new:
        assert new.run(run).settings == {"n": 1} and new.read([cache_key(1)])[0] == {cache_key(1): 1}
        assert new._index.execute("SELECT note FROM runs").fetchall() == [("x",)]
        assert new._index.execute("PRAGMA user_version").fetchone() == (len(schema.MIGRATIONS),)


def test_a_process_that_got_a_dead_ones_number_is_not_the_run(tmp_path: Path) -> None:
    with Store.open(tmp_path) as opened:
        run = opened.register({})
        assert opened.run(run).status == "running"  # by this very process
        opened._index.execute("UPDATE runs SET born = 'another time'")
        assert opened.run(run).status == "interrupted"
        opened.resume(run)
        assert opened.run(run).status == "running"
        # A store of the first version knows no beginnings: there the number has to do.
        opened._index.execute("UPDATE runs SET born = NULL")
        assert opened.run(run).status == "running"


def test_a_zombie_is_gone() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    assert child.stdout is None
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # ended, and nobody has taken note of it
    assert process_start_time(child.pid) is None
    child.wait()


def test_a_process_is_told_by_when_it_began() -> None:
    time.sleep(0.05)  # the kernel counts hundredths of a second, and this process may have only just begun
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert (
            process_start_time(os.getpid())
            == process_start_time(os.getpid())
            != process_start_time(child.pid)
            is not None
        )


def test_gc_frees_what_no_run_made(opened: Store) -> None:
    first, second = opened.register({}), opened.register({})
    kept(opened, first, {cache_key(1): 1, cache_key(2): 2})
    kept(opened, second, {cache_key(3): 3})
    assert opened.gc() == (0, 0)
    opened.remove(first)
    assert opened.read([cache_key(1)])[0] == {cache_key(1): 1}
    count, freed = opened.gc()
    assert count == 2 and freed > 0
    assert opened.contains([cache_key(i) for i in (1, 2, 3)]) == {cache_key(3)}
    assert json.dumps([run.id for run in opened.runs()]) == json.dumps([second])


FRAMES = [b"[" * 100_000, b'{"keys": 3, "values": []}', b'{"keys": ["x"]}', b"7", b"{", b'{"values": {}}']


@pytest.mark.parametrize("content", FRAMES, ids=range(len(FRAMES)))
def test_a_frame_that_nobody_writes_is_damaged(opened: Store, content: bytes) -> None:
    run, key, good = opened.register({}), cache_key("bad"), cache_key("good")
    kept(opened, run, {good: 1})
    data = zlib.compress(content)
    path = opened.root / "responses" / f"{run}.0.x.zz"
    path.write_bytes(record_file.HEAD.pack(len(data), zlib.crc32(data)) + data)
    opened._index.execute("INSERT INTO responses VALUES (?, ?, ?, ?, ?)", (key, path.name, 0, 0, run))
    responses, problems = opened.read([key, good])
    assert responses == {good: 1} and len(problems) == 1 and "damaged" in problems[0]
    assert list(record_file.scan(path)) == []


def test_any_text_is_kept(opened: Store) -> None:
    run = opened.register({"model": "\ud800"})
    opened.fail(run, "\ud800 \udfff")
    assert opened.run(run).error == "\\ud800 \\udfff" and opened.run(run).settings["model"] == "\ud800"
    opened.finish(run, results="r.json", samples=[("t\udcff", 0, "none", "acc", 1.0)])
    assert opened.run(run).status == "finished"
    kept(opened, run, {cache_key("x"): "\ud83d"})
    assert opened.read([cache_key("x")])[0] == {cache_key("x"): "\ud83d"}
