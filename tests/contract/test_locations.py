"""What is relied on in the table of who holds what: it says what it was told, agrees with itself, and stays small."""

from __future__ import annotations

import random
from pathlib import Path

import lmdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luxfuse.core.holdings import BUCKETS, ENTRY_BYTES, BucketSums, Mark, bucket_of, entry_of
from luxfuse.index import locations as module
from luxfuse.index.location_sums import new_sums
from luxfuse.index.locations import LocationTable

ID = b"12345678"
ALL = list(range(BUCKETS))


def entry(number: int, range_number: int = 0) -> bytes:
    return entry_of(random.Random(number).randbytes(16), range_number)


def summed(entries: set[bytes]) -> BucketSums:
    sums = new_sums()
    for held in entries:
        sums.toggle(held)
    return sums


def held_by(table: LocationTable, name: str, entries: list[bytes]) -> list[bytes]:
    return [held for held in entries if name in table.holders(held)]


def sweep(table: LocationTable) -> None:
    retired = table.retired
    after: bytes | None = b""
    while after is not None:
        after = table.sweep(after, retired)


def test_holders_are_those_that_said_so(tmp_path: Path) -> None:
    table = LocationTable(tmp_path / "l")
    for name in "ab":
        table.enrol(name)
        table.apply(name, [(entry(1), True), (entry(1, 7), name == "a")], Mark(ID, 2))
    assert sorted(table.holders(entry(1))) == ["a", "b"]
    assert table.holders(entry(1, 7)) == ["a"]
    assert table.holders(entry(1, 3)) == table.holders(entry(2)) == []
    table.apply("a", [(entry(1), False)])
    assert table.holders(entry(1)) == ["b"]
    assert (table.node("a").entries, table.node("b").mark) == (1, Mark(ID, 2))
    table.close()


