"""What a program tells of its order: nothing is lost or reordered by it, whatever the daemon does."""

from __future__ import annotations

import copy
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from luxfuse.control.client import DaemonUnreachable
from luxfuse.control.registry import MountRecord
from luxfuse.training import ScheduledSampler, in_order, teller, told
from luxfuse.training.places import Places

MOUNTPOINT = "/mnt/bucket"


class Daemon:
    """Takes what a client tells it, as far as it has room."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, room: int = 8192) -> None:
        self.names: list[str] = []
        self.positions: list[int | None] = []
        self.room = room
        self.begun = self.ended = 0
        self.windows: list[int | None] = []
        self.fails = 0
        self.record: MountRecord | None = MountRecord(
            mountpoint=MOUNTPOINT, source="s3://bucket", pid=1, version="", started_at=0.0, directory="/nowhere", alive=True
        )
        monkeypatch.setattr(teller, "ControlClient", lambda *_, **__: self)
        monkeypatch.setattr("luxfuse.training.places.registry.find", lambda *_: self.record)
        monkeypatch.setattr(teller, "AGAIN_S", 0.0)

    def begin_schedule(self, path: str, window_bytes: int | None) -> Iterator[dict[str, Any]]:
        self.names, self.positions = [], []
        self.begun += 1
        self.windows.append(window_bytes)
        try:
            yield {"schedule": self.begun, "room": self.room}
        finally:
            self.ended += 1

    def tell(self, schedule: int, paths: list[str], position: int | None) -> int:
        assert schedule == self.begun
        if self.fails:
            self.fails -= 1
            raise DaemonUnreachable("the daemon broke off")
        self.names += paths
        self.positions.append(position)
        if position is None:
            return self.room
        return max(0, self.room - (len(self.names) - position))


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Daemon:
    return Daemon(monkeypatch)


def paths(count: int) -> list[str]:
    return [f"{MOUNTPOINT}/d{n % 7}/{n:05}.jpg" for n in range(count)]


def inside(names: list[str]) -> list[str]:
    return [name.removeprefix(MOUNTPOINT + "/") for name in names]


def test_all_is_handed_out_in_order_and_told_before(daemon: Daemon) -> None:
    names = paths(3000)
    random.Random(1).shuffle(names)
    for number, name in enumerate(in_order(names, window_bytes=77)):
        assert name == names[number]
        assert len(daemon.names) >= min(number + 100, 3000)
        assert number - teller.EVERY <= (daemon.positions[-1] or 0) <= number
    assert daemon.names == inside(names)
    assert daemon.positions == sorted(daemon.positions, key=lambda p: p or 0)
    assert (daemon.begun, daemon.ended, daemon.windows) == (1, 1, [77])


def test_an_order_of_any_length_takes_no_more_memory(daemon: Daemon) -> None:
    taken = 0

    class Everything:
        def __iter__(self) -> Iterator[int]:
            nonlocal taken
            while taken < 10_000_000:
                taken += 1
                yield taken

        def __len__(self) -> int:
            return 10_000_000

    sampler = ScheduledSampler(Everything(), lambda number: f"{MOUNTPOINT}/{number}")
    for given, number in enumerate(iter(sampler), 1):
        assert number == given
        assert taken - given <= daemon.room + teller.AT_ONCE
        if given == 20_000:
            break


def test_samplers_of_pytorch_are_wrapped_as_they_are(daemon: Daemon) -> None:
    class Distributed:
        epoch = 0
        rank = 3

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

        def __iter__(self) -> Iterator[int]:
            order = list(range(100))
            random.Random(self.epoch).shuffle(order)
            return iter(order[1::2])

        def __len__(self) -> int:
            return 50

    plain, files = Distributed(), paths(100)
    sampler = ScheduledSampler(plain, files)
    assert len(sampler) == 50
    assert sampler.rank == 3
    for epoch in range(3):
        sampler.set_epoch(epoch)
        assert list(sampler) == list(plain)
        assert daemon.names == inside([files[number] for number in plain])
    assert copy.copy(sampler).rank == 3
    with pytest.raises(AttributeError):
        sampler.nothing  # noqa: B018 (it is asked for)


def test_batches_and_samples_of_several_files(daemon: Daemon) -> None:
    class Batches:
        def __iter__(self) -> Iterator[list[int]]:
            yield from ([n, n + 1] for n in range(0, 10, 2))

        def __len__(self) -> int:
            return 5

    def files(number: int) -> list[str]:
        return [f"{MOUNTPOINT}/{number}.jpg", f"{MOUNTPOINT}/{number}.png"]

    assert list(ScheduledSampler(Batches(), files)) == list(Batches())
    assert daemon.names == [f"{n}.{kind}" for n in range(10) for kind in ("jpg", "png")]
    assert (daemon.positions[0], daemon.positions[-1]) == (0, 20)


def test_a_daemon_that_is_gone_for_a_while_is_told_anew(daemon: Daemon, caplog: pytest.LogCaptureFixture) -> None:
    names = paths(2000)
    given = []
    for number, name in enumerate(in_order(names)):
        given.append(name)
        if number == 500:
            daemon.fails = 2
    assert given == names
    assert daemon.begun == 3
    assert daemon.names[-1] == inside(names)[-1]
    assert len(set(daemon.names)) == len(daemon.names)
    assert [record.message for record in caplog.records] == ["files are not fetched ahead: the daemon broke off"]
    caplog.clear()


@pytest.mark.parametrize("record", [None, "dead"])
def test_without_a_mount_all_goes_on(daemon: Daemon, caplog: pytest.LogCaptureFixture, record: str | None) -> None:
    assert daemon.record is not None
    daemon.record = None if record is None else MountRecord(**{**_fields(daemon.record), "alive": False})
    assert list(in_order(paths(500))) == paths(500)
    assert len(caplog.records) == 1
    assert ("is in no luxfuse mount" in caplog.text) == (record is None)
    assert daemon.begun == 0
    caplog.clear()


def _fields(record: MountRecord) -> dict[str, Any]:
    return {name: getattr(record, name) for name in record.__struct_fields__}


def test_what_others_read_is_told_as_far_as_there_is_room(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luxfuse.training.telling.TELL_S", 0.001)
    names = paths(3000)
    with told(names, range(2999, -1, -1)):
        _until(lambda: len(daemon.names) == 3000)
        assert daemon.ended == 0
    assert daemon.names == inside(names)[::-1]
    assert set(daemon.positions) == {None}
    assert daemon.ended == 1
    with pytest.raises(TypeError, match="order"), told(lambda n: names[n]):
        pass


class Numbers:
    """A sampler of so many samples."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.count))

    def __len__(self) -> int:
        return self.count


