"""What the layers above rely on in the index, whatever lies below: reads see changes, changes survive, none is torn."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luxfuse.errors import IndexFormatError
from luxfuse.index import store as module
from luxfuse.index.store import IndexStore
from luxfuse.index.transactions import Transaction
from luxfuse.index.uncommitted import U64, Table


def reopened(path: Path, copy: Path) -> IndexStore:
    """Open what a crash at this moment would leave."""
    shutil.copytree(path, copy, ignore=shutil.ignore_patterns("lock.mdb"))
    return IndexStore(copy)


async def test_a_change_is_read_at_once_and_survives_its_commit(tmp_path: Path) -> None:
    store = IndexStore(tmp_path / "i")
    store.put(Table.NAMES, b"a", b"1")
    assert store.get(Table.NAMES, b"a") == b"1"
    assert store.get(Table.INODES, b"a") is None, "tables are apart"
    await store.flush()
    assert store.uncommitted == 0
    store.put(Table.NAMES, b"a", b"2")
    assert store.get(Table.NAMES, b"a") == b"2"
    store.delete(Table.NAMES, b"a")
    assert store.get(Table.NAMES, b"a") is None
    await store.flush()
    assert store.get(Table.NAMES, b"a") is None
    store.close()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.sampled_from(["put", "delete", "flush"]), st.sampled_from(list(Table)[1:4]), st.integers(0, 5)),
        max_size=40,
    )
)
def test_random_changes_match_a_dictionary(tmp_path_factory: pytest.TempPathFactory, operations: list) -> None:
    path = tmp_path_factory.mktemp("index")

    async def main() -> None:
        store = IndexStore(path)
        model: dict[tuple[Table, bytes], bytes] = {}
        for number, (action, table, key_number) in enumerate(operations):
            key = bytes([65 + key_number])
            if action == "put":
                store.put(table, key, str(number).encode())
                model[table, key] = str(number).encode()
            elif action == "delete":
                store.delete(table, key)
                model.pop((table, key), None)
            else:
                await store.flush()
            for which in list(Table)[1:4]:
                for k in range(6):
                    assert store.get(which, bytes([65 + k])) == model.get((which, bytes([65 + k])))
        await store.flush()
        store.close()
        store = IndexStore(path)
        for which in list(Table)[1:4]:
            expected = sorted((key, value) for (table, key), value in model.items() if table is which)
            assert store.committed_items(which, b"", b"", 100) == expected
        store.close()

    trio.run(main)


async def test_scans_start_where_told_and_end_with_the_prefix(tmp_path: Path) -> None:
    store = IndexStore(tmp_path / "i")
    for key in (b"a1", b"a2", b"a3", b"b1"):
        store.put(Table.NAMES, key, key.upper())
    await store.flush()
    assert store.committed_items(Table.NAMES, b"a2", b"a", 10) == [(b"a2", b"A2"), (b"a3", b"A3")]
    assert store.committed_items(Table.NAMES, b"a2\0", b"a", 10) == [(b"a3", b"A3")]
    assert len(store.committed_items(Table.NAMES, b"a", b"a", 2)) == 2
    assert store.committed_items(Table.NAMES, b"c", b"c", 10) == []
    store.close()


async def test_a_scan_can_show_the_newest_values(tmp_path: Path) -> None:
    store = IndexStore(tmp_path / "i")
    for number in range(6):
        store.put(Table.NAMES, b"a%d" % number, b"old")
    await store.flush()
    proceed, entered = threading.Event(), trio.Event()
    token = trio.lowlevel.current_trio_token()

    def slow(txn: Transaction) -> None:
        token.run_sync_soon(entered.set)
        assert proceed.wait(120)

    store.delete(Table.NAMES, b"a0")
    store.put(Table.NAMES, b"a1", b"new")
    store.delete(Table.NAMES, b"a2")
    store.delete(Table.INODES, b"a5")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.run, slow)
        await entered.wait()
        store.put(Table.NAMES, b"a2", b"newer")
        store.delete(Table.NAMES, b"a3")
        store.put(Table.NAMES, b"b", b"")
        expected = [(b"a1", b"new"), (b"a2", b"newer"), (b"a4", b"old"), (b"a5", b"old")]
        assert store.current_items(Table.NAMES, b"a", b"a", 10) == expected
        assert store.current_items(Table.NAMES, b"a", b"a", 2) == expected[:2]
        assert store.current_items(Table.NAMES, b"a2", b"a", 2) == expected[1:3]
        assert sorted(store.uncommitted_keys(Table.NAMES, b"a")) == [b"a2", b"a3"]
        proceed.set()
    assert store.current_items(Table.NAMES, b"a", b"a", 10) == [expected[0], *expected[2:]], "added since the commit"
    await store.flush()
    assert store.current_items(Table.NAMES, b"a", b"a", 10) == expected
    assert store.uncommitted_keys(Table.NAMES, b"") == []
    store.close()


async def test_a_function_runs_with_all_earlier_changes_in_one_transaction(tmp_path: Path) -> None:
    store = IndexStore(tmp_path / "i")
    store.put(Table.NAMES, b"a", b"1")

    def add(txn: Transaction) -> bytes | None:
        seen = txn.get(Table.NAMES, b"a")
        txn.put(Table.NAMES, b"b", b"2")
        txn.put_many(Table.INODES, [(b"x", b"1"), (b"y", b"2")])
        return seen

    assert await store.run(add) == b"1"
    crashed = reopened(tmp_path / "i", tmp_path / "copy")
    assert [crashed.get(Table.NAMES, key) for key in (b"a", b"b")] == [b"1", b"2"]
    assert crashed.committed_items(Table.INODES, b"", b"", 10) == [(b"x", b"1"), (b"y", b"2")]
    crashed.close()
    store.close()


async def test_a_function_that_fails_leaves_nothing_and_loses_nothing(tmp_path: Path) -> None:
    store = IndexStore(tmp_path / "i")
    store.put(Table.NAMES, b"a", b"1")

    def fail(txn: Transaction) -> None:
        txn.put(Table.NAMES, b"b", b"2")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await store.run(fail)
    assert store.get(Table.NAMES, b"b") is None
    assert store.get(Table.NAMES, b"a") == b"1"
    assert store.uncommitted
    await store.flush()
    store.close()
    store = IndexStore(tmp_path / "i")
    assert store.get(Table.NAMES, b"a") == b"1"
    assert store.get(Table.NAMES, b"b") is None
    store.close()


async def test_changes_made_during_a_commit_win_over_it(tmp_path: Path) -> None:
    store = IndexStore(tmp_path / "i")
    store.put(Table.NAMES, b"a", b"old")
    in_thread, go_on = trio.Event(), trio.Event()
    proceed = threading.Event()
    token = trio.lowlevel.current_trio_token()

    def slow(txn: Transaction) -> None:
        token.run_sync_soon(in_thread.set)
        assert proceed.wait(120)

    async with trio.open_nursery() as nursery:

        async def run() -> None:
            await store.run(slow)
            go_on.set()

        nursery.start_soon(run)
        await in_thread.wait()
        assert store.get(Table.NAMES, b"a") == b"old", "what is being committed must be visible"
        store.put(Table.NAMES, b"a", b"new")
        store.put(Table.NAMES, b"c", b"3")
        assert store.get(Table.NAMES, b"a") == b"new"
        proceed.set()
        await go_on.wait()
    assert store.get(Table.NAMES, b"a") == b"new"
    await store.flush()
    assert store.get(Table.NAMES, b"a") == b"new"
    assert store.get(Table.NAMES, b"c") == b"3"
    store.close()


@pytest.mark.expected_logs("index cannot be written")
async def test_failing_commits_keep_all_changes_and_recover(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "COMMIT_INTERVAL_S", 0.001)
    monkeypatch.setattr(module, "RETRY_INTERVAL_S", 0.001)
    store = IndexStore(tmp_path / "i")
    await store.flush()
    real, attempts = store._commit, 0
    failing = True

    def commit(changes: dict, function: object) -> object:
        nonlocal attempts
        attempts += 1
        if failing:
            raise OSError(28, "No space left on device")
        return real(changes, function)

    monkeypatch.setattr(store, "_commit", commit)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.flusher)
        for number in range(50):
            store.put(Table.NAMES, U64.pack(number), b"v")
            await trio.sleep(0)
        with trio.fail_after(60):
            while attempts < 5:
                await trio.sleep(0.002)
        assert store.failing
        assert all(store.get(Table.NAMES, U64.pack(number)) == b"v" for number in range(50))
        store.delete(Table.NAMES, U64.pack(3))
        with pytest.raises(OSError, match="No space"):
            await store.run(lambda txn: txn.put(Table.NAMES, b"never", b""))
        failing = False
        with trio.fail_after(60):
            while store.uncommitted or store.failing:
                await trio.sleep(0.002)
        nursery.cancel_scope.cancel()
    store.close()
    store = IndexStore(tmp_path / "i")
    found = store.committed_items(Table.NAMES, b"", b"", 100)
    assert found == [(U64.pack(number), b"v") for number in range(50) if number != 3]
    store.close()


@pytest.mark.expected_logs("index cannot be written")
async def test_changes_that_cannot_be_committed_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PENDING_BOUND", 10)
    store = IndexStore(tmp_path / "i")
    await store.flush()
    store.failing = "made up"
    for number in range(10):
        store.put(Table.NAMES, bytes([number]), b"")
    with pytest.raises(OSError, match="takes no changes"):
        store.put(Table.NAMES, b"more", b"")
    await store.flush()
    assert store.failing is None
    store.put(Table.NAMES, b"more", b"")
    store.close()


async def test_an_unknown_format_is_refused_with_one_line(tmp_path: Path) -> None:
    store = IndexStore(tmp_path / "i")
    store.put(Table.META, b"format", U64.pack(99))
    await store.flush()
    store.close()
    with pytest.raises(IndexFormatError) as caught:
        IndexStore(tmp_path / "i")
    assert "format 99" in str(caught.value)
    assert "remove it" in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_a_file_that_is_no_index_is_refused_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "i").mkdir()
    (tmp_path / "i" / "data.mdb").write_bytes(b"not a database" * 1000)
    with pytest.raises(IndexFormatError) as caught:
        IndexStore(tmp_path / "i")
    assert "is damaged" in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_a_crash_between_commits_leaves_exactly_the_last_one(tmp_path: Path) -> None:
    store = IndexStore(tmp_path / "i")
    for number in range(5):
        for key in range(20):
            store.put(Table.NAMES, bytes([key]), str(number).encode())
        await store.flush()
        store.put(Table.NAMES, bytes([7]), b"uncommitted")
        crashed = reopened(tmp_path / "i", tmp_path / f"copy{number}")
        values = {value for _, value in crashed.committed_items(Table.NAMES, b"", b"", 100)}
        assert values == {str(number).encode()}
        crashed.close()
    store.close()


KILLED = """
import os, sys, trio
from pathlib import Path
from luxfuse.index.store import IndexStore
from luxfuse.index.uncommitted import Table

async def main():
    store = IndexStore(Path(sys.argv[1]))
    store.put(Table.NAMES, b"a", b"committed")
    await store.flush()
    store.put(Table.NAMES, b"a", b"pending")
    def die(txn):
        txn.put(Table.NAMES, b"b", b"half")
        os._exit(9)
    await store.run(die)

trio.run(main)
"""


def test_a_killed_process_leaves_whole_transactions(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "i")], check=False, timeout=120, env={**os.environ})
    assert done.returncode == 9

    async def main() -> None:
        store = IndexStore(tmp_path / "i")
        assert store.get(Table.NAMES, b"a") == b"committed"
        assert store.get(Table.NAMES, b"b") is None
        store.close()

    trio.run(main)


def test_the_index_is_private_also_where_its_directory_was_not(tmp_path: Path) -> None:
    path = tmp_path / "i"
    path.mkdir()
    path.chmod(0o755)
    IndexStore(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.iterdir()} == {0o600}
