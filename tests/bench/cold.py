"""The measurements of reading what was never read before, of loading, and of listing.

The system is remounted with an empty cache, the kernel's caches are dropped, and then the server's own files are read
once, so that the server answers from memory and only the system under test is cold. Systems are taken in turn, trial by
trial: a noisy moment hits all of them alike.
"""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.bench import processes
from tests.bench.data import is_listing, listed
from tests.bench.processes import Failed
from tests.bench.results import SUBJECT
from tests.bench.systems import BUCKET, Raw, System
from tests.bench.trials import FILE_BYTES, LATENCY_MS, MIB, Trials, checked, drop_caches

LOAD_THREADS = 8
REST_S = 0.5  # what a daemon does for a file after it was read counts too


class Fresh(Trials):
    """Trials that begin with every cache empty but the server's."""

    @contextmanager
    def _fresh(self, system: System, name: str, latency_ms: float = 0) -> Iterator[None]:
        """The system freshly mounted, every cache empty but the server's."""
        try:
            system.start()
            drop_caches()
            self._prime(system, name)
            if latency_ms:
                self.server.set(latency_ms=latency_ms)
            yield
        finally:
            if latency_ms:
                self.server.set(latency_ms=0)
            system.stop()

    def _prime(self, system: System, name: str) -> None:
        """Gets what the server will send into memory, and its listing into each of its workers."""
        target = self.server.bucket_path(BUCKET) / name
        if is_listing(name):
            processes.run(["ls", "-lU", str(target)], timeout_s=60)
        else:
            buffer = bytearray(MIB)
            for file in system.server_files(name):
                with file.open("rb", buffering=0) as opened:
                    while opened.readinto(buffer):
                        pass
        if target.is_dir():
            for _ in range(8):
                connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=60)
                connection.request("GET", f"/{BUCKET}?list-type=2&max-keys=1&delimiter=/&prefix={name}/")
                connection.getresponse().read()
                connection.close()


class Cold(Fresh):
    """Rows about cold files, loading and listings."""

    # running --------------------------------------------------------------------------------------------------------

    def run(self) -> None:
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

    def _ls(self, system: System, name: str, count: int) -> float:
        started = time.perf_counter()
        output = processes.run(["ls", "-f", str(system.path / name)], timeout_s=self.size.timeout_s)
        elapsed = time.perf_counter() - started
        seen = sum(line not in (".", "..") for line in output.splitlines())
        if seen != count:
            raise Failed(f"listed {seen} of {count} names")
        return elapsed

    # cold -----------------------------------------------------------------------------------------------------------

    def _cold(self) -> None:
        big, files, few = self.size.big_bytes, self.size.files, self.size.latency_files

        def sequential(system: System) -> float:
            if isinstance(system, Raw):
                result = checked(system.run("sequential", "big.bin", timeout_s=self.size.timeout_s), big)
            else:
                result = self._reader(system, "sequential", "big.bin", expected_bytes=big)
            return big / 1e6 / result["seconds"]

        def many(system: System, name: str, count: int, readers: int) -> dict[str, float]:
            if isinstance(system, Raw):
                result = system.run("files", name, threads=readers, timeout_s=self.size.timeout_s)
                return checked(result, count * FILE_BYTES)
            before = processes.processor_s(system.processes())
            result = self._files(system, name, count, readers)
            time.sleep(REST_S)
            return {**result, "processor_s": processes.processor_s(system.processes()) - before}

        def cold_files(system: System, readers: int) -> dict[str, float]:
            with self._fresh(system, "files"):
                result = many(system, "files", files, readers)
                figures = {f"files-cold-{readers}": files / result["seconds"]}
                return figures if readers > 1 else {**figures, "cpu-cold": result["processor_s"] / files * 1e6}

        systems = self._some("raw", "raw to file")
        self._cold_trials("seq-cold", "big.bin", systems, sequential)
        self._trials(["files-cold-1", "cpu-cold"], systems, lambda s: cold_files(s, 1))
        self._trials(["files-cold-8"], systems, lambda s: cold_files(s, 8))
        self._loads()
        self._cold_trials("latency-files", "few", self._some("raw"), lambda s: few / many(s, "few", few, 1)["seconds"],
                          LATENCY_MS)  # fmt: skip
        self._cold_trials("latency-seq", "big.bin", self._some("raw"), sequential, LATENCY_MS)

    def _loads(self) -> None:
        systems = [s for s in self.systems if s.name in ("raw to file", "juicefs", SUBJECT)]
        big, files = self.size.big_bytes, self.size.load_files

        def load_files(system: System) -> float:
            if isinstance(system, Raw):
                result = system.run("files", "load", threads=LOAD_THREADS, timeout_s=self.size.timeout_s)
                return files / checked(result, files * FILE_BYTES)["seconds"]
            return files / self._load(system, "load")

        def load_big(system: System) -> float:
            if isinstance(system, Raw):
                result = system.run("sequential", "big.bin", timeout_s=self.size.timeout_s)
                return big / 1e6 / checked(result, big)["seconds"]
            return big / 1e6 / self._load(system, "big.bin")

        self._cold_trials("load-files", "load", systems, load_files)
        self._cold_trials("load-seq", "big.bin", systems, load_big)

    def _load(self, system: System, name: str) -> float:
        started = time.perf_counter()
        system.load(system.path / name, timeout_s=self.size.timeout_s)
        return time.perf_counter() - started

    def _cold_trials(self, key: str, name: str, systems: list[System], action: Callable[[System], float],
                     latency_ms: float = 0) -> None:  # fmt: skip
        def measure(system: System) -> dict[str, float]:
            with self._fresh(system, name, latency_ms):
                return {key: action(system)}

        self._trials([key], systems, measure)

    # listings -------------------------------------------------------------------------------------------------------

    def _lists(self) -> None:
        for count in self.size.listings:
            name = listed(count)
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
