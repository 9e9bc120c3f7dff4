"""Breaks what a storm has drawn: kills daemons, lets the under-store fail, fills the disk."""

from __future__ import annotations

import math
import os
import select
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from tests.storm import plan as plans
from tests.storm.guarded import GuardedProxy
from tests.storm.report import StormMount, stuck
from tests.storm.verdict import Window
from tests.support.disks import Disk
from tests.support.fast_s3 import FastS3
from tests.support.fault_proxy import FaultProxy

DIES_S = 20.0
FREED_S = 120.0
SUCCESSOR_S = 120.0
MOUNTED_S = 90.0


class Breaks:
    """The tracks of a storm that break something, and when they did.

    ``zero``: when it began, by the monotonic clock. When ``over`` is set nothing is broken any more.
    """

    def __init__(self, plan: plans.Plan, mount: StormMount, s3: FastS3, proxy: FaultProxy, disk: Disk, *,
                 keeper: bool) -> None:  # fmt: skip
        self._plan, self._mount, self._s3, self._proxy, self._disk, self._keeper = plan, mount, s3, proxy, disk, keeper
        self.over = threading.Event()
        self.zero = time.monotonic()
        self.windows: list[Window] = []
        self.kills = 0
        self.faults: Counter[str] = Counter()

    def until(self, at: float) -> bool:
        """Wait until so many seconds after the beginning; whether the storm still is."""
        return not self.over.wait(max(0.0, self.zero + at - time.monotonic()))

    @contextmanager
    def window(self, kind: str) -> Iterator[None]:
        """Something is broken for the block."""
        opened = Window(kind, time.monotonic(), math.inf)
        self.windows.append(opened)
        try:
            yield
        finally:
            self.windows[self.windows.index(opened)] = Window(kind, opened.begin, time.monotonic())

    # -- daemons

    def kill_daemons(self) -> None:
        """Kill daemons; without a keeper, mount again."""
        for lives in self._plan.kills:
            kill_at = time.monotonic() - self.zero + lives
            if kill_at > self._plan.seconds or not self.until(kill_at):
                return
            with self.window("kill"):
                before = self._mount.pid
                if self._keeper:
                    self._mount.kill_daemon(wait=False)
                    self.kills += 1
                    self._await_successor(before)
                else:
                    self._kill_for_good(before)
                    self.kills += 1
                    self._mount_again()

    def _await_successor(self, before: int) -> None:
        give_up_at = time.monotonic() + SUCCESSOR_S
        while not self._mount.serves_as_successor_of(before):
            if time.monotonic() > give_up_at:
                raise AssertionError(
                    f"no successor within {SUCCESSOR_S:g} s of pid {before}: {stuck(before)}\n{self._mount.log()[-3000:]}"
                )
            time.sleep(0.05)

    def _kill_for_good(self, before: int) -> None:
        """Kill a daemon that has no successor. One that waits inside the kernel (B8) is freed as users would."""
        descriptor = os.pidfd_open(before)
        try:
            self._mount.kill_daemon(wait=False)
            if select.select([descriptor], [], [], DIES_S)[0]:
                return
            where = stuck(before)
            done = self._mount.cli("unmount", "--force", self._mount.path)
            self.faults["stuck in the kernel, and freed by unmount --force"] += 1
            assert done.returncode == 0, f"unmount --force, of a daemon in {where}: {done.stderr}"
            assert select.select([descriptor], [], [], FREED_S)[0], f"not freed by unmount --force: {where}"
        finally:
            os.close(descriptor)

    def _mount_again(self) -> None:
        """Mount until that works: during an outage it may be refused."""
        give_up_at = time.monotonic() + MOUNTED_S
        while True:
            done = self._mount.try_mount()
            if done.returncode == 0:
                return
            self.faults["mount refused"] += 1
            if time.monotonic() > give_up_at:
                raise AssertionError(f"cannot be mounted again: {done.stderr}")
            time.sleep(0.2)

    # -- store and disk

    def break_store(self) -> None:
        """Let the under-store fail."""
        for each in self._plan.store:
            if not self.until(each.at):
                return
            self.faults[each.what] += 1
            with self.window(plans.WINDOWS.get(each.what, "store")):
                self._break_it(each.what)
                self.until(each.at + each.seconds)
                self._proxy.recover()
                self._s3.set(rate_bytes_s=0)

    def _break_it(self, what: str) -> None:
        match what:
            case "errors":
                self._proxy.set(error_probability=0.6, error_status=500)
            case "throttled":
                self._proxy.set(error_probability=0.6, error_status=503)
            case "refused":
                self._proxy.outage(True)
            case "black hole":
                self._proxy.set(hold=True)
            case "slow":
                self._proxy.set(latency_s=1.0)
            case "resets":
                self._proxy.set(reset_probability=0.5)
            case "truncated":
                self._proxy.set(truncate_probability=0.5)
            case "stalled":
                self._proxy.set(stall_probability=0.4)
            case "trickle":
                self._s3.set(rate_bytes_s=1000)
            case "forbidden":
                self._proxy.set(error_probability=1.0, error_status=403)
            case _:
                assert isinstance(self._proxy, GuardedProxy), what
                self._proxy.fail(what)

    def fill_disk(self) -> None:
        """Let somebody else fill the cache disk, and remove that again."""
        for each in self._plan.disk:
            if not self.until(each.at):
                return
            self.faults["disk full"] += 1
            with self.window("disk"):
                self._disk.fill_up()
                self.until(each.at + each.seconds)
                self._disk.make_room()
