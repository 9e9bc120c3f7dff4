"""A real OpenStack Swift: proxy, account, container and object servers, with Swift's S3 layer, which checks signatures.

All on loopback and children of this process, with everything they write in a temporary directory.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType

from tests.support.ports import free_port

PROGRAMS = ("swift-proxy-server", "swift-account-server", "swift-container-server", "swift-object-server")
INSTALL = "apt-get install --no-install-recommends swift-proxy swift-account swift-container swift-object"
START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 10.0

SWIFT = "[swift-hash]\nswift_hash_path_prefix = luxfuse\nswift_hash_path_suffix = tests\n"

COMMON = """\
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
swift_dir = {base}
user = {user}
workers = {workers}
log_address = {base}/no-log
log_level = ERROR
"""

# As swift-ring-builder makes them, all in one process.
RINGS = """\
import sys
from swift.common.ring import RingBuilder
for name, port in zip(sys.argv[1::2], sys.argv[2::2]):
    place = {"ip": "127.0.0.1", "port": int(port)}
    builder = RingBuilder(part_power=4, replicas=1, min_part_hours=1)
    builder.add_dev({"region": 1, "zone": 1, "device": "d1", "weight": 1, "meta": "",
                     **place, **{f"replication_{name}": value for name, value in place.items()}})
    builder.rebalance()
    builder.get_ring().save(name)
"""

STORAGE = """\
devices = {base}/devices
mount_check = false
[pipeline:main]
pipeline = {name}-server
[app:{name}-server]
use = egg:swift#{name}
"""

FILTERS = ("catch_errors", "gatekeeper", "proxy-logging", "cache", "listing_formats", "bulk", "s3api", "tempauth", "copy",
           "slo", "dlo", "versioned_writes", "symlink")  # fmt: skip

PROXY = """\
[pipeline:main]
pipeline = {first} {last}
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:gatekeeper]
use = egg:swift#gatekeeper
[filter:proxy-logging]
use = egg:swift#proxy_logging
[filter:cache]
use = egg:swift#memcache
memcache_servers = 127.0.0.1:{nothing}
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:bulk]
use = egg:swift#bulk
[filter:s3api]
use = egg:swift#s3api
s3_acl = false
location = us-east-1
[filter:tempauth]
use = egg:swift#tempauth
user_tests_tester = {secret} .admin
[filter:copy]
use = egg:swift#copy
[filter:slo]
use = egg:swift#slo
[filter:dlo]
use = egg:swift#dlo
[filter:symlink]
use = egg:swift#symlink
[filter:versioned_writes]
use = egg:swift#versioned_writes
allow_object_versioning = true
"""


def available() -> str | None:
    """Why the servers cannot run here, or None if they can."""
    missing = [program for program in (*PROGRAMS, "setpriv") if shutil.which(program) is None]
    return f"needs {', '.join(missing)} (Debian: {INSTALL})" if missing else None


class Swift:
    """Use as a context manager; ``endpoint`` is the URL of the S3 layer, for ``access_key`` and ``secret_key``."""

    region = "us-east-1"
    access_key = "tests:tester"

    def __init__(self) -> None:
        self.secret_key = secrets.token_hex(16)
        self._ports: dict[str, int] = {}
        self._base: Path | None = None
        self._processes: list[subprocess.Popen[bytes]] = []

    @property
    def base(self) -> Path:
        """Where everything is written."""
        assert self._base is not None, "not started"
        return self._base

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._ports['proxy']}"

    def __enter__(self) -> Swift:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        """Start all; returns once the proxy answers."""
        if reason := available():
            raise RuntimeError(reason)
        self._base = Path(tempfile.mkdtemp(prefix="swift-"))
        try:
            self._configure()
            for name in ("account", "container", "object", "proxy"):
                self._spawn(name)
            self._wait()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Kill the processes, those of each server in a group, and remove what they wrote."""
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
        while self._processes:
            self._processes.pop().wait(STOP_TIMEOUT_S)
        if self._base is not None:
            shutil.rmtree(self._base, ignore_errors=True)
            self._base = None

    def _configure(self) -> None:
        names = ("account", "container", "object", "proxy", "nothing")
        self._ports |= {name: free_port() for name in names}
        (self.base / "devices/d1").mkdir(parents=True)
        (self.base / "swift.conf").write_text(SWIFT)
        user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
        words = []
        for name in ("account", "container", "object"):
            text = (COMMON + STORAGE).format(port=self._ports[name], base=self.base, user=user, name=name, workers=0)
            (self.base / f"{name}.conf").write_text(text)
            words += [str(self.base / f"{name}.ring.gz"), str(self._ports[name])]
        self._run("/usr/bin/python3", "-c", RINGS, *words)
        ends = {"first": " ".join(FILTERS), "last": "proxy-logging proxy-server"}
        text = (COMMON + PROXY).format(
            port=self._ports["proxy"], base=self.base, user=user, workers=0, secret=self.secret_key,
            nothing=self._ports["nothing"], **ends,
        )  # fmt: skip
        (self.base / "proxy.conf").write_text(text)

    def _spawn(self, name: str) -> None:
        with (self.base / f"{name}.out").open("wb") as output:
            process = subprocess.Popen(
                # Killed tests leave no servers behind.
                ["setpriv", "--pdeathsig", "KILL", f"swift-{name}-server", str(self.base / f"{name}.conf"), "verbose"],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, cwd=self.base,
                env=self._environment(),
            )  # fmt: skip
        self._processes.append(process)

    def _run(self, *command: str) -> None:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=START_TIMEOUT_S,
            check=False, cwd=self.base, env=self._environment(),
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{command} ended with {done.returncode}: {done.stdout[-500:]} {done.stderr[-1000:]}")

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SWIFT_", "PYTHON", "OS_"))}
        kept["PATH"] = f"/usr/bin:/bin:{kept.get('PATH', '')}"
        return kept | {"TMPDIR": str(self.base)}

    def _wait(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._answers():
            ended = [process.args for process in self._processes if process.poll() is not None]
            if ended or time.monotonic() > deadline:
                said = {path.name: path.read_text(errors="replace")[-500:] for path in self.base.glob("*.out")}
                raise RuntimeError(f"Swift did not start; ended: {ended}; {said}")
            time.sleep(0.1)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.endpoint}/info", timeout=5):
                return True
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False
