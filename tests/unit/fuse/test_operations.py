"""What the handlers make of requests and of errors, without a kernel."""

from __future__ import annotations

import errno
import os
import stat as modes
from types import SimpleNamespace
from typing import Any

import pytest

from luxfuse.errors import AccessDenied, LuxError, StoreUnavailable, Unforeseen
from luxfuse.fuse.attributes import changes_of, ref_of, to_kernel, without_set_ids
from luxfuse.fuse.lowlevel import passthrough, pyfuse3
from luxfuse.fuse.operations import Operations
from luxfuse.vfs.attributes import AttributeChanges, Caller, Stat
from luxfuse.vfs.errors import NotPermitted
from luxfuse.vfs.kernel import NoKernel, Ref
from luxfuse.vfs.volumes import Volume, Volumes

CONTEXT = SimpleNamespace(uid=1000, gid=100, pid=7, umask=0o022)
CALLER = Caller(uid=1000, gid=100, pid=7, umask=0o022)
FAST = passthrough.MARK | passthrough.MARK_FAST
STAT = Stat(
    inode=9,
    mode=modes.S_IFREG | 0o6755,
    size=1000,
    uid=1,
    gid=2,
    mtime_ns=-1,
    ttl_s=60.0,
    atime_ns=1_500_000_000,
    ctime_ns=3,
    blocks=8,
    nlink=0,
    rdev=5,
)


def failing(code: int) -> LuxError:
    error = LuxError("refused")
    error.errno = code
    return error


class Recorder:
    """A file system that notes what it is asked and gives a prepared answer, or raises it; its parts do the same."""

    def __init__(self, answer: Any = None) -> None:
        self.answer = answer
        self.asked: list[tuple[Any, ...]] = []
        self.directories, self.xattrs = Part(self, "directories"), Part(self, "xattrs")
        self.namespace = SimpleNamespace(places=SimpleNamespace(place_of=lambda _inode: None))  # nothing is offered

    def __getattr__(self, name: str) -> Any:
        async def method(*args: Any) -> Any:
            self.asked.append((name, *args))
            if name == "getattr":
                return STAT
            if isinstance(self.answer, Exception):
                raise self.answer
            return self.answer

        return method


class Part:
    """A part of the recorder, which notes its name before that of the method."""

    def __init__(self, recorder: Recorder, name: str) -> None:
        self._recorder = recorder
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return getattr(self._recorder, f"{self._name}.{name}")


def made(answer: Any = None, *, read_only: bool = False) -> tuple[Operations, Recorder]:
    fs = Recorder(answer)
    volumes = Volumes(NoKernel())
    volumes.main.serve(fs, negative_ttl_s=5.0, read_only=False)  # type: ignore[arg-type]
    return Operations(volumes, read_only=read_only), fs


FIELDS = tuple(f"update_{name}" for name in ("mode", "uid", "gid", "size", "atime", "mtime", "ctime"))
CHANGES: dict[str, tuple[Any, ...]] = {
    "create": (1, b"a", modes.S_IFREG | 0o4640, os.O_RDWR, CONTEXT),
    "write": (3, 10, b"data"),
    "fallocate": (FAST | 9, 0, 10, 20),
    "setattr": (9, pyfuse3.EntryAttributes(), SimpleNamespace(**dict.fromkeys(FIELDS, True)), 3, CONTEXT),
    "mkdir": (1, b"a", modes.S_IFDIR | 0o1777, CONTEXT),
    "mknod": (1, b"a", modes.S_IFIFO | 0o644, 0, CONTEXT),
    "symlink": (1, b"a", b"../target", CONTEXT),
    "link": (9, 1, b"a", CONTEXT),
    "unlink": (1, b"a", CONTEXT),
    "rmdir": (1, b"a", CONTEXT),
    "rename": (1, b"a", 2, b"b", 1, CONTEXT),
    "setxattr": (9, b"user.a", b"value", CONTEXT),
    "removexattr": (9, b"user.a", CONTEXT),
}


OF_PARTS = {"setxattr": "xattrs.set", "removexattr": "xattrs.remove"}


