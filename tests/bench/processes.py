"""Running commands that may hang, and freeing mounts that do."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

CONNECTIONS = Path("/sys/fs/fuse/connections")


class Failed(Exception):
    """A system could not do what was asked of it; the text goes into the table."""


class TooSlow(Failed):
    """A command did not end in its time."""

    def __init__(self, timeout_s: float) -> None:
        super().__init__(f"> {timeout_s:g} s")
        self.timeout_s = timeout_s


def run(command: list[str], *, timeout_s: float, env: dict[str, str] | None = None, cwd: Path | None = None) -> str:
    """The command's stdout; its whole process group is killed when the time is up."""
    process = subprocess.Popen(
        command, env=env, cwd=cwd, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    try:
        out, err = process.communicate(timeout=timeout_s)
    except BaseException as error:
        kill_group(process.pid)
        try:
            process.communicate(timeout=5)
        except subprocess.TimeoutExpired:
            pass  # stuck in the kernel: freeing the mount will end it
        if isinstance(error, subprocess.TimeoutExpired):
            raise TooSlow(timeout_s) from None
        raise
    if process.returncode != 0:
        last = _reason(err) or _reason(out) or f"exit {process.returncode}"
        raise Failed(f"{Path(command[0]).name}: {last.removeprefix(Path(command[0]).name + ': ')[:200]}")
    return out


def _reason(output: str) -> str | None:
    """The last line that names an error, or else the last one that says something."""
    lines = [line.strip() for line in output.splitlines() if any(map(str.isalpha, line))]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    return (errors or lines or [None])[-1]


def kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def kill_after(pid: int, timeout_s: float) -> threading.Timer:
    timer = threading.Timer(timeout_s, kill_group, [pid])
    timer.daemon = True
    timer.start()
    return timer


def wait_until(condition: Callable[[], object], timeout_s: float, what: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise Failed(f"{what} took more than {timeout_s:g} s")
        time.sleep(0.02)


def fuse_minor(mountpoint: Path) -> int | None:
    """The mount's connection number, from the kernel's table: no request goes to the mount itself."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split(" ")
        if fields[4].encode().decode("unicode_escape") == str(mountpoint):
            return int(fields[2].partition(":")[2])
    return None


def is_mounted(mountpoint: Path) -> bool:
    return fuse_minor(mountpoint) is not None


def free(mountpoint: Path) -> None:
    """Takes a mount away, whatever state it is in."""
    while (minor := fuse_minor(mountpoint)) is not None:
        quietly(["umount", str(mountpoint)])
        if fuse_minor(mountpoint) == minor:
            quietly(["umount", "-l", str(mountpoint)])
            if not (CONNECTIONS / str(minor)).exists():
                quietly(["mount", "-t", "fusectl", "none", str(CONNECTIONS)])
            try:
                (CONNECTIONS / str(minor) / "abort").write_text("1")
            except OSError:
                pass
        if fuse_minor(mountpoint) == minor:
            return


def quietly(command: list[str], timeout_s: float = 10) -> None:
    try:
        run(command, timeout_s=timeout_s)
    except (Failed, OSError):
        pass


def stop(process: subprocess.Popen[bytes], timeout_s: float = 5) -> None:
    for send in (process.terminate, process.kill):
        try:
            process.wait(timeout_s)
            return
        except subprocess.TimeoutExpired:
            send()
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        pass


def family(pid: int) -> list[int]:
    """A process and its descendants that live now."""
    children: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = status.read_text()
        except OSError:
            continue
        parent = int(text.rpartition(")")[2].split()[1])
        children.setdefault(parent, []).append(int(status.parent.name))
    found = [pid]
    for one in found:
        found += children.get(one, [])
    return found


def peak_memory_bytes(pids: list[int]) -> int:
    """VmHWM of processes, added up; 0 of those that are gone."""
    total = 0
    for one in pids:
        try:
            for line in Path(f"/proc/{one}/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    total += int(line.split()[1]) * 1024
        except OSError:
            pass
    return total


def processor_s(pids: list[int]) -> float:
    """The processor time that processes have used, to the nanosecond, as clock_getcpuclockid(3) names their clocks."""
    total = 0.0
    for pid in pids:
        try:
            total += time.clock_gettime((~pid << 3) | 2)
        except OSError:
            pass  # it ended
    return total
