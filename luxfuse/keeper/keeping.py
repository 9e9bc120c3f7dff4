"""Keeps one mount; see `luxfuse.keeper`."""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import time

from luxfuse.keeper import HANDED_OVER, systemd
from luxfuse.keeper.device import mounted, refuse_all, take_away
from luxfuse.keeper.ending import Ending, Endings
from luxfuse.keeper.guarding import Guard
from luxfuse.keeper.handing import Held, take
from luxfuse.keeper.log import Log
from luxfuse.keeper.process import status_text
from luxfuse.keeper.starting import PASSED_ON, Starter, exit_code
from luxfuse.keeper.words import serving_since_ms, was_served

STEADY_S = 1.0
PAUSE_FIRST_S, PAUSE_MOST_S = 0.1, 5.0
LEAST_OOM_SCORE = -900
TOLD_PATIENCE_S = 20
BEGIN_PATIENCE_S = 120
"""For how long a successor is waited for that does not say that it gets on."""
UPGRADED_PATIENCE_S = 45
"""For one that was upgraded; less than systemd waits for the service (WatchdogSec)."""
LOCK_PATIENCE_S = 2.0


class Keeper(Starter):
    """One mount."""

    def __init__(
        self, holds: Held, ready_fd: int, state_file: str, most: int, mountpoint: str, log: str, command: list[str]
    ) -> None:
        super().__init__(ready_fd, mountpoint, log, command, holds.settings)
        self.arguments = ["-1", state_file, str(most), mountpoint, log]
        self.state = holds.state
        self.most = most
        self.began = 0.0
        self.deaths = 0
        self.gave_up = False
        self.former = holds.former
        self.link.held.update(holds.lasting)
        self.link.mounted = holds.mounted
        self.link.on_progress = self.wait_on
        if self.in_foreground:
            self.link.on_held, self.link.on_dropped = systemd.hold, systemd.drop
        self.link.on_stuck = self.end_what_is_stuck
        self.endings = Endings()
        self.device = holds.device
        self.estate = holds.estate if holds.estate >= 0 else os.memfd_create("luxfuse-estate", os.MFD_CLOEXEC)
        self.oom_score = read_oom_score()
        write_oom_score(LEAST_OOM_SCORE)
        signal.signal(signal.SIGALRM, self.end_what_does_not_serve)

    def held(self) -> dict[str, int]:
        """Return descriptors for the daemon, by flag."""
        return {"--device-fd": self.device, "--estate-fd": self.estate}

    def is_successor(self) -> bool:
        """Whether a daemon has served the mount."""
        return was_served(self.estate)

    def pass_on(self, number: int, frame: object) -> None:
        """Pass a signal on to the daemon. One that is told to end is not waited for for ever."""
        if number != signal.SIGHUP:
            if self.gave_up:
                self.take_away()
                os._exit(1)  # and so the connection ends
            left = signal.alarm(TOLD_PATIENCE_S)
            signal.alarm(min(left or TOLD_PATIENCE_S, TOLD_PATIENCE_S))
        super().pass_on(number, frame)

    def start(self) -> None:
        """Start a daemon. One that goes on with the mount has to serve in time, or to say that it gets on."""
        self.began = time.monotonic()
        self.beat()
        self.be_patient()
        super().start()

    def become_daemon(self, ready: int, link: int) -> None:
        """Be the daemon, after the fork."""
        write_oom_score(self.oom_score)
        super().become_daemon(ready, link)

    def end_what_does_not_serve(self, *_: object) -> None:
        """A daemon has not begun to serve in time: it is not waited for."""
        if self.daemon and self.serving_since() < self.began:
            self.log.say(f"the daemon does not serve after {time.monotonic() - self.began:.0f} s, and is ended")
            self.send(signal.SIGKILL)

    def end_what_is_stuck(self, said_ms: int) -> None:
        """A daemon that serves says that it cannot go on: its successor can, unless that gets stuck again and again."""
        if not self.daemon or self.serving_since() < self.began or not mounted(self.device):
            return
        ending = self.endings.judge(self.daemon, said_ms / 1000, time.monotonic())
        if ending is not Ending.NOTHING:
            self.log.say(ending.value)
        if ending is Ending.END:
            self.send(signal.SIGKILL)

    def wait_on(self) -> None:
        """The daemon gets on with its beginning, which may take as long as the store does: it is waited for."""
        if not self.told and self.serving_since() < self.began:
            self.beat()
            self.be_patient()

    def be_patient(self) -> None:
        """Wait for a successor from now on, but not for ever."""
        if self.is_successor():
            signal.alarm(UPGRADED_PATIENCE_S if self.former else BEGIN_PATIENCE_S)

    def beat(self) -> None:
        """Tell systemd that the service lives, though no daemon says so."""
        if self.in_foreground:
            systemd.notify("WATCHDOG=1")

    def serving_since(self) -> float:
        """Return when the last daemon that served began to, by the monotonic clock."""
        return serving_since_ms(self.estate) / 1000

    def run(self) -> int:
        """Keep the mount until its end; returns the exit code."""
        in_a_row = 0
        self.listen()
        while True:
            told = self.told
            self.start()
            status = self.await_end()
            if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
                return 0
            if not self.is_successor():
                if not os.WIFEXITED(status) and not self.told:
                    self.log.say(f"the daemon died ({status_text(status)}) before it served")
                if mounted(self.device):
                    self.take_away()
                return exit_code(status)
            if not mounted(self.device):
                return 1
            if os.WIFEXITED(status) and os.WEXITSTATUS(status) == HANDED_OVER and self.link.next is not None:
                self.become_next(*self.link.next)
                continue
            self.deaths += 1
            since = self.serving_since()
            steady = since >= self.began and time.monotonic() - since >= STEADY_S
            in_a_row = 0 if steady else in_a_row + 1
            how = status_text(status)
            if told:
                self.log.say(f"the daemon died ({how}) as it was to end, as did the one before: the mount is taken away")
                self.take_away()
                return 1
            self.log.say(f"the daemon died ({how}) and is started again; deaths so far: {self.deaths}")
            if self.former and (since < self.began or in_a_row > 1):
                self.log.say("it was upgraded, and does not serve: the one before is started")
                self.command, self.former = self.former, []
            elif steady:
                self.former = []
            if in_a_row >= self.most:
                self.give_up(f"the daemon died {in_a_row} times in a row as it began, at last by {how}; see the log")
                return 1
            if in_a_row > 1:
                self.pause(min(PAUSE_FIRST_S * 2 ** (in_a_row - 2), PAUSE_MOST_S))

    def become_next(self, keeper: list[str], daemon: list[str]) -> None:
        """Be the keeper of another luxfuse, which starts its daemon; returns only where that cannot be."""
        signal.alarm(0)
        signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)  # until the next one passes them on
        if self.told:
            os.kill(os.getpid(), self.told)
        write_oom_score(self.oom_score)
        holds = Held()
        holds.device, holds.estate, holds.settings, holds.state = self.device, self.estate, self.settings, self.state
        holds.mounted, holds.lasting = self.link.mounted, self.link.held
        holds.former = self.command if daemon != self.command else []
        fds = holds.fds()
        for fd in fds:
            os.set_inheritable(fd, True)
        try:
            os.execv(keeper[0], [*keeper, *holds.arguments(), *self.arguments, *daemon])  # noqa: S606 (no shell is wanted)
        except OSError as exc:
            self.log.say(f"the other luxfuse cannot go on ({exc}): the one before is started again")
        for fd in fds:
            os.set_inheritable(fd, False)
        write_oom_score(LEAST_OOM_SCORE)

    def pause(self, seconds: float) -> None:
        """Wait, unless told to end."""
        give_up_at = time.monotonic() + seconds
        while not self.told and (left := give_up_at - time.monotonic()) > 0:
            time.sleep(min(left, 0.1))

    def give_up(self, why: str) -> None:
        """Answer everything with EIO until the mount is gone; if this was told to end, take it away."""
        self.gave_up = True
        if self.told:
            self.take_away()
            return
        self.log.say(f"all requests get EIO from now on: {why}")
        self.link.release()
        try:
            os.pwrite(self.state, why.encode(), 0)
        except OSError:
            pass  # it is in the log
        if self.in_foreground:
            systemd.notify(f"STATUS=all requests get EIO: {why}")
        signal.alarm(0)
        try:
            refuse_all(self.device, self.beat, systemd.beat_every_s() if self.in_foreground else None)
        except OSError as exc:
            self.log.say(f"requests cannot be refused ({exc}): the mount is taken away")
            self.take_away()

    def take_away(self) -> None:
        """Take the mount away; by its number, unless the daemon died before it said that."""
        try:
            take_away(self.mountpoint, self.link.mounted)
        except OSError as exc:
            self.log.say(f"the mount is left behind: {exc}")


