"""What a daemon says to its keeper."""

from __future__ import annotations

import _socket  # without the classes around it, for which there is no use
import os
import struct
from collections.abc import Callable

from luxfuse.keeper import systemd

HELD_MOST = 512
MESSAGE_BYTES = 8192


class Link:
    """The keeper's end, of one daemon after the other.

    ``held``: descriptors by path; ``mounted``: the device's number; ``witness``: a thread of the daemon that does nothing,
    so that it ends as soon as the daemon is killed; 0: none. ``next``: the commands of a keeper and a daemon that go on.
    """

    def __init__(self) -> None:
        self.held: dict[str, int] = {}
        self.mounted = ""
        self.witness = 0
        self.next: tuple[list[str], list[str]] | None = None
        self.on_progress: Callable[[], None] = _nothing
        """Called when the daemon gets on with its beginning."""
        self.on_held: Callable[[str, int], None] = _nothing
        self.on_dropped: Callable[[str], None] = _nothing
        """Called with what is held from now on, and with what is held no more."""
        self.on_stuck: Callable[[int], None] = _nothing
        """Called when the daemon says that it cannot go on, with the time at which it did, in ms of the monotonic clock."""
        self._ours: _socket.socket | None = None

    def open(self) -> _socket.socket:
        """Begin with another daemon; returns its end."""
        self.close()
        self.witness = 0
        self.next = None
        self._ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        return theirs

    def fileno(self) -> int:
        """Return the descriptor to wait for."""
        return self._ours.fileno() if self._ours is not None else -1

    def close(self) -> None:
        """Hear what is left, and no more."""
        if self._ours is not None:
            on_stuck, self.on_stuck = self.on_stuck, _nothing  # that process has ended
            while self.hear():
                pass
            self.on_stuck = on_stuck
            self._ours.close()
            self._ours = None

    def release(self) -> None:
        """Hold nothing any more: there is no next daemon."""
        for name in list(self.held):
            self._drop(name)

    def hear(self) -> bool:
        """Do what the daemon says; returns whether there was something."""
        if self._ours is None:
            return False
        room, flags = _socket.CMSG_SPACE(4), _socket.MSG_DONTWAIT | _socket.MSG_CMSG_CLOEXEC
        try:
            message, sent, _, _ = self._ours.recvmsg(MESSAGE_BYTES, room, flags)
        except OSError:
            return False
        verb, _, what = message.decode(errors="surrogateescape").partition(" ")
        for _, _, data in sent:
            fd = struct.unpack_from("=i", data)[0]
            if verb != "hold" or (what not in self.held and len(self.held) >= HELD_MOST):
                os.close(fd)
                continue
            self._drop(what)
            self.held[what] = fd
            self.on_held(what, fd)
        try:
            self._do(verb, what)
        except ValueError:
            pass  # nothing that a daemon says ends the keeper
        return bool(message)

    def _drop(self, name: str) -> None:
        if name in self.held:
            os.close(self.held.pop(name))
            self.on_dropped(name)

    def _do(self, verb: str, what: str) -> None:
        if verb == "drop":
            self._drop(what)
        elif verb == "mounted":
            self.mounted = what
        elif verb == "witness":
            self.witness = int(what)
        elif verb == "next":
            count, *words = what.split("\0")
            keeper, daemon = words[: int(count)], words[int(count) :]
            if keeper and daemon:
                self.next = keeper, daemon
        elif verb == "goes-on":
            self.on_progress()
        elif verb == "stuck":
            self.on_stuck(int(what))
        elif verb == "notify":
            systemd.notify(what)


def _nothing(*_: object) -> None:
    pass
