"""The systems that mount the bucket, but for JuiceFS, which has objects of its own."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from tests.bench import processes
from tests.bench.juicefs import JuiceFS
from tests.bench.processes import Failed
from tests.bench.systems import BUCKET, MOUNT_TIMEOUT_S, Mounted, Native, Raw, RawToFile, System, program

DRAIN_TIMEOUT_S = 180.0  # what was written is uploaded before luxfuse unmounts


class Rclone(Mounted):
    name = "rclone"
    command = "rclone"

    def mount(self) -> None:
        env = {
            **os.environ, "RCLONE_CONFIG": str(self.state / "none.conf"), "RCLONE_CONFIG_BENCH_TYPE": "s3",
            "RCLONE_CONFIG_BENCH_PROVIDER": "Other", "RCLONE_CONFIG_BENCH_ENDPOINT": self.server.endpoint,
            "RCLONE_CONFIG_BENCH_ACCESS_KEY_ID": self.server.access_key,
            "RCLONE_CONFIG_BENCH_SECRET_ACCESS_KEY": self.server.secret_key,
        }  # fmt: skip
        command = [
            program("rclone"), "mount", f"bench:{BUCKET}", str(self.path), "--vfs-cache-mode", "full",
            "--cache-dir", str(self.cache), "--dir-cache-time", "1h", "--attr-timeout", "1h",
            "--vfs-fast-fingerprint", "--use-server-modtime",
        ]  # fmt: skip
        if self.write_mode is None:
            command.append("--read-only")
        elif self.write_mode == "cache-through":
            command += ["--vfs-write-back", "0s"]  # else it waits for 5 s after the close
        self.run_foreground(command, env)


class S3fs(Mounted):
    name = "s3fs"
    command = "s3fs"

    def mount(self) -> None:
        passwd = self.state / "passwd"
        passwd.touch(0o600)
        passwd.write_text(f"{self.server.access_key}:{self.server.secret_key}\n")
        options = (
            f"url={self.server.endpoint},use_path_request_style,use_cache={self.cache},passwd_file={passwd},"
            "stat_cache_expire=3600,max_stat_cache_size=200000"
        )
        if self.write_mode is None:
            options += ",ro"
        self.run_foreground([program("s3fs"), BUCKET, str(self.path), "-f", "-o", options])


class Luxfuse(Mounted):
    name = "luxfuse"
    command = "luxfuse"

    def _env(self) -> dict[str, str]:
        return {**os.environ, "LUXFUSE_STATE_DIR": str(self.state)}

    def mount(self) -> None:
        command = [
            program("luxfuse"), "mount", f"s3://{BUCKET}", str(self.path), "--endpoint-url", self.server.endpoint,
            "--storage-option", f"key={self.server.access_key}", "--storage-option", f"secret={self.server.secret_key}",
            "--cache-dir", str(self.cache), "--metadata-ttl", "1h",
            "--passthrough", "on" if self.passthrough else "off",
            *(["--read-only"] if self.write_mode is None else ["--write-mode", self.write_mode]),
        ]  # fmt: skip
        processes.run(command, timeout_s=MOUNT_TIMEOUT_S, env=self._env())
        if not processes.is_mounted(self.path):
            raise Failed("luxfuse mount returned, but nothing is mounted")

    def ask(self, *arguments: str, timeout_s: float) -> str:
        return processes.run([program("luxfuse"), *arguments], timeout_s=timeout_s, env=self._env())

    def load(self, path: Path, *, timeout_s: float) -> None:
        self.ask("load", str(path), timeout_s=timeout_s)

    def settle(self, path: Path) -> None:
        state = "import os, sys; print(os.getxattr(sys.argv[1], 'user.luxfuse.state').decode())"
        processes.wait_until(
            lambda: processes.run([sys.executable, "-I", "-S", "-c", state, str(path)], timeout_s=10) == "cached\n",
            MOUNT_TIMEOUT_S, "caching the whole file",
        )  # fmt: skip

    def daemon_pid(self) -> int | None:
        try:
            command = [program("luxfuse"), "status", str(self.path), "--json"]
            status = json.loads(processes.run(command, timeout_s=10, env=self._env()))
            if isinstance(status, list):
                status = status[0]
            return int(status["pid"])
        except (Failed, ValueError, KeyError, IndexError, TypeError):
            return None

    def unmount(self) -> None:
        try:
            processes.run([program("luxfuse"), "unmount", str(self.path)], timeout_s=DRAIN_TIMEOUT_S, env=self._env())
        except Failed:
            processes.free(self.path)


ALL: tuple[type[System], ...] = (Native, Raw, RawToFile, Rclone, S3fs, JuiceFS, Luxfuse)
