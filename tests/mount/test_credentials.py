"""Credentials that change under a mount, in the configuration file and in those of the AWS tools."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.fast_s3 import FastS3
from tests.support.front import Answer, certificate_authority, front, s3_error
from tests.support.mounted import Mounts, digest, wait_for


class Gate:
    """Lets requests in that are signed with one key."""

    def __init__(self) -> None:
        self.key = "AKIAONE"
        self.classes: list[str] = []
        """Of what was written."""

    def __call__(self, request: Any) -> Answer | None:
        if f"Credential={self.key}/" in request.headers.get("Authorization", ""):
            if request.command == "PUT":
                self.classes.append(request.headers.get("x-amz-storage-class"))
            return None
        return Answer(400) if request.command == "HEAD" else s3_error(400, "ExpiredToken")


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def guarded(s3: FastS3, gate: Gate) -> Iterator[str]:
    with front(s3.endpoint, gate) as url:
        yield url


def test_secrets_of_the_configuration_file_change_under_a_mount(
    mounting: Mounts, guarded: str, gate: Gate, bucket: str, fill: Callable[..., None], tmp_path: Path
) -> None:
    fill({name: name.encode() for name in ("a", "b", "c", "d")})
    config = tmp_path / "luxfuse.toml"

    def write(key: str, more: str = "") -> None:
        secrets = f'[storage_options]\nkey = "{key}"\nsecret = "s3cr3t"\n'
        config.write_text(f'storage_class = "STANDARD_IA"\n{secrets}{more}')

    write("AKIAONE")
    mount = mounting(
        f"s3://{bucket}",
        "--config",
        str(config),
        "--metadata-ttl",
        "1s",
        "--negative-ttl",
        "0s",
        endpoint_url=guarded,
    )
    assert mount.read("a") == digest(b"a")
    # Without a word to the daemon: the store's refusal is enough.
    write("AKIATWO")
    gate.key = "AKIATWO"
    assert mount.read("b") == digest(b"b")
    mount.run(["sh", "-c", f"printf new > {mount.path}/new"], check=True)
    assert set(gate.classes) == {"STANDARD_IA"}
    gate.classes.clear()
    # By an order, before anything is refused.
    write("AKIATHREE")
    refused = mount.cli("reload", mount.path)
    assert refused.returncode == 1
    assert "storage_options: LIST ''" in refused.stderr
    assert "expired" in refused.stderr
    assert "AKIA" not in refused.stderr
    assert mount.read("c") == digest(b"c")
    gate.key = "AKIATHREE"
    assert mount.cli("reload", mount.path, check=True).stdout == f"{mount.path}: changed: storage_options\n"
    assert mount.read("d") == digest(b"d")
    mount.run(["sh", "-c", f"printf newer > {mount.path}/newer"], check=True)
    assert set(gate.classes) == {"STANDARD_IA"}
    assert mount.cli("reload", mount.path, check=True).stdout == f"{mount.path}: nothing has changed\n"
    write("AKIATHREE", 'region = "eu-west-1"\n')
    other = mount.cli("reload", mount.path)
    assert (other.returncode, "storage_options cannot change" in other.stderr) == (1, True)


def test_what_has_expired_is_permission_denied_until_the_credentials_file_is_rotated(
    mounting: Mounts, guarded: str, gate: Gate, bucket: str, fill: Callable[..., None], tmp_path: Path
) -> None:
    fill({"a": b"a", "b": b"b"})
    credentials = tmp_path / "credentials"
    environment = {"AWS_SHARED_CREDENTIALS_FILE": str(credentials), "AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}
    credentials.write_text("[default]\naws_access_key_id = AKIAONE\naws_secret_access_key = s\n")
    mount = mounting(f"s3://{bucket}", "--metadata-ttl", "0s", endpoint_url=guarded, environment=environment)
    mount.expected_logs.append("refuses the credentials")
    assert mount.read("a") == digest(b"a")
    gate.key = "AKIATWO"
    assert mount.run(["cat", mount.path / "b"]).stderr.rstrip().endswith("Permission denied")
    assert mount.read("a") == digest(b"a"), "it is known and cached"
    assert mount.status()["names"]["stale_served"] > 0
    wait_for("status says so", lambda: mount.status()["state"] == "degraded")
    (reason,) = mount.status()["degraded_reasons"]
    assert reason.startswith("the under-store refuses the credentials since ")
    assert "the credentials have expired; renew them" in reason
    credentials.write_text("[default]\naws_access_key_id = AKIATWO\naws_secret_access_key = s\n")
    wait_for("they are found though nobody asks", lambda: mount.status()["state"] == "serving")
    assert mount.read("b") == digest(b"b")
    assert mount.log().count("refuses the credentials: ") == mount.log().count("accepts the credentials again") == 1
    gate.key = "AKIATHREE"
    credentials.write_text("[default]\naws_access_key_id = AKIATHREE\naws_secret_access_key = s\n")
    assert mount.cli("reload", mount.path, check=True).stdout == f"{mount.path}: changed: credentials\n"
    assert mount.read("a") == digest(b"a")


def test_a_private_authority_is_believed_when_it_is_named(
    mounting: Mounts, s3: FastS3, bucket: str, fill: Callable[..., None], tmp_path: Path
) -> None:
    fill({"a": b"a"})
    authority = certificate_authority(tmp_path, "private")
    with front(s3.endpoint, certificate=authority.server) as url:
        mount = mounting.make(f"s3://{bucket}", endpoint_url=url)
        refused = mount.try_mount()
        assert refused.returncode != 0
        assert refused.stderr.count("\n") == 1
        assert "the endpoint's certificate is not trusted; name the authority" in refused.stderr
        mount.mount("--storage-option", f"verify={authority.bundle}")
        assert mount.read("a") == digest(b"a")
        for command in ("mkdir d", "mv a d/b", "printf new > d/c", "rm d/b"):
            mount.run(["sh", "-ec", f"cd {mount.path}; {command}"], check=True)
        assert mount.read("d/c") == digest(b"new")
        assert mount.unmount().returncode == 0


def test_a_mount_outlives_that_there_are_no_credentials(
    mounting: Mounts, s3: FastS3, bucket: str, fill: Callable[..., None], tmp_path: Path
) -> None:
    """As with roles, single sign-on, an STS or a program while there is no network: of a successor, and of a new mount."""
    fill({name: name.encode() for name in ("a", "b", "c")})
    program, away = tmp_path / "program", tmp_path / "away"
    found = '{"Version": 1, "AccessKeyId": "AKIAONE", "SecretAccessKey": "s"}'
    program.write_text(f"#!/bin/sh\n[ ! -e {away} ] && echo '{found}'\n")
    program.chmod(0o700)
    (tmp_path / "config").write_text(f"[default]\ncredential_process = {program}\n")
    environment = {"AWS_CONFIG_FILE": str(tmp_path / "config"), "AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}
    mount = mounting(f"s3://{bucket}", endpoint_url=s3.endpoint, environment=environment)
    mount.expected_logs += ["cannot be asked without credentials", "the daemon died"]
    assert mount.do("list", str(mount.path)) == ["a", "b", "c"]
    assert mount.read("a") == digest(b"a")
    mount.remount()  # so that the index has it for sure

    def goes_on(name: str) -> None:
        assert mount.read("a") == digest(b"a")
        assert mount.error("file", f"{mount.path}/{name}") == "EACCES"
        wait_for("status says so", lambda: mount.status()["state"] == "degraded")
        (reason,) = mount.status()["degraded_reasons"]
        assert reason.startswith("the under-store cannot be asked without credentials since ")
        away.unlink()
        wait_for("they are found though nobody asks", lambda: mount.status()["state"] == "serving")
        assert mount.read(name) == digest(name.encode())

    away.touch()
    mount.replaced()
    goes_on("b")
    away.touch()
    mount.kill()
    mount.close_readers()
    assert mount.cli("unmount", mount.path).returncode == 0
    done = mount.try_mount()
    assert done.returncode == 0, done.stderr
    assert "mounted all the same, with what is known and cached here" in done.stderr
    goes_on("c")
