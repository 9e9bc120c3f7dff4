"""A daemon that mounts nothing: `python fake_daemon.py READY_FD`, settings on stdin, told by the source how to fail."""

from __future__ import annotations

import json
import os
import signal
import sys
import time

import msgspec
import trio

from luxfuse.config import Settings
from luxfuse.control import registry
from luxfuse.control.server import serve
from luxfuse.errors import MountError
from tests.unit.control.samples import sample_status


def step(**fields: object) -> dict[str, object]:
    plain: dict[str, object] = {
        "files": 0, "bytes": 0, "deletes": 0, "renames": 0, "open_files": 0, "put_bytes": 0, "stalled_s": 0.0,
        "error": None, "done": False, "failures": [], "notes": [],
    }  # fmt: skip
    return {**plain, **fields}


def load_step(**fields: object) -> dict[str, object]:
    plain: dict[str, object] = {
        "job": 1, "paths": ["a"], "state": "running", "walking": False, "files": 0, "bytes": 0, "loaded_files": 0,
        "loaded_bytes": 0, "present_files": 0, "present_bytes": 0, "left_out_files": 0, "left_out_bytes": 0,
        "failed_files": 0, "note": None, "done": False, "failures": [],
    }  # fmt: skip
    return {**plain, **fields}


class Service:
    def __init__(self, settings: Settings, end: trio.Event) -> None:
        self._settings = settings
        self._end = end
        self.draining = False
        self.jobs: list[dict[str, object]] = []

    def status(self) -> dict[str, object]:
        state = "draining" if self.draining else "serving"
        return {**sample_status(self._settings.mountpoint), "pid": os.getpid(), "state": state}

    def metrics(self) -> str:
        return "luxfuse_up 1\n"

    async def refresh(self, paths: list[str]) -> list[str]:
        await trio.lowlevel.checkpoint()
        return [f"{path}: no such file" for path in paths if "missing" in path]

    async def persist(self, paths: list[str]):
        await trio.lowlevel.checkpoint()
        yield step(files=3, bytes=3 << 20)
        yield step(
            done=True,
            notes=["a.tmp: local only (must-cache)"] if "" in paths else [],
            failures=[f"{path}: is open for writing" for path in paths if "open" in path],
        )

    def _load(self, paths: list[str]) -> dict[str, object]:
        bad = [path for path in paths if "missing" in path]
        left_out = sum("large" in path for path in paths)
        return load_step(
            job=len(self.jobs) + 1, paths=paths[:3], state="done", done=True, files=len(paths), bytes=len(paths) << 20,
            loaded_files=len(paths) - len(bad) - left_out, loaded_bytes=(len(paths) - len(bad) - left_out) << 20,
            failed_files=len(bad), failures=[f"{path}: no such file" for path in bad], left_out_files=left_out,
            note="1 file left out: enlarge the cache" if left_out else None,
        )  # fmt: skip

    async def load(self, paths: list[str]):
        await trio.lowlevel.checkpoint()
        yield load_step(files=len(paths), walking=True)
        yield self._load(paths)

    async def free(self, paths: list[str]):
        await trio.lowlevel.checkpoint()
        kept = {"is open, or being loaded": 1, "is open for writing": 2} if "busy" in paths else {}
        yield {"freed_files": 1, "freed_bytes": 1, "kept": {}, "lines": [], "failures": [], "done": False}
        yield {
            "freed_files": len(paths), "freed_bytes": len(paths) << 20, "kept": kept, "lines": [], "done": True,
            "failures": [f"{path}: no such file" for path in paths if "missing" in path],
        }  # fmt: skip

    async def check(self, *, repair: bool):
        await trio.lowlevel.checkpoint()
        lines = {
            "fake://damaged": ["a: page 3 damaged", "/c/objects/ab/abcd: belongs to nothing"],
            "fake://broken": [],
        }.get(self._settings.source, [])  # fmt: skip
        plain = {
            "repair": repair, "files": 3, "bytes": 3 << 20, "total_files": 3, "total_bytes": 3 << 20, "mended": 0,
            "problems": 5 * len(lines), "lines": lines, "error": None, "done": False,
        }  # fmt: skip
        yield {**plain, "files": 1, "problems": 0, "lines": []}
        error = "internal error: KeyError" if self._settings.source == "fake://broken" else None
        yield {**plain, "mended": 10 * repair * bool(lines), "done": True, "error": error}

    async def locate(self, paths: list[str]) -> list[dict[str, object]]:
        await trio.lowlevel.checkpoint()
        place = {"tier": "ssd", "directory": "/c", "file": "/c/objects/ab/abcd", "pages": "0-3,5", "bytes": 5 << 20}
        file = {"kind": "file", "size": 7 << 20, "page_bytes": 1 << 20, "state": "clean", "missing_pages": "4,6"}
        file["nodes"] = [{"node": "0" * 16, "label": "h:/m", "ranges": 1, "of": 1}] if "shared" in paths else []
        tier = {"tier": "mem", "directory": "/m", "files": 3, "bytes": 1 << 20}
        directory = {"kind": "directory", "whole_files": 2, "partial_files": 1, "dirty_files": 4, "tiers": [tier]}
        return [
            {"path": path, "error": "no such file"} if "missing" in path
            else {"path": path, **directory} if path == "d" else {"path": path, **file, "places": [place]}
            for path in paths
        ]  # fmt: skip

    async def pin(self, paths: list[str]) -> dict[str, object]:
        await trio.lowlevel.checkpoint()
        return {"failures": [f"{path}: no such file" for path in paths if "missing" in path], "notes": []}

    unpin = pin

    async def limit(self, paths: list[str], seconds: float | None, action: str) -> dict[str, object]:
        return await self.pin(paths)

    async def reload(self) -> list[str]:
        await trio.lowlevel.checkpoint()
        return []

    async def replicate(self, paths: list[str], least: int, most: int | None) -> dict[str, object]:
        await trio.lowlevel.checkpoint()
        return {"failures": [f"{path}: no such file" for path in paths if "missing" in path], "notes": [f"{least} {most}"]}

    def start_load(self, paths: list[str]) -> int:
        self.jobs.append(self._load(paths))
        return len(self.jobs)

    def loads(self) -> list[dict[str, object]]:
        return self.jobs

    def stop_loads(self) -> int:
        return len(self.jobs)

    async def attach(self, source: str, path: str, options: dict[str, object]) -> list[str]:
        await trio.lowlevel.checkpoint()
        if "taken" in path:
            raise MountError(f"{path}: something is attached there already")
        return [f"{source} at {path}: {json.dumps(options, sort_keys=True)}"]

    async def detach(self, path: str, *, force: bool):
        yield step(files=1, bytes=1 << 20)
        if "busy" in path and not force:
            raise MountError(f"{path} is busy: in use by cat (pid 7)")
        yield step(done=True)

    async def drain(self):
        mode = self._settings.source.partition("://")[2]
        self.draining = True
        try:
            if mode == "stuck":
                while True:
                    await trio.sleep(0.05)
                    yield step(files=2, bytes=5 << 20, deletes=1, stalled_s=61.0, error="big: PUT 'big': 503")
            for left in range(20, 0, -1) if mode == "slow-drain" else ():
                await trio.sleep(0.05)
                yield step(files=left, bytes=left << 20, put_bytes=(20 - left) << 20)
            yield step(done=True)
        finally:
            self.draining = False

    async def unmount(self, *, lazy: bool) -> None:
        await trio.lowlevel.checkpoint()
        if self._settings.source == "fake://busy":
            raise MountError(f"{self._settings.mountpoint} is busy: in use by cat (pid 7)")
        self._end.set()


