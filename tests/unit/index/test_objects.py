from __future__ import annotations

import random
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luxfuse.core.eviction import Standing
from luxfuse.core.ledger import allocated_bytes
from luxfuse.index.directory_order import DirectoryOrder
from luxfuse.index.object_records import ObjectRecord, object_id
from luxfuse.index.objects import Objects
from luxfuse.index.pages import CHUNK_PAGES, Pages
from luxfuse.index.store import IndexStore
from luxfuse.index.uncommitted import Table
from luxfuse.types import PAGE_BYTES


@given(st.integers(0, 400), st.data())
def test_chunks_carry_presence_and_checksums(count: int, data: st.DataObject) -> None:
    pages = Pages(count * PAGE_BYTES)
    wanted = data.draw(
        st.dictionaries(st.integers(0, count - 1), st.integers(0, 2**64 - 1), max_size=60) if count else st.just({})
    )
    for page, checksum in wanted.items():
        pages.add(page, checksum)
    for page in list(wanted)[::5]:
        pages.remove(page)
        del wanted[page]
    copy = Pages(count * PAGE_BYTES)
    for number in range(-(-count // CHUNK_PAGES)):
        copy.load(number, pages.chunk(number))
    assert copy.count == pages.count == len(wanted)
    assert copy.whole == pages.whole == (len(wanted) == count)
    for page in range(count):
        assert copy.has(page) == pages.has(page) == (page in wanted)
        if page in wanted:
            assert copy.checksums[page] == wanted[page]


def test_adding_twice_and_removing_twice_count_once() -> None:
    pages = Pages(3 * PAGE_BYTES)
    pages.add(1, 5)
    pages.add(1, 6)
    assert pages.count == 1
    assert pages.checksums[1] == 6
    pages.remove(1)
    pages.remove(1)
    assert pages.count == 0


def test_ids_tell_source_key_and_version_apart() -> None:
    ids = {
        object_id("s", "k", "v"),
        object_id("t", "k", "v"),
        object_id("s", "l", "v"),
        object_id("s", "k", "w"),
        object_id("s", "kv", ""),
        object_id("sk", "", "v"),
        object_id("s", "\udcff", "v"),
    }
    assert len(ids) == 7
    assert all(len(oid) == 16 for oid in ids)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10_000))
