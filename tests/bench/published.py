"""``--suite published``: recipes that others publish figures of, and many workers on small cold files.

fio as in the read benchmarks of gcsfuse's documentation: `direct=1`, `libaio`, `iodepth=64`, threads that each read files
of their own, one open at a time; fewer files and jobs, as this disk and these processors are smaller. Each is read cold,
and once more through the same mount. ImageNet-like: 32 processes share files of 100 KiB in random order, as mountpoint-s3's
issue 554 has it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from tests.bench import data
from tests.bench.cold import Fresh
from tests.bench.processes import Failed
from tests.bench.results import Row
from tests.bench.systems import Raw, System
from tests.bench.trials import FILE_BYTES, GIB, KIB, MIB, SETTLE_S, Size, checked

WORKERS = 32
IMAGES = "load"
JOB = "read"


@dataclass(frozen=True)
class Recipe:
    """So many jobs read so many files each, with block sizes as published."""

    name: str
    file_bytes: int
    block_bytes: int
    jobs: int
    files: int
    random: bool = False

    @property
    def directory(self) -> str:
        return f"fio-{self.name.removeprefix('random-')}"

    @property
    def total_bytes(self) -> int:
        return self.file_bytes * self.jobs * self.files


RECIPES = {
    "full": (
        Recipe("128k", 128 * KIB, 128 * KIB, 30, 48), Recipe("1m", MIB, MIB, 30, 12), Recipe("10m", 10 * MIB, MIB, 20, 2),
        Recipe("100m", 100 * MIB, MIB, 10, 1), Recipe("1g", GIB, MIB, 1, 1),
        Recipe("random-10m", 10 * MIB, MIB, 20, 2, True), Recipe("random-1g", GIB, MIB, 1, 1, True),
    ),
    "small": (
        Recipe("128k", 128 * KIB, 128 * KIB, 8, 16), Recipe("10m", 10 * MIB, MIB, 4, 2),
        Recipe("random-10m", 10 * MIB, MIB, 4, 2, True),
    ),
}  # fmt: skip


def rows(size: Size) -> list[Row]:
    found = []
    for recipe in RECIPES[size.name]:
        order = "random" if recipe.random else "sequential"
        what = f"fio, {recipe.jobs} x {recipe.files} files of {data.size_text(recipe.file_bytes)}, {order}"
        found += [Row(f"fio-{recipe.name}-{state}", f"{state}: {what}", "MB/s") for state in ("cold", "warm")]
    title = f"cold: {WORKERS} workers, {size.load_files:,} files of 100 KiB in random order"
    return [*found, Row("imagenet", title, "files/s")]


def fill(bucket: Path, size: Size, keys: set[str], work: Path) -> set[str]:
    """Makes what the rows read; the names of the directories."""
    names = set()
    for recipe in RECIPES[size.name]:
        if recipe.directory not in names and {f"fio-{recipe.name}-cold", f"fio-{recipe.name}-warm"} & keys:
            names.add(recipe.directory)
            (bucket / recipe.directory).mkdir()
            for job in range(recipe.jobs):
                for file in range(recipe.files):
                    data.write_large(bucket / recipe.directory / f"{JOB}.{job}.{file}", recipe.file_bytes)
    return names | data.create(bucket, size, {IMAGES} if "imagenet" in keys else set())


class Published(Fresh):
    """The rows of this suite."""

    def run(self) -> None:
        for recipe in RECIPES[self.size.name]:
            cold, warm = f"fio-{recipe.name}-cold", f"fio-{recipe.name}-warm"
            self._trials([cold, warm], self._some("native", "raw"), lambda s, recipe=recipe: self._recipe(s, recipe))
            if warm in self.rows:
                self.rows[warm].missing.pop("raw", None)
        self._trials(["imagenet"], self._some("raw", "raw to file"), self._images)

    def _amount(self, key: str) -> float | None:
        if key == "imagenet":
            return self.size.load_files
        found = (r.total_bytes / 1e6 for r in RECIPES[self.size.name] if key == f"fio-{r.name}-cold")
        return next(found, None)

    def _recipe(self, system: System, recipe: Recipe) -> dict[str, float]:
        cold, warm = f"fio-{recipe.name}-cold", f"fio-{recipe.name}-warm"
        with self._fresh(system, recipe.directory):
            if isinstance(system, Raw):
                result = system.run("files", recipe.directory, threads=recipe.jobs, timeout_s=self.size.timeout_s)
                return {cold: recipe.total_bytes / 1e6 / checked(result, recipe.total_bytes)["seconds"]}
            if not system.mounts:
                return {warm: self._published_fio(system, recipe)}
            figures = {cold: self._published_fio(system, recipe)}
            time.sleep(SETTLE_S)
            return {**figures, warm: self._published_fio(system, recipe)}

    def _published_fio(self, system: System, recipe: Recipe) -> float:
        job = self._fio(
            f"--name={JOB}", f"--rw={'randread' if recipe.random else 'read'}", "--readonly", "--ioengine=libaio",
            "--direct=1", "--iodepth=64", "--invalidate=1", "--fadvise_hint=0", "--thread", "--openfiles=1",
            "--group_reporting", "--create_serialize=0", "--allrandrepeat=0", "--file_service_type=random",
            "--filename_format=$jobname.$jobnum.$filenum", f"--directory={system.path / recipe.directory}",
            f"--filesize={recipe.file_bytes}", f"--bs={recipe.block_bytes}", f"--numjobs={recipe.jobs}",
            f"--nrfiles={recipe.files}",
        )["read"]  # fmt: skip
        if job["io_bytes"] != recipe.total_bytes:
            raise Failed(f"fio read {job['io_bytes']} of {recipe.total_bytes} bytes")
        return recipe.total_bytes / 1e3 / job["runtime"]

    def _images(self, system: System) -> dict[str, float]:
        count = self.size.load_files
        with self._fresh(system, IMAGES):
            if isinstance(system, Raw):
                result = system.run("files", IMAGES, threads=WORKERS, timeout_s=self.size.timeout_s)
                checked(result, count * FILE_BYTES)
            else:
                result = self._reader(system, "shuffled", IMAGES, str(WORKERS), expected_bytes=count * FILE_BYTES)
            return {"imagenet": count / result["seconds"]}
