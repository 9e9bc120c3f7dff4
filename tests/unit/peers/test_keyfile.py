"""The file with the secret of a cluster: what is written, what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from luxfuse.errors import ConfigError
from luxfuse.peers.keyfile import read_keys, write_new

ONE, TWO = "0123456789abcdef" * 4, "fedcba9876543210" * 4


def file(directory: Path, content: bytes | str, mode: int = 0o600) -> Path:
    path = directory / "key"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    path.chmod(mode)
    return path


def test_a_new_file_is_for_its_owner_alone_and_can_be_read(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        write_new(tmp_path / "a")
        write_new(tmp_path / "b")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600
    (one,), (two,) = read_keys(tmp_path / "a"), read_keys(tmp_path / "b")
    assert len(one) == len(two) == 32
    assert one != two
    assert len((tmp_path / "a").read_text().splitlines()) == 2


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    path = file(tmp_path, "mine")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for each in (path, tmp_path / "link"):
        with pytest.raises(ConfigError, match="exists, and is left as it is"):
            write_new(each)
    assert path.read_text() == "mine"
    assert not (tmp_path / "elsewhere").exists()
    with pytest.raises(ConfigError, match="No such file"):
        write_new(tmp_path / "missing" / "key")


@pytest.mark.parametrize(
    ("content", "keys"),
    [
        (ONE, [ONE]),
        (f"{ONE.upper()}\n", [ONE]),
        (f"# old, then new\r\n{ONE}\r\n\r\n  {TWO}  \n", [ONE, TWO]),
    ],
)
def test_one_or_two_keys(tmp_path: Path, content: str, keys: list[str]) -> None:
    assert read_keys(file(tmp_path, content)) == tuple(map(bytes.fromhex, keys))


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("", "holds no key"),
        ("# only words\n", "holds no key"),
        (ONE[1:], "line 1: is no key"),
        (f"{ONE}\n{TWO} comment", "line 2: is no key"),
        (f"{ONE}{TWO}", "line 1: is no key"),
        (f"{ONE}\n{ONE}", "two different ones"),
        (f"{ONE}\n{TWO}\n{'0' * 64}", "one key, or two"),
        (bytes(range(200, 232)), "key"),
        ("#" * 5000, "longer than 4096 bytes"),
    ],
)
def test_anything_else_is_refused_in_one_line_that_tells_no_secret(tmp_path: Path, content: bytes | str, text: str) -> None:
    with pytest.raises(ConfigError, match=text) as caught:
        read_keys(file(tmp_path, content))
    assert "\n" not in str(caught.value)
    assert ONE[1:] not in str(caught.value)
    assert TWO not in str(caught.value)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o610, 0o601])
def test_a_file_that_others_can_get_at_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(ConfigError, match="chmod 600"):
        read_keys(file(tmp_path, ONE, mode))


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    for path, text in ((tmp_path / "pipe", "is no file"), (tmp_path, "is no file"), (tmp_path / "none", "No such file")):
        with pytest.raises(ConfigError, match=text):
            read_keys(path)