def test_sums_and_recency_follow_random_operations(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    path = tmp_path_factory.mktemp("index")
    rng = random.Random(seed)

    async def main() -> None:
        store = IndexStore(path)
        objects = Objects(store)
        model: dict[bytes, ObjectRecord] = {}
        clock = 1000
        for _ in range(60):
            clock += 1
            oid = bytes([rng.randrange(6)]) * 16
            action = rng.choice(["save", "save", "touch", "many", "drop", "flush", "reopen"])
            if action == "save":
                size = rng.randrange(1, 300) * PAGE_BYTES
                loaded = objects.load(oid)
                record, pages = loaded if loaded else (ObjectRecord("k", "v", size), Pages(size))
                page = rng.randrange(pages.total)
                pages.add(page, clock)
                record.allocated_bytes = pages.count * PAGE_BYTES
                record.standing, record.directory = Standing(rng.randrange(2), clock), rng.randrange(3)
                objects.save(oid, record, pages, range(page, page + 1))
                model[oid] = record
            elif action == "many":
                some = rng.sample(sorted(model), rng.randrange(len(model) + 1))
                for oid in some:
                    model[oid].standing, model[oid].directory = Standing(rng.randrange(2), clock), rng.randrange(3)
                objects.save_all((oid, model[oid]) for oid in some)
                directory = rng.randrange(3)
                there = {oid for oid in some if model[oid].directory == directory}
                gone = [*some, b"an unknown one.."][: rng.randrange(len(some) + 2)]
                elsewhere, freed = objects.drop_in(directory, gone)
                assert elsewhere == set(gone) & set(some) - there
                assert freed == sum(model.pop(oid).allocated_bytes for oid in gone if oid in there)
            elif action == "touch":
                if oid in model:
                    model[oid].standing = Standing(rng.randrange(2), clock)
                    objects.save(oid, model[oid])
            elif action == "drop":
                freed = objects.drop(oid)
                gone = model.pop(oid, None)
                assert freed == (gone.allocated_bytes if gone else 0)
            elif action == "flush":
                await store.flush()
            else:
                await store.flush()
                store.close()
                store = IndexStore(path)
                objects = Objects(store)
            assert objects.used_bytes == sum(record.allocated_bytes for record in model.values())
            assert objects.count == len(model)
            for oid, record in model.items():
                loaded = objects.load(oid)
                assert loaded is not None
                assert loaded[0] == record
                assert loaded[1].count * PAGE_BYTES == record.allocated_bytes
            for directory in range(3):
                there = [record for record in model.values() if record.directory == directory]
                order = DirectoryOrder(objects, directory)
                assert order.count == len(there)
                assert objects.used_bytes_in(directory) == sum(record.allocated_bytes for record in there)
                for segment in range(2):
                    assert order.bytes_in(segment) == sum(r.allocated_bytes for r in there if r.segment == segment)
        await objects.commit()
        for directory in range(3):
            ranks = []
            for segment in range(2):
                wanted = sorted(
                    (record.rank, oid, record.allocated_bytes)
                    for oid, record in model.items() if (record.directory, record.segment) == (directory, segment)
                )  # fmt: skip
                assert list(DirectoryOrder(objects, directory).ascending(segment)) == wanted
                ranks += [rank for rank, _, _ in wanted]
            assert objects.highest_rank(directory) == max(ranks, default=0)
        assert len(store.committed_items(Table.STANDINGS, b"", b"", 100)) == len(model), "a stale place in the order"
        for oid in list(model):
            objects.drop(oid)
        await store.flush()
        for table in (Table.OBJECTS, Table.CHUNKS, Table.STANDINGS):
            assert store.committed_items(table, b"", b"", 10) == []
        store.close()

    trio.run(main)


async def test_clearing_forgets_everything(tmp_path: Path) -> None:
    store = IndexStore(tmp_path / "i")
    objects = Objects(store)
    pages = Pages(10)
    pages.add(0, 1)
    for oid, directory in ((b"a" * 16, 0), (b"b" * 16, 1)):
        record = ObjectRecord("k", "v", 10, allocated_bytes=allocated_bytes(10), directory=directory)
        objects.save(oid, record, pages, range(1))
    assert objects.used_bytes == 2 * 4096
    await objects.clear(0)
    assert not objects.known(b"a" * 16)
    assert objects.load(b"a" * 16) is None
    assert (objects.used_bytes, objects.count) == (4096, 1)
    assert objects.known(b"b" * 16), "it is in another directory"
    await objects.clear(1)
    assert (objects.used_bytes, objects.count) == (0, 0)
    store.close()


@pytest.mark.expected_logs("is not recorded")
async def test_what_the_index_cannot_take_is_left_out_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = IndexStore(tmp_path / "i")
    objects = Objects(store)
    one, two = b"a" * 16, b"b" * 16
    pages = Pages(3 * PAGE_BYTES)
    pages.add(0, 1)
    assert objects.save(one, ObjectRecord("k", "v", pages.total * PAGE_BYTES, PAGE_BYTES, 5), pages, range(1))
    await store.flush()
    monkeypatch.setattr("luxfuse.index.store.PENDING_BOUND", 2)
    store.failing = "made up"
    pages.add(1, 2)
    # The last one that still goes, goes whole.
    assert objects.save(one, ObjectRecord("k", "v", pages.total * PAGE_BYTES, 2 * PAGE_BYTES, 6), pages, range(2))
    assert objects.refusing
    before = dict(store._pending.records)
    assert not objects.save(two, ObjectRecord("l", "v", pages.total * PAGE_BYTES, PAGE_BYTES, 7), pages, range(2))
    assert objects.drop(one) is None
    assert not objects.save(one, ObjectRecord("k", "v", pages.total * PAGE_BYTES, 2 * PAGE_BYTES, 9))
    assert store._pending.records == before
    assert (objects.used_bytes, objects.count) == (2 * PAGE_BYTES, 1)
    assert not objects.known(two)
    assert objects.refused == 3
    assert len([record for record in caplog.records if "is not recorded" in record.getMessage()]) == 1
    await store.flush()
    assert not objects.refusing
    assert objects.drop(one) == 2 * PAGE_BYTES
    await store.flush()
    assert store.committed_items(Table.STANDINGS, b"", b"", 10) == []
    store.close()


async def test_values_read_ahead_are_right_whatever_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = IndexStore(tmp_path)
    keys = [bytes([n]) * 16 for n in range(6)]
    for key in keys[:3]:
        store.put(Table.OBJECTS, key, b"old" + key)
    await store.flush()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.warm, Table.OBJECTS, keys)
        await trio.testing.wait_all_tasks_blocked()
        store.put(Table.OBJECTS, keys[0], b"new")  # while they are being read
        store.put(Table.OBJECTS, keys[3], b"new")
        nursery.start_soon(store.warm, Table.OBJECTS, keys)  # the second one does nothing
        await store.flush()
    monkeypatch.setattr(store, "_env", None)  # nothing is asked for that was read, but for what changed
    assert store.get(Table.OBJECTS, keys[1]) == b"old" + keys[1]
    assert store.get(Table.OBJECTS, keys[4]) is None
    monkeypatch.undo()
    assert store.get(Table.OBJECTS, keys[0]) == store.get(Table.OBJECTS, keys[3]) == b"new"
    store.delete(Table.OBJECTS, keys[1])
    store.put(Table.OBJECTS, keys[5], b"late")
    await store.flush()
    assert store.get(Table.OBJECTS, keys[1]) is None
    assert store.get(Table.OBJECTS, keys[5]) == b"late"
    store.close()


