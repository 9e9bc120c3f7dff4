"""Asks a running daemon over its control socket, with a deadline, so that a hung daemon cannot hang a command."""

from __future__ import annotations

import http.client
import json
import socket
import time
from pathlib import Path
from typing import Any

from luxfuse.control.address import short_address
from luxfuse.errors import LuxError


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
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        with short_address(self._socket_path) as address:
            self.sock.connect(address)


class ControlClient:
    """A client of one daemon; each call is one connection and takes at most ``deadline_s``."""

    def __init__(self, socket_path: str | Path, deadline_s: float = 5.0) -> None:
        self._socket_path = Path(socket_path)
        self._deadline_s = deadline_s

    def status(self) -> dict[str, Any]:
        """Return the status document; see `luxfuse.control.status`."""
        return self._json("GET", "/v1/status")

    def metrics(self) -> str:
        """Return the metrics in Prometheus text format."""
        return self._exchange("GET", "/v1/metrics", None).decode()

    def refresh(self, paths: list[str]) -> list[str]:
        """Forget what is known of ``paths`` (relative to the mount); returns one line per path that failed."""
        return [str(error) for error in self._json("POST", "/v1/refresh", {"paths": paths}).get("errors", [])]

    def unmount(self, *, lazy: bool = False) -> None:
        """Ask the daemon to unmount and end. Raises DaemonRefused when the mount is busy."""
        self._json("POST", "/v1/unmount", {"lazy": lazy})

    def _json(self, method: str, target: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        raw = self._exchange(method, target, body)
        try:
            answer = json.loads(raw)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise DaemonUnreachable("the daemon's answer cannot be read; is it of another version?")
        return answer

    def _exchange(self, method: str, target: str, body: dict[str, Any] | None) -> bytes:
        give_up_at = time.monotonic() + self._deadline_s
        connection = _UnixConnection(self._socket_path, self._deadline_s)
        try:
            payload = None if body is None else json.dumps(body).encode()
            connection.request(method, target, body=payload, headers={"Connection": "close"})
            connection.sock.settimeout(max(0.01, give_up_at - time.monotonic()))
            response = connection.getresponse()
            content = response.read()
        except TimeoutError:
            raise DaemonUnreachable(f"the daemon does not answer within {self._deadline_s:g} s") from None
        except (ConnectionRefusedError, FileNotFoundError):
            raise DaemonUnreachable("the daemon is not running") from None
        except PermissionError:
            raise DaemonUnreachable("the control socket belongs to another user") from None
        except (OSError, http.client.HTTPException) as exc:
            raise DaemonUnreachable(f"the daemon broke off: {exc or type(exc).__name__}") from None
        finally:
            connection.close()
        if response.status >= 400:
            raise DaemonRefused(_error_text(content, response.status), response.status)
        return content


def _error_text(content: bytes, status: int) -> str:
    try:
        return str(json.loads(content)["error"])
    except (ValueError, KeyError, TypeError):
        return f"the daemon answered with status {status}"
