"""``python -m tests.bench.peers``: pages from another node on loopback, beside plain streams of the same bytes.

The other node is a process of its own, on the same cores. Each figure is the best of some runs, taken in turns.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import queue
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import trio
from rich.console import Console
from rich.table import Table

from luxfuse.core.members import NodeInfo, Want
from luxfuse.peers.batches import Batches
from luxfuse.peers.client import Client, Fetched
from luxfuse.peers.credentials import Credentials
from luxfuse.peers.provider import Provided
from luxfuse.peers.server import Server, listen
from luxfuse.types import PAGE_BYTES
from tests.support.peer_nodes import CLIENT, SERVER, SOURCE, content, keys_of, sums_of

SMALL_BYTES = 100 << 10
SMALL_FILES = 1000
AT_A_TIME = 128
STREAM_CHUNK = 4 << 20


class OneFile:
    """Provides the big file, and small ones that are parts of it."""

    def __init__(self, fd: int, sums: list[int], small: tuple[int, ...]) -> None:
        self._fd = fd
        self._sums = sums
        self._small = small

    async def provide(self, want: Want, *, fetch: bool) -> Provided:
        if want.key == "small":
            return Provided(want.size, self._small, fd=self._fd)
        sums = tuple(self._sums[want.first : want.first + want.count])
        return Provided(want.count * PAGE_BYTES, sums, fd=self._fd, offset=want.first * PAGE_BYTES)


def serve(path: str) -> None:
    """Run the other node until standard input ends; prints the ports as JSON."""
    fd = os.open(path, os.O_RDONLY)
    size = os.fstat(fd).st_size
    data = memoryview(mmap.mmap(fd, size, prot=mmap.PROT_READ))
    provider = OneFile(fd, list(sums_of(data)), sums_of(data[:SMALL_BYTES]))
    keys = keys_of(SERVER)

    def stream(conn: socket.socket) -> None:
        sent = 0
        while sent < size:
            sent += os.sendfile(conn.fileno(), fd, sent, size - sent)

    def stream_tls(conn: socket.socket) -> None:
        secured = keys.server_context().wrap_socket(conn, server_side=True)
        for start in range(0, size, 256 << 10):
            secured.sendall(data[start : start + (256 << 10)])
        secured.close()

    def accept(listener: socket.socket, job: Callable[[socket.socket], None]) -> None:
        while True:
            conn, _ = listener.accept()
            with conn:
                job(conn)

    async def main() -> None:
        ports = {}
        for name, job in (("stream", stream), ("stream_tls", stream_tls)):
            listener = socket.create_server(("127.0.0.1", 0))
            ports[name] = listener.getsockname()[1]
            threading.Thread(target=accept, args=(listener, job), daemon=True).start()
        async with trio.open_nursery() as nursery:
            for tls in (False, True):
                server = Server(listen(("127.0.0.1", 0)), keys, tls=tls, provider=provider)
                ports["tls" if tls else "plain"] = server.address[1]
                await nursery.start(server.run)
            print(json.dumps(ports), flush=True)
            await trio.to_thread.run_sync(sys.stdin.read)
            nursery.cancel_scope.cancel()

    trio.run(main)


def read_stream(port: int, size: int, context: ssl.SSLContext | None) -> None:
    """Receive a plain stream into one buffer again and again."""
    buffer = bytearray(STREAM_CHUNK)
    with socket.create_connection(("127.0.0.1", port)) as raw:
        conn = context.wrap_socket(raw) if context is not None else raw
        received = 0
        while received < size:
            count = conn.recv_into(buffer)
            assert count
            received += count
        conn.close()


def read_pages(client: Client, node: NodeInfo, size: int, threads: int, want_pages: int) -> None:
    """Fetch all pages of the file."""
    turns: queue.SimpleQueue[int] = queue.SimpleQueue()
    for first in range(0, size // PAGE_BYTES, want_pages):
        turns.put(first)

    def work() -> None:
        while True:
            try:
                first = turns.get_nowait()
            except queue.Empty:
                return
            want = Want(SOURCE, "big", "v1", size, first, want_pages)
            (found,) = client.fetch(node, [want], fetch=False, timeout_s=10)
            assert isinstance(found, Fetched)

    with ThreadPoolExecutor(threads) as pool:
        for future in [pool.submit(work) for _ in range(threads)]:
            future.result()


def best(runs: int, jobs: dict[str, Callable[[], None]]) -> dict[str, float]:
    """Return the shortest time of each job in seconds; the jobs take turns."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(runs):
        for name, job in jobs.items():
            began_s = time.perf_counter()
            job()
            times[name].append(time.perf_counter() - began_s)
    return {name: min(each) for name, each in times.items()}


