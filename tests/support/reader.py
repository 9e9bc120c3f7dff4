"""Reads a mount from a process of its own, on orders, so that a mount that hangs can never hang the tests.

Run as a program (`PROGRAM` is its text, for ``python -c``): takes one order a line as JSON, ``[verb, argument, ...]``,
and answers each with one line, ``{"value": ...}`` or ``{"errno": number}``. Bytes come back as length and SHA-256, so
that answers stay short. Verbs are the public methods of `Verbs`; ``os.NAME`` calls that function of `os`.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import random
import sys
from pathlib import Path

PROGRAM = Path(__file__).read_text() if "__file__" in globals() else ""
BLOCK = 1 << 20


def digest(data) -> list:
    """What an answer says of bytes."""
    return [len(data), hashlib.sha256(data).hexdigest()]


class Verbs:
    """What the process can be told to do. ``name`` names an open file or a mapping between orders."""

    def __init__(self) -> None:
        self.files: dict[str, int] = {}
        self.maps: dict[str, mmap.mmap] = {}

    def open(self, name: str, path: str, flags: int = os.O_RDONLY) -> None:
        self.files[name] = os.open(path, flags)

    def close(self, name: str) -> None:
        os.close(self.files.pop(name))

    def fstat(self, name: str) -> list:
        """Size and number of links of an open file."""
        st = os.fstat(self.files[name])
        return [st.st_size, st.st_nlink]

    def pread(self, name: str, offset: int, length: int) -> list:
        return digest(os.pread(self.files[name], length, offset))

    def all(self, name: str, block: int = BLOCK) -> list:
        """The whole open file, in blocks from the start."""
        total, seen = hashlib.sha256(), 0
        while data := os.pread(self.files[name], block, seen):
            total.update(data)
            seen += len(data)
        return [seen, total.hexdigest()]

    def backwards(self, name: str, block: int) -> list:
        """The whole open file, in blocks from the end; the digest is that of the file."""
        size = os.fstat(self.files[name]).st_size
        starts = range(0, size, block)
        parts = {start: os.pread(self.files[name], block, start) for start in reversed(starts)}
        return digest(b"".join(parts[start] for start in starts))

    def file(self, path: str, block: int = BLOCK) -> list:
        """Open, read, close."""
        fd = os.open(path, os.O_RDONLY)
        try:
            self.files["\0"] = fd
            return self.all("\0", block)
        finally:
            os.close(fd)

    def file_order(self, directory: str, names: list[str]) -> list:
        """Several files of a directory, one after the other."""
        return [self.file(f"{directory}/{name}") for name in names]

    def epoch(self, directory: str, names: list[str]) -> list:
        """Open, fstat, read whole and close several files; returns what fstat said of each: mode, mtime and size."""
        found = []
        for name in names:
            fd = os.open(f"{directory}/{name}", os.O_RDONLY)
            st = os.fstat(fd)
            while os.read(fd, BLOCK):
                pass
            os.close(fd)
            found.append([st.st_mode, st.st_mtime_ns, st.st_size])
        return found

    def lstats(self, directory: str) -> dict:
        """What `ls -l` learns: mode, owner and mtime of each entry, in the order of the listing."""
        found = {}
        for name in os.listdir(directory):
            st = os.lstat(f"{directory}/{name}")
            found[name] = [st.st_mode, st.st_uid, st.st_gid, st.st_mtime_ns]
        return found

    def sendfile(self, path: str) -> list:
        """The whole file through sendfile."""
        fd = os.open(path, os.O_RDONLY)
        copy = os.memfd_create("copy")
        try:
            while os.sendfile(copy, fd, None, 1 << 24):
                pass
            os.lseek(copy, 0, os.SEEK_SET)
            with os.fdopen(os.dup(copy), "rb") as f:
                return digest(f.read())
        finally:
            os.close(copy)
            os.close(fd)

    def map(self, name: str, path: str) -> None:
        """Map a file and close its descriptor."""
        fd = os.open(path, os.O_RDONLY)
        try:
            self.maps[name] = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
        finally:
            os.close(fd)

    def mapped(self, name: str, offset: int = 0, length: int = 1 << 62) -> list:
        return digest(self.maps[name][offset : min(offset + length, len(self.maps[name]))])

    def unmap(self, name: str) -> None:
        self.maps.pop(name).close()

    def stat(self, path: str) -> dict:
        st = os.lstat(path)
        return {
            "ino": st.st_ino,
            "size": st.st_size,
            "mode": st.st_mode,
            "mtime_ns": st.st_mtime_ns,
            "uid": st.st_uid,
            "gid": st.st_gid,
        }

    def list(self, path: str) -> list:
        """Names in the order of readdir, surrogate escapes for what is not UTF-8."""
        return os.listdir(path)

    def list_slowly(self, path: str) -> list:
        """Names as readdir gives them, with the inode numbers that it says."""
        with os.scandir(path) as entries:
            return [[entry.name, entry.inode(), entry.is_dir(follow_symlinks=False)] for entry in entries]

    def tree(self, path: str) -> list:
        """Every path below, sorted, relative."""
        found = []
        for directory, names, files in os.walk(path):
            found += [os.path.relpath(os.path.join(directory, n), path) for n in [*names, *files]]
        return sorted(found)

    def getxattr(self, path: str, name: str) -> str:
        return os.getxattr(path, name, follow_symlinks=False).decode()

    def statvfs(self, path: str) -> dict:
        st = os.statvfs(path)
        return {"bsize": st.f_bsize, "blocks": st.f_blocks, "bfree": st.f_bfree, "namemax": st.f_namemax, "flag": st.f_flag}

    def create(self, path: str) -> None:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o644))

    def setxattr(self, path: str) -> None:
        os.setxattr(path, "user.test", b"1")

    def stress(self, root: str, versions: dict, seconds: float, seed: int, least: int = 0) -> dict:
        """Open, read, map and close files at random for some time; ``versions`` holds block digests (see `stress`)."""
        return stress(root, versions, seconds, random.Random(seed), least)


def stress(root: str, versions: dict, seconds: float, rng: random.Random, least: int) -> dict:
    """``versions``: name -> [size, file with the allowed contents one after the other]. Every handle must show slices
    of one and the same version, whatever happens; ESTALE is fine and ends it. On a busy machine, where some seconds
    are enough for little, it goes on until there were ``least`` opens, and as many reads."""
    import errno
    import time

    contents = {}
    for name, (size, path) in versions.items():
        data = Path(path).read_bytes()
        contents[name] = [data[i : i + size] for i in range(0, len(data), size)]
    held: list = []
    counts = {"opens": 0, "reads": 0, "maps": 0, "stale": 0, "missing": 0}
    problems: list[str] = []
    give_up_at = time.monotonic() + seconds

    def check(entry, offset: int, data: bytes, how: str) -> None:
        name, _, possible = entry[:3]
        still = [v for v in possible if contents[name][v][offset : offset + len(data)] == data]
        if not still:
            problems.append(f"{how} of {name} at {offset} (+{len(data)}): bytes of none of the versions {possible}")
        entry[2] = still or possible

    while (time.monotonic() < give_up_at or min(counts["opens"], counts["reads"]) < least) and len(problems) < 5:
        action = rng.random()
        try:
            if not held or (action < 0.35 and len(held) < 12):
                name = rng.choice(sorted(contents))
                fd = os.open(f"{root}/{name}", os.O_RDONLY)
                counts["opens"] += 1
                held.append([name, fd, list(range(len(contents[name]))), None])
                if rng.random() < 0.3:
                    held[-1][3] = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
            elif action < 0.8:
                entry = rng.choice(held)
                size = versions[entry[0]][0]
                offset = rng.randrange(size)
                length = rng.choice((1, 4096, 100_000, 1 << 20, size))
                data = os.pread(entry[1], length, offset)
                counts["reads"] += 1
                check(entry, offset, data, "read")
                if len(data) != min(length, size - offset):
                    # Short only before an error, which the next read must meet.
                    rest = os.pread(entry[1], 4096, offset + len(data))
                    problems.append(f"short read of {entry[0]} at {offset}: {len(data)} of {length}, then {len(rest)}")
            elif action < 0.9:
                entry = rng.choice(held)
                # Only where a page that cannot be had would not kill us: SIGBUS is how mmap says ESTALE.
                if entry[3] is not None and not entry[0].startswith("changing"):
                    offset = rng.randrange(versions[entry[0]][0])
                    check(entry, offset, entry[3][offset : offset + 70_000], "mmap")
                    counts["maps"] += 1
            else:
                entry = held.pop(rng.randrange(len(held)))
                if entry[3] is not None:
                    entry[3].close()
                os.close(entry[1])
        except OSError as exc:
            if exc.errno == errno.ESTALE:
                counts["stale"] += 1
            elif exc.errno == errno.ENOENT:
                counts["missing"] += 1
            else:
                problems.append(f"{exc!r} during action {action:.2f}")
    return {"problems": problems, **counts}


def main() -> None:
    verbs = Verbs()
    for line in sys.stdin:
        verb, *arguments = json.loads(line)
        function = getattr(os, verb[3:]) if verb.startswith("os.") else getattr(verbs, verb)
        try:
            if verb.startswith("os."):
                arguments = [tuple(a) if isinstance(a, list) else a for a in arguments]
            answer = {"value": function(*arguments)}
        except OSError as exc:
            answer = {"errno": exc.errno}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
