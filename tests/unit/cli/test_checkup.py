"""What each check of ``luxfuse doctor`` says where something is not well, with a machine and disks that are made up."""

from __future__ import annotations

import importlib
import importlib.util
import os
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from luxfuse.cli.checkup import disks, machine, network
from luxfuse.cli.checkup.findings import Finding
from luxfuse.configuration import building
from luxfuse.errors import MountError
from luxfuse.fuse.mountpoint import MountInfo
from tests.support.front import Answer, certificate_authority, front
from tests.unit.cli.test_doctor import endpoint, states

Patch = pytest.MonkeyPatch
Change = Callable[[Patch], None]
MIB = 1 << 20


def look(check: Callable[[], Iterator[Finding]], name: str) -> Finding:
    """The worst finding of a name; all findings that are not well say what to do."""
    found = list(check())
    worst = states(found)[name]
    return next(finding for finding in found if (finding.name, finding.state) == (name, worst))


# -- the machine


def linux(release: str) -> Change:
    return lambda patch: patch.setattr(machine.os, "uname", lambda: SimpleNamespace(sysname="Linux", release=release))


def user(number: int) -> Change:
    return lambda patch: patch.setattr(machine.os, "geteuid", lambda: number)


def limited(hard: int) -> Change:
    return lambda patch: patch.setattr(machine.resource, "getrlimit", lambda _: (1024, hard))


def capabilities(mask: int) -> Change:
    return lambda patch: patch.setattr(machine, "_effective_capabilities", lambda _status: mask)


def mounting(offered: bool | Exception) -> Change:
    def try_mount(**_: object) -> tuple[str, bool]:
        if isinstance(offered, Exception):
            raise offered
        return "7.40", offered

    return lambda patch: patch.setattr("luxfuse.fuse.trial.try_mount", try_mount)


def without(module: str, *, built: bool = True) -> Change:
    """A part in C cannot be loaded, or is not there."""

    def change(patch: Patch) -> None:
        load, find = importlib.import_module, importlib.util.find_spec

        def refuse(name: str) -> Any:
            if name == module:
                raise ImportError("libcurl.so.4: cannot open shared object file")
            return load(name)

        patch.setattr(machine.importlib, "import_module", refuse)
        patch.setattr(
            machine.importlib.util, "find_spec", lambda name: None if name == module and not built else find(name)
        )

    return change


def having(module: str) -> Change:
    def change(patch: Patch) -> None:
        load, find = importlib.import_module, importlib.util.find_spec
        patch.setattr(machine.importlib, "import_module", lambda name: None if name == module else load(name))
        patch.setattr(machine.importlib.util, "find_spec", lambda name: object() if name == module else find(name))

    return change


LOWLEVEL, GETS = "luxfuse.fuse.lowlevel", "luxfuse.understore.gets._gets"


@pytest.mark.parametrize(
    ("changes", "name", "state", "said"),
    [
        ([linux("6.9.0")], "kernel", "ok", "Linux 6.9.0"),
        ([linux("6.8.12")], "kernel", "warn", "a mount ends with its daemon"),
        ([linux("odd")], "kernel", "warn", "no passthrough"),
        ([having(GETS)], "extension", "ok", "built with libcurl"),
        ([without(LOWLEVEL)], "extension", "FAIL", "the part in C cannot be loaded: libcurl.so.4"),
        ([having(GETS), without(GETS)], "extension", "warn", "requests in C cannot be used: libcurl.so.4"),
        ([without(GETS, built=False)], "extension", "warn", "built without libcurl"),
        ([user(0), capabilities(1 << 21)], "privileges", "ok", "root: may mount"),
        ([user(0), capabilities((1 << 40) - 1 - (1 << 21))], "privileges", "FAIL", "root without CAP_SYS_ADMIN"),
        ([capabilities(1 << 24), limited(20_000)], "open files", "ok", "which the daemon raises"),
        ([user(0), capabilities(1 << 21), limited(20_000)], "open files", "warn", "at most 20000"),
        ([mounting(True)], "mounting", "ok", "FUSE 7.40"),
        ([mounting(MountError("mount: Operation not permitted"))], "mounting", "FAIL", "mount: Operation not permitted"),
        ([mounting(OSError(28, "No space left on device"))], "mounting", "FAIL", "No space left on device"),
        ([user(0), mounting(True)], "passthrough", "ok", "the kernel reads cached files itself"),
        ([user(1000), mounting(True)], "passthrough", "warn", "for root only"),
        ([linux("6.9.1"), mounting(False)], "passthrough", "warn", "built without it"),
        ([linux("6.1.0"), mounting(False)], "passthrough", "warn", "too old for it"),
        ([user(0), linux("6.9.0")], "keeper", "ok", "has a successor"),
        ([user(1000), linux("6.9.0")], "keeper", "ok", "only mounts of root have one"),
        ([user(0), linux("6.8.0")], "keeper", "ok", "Linux 6.8.0 does not send requests again"),
    ],
)
def test_a_machine(monkeypatch: Patch, changes: list[Change], name: str, state: str, said: str) -> None:
    for change in [mounting(True), *changes]:
        change(monkeypatch)
    found = look(lambda: machine.check_machine(allow_other=False, want_passthrough=True, want_keeper=True), name)
    assert (found.state, said in found.text) == (state, True), found


def test_what_is_switched_off_is_no_fault(monkeypatch: Patch) -> None:
    mounting(False)(monkeypatch)
    check = lambda: machine.check_machine(allow_other=False, want_passthrough=False, want_keeper=False)  # noqa: E731
    for name in ("passthrough", "keeper"):
        found = look(check, name)
        assert (found.state, "switched off by the settings" in found.text) == ("ok", True)


