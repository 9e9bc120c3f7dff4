"""``python -m tests.bench.cluster``: nodes that read one data set together, and what the under-store serves for that.

All nodes are mounts on this machine, with caches of their own, and share its processors; so only the bytes tell something,
and the time beside that of the same mounts without a cluster. Readers take the files in orders of their own.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from luxfuse.core.units import format_size, parse_size
from tests.support.fast_s3 import FastS3

LARGE_BYTES = 64 << 20
SMALL_BYTES = 100 << 10
SMALL_PART = 0.05
"""So much of the data is in small files."""
READER = """
import os, sys
for name in sys.stdin.read().split():
    fd = os.open(os.path.join(sys.argv[1], name), os.O_RDONLY)
    while os.read(fd, 1 << 20):
        pass
    os.close(fd)
"""
TIMEOUT_S = 600


class Nodes:
    """Mounts of the data set; ``key``: of their cluster, None for none."""

    def __init__(self, work: Path, count: int, server: FastS3, key: Path | None) -> None:
        self.count = count
        self._work = work
        self._server = server
        self._key = key
        self._environment = {
            **os.environ,
            "LUXFUSE_STATE_DIR": str(work / "state"),
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
        }

    def path(self, number: int) -> Path:
        return self._work / f"node{number}"

    def luxfuse(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "luxfuse.cli.main", *arguments]
        done = subprocess.run(command, env=self._environment, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode:
            raise SystemExit(done.stderr)
        return done.stdout

    def status(self, number: int) -> dict:
        return json.loads(self.luxfuse("status", str(self.path(number)), "--json"))

    def __enter__(self) -> Nodes:
        seeds: list[str] = []
        for number in range(self.count):
            self.path(number).mkdir(parents=True)
            flags = ["--cache-dir", f"{self._work}/cache{number}", "--endpoint-url", self._server.endpoint]
            if self._key is not None:
                flags += ["--cluster-key-file", str(self._key), "--listen", "127.0.0.1:0", *seeds]
            self.luxfuse("mount", "s3://bucket", str(self.path(number)), *flags)
            if self._key is not None and not seeds:
                seeds = ["--join", self.status(number)["node"]["address"]]
        if self._key is not None:
            time.sleep(5)
            assert all(len(self.status(number)["peers"]) == self.count - 1 for number in range(self.count))
        return self

    def __exit__(self, *_: object) -> None:
        for number in range(self.count):
            subprocess.run(
                [sys.executable, "-m", "luxfuse.cli.main", "unmount", str(self.path(number))], env=self._environment,
                capture_output=True, timeout=60, check=False,
            )  # fmt: skip
        shutil.rmtree(self._work)


def read_together(nodes: Nodes, names: list[str]) -> float:
    """Let all nodes read everything at once; returns the seconds that the last one took."""
    began = time.perf_counter()
    readers = []
    for number in range(nodes.count):
        order = random.Random(number).sample(names, len(names))
        reader = subprocess.Popen([sys.executable, "-c", READER, str(nodes.path(number))], stdin=subprocess.PIPE, text=True)
        assert reader.stdin is not None
        reader.stdin.write("\n".join(order))
        reader.stdin.close()
        readers.append(reader)
    for reader in readers:
        if reader.wait(TIMEOUT_S):
            raise SystemExit("a reader failed")
    return time.perf_counter() - began


def fill(server: FastS3, total: int) -> list[str]:
    """Put the data set into the bucket; returns the names."""
    names = []
    for number in range(int(total * (1 - SMALL_PART)) // LARGE_BYTES):
        names.append(f"large{number}")
        (server.bucket_path() / names[-1]).write_bytes(random.Random(number).randbytes(LARGE_BYTES))
    block = random.Random(0).randbytes(SMALL_BYTES)
    for number in range(int(total * SMALL_PART) // SMALL_BYTES):
        names.append(f"small{number:06}")
        (server.bucket_path() / names[-1]).write_bytes(number.to_bytes(8, "big") + block[8:])
    return names


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--size", default="2GiB", help="of the data set")
    parser.add_argument("--dir", help="where data and caches are put")
    options = parser.parse_args()
    table = Table(title=f"{options.nodes} nodes read {options.size} together")
    for title in ("", "from the store", "x data set", "from peers", "hedges", "seconds"):
        table.add_column(title, justify="right")
    with tempfile.TemporaryDirectory(dir=options.dir) as scratch, FastS3() as server:
        names = fill(server, parse_size(options.size))
        total = sum((server.bucket_path() / name).stat().st_size for name in names)
        key = Path(scratch, "key")
        key.write_text(os.urandom(32).hex() + "\n")
        key.chmod(0o600)
        for title, chosen in (("alone", None), ("cluster", key)):
            with Nodes(Path(scratch, title), options.nodes, server, chosen) as nodes:
                seconds = read_together(nodes, names)
                status = [nodes.status(number) for number in range(options.nodes)]
                stored = sum(each["reads"]["understore_bytes"] for each in status)
                peers = sum(each["reads"]["peer_bytes"] for each in status)
                hedges = sum(each.get("cluster", {}).get("hedges", 0) for each in status)
            table.add_row(
                title, format_size(stored), f"{stored / total:.2f}", format_size(peers), str(hedges), f"{seconds:.1f}"
            )
    Console().print(table)


if __name__ == "__main__":
    main()
