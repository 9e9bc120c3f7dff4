"""One process of a storm: works on a mount, and compares all that it finds with its own record of what was acknowledged.

    python -m tests.storm.worker SETTINGS     (JSON: `Settings`)

It ends when the file ``stop`` of its directory is there, and looks at everything once more. It writes events, a line of
JSON each, to ``events``, and the call that is under way to ``now``, so that one that never returns is seen, too.

All calls go through a descriptor of the root of the mount: so none of them reaches what is below the mountpoint while there
is no mount. One that finds no daemon waits until there is one again, as an operator would.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.storm.calls import Failed, Settings
from tests.storm.common import Common
from tests.storm.files import content, os_rename
from tests.storm.record import Absent, Beginning, Changed, Exactly

FILES_MOST = 24
STEPS_LEAST = 10
"""Also where the machine is so busy that the storm is over before."""
GONE = (errno.ENOTCONN, errno.ECONNABORTED)


class Worker(Common):
    """The work."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.held: list[tuple[int, int, bytes, str]] = []
        """Files that stay open for reading: descriptor, generation, content, name."""

    # -- its life

    def run(self, stop: Path) -> None:
        """Work until told to stop; then look at everything."""
        self.call.connect()
        self.begin()
        steps = (
            self.make, self.make, self.overwrite, self.checkpoint, self.append, self.change, self.truncate, self.rename,
            self.rename, self.remove, self.read, self.read, self.read_part, self.read_shared, self.read_shared_part,
            self.read_checkpoint, self.list, self.settle, self.settle, self.hold, self.look_at_held, self.log_more,
            self.log_more, self.directories, self.links, self.stat,
        )  # fmt: skip
        while self.steps < STEPS_LEAST or not stop.exists():
            step = self.rng.choice(steps)
            try:
                step()
            except Failed as exc:
                self.after(exc)
            self.steps += 1
        self.finish()

    def after(self, exc: Failed) -> None:
        """A call failed: what is done next is what a program would do."""
        if exc.error in GONE and not self.s.keeper:
            self.forget_open()
            self.call.connect()
        elif exc.error in GONE:
            self.call.connect()
        time.sleep(0.02)

    def patiently(self, step: Callable[[], None], give_up_s: float = 60) -> None:
        """Repeat a step until it works."""
        give_up_at = time.monotonic() + give_up_s
        while True:
            try:
                return step()
            except Failed as exc:
                if time.monotonic() > give_up_at:
                    self.call.wrong(f"{step.__name__} does not work any more: {exc}")
                    return None
                self.after(exc)
                time.sleep(0.2)

    def begin(self) -> None:
        """Make the directory."""
        self.patiently(self.make_home)

    def make_home(self) -> None:
        self.call.at("mkdir", self.home, os.mkdir, fine=(errno.EEXIST,))
        self.sync_directory("")

    def finish(self) -> None:
        """Look at everything, and write down what is there."""
        self.forget_open()
        while self.record.doubtful():
            self.patiently(self.settle)
        for name in self.record.known():
            self.patiently(lambda name=name: self.check(name))  # type: ignore[misc]
        self.patiently(self.list)
        self.patiently(self.checkpoint)
        files = {self.path(name): self.record.content(name) or b"" for name in self.record.known()}
        files[f"common/{self.s.worker}"] = self.published
        self.call.event(
            files={name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
            debris=[self.path(name) for name in self.record.debris], steps=self.steps, made=dict(self.call.made),
            longest=self.call.longest, end=time.monotonic(),
        )  # fmt: skip

    def forget_open(self) -> None:
        """Close what stays open, whatever that says."""
        left = [fd for fd, *_ in self.held] + ([self.log[0]] if self.log else [])
        if self.log is not None:
            # What was appended and not synced was never promised.
            _, _, name, synced = self.log
            never = () if synced else (Absent(),)
            self.record.may_be(name, Beginning(synced + self.unsynced, least=len(synced)), *never)
        self.held, self.log = [], None
        for fd in left:
            try:
                os.close(fd)
            except OSError:
                pass  # no promise is asked for

    # -- steps

    def make(self) -> None:
        if len(self.record.known()) >= FILES_MOST:
            return self.remove()
        name, data = f"f{self.steps}", self.content()
        self.record.may_be(name, Beginning(data))
        self.put(self.path(name), data, os.O_CREAT | os.O_EXCL)
        self.record.wrote(name, data)
        return None

    def overwrite(self) -> None:
        if name := self.some():
            self.rewrite(name)

    def rewrite(self, name: str) -> None:
        data = self.content()
        self.record.may_be(name, Beginning(data))
        self.put(self.path(name), data, os.O_CREAT | os.O_TRUNC)
        self.record.wrote(name, data)

    def settle(self) -> None:
        """Look at a name of which something is not known, and write it anew or remove it."""
        names = [n for n in self.record.doubtful() if self.log is None or n != self.log[2]]
        if not names:
            return
        name = self.rng.choice(names)
        self.check(name)
        if self.rng.random() < 0.5:
            self.rewrite(name)
        else:
            self.unlink(name)

    def append(self) -> None:
        name = self.some()
        if name is None or len(self.record.content(name) or b"") > 2_000_000:
            return
        base, data = self.record.content(name) or b"", self.content()
        self.record.may_be(name, Beginning(base + data, least=len(base)))
        self.put(self.path(name), data, os.O_APPEND)
        self.record.wrote(name, base + data)

    def change(self) -> None:
        name = self.some()
        base = self.record.content(name) if name else None
        if not name or not base:
            return
        offset = self.rng.randrange(len(base))
        data = content(f"change {self.steps}", min(self.rng.choice((1, 50, 9000)), len(base) - offset))
        self.record.may_be(name, Changed(base, offset, data))
        path = self.path(name)
        with self.writing(path, os.O_RDWR) as fd:
            done = 0
            while done < len(data):
                done += self.call("pwrite", path, os.pwrite, fd, data[done:], offset + done)
        self.record.wrote(name, base[:offset] + data + base[offset + len(data) :])

    def truncate(self) -> None:
        name = self.some()
        base = self.record.content(name) if name else None
        if not name or base is None:
            return
        size = self.rng.randrange(len(base) + 1)
        self.record.may_be(name, Exactly(base[:size]))
        path = self.path(name)
        with self.writing(path, os.O_RDWR) as fd:
            self.call("ftruncate", path, os.ftruncate, fd, size)
        self.record.wrote(name, base[:size])

    def rename(self) -> None:
        old = self.some()
        if old is None:
            return
        new = self.some() if self.rng.random() < 0.3 else f"r{self.steps}"
        if new is None or new == old:
            return
        before = {name: self.record.of(name) for name in (old, new)}
        try:
            self.call.at("rename", self.path(old), os_rename, self.path(new))
        except Failed as exc:
            self.record.may_have_been_renamed(old, new)
            self.after(exc)
            found = {name: self.load(self.path(name)) for name in (old, new)}
            if said := self.record.judge_failed_rename(before, found, old, new):
                self.call.wrong(f"step {self.steps}: {said}")
            return
        self.record.renamed(old, new)
        self.names_changed()

    def remove(self) -> None:
        if len(self.record.known()) > 6 and (name := self.some()):
            self.unlink(name)

    def unlink(self, name: str) -> None:
        maybe_gone = Absent() in self.record.of(name)
        self.record.may_be(name, Absent())
        self.call.at("unlink", self.path(name), os.unlink, fine=(errno.ENOENT,) if maybe_gone else ())
        self.names_changed()
        self.record.removed(name)
        self.check(name)

    def read(self) -> None:
        if name := self.some():
            generation = self.call.generation
            number = self.call.at("stat", self.path(name), os.stat).st_ino
            self.check(name)
            now = self.call.at("stat", self.path(name), os.stat).st_ino
            if now != number and generation == self.call.generation:
                self.call.wrong(f"step {self.steps}: {name} has another inode number: {now}, not {number}")

    def read_part(self) -> None:
        name = self.some()
        base = self.record.content(name) if name else None
        if not name or not base:
            return
        offset, size = self.rng.randrange(len(base)), self.rng.choice((1, 4096, 100_000))
        path = self.path(name)
        fd = self.call.at("open", path, os.open, os.O_RDONLY)
        try:
            found = self.call("pread", path, os.pread, fd, size, offset)
            self.call.wrong(self.record.judge_part(name, offset, size, found))
        finally:
            self.close(fd, path, writing=False)

    def list(self) -> None:
        fd = self.call.at("opendir", self.home, os.open, os.O_RDONLY | os.O_DIRECTORY)
        try:
            names = self.call("list", self.home, os.listdir, fd)
        finally:
            os.close(fd)
        self.call.wrong(self.record.judge_listing(names))

    def stat(self) -> None:
        if name := self.some():
            st = self.call.at("stat", self.path(name), os.stat)
            wanted = len(self.record.content(name) or b"")
            if st.st_size != wanted or not stat.S_ISREG(st.st_mode):
                self.call.wrong(f"step {self.steps}: {name} is said to have {st.st_size} bytes, not {wanted}")

    def hold(self) -> None:
        """Open a file, remove it, and keep it open."""
        name = self.some()
        if name is None or len(self.held) >= 4:
            return
        data = self.record.content(name) or b""
        fd = self.call.at("open", self.path(name), os.open, os.O_RDONLY)
        try:
            # B11: what the cache lacks of it is not promised after a death.
            while self.call("read", self.path(name), os.read, fd, 1 << 20):
                pass
            self.unlink(name)
        except Failed:
            self.close(fd, name, writing=False)
            raise
        self.held.append((fd, self.call.generation, data, name))

    def look_at_held(self) -> None:
        if not self.held:
            return
        fd, generation, data, name = self.held.pop(self.rng.randrange(len(self.held)))
        try:
            if generation == self.call.generation:
                found = self.call("pread", f"{self.home}/{name} (held)", os.pread, fd, len(data) + 1, 0)
                if found != data[: len(found)] or len(found) < min(len(data), 100_000):
                    self.call.wrong(f"step {self.steps}: {name}, held open, shows {len(found)} bytes, not {len(data)}")
        finally:
            self.close(fd, name, writing=False)

    unsynced = b""

    def log_more(self) -> None:
        """Append to a file that stays open, and sync now and then."""
        if self.log is None:
            name = f"log{self.steps}"
            self.record.may_be(name, Beginning(b""))
            flags = os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_WRONLY
            fd = self.call.at("open", self.path(name), os.open, flags, 0o644)
            self.log, self.unsynced = (fd, self.call.generation, name, b""), b""
            self.record.may_be(name, Exactly(b""))
            return None
        fd, generation, name, synced = self.log
        if generation != self.call.generation:
            return self.forget_open()
        line = content(f"log {self.steps}", 300)
        self.unsynced += line
        whole = synced + self.unsynced
        self.record.may_be(name, Beginning(whole, least=len(synced)))
        try:
            self.write(fd, self.path(name), line)
            if self.rng.random() < 0.5:
                self.call("fsync", self.path(name), os.fsync, fd)
                self.log, self.unsynced = (fd, generation, name, whole), b""
                self.record.wrote(name, whole)
            if len(whole) > 20_000:
                self.log = None
                self.close(fd, self.path(name), writing=True)
                self.record.wrote(name, whole)
        except Failed:
            self.forget_open()
            raise
        return None

    def directories(self) -> None:
        """Make, fill, rename and remove a directory."""
        old, new = f"d{self.steps}", f"m{self.steps}"
        self.record.leave(old, new)
        self.call.at("mkdir", self.path(old), os.mkdir)
        data = self.content()
        self.put(self.path(f"{old}/file"), data, os.O_CREAT | os.O_EXCL)
        self.call.at("rename", self.path(old), os_rename, self.path(new))
        if self.load(self.path(f"{new}/file")) != data:
            self.call.wrong(f"step {self.steps}: what was in a directory is not as it was after a rename")
        self.call.at("unlink", self.path(f"{new}/file"), os.unlink)
        self.call.at("rmdir", self.path(new), os.rmdir)

    def links(self) -> None:
        """Make, read and remove a symlink."""
        name, target = f"l{self.steps}", f"target {self.steps}"
        self.record.leave(name)
        self.call.at("symlink", self.path(name), lambda path, dir_fd: os.symlink(target, path, dir_fd=dir_fd))
        if (found := self.call.at("readlink", self.path(name), os.readlink)) != target:
            self.call.wrong(f"step {self.steps}: {name} leads to {found}, not to {target}")
        self.call.at("unlink", self.path(name), os.unlink)


def main() -> None:
    """Work, as the command line says."""
    settings = Settings(**json.loads(sys.argv[1]))
    Worker(settings).run(Path(settings.directory) / "stop")


if __name__ == "__main__":
    main()
