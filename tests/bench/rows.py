"""The rows of the table, with their goals; what each one measures is in `warm`, `cold` and `writes`."""

from __future__ import annotations

from tests.bench.results import PEERS, Goal, Row
from tests.bench.trials import LATENCY_MS, MIB, Size

ASYNC, THROUGH = "async-through", "cache-through"
PLAIN = "no passthrough, "
THREADS = (1, 8)
FEW_US = 15


def _native(factor: float) -> Goal:
    return Goal(factor, ("native",))


def _raw(factor: float) -> Goal:
    return Goal(factor, ("raw",))


def _to_file(factor: float) -> Goal:
    return Goal(factor, ("raw to file",))


def _peers(factor: float) -> Goal:
    return Goal(factor, PEERS)


def _readers(number: int) -> str:
    return f"{number} reader{'s' * (number > 1)}"


def _threads(number: int) -> str:
    return f"{number} thread{'s' * (number > 1)}"


def warm_rows(size: Size) -> list[Row]:
    big, files = f"{size.big_bytes // MIB} MiB", f"{size.files:,} files of 100 KiB"
    dropped = "page cache dropped"
    return [
        Row("seq-warm", f"warm: {big}, 1 MiB reads", "MB/s", (_native(0.95), _peers(5))),
        Row("mmap-warm", f"warm: {big}, mmap", "MB/s", (_native(0.95), _peers(5))),
        *(Row(f"random-{n}", f"warm: random 4 KiB, {_threads(n)}", "reads/s", (_native(0.9), _peers(30)))
          for n in THREADS),
        *(Row(f"files-warm-{n}", f"warm: {files}, {_readers(n)}", "files/s", (_native(0.6), _peers(2))) for n in THREADS),
        Row("cpu-warm", "daemon's processor time, warm: open, read and close of 100 KiB", "us", (Goal(FEW_US),), True),
        Row("held-random", f"{big} open since it was cold, {dropped}: random 4 KiB", "reads/s", (_native(0.6),)),
        Row("plain-seq", f"{PLAIN}warm, {dropped}: {big}, 1 MiB reads", "MB/s", (_native(0.8),)),
        *(Row(f"plain-random-{n}", f"{PLAIN}warm, {dropped}: random 4 KiB, {_threads(n)}", "reads/s", (_native(0.6),))
          for n in THREADS),
        *(Row(f"plain-files-{n}", f"{PLAIN}warm: {files}, {_readers(n)}", "files/s", (_native(0.3), _peers(3)))
          for n in THREADS),
    ]  # fmt: skip


def cold_rows(size: Size) -> list[Row]:
    big, files, few = f"{size.big_bytes // MIB} MiB", f"{size.files:,} files of 100 KiB", f"{size.latency_files} files"
    slow = f"cold, {LATENCY_MS} ms"
    rows = [
        Row("seq-cold", f"cold: {big}, 1 MiB reads", "MB/s", (_to_file(0.7), _peers(1.5))),
        *(Row(f"files-cold-{n}", f"cold: {files}, {_readers(n)}", "files/s", (_to_file(0.7), _peers(3))) for n in THREADS),
        Row("cpu-cold", "processor time, cold: a file of 100 KiB, 1 reader", "us", (Goal(150),), True),
        Row("latency-files", f"{slow}: {few}, 1 reader", "files/s", (_peers(10),)),
        Row("latency-seq", f"{slow}: {big}, 1 MiB reads", "MB/s", (_raw(0.9), _peers(1.5))),
        Row("load-files", f"load: {size.load_files:,} files of 100 KiB", "files/s", (_to_file(0.9),)),
        Row("load-seq", f"load: {big}", "MB/s", (_to_file(0.9),)),
    ]  # fmt: skip
    for count in size.listings:
        warm_goal = (Goal(1.0),) if count >= 100_000 else ()
        rows.append(Row(f"list-{count}-cold", f"cold: ls -f of {count:,}", "s", (_raw(1.3),), True))
        rows.append(Row(f"list-{count}-warm", f"warm: ls -f of {count:,}", "s", warm_goal, True))
    return rows


def write_rows(size: Size) -> list[Row]:
    big = f"{size.big_bytes // MIB} MiB"
    created, unpacked = f"{size.created_files:,} files of 10 KiB", f"{size.tree_files:,} files"
    return [
        Row("write-fsync", f"write {big}, fsync ({ASYNC})", "MB/s", (_native(0.9),)),
        Row("write-close", f"write {big}, close: until stored ({THROUGH})", "MB/s", (_raw(0.9), _peers(1))),
        Row("write-random", f"random 4 KiB writes in {big} ({ASYNC})", "writes/s", (_native(0.8),)),
        Row("write-create", f"create {created} ({ASYNC})", "files/s", (_native(0.2), _peers(2))),
        Row("write-untar", f"untar {unpacked} ({ASYNC})", "files/s", (_native(0.2), _peers(2))),
        Row("plain-write-fsync", f"{PLAIN}write {big}, fsync ({ASYNC})", "MB/s", (_native(0.8), _peers(1))),
        Row("plain-write-random", f"{PLAIN}random 4 KiB writes in {big} ({ASYNC})", "writes/s",
            (_native(0.3), _peers(1))),
    ]  # fmt: skip


def memory_row() -> Row:
    return Row("memory", "daemon's peak memory, all runs", "MB", (Goal(300),), True)


def table_rows(size: Size) -> list[Row]:
    return [*warm_rows(size), *cold_rows(size), *write_rows(size), memory_row()]