def test_what_root_may_is_read_from_its_status() -> None:
    assert machine._effective_capabilities("CapPrm:\t0000000000000000\nCapEff:\t0000000000200000\n") == 1 << 21
    assert machine._effective_capabilities("Name:\tpython\n") == 0


def test_a_unit_of_systemd_is_named(monkeypatch: Patch, tmp_path: Path) -> None:
    unit = tmp_path / "luxfuse@.service"
    monkeypatch.setattr(machine, "_UNITS", (tmp_path / "none", unit))
    monkeypatch.setattr(machine, "_SYSTEMD", tmp_path)
    assert "no unit of systemd" in machine.check_keeping("6.9.0", wanted=True).text
    unit.touch()
    assert f"systemd mounts at boot ({unit})" in machine.check_keeping("6.9.0", wanted=True).text


# -- disks


def disk(fstype: str, *options: str) -> Change:
    return lambda patch: patch.setattr(
        disks.mounts, "read_mounts", lambda: [MountInfo("/", fstype, "dev", "8:1", options or ("rw",))]
    )


def room(free: int, inodes: int = 1 << 20) -> Change:
    found = SimpleNamespace(f_bavail=free, f_frsize=1, f_blocks=100 << 30, f_files=1 << 20, f_favail=inodes)
    return lambda patch: patch.setattr(disks.os, "statvfs", lambda _path: found)


def clock(step_s: float) -> Change:
    """Each look at the clock takes so long, and nothing else does."""
    ticks = count()
    stepping = SimpleNamespace(perf_counter=lambda: next(ticks) * step_s)
    return lambda patch: patch.setattr(disks, "time", stepping)


def corrupt(patch: Patch) -> None:
    sync = os.fsync

    def scribble(fd: int) -> None:
        os.pwrite(fd, bytes(4096), 0)
        sync(fd)

    patch.setattr(disks.os, "fsync", scribble)


@pytest.mark.parametrize(
    ("change", "name", "state", "said"),
    [
        (disk("ext4"), "cache", "ok", "on ext4"),
        (disk("nfs4"), "cache", "warn", "on nfs4: a network disk"),
        (disk("fuse.sshfs"), "cache", "warn", "on fuse.sshfs: a network disk"),
        (disk("nfs4"), "state", "FAIL", "locks and shared memory may not work there"),
        (disk("tmpfs"), "cache", "warn", "on tmpfs: what is cached is gone after a restart"),
        (disk("tmpfs"), "state", "warn", "changes not uploaded among it"),
        (disk("overlay"), "cache", "warn", "on overlay: goes with the container"),
        (disk("overlay"), "state", "ok", "on overlay"),
        (disk("fuse.luxfuse"), "cache", "FAIL", "is on a luxfuse mount"),
        (disk("fuse.luxfuse"), "state", "FAIL", "is on a luxfuse mount"),
        (disk("ext4", "ro", "noatime"), "cache", "FAIL", "mounted read-only"),
        (room(50 << 30), "cache room", "ok", "50.0 GiB free of 100.0 GiB, of which 10.0 GiB stay free"),
        (room(10 << 30), "cache room", "FAIL", "10.0 GiB free of 100.0 GiB, of which 10.0 GiB stay free"),
        (room((10 << 30) + 100 * MIB), "cache room", "warn", "10.1 GiB free"),
        (room(20 << 30), "cache room", "warn", "the cache may have 30.0 GiB"),
        (room(50 << 30, inodes=999), "cache room", "FAIL", "999 inodes are left"),
        (clock(1e-6), "cache speed", "ok", "a small file is safe in 0.0 ms"),
        (clock(0.2), "cache speed", "warn", "a small file is safe in 200.0 ms"),
        (corrupt, "cache speed", "FAIL", "what was read is not what was written"),
    ],
)
def test_a_disk(monkeypatch: Patch, tmp_path: Path, change: Change, name: str, state: str, said: str) -> None:
    monkeypatch.setattr(disks, "SAMPLE_MIB", 1)
    for each in (disk("ext4"), room(50 << 30), clock(1e-6), change):
        each(monkeypatch)
    settings = building.build(
        {"source": "s3://b", "mountpoint": "/m", "cache_dir": [f"{tmp_path}/cache,size=30GiB"]},
        {"LUXFUSE_STATE_DIR": f"{tmp_path}/state"},
    )
    found = look(lambda: disks.check_disks(settings), name)
    assert (found.state, said in found.text) == (state, True), found
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == [], "nothing is left of it"


# -- the network


def test_a_store_that_is_far(monkeypatch: Patch) -> None:
    ticks = count()
    stepping = SimpleNamespace(perf_counter=lambda: next(ticks) * 0.4, time=time.time)
    monkeypatch.setattr(network, "time", stepping)
    with front("http://127.0.0.1:9", lambda _: Answer(403)) as url:
        found = look(lambda: network.check_network(endpoint(url)), "http")
    assert (found.state, "400.0 ms a request (400.0 to 400.0)" in found.text) == ("warn", True), found
    assert "luxfuse load" in found.advice


def test_a_certificate_that_is_good_for_long(monkeypatch: Patch, tmp_path: Path) -> None:
    authority = certificate_authority(tmp_path, "ours")
    for least_s, state, said in ((60.0, "ok", "the certificate is good for"), (3e9, "warn", "the certificate expires in")):
        monkeypatch.setattr(network, "EXPIRES_SOON_S", least_s)
        with front("http://127.0.0.1:9", lambda _: Answer(403), authority.server) as url:
            found = look(lambda url=url: network.check_network(endpoint(url, verify=authority.bundle)), "tls")
        assert (found.state, said in found.text) == (state, True), found
