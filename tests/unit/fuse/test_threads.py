"""What threads of this process are told to wait for."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from luxfuse.fuse import threads
from tests.support.mounted import wait_for


def waiting(wait: Callable[[], object], check: Callable[[int], bool]) -> bool:
    """Whether ``check`` holds, within a minute, of a thread that waits; asked of it until it does."""
    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    assert thread.native_id is not None
    number = thread.native_id
    wait_for("it holds", lambda: check(number))
    return True


@pytest.mark.skipif(os.uname().machine not in threads._WAITS, reason="its system calls are not known")
def test_a_thread_that_waits_for_a_lock_a_process_or_the_network_is_asleep() -> None:
    lock, (ours, theirs) = threading.Lock(), socket.socketpair()
    lock.acquire()
    with ours, theirs, subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        waiting(lock.acquire, threads.is_asleep)
        waiting(lambda: ours.recv(1), threads.is_asleep)
        waiting(child.wait, threads.is_asleep)
        lock.release()
        theirs.send(b"x")
        child.communicate(b"\n")


def test_one_that_reads_or_computes_is_not() -> None:
    assert not threads.is_asleep(threading.get_native_id()), "it runs"
    assert not threads.is_asleep(0), "there is none"
    reader, writer = os.pipe()

    def reads(number: int) -> bool:
        return "pipe" in Path(f"/proc/self/task/{number}/stack").read_text()

    if os.geteuid() == 0:
        thread = threading.Thread(target=os.read, args=(reader, 1))
        thread.start()
        number = thread.native_id
        assert number is not None
        wait_for("it reads", lambda: reads(number))
        assert not threads.is_asleep(number), "it might be a file"
        os.write(writer, b"x")
        thread.join(60)
    os.close(reader)
    os.close(writer)


SAYS = {
    "sleeps": ("S", 0, "[<0>] futex_do_wait+0x46/0x90\n", False),
    "a disk": ("D", 0, "[<0>] folio_wait_bit_common+0x12/0x90\n", True),
    "a disk, and the kernel does not say": ("D", 0, None, True),
    "the kernel is told to forget": ("D", 0, "[<0>] down_write+0x1\n[<0>] fuse_reverse_inval_entry+0x46/0x90\n", False),
    "another mount": ("S", 0, "[<0>] request_wait_answer+0x46/0x90\n[<0>] __fuse_simple_request\n", True),
    "debugged": ("S", 7, "[<0>] futex_do_wait+0x46/0x90\n", True),
    "stopped": ("t", 0, "", True),
    "another mount, told to anybody": ("S", 0, "wchan: request_wait_answer", True),
}


@pytest.mark.parametrize("said", SAYS)
def test_what_holds_up_a_thread(said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state, tracer, stack, held_up = SAYS[said]
    (tmp_path / "7").mkdir()
    text = f"Name:\tx\nState:\t{state} (x)\nTracerPid:\t{tracer}\nUid:\t0\nvoluntary_ctxt_switches:\t12\nlast:\t0\n"
    (tmp_path / "7" / "status").write_text(text)
    (tmp_path / "7" / "syscall").write_text(f"{min(threads._WAITS[os.uname().machine])} 0x1\n")
    if stack is not None:
        name, _, text = stack.rpartition("wchan: ")
        (tmp_path / "7" / ("wchan" if stack.startswith("wchan") else "stack")).write_text(text or name)
    monkeypatch.setattr(threads, "_TASKS", tmp_path)
    assert threads.are_held_up() == held_up
    assert threads.is_asleep(7) == (state == "S" and not tracer)
    assert threads.uninterruptible() == ({("7", "12")} if state == "D" else set())