def read_oom_score() -> int:
    """Return how likely this process is to be killed for memory."""
    try:
        with open("/proc/self/oom_score_adj", "rb", buffering=0) as file:  # noqa: PTH123 (pathlib is large)
            return int(file.read(32))
    except (OSError, ValueError):
        return 0


def write_oom_score(score: int) -> None:
    """Set that."""
    try:
        with open("/proc/self/oom_score_adj", "wb", buffering=0) as file:  # noqa: PTH123 (as above)
            file.write(b"%d" % score)
    except OSError:
        pass  # it may not: then it is as likely to be killed as others of its size


def lock_state(path: str) -> int:
    """Open the file that is locked as long as somebody goes on, and empty until it gives up.

    Raises BlockingIOError if another keeper has it, and has not just ended; OSError.
    """
    state = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    give_up_at = time.monotonic() + LOCK_PATIENCE_S
    while True:
        try:
            fcntl.flock(state, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > give_up_at:
                raise
            time.sleep(0.02)
    os.ftruncate(state, 0)
    return state


def main() -> int:
    """Keep the mount that the command line says. Returns the exit code."""
    holds, arguments = take(sys.argv[1:])
    if arguments == ["--try"]:
        return 0
    ready_fd, state_file, most, mountpoint, log, *command = arguments
    goes_on = holds.device >= 0
    if int(most) and can_keep(holds, state_file, log):
        keeper = Keeper(holds, int(ready_fd), state_file, int(most), mountpoint, log, command)
        if keeper.in_foreground:
            systemd.store(keeper.device, keeper.estate, keeper.settings)
            for name, fd in holds.lasting.items():
                systemd.hold(name, fd)
        code = keeper.run()
        if keeper.in_foreground:
            systemd.forget(keeper.link.held)
        return code
    if goes_on:
        return 1
    for fd in holds.fds():
        os.close(fd)  # the daemon takes its own, and says what is wrong
    return Guard(int(ready_fd), mountpoint, log, command).run()


def can_keep(holds: Held, state_file: str, log: str) -> bool:
    """Open what is not held yet; returns whether this process may keep the mount."""
    goes_on = holds.device >= 0
    try:
        if not goes_on:
            holds.device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        if holds.state < 0:
            holds.state = lock_state(state_file)
    except BlockingIOError:
        if goes_on:
            Log(log).say("another keeper has the mount still")
        return False
    except OSError as exc:
        if goes_on:  # the mount is worth more than a word about it
            Log(log).say(f"{state_file}: {exc.strerror}; commands will not know that the mount has a keeper")
        return goes_on
    return True
