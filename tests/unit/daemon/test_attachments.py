"""The end of an attachment, as far as a successor depends on it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from luxfuse.control.attached_file import Record, Recorded
from luxfuse.daemon import attachments
from luxfuse.daemon.attached import Attached
from luxfuse.daemon.attachments import Attachments
from luxfuse.daemon.succession import Succession
from luxfuse.errors import MountError
from luxfuse.estate.memory import Estate
from luxfuse.fuse.inheritance import Inheritance
from luxfuse.tiers.slots import Slots
from luxfuse.vfs.volumes import Volume, Volumes
from tests.support.fake_kernel import FakeKernel
from tests.support.harness import until

RECORD = Record(path="m", source="s3://other", options={}, number=1)


@pytest.fixture
def succession() -> Iterator[Succession]:
    fd = os.memfd_create("estate")
    yield Succession(-1, Estate(fd), Inheritance(), 1)
    os.close(fd)


class Life:
    """Instead of a volume's: it gives up its slots at its end."""

    def __init__(self, slots: Slots) -> None:
        self.slots = slots
        self.told: list[str] = []

    async def run(self, attached: Any) -> None:
        self.slots.keep("/cache", {"/cache": "s"})
        attached.parts = SimpleNamespace(
            index=SimpleNamespace(flush=self._tell("index")), journal=SimpleNamespace(commit=self._tell("journal"))
        )
        await attached.leave.wait()
        self.slots.drop()
        attached.parts = None
        attached.ended.set()

    def _tell(self, what: str) -> Any:
        async def committed() -> None:
            self.told.append(what)

        return committed


@pytest.mark.expected_logs("cannot be written; it stays attached")
@pytest.mark.parametrize("works", [True, False])
async def test_a_volume_is_off_the_record_before_its_successor_would_miss_anything(
    tmp_path: Path, succession: Succession, monkeypatch: pytest.MonkeyPatch, works: bool
) -> None:
    tree = Volumes(cast(Any, FakeKernel()))
    directories = SimpleNamespace(relist=lambda _inode: None)
    tree.main.serve(cast(Any, SimpleNamespace(directories=directories)), negative_ttl_s=1, read_only=False)
    settings = cast(Any, SimpleNamespace(mountpoint="/mnt/x", source_id="main", request_timeout_s=1))
    life = Life(succession.of_volume(1).slots)
    written: list[Recorded] = []

    def write(recorded: Recorded) -> None:
        written.append(recorded)
        assert Slots(succession.estate.facts, 1).known, "as if it had been killed here"
        assert life.told == ["index", "journal"]
        if not works:
            raise MountError("attached.json: cannot be written")

    async with trio.open_nursery() as nursery:
        made = Attachments(settings, cast(Any, SimpleNamespace(volumes=tree)), tmp_path, nursery, None, succession)
        monkeypatch.setattr(made._file, "write", write)
        a = made._attached["m"] = Attached(RECORD, settings, Volume(1), "serving")
        await tree.attach(a.volume, "m")
        a.hung = True
        nursery.start_soon(life.run, a)
        await wait_all_tasks_blocked()
        if works:
            steps = [step async for step in made.detach("m", force=True)]
            assert steps[-1].done
        else:
            with pytest.raises(MountError, match="cannot be written; it stays attached"):
                _ = [step async for step in made.detach("m", force=True)]
        assert written[0].attached == []
        assert ("m" in made._attached, a.hung, succession.of_volume(1).slots.known) == ((not works,) * 3)
        if not works:
            assert (a.state, a.on_record, made.volumes()[0].error) == ("serving", True, None)
            a.leave.set()


