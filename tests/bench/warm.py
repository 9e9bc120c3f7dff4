"""The measurements of reading what was read once through the same mount before; all systems stay mounted meanwhile."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable

from tests.bench.processes import Failed, TooSlow, kill_after, kill_group
from tests.bench.systems import System
from tests.bench.trials import READER, SETTLE_S, Trials, checked, drop_caches

DROP_FILES = 1


class Warm(Trials):
    """Rows about warm files: with passthrough, then without, then of a file that is open since it was cold."""

    def run(self) -> None:
        every = self._some("native")
        self._mounted("", every, passthrough=True)
        self._mounted("plain-", every, passthrough=False)
        self._trials(["held-random"], every, self._held)

    def _mounted(self, prefix: str, systems: list[System], *, passthrough: bool) -> None:
        """The rows of one kind of mount; with ``prefix`` those whose large file is not in the kernel's page cache."""
        sequential, plain = ("plain-seq", True) if prefix else ("seq-warm", False)
        big = {"plain-seq", "seq-warm", "mmap-warm", *(f"{prefix}random-{n}" for n in (1, 8))}
        many = {f"plain-files-{n}" if prefix else f"files-warm-{n}" for n in (1, 8)} | {"cpu-warm"}
        mine = {key for key in self.rows if key.startswith("plain-") == plain}
        if not mine & (big | many):
            return
        broken = [system for system in systems if system.unusable is not None]
        try:
            for system in systems:
                self.progress(f"warming {system.name}")
                self._warm_up(system, bool(mine & big), bool(mine & many), passthrough=passthrough)
            subprocess.run(["sync"], check=True)
            time.sleep(SETTLE_S)
            self._large(sequential, prefix, systems, plain)
            self._many("plain-files" if prefix else "files-warm", systems, plain)
        finally:
            for system in systems:
                system.stop()
                if system not in broken:
                    system.unusable = None

    def _warm_up(self, system: System, big: bool, small: bool, *, passthrough: bool) -> None:
        if system.unusable is not None:
            return
        try:
            system.start(passthrough=passthrough)
            if big:
                self._reader(system, "sequential", "big.bin", expected_bytes=self.size.big_bytes)
                system.settle(system.path / "big.bin")
            if small:
                self._files(system, "files", self.size.files, 1)
        except (Failed, OSError) as error:
            system.unusable = str(error)

    def _large(self, sequential: str, prefix: str, systems: list[System], plain: bool) -> None:
        size = self.size.big_bytes

        def whole(system: System, key: str, kind: str) -> dict[str, float]:
            if plain:
                drop_caches(DROP_FILES)
            return {key: size / 1e6 / self._reader(system, kind, "big.bin", expected_bytes=size)["seconds"]}

        def random(system: System, key: str, threads: int) -> dict[str, float]:
            if plain:
                drop_caches(DROP_FILES)
            return {key: self._random_reads(system, threads)}

        self._warm_trials(sequential, systems, lambda s: whole(s, sequential, "sequential"))
        if not plain:
            self._warm_trials("mmap-warm", systems, lambda s: whole(s, "mmap-warm", "mmap"))
        for threads in (1, 8):
            key = f"{prefix}random-{threads}"
            self._warm_trials(key, systems, lambda s, key=key, threads=threads: random(s, key, threads))

    def _many(self, start: str, systems: list[System], plain: bool) -> None:
        count = self.size.files

        def read(system: System, key: str, readers: int) -> dict[str, float]:
            result = self._files(system, "files", count, readers)
            figures = {key: count / result["read_seconds"]}
            if readers == 1 and not plain and system.mounts:
                figures["cpu-warm"] = result["processor_s"] / count * 1e6
            return figures

        for readers in (1, 8):
            key = f"{start}-{readers}"
            keys = [key, "cpu-warm"] if readers == 1 and not plain else [key]
            self._warm_trials(keys, systems, lambda s, key=key, readers=readers: read(s, key, readers))

    def _warm_trials(self, keys: str | list[str], systems: list[System],
                     measure: Callable[[System], dict[str, float]]) -> None:  # fmt: skip
        keys = [keys] if isinstance(keys, str) else keys
        self._trials(keys, systems, measure, self.size.warm_trials)

    def _random_reads(self, system: System, threads: int) -> float:
        return float(self._fio(
            "--name=random", f"--filename={system.path / 'big.bin'}", "--rw=randread", "--bs=4k", "--readonly",
            "--ioengine=psync", "--direct=0", "--invalidate=0", "--time_based", f"--runtime={self.size.random_s:g}",
            "--thread", f"--numjobs={threads}", "--group_reporting", f"--size={self.size.big_bytes}", "--randrepeat=1",
        )["read"]["iops"])  # fmt: skip

    def _held(self, system: System) -> dict[str, float]:
        """One process opens the file cold, reads it whole, and reads at random by the same descriptor later."""
        path = system.path / "big.bin"
        command = [sys.executable, "-I", "-S", READER, "held", str(path), f"{self.size.random_s:g}"]
        try:
            system.start()
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
            )
            timer = kill_after(process.pid, 2 * self.size.timeout_s)
            try:
                assert process.stdout is not None
                if process.stdout.readline() != "read\n":
                    raise Failed("the file was not read")
                system.settle(path)
                time.sleep(SETTLE_S)
                drop_caches(DROP_FILES)
                out, _ = process.communicate("\n", timeout=self.size.timeout_s)
            except subprocess.TimeoutExpired:
                raise TooSlow(self.size.timeout_s) from None
            finally:
                timer.cancel()
                kill_group(process.pid)
                process.wait(5)
            result = checked(json.loads(out), self.size.big_bytes)
            return {"held-random": result["reads"] / result["seconds"]}
        finally:
            system.stop()
