"""Starts daemons, passes signals on to them, and waits for their ends."""

from __future__ import annotations

import os
import signal

from luxfuse.keeper.link import Link
from luxfuse.keeper.log import Log
from luxfuse.keeper.process import NOT_BEGUN, Processes

PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Starter:
    """What `Keeper` and `Guard` have in common; ``command``: the daemon's, ``log`` "": in the foreground, of a terminal."""

    def __init__(self, ready_fd: int, mountpoint: str, log: str, command: list[str], settings: int = -1) -> None:
        self.ready_fd = ready_fd
        self.mountpoint = mountpoint
        self.log = Log(log)
        self.in_foreground = not log
        self.command = command
        self.link = Link()
        self.processes = Processes()
        self.daemon = 0
        self.told = 0
        self.settings = settings
        if settings < 0:
            self.settings = os.memfd_create("luxfuse-settings", os.MFD_CLOEXEC)
            while chunk := os.read(0, 1 << 16):
                os.write(self.settings, chunk)

    def listen(self) -> None:
        """Pass signals on from now on."""
        for number in PASSED_ON:
            signal.signal(number, self.pass_on)
        signal.signal(signal.SIGCHLD, self.processes.reap)

    def held(self) -> dict[str, int]:
        """Return descriptors for the daemon, by flag."""
        return {}

    def is_successor(self) -> bool:
        """Whether the next daemon goes on where one died."""
        return False

    def pass_on(self, number: int, _frame: object) -> None:
        """Pass a signal on to the daemon; where there is none, the next one gets it."""
        if number != signal.SIGHUP:
            self.told = number
        self.send(number)

    def send(self, number: int) -> None:
        """Send the daemon a signal, if there is one."""
        if self.daemon:
            try:
                os.kill(self.daemon, number)
            except ProcessLookupError:
                pass

    def start(self) -> None:
        """Start a daemon; where the system lets no process be made, or has no descriptor left, there is none."""
        self.log.open()
        signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)  # until there is somebody to pass them on to
        try:
            self.daemon = self._fork()
        except OSError as exc:
            self.log.say(f"no daemon can be started: {exc}")
        if self.told:
            self.pass_on(self.told, None)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)

    def _fork(self) -> int:
        """Return the process of a daemon. Raises OSError."""
        if self.ready_fd < 0:
            self.ready_fd = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)  # nobody waits for it
        theirs = self.link.open()
        try:
            pid = os.fork()
            if pid == 0:
                try:
                    self.become_daemon(self.ready_fd, theirs.fileno())
                finally:
                    os._exit(127)
        finally:
            theirs.close()
        os.close(self.ready_fd)
        self.ready_fd = -1
        return pid

    def become_daemon(self, ready: int, link: int) -> None:
        """Be the daemon, after the fork."""
        if self.in_foreground:
            os.setpgid(0, 0)  # Ctrl-C reaches all of a terminal's group, and is passed on besides
        for number in (*PASSED_ON, signal.SIGCHLD, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        if not self.is_successor():
            signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
        os.lseek(self.settings, 0, os.SEEK_SET)
        os.dup2(self.settings, 0)
        fds = {"--ready-fd": ready, "--keeper-fd": link, **self.held()}
        arguments = [text for name, fd in fds.items() for text in (name, str(fd))]
        for path, fd in self.link.held.items():
            arguments += ["--held", f"{fd}={path}"]
        self.execute(self.command + arguments, [*fds.values(), *self.link.held.values()])

    def execute(self, command: list[str], fds: list[int]) -> None:
        """Let a command take this process, with these descriptors."""
        for fd in fds:
            os.set_inheritable(fd, True)
        os.execv(command[0], command)  # noqa: S606 (no shell is wanted)

    def await_end(self) -> int:
        """Wait for the daemon's end; returns its status, as waitpid(2) does."""
        status = self.processes.await_end(self.daemon, self.link) if self.daemon else NOT_BEGUN
        self.daemon = 0
        return status


def exit_code(status: int) -> int:
    """Return the keeper's exit code after a daemon that has not served."""
    return os.WEXITSTATUS(status) or 1 if os.WIFEXITED(status) else 1
