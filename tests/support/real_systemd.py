"""A systemd of its own, as process 1 of a container: for tests of units. Needs root, systemd, and a mount of cgroup v2.

Its root is a copy-on-write view of this machine's, so that what is installed here is there as well; the network is this
machine's. A directory is shared. Programs run inside by `Machine.run`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

SYSTEMD = "/lib/systemd/systemd"
TARGET = "test.target"
ENTER = r"""
set -e
root=$1 over=$2 shared=$3
mount --make-rprivate /
mount -t tmpfs tmpfs "$over"
mkdir "$over/up" "$over/work"
mount -t overlay overlay -o "lowerdir=/,upperdir=$over/up,workdir=$over/work" "$root"
mount -t tmpfs tmpfs "$root/tmp"
mkdir -p "$root$shared"
mount --bind "$shared" "$root$shared"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs tmpfs "$root/run"
mount --rbind /dev "$root/dev"
rm -rf "$root"/etc/systemd/system/* && : > "$root/etc/fstab"
printf '[Unit]\nRequires=dbus.socket\nAfter=dbus.socket\nDefaultDependencies=no\n' > "$root/etc/systemd/system/test.target"
for unit in systemd-journald.service systemd-journald.socket systemd-udevd.service; do
    ln -s /dev/null "$root/etc/systemd/system/$unit"
done
printf '[Unit]\n' > "$root/etc/systemd/system/network-online.target"
cp -r "$shared/etc/." "$root/etc/"
cp -r "$shared/bin/." "$root/usr/local/bin/"
cd "$root"
mkdir -p old
pivot_root . old
umount -l /old
exec env -i container=test PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --unit=test.target --log-target=console --log-color=no --default-standard-output=inherit
"""


def cgroup_root() -> Path | None:
    """Return where cgroup v2 is mounted."""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, where, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(where)
    return None


def missing() -> str | None:
    """Why no systemd can be started here, or None."""
    if os.geteuid() != 0:
        return "needs root"
    if not Path(SYSTEMD).exists() or shutil.which("unshare") is None or shutil.which("dbus-daemon") is None:
        return "needs systemd, dbus and unshare"
    return None if cgroup_root() else "needs cgroup v2"


class Machine:
    """A container whose process 1 is systemd."""

    def __init__(self, pid: int, log: Path) -> None:
        self._enter = ["nsenter", f"--target={pid}", "--pid", "--mount", "--uts", "--ipc", "--cgroup", "--"]
        self._log = log

    def command(self, command: Sequence[object]) -> list[str]:
        """Return a command that runs another one inside."""
        return [*self._enter, *map(str, command)]

    def run(self, *command: object, check: bool = True, timeout_s: float = 100) -> str:
        """Run a command inside, and return what it writes."""
        done = subprocess.run(
            self.command(command), capture_output=True, text=True, timeout=timeout_s, check=False, stdin=subprocess.DEVNULL
        )
        if check:
            assert done.returncode == 0, f"{command}: {done.returncode}: {done.stderr}\n{self.log()}"
        return done.stdout

    def log(self) -> str:
        """What systemd and its services have written."""
        return self._log.read_text(errors="replace")

    def property(self, unit: str, name: str) -> str:
        """Return a property of a unit."""
        return self.run("systemctl", "show", "--value", "-p", name, unit).strip()


@contextlib.contextmanager
def machine(directory: Path) -> Iterator[Machine]:
    """Start one; ``directory`` is shared with it. What is in ``etc`` and ``bin`` of it goes to /etc and /usr/local/bin."""
    root = cgroup_root()
    assert root is not None
    group = root / f"luxfuse-test-{os.getpid()}"
    group.mkdir()
    for name in ("root", "over"):
        (directory / name).mkdir()
    enter = [
        "unshare",
        "--fork",
        "--kill-child",
        "--pid",
        "--mount",
        "--uts",
        "--ipc",
        "--cgroup",
        "sh",
        "-c",
        ENTER,
        "enter",
    ]
    into = ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', group]
    log = directory / "systemd.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*into, *enter, directory / "root", directory / "over", directory], stdout=out, stderr=out,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    try:
        yield _begun(process, log)
    finally:
        process.kill()  # and so its child, and all in its namespace
        process.wait(60)
        _remove(group)


def _remove(group: Path) -> None:
    """Remove a cgroup and those in it, once their processes are gone."""
    give_up_at = time.monotonic() + 60
    while group.exists():
        for directory, _, _ in os.walk(group, topdown=False):
            with contextlib.suppress(OSError):
                Path(directory).rmdir()
        assert time.monotonic() < give_up_at, f"{group} cannot be removed"
        time.sleep(0.1)


def _begun(process: subprocess.Popen[bytes], log: Path) -> Machine:
    give_up_at = time.monotonic() + 60
    while time.monotonic() < give_up_at and process.poll() is None:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        if children and b"systemd" in Path(f"/proc/{children[0]}/cmdline").read_bytes().split(b"\0")[0]:
            found = Machine(int(children[0]), log)
            with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
                if found.run("systemctl", "is-active", TARGET).strip() == "active":
                    return found
        time.sleep(0.2)
    os.kill(process.pid, signal.SIGKILL)
    raise AssertionError(f"systemd has not begun: {log.read_text(errors='replace')}")
