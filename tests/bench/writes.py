"""The measurements of writing. Before each trial the system is mounted anew with an empty cache, what earlier trials wrote
is gone, and `sync` has run. luxfuse is unmounted afterwards as users do, and the bucket must hold everything then.
"""

from __future__ import annotations

import io
import json
import random
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench import processes
from tests.bench.processes import Failed
from tests.bench.results import SUBJECT
from tests.bench.rows import ASYNC, THROUGH
from tests.bench.systems import BUCKET, Raw, System
from tests.bench.trials import KIB, MIB, READER, SETTLE_S, Trials, drop_caches

CREATED_BYTES = 10 * KIB
TREE_MEDIAN_BYTES, TREE_SPREAD, TREE_LARGEST_BYTES = 4 * KIB, 1.4, MIB  # much like the kernel's sources
WRITER = str(Path(__file__).with_name("writer.py"))


def create_tree(archive: Path, files: int) -> None:
    """Writes a tar archive of a source tree: directory ``tree``, about 15 files in each directory below it."""
    rng = random.Random(1)
    pool = rng.randbytes(TREE_LARGEST_BYTES * 2)
    directories = ["tree"]
    with tarfile.open(archive, "w") as tar:
        for number in range(files):
            if number % 15 == 0:
                directories.append(f"{rng.choice(directories[-40:])}/dir{number:05}")
                entry = tarfile.TarInfo(directories[-1])
                entry.type, entry.mode, entry.mtime = tarfile.DIRTYPE, 0o755, 1_700_000_000
                tar.addfile(entry)
            entry = tarfile.TarInfo(f"{directories[-1]}/file{number:05}.c")
            entry.size = min(int(TREE_MEDIAN_BYTES * rng.lognormvariate(0, TREE_SPREAD)), TREE_LARGEST_BYTES)
            entry.mode, entry.mtime = 0o644, 1_700_000_000 + number
            at = rng.randrange(TREE_LARGEST_BYTES)
            tar.addfile(entry, io.BytesIO(pool[at : at + entry.size]))


class Writes(Trials):
    """The rows about writing."""

    long_trial_s = 40.0

    def run(self) -> None:
        size, big = self.size, self.size.big_bytes

        def fsync(system: System) -> float:
            return big / 1e6 / self._writer("fsync", system.path / "written.bin", big)["seconds"]

        def close(system: System) -> float:
            if isinstance(system, Raw):
                seconds = system.upload(self._big_file(), "written.bin", timeout_s=size.write_timeout_s)["seconds"]
            else:
                stored = [path for path in (system.stored("written.bin"),) if path is not None]
                seconds = self._writer("close", system.path / "written.bin", big, *stored)["seconds"]
            return big / 1e6 / seconds

        def create(system: System) -> float:
            result = self._writer("create", system.path / "written", size.created_files, CREATED_BYTES)
            return size.created_files / result["seconds"]

        native = self._some("native")
        self._rows("write-fsync", native, ASYNC, fsync, big)
        self._rows("plain-write-fsync", native, ASYNC, fsync, big, passthrough=False)
        self._rows("write-close", self._some("raw"), THROUGH, close, big)
        self._rows("write-random", native, ASYNC, self._random, big)
        self._rows("plain-write-random", native, ASYNC, self._random, big, passthrough=False)
        self._rows("write-create", native, ASYNC, create, size.created_files * CREATED_BYTES)
        if "write-untar" in self.rows:
            create_tree(self.work / "tree.tar", size.tree_files)
        self._rows("write-untar", native, ASYNC, self._untar, None)

    def _amount(self, key: str) -> float | None:
        if key == "write-close" or key.endswith("write-fsync"):
            return self.size.big_bytes / 1e6
        return {"write-create": self.size.created_files, "write-untar": self.size.tree_files}.get(key)

    def _rows(self, key: str, systems: list[System], mode: str, action: Callable[[System], float],
              stored_bytes: int | None, *, passthrough: bool = True) -> None:  # fmt: skip
        def measure(system: System) -> dict[str, float]:
            with self._fresh(system, mode, stored_bytes, passthrough=passthrough):
                return {key: action(system)}

        self._trials([key], systems, measure)

    @contextmanager
    def _fresh(self, system: System, mode: str, stored_bytes: int | None, *, passthrough: bool
               ) -> Iterator[None]:  # fmt: skip
        """The system freshly mounted for writing, nothing of earlier trials left."""
        try:
            self._clear()
            system.start(mode, passthrough=passthrough)
            subprocess.run(["sync"], check=True)
            yield
        except BaseException:
            system.stop()
            raise
        system.stop()
        if system.name == SUBJECT:
            self._check_stored(stored_bytes)

    def _clear(self) -> None:
        bucket = self.server.bucket_path(BUCKET)
        for name in ("written", "tree"):
            shutil.rmtree(bucket / name, ignore_errors=True)
        for name in ("written.bin", "rewritten.bin"):
            (bucket / name).unlink(missing_ok=True)

    def _check_stored(self, expected_bytes: int | None) -> None:
        """Everything must be in the bucket after unmounting. None: the tree, by the number of files."""
        bucket = self.server.bucket_path(BUCKET)
        if expected_bytes is None:
            count = sum(path.suffix == ".c" for path in (bucket / "tree").rglob("*"))
            if count != self.size.tree_files:
                raise Failed(f"after unmounting, the bucket has {count} of {self.size.tree_files} files")
            return
        files = [bucket / "written.bin", bucket / "rewritten.bin", *(bucket / "written").glob("file_*")]
        found = sum(path.stat().st_size for path in files if path.exists())
        if found != expected_bytes:
            raise Failed(f"after unmounting, the bucket has {found} of {expected_bytes} bytes")

    def _writer(self, kind: str, path: Path, *arguments: object) -> dict[str, float]:
        command = [sys.executable, "-I", "-S", WRITER, kind, str(path), *map(str, arguments)]
        result: dict[str, float] = json.loads(processes.run(command, timeout_s=self.size.write_timeout_s))
        return result

    def _big_file(self) -> Path:
        """A local file to upload."""
        path = self.work / "big.bin"
        if not path.exists():
            self._writer("fsync", path, self.size.big_bytes)
        return path

    def _random(self, system: System) -> float:
        """fio on a file that was read whole through the same mount, so that it is in the cache.

        The kernel's caches are dropped before: what a small write to ext4 costs depends on the folios that are there, up to
        nine times as much in the large ones that large reads and writes make, and so they would differ.
        """
        system.place(self._big_file(), "rewritten.bin")
        path, size = system.path / "rewritten.bin", self.size
        processes.run([sys.executable, "-I", "-S", READER, "sequential", str(path)], timeout_s=size.write_timeout_s)
        system.settle(path)
        drop_caches()
        time.sleep(SETTLE_S)
        return float(self._fio(
            "--name=random", f"--filename={path}", "--rw=randwrite", "--bs=4k", "--ioengine=psync", "--direct=0",
            "--invalidate=0", "--fallocate=none", "--time_based", f"--runtime={size.random_write_s:g}",
            f"--size={size.big_bytes}", "--randrepeat=1",
            timeout_s=size.write_timeout_s,
        )["write"]["iops"])  # fmt: skip

    def _untar(self, system: System) -> float:
        started = time.perf_counter()
        processes.run(
            ["tar", "-xf", str(self.work / "tree.tar"), "-C", str(system.path), "--no-same-owner"],
            timeout_s=self.size.write_timeout_s,
        )
        return self.size.tree_files / (time.perf_counter() - started)
