"""Asks a running daemon over its control socket, with a deadline, so that a hung daemon cannot hang a command."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import time
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from luxfuse.control.address import short_address
from luxfuse.control.orders import ORDERS
from luxfuse.control.registry import is_alive
from luxfuse.errors import LuxError

_LINE_MAX_BYTES = 4 << 20
_STARTING_INTERVAL_S = 0.05
T = TypeVar("T")

Steps = Generator[dict[str, Any], None, None]
"""Progress, line by line; close it to give up."""


class DaemonUnreachable(LuxError):
    """The daemon did not answer: it is gone, going, or hung. The text is one line."""


class DaemonRefused(LuxError):
    """The daemon answered with an error. The text is its one line; ``status`` the HTTP code."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, socket_path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._socket_path = socket_path

    def connect(self) -> None:
        """Connect; a daemon that has its lock and no socket yet is just starting, and is waited for."""
        give_up_at = time.monotonic() + (self.timeout or 0)
        while True:
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.sock.settimeout(max(0.01, give_up_at - time.monotonic()))
            try:
                with short_address(self._socket_path) as address:
                    self.sock.connect(address)
            except (ConnectionRefusedError, FileNotFoundError):
                self.sock.close()
                if not is_alive(self._socket_path.parent):
                    raise
                if time.monotonic() >= give_up_at:
                    raise _NoSocketYet from None
                time.sleep(_STARTING_INTERVAL_S)
            else:
                return


class _NoSocketYet(Exception):
    """A daemon is starting, or ending, for long."""


ANSWER_S = 20.0
"""A daemon that hangs is worth the wait; one on a machine with much else to do is not taken for one."""


