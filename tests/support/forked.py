"""A program that has imported luxfuse once, and forks a process for each command, and for each daemon of a command.

Starting Python and importing takes most of the processor time of a mount: a second, of which forking saves nine tenths.
`forking` starts it and sends orders. Nothing here may start a thread or import from the tests.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import math
import os
import select
import signal
import socket
import subprocess
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from luxfuse import steps
from luxfuse.cli import command_line, launch, main
from luxfuse.core.breaker import Breaker
from luxfuse.daemon import __main__ as daemon
from luxfuse.keeper import keeping
from luxfuse.understore.presence import Presence
from luxfuse.understore.submissions import Submissions

_ORDER_MAX_BYTES = 1 << 20
_CLONE_NEWNET = 0x40000000
_USED_LATER = (
    "botocore.client", "botocore.session", "luxfuse.cluster.node", "luxfuse.control.metrics", "luxfuse.daemon.main",
    "luxfuse.peers.credentials", "luxfuse.understore.obstore.driver", "luxfuse.understore.s3.client",
)  # fmt: skip
"""What daemons import where they need it."""
_PATIENCE = (
    (Submissions, "_timeout_s", 1), (Presence, "_patience_s", 1),
    (Breaker, "_patience_s", 1), (Breaker, "_doubt_s", 0.5), (Breaker, "probe_deadline_s", 1),
)  # fmt: skip
"""What depends on how long a request is tried, and which part of that it is at most."""


def _become(work: Callable[[], int], standard: Sequence[int], *kept: int) -> NoReturn:
    """Be a process of its own that does ``work``, with these three standard descriptors and ``kept``."""
    code = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for number, fd in enumerate(standard):
            os.dup2(fd, number)
        for fd in map(int, os.listdir("/proc/self/fd")):
            if fd > 2 and fd not in kept:
                with contextlib.suppress(OSError):  # the one that lists them
                    os.close(fd)
        code = work()
    except SystemExit as exc:
        code = exc.code if isinstance(exc.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _daemon(arguments: Sequence[str]) -> int:
    if path := os.environ.get("TEST_PATIENCE"):
        _heed_patience(path)
    sys.argv = ["luxfuse.daemon", *arguments]
    return daemon.main()


def _heed_patience(path: str) -> None:
    """Try requests for as long as a link says while it is there, which takes no descriptor; see `Mount.impatient`."""

    def said_s() -> float:
        try:
            return float(os.readlink(path))
        except FileNotFoundError:
            return math.inf

    def limited(name: str, share: float) -> property:
        return property(
            lambda self: min(self.__dict__[name], share * said_s()), lambda self, value: self.__dict__.update({name: value})
        )

    for owner, name, share in _PATIENCE:
        setattr(owner, name, limited(name, share))


class _Keeper(keeping.Keeper):
    """Forks its daemons, too, which never become what must be started."""

    def execute(self, command: list[str], fds: list[int]) -> None:
        assert command[:4] == _DAEMON
        _become(lambda: _daemon(command[4:]), (0, 1, 2), *fds)


def _keep(arguments: Sequence[str]) -> int:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())
    keeping.Keeper = _Keeper  # type: ignore[misc]
    keeping.TOLD_PATIENCE_S = 120  # a busy machine takes its time to start a successor
    sys.argv = ["luxfuse.daemon", *arguments]
    return keeping.main()


_DAEMON = [sys.executable, "-P", "-m", "luxfuse.daemon"]
_KEEPER = [sys.executable, "-I", "-S", str(launch.PROGRAM)]


class _ForkedDaemon:
    """What `launch` uses of `subprocess.Popen`; keeper and daemon are forked, with all that is imported."""

    def __init__(
        self, command: Sequence[str], *, stdin: int, stdout: int, stderr: int, pass_fds: Sequence[int], cwd: str,
        start_new_session: bool, env: Mapping[str, str],
    ) -> None:  # fmt: skip
        work = {tuple(_DAEMON): _daemon, tuple(_KEEPER): _keep}[tuple(command[:4])]
        assert stdin == subprocess.PIPE
        assert start_new_session
        reading, writing = os.pipe()
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            os.chdir(cwd)
            os.environ.update(env)
            _become(lambda: work(command[4:]), (reading, stdout, stderr), *pass_fds)
        os.close(reading)
        self.stdin = os.fdopen(writing, "wb")
        self._pidfd = os.pidfd_open(self.pid)

    def poll(self) -> int | None:
        return self.returncode if self.returncode is not None else self._waited(os.WNOHANG)

    def wait(self, timeout: float) -> int:
        """Raises `subprocess.TimeoutExpired`."""
        if self.returncode is None:
            if not select.select([self._pidfd], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("luxfuse.daemon", timeout)
            self._waited(0)
        assert self.returncode is not None
        return self.returncode

    def _waited(self, options: int) -> int | None:
        pid, status = os.waitpid(self.pid, options)
        if pid:
            self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def terminate(self) -> None:
        os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


def _command(order: dict[str, Any]) -> int:
    if order["network"] is not None:
        namespace = os.open(order["network"], os.O_RDONLY | os.O_CLOEXEC)
        if ctypes.CDLL(None, use_errno=True).setns(namespace, _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), order["network"])
        os.close(namespace)
    os.environ.clear()
    os.environ.update(order["environment"])
    steps.heed_environment()  # what is forked has imported it before
    sys.argv = ["luxfuse", *order["arguments"]]
    return main.main()


def _carry_out(order: dict[str, Any], out: int, err: int, answers: int) -> NoReturn:
    """Fork the command; tell its process, and how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid == 0:
        nothing = os.open(os.devnull, os.O_RDONLY)
        _become(lambda: _command(order), (nothing, out, err))
    os.close(out)
    os.close(err)
    with contextlib.suppress(OSError):  # nobody waits for it any more
        os.write(answers, b"%d\n" % pid)
        _, status = os.waitpid(pid, 0)
        os.write(answers, b"%d\n" % os.waitstatus_to_exitcode(status))
    os._exit(0)


def serve(orders: socket.socket) -> None:
    """Carry out orders until the other end is closed: JSON, with descriptors for stdout, stderr and the answers."""
    for name in (*_USED_LATER, *(f"luxfuse.cli.{place.partition('.')[0]}" for place in command_line.COMMANDS.values())):
        importlib.import_module(name)
    launch.subprocess = types.SimpleNamespace(  # type: ignore[attr-defined]
        Popen=_ForkedDaemon, PIPE=subprocess.PIPE, TimeoutExpired=subprocess.TimeoutExpired
    )
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for who carries out an order
    gc.collect()
    gc.freeze()
    assert os.listdir("/proc/self/task") == [str(os.getpid())], "a thread would be missing in what is forked"
    while True:
        data, fds, _, _ = socket.recv_fds(orders, _ORDER_MAX_BYTES, 3)
        if not data:
            return
        if os.fork() == 0:
            _carry_out(json.loads(data), *fds)
        for fd in fds:
            os.close(fd)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
