"""What systemd is told of a service, and what it keeps for the next process of it: sd_notify(3), sd_listen_fds(3).

A failure is of no consequence: then nobody goes on where this process dies.
"""

from __future__ import annotations

import _socket  # without the classes around it, for which there is no use
import os
import struct

from luxfuse.keeper.handing import Held

DEVICE, ESTATE, SETTINGS = NAMES = ("luxfuse-device", "luxfuse-estate", "luxfuse-settings")
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


def forget() -> None:
    """Have it keep them no longer."""
    for name in NAMES:
        notify(f"FDSTOREREMOVE=1\nFDNAME={name}")


def take() -> Held | None:
    """Return what systemd has kept for this process, None if that is not all of it. It can be taken once."""
    pid, count, names = (os.environ.pop(name, "") for name in _LISTEN)
    if pid != str(os.getpid()) or not count.isdigit():
        return None
    found = {}
    for number, name in enumerate(names.split(":")[: int(count)], _FIRST_FD):
        if name in NAMES:
            os.set_inheritable(number, False)
            found[name] = number
    if len(found) < len(NAMES):
        for number in found.values():
            os.close(number)  # the one before has died as it gave them
        if found:
            forget()
        return None
    held = Held()
    held.device, held.estate, held.settings = found[DEVICE], found[ESTATE], found[SETTINGS]
    return held
