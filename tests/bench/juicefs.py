"""JuiceFS community edition: names and attributes in SQLite, contents as objects of its own in the same server.

It reads only what was written through it. So the objects of the bucket are copied through a mount once (`prepare`), and
each start begins with a copy of the metadata from then and an empty cache: what a trial wrote is gone for the next.
"""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

from tests.bench import processes
from tests.bench.data import is_listing
from tests.bench.processes import Failed
from tests.bench.systems import BUCKET, Mounted, program

VOLUME = "juicefs"  # also its bucket
FILL_TIMEOUT_S = 1200.0  # 20,000 small files are to be created one by one
KNOWN_FOR_S = "3600"  # names and attributes, as for all systems


class JuiceFS(Mounted):
    name = "juicefs"
    command = "juicefs"

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.kept = self.work.with_name("juicefs-metadata")
        self.objects: dict[str, list[Path]] = {}

    def prepare(self, names: set[str]) -> None:
        try:
            self.kept.mkdir()
            processes.run([
                program("juicefs"), "format", "--storage", "s3", "--bucket", f"{self.server.endpoint}/{VOLUME}",
                "--access-key", self.server.access_key, "--secret-key", self.server.secret_key, "--no-update",
                "--trash-days", "0", f"sqlite3://{self.kept}/meta.db", VOLUME,
            ], timeout_s=60)  # fmt: skip
            self.start("cache-through")
            for name in sorted(names):
                self._copy(name)
            self._leave()
            for name in filter(is_listing, names):
                self._fill(name)
            _copy_tree(self.state, self.kept)
        except (Failed, OSError) as error:
            self.unusable = f"preparing: {error}"
        finally:
            self.stop()

    def mount(self) -> None:
        _copy_tree(self.kept, self.state)
        command = [
            program("juicefs"), "mount", f"sqlite3://{self.state}/meta.db", str(self.path), "--no-syslog",
            "--log", str(self.log), "--cache-dir", str(self.cache), "--free-space-ratio", "0.02",
            "--attr-cache", KNOWN_FOR_S, "--entry-cache", KNOWN_FOR_S, "--dir-entry-cache", KNOWN_FOR_S,
            "--open-cache", KNOWN_FOR_S, "--backup-meta", "0", "--metrics", "127.0.0.1:0", "--no-usage-report",
        ]  # fmt: skip
        if self.write_mode is None:
            command.append("--read-only")
        elif self.write_mode == "async-through":
            command.append("--writeback")
        self.run_foreground(command)

    def load(self, path: Path, *, timeout_s: float) -> None:
        processes.run([program("juicefs"), "warmup", str(path)], timeout_s=timeout_s)

    def server_files(self, name: str) -> list[Path]:
        return self.objects[name]

    def place(self, source: Path, name: str) -> None:
        processes.run(["cp", str(source), str(self.path / name)], timeout_s=FILL_TIMEOUT_S)

    def stored(self, name: str) -> Path | None:
        return None

    def _bucket(self) -> set[Path]:
        return {path for path in self.server.bucket_path(VOLUME).rglob("*") if path.is_file()}

    def _copy(self, name: str) -> None:
        source, before = self.server.bucket_path(BUCKET) / name, self._bucket()
        if is_listing(name):
            (self.path / name).mkdir()
            (self.path / name / next(source.iterdir()).name).touch()
        else:
            processes.run(["cp", "-r", str(source), str(self.path)], timeout_s=FILL_TIMEOUT_S)
        self.objects[name] = sorted(self._bucket() - before)

    def _leave(self) -> None:
        """Unmounts, and keeps the metadata."""
        process, self.process = self.process, None
        processes.free(self.path)
        if process is not None:
            processes.stop(process, timeout_s=30)

    def _fill(self, name: str) -> None:
        """Adds the other, empty, files of a directory to the metadata: to create them would take 5 ms each."""
        metadata, dumped = self.state / "meta.db", self.state / "dump.json"
        juicefs = program("juicefs")
        processes.run([juicefs, "dump", "--keep-secret-key", f"sqlite3://{metadata}", str(dumped)], timeout_s=60)
        document = json.loads(dumped.read_text())
        _clone(document, name, [path.name for path in (self.server.bucket_path(BUCKET) / name).iterdir()])
        dumped.write_text(json.dumps(document))
        for file in self.state.glob("meta.db*"):
            file.unlink()
        processes.run([juicefs, "load", f"sqlite3://{metadata}", str(dumped)], timeout_s=FILL_TIMEOUT_S)
        dumped.unlink()


def _copy_tree(source: Path, target: Path) -> None:
    """SQLite makes its shared memory anew."""
    shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*-shm"))


def _clone(document: dict[str, Any], directory: str, names: list[str]) -> None:
    """Makes files of all names from the one file of a directory in dumped metadata."""
    entries, counters = document["FSTree"]["entries"][directory]["entries"], document["Counters"]
    (first,) = entries.values()
    for name in names:
        if name not in entries:
            entries[name] = copy.deepcopy(first)
            entries[name]["attr"]["inode"] = counters["nextInodes"]
            counters["nextInodes"] += 1
            counters["usedInodes"] += 1