class ControlClient:
    """A client of one daemon; each call is one connection, and the daemon never silent for ``deadline_s``."""

    def __init__(self, socket_path: str | Path, deadline_s: float = ANSWER_S) -> None:
        self._socket_path = Path(socket_path)
        self._deadline_s = deadline_s

    def status(self) -> dict[str, Any]:
        """Return the status document, a `luxfuse.control.status.Status`."""
        return self._json("status")

    def metrics(self) -> str:
        """Return the metrics in Prometheus text format."""
        return self._exchange("metrics", None).decode(errors="replace")

    def refresh(self, paths: list[str]) -> list[str]:
        """Forget attributes and listings of ``paths`` (relative to the mount); returns one line per path that failed."""
        return [str(error) for error in self._field("refresh", {"paths": paths}, kind=list)]

    def persist(self, paths: list[str]) -> Steps:
        """Bring all changes at and below ``paths`` (relative to the mount) to the under-store; yields how far that is.

        The last item has ``done``, and lists of lines: ``failures`` and ``notes``. Stop iterating to give it up.
        """
        return self._lines("persist", {"paths": paths})

    def load(self, paths: list[str]) -> Steps:
        """Bring all files at and below ``paths`` (relative to the mount) into the cache; yields how far that is.

        Items are `luxfuse.orders.load_progress.LoadProgress`. Stop iterating to end it.
        """
        return self._lines("load", {"paths": paths})

    def begin_schedule(self, path: str, window_bytes: int | None = None) -> Steps:
        """Begin to tell which files of the under-store of ``path`` (relative to the mount) will be opened; see `tell`.

        The first item has ``schedule``, its number, and ``room``. Stop iterating to end it; it does not go on without you.
        """
        return self._lines("begin_schedule", {"path": path, "window_bytes": window_bytes})

    def tell(self, schedule: int, paths: list[str], position: int | None) -> int:
        """Tell the paths (relative to the mount) that come next in a schedule; returns how many more there is room for.

        ``position``: how many of all have been handed to the reader, if that is known.
        """
        return self._field("tell", {"schedule": schedule, "paths": paths, "position": position}, kind=int)

    def export_index(self, path: str, file: str) -> Steps:
        """Write the names of the under-store of ``path`` to a manifest, the absolute path ``file``; yields how far that is.

        Items are `luxfuse.orders.manifest.ManifestProgress`. Stop iterating to end it.
        """
        return self._lines("export_index", {"path": path, "file": file})

    def import_index(self, path: str, file: str) -> Steps:
        """Take up the names of the manifest ``file`` for the under-store of ``path``; see `export_index`."""
        return self._lines("import_index", {"path": path, "file": file})

    def free(self, paths: list[str]) -> Steps:
        """Drop all cached files at and below ``paths``; yields `luxfuse.orders.inventory.FreeProgress`."""
        return self._lines("free", {"paths": paths})

    def check(self, *, repair: bool) -> Steps:
        """Compare the cache with its records; yields how far that is, as `luxfuse.orders.check.CheckProgress`.

        Stop iterating to end it.
        """
        return self._lines("check", {"repair": repair})

    def trace(self, path: str, pid: int | None) -> Steps:
        """Yield ``events``, requests as they are answered, and how many were ``dropped``. Stop iterating to end it."""
        return self._lines("trace", {"path": path, "pid": pid})

    def locate(self, paths: list[str]) -> list[dict[str, Any]]:
        """Return which parts of each path are cached, and where, in the form that `luxfuse.control.orders` describes."""
        return self._field("locate", {"paths": paths}, kind=list)

    def start_load(self, paths: list[str]) -> int:
        """Load ``paths`` in the background; returns the number of the job."""
        return self._field("start_load", {"paths": paths}, kind=int)

    def loads(self) -> list[dict[str, Any]]:
        """Return how far each load is."""
        return self._field("loads", kind=list)

    def stop_loads(self) -> int:
        """End all loads; returns how many those are."""
        return self._field("stop_loads", kind=int)

    def reload(self) -> list[str]:
        """Read the configuration file again; returns the names of changed settings. Raises `DaemonRefused` with why."""
        return [str(name) for name in self._field("reload", kind=list)]

    def pin(self, paths: list[str]) -> dict[str, Any]:
        """Never evict the files at and below ``paths`` (relative to the mount); returns ``failures`` and ``notes``."""
        return self._json("pin", {"paths": paths})

    def unpin(self, paths: list[str]) -> dict[str, Any]:
        """Let the files at and below ``paths`` be evicted again; returns ``failures``."""
        return self._json("unpin", {"paths": paths})

    def limit(self, paths: list[str], seconds: float | None, action: str) -> dict[str, Any]:
        """Set how long the files at and below ``paths`` are kept; None: for ever. Returns ``failures``."""
        return self._json("limit", {"paths": paths, "seconds": seconds, "action": action})

    def replicate(self, paths: list[str], least: int, most: int | None) -> dict[str, Any]:
        """Have ``paths`` held by so many nodes, ``least`` 0: as it comes. Returns ``failures`` and ``notes``."""
        return self._json("replicate", {"paths": paths, "min": least, "max": most})

    def attach(self, source: str, path: str, options: Mapping[str, Any]) -> list[str]:
        """Attach ``source`` at ``path`` (relative to the mount); returns lines worth knowing."""
        body = {"source": source, "path": path, "options": dict(options)}
        return [str(note) for note in self._field("attach", body, kind=list)]

    def detach(self, path: str, *, force: bool) -> Steps:
        """Bring all changes below ``path`` to its under-store and take that out of the mount; yields how far that is."""
        return self._lines("detach", {"path": path, "force": force})

    def drain(self) -> Steps:
        """Bring everything that is closed to the under-store; yields how far that is, at last with ``done``."""
        return self._lines("drain", None)

    def upgrade(self, daemon: list[str], keeper: list[str]) -> Steps:
        """Have the daemon leave the mount to these commands; yields its steps. After "leaving" it ends, or is refused."""
        return self._lines("upgrade", {"daemon": daemon, "keeper": keeper})

    def unmount(self, *, lazy: bool = False) -> None:
        """Ask the daemon to unmount and end. Raises DaemonRefused when the mount is busy."""
        self._json("unmount", {"lazy": lazy})

    def _json(self, order: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        raw = self._exchange(order, body)
        try:
            answer = json.loads(raw)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise _unreadable()
        return answer

    def _field(self, order: str, body: dict[str, Any] | None = None, *, kind: type[T]) -> T:
        """Return the one field of the answer, of the kind that it has to be."""
        found = self._json(order, body).get(ORDERS[order].field)
        if not isinstance(found, kind):
            raise _unreadable()
        return found

    def _exchange(self, order: str, body: dict[str, Any] | None) -> bytes:
        give_up_at = time.monotonic() + self._deadline_s
        with self._asking(order, body) as (connection, sock):
            sock.settimeout(max(0.01, give_up_at - time.monotonic()))
            with connection.getresponse() as response:
                return _checked(response).read()

    def _lines(self, order: str, body: dict[str, Any] | None) -> Steps:
        """Yield the lines of an answer that goes on for long; each comes within the deadline."""
        with self._asking(order, body) as (connection, sock):
            done = False
            # The response owns the socket now: closing it hangs up.
            with _checked(connection.getresponse()) as response, _hanging_up(sock):
                while line := response.readline(_LINE_MAX_BYTES):
                    item = json.loads(line)
                    if not isinstance(item, dict):
                        raise _unreadable()
                    if "aborted" in item:
                        raise DaemonRefused(str(item["aborted"]), 500)
                    done = bool(item.get("done"))
                    yield item
            if not done:
                raise DaemonUnreachable("the daemon broke off")

    @contextlib.contextmanager
    def _asking(
        self, order: str, body: dict[str, Any] | None
    ) -> Iterator[tuple[http.client.HTTPConnection, socket.socket]]:
        """Send a request; errors of the block mean that the daemon cannot be asked. Raises DaemonUnreachable."""
        connection = _UnixConnection(self._socket_path, self._deadline_s)
        try:
            payload = None if body is None else json.dumps(body).encode()
            connection.request(ORDERS[order].method, ORDERS[order].path, body=payload, headers={"Connection": "close"})
            yield connection, connection.sock
        except (TimeoutError, BlockingIOError):  # or so many wait already that the kernel takes no more
            raise DaemonUnreachable(f"the daemon does not answer within {self._deadline_s:g} s") from None
        except _NoSocketYet:
            raise DaemonUnreachable(f"the daemon was starting or ending for {self._deadline_s:g} s") from None
        except (ConnectionRefusedError, FileNotFoundError):
            raise DaemonUnreachable("the daemon is not running") from None
        except PermissionError:
            raise DaemonUnreachable("the control socket belongs to another user") from None
        except (OSError, ValueError, http.client.HTTPException) as exc:
            raise DaemonUnreachable(f"the daemon broke off: {exc or type(exc).__name__}") from None
        finally:
            connection.close()


@contextlib.contextmanager
def _hanging_up(sock: socket.socket) -> Iterator[None]:
    """Hang up at the end, also where processes that were forked meanwhile have the socket, too; but not in one of them."""
    ours = os.getpid()
    try:
        yield
    finally:
        if os.getpid() == ours:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


def _unreadable() -> DaemonUnreachable:
    return DaemonUnreachable("the daemon's answer cannot be read; is it of another version?")


def _checked(response: http.client.HTTPResponse) -> http.client.HTTPResponse:
    """Return the response unless it is an error. Raises DaemonRefused."""
    if response.status >= 400:
        raise DaemonRefused(_error_text(response.read(), response.status), response.status)
    return response


def _error_text(content: bytes, status: int) -> str:
    try:
        return str(json.loads(content)["error"])
    except (ValueError, KeyError, TypeError):
        return f"the daemon answered with status {status}"
