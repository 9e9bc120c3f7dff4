"""A gRPC server on a unix socket that root alone can use, of which there is one; what driver and mounter share."""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc

from luxfuse.csi.refusals import Refused
from luxfuse.durable import make_private
from luxfuse.errors import ConfigError, LuxError, MountError

log = logging.getLogger(__name__)

THREADS = 256
"""Made as they are needed. A call may wait for a store that is away for as long as its deadline lets it, and a kubelet
calls for each volume of each pod by itself, of which a node has a hundred or more: the others are not to wait for these."""
DEADLINE_S = 120.0
"""Of calls that have none: what a kubelet allows."""
_GRACE_S = 20.0
_ADDRESS_MAX_BYTES = 107
Method = Callable[[Any, float], Any]


def handler(
    name: str, method: Method, deserialize: Callable[[bytes], Any], serialize: Callable[[Any], bytes],
    threads: ThreadPoolExecutor | None = None,
) -> Any:  # fmt: skip
    """Return the handler of one call. ``method`` gets the request, and when to give up, by the monotonic clock.

    ``threads``: which run it, instead of those that all calls share.
    """

    def called(request: Any, context: Any) -> Any:
        began = time.monotonic()
        left_s = context.time_remaining()
        try:
            answer = method(request, began + (DEADLINE_S if left_s is None else min(left_s, DEADLINE_S)))
        except Refused as exc:
            code, text = exc.code, str(exc)
        except ConfigError as exc:
            code, text = grpc.StatusCode.INVALID_ARGUMENT, str(exc)
        except LuxError as exc:
            code, text = grpc.StatusCode.INTERNAL, str(exc)
        except OSError as exc:
            code, text = grpc.StatusCode.INTERNAL, f"{exc.filename or name}: {exc.strerror or type(exc).__name__}"
        except Exception as exc:
            log.exception("%s failed", name)
            code, text = grpc.StatusCode.INTERNAL, f"unexpected {type(exc).__name__}; the log has the details"
        else:
            return answer
        log.warning("%s after %.1f s: %s: %s", name, time.monotonic() - began, code.name, text)
        return context.abort(code, text)

    if threads is not None:
        called.experimental_thread_pool = threads  # type: ignore[attr-defined]  # gRPC for Python looks for that
    return grpc.unary_unary_rpc_method_handler(called, deserialize, serialize)


def socket_path(endpoint: str) -> Path:
    """Return the path of an endpoint: ``unix:///path``, ``unix:/path`` or a path. Raises ConfigError."""
    path = endpoint.removeprefix("unix://") if endpoint.startswith("unix:///") else endpoint.removeprefix("unix:")
    if not path.startswith("/") or len(os.fsencode(path)) > _ADDRESS_MAX_BYTES:
        raise ConfigError(f"endpoint {endpoint}: write unix:///PATH, of at most {_ADDRESS_MAX_BYTES} bytes")
    return Path(path)


class Lock:
    """The right to be the only one, until `close` or the end of the process."""

    def __init__(self, path: Path, what: str) -> None:
        """Raises MountError if another process has it, or the directory cannot be used."""
        try:
            make_private(path.parent)
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise MountError(f"{path}: {exc.strerror}; make it writable, or choose another place") from None
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._fd)
            raise MountError(f"{path}: another {what} is running with this directory; end it first") from None

    def close(self) -> None:
        """Let others have it."""
        os.close(self._fd)


def serve(endpoint: Path, services: Mapping[str, Mapping[str, Any]], began: Callable[[], object] = lambda: None) -> None:
    """Serve until SIGTERM or SIGINT; calls that are at work then are let end. Raises MountError.

    ``began`` is called once the socket answers.
    """
    os.umask(0o077)  # the socket is made with it
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    server = start(endpoint, services)
    log.info("listening on %s", endpoint)
    began()
    stop.wait()
    log.info("told to end")
    server.stop(_GRACE_S).wait()


def start(endpoint: Path, services: Mapping[str, Mapping[str, Any]]) -> grpc.Server:
    """Return a server that answers. Raises MountError."""
    server = grpc.server(ThreadPoolExecutor(THREADS), options=[("grpc.so_reuseport", 0)])
    handlers: Sequence[Any] = [grpc.method_handlers_generic_handler(name, dict(calls)) for name, calls in services.items()]
    server.add_generic_rpc_handlers(handlers)
    try:
        endpoint.parent.mkdir(parents=True, exist_ok=True)
        endpoint.unlink(missing_ok=True)  # of one that was killed: we have the lock
        server.add_insecure_port(f"unix:{endpoint}")
    except (OSError, RuntimeError) as exc:
        why = getattr(exc, "strerror", None) or "cannot be listened on"
        raise MountError(f"endpoint {endpoint}: {why}; choose another one, or make its directory writable") from None
    server.start()
    return server