async def test_a_volume_that_is_being_tried_again_is_detached_once(
    tmp_path: Path, succession: Succession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The try succeeds while a detach waits for it, and a second detach comes."""
    tree = Volumes(cast(Any, FakeKernel()))
    settings = cast(Any, SimpleNamespace(mountpoint="/mnt/x", source_id="main", request_timeout_s=1))
    opens, commits, steps = trio.Event(), trio.Event(), list[Any]()

    async def start(a: Attached) -> None:
        await opens.wait()
        index, journal = SimpleNamespace(flush=commits.wait), SimpleNamespace(commit=commits.wait)
        a.parts = cast(Any, SimpleNamespace(index=index, journal=journal))
        a.ended.set()

    async def detach() -> None:
        steps.extend([step async for step in made.detach("m", force=True)])

    async with trio.open_nursery() as nursery:
        made = Attachments(settings, cast(Any, SimpleNamespace(volumes=tree)), tmp_path, nursery, None, succession)
        monkeypatch.setattr(made, "_start", start)
        monkeypatch.setattr(attachments.building, "attached", lambda *_: SimpleNamespace(source_id="other"))
        a = made._attached["m"] = Attached(RECORD, settings, Volume(1), "unreachable", hung=True)
        monkeypatch.setattr(made, "_hide", lambda _a: None)
        nursery.start_soon(made._try, a)
        await wait_all_tasks_blocked()
        nursery.start_soon(detach)
        await wait_all_tasks_blocked()
        opens.set()
        await wait_all_tasks_blocked()
        assert (a.state, a.parts is not None) == ("detaching", True)
        with pytest.raises(MountError, match="somebody else is detaching it"):
            _ = [step async for step in made.detach("m", force=True)]
        commits.set()
    assert steps[-1].done
    assert not made.volumes()


@pytest.mark.expected_logs("the attached under-store failed")
@pytest.mark.parametrize("state", ["serving", "detaching"])
async def test_a_volume_that_fails_while_it_is_detached_stays_in_the_hands_of_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: Any
) -> None:
    class Life:
        settings = SimpleNamespace(negative_ttl_s=1, read_only=False, source_id="other")

        def __init__(self, *_: Any) -> None:
            pass

        @contextlib.asynccontextmanager
        async def running(self, _build: Any) -> AsyncIterator[Any]:
            idle = SimpleNamespace(forget_all=lambda: None, retire_all_idle=lambda: True)
            yield SimpleNamespace(files=SimpleNamespace(backings=idle), fs=None)
            raise ValueError("it failed")

    tree = Volumes(cast(Any, FakeKernel()))
    parts = cast(Any, SimpleNamespace(volumes=tree, shares=SimpleNamespace(drop=lambda _number: None)))
    settings = cast(Any, SimpleNamespace(mountpoint="/mnt/x", source_id="main", request_timeout_s=1))
    monkeypatch.setattr(attachments, "VolumeLife", Life)
    async with trio.open_nursery() as nursery:
        made = Attachments(settings, parts, tmp_path, nursery)
        made._closing = True
        a = made._attached["m"] = Attached(RECORD, settings, Volume(1), state)
        a.leave.set()
        await nursery.start(made._run, a)
    assert a.error == "it failed in an unexpected way; see the log"
    assert a.state == ("unreachable" if state == "serving" else state)


async def test_what_cannot_be_recorded_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A detach that comes meanwhile would fail for the same reason, and show the volume that has ended."""
    tree = Volumes(cast(Any, FakeKernel()))
    directories = SimpleNamespace(relist=lambda _inode: None)
    tree.main.serve(cast(Any, SimpleNamespace(directories=directories)), negative_ttl_s=1, read_only=False)
    settings = cast(Any, SimpleNamespace(mountpoint="/mnt/x", source_id="main", request_timeout_s=1))
    other = SimpleNamespace(mountpoint="/mnt/x", source_id="other", request_timeout_s=1)
    full = trio.Event()

    async def start(a: Attached) -> None:
        a.parts = cast(Any, SimpleNamespace())
        a.ended.set()

    async def record() -> None:
        await full.wait()
        raise MountError("attached.json: cannot be written")

    async def attach() -> None:
        with pytest.raises(MountError, match="cannot be written"):
            await made.attach(settings, "s3://other", "m", {})

    monkeypatch.setattr(attachments.building, "attached", lambda *_: other)
    monkeypatch.setattr(attachments, "check_places", lambda _settings: None)
    async with trio.open_nursery() as nursery:
        made = Attachments(settings, cast(Any, SimpleNamespace(volumes=tree)), tmp_path, nursery)
        monkeypatch.setattr(made, "_start", start)
        monkeypatch.setattr(made, "_record", record)
        nursery.start_soon(attach)
        await until(lambda: bool(made._attached) and made._attached["m"].hung)
        with pytest.raises(MountError, match="somebody else is attaching it right now"):
            _ = [step async for step in made.detach("m", force=True)]
        full.set()
    assert not made.volumes()
    await tree.attach(Volume(2), "m")  # its name is free
