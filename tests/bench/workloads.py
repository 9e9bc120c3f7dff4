"""The measurements of reading. Each runs its systems in turn, trial by trial: a noisy moment hits all of them alike.

Cold: the system is remounted with an empty cache, the kernel's caches are dropped, and then the server's own files are
read once, so that the server answers from memory and only the system under test is cold.
Warm: everything was read once through the same mount before; all systems stay mounted meanwhile.
"""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench import processes
from tests.bench.processes import Failed
from tests.bench.results import PEERS, SUBJECT, Goal, Row
from tests.bench.systems import BUCKET, Luxfuse, Mounted, Raw, System, program
from tests.bench.trials import KIB, MIB, Size, Trials

FILE_BYTES = 100 * KIB
LATENCY_MS = 20
LOAD_THREADS = 8
SETTLE_S = 1.0
READER = str(Path(__file__).with_name("reader.py"))
EACH_PEER = tuple((name,) for name in PEERS)


def rows_of(size: Size) -> list[Row]:
    big, files, few = f"{size.big_bytes // MIB} MiB", f"{size.files:,} files of 100 KiB", f"{size.latency_files} files"
    over_peers = [Goal(2, PEERS)]

    def times(factor: float) -> list[Goal]:
        return [Goal(factor, peer) for peer in EACH_PEER]

    rows = [
        Row("seq-warm", f"warm: {big}, 1 MiB reads", "MB/s", (Goal(0.95, ("native",)), *times(5))),
        Row("mmap-warm", f"warm: {big}, mmap", "MB/s", (Goal(0.95, ("native",)), *times(5))),
        Row("random-1", "warm: random 4 KiB, 1 thread", "reads/s", (Goal(0.9, ("native",)), *times(30))),
        Row("random-8", "warm: random 4 KiB, 8 threads", "reads/s", (Goal(0.9, ("native",)), *times(30))),
    ]
    rows += [
        Row(f"files-warm-{n}", f"warm: {files}, {n} reader{'s' * (n > 1)}", "files/s",
            (Goal(0.5, ("native",)), *over_peers))
        for n in (1, 8)
    ]  # fmt: skip
    rows.append(Row("seq-cold", f"cold: {big}, 1 MiB reads", "MB/s", (Goal(0.6, ("raw to file",)), *over_peers)))
    rows += [
        Row(f"files-cold-{n}", f"cold: {files}, {n} reader{'s' * (n > 1)}", "files/s",
            (Goal(0.5, ("raw",)), *over_peers))
        for n in (1, 8)
    ]  # fmt: skip
    rows += [
        Row("latency-files", f"cold, {LATENCY_MS} ms: {few}, 1 reader", "files/s", (Goal(10, PEERS),)),
        Row("latency-seq", f"cold, {LATENCY_MS} ms: {big}, 1 MiB reads", "MB/s", tuple(over_peers)),
    ]
    load_goal = (Goal(0.8, ("raw to file",)),)
    rows += [
        Row("load-files", f"luxfuse load: {size.load_files:,} files of 100 KiB", "files/s", load_goal),
        Row("load-seq", f"luxfuse load: {big}", "MB/s", load_goal),
    ]
    for count in size.listings:
        warm_goal = (Goal(1.0),) if count >= 100_000 else ()
        rows.append(Row(f"list-{count}-cold", f"cold: ls -f of {count:,}", "s", (Goal(1.5, ("raw",)),), True))
        rows.append(Row(f"list-{count}-warm", f"warm: ls -f of {count:,}", "s", warm_goal, True))
    return rows