async def test_new_objects_that_are_saved_together_are_as_if_saved_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    found = []
    for together in (False, True):
        store = IndexStore(tmp_path / str(together))
        objects, told = Objects(store), []
        objects.on_change.append(lambda oid, record, sign, told=told: told.append((oid, record.key, sign)))
        objects.on_held.append(lambda oid, number, held, told=told: told.append((oid, number, held)))
        one_known = Pages(1)
        assert objects.save(b"7" * 16, ObjectRecord("f7", "v", 1, 4096, 3, segment=1, rank=1), one_known, range(1))
        new = []
        for n in range(12):
            pages = Pages(n * PAGE_BYTES // 8 + 1)
            for page in range(pages.total):
                pages.add(page, 100 * n + page)
            size = n * PAGE_BYTES // 8 + 1
            record = ObjectRecord(f"f{n}", "v", size, allocated_bytes(size), 9, whole=True, segment=n % 2, rank=n)
            new.append((str(n).encode().ljust(16, b"x") if n != 7 else b"7" * 16, record, pages))
        if together:
            assert objects.save_new(new)
        else:
            assert all(objects.save(oid, record, pages, range(pages.total)) for oid, record, pages in new)
        await store.flush()
        tables = [store.committed_items(table, b"", b"", 100) for table in Table]
        found.append((tables, sorted(map(str, told)), objects.used_bytes, objects.count))
        monkeypatch.setattr("luxfuse.index.store.PENDING_BOUND", 0)
        store.failing = "made up"
        assert not objects.save_new([(b"z" * 16, new[0][1], new[0][2])])
        assert not objects.known(b"z" * 16)
        assert objects.count == 12
        monkeypatch.undo()
        store.close()
    assert found[0] == found[1]
    caplog.clear()
