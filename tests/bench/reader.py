"""Reads a tree the way programs do, in a process of its own, and prints the seconds it took as JSON.

Standard library only and no package imports: it is run by path, with a timeout, so that a hung mount cannot hang the
measurement. ``python reader.py sequential|mmap FILE``, ``python reader.py held FILE SECONDS`` or
``python reader.py files|shuffled DIRECTORY READERS [PID,...]``, with the processes whose processor time is told.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import sys
import time

MIB = 1 << 20
TOUCHED = b"\1" * MIB  # a buffer made of it has its memory already


def sequential(path: str) -> dict[str, float]:
    buffer = bytearray(TOUCHED)
    total = 0
    started = time.perf_counter()
    fd = os.open(path, os.O_RDONLY)
    while n := os.readv(fd, [buffer]):
        total += n
    os.close(fd)
    return {"seconds": time.perf_counter() - started, "bytes": total}


def mapped(path: str) -> dict[str, float]:
    buffer = memoryview(bytearray(TOUCHED))
    started = time.perf_counter()
    fd = os.open(path, os.O_RDONLY)
    size = os.fstat(fd).st_size
    with mmap.mmap(fd, size, prot=mmap.PROT_READ) as mapping, memoryview(mapping) as view:
        for at in range(0, size, MIB):
            part = view[at : at + MIB]
            buffer[: len(part)] = part
            part.release()
    os.close(fd)
    return {"seconds": time.perf_counter() - started, "bytes": size}


def _read_files(directory: str, names: list[str]) -> int:
    buffer = bytearray(TOUCHED)
    total = 0
    for name in names:
        fd = os.open(f"{directory}/{name}", os.O_RDONLY)
        while n := os.readv(fd, [buffer]):
            total += n
        os.close(fd)
    return total


def held(path: str, seconds: float) -> dict[str, float]:
    """Reads the file, says so, waits for a line, and reads 4 KiB at random by the same descriptor, none twice."""
    buffer = bytearray(TOUCHED)
    fd = os.open(path, os.O_RDONLY)
    total = 0
    while n := os.readv(fd, [buffer]):
        total += n
    places = list(range(total // 4096))
    random.Random(1).shuffle(places)
    print("read", flush=True)
    sys.stdin.readline()
    block = [memoryview(buffer)[:4096]]
    reads = 0
    started = time.perf_counter()
    deadline = started + seconds
    for place in places:
        os.preadv(fd, block, place * 4096)
        reads += 1
        if time.perf_counter() >= deadline:
            break
    elapsed = time.perf_counter() - started
    os.close(fd)
    return {"seconds": elapsed, "reads": reads, "bytes": total}


def _processor_s(pids: list[int]) -> float:
    """As `processes.processor_s`; the processes live as long as the mount."""
    return sum(time.clock_gettime((~pid << 3) | 2) for pid in pids)


def files(directory: str, readers: int, pids: list[int], *, shuffled: bool) -> dict[str, float]:
    """Lists the directory once, then each of the reader processes takes every n-th file, in order or shuffled."""
    started = time.perf_counter()
    names = sorted(os.listdir(directory))
    if shuffled:
        random.Random(1).shuffle(names)
    used = _processor_s(pids)
    listed = time.perf_counter()
    if readers == 1:
        total = _read_files(directory, names)
    else:
        pipe_in, pipe_out = os.pipe()
        for n in range(readers):
            if os.fork() == 0:
                count = -1
                try:
                    count = _read_files(directory, names[n::readers])
                except OSError as error:
                    print(error, file=sys.stderr, flush=True)
                os.write(pipe_out, b"%20d" % count)
                os._exit(0)
        counts = [int(os.read(pipe_in, 20)) for _ in range(readers)]
        if min(counts) < 0:
            raise SystemExit("a reader failed")
        total = sum(counts)
    done = time.perf_counter()
    return {
        "seconds": done - started, "read_seconds": done - listed, "bytes": total, "files": len(names),
        "processor_s": _processor_s(pids) - used,
    }  # fmt: skip


def main() -> None:
    kind, path, *rest = sys.argv[1:]
    if kind == "sequential":
        result = sequential(path)
    elif kind == "mmap":
        result = mapped(path)
    elif kind == "held":
        result = held(path, float(rest[0]))
    else:
        pids = [int(pid) for pid in "".join(rest[1:]).split(",") if pid]
        result = files(path, int(rest[0]), pids, shuffled=kind == "shuffled")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
