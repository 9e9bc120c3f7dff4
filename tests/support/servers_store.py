"""Real servers for the under-store contract, each on a free loopback port, started once and ended by process id."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest

from tests.support.ceph_rgw import CephRgw
from tests.support.hadoop import Hadoop
from tests.support.ports import free_port
from tests.support.server_group import ServerGroup
from tests.support.swift import Swift

START_TIMEOUT_S = 120
MOTO_PAGE = 100
"""Names that Moto lists at once. It is slow to fill; the fast server has pages of 1000, as S3."""
MOTO = str(Path(__file__).with_name("moto_server.py"))
AZURITE = Path.home() / ".cache/luxfuse-tests/azurite"
AZURITE_PACKAGE = "azurite@3.35.0"  # 3.37 needs a newer Node
AZURITE_ACCOUNT = "devstoreaccount1"
# The published key of every Azurite there is.
AZURITE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


Group = TypeVar("Group", bound=ServerGroup)


@contextlib.contextmanager
def running(command: list[str], port: int, **environment: str) -> Iterator[None]:
    """Run ``command`` without output until the block ends; returns once ``port`` accepts connections."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "TMPDIR": "/tmp", **environment},  # else it is taken for a daemon that was left
    )
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            if process.poll() is not None:
                pytest.fail(f"{command[0]} ended at once with {process.returncode}")
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            if time.monotonic() > deadline:
                pytest.fail(f"{command[0]} does not answer on port {port}")
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture(scope="session")
def moto_url() -> Iterator[str]:
    """Moto's S3."""
    port = free_port()
    command = [sys.executable, MOTO, "-H", "127.0.0.1", "-p", str(port)]
    with running(command, port, MOTO_S3_DEFAULT_MAX_KEYS=str(MOTO_PAGE)):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="session")
def strict_moto_url() -> Iterator[str]:
    """Moto's S3, refusing every key, as no user exists."""
    port = free_port()
    command = [sys.executable, MOTO, "-H", "127.0.0.1", "-p", str(port)]
    with running(command, port, INITIAL_NO_AUTH_ACTION_COUNT="0"):
        yield f"http://127.0.0.1:{port}"


def started(kind: type[Group]) -> Iterator[Group]:
    """Start servers for a session, if they can run here."""
    if reason := kind.available():
        pytest.skip(reason)
    with kind() as servers:
        yield servers


@pytest.fixture(scope="session")
def ceph_rgw() -> Iterator[CephRgw]:
    """Ceph's gateway, which checks signatures; for tests marked ceph, which run only when asked for."""
    yield from started(CephRgw)


@pytest.fixture(scope="session")
def swift() -> Iterator[Swift]:
    """OpenStack Swift with its S3 layer; for tests marked swift, which run only when asked for."""
    yield from started(Swift)


@pytest.fixture(scope="session")
def hadoop() -> Iterator[Hadoop]:
    """Hadoop's HDFS; for tests marked hdfs, which run only when asked for."""
    yield from started(Hadoop)


@pytest.fixture(scope="session")
def azurite_url() -> Iterator[str]:
    """Azurite's blob service, account included, as it is path-style."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed, so Azurite cannot be")
    program = AZURITE / "node_modules/.bin/azurite-blob"
    AZURITE.parent.mkdir(parents=True, exist_ok=True)
    with AZURITE.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several processes of tests come here at once
        if not program.exists():
            _install_azurite()
    port = free_port()
    flags = ["--silent", "--inMemoryPersistence", "--disableTelemetry", "--skipApiVersionCheck"]
    with running([str(program), *flags, "--blobHost", "127.0.0.1", "--blobPort", str(port)], port):
        yield f"http://127.0.0.1:{port}/{AZURITE_ACCOUNT}"


def _install_azurite() -> None:
    """Install it whole or not at all: a run of tests may be killed meanwhile."""
    with tempfile.TemporaryDirectory(dir=AZURITE.parent) as base:
        fresh = Path(base, "azurite")
        fresh.mkdir()
        install = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(fresh), AZURITE_PACKAGE]
        done = subprocess.run(install, capture_output=True, text=True, timeout=300, check=False)
        if done.returncode:
            pytest.skip(f"npm cannot install {AZURITE_PACKAGE}: {done.stderr.strip()[-200:]}")
        shutil.rmtree(AZURITE, ignore_errors=True)
        fresh.rename(AZURITE)


@dataclass(frozen=True)
class FileServer:
    """An HTTP server that shows ``directory`` at ``url``."""

    url: str
    directory: Path


@pytest.fixture(scope="session")
def nginx_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FileServer]:
    """Nginx with a directory index and ranges."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if program is None:
        pytest.skip("nginx is not installed (Debian: nginx-light)")
    base = tmp_path_factory.mktemp("nginx")
    files = base / "files"
    files.mkdir()
    for directory in (base, *base.parents[:2]):  # nginx as root serves as another user
        directory.chmod(0o755)
    port = free_port()
    config = base / "nginx.conf"
    config.write_text(
        f"daemon off; worker_processes 1; pid {base}/pid; error_log {base}/error.log;\n"
        f"{'user root;' if os.geteuid() == 0 else ''}\n"
        "events { worker_connections 256; }\n"
        f"http {{ access_log off; client_body_temp_path {base}/t1; proxy_temp_path {base}/t2;\n"
        f"  fastcgi_temp_path {base}/t3; uwsgi_temp_path {base}/t4; scgi_temp_path {base}/t5;\n"
        f"  server {{ listen 127.0.0.1:{port}; root {files}; autoindex on; }} }}\n"
    )
    with running([program, "-p", str(base), "-c", str(config), "-e", f"{base}/error.log"], port):
        yield FileServer(f"http://127.0.0.1:{port}", files)
