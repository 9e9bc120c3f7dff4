"""Manifests of mounts without a kernel: taken up by others, and never against what is known better."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
import trio

from luxfuse.index.manifest import ManifestRefused
from luxfuse.orders.jobs import watch
from luxfuse.orders.manifest import Export, Import, ManifestProgress
from luxfuse.orders.source_manifest import export_source
from luxfuse.types import Kind
from tests.support.fake_kernel import CALLER
from tests.support.fake_store import FakeStore
from tests.support.harness import BEGINNING_S, Mount, mounted


def tree() -> FakeStore:
    store = FakeStore()
    for n in range(30):
        store.place(f"d{n % 3}/e/f{n:02}", b"x" * n)
    store.place("a", b"content")
    store.place("described", b"1", {"mode": str(0o100640), "uid": "7", "gid": "8"})
    store.place("ln.rclonelink", b"a")
    store.place("empty/", b"")
    store.place("d0/.", b"no file can have this name")
    return store


async def ended(job: Export | Import) -> ManifestProgress:
    with trio.fail_after(60):
        async for step in watch(job):
            last = step
    return last


async def find(m: Mount, path: str = "") -> dict[str, tuple[int, int]]:
    """All names, as ``find`` would see them: with size and kind."""
    found = {}
    for name, inode in (await m.entries(path)).items():
        inside = f"{path}/{name.decode()}".lstrip("/")
        st = await m.fs.getattr(inode)
        found[inside] = st.size, stat.S_IFMT(st.mode)
        if stat.S_ISDIR(st.mode):
            found |= await find(m, inside)
    return found


pytestmark = pytest.mark.expected_logs("skipping key")


async def test_a_fresh_mount_shows_all_of_it_and_lists_nothing(tmp_path: Path) -> None:
    store, file = tree(), str(tmp_path / "m")
    async with mounted(tmp_path / "one", store) as m:
        st = await m.fs.getattr(await m.inode("described"))
        assert stat.S_IMODE(st.mode) == 0o640
        step = await ended(m.manifests.export(file))
        assert (step.directories, step.skipped, step.done) == (8, 0, True)
        expected = await find(m)
        assert step.entries == len(expected)
    store.counts.clear()
    async with mounted(tmp_path / "two", store, metadata_ttl_s=3600.0, attributes="exact") as m:
        step = await ended(m.manifests.take_up(file))
        assert (step.directories, step.entries, step.skipped, step.note) == (8, len(expected), 0, None)
        st = await m.fs.getattr(await m.inode("described"))
        assert (stat.S_IMODE(st.mode), st.uid, st.gid) == (0o640, 7, 8)
        assert store.counts["head"] == 0, "attributes come, too"
        assert await find(m) == expected
        assert await m.read_all("a") == b"content"
        assert store.counts["list"] == 0


async def test_what_has_changed_since_is_noticed_as_always(tmp_path: Path) -> None:
    store, file = tree(), str(tmp_path / "m")
    async with mounted(tmp_path / "one", store) as m:
        await ended(m.manifests.export(file))
    store.place("a", b"something else")
    store.remove("d0/e/f03")
    async with mounted(tmp_path / "two", store, metadata_ttl_s=3600.0) as m:
        await ended(m.manifests.take_up(file))
        assert await m.read_all("a") == b"something else", "the version is asked for with the first page"
        assert b"f03" in await m.entries("d0/e")
        m.clock.advance(3601)
        assert b"f03" not in await m.entries("d0/e")
    async with mounted(tmp_path / "three", store, metadata_ttl_s=60.0, beginning_s=BEGINNING_S + 600) as m:
        step = await ended(m.manifests.take_up(file))
        assert step.note is not None
        assert "made 10 min ago" in step.note
        assert b"f03" not in await m.entries("d0/e"), "it is older than metadata-ttl, so all is asked for again"


async def test_what_is_known_better_stays(tmp_path: Path) -> None:
    store, file = tree(), str(tmp_path / "m")
    async with mounted(tmp_path / "one", store) as m:
        await ended(m.manifests.export(file))
    store.remove("d0/e/f00")
    store.place("d0/e/new", b"new")
    async with mounted(tmp_path / "two", store, metadata_ttl_s=3600.0, beginning_s=BEGINNING_S + 60) as m:
        await m.entries("d0/e")
        handle, _ = await m.fs.create(await m.inode("d1"), b"made", 0o644, 0, CALLER)
        await m.kernel.release(m.fs, handle)
        inode = await m.inode("d0/e/f09")
        step = await ended(m.manifests.take_up(file))
        assert step.directories + step.skipped == 8
        assert step.skipped in (1, 2)  # the root was listed behind, if that was faster
        assert await m.inode("d0/e/f09") == inode
        names = await m.entries("d0/e")
        assert b"new" in names
        assert b"f00" not in names
        assert b"made" in await m.entries("d1")


async def test_one_of_a_source_that_is_not_mounted(tmp_path: Path) -> None:
    store, file = tree(), tmp_path / "m"
    async with mounted(tmp_path / "one", store) as m:
        steps = [step async for step in export_source(m.store, file, "fake://bucket", _source_id(m))]
        expected = await find(m)
    assert steps[-1].done
    assert (steps[-1].directories, steps[-1].entries, steps[-1].skipped) == (8, len(expected), 1)
    async with mounted(tmp_path / "two", store, metadata_ttl_s=10**9) as m:
        store.counts.clear()
        await ended(m.manifests.take_up(str(file)))
        assert await find(m) == expected
        assert store.counts["list"] == 0


def _source_id(m: Mount) -> str:
    return str(m.manifests._import.keywords["source_id"])


async def test_what_fails_is_one_line_and_leaves_no_manifest(tmp_path: Path) -> None:
    store, file = tree(), tmp_path / "m"
    async with mounted(tmp_path / "one", store) as m:
        store.missing_bucket = True
        for job in (m.manifests.export(str(file)), m.manifests.export(str(tmp_path / "no/such"))):
            with pytest.raises(ManifestRefused, match=r"cannot be listed|No such file"):
                await ended(job)
        with pytest.raises(ManifestRefused, match="No such file"):
            await ended(m.manifests.take_up(str(file)))
        assert not list(tmp_path.glob("m*"))
        assert m.namespace.peek(1, b"a") is None


async def test_at_mount_it_is_taken_up_once(tmp_path: Path) -> None:
    store, file = tree(), tmp_path / "m"
    async with mounted(tmp_path / "one", store) as m:
        await ended(m.manifests.export(str(file)))
    notes: list[str] = []
    async with mounted(tmp_path / "two", store, metadata_ttl_s=3600.0) as m:
        await m.manifests.at_mount(str(file), notes.append)
        entry = m.namespace.peek(1, b"a")
        assert entry is not None
        assert entry.kind is Kind.FILE
    file.chmod(0o600)  # which changes nothing that matters
    async with mounted(tmp_path / "two", store, metadata_ttl_s=3600.0) as m:
        await m.manifests.at_mount(str(file), notes.append)
        assert m.names.listings.serial(1) == 1
        file.write_bytes(file.read_bytes()[:-20])
        with pytest.raises(ManifestRefused, match=r"damaged|ends early"):
            await m.manifests.at_mount(str(file), notes.append)
    assert notes == []
