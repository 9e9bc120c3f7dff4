"""A thread's signals, as the kernel shows them: whether it is to end, and need not wait for an answer any more.

A thread that waits for a file system is interrupted by any signal, also by a timer or by one that a runtime sends to itself
all the time. A local disk does not make programs notice those, so many fail if it happens: only signals that end a program,
or by which it is asked to end, count. A program that handles one of the latter expects its calls to return.
"""

from __future__ import annotations

import signal

ASKS_TO_END = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP})
"""Worth an interrupted call, also where a program handles them itself."""
ENDS_NOTHING = frozenset({
    signal.SIGCHLD, signal.SIGURG, signal.SIGWINCH, signal.SIGCONT, signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN,
    signal.SIGTTOU,
})  # fmt: skip
"""Their default is to do nothing, to stop or to go on; all others end a program that does not handle them."""
EXITING = 0x4
"""PF_EXITING, in the flags of /proc/PID/stat."""
_FLAGS, _EXIT_CODE = 6, 49
"""Places in /proc/PID/stat after the name, which may hold anything."""


def is_to_end(status: str) -> bool:
    """Whether a thread whose /proc/PID/status this is has a signal that ends it, or asks it to end."""
    masks = {}
    for line in status.splitlines():
        name, _, value = line.partition(":")
        if name in ("SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt"):
            masks[name] = int(value, 16)
    pending = (masks.get("SigPnd", 0) | masks.get("ShdPnd", 0)) & ~masks.get("SigBlk", 0) & ~masks.get("SigIgn", 0)
    caught = masks.get("SigCgt", 0)
    for number in range(1, signal.NSIG):
        bit = 1 << (number - 1)
        if pending & bit and (number in ASKS_TO_END if caught & bit else number not in ENDS_NOTHING):
            return True
    return False


def was_killed(stat: str) -> bool:
    """Whether a thread whose /proc/PID/stat this is exits because of a signal: its files are being closed for it."""
    fields = stat.rpartition(")")[2].split()
    if len(fields) <= _EXIT_CODE:
        return False
    return bool(int(fields[_FLAGS]) & EXITING) and int(fields[_EXIT_CODE]) & 0x7F != 0