async def main(settings: Settings, claim: registry.Claim, answer) -> None:
    end = trio.Event()
    async with trio.open_nursery() as nursery:
        await nursery.start(serve, claim.socket_path, Service(settings, end))
        answer(None)
        if settings.source == "fake://hung":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(60)
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            nursery.start_soon(end_on_signal, signals, end)
            await end.wait()
        nursery.cancel_scope.cancel()


async def end_on_signal(signals, end: trio.Event) -> None:
    async for _ in signals:
        end.set()


def run(settings: Settings, ready_fd: int) -> int:
    def answer(error: str | None) -> None:
        notes = ["the last run left 2 changed files"] if settings.source == "fake://notes" else []
        os.write(ready_fd, json.dumps({"error": error, "notes": notes}).encode() + b"\n")

    if settings.source == "fake://error":
        answer("s3://bucket: no such bucket; create it first")
        return 1
    if settings.source == "fake://dies":
        print("about to die", flush=True)
        return 3
    if settings.source == "fake://busy-beginning":
        for _ in range(11):
            time.sleep(0.3)
            os.write(ready_fd, b'{"waiting": "still finishing"}\n')
    if settings.source == "fake://slow":
        time.sleep(60)
    try:
        with registry.claim(settings) as claim:
            trio.run(main, settings, claim, answer)
    except MountError as exc:
        answer(str(exc))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(run(msgspec.json.decode(sys.stdin.buffer.read(), type=Settings), int(sys.argv[1])))
