"""What it costs to look at a mount: ``python -m tests.bench.observing``.

*Page*: a mount with ``--http`` beside one without, nobody looking and then four who ask all the time: processor time of the
daemon a second, and its own memory. *Trace*: opens of a cached file, which lanes answer, and listings, which Python
answers, with a trace and without one in turns: processor time of the daemon for each. *OTLP*: its own memory with it.
"""

from __future__ import annotations

import argparse
import os
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from statistics import median

from luxfuse.control.client import ControlClient
from tests.bench.manifests import MIB, memory_of
from tests.bench.processes import processor_s
from tests.support.collector import collecting
from tests.support.fast_s3 import FastS3
from tests.support.mounted import Mount

WHAT = ("page", "trace", "otlp")
SECONDS = 20.0
TURNS = 5
OPENS, LISTINGS = 20_000, 1_000
PACE_S = 0.01


@contextmanager
def mounted(server: FastS3, *flags: str) -> Iterator[Mount]:
    """A mount of the bucket."""
    mount = Mount("s3://bucket", *flags, endpoint_url=server.endpoint, forked=False)
    try:
        yield mount.mount()
    finally:
        mount.expected_logs.append("metrics for http://127.0.0.1:")  # the collector ends first
        mount.close()


def used_ms(mount: Mount, seconds: float) -> float:
    """Processor time of the daemon in ms for each second."""
    before_s, began = processor_s([mount.pid]), time.perf_counter()
    time.sleep(seconds)
    return 1000 * (processor_s([mount.pid]) - before_s) / (time.perf_counter() - began)


def page(server: FastS3, seconds: float) -> None:
    """With a page and without."""
    with mounted(server) as without, mounted(server, "--http", "127.0.0.1:0") as having:
        time.sleep(5)
        quiet = [median(used_ms(mount, seconds / TURNS) for _ in range(TURNS)) for mount in (without, having)]
        url, over = having.status()["http"] + "v1/history?span=15m", threading.Event()

        def ask() -> None:
            while not over.wait(PACE_S):
                with urllib.request.urlopen(url, timeout=60) as answer:
                    answer.read()

        threads = [threading.Thread(target=ask, daemon=True) for _ in range(4)]
        for thread in threads:
            thread.start()
        asked = used_ms(having, seconds)
        over.set()
        for thread in threads:
            thread.join()
        own = [memory_of(mount.pid).own / MIB for mount in (without, having)]
    print(f"page: {quiet[1] - quiet[0]:.1f} ms a second (of {quiet[1]:.1f}), {own[1] - own[0]:.1f} MiB; ", end="")
    print(f"while it is asked all the time {asked - quiet[0]:.0f} ms a second")


def trace(server: FastS3) -> None:
    """With a trace and without, in turns."""
    with mounted(server) as mount:
        path = f"{mount.path}/file"

        def opens() -> None:
            for _ in range(OPENS):
                os.close(os.open(path, os.O_RDONLY))

        def listings() -> None:
            for _ in range(LISTINGS):
                os.listdir(mount.path)

        opens()
        listings()
        for name, run, count in (("opens by lanes", opens, OPENS), ("listings by Python", listings, LISTINGS)):
            found: dict[bool, list[float]] = {False: [], True: []}
            for turn in range(2 * TURNS):
                traced = turn % 2 == 1
                with tracing(mount) if traced else untraced():
                    found[traced].append(cost_us(mount, run, count))
            without, having = (median(found[key]) for key in (False, True))
            print(f"trace: {name}: {without:.1f} us of the daemon each, {having:.1f} us while it is traced")


def cost_us(mount: Mount, run: Callable[[], None], count: int) -> float:
    """Processor time of the daemon for each of ``count``."""
    before_s = processor_s([mount.pid])
    run()
    return 1e6 * (processor_s([mount.pid]) - before_s) / count


@contextmanager
def untraced() -> Iterator[None]:
    """No trace."""
    yield


@contextmanager
def tracing(mount: Mount) -> Iterator[None]:
    """A trace whose events are taken, and counted."""
    over = threading.Event()
    with closing(ControlClient(mount.directory() / "control.sock", 60.0).trace("", None)) as batches:
        next(batches)

        def take() -> None:
            for _ in batches:
                if over.is_set():
                    return

        thread = threading.Thread(target=take, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def otlp(server: FastS3) -> None:
    """With metrics that are sent, and without."""
    with collecting() as collector, mounted(server) as without, mounted(server, "--otlp", collector.url) as having:
        while not collector.received:
            time.sleep(0.2)
        own = [memory_of(mount.pid).own / MIB for mount in (without, having)]
    print(f"otlp: {own[1] - own[0]:.1f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=(*WHAT, "all"), nargs="*", default="all")
    parser.add_argument("--seconds", type=float, default=SECONDS)
    given = parser.parse_args()
    what = WHAT if "all" in given.what else given.what
    with FastS3() as server:
        server.bucket_path().mkdir(exist_ok=True)
        (server.bucket_path() / "file").write_bytes(os.urandom(10_000))
        if "page" in what:
            page(server, given.seconds)
        if "trace" in what:
            trace(server)
        if "otlp" in what:
            otlp(server)
    print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