def test_our_own_changes_count_once_and_are_nobody_elses(tmp_path: Path) -> None:
    table = LocationTable(tmp_path / "l")
    assert table.apply_own([(entry(1), True), (entry(2), True), (entry(1), True)]) == [(entry(1), True), (entry(2), True)]
    assert table.apply_own([(entry(3), False), (entry(2), False)]) == [(entry(2), False)]
    assert table.own_entries == 1
    assert table.holders(entry(1)) == []
    assert not table.sums().differing(summed({entry(1)}))
    table.close()


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    operations=st.lists(
        st.tuples(
            st.sampled_from(["apply", "apply", "apply", "replace", "forget", "anew", "reopen", "sweep"]),
            st.sampled_from("abc"),
            st.lists(st.tuples(st.integers(0, 12), st.booleans()), max_size=9),
        ),
        max_size=25,
    )
)
def test_random_changes_match_sets(tmp_path_factory: pytest.TempPathFactory, operations: list) -> None:
    path = tmp_path_factory.mktemp("l") / "l"
    table = LocationTable(path)
    model: dict[str, set[bytes]] = {}
    for action, name, numbers in operations:
        changes = [(entry(number // 3, number % 3), held) for number, held in numbers]
        if action in ("forget", "reopen", "sweep"):
            if action == "forget":
                table.forget(name)
                model.pop(name, None)
            elif action == "sweep":
                sweep(table)
            else:
                table.close()
                table = LocationTable(path)
            continue
        table.enrol(name, anew=action == "anew")
        ours = model.setdefault(name, set())
        if action == "anew":
            ours.clear()
        elif action == "apply":
            table.apply(name, changes)
            for changed, held in changes:
                (ours.add if held else ours.discard)(changed)
        else:
            theirs = sorted({changed for changed, held in changes if held})
            table.replace(name, ALL, b"", b"".join(theirs), b"")
            model[name] = set(theirs)
    for name, held in model.items():
        assert set(held_by(table, name, [entry(n // 3, n % 3) for n in range(13)])) == held
        assert table.node(name).entries == len(held)
        assert not table.sums(name).differing(summed(held))
        assert table.node(name).total == summed(held).total
    assert set(table.names()) == set(model)
    table.close()


def test_content_comes_in_pages_and_replaces_what_was_there(tmp_path: Path) -> None:
    theirs = {entry(number) for number in range(300)}
    giving, taking = LocationTable(tmp_path / "g"), LocationTable(tmp_path / "t")
    giving.apply_own([(held, True) for held in theirs])
    taking.enrol("other")
    taking.apply("other", [(entry(number), True) for number in range(100, 400)])
    taking.enrol("g")
    taking.apply("g", [(entry(number), True) for number in range(200, 400)])
    buckets = giving.sums().differing(taking.sums("g"))
    assert buckets == sorted({bucket_of(entry(n)) for n in [*range(200), *range(300, 400)]})
    after, pages = b"", 0
    while True:
        entries, until = giving.content(buckets, after, 40)
        assert len(entries) <= 40 * ENTRY_BYTES
        taking.replace("g", buckets, after, entries, until)
        buckets = [bucket for bucket in buckets if not until or bucket >= bucket_of(until)]
        after, pages = until, pages + 1
        if not until:
            break
    assert pages > 3
    assert not taking.sums("g").differing(giving.sums())
    assert (taking.node("g").entries, taking.node("other").entries) == (300, 300)
    giving.close()
    taking.close()


def test_our_own_entries_of_a_part(tmp_path: Path) -> None:
    table = LocationTable(tmp_path / "l")
    entries = sorted(entry(number) for number in range(20))
    table.apply_own([(held, True) for held in entries])
    assert table.own_after(b"", b"", 99) == entries
    assert table.own_after(entries[4], entries[9], 99) == entries[5:10]
    assert table.own_after(entries[4], b"", 3) == entries[5:8]
    table.close()


def test_beyond_the_bound_entries_are_left_out_and_counted(tmp_path: Path) -> None:
    table = LocationTable(tmp_path / "l", most_entries=10)
    table.apply_own([(entry(number), True) for number in range(50, 70)])
    table.enrol("a")
    table.apply("a", [(entry(number), True) for number in range(15)])
    assert (table.node("a").entries, table.left_out, table.node("a").lacking) == (10, 5, True)
    table.apply("a", [(entry(0), False), (entry(14), True), (entry(13), True)])
    assert (table.node("a").entries, table.left_out, table.room) == (10, 6, 0)
    table.accept("a")
    assert not table.node("a").lacking
    table.close()


def test_what_is_forgotten_is_gone_at_once_and_its_number_is_used_again_when_swept(tmp_path: Path) -> None:
    table = LocationTable(tmp_path / "l")
    for name in "ab":
        table.enrol(name)
        table.apply(name, [(entry(number), True) for number in range(700)])
    table.forget("a")
    assert table.holders(entry(1)) == ["b"]
    table.enrol("a")
    assert table.holders(entry(1)) == ["b"], "a number is not used again before it is swept"
    sweep(table)
    assert not table.retired
    table.enrol("c")
    assert table.holders(entry(1)) == ["b"]
    table.close()
    assert LocationTable(tmp_path / "l").node("b").entries == 700


def test_a_crash_keeps_what_was_told_and_is_known(tmp_path: Path) -> None:
    path = tmp_path / "l"
    first = LocationTable(path)
    assert first.clean
    first.enrol("a")
    first.apply("a", [(entry(1), True)], Mark(ID, 1))
    first._file._env.close()
    second = LocationTable(path)
    assert not second.clean
    assert (second.holders(entry(1)), second.node("a").mark) == (["a"], Mark(ID, 1))
    second.close()
    third = LocationTable(path)
    assert third.clean
    third.close()


@pytest.mark.parametrize("what", ["boot", "format", "garbage"])
def test_a_table_that_cannot_be_believed_is_begun_anew(tmp_path: Path, what: str) -> None:
    path = tmp_path / "l"
    table = LocationTable(path)
    table.enrol("a")
    if what == "garbage":
        table.close()
        (path / "data.mdb").write_bytes(b"nonsense" * 2000)
    else:
        with table._file._env.begin(write=True) as txn:
            txn.put(what.encode(), b"another one", db=table._file._meta)
        table._file._env.close()
    table = LocationTable(path)
    assert table.names() == []
    assert table.own_entries == 0
    table.close()


@pytest.mark.expected_logs("cannot be read any more")
def test_a_table_that_turns_out_damaged_goes_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = LocationTable(tmp_path / "l")
    table.enrol("a")

    def corrupted(*_args: object) -> None:
        raise lmdb.CorruptedError("a page is wrong")

    monkeypatch.setattr(module, "SumsChange", corrupted)
    with pytest.raises(OSError, match="a page is wrong"):
        table.apply("a", [(entry(1), True)])
    assert table._file.damaged
    table.close()
    assert not (tmp_path / "l").exists()


def test_an_entry_costs_less_than_48_bytes_after_random_churn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here, where each transaction touches a larger part of the table than it would at a million."""
    monkeypatch.setattr(module, "BREATH_S", 0.0)
    rng = random.Random(1)
    table = LocationTable(tmp_path / "l")
    held: dict[str, list[bytes]] = {}
    for name in "abcde":
        table.enrol(name)
        held[name] = [rng.randbytes(10) + bytes(3) for _ in range(30_000)]
        table.apply(name, [(added, True) for added in held[name]])
    for name, entries in held.items():
        churn = []
        for gone in rng.sample(entries, 15_000):
            churn += [(gone, False), (rng.randbytes(10) + bytes(3), True)]
        table.apply(name, churn)
    assert sum(table.node(name).entries for name in held) == 150_000
    assert table.file_bytes / 150_000 < 48
    table.close()


def test_what_is_done_to_a_closed_table_fails_instead_of_the_process(tmp_path: Path) -> None:
    table = LocationTable(tmp_path / "l")
    table.apply_own([(entry_of(bytes(16), 0), True)])
    table.close()
    assert table.holders(entry_of(bytes(16), 0)) == []
    assert table.file_bytes == 0
    with pytest.raises(OSError, match="is closed"):
        table.apply_own([(entry_of(bytes(16), 1), True)])
