"""A fast S3-compatible server for tests and measurements: nginx and Lua over a plain directory.

Object ``bucket/key`` is the file ``root/bucket/key``, sent with sendfile, so a test may simply write files there. The
server answers ranged and conditional GET and HEAD, ListObjects (both versions), PUT, DELETE, copy and multipart
uploads, path style, without checking signatures; `FastS3.set` injects latency, 503, and resets while it runs.

Not S3: a key cannot be both an object and a directory, ``..`` and empty path
components do not work in keys, ETags are not MD5, nothing is versioned.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import string
import subprocess
import tempfile
import time
import urllib.parse
from pathlib import Path
from types import TracebackType

from tests.support.ports import free_port

HERE = Path(__file__).resolve().parent
MODULE_DIRS = ("/usr/lib/nginx/modules", "/usr/lib64/nginx/modules", "/usr/share/nginx/modules")
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0


def _module_dir() -> str | None:
    return next((d for d in MODULE_DIRS if (Path(d) / "ngx_http_lua_module.so").exists()), None)


def _nginx() -> str | None:
    return shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")


def available() -> str | None:
    """Why the server cannot run here, or None if it can (for ``pytest.mark.skipif``)."""
    if _nginx() is None:
        return "nginx is not installed (Debian: nginx-light)"
    if _module_dir() is None:
        return "nginx has no Lua module (Debian: libnginx-mod-http-lua)"
    return None


class FastS3:
    """Use as a context manager; ``endpoint`` is its URL, ``root`` the directory that holds the buckets."""

    access_key = "test"
    secret_key = "test-secret"
    region = "us-east-1"

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        *,
        buckets: tuple[str, ...] = ("bucket",),
        workers: int = 2,
        latency_ms: float = 0.0,
        error_rate: float = 0.0,
        reset_rate: float = 0.0,
    ) -> None:
        self._given_root = None if root is None else Path(root).resolve()
        self._buckets = buckets
        self._workers = workers
        self._settings = {"latency_ms": latency_ms, "error_rate": error_rate, "reset_rate": reset_rate}
        self._scratch: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._root: Path | None = None
        self.port = 0

    @property
    def root(self) -> Path:
        assert self._root is not None, "not started"
        return self._root

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def bucket_path(self, bucket: str = "bucket") -> Path:
        """The directory whose files are the objects of a bucket."""
        return self.root / bucket

    def __enter__(self) -> FastS3:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        reason = available()
        if reason is not None:
            raise RuntimeError(reason)
        self._scratch = Path(tempfile.mkdtemp(prefix="fast-s3-"))
        self._root = self._given_root or self._scratch / "data"
        for directory in ("tmp", "uploads", "body"):
            (self._scratch / directory).mkdir()
        for bucket in self._buckets:
            (self._root / bucket).mkdir(parents=True, exist_ok=True)
        try:
            self._launch()
            self.set(**self._settings)
        except BaseException:
            self.stop()
            raise

    def _launch(self) -> None:
        for _ in range(5):  # somebody else than a test may take the port between our choice and nginx's bind
            self.port = free_port()
            self._process = self._spawn()
            deadline = time.monotonic() + START_TIMEOUT_S
            while self._process.poll() is None and time.monotonic() < deadline:
                try:
                    self._control("")
                    return
                except OSError:
                    time.sleep(0.02)
            self._kill()
        log = (self._scratch / "error.log").read_text() if self._scratch else ""
        raise RuntimeError(f"nginx did not start: {log[-2000:]}")

    def _spawn(self) -> subprocess.Popen[bytes]:
        assert self._scratch is not None
        template = string.Template((HERE / "fast_s3.nginx.conf").read_text())
        config = template.substitute(
            modules=_module_dir(), user="user root;" if os.geteuid() == 0 else "", workers=self._workers,
            prefix=self._scratch, here=HERE, data=self.root, parent_pid=os.getpid(), port=self.port,
        )  # fmt: skip
        (self._scratch / "nginx.conf").write_text(config)
        with (self._scratch / "output.log").open("ab") as output:
            return subprocess.Popen(
                [_nginx() or "nginx", "-p", str(self._scratch), "-c", "nginx.conf", "-e", "error.log"],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def stop(self) -> None:
        """Stops the server and removes what it created (a given ``root`` stays)."""
        self._kill()
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._scratch = None

    def _control(self, query: str) -> dict[str, float]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=START_TIMEOUT_S)
        try:
            connection.request("GET", "/_control?" + query)
            answer: dict[str, float] = json.loads(connection.getresponse().read())
            return answer
        finally:
            connection.close()

    def set(
        self,
        *,
        latency_ms: float | None = None,
        error_rate: float | None = None,
        reset_rate: float | None = None,
        rate_bytes_s: float | None = None,
    ) -> None:
        """Changes the injection from the next request on; 0 turns one off. The rates are probabilities per request
        of a 503 (SlowDown) and of a connection reset; ``rate_bytes_s`` bounds each response's bandwidth."""
        wanted = {"latency_ms": latency_ms, "error_rate": error_rate, "reset_rate": reset_rate,
                  "rate_bytes_s": rate_bytes_s}  # fmt: skip
        self._control(urllib.parse.urlencode({k: v for k, v in wanted.items() if v is not None}))

    def counters(self, *, reset: bool = False) -> dict[str, int]:
        """Requests seen: requests, gets, heads, puts, deletes, posts, lists, injected_errors, injected_resets."""
        answer = self._control("")
        if reset:
            self._control("reset_counters=1")
        settings = ("latency_ms", "error_rate", "reset_rate", "rate_bytes_s")
        return {k: int(v) for k, v in answer.items() if k not in settings}

    def error_log(self) -> str:
        return (self._scratch / "error.log").read_text(errors="replace") if self._scratch else ""