@pytest.mark.parametrize("name", CHANGES)
async def test_a_read_only_mount_refuses_every_change(name: str) -> None:
    operations, fs = made(STAT, read_only=True)
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await getattr(operations, name)(*CHANGES[name])
    assert caught.value.errno == errno.EROFS
    assert fs.asked == []


@pytest.mark.parametrize("name", sorted(CHANGES.keys() - {"create", "write"}))
async def test_changes_of_names_and_attributes_are_not_interrupted(name: str) -> None:
    class NoInterrupts:
        async def run_handler(self, handler: Any, *, closing: bool) -> Any:
            pytest.fail(f"{name} could be given up half done")

    operations, fs = made(STAT)
    operations.interrupts = NoInterrupts()  # type: ignore[assignment]
    await getattr(operations, name)(*CHANGES[name])
    assert OF_PARTS.get(name, name) in {asked[0] for asked in fs.asked}


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR, os.O_TRUNC, os.O_WRONLY | os.O_APPEND])
async def test_a_read_only_mount_opens_nothing_for_writing(flags: int) -> None:
    operations, fs = made(3, read_only=True)
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await operations.open(9, flags, CONTEXT)
    assert caught.value.errno == errno.EROFS
    assert (await operations.open(9, os.O_RDONLY | os.O_APPEND, CONTEXT)).fh
    assert [asked[0] for asked in fs.asked] == ["open"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("write", ("write", Ref(None, 3), 10, b"data")),
        ("fallocate", ("fallocate", Ref(9, None), 0, 10, 20)),
        ("mkdir", ("mkdir", 1, b"a", 0o1777, CALLER)),
        ("mknod", ("mknod", 1, b"a", modes.S_IFIFO | 0o644, 0, CALLER)),
        ("symlink", ("symlink", 1, b"a", b"../target", CALLER)),
        ("unlink", ("unlink", 1, b"a")),
        ("rmdir", ("rmdir", 1, b"a")),
        ("rename", ("rename", 1, b"a", 2, b"b", 1)),
        ("setxattr", ("xattrs.set", 9, b"user.a", b"value")),
        ("removexattr", ("xattrs.remove", 9, b"user.a")),
    ],
)
async def test_what_is_asked_of_the_file_system(name: str, expected: tuple[Any, ...]) -> None:
    operations, fs = made(STAT)
    await getattr(operations, name)(*CHANGES[name])
    assert fs.asked == [expected]


async def test_handles_of_files() -> None:
    operations, fs = made()
    for fh, ref in ((FAST | passthrough.MARK_WRITE | 77, Ref(77, None)), (passthrough.MARK | 5, Ref(None, 5))):
        assert ref_of(fh) == ref
        await operations.read(fh, 0, 10)
        await operations.flush(fh)
        await operations.fsync(fh, True)
        await operations.release(fh)
        assert fs.asked == [("read", ref, 0, 10), ("flush", ref), ("fsync", ref, True), ("release", ref)]
        fs.asked.clear()


@pytest.mark.parametrize(
    ("handle", "flags", "expected"),
    [
        (FAST | 9, os.O_RDONLY, FAST | 9),
        (FAST | passthrough.MARK_WRITE | 9, os.O_RDWR, FAST | passthrough.MARK_WRITE | 9),
        (3, os.O_RDONLY, passthrough.MARK | passthrough.MARK_NOFLUSH | 3),
        (3, os.O_RDONLY | os.O_TRUNC, passthrough.MARK | 3),
        (3, os.O_WRONLY, passthrough.MARK | 3),
        (3, os.O_RDWR | os.O_APPEND, passthrough.MARK | 3),
    ],
)
async def test_marks_of_opens(handle: int, flags: int, expected: int) -> None:
    operations, fs = made(handle)
    info = await operations.open(9, flags, CONTEXT)
    assert info.fh == expected
    assert info.keep_cache
    assert fs.asked == [("open", 9, flags, CALLER)]


