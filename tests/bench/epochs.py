"""Epochs in random order whose order is told: ``python -m tests.bench.epochs``. Run it where nothing else runs.

Two measurements. *Latency*: 2,000 files of 100 KiB, each request 20 ms, a cache for half of them, worker processes as
those of a DataLoader: samples/s with the order told and not told, and with everything local (a cache for
all of it, second epoch).
*Cold*: 20,000 files, 8 workers, an empty cache, order told: files/s beside those of ``luxfuse load``.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from luxfuse.training import in_order
from tests.bench.processes import processor_s
from tests.support.fast_s3 import FastS3
from tests.support.mounted import Mount

FILES, FILE_BYTES = 2000, 100 << 10
COLD_FILES, COLD_BYTES = 20_000, 16 << 10
EPOCHS = 3
"""The first of each fills the cache, and does not count."""
BATCH, PREFETCH = 16, 2
"""As a DataLoader has them: so many samples go to a worker at once, and so many batches wait with each."""


def _work(numbers: multiprocessing.Queue, done: multiprocessing.Queue, paths: Sequence[str]) -> None:
    while (batch := numbers.get()) is not None:
        size = 0
        for path in batch:
            fd = os.open(path, os.O_RDONLY)
            while got := len(os.read(fd, 1 << 20)):
                size += got
            os.close(fd)
        done.put(size)


def epoch(paths: Sequence[str], workers: int, *, told: bool, seed: int, step_s: float = 0.0) -> float:
    """Read all files in random order, as a DataLoader's processes do; returns files/s.

    ``step_s``: so long the accelerator, which is waited for, works on each batch.
    """
    order = list(paths)
    random.Random(seed).shuffle(order)
    numbers, done = multiprocessing.Queue(), multiprocessing.Queue()
    processes = [multiprocessing.Process(target=_work, args=(numbers, done, paths)) for _ in range(workers)]
    for process in processes:
        process.start()
    began = time.perf_counter()
    source: Iterator[str] = iter(in_order(order)) if told else iter(order)
    waiting = total = 0
    while True:
        while waiting < workers * PREFETCH and (batch := list(islice(source, BATCH))):
            numbers.put(batch)
            waiting += 1
        if not waiting:
            break
        total += done.get()
        waiting -= 1
        time.sleep(step_s)
    taken = time.perf_counter() - began
    for _ in processes:
        numbers.put(None)
    for process in processes:
        process.join()
    assert total == sum(os.stat(path).st_size for path in paths[:1]) * len(paths), total
    return len(paths) / taken


@contextmanager
def mounted(server: FastS3, cache_bytes: int | None, *flags: str) -> Iterator[Mount]:
    """A mount of the bucket with a cache of a size."""
    size = [] if cache_bytes is None else ["--cache-size", str(cache_bytes)]
    mount = Mount("s3://bucket", *size, *flags, endpoint_url=server.endpoint, forked=False)
    os.environ["LUXFUSE_STATE_DIR"] = str(mount.state)
    try:
        yield mount.mount()
    finally:
        mount.close()


def names(mount: Mount) -> list[str]:
    """The files of the mount, found as a program does."""
    return sorted(str(Path(d, n)) for d, _, found in os.walk(mount.path) for n in found)


def fill(server: FastS3, count: int, size_bytes: int, *, classes: int) -> None:
    """Put files into the bucket, each in the directory of its class."""
    for n in range(count):
        path = server.bucket_path() / f"class{n % classes:03}" / f"{n:05}.bin"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(os.urandom(size_bytes))


def latency(workers: int, step_s: float) -> None:
    """Measure with latency and a cache that is too small."""
    with FastS3() as server:
        fill(server, FILES, FILE_BYTES, classes=20)
        server.set(latency_ms=20)
        half = FILES * FILE_BYTES // 2
        rates: dict[str, list[float]] = {}
        for kind, cache in (("not told", half), ("told", half), ("local", None)):
            with mounted(server, cache) as mount:
                paths = names(mount)
                for seed in range(EPOCHS):
                    before_s = processor_s([mount.pid])
                    rates.setdefault(kind, []).append(epoch(paths, workers, told=kind == "told", seed=seed, step_s=step_s))
                    spent_s = processor_s([mount.pid]) - before_s
                    print(
                        f"  {kind}: {rates[kind][-1]:.0f}/s, the daemon {1e6 * spent_s / FILES:.0f} us each",
                        file=sys.stderr,
                    )
    told, not_told, local = (max(rates[kind][1:]) for kind in ("told", "not told", "local"))
    print(f"{workers} workers, {1000 * step_s:g} ms a batch of {BATCH}: not told {not_told:.0f}/s, ", end="")
    print(f"told {told:.0f}/s ({told / not_told:.1f} x), local {local:.0f}/s (told is {told / local:.2f} of it)")


def cold(workers: int, latency_ms: float) -> None:
    """Measure many small files with an empty cache."""
    with FastS3() as server:
        fill(server, COLD_FILES, COLD_BYTES, classes=100)
        server.set(latency_ms=latency_ms)
        with mounted(server, None) as mount:
            names(mount)
            began = time.perf_counter()
            mount.cli("load", str(mount.path), timeout_s=300, check=True)
            load = COLD_FILES / (time.perf_counter() - began)
        with mounted(server, None) as mount:
            told = epoch(names(mount), workers, told=True, seed=1)
            print(mount.status()["cache"], file=sys.stderr)
        with mounted(server, None) as mount:
            not_told = epoch(names(mount), workers, told=False, seed=1)
    print(f"cold, {latency_ms:g} ms, {workers} workers: load {load:.0f}/s, told {told:.0f}/s ({told / load:.2f}), ", end="")
    print(f"not told {not_told:.0f}/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("latency", "cold"), nargs="*", default=("latency", "cold"))
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--step-ms", type=float, default=8.0, help="how long the accelerator works on a batch of 16")
    given = parser.parse_args()
    if "latency" in given.what:
        latency(given.workers, given.step_ms / 1000)
    if "cold" in given.what:
        cold(8, 0)
        cold(8, 20)


if __name__ == "__main__":
    main()
