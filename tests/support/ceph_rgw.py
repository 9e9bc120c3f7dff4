"""A real S3 server that checks signatures: Ceph's RGW on a cluster of one node that keeps its objects in memory.

One monitor, one OSD and one gateway, all on loopback and children of this process, with everything they write in a
temporary directory. No manager: nothing here needs its statistics.

Not S3: PUT with If-Match is wrong; conditions on copies and on the end of a multipart upload are ignored.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from tests.support.ports import free_port

PROGRAMS = ("ceph-mon", "ceph-osd", "radosgw", "radosgw-admin", "ceph", "ceph-authtool", "monmaptool")
INSTALL = "apt-get install --no-install-recommends radosgw ceph-mon ceph-osd ceph-common"
START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 10.0

CONFIGURATION = """\
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{monitor_port}/0]
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
keyring = {base}/keyring
public addr = 127.0.0.1
cluster addr = 127.0.0.1
ms bind ipv6 = false
ms bind msgr1 = false
# Below the ports that are given out on request, so that the gateway's stays free until it binds.
ms bind port min = 20000
ms bind port max = 32767
run dir = {base}
crash dir = {base}
admin socket =
log file = {base}/$name.log
mon cluster log file = {base}/cluster.log
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pgp num = 8
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
# A full disk of the machine is no concern of objects in memory.
mon data avail crit = 0
# Each pool that the gateway makes waits for a round of the monitor: a second by default.
paxos propose interval = 0.05

[mon.a]
mon data = {base}/mon

[osd.0]
osd data = {base}/osd
osd objectstore = memstore

[client.rgw]
rgw data = {base}
rgw frontends = beast endpoint=127.0.0.1:{port} tcp_nodelay=1
rgw thread pool size = 64
"""

CAPABILITIES = {
    "mon.": ("mon", "allow *"),
    "client.admin": ("mon", "allow *", "osd", "allow *"),
    "osd.0": ("mon", "allow profile osd", "osd", "allow *"),
    "client.rgw": ("mon", "allow rwx", "osd", "allow rwx"),
}


def available() -> str | None:
    """Why the server cannot run here, or None if it can."""
    missing = [program for program in (*PROGRAMS, "setpriv") if shutil.which(program) is None]
    return f"needs {', '.join(missing)} (Debian: {INSTALL})" if missing else None


class CephRgw:
    """Use as a context manager; ``endpoint`` is the gateway's URL, for ``access_key`` and ``secret_key``."""

    region = "us-east-1"

    def __init__(self) -> None:
        self.access_key = secrets.token_hex(10).upper()
        self.secret_key = f"{secrets.token_hex(10)}/+{secrets.token_hex(9)}"  # with what must be escaped
        self.port = 0
        self._base: Path | None = None
        self._processes: list[subprocess.Popen[bytes]] = []

    @property
    def base(self) -> Path:
        """Where everything is written."""
        assert self._base is not None, "not started"
        return self._base

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> CephRgw:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        """Start all, and make the user; returns once the gateway answers."""
        reason = available()
        if reason is not None:
            raise RuntimeError(reason)
        self._base = Path(tempfile.mkdtemp(prefix="ceph-rgw-"))
        self._deadline = time.monotonic() + START_TIMEOUT_S
        try:
            self._configure()
            self._start_monitor()
            self._start_osd()
            self._spawn("radosgw", "-n", "client.rgw")
            self._wait("the gateway", self._answers)
            self._run(
                "radosgw-admin", "-c", self._config, "user", "create", "--uid=tests", "--display-name=tests",
                f"--access-key={self.access_key}", f"--secret-key={self.secret_key}",
            )  # fmt: skip
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Kill the processes and remove what they wrote: nothing of it is needed again."""
        for process in reversed(self._processes):
            process.kill()
        while self._processes:
            self._processes.pop().wait(STOP_TIMEOUT_S)
        if self._base is not None:
            shutil.rmtree(self._base, ignore_errors=True)
            self._base = None

    @property
    def _config(self) -> str:
        return str(self.base / "ceph.conf")

    def _configure(self) -> None:
        monitor_port, self.port = free_port(), free_port()
        fsid = str(uuid.uuid4())
        text = CONFIGURATION.format(base=self.base, fsid=fsid, monitor_port=monitor_port, port=self.port)
        Path(self._config).write_text(text)
        keyring = str(self.base / "keyring")
        for number, (name, capabilities) in enumerate(CAPABILITIES.items()):
            create = [] if number else ["--create-keyring"]
            pairs = zip(capabilities[::2], capabilities[1::2], strict=True)
            flags = [word for where, what in pairs for word in ("--cap", where, what)]
            self._run("ceph-authtool", *create, keyring, "--gen-key", "-n", name, *flags)
        address = f"[v2:127.0.0.1:{monitor_port}]"
        self._run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", address, str(self.base / "monmap"))

    def _start_monitor(self) -> None:
        (self.base / "mon").mkdir()
        keyring, monitors = str(self.base / "keyring"), str(self.base / "monmap")
        self._run("ceph-mon", "-c", self._config, "-i", "a", "--mkfs", "--monmap", monitors, "--keyring", keyring)
        self._spawn("ceph-mon", "-i", "a")

    def _start_osd(self) -> None:
        (self.base / "osd").mkdir()
        identity = str(uuid.uuid4())
        # Waits for the monitor.
        self._run("ceph", "-c", self._config, "--connect-timeout", "60", "osd", "new", identity, "0")
        self._run("ceph-osd", "-c", self._config, "-i", "0", "--mkfs", "--osd-uuid", identity)
        self._spawn("ceph-osd", "-i", "0")

    def _spawn(self, program: str, *arguments: str) -> None:
        with (self.base / f"{program}.out").open("wb") as output:
            process = subprocess.Popen(
                # Killed tests leave no cluster behind.
                ["setpriv", "--pdeathsig", "KILL", program, "-c", self._config, "-f", *arguments],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, cwd=self.base,
                env=self._environment(),
            )  # fmt: skip
        self._processes.append(process)

    def _run(self, *command: str) -> None:
        left = max(1.0, self._deadline - time.monotonic())
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=left,
                check=False, cwd=self.base, env=self._environment(),
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"{command[0]} did not end within {left:.0f} s: {self._said()}") from None
        if done.returncode:
            raise RuntimeError(f"{command[0]} ended with {done.returncode}: {done.stderr[-1000:]} {self._said()}")

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("CEPH_", "PYTHON"))}
        return kept | {"TMPDIR": str(self.base)}

    def _wait(self, what: str, condition: Callable[[], bool]) -> None:
        while not condition():
            ended = [process for process in self._processes if process.poll() is not None]
            if ended or time.monotonic() > self._deadline:
                raise RuntimeError(f"{what} did not start; ended: {[p.args for p in ended]}; {self._said()}")
            time.sleep(0.05)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(self.endpoint, timeout=5):
                return True
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False

    def _said(self) -> str:
        """The ends of what the processes wrote, for an error message."""
        said = {path.name: path.read_text(errors="replace").strip()[-500:] for path in self.base.glob("*.out")}
        return " ".join(f"{name}: {text}" for name, text in said.items() if text)