async def test_a_volume_with_a_number_that_comes_again_is_shown_no_old_pages() -> None:
    volumes = Volumes(NoKernel())
    kept = []
    for number in (1, 2, 1):
        volume = Volume(number)
        volume.serve(Recorder(3), negative_ttl_s=5.0, read_only=False)  # type: ignore[arg-type]
        await volumes.attach(volume, "m")
        for _ in range(2):
            info = await Operations(volumes, read_only=False).open(volume.base | 9, os.O_RDONLY, CONTEXT)
            kept.append(info.keep_cache)
        volumes.detach(volume)
    assert kept == [True, True, True, True, False, False]


async def test_create() -> None:
    operations, fs = made((3, STAT))
    info, entry = await operations.create(1, b"a", modes.S_IFREG | 0o4640, os.O_RDONLY | os.O_CREAT, CONTEXT)
    assert info.fh == passthrough.MARK | passthrough.MARK_NOFLUSH | 3
    assert entry.st_ino == 9
    assert fs.asked == [("create", 1, b"a", 0o4640, os.O_RDONLY | os.O_CREAT, CALLER)]


async def test_directories_are_synced_by_inode() -> None:
    operations, fs = made((4, False))
    fs.directories.streams = lambda handle: False  # type: ignore[attr-defined]
    fs.directories.close = lambda handle: fs.asked.append(("directories.close", handle))  # type: ignore[attr-defined]
    fh = await operations.opendir(9, CONTEXT)
    await operations.fsyncdir(fh, False)
    await operations.releasedir(fh)
    assert fs.asked == [("directories.open", 9, False), ("fsyncdir", 9), ("directories.close", 4)]
    await operations.fsyncdir(fh, False)
    assert len(fs.asked) == 3
    assert not operations._directories


def test_attributes_to_the_kernel() -> None:
    entry = to_kernel(STAT)
    assert (entry.st_ino, entry.st_mode, entry.st_size, entry.st_uid, entry.st_gid) == (9, STAT.mode, 1000, 1, 2)
    assert (entry.st_blocks, entry.st_nlink, entry.st_rdev, entry.st_blksize) == (8, 0, 5, 4096)
    assert (entry.st_mtime_ns, entry.st_atime_ns, entry.st_ctime_ns) == (-1, 1_500_000_000, 3)
    assert (entry.entry_timeout, entry.attr_timeout) == (60.0, 60.0)
    changing = Stat(**{name: getattr(STAT, name) for name in STAT.__struct_fields__} | {"changing": True})
    assert (to_kernel(changing).entry_timeout, to_kernel(changing).attr_timeout) == (60.0, 0)


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("mode", AttributeChanges(mode=0o4755)),
        ("uid", AttributeChanges(uid=11)),
        ("gid", AttributeChanges(gid=12)),
        ("size", AttributeChanges(size=13)),
        ("atime", AttributeChanges(atime_ns=1_000_000_014)),
        ("mtime", AttributeChanges(mtime_ns=-15)),
    ],
)
def test_changes_of_attributes(field: str, expected: AttributeChanges) -> None:
    attr = pyfuse3.EntryAttributes()
    attr.st_mode, attr.st_uid, attr.st_gid, attr.st_size = modes.S_IFREG | 0o4755, 11, 12, 13
    attr.st_atime_ns, attr.st_mtime_ns = 1_000_000_014, -15
    fields = SimpleNamespace(**{name: name == f"update_{field}" for name in FIELDS})
    assert changes_of(attr, fields) == expected


@pytest.mark.parametrize(
    ("before", "changes", "after"),
    [
        (0o6755, AttributeChanges(size=1), AttributeChanges(size=1, mode=0o755)),
        (0o6745, AttributeChanges(), AttributeChanges(mode=0o2745)),
        (0o755, AttributeChanges(uid=1), AttributeChanges(uid=1)),
        (0o755, AttributeChanges(mode=0o4711), AttributeChanges(mode=0o711)),
        (0o4755, AttributeChanges(mode=0o711), AttributeChanges(mode=0o711)),
    ],
)
def test_set_id_bits_are_lost(before: int, changes: AttributeChanges, after: AttributeChanges) -> None:
    now = Stat(**{name: getattr(STAT, name) for name in STAT.__struct_fields__} | {"mode": modes.S_IFREG | before})
    assert without_set_ids(changes, now) == after


