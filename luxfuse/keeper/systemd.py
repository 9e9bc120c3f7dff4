"""What systemd is told of a service, and what it keeps for the next process of it: sd_notify(3), sd_listen_fds(3).

A failure is of no consequence: then nobody goes on where this process dies.
"""

from __future__ import annotations

import _socket  # without the classes around it, for which there is no use
import fcntl
import os
import struct
from collections.abc import Iterable

from luxfuse.keeper.handing import Held

DEVICE, ESTATE, SETTINGS = NAMES = ("luxfuse-device", "luxfuse-estate", "luxfuse-settings")
HELD = "luxfuse-held-"
"""What the names of descriptors that a daemon has left begin with (`luxfuse.lasting`)."""
NAME_MOST = 255
_LISTEN = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
_FIRST_FD = 3
_SEND_S = 5.0


def notify(state: str, fds: tuple[int, ...] = ()) -> None:
    """Tell systemd, where it asked for it with NOTIFY_SOCKET."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    try:
        sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM)
    except OSError:
        return  # no descriptor is left
    sent = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, struct.pack(f"={len(fds)}i", *fds))] if fds else []
    try:
        sock.settimeout(_SEND_S)
        sock.sendmsg([os.fsencode(state)], sent, 0, "\0" + address[1:] if address.startswith("@") else address)
    except OSError:
        pass
    sock.close()


def store(device: int, estate: int, settings: int) -> None:
    """Have systemd keep these for the next process of the service, as far as it is told to (FileDescriptorStoreMax=).

    It must not poll the device: it would be woken for every request.
    """
    for name, fd in zip(NAMES, (device, estate, settings), strict=True):
        notify(f"FDSTORE=1\nFDNAME={name}\nFDPOLL=0", (fd,))


def beat_every_s() -> float | None:
    """Return how often systemd is to hear that the service lives; None: it does not ask."""
    usec = os.environ.get("WATCHDOG_USEC", "")
    return int(usec) / 2e6 if os.environ.get("NOTIFY_SOCKET") and usec.isdigit() and int(usec) else None


def forget(held: Iterable[str]) -> None:
    """Have it keep them no longer, nor what was ``held``."""
    for name in NAMES:
        notify(f"FDSTOREREMOVE=1\nFDNAME={name}")
    for name in held:
        drop(name)


def hold(name: str, fd: int) -> None:
    """Have it keep a descriptor that a daemon has left; one by a name that is longer than it takes it does not keep."""
    if (known := _known_as(name)) is not None:
        notify(f"FDSTORE=1\nFDNAME={known}\nFDPOLL=0", (fd,))


def drop(name: str) -> None:
    """Have it keep that no longer."""
    if (known := _known_as(name)) is not None:
        notify(f"FDSTOREREMOVE=1\nFDNAME={known}")


def _known_as(name: str) -> str | None:
    """Return the name for systemd, which takes ASCII without colons; None: it is too long."""
    plain = (chr(byte) if 32 < byte < 127 and byte not in b"%:" else f"%{byte:02X}" for byte in os.fsencode(name))
    known = HELD + "".join(plain)
    return known if len(known) <= NAME_MOST else None


def _named(known: str) -> str:
    """Return the name that systemd knows so."""
    first, *others = known.removeprefix(HELD).split("%")
    return os.fsdecode(first.encode() + b"".join(bytes((int(each[:2], 16),)) + each[2:].encode() for each in others))


def take() -> Held | None:
    """Return what systemd has kept for this process, None if that is not all of it. It can be taken once."""
    pid, count, names = (os.environ.pop(name, "") for name in _LISTEN)
    if pid != str(os.getpid()) or not count.isdigit():
        return None
    held, found = Held(), {}
    for number, name in enumerate(names.split(":")[: int(count)], _FIRST_FD):
        if name in NAMES:
            found[name] = number
        elif name.startswith(HELD):
            held.lasting[_named(name)] = number
    held.device, held.estate, held.settings = (found.get(name, -1) for name in NAMES)
    for number in held.fds():
        os.set_inheritable(number, False)
    if len(found) == len(NAMES):
        return held
    if held.fds():  # the one before has died as it gave them
        give_back(held)
    return None


def give_back(held: Held) -> None:
    """Nobody goes on with what systemd has kept: locks are free at once, though it lets go a little later."""
    for fd in held.lasting.values():
        try:
            fcntl.flock(fd, fcntl.LOCK_UN)
        except OSError:
            pass  # it is a socket
    for fd in held.fds():
        os.close(fd)
    forget(held.lasting)
