"""The keeper of a mount: holds the FUSE device, and starts the daemon again when it dies. A program of its own.

It imports nothing of luxfuse and little else, so that it stays small and has nothing that can fail: a connection lives as
long as somebody has the device open. What the next daemon must know of the last one is in the estate (`luxfuse.estate`),
memory in a file without a name, which the keeper makes and does not look into but for one word.

    keeper.py READY_FD STATE_FILE MOST MOUNTPOINT COMMAND...   settings on stdin

``COMMAND`` is the daemon's, to which ``--ready-fd``, ``--device-fd`` and ``--estate-fd`` are added; it finds the settings
on its stdin each time. A daemon that dies before it served ends the keeper with its exit code; one that ends with 0 has
unmounted. Any other end is a death, and the next daemon is started: at once, but after pauses that double, up to
`PAUSE_MOST_S`, where the last one has not served for `STEADY_S`. After MOST of these in a row the keeper gives up: it
answers every request with EIO, so that nobody hangs, until the mount is taken away, and says so in STATE_FILE.

SIGTERM, SIGINT and SIGHUP are passed on. A daemon that dies when it was told to end has a successor, too, which is told
in its turn, so that the mount ends in good order; if that one dies as well, or does not serve within `TOLD_PATIENCE_S`, the
keeper takes the mount away and ends. A successor begins with these signals blocked, and sees to them once it serves.
If the keeper dies, the daemon serves on, and has no successor.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import struct
import sys
import time

STEADY_S = 1.0
PAUSE_FIRST_S, PAUSE_MOST_S = 0.1, 5.0
SERVING = 1
"""The word `STATE` of an estate (`luxfuse.estate.words`) once the mount was in use."""
STATE_AT, SERVING_SINCE_AT = 2 * 8, 13 * 8
REQUEST_BYTES = (1 << 20) + (64 << 10)
RESEND = struct.pack("=IiQ", 16, 7, 0)
"""struct fuse_out_header with FUSE_NOTIFY_RESEND: the kernel sends again what a dead daemon has taken."""
NO_ANSWER = (2, 36, 42)
"""FUSE_FORGET, FUSE_INTERRUPT, FUSE_BATCH_FORGET."""
LEAST_OOM_SCORE = -900
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
TOLD_PATIENCE_S = 20
FSTYPE = "fuse.luxfuse"
MNT_FORCE, MNT_DETACH = 1, 2


def say(what: str) -> None:
    """Say something in the log, in its form."""
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    print(f'timestamp={when} level=warning logger=luxfuse.keeper event="{what}"', file=sys.stderr, flush=True)


def wait_status_text(status: int) -> str:
    """Say how a process ended."""
    if os.WIFSIGNALED(status):
        return f"signal {os.WTERMSIG(status)}"
    return f"exit code {os.waitstatus_to_exitcode(status)}"


class Keeper:
    """One mount."""

    def __init__(self, ready_fd: int, state_file: str, most: int, mountpoint: str, command: list[str]) -> None:
        self.ready_fd = ready_fd
        # Locked for as long as this process lives: so commands know that somebody goes on. Empty until it gives up.
        self.state = os.open(state_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self.state, fcntl.LOCK_EX)
        os.ftruncate(self.state, 0)
        self.most = most
        self.mountpoint = mountpoint
        self.began = 0.0
        self.command = command
        self.daemon = 0
        self.told = 0
        self.deaths = 0
        self.gave_up = False
        settings = os.memfd_create("luxfuse-settings", os.MFD_CLOEXEC)
        while chunk := os.read(0, 1 << 16):
            os.write(settings, chunk)
        self.settings = settings
        self.estate = os.memfd_create("luxfuse-estate", os.MFD_CLOEXEC)
        self.device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        self.oom_score = self.read_oom_score()
        self.write_oom_score(LEAST_OOM_SCORE)
        for number in PASSED_ON:
            signal.signal(number, self.pass_on)
        signal.signal(signal.SIGALRM, self.end_what_does_not_serve)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    @staticmethod
    def read_oom_score() -> int:
        """Return how likely this process is to be killed for memory."""
        try:
            with open("/proc/self/oom_score_adj", "rb", buffering=0) as file:  # noqa: PTH123 (pathlib is large)
                return int(file.read(32))
        except (OSError, ValueError):
            return 0

    @staticmethod
    def write_oom_score(score: int) -> None:
        """Set that."""
        try:
            with open("/proc/self/oom_score_adj", "wb", buffering=0) as file:  # noqa: PTH123 (as above)
                file.write(b"%d" % score)
        except OSError:
            pass  # it may not: then it is as likely to be killed as others of its size

    def pass_on(self, number: int, _frame: object) -> None:
        """Pass a signal on to the daemon; where there is none, the next one gets it."""
        if number != signal.SIGHUP:
            self.told = number
            if self.gave_up:
                self.take_away()
                os._exit(1)  # and so the connection ends
            if self.served():
                signal.alarm(TOLD_PATIENCE_S)
        if self.daemon:
            try:
                os.kill(self.daemon, number)
            except ProcessLookupError:
                pass

    def start(self) -> None:
        """Start a daemon."""
        ready = self.ready_fd if self.ready_fd >= 0 else os.open("/dev/null", os.O_WRONLY)
        self.began = time.monotonic()
        signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)  # until there is somebody to pass them on to
        pid = os.fork()
        if pid == 0:
            try:
                self.become_daemon(ready)
            finally:
                os._exit(127)
        os.close(ready)
        self.ready_fd = -1
        self.daemon = pid
        if self.told:
            self.pass_on(self.told, None)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)

    def end_what_does_not_serve(self, *_: object) -> None:
        """A daemon was told to end and has not even begun to serve: it is not waited for."""
        if self.daemon and self.serving_since() < self.began:
            try:
                os.kill(self.daemon, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def serving_since(self) -> float:
        """Return when the last daemon that served began to, by the monotonic clock."""
        return self.word(SERVING_SINCE_AT) / 1000

    def take_away(self) -> None:
        """Take the mount away, if it is still what is to be seen at its place."""
        import ctypes  # large, and only needed at this end

        try:
            with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:  # noqa: PTH123 (as below)
                lines = [line.split(" - ") for line in file]
        except OSError as exc:
            say(f"the mount is left behind: {exc}")
            return
        escaped = self.mountpoint
        for character in "\\\t\n ":
            escaped = escaped.replace(character, f"\\{ord(character):03o}")
        there = [after.split()[0] for before, after in lines if before.split()[4] == escaped]
        if there and there[-1] == FSTYPE:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.umount2(os.fsencode(self.mountpoint), MNT_FORCE | MNT_DETACH):
                say(f"the mount is left behind: {os.strerror(ctypes.get_errno())}")

    def become_daemon(self, ready: int) -> None:
        """Be the daemon, after the fork."""
        for number in (*PASSED_ON, signal.SIGCHLD, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        if not self.served():
            signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
        self.write_oom_score(self.oom_score)
        os.lseek(self.settings, 0, os.SEEK_SET)
        os.dup2(self.settings, 0)
        for fd in (ready, self.device, self.estate):
            os.set_inheritable(fd, True)
        kept = ["--ready-fd", str(ready), "--device-fd", str(self.device), "--estate-fd", str(self.estate)]
        os.execv(self.command[0], self.command + kept)  # noqa: S606 (no shell is wanted)

    def served(self) -> bool:
        """Whether a daemon has served the mount."""
        return self.word(STATE_AT) == SERVING

    def word(self, at: int) -> int:
        """Return a word of the estate."""
        found = os.pread(self.estate, 8, at)
        return int(struct.unpack("=q", found)[0]) if len(found) == 8 else 0

    def mounted(self) -> bool:
        """Whether the connection lives."""
        poll = select.poll()
        poll.register(self.device, 0)
        return not poll.poll(0)  # POLLERR: the mount is gone

    def run(self) -> int:
        """Keep the mount until its end; returns the exit code."""
        in_a_row = 0
        while True:
            told = self.told
            self.start()
            status = self.wait()
            if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
                return 0
            if not self.served():
                return os.WEXITSTATUS(status) or 1 if os.WIFEXITED(status) else 1
            if not self.mounted():
                return 1
            self.deaths += 1
            since = self.serving_since()
            steady = since >= self.began and time.monotonic() - since >= STEADY_S
            in_a_row = 0 if steady else in_a_row + 1
            how = wait_status_text(status)
            if told:
                say(f"the daemon died ({how}) as it was to end, as did the one before: the mount is taken away")
                self.take_away()
                return 1
            say(f"the daemon died ({how}) and is started again; deaths so far: {self.deaths}")
            if in_a_row >= self.most:
                self.give_up(f"the daemon died {in_a_row} times in a row as it began, at last by {how}; see the log")
                return 1
            if in_a_row > 1:
                self.pause(min(PAUSE_FIRST_S * 2 ** (in_a_row - 2), PAUSE_MOST_S))

    def wait(self) -> int:
        """Wait for the daemon's end; returns its status."""
        _, status = os.waitpid(self.daemon, 0)
        self.daemon = 0
        return status

    def pause(self, seconds: float) -> None:
        """Wait, unless told to end."""
        give_up_at = time.monotonic() + seconds
        while not self.told and (left := give_up_at - time.monotonic()) > 0:
            time.sleep(min(left, 0.1))

    def give_up(self, why: str) -> None:
        """Answer everything with EIO until the mount is gone."""
        self.gave_up = True
        say(f"all requests get EIO from now on: {why}")
        try:
            os.pwrite(self.state, why.encode(), 0)
        except OSError:
            pass  # it is in the log
        os.set_blocking(self.device, True)
        try:
            os.write(self.device, RESEND)
            while True:
                self.refuse(os.read(self.device, REQUEST_BYTES))
        except OSError as exc:
            if exc.errno != errno.ENODEV:
                raise

    def refuse(self, request: bytes) -> None:
        """Answer a request with EIO."""
        opcode, unique = struct.unpack_from("=4xIQ", request)
        if opcode not in NO_ANSWER:
            try:
                os.write(self.device, struct.pack("=IiQ", 16, -errno.EIO, unique))
            except OSError as exc:
                if exc.errno != errno.ENOENT:  # the caller is gone
                    raise


if __name__ == "__main__":
    sys.exit(Keeper(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4], sys.argv[5:]).run())
