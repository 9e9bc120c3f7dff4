"""Epochs in random order whose order is told: ``python -m tests.bench.epochs``. Run it where nothing else runs.

Two measurements. *Latency*: 2,000 files of 100 KiB, each request 20 ms, a cache for half of them, worker processes as
those of a DataLoader: samples/s with the order told and not told, and with everything local (a cache for all of it).
The three take turns, and medians are reported, with what tells more on a machine that has other work, too: processor time
of the daemon for each sample, requests for each epoch, and the load average.
*Cold*: 20,000 files, 8 workers, an empty cache, order told: files/s beside those of ``luxfuse load``, in turns.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from statistics import median
from typing import NamedTuple

from luxfuse.training import in_order
from tests.bench.processes import processor_s
from tests.support.fast_s3 import FastS3
from tests.support.mounted import Mount

WHAT = ("latency", "cold")
FILES, FILE_BYTES = 2000, 100 << 10
COLD_FILES, COLD_BYTES = 20_000, 16 << 10
COLD_TURNS = 2
EPOCHS = 4
"""Of each; one before them fills the cache, and does not count."""
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


class Measured(NamedTuple):
    """One run: files/s, processor time of the daemon in us a file, GET requests."""

    rate: float
    daemon_us: float
    gets: int


def measured(kind: str, server: FastS3, mount: Mount, files: int, run: Callable[[], float]) -> Measured:
    """Measure ``run``, which returns files/s."""
    os.environ["LUXFUSE_STATE_DIR"] = str(mount.state)  # where a job finds its mount
    before_s, gets = processor_s([mount.pid]), server.counters().get("gets", 0)
    rate = run()
    daemon_us = 1e6 * (processor_s([mount.pid]) - before_s) / files
    found = Measured(rate, daemon_us, server.counters().get("gets", 0) - gets)
    print(
        f"  {kind}: {rate:.0f}/s, the daemon {daemon_us:.0f} us each, {found.gets} GETs, load {os.getloadavg()[0]:.1f}",
        file=sys.stderr,
        flush=True,
    )
    return found


def medians(runs: Sequence[Measured]) -> Measured:
    """Return the median of each figure."""
    rates, times, gets = zip(*runs, strict=True)
    return Measured(median(rates), median(times), int(median(gets)))


def latency(workers: int, step_s: float) -> None:
    """Measure with latency and a cache that is too small."""
    half = FILES * FILE_BYTES // 2
    with FastS3() as server, ExitStack() as stack:
        fill(server, FILES, FILE_BYTES, classes=20)
        server.set(latency_ms=20)
        kinds = {"not told": half, "told": half, "local": None}
        mounts = {kind: stack.enter_context(mounted(server, cache)) for kind, cache in kinds.items()}
        paths = {kind: names(mount) for kind, mount in mounts.items()}
        runs: dict[str, list[Measured]] = {kind: [] for kind in kinds}
        for seed in range(EPOCHS + 1):
            for kind, mount in mounts.items():

                def one(kind: str = kind, seed: int = seed) -> float:
                    return epoch(paths[kind], workers, told=kind == "told", seed=seed, step_s=step_s)

                runs[kind].append(measured(kind, server, mount, FILES, one))
    not_told, told, local = (medians(each[1:]) for each in runs.values())
    print(
        f"{workers} workers, {1000 * step_s:g} ms a batch of {BATCH}, {EPOCHS} epochs: not told {not_told.rate:.0f}/s, ",
        end="",
    )
    print(f"told {told.rate:.0f}/s ({told.rate / not_told.rate:.1f} x), ", end="")
    print(f"local {local.rate:.0f}/s (told is {told.rate / local.rate:.2f} of it); ", end="")
    print(f"the daemon {not_told.daemon_us:.0f}, {told.daemon_us:.0f}, {local.daemon_us:.0f} us a sample, ", end="")
    print(f"{not_told.gets}, {told.gets}, {local.gets} GETs an epoch; load {os.getloadavg()[0]:.1f}", flush=True)


def cold(workers: int, latency_ms: float) -> None:
    """Measure many small files with an empty cache."""
    runs: dict[str, list[Measured]] = {"load": [], "told": [], "not told": []}
    with FastS3() as server:
        fill(server, COLD_FILES, COLD_BYTES, classes=100)
        server.set(latency_ms=latency_ms)
        for number in range(COLD_TURNS):
            for kind, done in runs.items():
                if kind == "not told" and number:
                    continue  # it takes long, and is only there to be seen beside them
                with mounted(server, None) as mount:
                    paths = names(mount)

                    def one(kind: str = kind, mount: Mount = mount, paths: Sequence[str] = paths) -> float:
                        if kind != "load":
                            return epoch(paths, workers, told=kind == "told", seed=1)
                        began = time.perf_counter()
                        mount.cli("load", str(mount.path), timeout_s=300, check=True)
                        return COLD_FILES / (time.perf_counter() - began)

                    done.append(measured(kind, server, mount, COLD_FILES, one))
    load, told, not_told = (medians(each) for each in runs.values())
    print(f"cold, {latency_ms:g} ms, {workers} workers: load {load.rate:.0f}/s, told {told.rate:.0f}/s ", end="")
    print(f"({told.rate / load.rate:.2f}), not told {not_told.rate:.0f}/s; the daemon {load.daemon_us:.0f}, ", end="")
    print(f"{told.daemon_us:.0f}, {not_told.daemon_us:.0f} us a file; load {os.getloadavg()[0]:.1f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=(*WHAT, "all"), nargs="*", default="all")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--step-ms", type=float, default=8.0, help="how long the accelerator works on a batch of 16")
    given = parser.parse_args()
    what = WHAT if "all" in given.what else given.what
    if "latency" in what:
        latency(given.workers, given.step_ms / 1000)
    if "cold" in what:
        cold(8, 0)
        cold(8, 20)


if __name__ == "__main__":
    main()
