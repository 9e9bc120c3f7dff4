"""The threads that read requests, on a socket in the place of the device."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import socket, struct, sys, time
from luxfuse.fuse.lowlevel import passthrough
ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
passthrough.attach()
for number in range(300):
    passthrough.start(theirs.fileno(), False)
    for _ in range(number % 5):
        passthrough.stop()
    passthrough.start(theirs.fileno(), False)
    ours.send(struct.pack("=IIQQIIII", 40, 9999, number + 1, 1, 0, 0, 0, 0))
    give_up_at = time.monotonic() + 60
    while passthrough.queued() != number + 1:
        if time.monotonic() > give_up_at:
            sys.exit(f"nobody reads request {number}")
        time.sleep(0.0002)
"""


def test_lanes_that_were_to_stop_and_are_started_again_read_on() -> None:
    """Also those that had seen that they were to stop, and had not ended yet."""
    done = subprocess.run([sys.executable, "-P", "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