@pytest.mark.parametrize(
    "code",
    [
        *(errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY, errno.EPERM, errno.ENODATA, errno.ESTALE, errno.ENOTDIR),
        *(errno.EISDIR, errno.EINVAL, errno.ENAMETOOLONG, errno.EXDEV, errno.ERANGE, errno.EOPNOTSUPP, errno.EROFS),
    ],
)
async def test_what_programs_provoke_is_no_error_of_ours(code: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "luxfuse")
    operations, _ = made(failing(code))
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await operations.unlink(1, b"a", CONTEXT)
    assert caught.value.errno == code
    assert operations.errors == operations.refusals == 0
    assert not caplog.records


@pytest.mark.parametrize(
    ("error", "code", "foreseen"),
    [
        (StoreUnavailable("down"), errno.EIO, True),
        (AccessDenied("no"), errno.EACCES, True),
        (failing(errno.ENOSPC), errno.ENOSPC, True),
        pytest.param(OSError(errno.ENOSPC, "full"), errno.ENOSPC, True, marks=pytest.mark.expected_logs("write: .*full")),
        pytest.param(OSError(errno.EIO, "sick"), errno.EIO, True, marks=pytest.mark.expected_logs("write: .*sick")),
        pytest.param(OSError(errno.ENOENT, "gone"), errno.EIO, True, marks=pytest.mark.expected_logs("write: .*gone")),
        pytest.param(OSError(errno.EROFS, "read"), errno.EIO, True, marks=pytest.mark.expected_logs("write: .*read")),
        pytest.param(OSError("odd"), errno.EIO, False, marks=pytest.mark.expected_logs("write: odd")),
        pytest.param(OSError(errno.EBADF, "x"), errno.EBADF, False, marks=pytest.mark.expected_logs("write: .*x")),
        (Unforeseen("internal error while fetching: KeyError"), errno.EIO, False),
        pytest.param(KeyError("a"), errno.EIO, False, marks=pytest.mark.expected_logs("failed in an unexpected way")),
    ],
)
async def test_what_fails_is_counted_as_foreseen_or_not(error: Exception, code: int, foreseen: bool) -> None:
    operations, _ = made(error)
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await operations.write(3, 0, b"a")
    assert caught.value.errno == code
    assert (operations.errors, operations.refusals) == ((0, 1) if foreseen else (1, 0))


async def test_what_the_cache_cannot_do_is_no_failure() -> None:
    operations, _ = made(OSError(errno.EOPNOTSUPP, "not supported"))
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await operations.fallocate(3, 3, 0, 10)
    assert caught.value.errno == errno.EOPNOTSUPP
    assert operations.errors == 0


async def test_a_hard_link_is_refused_where_the_mount_refuses_it() -> None:
    operations, fs = made(NotPermitted("an object has one name"))
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await operations.link(*CHANGES["link"])
    assert caught.value.errno == errno.EPERM
    assert [asked[:4] for asked in fs.asked] == [("link", 9, 1, b"a")]


async def test_there_are_no_file_capabilities() -> None:
    operations, fs = made()
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await operations.setxattr(9, b"security.capability", b"x", CONTEXT)
    assert caught.value.errno == errno.EOPNOTSUPP
    assert fs.asked == []


async def test_set_id_bits_go_with_an_open_that_truncates() -> None:
    operations, fs = made(3)
    await operations.open(9, os.O_WRONLY | os.O_TRUNC | passthrough.FLAG_KILL_SUIDGID, CONTEXT)
    assert fs.asked == [
        ("getattr", 9),
        ("setattr", 9, AttributeChanges(mode=0o755), None, CALLER),
        ("open", 9, os.O_WRONLY | os.O_TRUNC, CALLER),
    ]


async def test_statfs_shows_a_pebibyte_of_free_space() -> None:
    operations, _ = made()
    shown = await operations.statfs(CONTEXT)
    assert shown.f_frsize * shown.f_bavail == shown.f_frsize * shown.f_bfree == 1 << 50
