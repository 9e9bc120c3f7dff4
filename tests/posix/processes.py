"""Run a function in a process of its own, with a time limit: a mount that hangs then hangs that process only.

The process is forked, so that the function may be any, and may change what belongs to a process: its user, its umask,
its directory, its locks. Memory that it changes is a copy.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import pickle
import select
import signal
import struct
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest

LIMIT_S = 120.0
OTHER_UID = OTHER_GID = 65534  # user nobody: never the owner of a file unless a test says so
PLAIN_UID = PLAIN_GID = 12345  # a user who owns what a test gives to him
EXTRA_GID = 12346  # a group that a test may add
_PR_SET_PDEATHSIG = 1
_LENGTH = struct.Struct("<Q")


class TimedOut(AssertionError):
    """The function did not return in time; its process was told to end."""


class Died(AssertionError):
    """The process ended without an answer, as by SIGBUS."""


class Failed(AssertionError):
    """The function raised an exception that cannot be handed over; this is its text."""


class Process:
    """A function under way in a forked process, as a user and with groups. `result` waits for its end."""

    def __init__(self, function: Callable[..., Any], *arguments: object, uid: int | None = None,
                 gid: int | None = None, groups: Sequence[int] = ()) -> None:  # fmt: skip
        self._answers, answer = os.pipe2(os.O_CLOEXEC)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads: what they hold is not used in the fork
            self.pid = os.fork()
        if self.pid == 0:
            with contextlib.suppress(BaseException):
                os.close(self._answers)
                _answer(answer, function, arguments, uid, gid, groups)
            os._exit(0)
        os.close(answer)

    def result(self, timeout_s: float = LIMIT_S) -> Any:
        """Return what the function returned or raise what it raised; raises `TimedOut` and `Died`."""
        try:
            message = self._receive(time.monotonic() + timeout_s)
        except TimeoutError:
            self.kill()
            raise TimedOut(f"no end within {timeout_s:g} s") from None
        finally:
            os.close(self._answers)
        status = self._end(timeout_s)
        if message is None:
            code = os.waitstatus_to_exitcode(status)
            raise Died(f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}")
        succeeded, value = pickle.loads(message)
        if succeeded:
            return value
        raise value

    def _receive(self, give_up_at: float) -> bytes | None:
        buffer = b""
        while len(buffer) < _LENGTH.size or len(buffer) < _LENGTH.size + _LENGTH.unpack_from(buffer)[0]:
            left = give_up_at - time.monotonic()
            if left <= 0 or not select.select([self._answers], [], [], left)[0]:
                raise TimeoutError
            chunk = os.read(self._answers, 1 << 16)
            if not chunk:
                return None
            buffer += chunk
        return buffer[_LENGTH.size :]

    def _end(self, timeout_s: float) -> int:
        """Wait for the exit, which closes files, and return its status."""
        descriptor = os.pidfd_open(self.pid)
        try:
            if not select.select([descriptor], [], [], timeout_s)[0]:
                raise TimedOut(f"does not end within {timeout_s:g} s of its answer")
        finally:
            os.close(descriptor)
        return os.waitpid(self.pid, 0)[1]

    def kill(self) -> None:
        """End the process, without waiting: it may hang in the kernel until its mount is freed."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)


def _answer(
    answer: int, function: Callable[..., Any], arguments: tuple[object, ...], uid: int | None, gid: int | None,
    groups: Sequence[int],
) -> None:  # fmt: skip
    try:
        _become(uid, gid, groups)
        message = pickle.dumps((True, function(*arguments)))
    except BaseException as exc:  # KeyboardInterrupt, pytest's outcomes: all are handed over
        try:
            message = pickle.dumps((False, exc))
            pickle.loads(message)
        except Exception:
            message = pickle.dumps((False, Failed(f"{type(exc).__name__}: {exc}")))
    view = memoryview(_LENGTH.pack(len(message)) + message)
    while view:
        view = view[os.write(answer, view) :]


def _become(uid: int | None, gid: int | None, groups: Sequence[int]) -> None:
    if uid is not None:
        os.setgroups(list(groups))
        os.setresgid(*[uid if gid is None else gid] * 3)
        os.setresuid(*[uid] * 3)
    # After the change of user, which resets it: nothing outlives a test that is told to end.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def as_user(uid: int, function: Callable[..., Any], *arguments: object, gid: int | None = None,
            groups: Sequence[int] = ()) -> Any:  # fmt: skip
    """Return what the function returns when this user calls it (``gid`` as ``uid`` unless given)."""
    return Process(function, *arguments, uid=uid, gid=gid, groups=groups).result()


def as_other(function: Callable[..., Any], *arguments: object) -> Any:
    """`as_user` for one who owns nothing."""
    return as_user(OTHER_UID, function, *arguments, gid=OTHER_GID)


def run_test(function: Callable[[], None], timeout_s: float) -> None:
    """Run a whole test in a process; what it fails with is shown as pytest would."""

    def whole() -> tuple[str, str] | None:
        os.umask(0o022)
        faulthandler.dump_traceback_later(timeout_s - 1, file=sys.__stderr__)  # says where it hangs
        try:
            function()
        except pytest.skip.Exception as exc:
            return "skip", str(exc)
        except TimedOut as exc:
            return "hang", str(exc)
        except BaseException as exc:
            return "fail", str(pytest.ExceptionInfo.from_exception(exc).getrepr(style="short"))
        return None

    outcome = Process(whole).result(timeout_s)
    if outcome is None:
        return
    if outcome[0] == "skip":
        pytest.skip(outcome[1])
    if outcome[0] == "hang":
        raise TimedOut(f"a process of the test: {outcome[1]}")
    pytest.fail(outcome[1], pytrace=False)
