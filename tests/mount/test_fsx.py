"""Random I/O on one file, every read compared, with remounts, evictions and empty caches in between."""

from __future__ import annotations

import functools
import os
import random
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.support import fsx
from tests.support.fast_s3 import FastS3
from tests.support.fsx import Fsx, Hook, Mismatch
from tests.support.mounted import MIB, PATIENCE_S, Hung, Mount, Mounts, content, digest, free, put
from tests.support.seeds import drawn_seed

OPERATIONS = 10_000
ON_MOUNTS = 10_000
IN_EVERY_RUN = (("cache-through", 6, 1_200), ("async-through-copying", 1, 1_200))
"""Modes, numbers of handles and of operations on mounts; all modes with more operations are slow tests."""
TIME_LIMIT_S = 500.0
CACHE_BYTES = 24 * MIB
FILLERS = 4
PROGRAM = str(Path(fsx.__file__).resolve())


@pytest.fixture
def seed() -> int:
    return drawn_seed()


# -- the program itself, on the local disk


@pytest.mark.parametrize("handles", [1, 6])
def test_local_disk_agrees_with_the_model(tmp_path: Path, seed: int, handles: int) -> None:
    calls = {"remount": 0, "evict": 0}

    def hook(name: str) -> Callable[[], None]:
        return lambda: calls.__setitem__(name, calls[name] + 1)

    hooks = {"remount": Hook(2_500, hook("remount"), closed=True), "evict": Hook(1_000, hook("evict"), closed=False)}
    run = Fsx(str(tmp_path / "file"), seed, handles=handles, hooks=hooks)
    run.run(OPERATIONS)
    assert calls == {"remount": 4, "evict": 10}
    assert (tmp_path / "file").read_bytes() == run.model


