"""The raw driver: obstore in threads, without any file system. A process of its own, like every reader.

``python -m tests.bench.raw sequential|files|list ENDPOINT BUCKET KEY [--threads N] [--to DIRECTORY]``;
without ``--to`` the bytes go nowhere. ``upload`` puts ``--file`` at KEY as a multipart upload.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import obstore
from obstore.store import S3Store

RUN_BYTES = 2 << 20  # 1 to 2 MiB in many flights was the fastest size for a local server
STREAMS = 8
PART_BYTES, PARTS = 16 << 20, 8  # of 5 to 64 MiB and 2 to 16 at once, none was faster on a local server


def sequential(store: S3Store, key: str, to: Path | None) -> dict[str, float]:
    started = time.perf_counter()
    size = obstore.head(store, key)["size"]
    fd = None if to is None else os.open(to / "raw-file", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)

    def fetch(at: int) -> int:
        data = obstore.get_range(store, key, start=at, length=min(RUN_BYTES, size - at))
        if fd is not None:
            os.pwrite(fd, data, at)
        return len(data)

    with ThreadPoolExecutor(STREAMS) as pool:
        total = sum(pool.map(fetch, range(0, size, RUN_BYTES)))
    if fd is not None:
        os.close(fd)
    return {"seconds": time.perf_counter() - started, "bytes": total}


def files(store: S3Store, prefix: str, threads: int, to: Path | None) -> dict[str, float]:
    started = time.perf_counter()
    keys = sorted(o["path"] for o in obstore.list_with_delimiter(store, prefix)["objects"])

    def fetch(n: int) -> int:
        total = 0
        for key in keys[n::threads]:
            data = obstore.get(store, key).bytes()
            total += len(data)
            if to is not None:
                (to / key.rpartition("/")[2]).write_bytes(data)
        return total

    with ThreadPoolExecutor(threads) as pool:
        total = sum(pool.map(fetch, range(threads)))
    return {"seconds": time.perf_counter() - started, "bytes": total, "files": len(keys)}


def listing(store: S3Store, prefix: str) -> dict[str, float]:
    started = time.perf_counter()
    count = len(obstore.list_with_delimiter(store, prefix, return_arrow=True)["objects"])
    return {"seconds": time.perf_counter() - started, "files": count}


def upload(store: S3Store, key: str, file: Path) -> dict[str, float]:
    started = time.perf_counter()
    obstore.put(store, key, file, use_multipart=True, chunk_size=PART_BYTES, max_concurrency=PARTS)
    return {"seconds": time.perf_counter() - started, "bytes": file.stat().st_size}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["sequential", "files", "list", "upload"])
    parser.add_argument("endpoint")
    parser.add_argument("bucket")
    parser.add_argument("key")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--to", type=Path)
    parser.add_argument("--file", type=Path)
    a = parser.parse_args()
    store = S3Store(
        a.bucket, endpoint=a.endpoint, region="us-east-1", access_key_id="test", secret_access_key="test-secret",
        client_options={"allow_http": True},
    )  # fmt: skip
    used = time.process_time()
    if a.what == "sequential":
        result = sequential(store, a.key, a.to)
    elif a.what == "files":
        result = files(store, a.key, a.threads, a.to)
    elif a.what == "upload":
        result = upload(store, a.key, a.file)
    else:
        result = listing(store, a.key)
    print(json.dumps({**result, "processor_s": time.process_time() - used}))


if __name__ == "__main__":
    main()