def streams(client: dict[str, Client], ports: dict[str, int], size: int, runs: int, keys: Credentials) -> Table:
    """Time reading the file in wants of 2 and 4 MiB, by 1 to 4 threads."""
    table = Table("what", "MB/s", "of the stream", "goal", title=f"{size >> 20} MiB from another node")
    for mode, goal in (("plain", 0.7), ("tls", 0.5)):
        stream = "stream_tls" if mode == "tls" else "stream"
        context = keys.client_context() if mode == "tls" else None
        node = NodeInfo(SERVER, "127.0.0.1", ports[mode])
        jobs = {stream: partial(read_stream, ports[stream], size, context)}
        for pages in (2, 4):
            for threads in (1, 2, 4):
                name = f"{mode}, {pages} MiB, {threads} thread{'s' * (threads > 1)}"
                jobs[name] = partial(read_pages, client[mode], node, size, threads, pages)
        found = best(runs, jobs)
        for name, seconds in found.items():
            ratio = found[stream] / seconds
            table.add_row(name, f"{size / seconds / 1e6:,.0f}", f"{ratio:.2f}", "" if name == stream else f"{goal}")
    return table


def small(client: dict[str, Client], ports: dict[str, int], runs: int) -> Table:
    """Time fetches of 100 KiB: one after the other, and many."""
    table = Table("what", "median", "per second", title="100 KiB from another node")
    want = Want(SOURCE, "small", "v1", SMALL_BYTES, 0, 1)
    for mode in ("plain", "tls"):
        node = NodeInfo(SERVER, "127.0.0.1", ports[mode])
        times = []
        for _ in range(SMALL_FILES):
            began_s = time.perf_counter()
            client[mode].fetch(node, [want], fetch=False, timeout_s=5)
            times.append(time.perf_counter() - began_s)
        median_s = statistics.median(times)
        table.add_row(f"{mode}, one at a time", f"{median_s * 1e6:.0f} us", f"{len(times) / sum(times):,.0f}")
        rate = max(trio.run(submit_many, client[mode], node, want) for _ in range(runs))
        table.add_row(f"{mode}, {AT_A_TIME} at a time", "", f"{rate:,.0f}")
    return table


async def submit_many(client: Client, node: NodeInfo, want: Want) -> float:
    """Return how many small files a second come through `Batches`, so many of them waited for at a time."""
    batches = Batches(client)
    left, answered = SMALL_FILES, 0
    finished = trio.Event()

    def more() -> None:
        nonlocal left
        if left:
            left -= 1
            batches.submit(node, want, lambda got: got, done, fetch=False, timeout_s=10)

    def done(result: Fetched | None, error: Exception | None) -> None:
        nonlocal answered
        assert result is not None, error
        answered += 1
        if answered == SMALL_FILES:
            finished.set()
        more()

    began_s = time.perf_counter()
    for _ in range(AT_A_TIME):
        more()
    with trio.fail_after(60):
        await finished.wait()
    batches.close()
    return SMALL_FILES / (time.perf_counter() - began_s)


def main() -> None:
    """Measure, and print tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--mib", type=int, default=1024, help="size of the file")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--directory", help="where the file is made; it should fit into memory")
    options = parser.parse_args()
    if options.serve:
        serve(options.serve)
        return
    size = options.mib << 20
    keys = keys_of(CLIENT)
    with tempfile.NamedTemporaryFile(dir=options.directory) as f:
        block = content(64 << 20)
        for start in range(0, size, len(block)):
            f.write(block[: size - start])
        f.flush()
        command = [sys.executable, "-m", "tests.bench.peers", "--serve", f.name]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            ports = json.loads(process.stdout.readline())
            clients = {"plain": Client(keys, tls=False), "tls": Client(keys, tls=True)}
            console = Console()
            console.print(streams(clients, ports, size, options.runs, keys))
            console.print(small(clients, ports, options.runs))
            process.stdin.close()
            process.wait(30)


if __name__ == "__main__":
    main()