def entered(*arguments: Any, **options: Any) -> None:
    """Enter `told`, and leave it."""
    with told(*arguments, **options):
        pass


@pytest.mark.parametrize("use", [in_order, entered, lambda given: ScheduledSampler(Numbers(3), given)])
@pytest.mark.parametrize(("given", "line"), [
    ("abc", "paths: 'abc' is one path; give a list of them"),
    (Path("/a"), "paths: PosixPath('/a') is one path; give a list of them"),
])  # fmt: skip
def test_one_path_is_no_list_of_its_letters(daemon: Daemon, use: Any, given: Any, line: str) -> None:
    with pytest.raises(TypeError, match=f"^{re.escape(line)}$"):
        use(given)
    assert daemon.begun == 0


@pytest.mark.parametrize("window", [-3, 0, 1e9, True, "1GiB", 1 << 70])
def test_a_window_that_is_none_is_refused_at_once(daemon: Daemon, window: Any) -> None:
    for use in (in_order, entered, lambda names, **more: ScheduledSampler(Numbers(3), names, **more)):
        with pytest.raises(ValueError, match=r"^window_bytes: .* is no whole number of bytes above 0$"):
            use(paths(3), window_bytes=window)  # type: ignore[operator]
    assert daemon.begun == daemon.ended == 0


def test_a_sample_without_a_path_is_named(daemon: Daemon) -> None:
    with pytest.raises(IndexError, match=r"^paths: there are 300, none of them for sample 300$"):
        list(ScheduledSampler(Numbers(500), paths(300)))
    with pytest.raises(IndexError, match=r"^paths: there are 3, none of them for sample 7$"), told(paths(3), [0, 7]):
        pass
    with pytest.raises(TypeError, match=r"^paths: 'a' is no number of a sample$"), told(paths(3), "abc"):  # type: ignore[arg-type]
        pass
    with pytest.raises(TypeError, match=r"^paths: 7 is no path$"):
        list(in_order([*paths(3), 7]))  # type: ignore[list-item]
    with pytest.raises(
        TypeError, match=r"^paths: of a set no path can be asked by its number; give a list, or a function$"
    ):
        ScheduledSampler(Numbers(3), set(paths(3)))  # type: ignore[arg-type]
    assert daemon.begun == daemon.ended, "the daemon was told of the end"


def test_an_order_that_fails_later_is_told_in_the_log(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The program reads by itself: it goes on."""
    monkeypatch.setattr("luxfuse.training.telling.TELL_S", 0.001)
    with told(paths(2000), [*range(2000), 7000]):
        _until(lambda: caplog.records)
    (record,) = caplog.records
    assert record.getMessage() == "files are not fetched ahead any more"
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "paths: there are 2000, none of them for sample 7000"
    assert isinstance(record.exc_info[1], IndexError)
    assert daemon.ended == 1
    caplog.clear()


def _until(condition: Any) -> None:
    import time

    give_up_at = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < give_up_at
        time.sleep(0.001)


def test_a_process_that_is_forked_tells_nothing(daemon: Daemon) -> None:
    names = iter(in_order(paths(1000)))
    next(names)
    told_before = len(daemon.names)
    pid = os.fork()
    if pid == 0:
        rest = list(names)
        os._exit(0 if len(rest) == 999 and len(daemon.names) == told_before else 1)
    assert os.waitpid(pid, 0)[1] == 0


def test_odd_paths(daemon: Daemon, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(MOUNTPOINT)
    places = Places()
    places.find(f"{MOUNTPOINT}/a/b")
    for spelled, name in {
        f"{MOUNTPOINT}/a/b": "a/b", f"{MOUNTPOINT}/a//b": "a/b", f"{MOUNTPOINT}/a/../b": "b", f"{link}/a/b": "a/b",
        f"{link}/c": "c", "/mnt/bucket2/a": "", "/elsewhere": "", MOUNTPOINT: "", f"{MOUNTPOINT}/\udcff": "",
        f"{MOUNTPOINT}/a\0": "", f"{MOUNTPOINT}/d/": "d",
    }.items():  # fmt: skip
        assert places.inside(spelled) == name, spelled


def test_torch_is_not_imported_and_nothing_heavy_is() -> None:
    program = (
        "import sys, luxfuse.training\n"
        "heavy = {'torch', 'numpy', 'trio', 'pyfuse3', 'lmdb', 'fsspec', 'obstore', 'botocore', 'typer', 'h11'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"