def create_data(directory: Path, size: Size, wanted: Callable[[str], bool]) -> None:
    """Writes the bucket's objects as files; only what the wanted rows need."""
    with Path("/dev/urandom").open("rb") as source:
        pool = source.read(16 * MIB)
    if any(map(wanted, ("seq-warm", "mmap-warm", "random-1", "random-8", "seq-cold", "latency-seq", "load-seq"))):
        with (directory / "big.bin").open("wb") as out:
            for n in range(size.big_bytes // len(pool)):
                out.write(n.to_bytes(8, "little") + pool[8:])
    for name, key, count in (
        ("files", "files-", size.files), ("few", "latency-files", size.latency_files),
        ("load", "load-files", size.load_files),
    ):  # fmt: skip
        (directory / name).mkdir()
        for n in range(count if any(wanted(row.key) for row in rows_of(size) if row.key.startswith(key)) else 0):
            at = (n * 7919 * 64) % (len(pool) - FILE_BYTES)
            (directory / name / f"img_{n:06}.jpg").write_bytes(pool[at : at + FILE_BYTES])
    for count in size.listings:
        listed = directory / f"list{count}"
        listed.mkdir()
        if wanted(f"list-{count}-cold") or wanted(f"list-{count}-warm"):
            for n in range(count):
                (listed / f"sample_{n:07}.txt").write_bytes(b"x")
    subprocess.run(["sync"], check=True)


class Reads(Trials):
    """The rows about reading."""

    # running --------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        self._warm()
        self._cold()
        self._lists()

    def _amount(self, key: str) -> float | None:
        """How much work a row is, in its unit times seconds: what a cut-off trial did not do in its time."""
        if key.startswith("files-cold"):
            return self.size.files
        return {
            "seq-cold": self.size.big_bytes / 1e6, "latency-seq": self.size.big_bytes / 1e6,
            "latency-files": self.size.latency_files, "load-files": self.size.load_files,
            "load-seq": self.size.big_bytes / 1e6,
        }.get(key, 1.0 if key.endswith("-cold") else None)  # fmt: skip

    # commands -------------------------------------------------------------------------------------------------------

    def _reader(self, system: System, kind: str, name: str, *arguments: str, expected_bytes: int) -> dict[str, float]:
        command = [sys.executable, "-I", "-S", READER, kind, str(system.path / name), *arguments]
        return _checked(json.loads(processes.run(command, timeout_s=self.size.timeout_s)), expected_bytes)

    def _fio(self, system: System, threads: int) -> float:
        command = [
            program("fio"), "--name=random", f"--filename={system.path / 'big.bin'}", "--rw=randread", "--bs=4k",
            "--readonly", "--ioengine=psync", "--direct=0", "--invalidate=0", "--time_based",
            f"--runtime={self.size.random_s:g}", "--thread", f"--numjobs={threads}", "--group_reporting",
            f"--size={self.size.big_bytes}", "--randrepeat=1", "--output-format=json",
        ]  # fmt: skip
        output = processes.run(command, timeout_s=self.size.timeout_s)
        return float(json.loads(output[output.index("{") :])["jobs"][0]["read"]["iops"])

    def _ls(self, system: System, name: str, count: int) -> float:
        started = time.perf_counter()
        output = processes.run(["ls", "-f", str(system.path / name)], timeout_s=self.size.timeout_s)
        elapsed = time.perf_counter() - started
        seen = sum(line not in (".", "..") for line in output.splitlines())
        if seen != count:
            raise Failed(f"listed {seen} of {count} names")
        return elapsed

    # warm -----------------------------------------------------------------------------------------------------------

    def _warm(self) -> None:
        big = [k for k in ("seq-warm", "mmap-warm", "random-1", "random-8") if k in self.rows]
        small = [k for k in ("files-warm-1", "files-warm-8") if k in self.rows]
        if not big and not small:
            return
        systems = self._some("native")
        try:
            for system in systems:
                self.progress(f"warming {system.name}")
                self._warm_up(system, bool(big), bool(small))
            subprocess.run(["sync"], check=True)
            time.sleep(SETTLE_S)
            size, files = self.size.big_bytes, self.size.files
            for key, kind in (("seq-warm", "sequential"), ("mmap-warm", "mmap")):
                self._trials([key], systems, lambda s, key=key, kind=kind: {
                    key: size / 1e6 / self._reader(s, kind, "big.bin", expected_bytes=size)["seconds"]})  # fmt: skip
            for threads in (1, 8):
                key = f"random-{threads}"
                self._trials([key], systems, lambda s, key=key, threads=threads: {key: self._fio(s, threads)})
            for readers in (1, 8):
                key = f"files-warm-{readers}"
                self._trials([key], systems, lambda s, key=key, readers=readers: {
                    key: self.size.files / self._files(s, "files", files, readers)["read_seconds"]})  # fmt: skip
        finally:
            for system in systems:
                system.stop()
                if isinstance(system, Mounted):
                    system.unusable = None

    def _warm_up(self, system: System, big: bool, small: bool) -> None:
        try:
            system.start()
            if big:
                self._reader(system, "sequential", "big.bin", expected_bytes=self.size.big_bytes)
            if small:
                self._files(system, "files", self.size.files, 1)
        except (Failed, OSError) as error:
            system.unusable = str(error)

    def _files(self, system: System, name: str, count: int, readers: int) -> dict[str, float]:
        return self._reader(system, "files", name, str(readers), expected_bytes=count * FILE_BYTES)

    # cold -----------------------------------------------------------------------------------------------------------

    def _cold(self) -> None:
        big, files, few = self.size.big_bytes, self.size.files, self.size.latency_files

        def sequential(system: System) -> float:
            if isinstance(system, Raw):
                result = _checked(system.run("sequential", "big.bin", timeout_s=self.size.timeout_s), big)
            else:
                result = self._reader(system, "sequential", "big.bin", expected_bytes=big)
            return big / 1e6 / result["seconds"]

        def many(system: System, name: str, count: int, readers: int) -> float:
            if isinstance(system, Raw):
                result = system.run("files", name, threads=readers, timeout_s=self.size.timeout_s)
                _checked(result, count * FILE_BYTES)
            else:
                result = self._files(system, name, count, readers)
            return count / result["seconds"]

        self._cold_trials("seq-cold", "big.bin", self._some("raw", "raw to file"), sequential)
        for readers in (1, 8):
            self._cold_trials(
                f"files-cold-{readers}", "files", self._some("raw", "raw to file"),
                lambda s, readers=readers: many(s, "files", files, readers),
            )  # fmt: skip
        self._loads()
        self._cold_trials("latency-files", "few", self._some("raw"), lambda s: many(s, "few", few, 1), LATENCY_MS)
        self._cold_trials("latency-seq", "big.bin", self._some("raw"), sequential, LATENCY_MS)

    def _loads(self) -> None:
        systems = [s for s in self.systems if s.name in ("raw to file", SUBJECT)]
        big, files = self.size.big_bytes, self.size.load_files

        def load_files(system: System) -> float:
            if isinstance(system, Raw):
                result = system.run("files", "load", threads=LOAD_THREADS, timeout_s=self.size.timeout_s)
                return files / _checked(result, files * FILE_BYTES)["seconds"]
            return files / self._load(system, "load")

        def load_big(system: System) -> float:
            if isinstance(system, Raw):
                result = system.run("sequential", "big.bin", timeout_s=self.size.timeout_s)
                return big / 1e6 / _checked(result, big)["seconds"]
            return big / 1e6 / self._load(system, "big.bin")

        self._cold_trials("load-files", "load", systems, load_files)
        self._cold_trials("load-seq", "big.bin", systems, load_big)

    def _load(self, system: System, name: str) -> float:
        assert isinstance(system, Luxfuse)
        started = time.perf_counter()
        system.command("load", str(system.path / name), timeout_s=self.size.timeout_s)
        return time.perf_counter() - started

    def _cold_trials(self, key: str, name: str, systems: list[System], action: Callable[[System], float],
                     latency_ms: float = 0) -> None:  # fmt: skip
        def measure(system: System) -> dict[str, float]:
            with self._fresh(system, name, latency_ms):
                return {key: action(system)}

        self._trials([key], systems, measure)

    @contextmanager
    def _fresh(self, system: System, name: str, latency_ms: float = 0) -> Iterator[None]:
        """The system freshly mounted, every cache empty but the server's."""
        try:
            system.start()
            drop_caches()
            self._prime(name)
            if latency_ms:
                self.server.set(latency_ms=latency_ms)
            yield
        finally:
            if latency_ms:
                self.server.set(latency_ms=0)
            system.stop()

    def _prime(self, name: str) -> None:
        """Gets what the server will send into memory, and its listing into each of its workers."""
        target = self.server.bucket_path(BUCKET) / name
        if name.startswith("list"):
            processes.run(["ls", "-lU", str(target)], timeout_s=60)
        else:
            files = sorted(target.iterdir()) if target.is_dir() else [target]
            buffer = bytearray(MIB)
            for file in files:
                with file.open("rb", buffering=0) as opened:
                    while opened.readinto(buffer):
                        pass
        if target.is_dir():
            for _ in range(8):
                connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=60)
                connection.request("GET", f"/{BUCKET}?list-type=2&max-keys=1&delimiter=/&prefix={name}/")
                connection.getresponse().read()
                connection.close()

    # listings -------------------------------------------------------------------------------------------------------

    def _lists(self) -> None:
        for count in self.size.listings:
            name = f"list{count}"
            cold, warm = f"list-{count}-cold", f"list-{count}-warm"

            def measure(system: System, name: str = name, count: int = count, cold: str = cold, warm: str = warm
                        ) -> dict[str, float]:  # fmt: skip
                with self._fresh(system, name):
                    if isinstance(system, Raw):
                        result = system.run("list", name + "/", timeout_s=self.size.timeout_s)
                        if result["files"] != count:
                            raise Failed(f"listed {result['files']:g} of {count} names")
                        return {cold: result["seconds"]}
                    if not system.mounts:
                        return {warm: self._ls(system, name, count)}
                    return {cold: self._ls(system, name, count), warm: self._ls(system, name, count)}

            self._trials([cold, warm], self._some("native", "raw"), measure)
            if warm in self.rows:
                self.rows[warm].missing.pop("raw", None)


def _checked(result: dict[str, float], expected_bytes: int) -> dict[str, float]:
    if result["bytes"] != expected_bytes:
        raise Failed(f"read {result['bytes']:g} of {expected_bytes} bytes")
    return result


def drop_caches() -> None:
    subprocess.run(["sync"], check=True)
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError as error:
        raise Failed(f"cannot drop the kernel's caches: {error}") from None
