"""What a keeper holds, as the arguments by which one of another luxfuse, or of another process, goes on with it.

    [--goes-on DEVICE,ESTATE,SETTINGS,STATE,MOUNTED [--held FD=NAME]... [--former N COMMAND...]] ...

Numbers are descriptors, -1: there is none. MOUNTED is the number of the mount's device, as ``0:45``.
"""

from __future__ import annotations

import os


class Held:
    """``lasting``: descriptors by name (`luxfuse.lasting`).

    ``former``: the daemon's command that goes on where the new one does not serve.
    """

    def __init__(self) -> None:
        self.device = self.estate = self.settings = self.state = -1
        self.mounted = ""
        self.lasting: dict[str, int] = {}
        self.former: list[str] = []

    def fds(self) -> list[int]:
        """Return all descriptors."""
        return [fd for fd in (self.device, self.estate, self.settings, self.state, *self.lasting.values()) if fd >= 0]

    def arguments(self) -> list[str]:
        """Return the arguments that `take` understands."""
        found = ["--goes-on", f"{self.device},{self.estate},{self.settings},{self.state},{self.mounted}"]
        for name, fd in self.lasting.items():
            found += ["--held", f"{fd}={name}"]
        return [*found, "--former", str(len(self.former)), *self.former]


def take(arguments: list[str]) -> tuple[Held, list[str]]:
    """Return what is held by these arguments, no more to be inherited by programs, and the rest of them."""
    held = Held()
    if arguments and arguments[0] == "--goes-on":
        *numbers, held.mounted = arguments[1].split(",")
        held.device, held.estate, held.settings, held.state = map(int, numbers)
        arguments = arguments[2:]
    while arguments and arguments[0] == "--held":
        number, _, name = arguments[1].partition("=")
        held.lasting[name] = int(number)
        arguments = arguments[2:]
    if arguments and arguments[0] == "--former":
        count = int(arguments[1])
        held.former, arguments = arguments[2 : 2 + count], arguments[2 + count :]
    for fd in held.fds():
        os.set_inheritable(fd, False)
    return held, arguments
