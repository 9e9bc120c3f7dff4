"""Whether OpenSSH's server is believed, by what the files of known hosts say of its key."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from luxfuse.errors import NotTrusted, StoreError
from luxfuse.understore.factory import open_driver
from tests.support.servers_files import Server, make_sftp, serving


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """It has a key of another kind, too, which clients like less."""
    made = make_sftp(tmp_path_factory.mktemp("sftp"))
    rsa, config = made.directory.parent / "rsa", Path(made.command[-1])
    subprocess.run(["ssh-keygen", "-q", "-t", "rsa", "-b", "2048", "-N", "", "-f", rsa], check=True)
    config.write_text(f"HostKey {rsa}\n{config.read_text()}")
    with serving(made):
        yield made


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh").mkdir(mode=0o700)
    return tmp_path / ".ssh/known_hosts"


def mount(server: Server, **options: str) -> None:
    """List the server's directory; without ``options`` the known hosts are those of the user."""
    others = {name: value for name, value in server.options.items() if name != "known_hosts"}
    driver = open_driver(server.url, storage_options={**others, **options}, request_timeout_s=60)
    try:
        driver.probe()
    finally:
        driver.close()


def another_key(directory: Path) -> str:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", directory / "another"], check=True)
    return " ".join((directory / "another.pub").read_text().split()[:2])


def test_an_unknown_key_is_refused(server: Server, home: Path) -> None:
    with pytest.raises(NotTrusted, match="is not known; if it is the server's, add what") as caught:
        mount(server)
    assert "\n" not in str(caught.value)
    scan = re.search(r"what (ssh-keyscan -p \d+ 127\.0\.0\.1) prints to ~/\.ssh/known_hosts", str(caught.value))
    assert scan is not None
    home.write_text(subprocess.run(scan[1].split(), check=True, capture_output=True, text=True).stdout)
    mount(server)


def test_the_server_is_asked_for_the_key_that_is_known(server: Server, home: Path) -> None:
    kind, key = (server.directory.parent / "rsa.pub").read_text().split()[:2]
    home.write_text(f"[127.0.0.1]:{server.port} {kind} {key}\n")
    mount(server)


def test_a_changed_key_is_refused(server: Server, home: Path, tmp_path: Path) -> None:
    home.write_text(f"# mine\n[127.0.0.1]:{server.port} {another_key(tmp_path)}\n")
    with pytest.raises(NotTrusted, match=r"is not the one in ~/\.ssh/known_hosts:2: somebody may be in between"):
        mount(server)


def test_a_revoked_key_is_refused(server: Server, home: Path) -> None:
    known = Path(server.options["known_hosts"]).read_text()
    home.write_text(known + "@revoked " + known)
    with pytest.raises(NotTrusted, match="is revoked"):
        mount(server)


def test_a_named_file_is_the_only_one(server: Server, home: Path, tmp_path: Path) -> None:
    home.write_text(Path(server.options["known_hosts"]).read_text())
    mine = tmp_path / "mine"
    with pytest.raises(NotTrusted, match=r"known_hosts: .*mine: no such file"):
        mount(server, known_hosts=str(mine))
    mine.write_text("")
    with pytest.raises(NotTrusted, match="is not known"):
        mount(server, known_hosts=str(mine))
    mine.write_text(home.read_text())
    mount(server, known_hosts=str(mine))


def test_a_chained_source_checks_too(server: Server, home: Path) -> None:
    with pytest.raises(StoreError, match="is not known"):
        open_driver(f"dir::{server.url}").close()


def test_a_server_that_changes_its_key_is_refused_later(server: Server, tmp_path: Path) -> None:
    """Connections that are made anew are checked as the first one was."""
    mine = tmp_path / "mine"
    mine.write_text(Path(server.options["known_hosts"]).read_text())
    driver = open_driver(server.url, storage_options={**server.options, "known_hosts": str(mine)}, request_timeout_s=60)
    try:
        driver.probe()
        mine.write_text(f"[127.0.0.1]:{server.port} {another_key(tmp_path)}\n")
        server.restart()
        with pytest.raises(NotTrusted, match="somebody may be in between"):
            driver.probe()
    finally:
        driver.close()
