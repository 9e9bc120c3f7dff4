"""Writes the way programs do, in a process of its own, and prints the seconds it took as JSON.

Standard library only and no package imports: it is run by path, with a timeout, so that a hung mount cannot hang the
measurement. ``python writer.py fsync|close FILE BYTES [OBJECT]`` or ``python writer.py create DIRECTORY FILES BYTES``.
With OBJECT, a path where a plain look shows the file once the store has it, the time ends when it is there.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time

MIB = 1 << 20


def big(path: str, size: int, *, fsync: bool, stored: str | None) -> dict[str, float]:
    """One file in writes of 1 MiB, each different; the time ends after fsync, or after close."""
    buffer = bytearray(random.randbytes(MIB))
    started = time.perf_counter()
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    total = 0
    for number in range(size // MIB):
        buffer[:8] = number.to_bytes(8, "little")
        total += os.write(fd, buffer)
    if fsync:
        os.fsync(fd)
        done = time.perf_counter()
        os.close(fd)
    else:
        os.close(fd)
        while stored is not None and not _is_there(stored, size):
            time.sleep(0.01)
        done = time.perf_counter()
    return {"seconds": done - started, "bytes": total}


def _is_there(path: str, size: int) -> bool:
    try:
        return os.stat(path).st_size == size
    except FileNotFoundError:
        return False


def create(directory: str, count: int, size: int) -> dict[str, float]:
    """Many small files in a new directory, each created, written and closed."""
    os.mkdir(directory)
    buffer = bytearray(random.randbytes(size))
    total = 0
    started = time.perf_counter()
    for number in range(count):
        buffer[:8] = number.to_bytes(8, "little")
        fd = os.open(f"{directory}/file_{number:06}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        total += os.write(fd, buffer)
        os.close(fd)
    return {"seconds": time.perf_counter() - started, "bytes": total}


def main() -> None:
    kind, path, *rest = sys.argv[1:]
    if kind == "create":
        result = create(path, int(rest[0]), int(rest[1]))
    else:
        result = big(path, int(rest[0]), fsync=kind == "fsync", stored=rest[1] if len(rest) > 1 else None)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