def test_wrong_byte_is_found_and_told(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "file"
    flipped: list[int] = []

    def flip() -> None:
        where = run.path
        if size := os.stat(where).st_size:
            flipped.append(size // 2)
            with open(where, "r+b") as file:
                file.seek(size // 2)
                byte = file.read(1)[0]
                file.seek(size // 2)
                file.write(bytes([byte ^ 1]))

    run = Fsx(str(path), seed, hooks={"evict": Hook(500, flip, closed=False)})
    with pytest.raises(Mismatch) as found:
        run.run(OPERATIONS)
    text = str(found.value)
    assert f"seed {seed}, operation {run.operation}" in text
    assert f"first difference at offset {flipped[0]}, 1 bytes differ" in text
    assert sum(line.startswith("  ") for line in text.splitlines()) == fsx.SHOWN


@pytest.mark.parametrize("call", ["pwrite", "ftruncate", "copy_file_range"])
def test_lost_change_is_found(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """A call that once in 20 times does nothing but say that it did."""
    true, rng = getattr(os, call), random.Random(seed)

    def pretend(*arguments):
        if rng.random() >= 0.05:
            return true(*arguments)
        return {"pwrite": lambda: len(arguments[1]), "ftruncate": lambda: None,
                "copy_file_range": lambda: arguments[2]}[call]()  # fmt: skip

    class Careful(Fsx):
        """Touches no page of its mapping that the file has not got: that ends the process (SIGBUS)."""

        def _mapped(self) -> int:
            if self._mapping is not None and os.stat(self.path).st_size < len(self.model):
                raise Mismatch("the file is too short")
            return super()._mapped()

    monkeypatch.setattr(os, call, pretend)
    with pytest.raises((Mismatch, ValueError)):  # mmap notices by itself that a file is too short
        Careful(str(tmp_path / "file"), seed).run(OPERATIONS)


def test_same_seed_same_operations(tmp_path: Path, seed: int) -> None:
    command = [sys.executable, "-I", "-S", PROGRAM, tmp_path / "file", "--ops", "2000", "--seed", str(seed)]
    outputs = [
        subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE_S).stdout for _ in range(2)
    ]
    assert outputs[0] == outputs[1]
    assert outputs[0].startswith(f"seed {seed}\ndone ")


# -- on mounts


class Process:
    """The program on a mount, whose hooks are answered here; see `fsx`."""

    def __init__(self, mount: Mount, hooks: Mapping[str, Callable[[], None]]) -> None:
        self.mount = mount
        self.hooks = hooks

    def run(self, *options: str, timeout_s: float = TIME_LIMIT_S) -> list[object]:
        """Returns size and digest that the file must have."""
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", PROGRAM, f"{self.mount.path}/file", *options], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd="/", env=self.mount.environment,
        )  # fmt: skip
        try:
            lines = self._serve(process, time.monotonic() + timeout_s)
            code = process.wait(PATIENCE_S)
        finally:
            if process.poll() is None:
                free(str(self.mount.path))
                process.kill()
                process.wait(PATIENCE_S)
            for pipe in (process.stdin, process.stdout, process.stderr):
                assert pipe is not None
                rest = pipe.read() if pipe is process.stderr else b""
                pipe.close()
        if code != 0:
            pytest.fail("\n".join([*lines, rest.decode(), f"exit {code}"]), pytrace=False)
        done, size, sha = lines[-1].split()
        assert done == "done"
        return [int(size), sha]

    def _serve(self, process: subprocess.Popen[bytes], give_up_at: float) -> list[str]:
        assert process.stdin is not None
        assert process.stdout is not None
        lines: list[str] = []
        buffer = b""
        while True:
            left = give_up_at - time.monotonic()
            if left <= 0 or not select.select([process.stdout], [], [], left)[0]:
                raise Hung("\n".join(["fsx did not end in time", *lines[-30:]]))
            chunk = os.read(process.stdout.fileno(), 1 << 16)
            if not chunk:
                return lines
            buffer += chunk
            while b"\n" in buffer:
                line, _, buffer = buffer.partition(b"\n")
                lines.append(line.decode())
                word, _, name = lines[-1].partition(" ")
                if word == "hook":
                    self.hooks[name]()
                    process.stdin.write(b"\n")
                    process.stdin.flush()


@functools.cache
def filler_digest(number: int) -> list[object]:
    return digest(content(("filler", number), 8 * MIB))


def evict(mount: Mount, s3: FastS3, bucket: str) -> None:
    """Read so much else that what can leave the cache leaves it, and empty the kernel's own."""
    for i in range(FILLERS):
        assert mount.read(f"filler{i}") == filler_digest(i)
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("1")


def remounts(mount: Mount) -> Callable[[], None]:
    """Every second remount finds neither cache nor state."""
    done = [0]

    def remount() -> None:
        ended = mount.unmount()
        assert ended.returncode == 0, ended.stderr
        done[0] += 1
        if done[0] % 2 == 0:
            shutil.rmtree(mount.cache)
            shutil.rmtree(mount.state)
        mount.mount()

    return remount


MODES = {
    "async-through": ["--write-mode", "async-through"],
    "async-through-copying": ["--write-mode", "async-through", "-o", "passthrough=false"],
    "cache-through": ["--write-mode", "cache-through"],
    "cache-through-copying": ["--write-mode", "cache-through", "-o", "passthrough=false"],
}


@pytest.mark.parametrize(
    ("mode", "handles", "operations"),
    [
        *IN_EVERY_RUN,
        *(pytest.param(mode, count, ON_MOUNTS, marks=pytest.mark.slow) for mode in MODES for count in (1, 6)),
    ],
)
def test_mount_agrees_with_the_model(
    mounting: Mounts, s3: FastS3, bucket: str, seed: int, mode: str, handles: int, operations: int
) -> None:
    """With one file open or several; what the bucket holds at the end is compared too."""
    for i in range(FILLERS):
        put(s3, bucket, f"filler{i}", content(("filler", i), 8 * MIB))
    mount = mounting(f"s3://{bucket}", *MODES[mode], "--cache-size", str(CACHE_BYTES), endpoint_url=s3.endpoint)
    process = Process(mount, {"remount": remounts(mount), "evict": lambda: evict(mount, s3, bucket)})
    expected = process.run(
        "--ops", str(operations), "--seed", str(seed), "--handles", str(handles),
        "--remount-every", str(operations // 4 - 20), "--evict-every", str(operations // 7),
    )  # fmt: skip
    assert mount.read("file") == expected
    remount = remounts(mount)
    remount()
    remount()
    assert digest((s3.bucket_path(bucket) / "file").read_bytes()) == expected
    assert mount.read("file") == expected
    assert not (s3.bucket_path(bucket) / "file.moved").exists()
