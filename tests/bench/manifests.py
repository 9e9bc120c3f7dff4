"""What a manifest costs: ``python -m tests.bench.manifests --names 1000000``.

A manifest of made-up names, in directories of equal size, is taken up by a running mount (``luxfuse index import``), whose
bucket is empty, and exported by it again. Told are names a second, processor time of the daemon for each, bytes a name in
the file and in the index, and the daemon's memory: what it has for itself, and with the pages of the index that it maps.
Then root and one directory are listed, which asks the server for no listing.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec

from luxfuse.index.entries import Found
from luxfuse.index.manifest import Head, ManifestWriter
from luxfuse.types import Kind
from tests.bench.processes import processor_s
from tests.support.fast_s3 import FastS3
from tests.support.mounted import Mount

PART = 20_000
LOOK_S = 0.2
TIMEOUT_S = 7200.0
MIB = 1 << 20


class Memory(NamedTuple):
    """Of a process, in bytes: what is its own, and all that it has mapped."""

    own: int
    all: int


def memory_of(pid: int) -> Memory:
    """What a process has now; nothing of one that is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return Memory(0, 0)
    found = dict(line.split(":", 1) for line in lines if line.startswith(("RssAnon:", "VmRSS:")))
    return Memory(*(int(found[name].split()[0]) << 10 for name in ("RssAnon", "VmRSS")))


class Watch:
    """The most memory that a process has had while this is entered."""

    def __init__(self, pid: int) -> None:
        self._pid, self._over = pid, threading.Event()
        self.most = memory_of(pid)
        self._thread = threading.Thread(target=self._look, daemon=True)

    def _look(self) -> None:
        while not self._over.wait(LOOK_S):
            self.most = Memory(*map(max, self.most, memory_of(self._pid)))

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def make(path: Path, head: Head, names: int, directories: int) -> None:
    """Write a manifest of so many files, which have ETags as S3 gives them, in so many directories."""
    writer = ManifestWriter(path, head)
    try:
        now_s, each = time.time(), names // directories
        writer.begin("", now_s)
        writer.add((Found(f"class{d:05}".encode(), Kind.DIRECTORY), None) for d in range(directories))
        for d in range(directories):
            writer.begin(f"class{d:05}", now_s)
            for first in range(0, each, PART):
                writer.add((_file(d, n), None) for n in range(first, min(each, first + PART)))
        writer.finish()
    finally:
        writer.close()


def _file(directory: int, number: int) -> Found:
    name = f"{directory:05}-{number:08}.jpg".encode()
    digest = hashlib.md5(name, usedforsecurity=False).digest()
    size, etag = 50_000 + int.from_bytes(digest[:2]), f'"{digest.hex()}"'
    return Found(name, Kind.FILE, size, etag, 1_790_000_000_000_000_000 + number * 1_000_000)


def head_of(mount: Mount, scratch: Path) -> Head:
    """The head of a manifest of what is mounted, made now."""
    mount.cli("index", "export", str(mount.path), str(scratch), check=True)
    with gzip.open(scratch) as file:
        return msgspec.json.decode(file.readline(), type=Head)


def index_bytes(mount: Mount) -> int:
    """What the files in the state directory take on disk."""
    return sum(path.stat().st_blocks * 512 for path in mount.state.rglob("*.mdb"))


def measured(what: str, mount: Mount, names: int, run: Callable[[], object]) -> None:
    """Run what is to be measured, and tell its figures."""
    began, before_s = time.perf_counter(), processor_s([mount.pid])
    with Watch(mount.pid) as watch:
        run()
    taken_s, used_s = time.perf_counter() - began, processor_s([mount.pid]) - before_s
    print(
        f"{what}: {taken_s:.1f} s, {names / taken_s:,.0f} names/s, {1e6 * used_s / names:.1f} us of the daemon a name; ",
        end="",
    )
    print(f"memory {watch.most.own / MIB:.0f} MiB, with the index {watch.most.all / MIB:.0f} MiB; ", end="")
    print(f"load {os.getloadavg()[0]:.1f}", flush=True)


def run(names: int, directories: int) -> None:
    """Measure."""
    with tempfile.TemporaryDirectory(prefix="manifests-") as scratch, FastS3() as server:
        server.bucket_path().mkdir(exist_ok=True)
        mount = Mount("s3://bucket", "--metadata-ttl", "7d", endpoint_url=server.endpoint, forked=False)
        try:
            mount.mount()
            file, again = Path(scratch, "manifest"), Path(scratch, "again")
            make(file, head_of(mount, again), names, directories)
            before = index_bytes(mount)
            own, everything = memory_of(mount.pid)
            print(
                f"{names:,} names in {directories:,} directories; the daemon before: memory {own / MIB:.0f} MiB, ", end=""
            )
            print(f"with the index {everything / MIB:.0f} MiB")
            path, options = str(mount.path), {"timeout_s": TIMEOUT_S, "check": True}
            measured("import", mount, names, lambda: mount.cli("index", "import", str(file), path, **options))
            print(f"{file.stat().st_size / names:.1f} bytes a name in the file, ", end="")
            print(f"{(index_bytes(mount) - before) / names:.1f} in the index")
            server.counters(reset=True)
            for directory in (mount.path, mount.path / "class00000"):
                began = time.perf_counter()
                seen = len(mount.do("list", str(directory)))
                lists = server.counters().get("lists", 0)
                print(f"{seen:,} names listed in {time.perf_counter() - began:.2f} s, with {lists} LISTs")
            measured("export", mount, names, lambda: mount.cli("index", "export", path, str(again), **options))
        finally:
            mount.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--names", type=int, default=1_000_000)
    parser.add_argument("--directories", type=int, default=100)
    given = parser.parse_args()
    run(given.names, given.directories)


if __name__ == "__main__":
    main()
