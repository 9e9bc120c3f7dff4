"""The daemon kills itself with SIGKILL at a named step, under a real mount; the next one finishes or undoes the change."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest

from luxfuse.steps import DIE_AT, DIE_ONCE
from tests.support.contents import Contents
from tests.support.fast_s3 import FastS3
from tests.support.mounted import Mount, Mounts, content, free, is_running, put, wait_for

OLD, NEW, MORE = content("old", 5000), content("new", 300_000), content("more", 2000)
BIG = Contents({"new": ("big", 20 << 20)})

PROGRAM = """
import os, sys
os.chdir(sys.argv[1])
def write(name, flags, *parts, offset=0):
    fd = os.open(name, flags | os.O_WRONLY, 0o644)
    os.lseek(fd, offset, 0)
    for part in parts:
        os.write(fd, part)
    os.fsync(fd)
    os.close(fd)
def blocks(name, size):
    import random
    data = random.Random(name).randbytes(size)
    return [data[i:i + (1 << 20)] for i in range(0, size, 1 << 20)]
"""
CHANGES: dict[str, tuple[str, Mapping[str, bytes | None]]] = {
    "create": ('write("new", os.O_CREAT, *blocks("new", 300_000))', {"new": NEW}),
    "large": ('write("new", os.O_CREAT, *blocks("big", 20 << 20))', BIG),
    "overwrite": ('write("a", os.O_TRUNC, *blocks("new", 300_000))', {"a": NEW}),
    "inside": ('write("a", 0, *blocks("more", 2000), offset=1000)', {"a": OLD[:1000] + MORE + OLD[3000:]}),
    "rename": ('os.rename("a", "d/b")', {"a": None, "d/b": OLD}),
    "replace": ('os.rename("a", "b")', {"a": None, "b": OLD}),
    "directory": ('os.rename("d", "moved")', {"d/1": None, "d/2": None, "moved/1": MORE, "moved/2": OLD}),
    "unlink": ('os.unlink("a")', {"a": None}),
}

HANGS_AFTER_S = 3.0

QUICK = [
    ("async-through", "create", "promise.committed"),
    ("async-through", "create", "journal.appended"),
    ("cache-through", "large", "upload.parts"),
    ("async-through", "inside", "publish.renamed"),
    ("async-through", "replace", "move.deleted"),
    ("async-through", "directory", "move-directory.names-committed"),
    ("async-through", "unlink", "delete.stored"),
]
MORE_CASES = [
    ("cache-through", "create", "push.begun"),
    ("cache-through", "create", "push.stored"),
    ("async-through", "create", "push.stored"),
    ("cache-through", "overwrite", "push.noted"),
    ("cache-through", "inside", "begin.adopted"),
    ("cache-through", "rename", "move.copied"),
    ("async-through", "replace", "move.committed"),
    ("cache-through", "directory", "move-directory.copied-one"),
    ("cache-through", "unlink", "remove.stored"),
    ("async-through", "unlink", "remove.committed"),
    ("async-through", "replace", "journal.appended"),
]
CASES = [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE_CASES)]


def bucket_files(bucket: Path) -> dict[str, bytes]:
    return {str(p.relative_to(bucket)): p.read_bytes() for p in bucket.rglob("*") if p.is_file() and p.stat().st_size}


def do(mount: Mount, change: str) -> bool:
    """Let a program change the mount; returns whether it got through."""
    return mount.run([sys.executable, "-c", PROGRAM + change, mount.path]).returncode == 0


@pytest.mark.parametrize(("mode", "change", "step"), CASES, ids=lambda value: value)
def test_killed_at_a_step(
    s3: FastS3, bucket: str, mounting: Mounts, tmp_path: Path, mode: str, change: str, step: str
) -> None:
    before: dict[str, bytes | None] = {"a": OLD, "b": NEW, "d/1": MORE, "d/2": OLD}
    for key, data in before.items():
        put(s3, bucket, key, data or b"")
    mounting.expected_logs += ["was being written when the last run ended"]
    mount = mounting(f"s3://{bucket}", "--write-mode", mode, endpoint_url=s3.endpoint, keeper=False)
    assert do(mount, 'write("done", os.O_CREAT, *blocks("done", 70_000)); open("a", "rb").read()')
    assert mount.unmount().returncode == 0
    once = tmp_path / "once"  # not there while it is mounted, which takes some of these steps, too
    mount.environment |= {DIE_AT: step, DIE_ONCE: str(once)}
    pid = mount.mount().pid
    once.touch()
    with ThreadPoolExecutor(1) as pool:
        change_made = pool.submit(do, mount, CHANGES[change][0])
        wait_for("the daemon kills itself", lambda: not is_running(pid))
        if not wait([change_made], timeout=HANGS_AFTER_S).done:
            # The daemon was telling the kernel to forget a name of a directory that the program has locked: its thread
            # waits for the program, which waits for the connection to end. An operator ends it so:
            assert mount.cli("unmount", "--force", mount.path).returncode == 0
        through = change_made.result()
    free(str(mount.path))
    del mount.environment[DIE_AT], mount.environment[DIE_ONCE]
    assert mount.try_mount().returncode == 0
    before["done"] = content("done", 70_000)
    after = {key: data for key, data in {**before, **CHANGES[change][1]}.items() if data is not None}
    possible = [after] if through else [after, before]
    seen = {key: (mount.path / key).exists() for key in before | after}
    assert any(seen == {key: key in state for key in seen} for state in possible), f"the mount shows {seen}"
    assert mount.unmount().returncode == 0
    found = bucket_files(s3.bucket_path(bucket))
    assert found in possible, f"{sorted(found)} is none of {[sorted(p) for p in possible]}"
    assert not list(mount.cache.glob("*/staging/[0-9a-f]*"))
    if not step.startswith(("begin", "journal")):  # a commit may come between open and close
        assert not [p for p in mount.state.glob("recovered/*/*") if not through and mode == "async-through"]
