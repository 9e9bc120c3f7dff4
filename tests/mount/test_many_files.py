"""More files at once than the daemon may have open: the bound is the disk's, not that of descriptors."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

import pytest

from tests.support.fast_s3 import FastS3
from tests.support.fault_proxy import FaultProxy
from tests.support.mounted import Mounts, wait_for

FILES, DESCRIPTORS = 200, 150
CREATE = f"""
import os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, ({FILES} + 100, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
opened = [os.open(f"{{sys.argv[1]}}/{{number}}", os.O_CREAT | os.O_RDWR) for number in range({FILES})]
for number, fd in enumerate(opened):
    assert os.write(fd, b"%d" % number * 5000) == len(b"%d" % number) * 5000
for number, fd in enumerate(opened):
    assert os.pread(fd, 1 << 20, 0) == b"%d" % number * 5000
for fd in opened:
    os.close(fd)
"""


@pytest.mark.parametrize("passthrough", ["true", "false"])
def test_more_new_files_than_descriptors(
    mounting: Mounts, s3: FastS3, proxy: FaultProxy, bucket: str, passthrough: str
) -> None:
    mount = mounting(
        f"s3://{bucket}", "--write-mode", "async-through", "--negative-ttl", "1m", endpoint_url=proxy.endpoint,
        options={"passthrough": passthrough},
    )  # fmt: skip
    mount.expected_logs.append("cannot be brought to the under-store yet")
    resource.prlimit(mount.pid, resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))
    assert mount.do("list", str(mount.path)) == []
    proxy.outage(True)
    done = mount.run([sys.executable, "-c", CREATE, str(mount.path)])
    assert done.returncode == 0, done.stderr
    assert len(os.listdir(f"/proc/{mount.pid}/fd")) < DESCRIPTORS
    wait_for("all are kept", lambda: mount.status()["dirty"]["files"] >= FILES)
    proxy.outage(False)
    wait_for("all are stored", lambda: mount.cli("persist", mount.path).returncode == 0)
    where = Path(s3.root, bucket)
    assert all((where / str(number)).read_bytes() == b"%d" % number * 5000 for number in range(FILES))
