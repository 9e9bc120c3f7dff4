"""A real OpenStack Swift: proxy, account, container and object servers, with Swift's S3 layer, which checks signatures."""

from __future__ import annotations

import secrets
import subprocess

from tests.support.ports import free_port
from tests.support.server_group import ServerGroup, answers, missing

PROGRAMS = ("swift-proxy-server", "swift-account-server", "swift-container-server", "swift-object-server")
INSTALL = "apt-get install --no-install-recommends swift-proxy swift-account swift-container swift-object"

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


class Swift(ServerGroup):
    """``endpoint`` is the URL of the S3 layer, for ``access_key`` and ``secret_key``."""

    name = "swift"
    start_timeout_s = 120.0
    kept_from = ("SWIFT_", "PYTHON", "OS_")
    region = "us-east-1"
    access_key = "tests:tester"

    def __init__(self) -> None:
        super().__init__()
        self.secret_key = secrets.token_hex(16)
        self._ports: dict[str, int] = {}

    @staticmethod
    def available() -> str | None:
        lacking = missing(*PROGRAMS)
        return f"needs {', '.join(lacking)} (Debian: {INSTALL})" if lacking else None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._ports['proxy']}"

    def _launch(self) -> None:
        self._configure()
        for name in ("account", "container", "object", "proxy"):
            self._spawn(name, f"swift-{name}-server", str(self.base / f"{name}.conf"), "verbose")
        self._wait("Swift", lambda: answers(f"{self.endpoint}/info"))

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

    def _environment(self) -> dict[str, str]:
        kept = super()._environment()
        return kept | {"PATH": f"/usr/bin:/bin:{kept.get('PATH', '')}"}
