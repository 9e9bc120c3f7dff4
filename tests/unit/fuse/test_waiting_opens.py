"""OPENs that wait in C for a file on its way, on a socket in the place of the device."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAD = """
import os, select, socket, struct, sys, time
from luxfuse.fuse.lowlevel import passthrough
OPEN, INTERRUPT = 14, 36
LATER = time.monotonic_ns() + 3_600_000_000_000
ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
ours.settimeout(60)
passthrough.attach()
waiting, interrupts = passthrough.waiting(), passthrough.interrupts()
passthrough.start(theirs.fileno(), True)
numbers = iter(range(2, 1000, 2))
sent = {}

def send(opcode, inode, body):
    unique = next(numbers)
    ours.send(struct.pack("=IIQQIIII", 40 + len(body), opcode, unique, inode, 0, 0, 0, 0) + body)
    return unique

def open_it(inode, flags=os.O_RDONLY):
    return send(OPEN, inode, struct.pack("=II", flags, 0))

def until(what, holds):
    give_up_at = time.monotonic() + 60
    while not holds():
        if time.monotonic() > give_up_at:
            sys.exit(f"in vain: {what}")
        time.sleep(0.001)

def waits(count=1, in_python=0):
    until("it waits", lambda: passthrough.statistics()["opens_waiting"] == count)
    assert select.select([waiting], [], [], 60)[0] == [waiting], "told"
    assert passthrough.give_up(0)
    assert select.select([waiting], [], [], 0)[0] == [], "heard"
    assert passthrough.queued() == in_python

def goes_to_python(count=1):
    until("it goes to Python", lambda: passthrough.queued() == count)

def are_answered(*uniques):
    replies = {struct.unpack_from("=IiQ", ours.recv(4096)) for _ in uniques}
    assert replies == {(32, 0, unique) for unique in uniques}, replies

def register(inode):
    with open(sys.argv[1], "rb") as file:
        passthrough.register(inode, 0, file.fileno(), os.fstat(file.fileno()).st_mtime_ns, LATER)
"""

CASES = {
    "one whose file comes is answered without Python": """
passthrough.expect(7, LATER)
first, second = open_it(7), open_it(7)
waits(2)
register(7)
passthrough.arrived(7)
are_answered(first, second)
assert passthrough.opens(7) == 2
statistics = passthrough.statistics()
assert (statistics["waited_opens"], statistics["opens"]) == (2, 0)
assert statistics["waited_ns"] > 0
are_answered(open_it(7))
assert passthrough.statistics()["opens"] == 1
""",
    "one whose file does not come goes to Python": """
passthrough.expect(7, LATER)
open_it(7)
waits()
passthrough.arrived(8)
assert passthrough.give_up(0) and not passthrough.queued()
passthrough.arrived(7)
goes_to_python()
open_it(7)
goes_to_python(2)
assert not passthrough.give_up(0)
""",
    "one that waits for long goes to Python": """
passthrough.expect(7, LATER)
open_it(7)
waits()
assert not passthrough.give_up(time.monotonic_ns())
goes_to_python()
open_it(7)
waits(in_python=1)
""",
    "one whose caller has a signal goes to Python, before that is told": """
passthrough.expect(7, LATER)
unique, other = open_it(7), open_it(7)
waits(2)
send(INTERRUPT, 0, struct.pack("=Q", unique))
assert select.select([interrupts], [], [], 60)[0] == [interrupts]
assert passthrough.queued() == 1 and passthrough.take_interrupted() == [unique]
assert passthrough.give_up(0), "the other one waits on"
""",
    "none is left where the lanes are to rest": """
passthrough.expect(7, LATER)
open_it(7)
waits()
until("the lanes rest", lambda: not passthrough.stop())
assert passthrough.queued() == 1 and not passthrough.give_up(0)
""",
    "none waits while somebody watches, nor one that writes, nor for what nobody expects": """
passthrough.expect(7, LATER)
open_it(7, os.O_RDWR)
open_it(7, os.O_WRONLY)
open_it(7, os.O_RDONLY | os.O_TRUNC)
open_it(8)
passthrough.expect(9, time.monotonic_ns())
open_it(9)
goes_to_python(5)
passthrough.trace(True)
open_it(7)
goes_to_python(6)
passthrough.trace(False)
passthrough.time_queue(True)
open_it(7)
goes_to_python(7)
passthrough.time_queue(False)
open_it(7)
waits(in_python=7)
""",
    "one may be expected for longer than was said first": """
passthrough.expect(7, time.monotonic_ns())
passthrough.expect(7, LATER)
open_it(7)
waits()
""",
    "as many as there is room for are expected, and wait": """
for inode in range(100, 100 + 16_384):
    assert passthrough.expect(inode, LATER)
assert not passthrough.expect(99, LATER)
assert passthrough.expect(100, LATER), "it was before"
passthrough.arrived(100)
assert passthrough.expect(99, LATER)
for _ in range(1025):
    ours.send(struct.pack("=IIQQIIIIII", 48, OPEN, 5000, 99, 0, 0, 0, 0, 0, 0))
goes_to_python(1)
""",
}


@pytest.mark.parametrize("what", CASES)
def test_of_opens_that_wait(what: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"content")
    command = [sys.executable, "-P", "-c", HEAD + CASES[what], file]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
