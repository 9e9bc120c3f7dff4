"""A real S3 server that checks signatures: Ceph's RGW on a cluster of one node that keeps its objects in memory.

One monitor, one OSD and one gateway. No manager: nothing here needs its statistics.

Not S3: PUT with If-Match is wrong; conditions on copies and on the end of a multipart upload are ignored.
"""

from __future__ import annotations

import secrets
import uuid
from pathlib import Path

from tests.support.ports import free_port
from tests.support.server_group import ServerGroup, answers, missing

PROGRAMS = ("ceph-mon", "ceph-osd", "radosgw", "radosgw-admin", "ceph", "ceph-authtool", "monmaptool")
INSTALL = "apt-get install --no-install-recommends radosgw ceph-mon ceph-osd ceph-common"

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
# Below those of `free_port`, so that the gateway's stays free until it binds.
ms bind port min = 6800
ms bind port max = 9999
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


class CephRgw(ServerGroup):
    """``endpoint`` is the gateway's URL, for ``access_key`` and ``secret_key``."""

    name = "ceph-rgw"
    start_timeout_s = 90.0
    kept_from = ("CEPH_", "PYTHON")
    region = "us-east-1"

    def __init__(self) -> None:
        super().__init__()
        self.access_key = secrets.token_hex(10).upper()
        self.secret_key = f"{secrets.token_hex(10)}/+{secrets.token_hex(9)}"  # with what must be escaped
        self.port = 0

    @staticmethod
    def available() -> str | None:
        lacking = missing(*PROGRAMS)
        return f"needs {', '.join(lacking)} (Debian: {INSTALL})" if lacking else None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _launch(self) -> None:
        self._configure()
        self._start_monitor()
        self._start_osd()
        self._serve("radosgw", "-n", "client.rgw")
        self._wait("the gateway", lambda: answers(self.endpoint))
        self._run(
            "radosgw-admin", "-c", self._config, "user", "create", "--uid=tests", "--display-name=tests",
            f"--access-key={self.access_key}", f"--secret-key={self.secret_key}",
        )  # fmt: skip

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
        self._serve("ceph-mon", "-i", "a")

    def _start_osd(self) -> None:
        (self.base / "osd").mkdir()
        identity = str(uuid.uuid4())
        # Waits for the monitor.
        self._run("ceph", "-c", self._config, "--connect-timeout", "60", "osd", "new", identity, "0")
        self._run("ceph-osd", "-c", self._config, "-i", "0", "--mkfs", "--osd-uuid", identity)
        self._serve("ceph-osd", "-i", "0")

    def _serve(self, program: str, *arguments: str) -> None:
        self._spawn(program, program, "-c", self._config, "-f", *arguments)
