"""The clients that write, and the tree that is unpacked."""

import json
import statistics
import subprocess
import sys
import tarfile
from pathlib import Path

from tests.bench.writes import WRITER, create_tree


def write(*arguments: object) -> dict[str, float]:
    command = [sys.executable, "-I", "-S", WRITER, *map(str, arguments)]
    result: dict[str, float] = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=30).stdout)
    return result


def test_big_file_has_its_size_and_no_two_equal_writes(tmp_path: Path) -> None:
    path = tmp_path / "big"
    assert write("fsync", path, 3 << 20)["bytes"] == 3 << 20
    data = path.read_bytes()
    assert len(data) == 3 << 20
    assert len({data[at : at + (1 << 20)] for at in range(0, len(data), 1 << 20)}) == 3


def test_close_waits_until_the_object_is_there(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("big")
    assert write("close", tmp_path / "big", 1 << 20, tmp_path / "link")["bytes"] == 1 << 20


def test_small_files(tmp_path: Path) -> None:
    assert write("create", tmp_path / "new", 7, 1000)["bytes"] == 7000
    assert len({path.read_bytes() for path in (tmp_path / "new").iterdir()}) == 7


def test_tree_is_like_sources(tmp_path: Path) -> None:
    create_tree(tmp_path / "tree.tar", 2_000)
    with tarfile.open(tmp_path / "tree.tar") as tar:
        members = tar.getmembers()
    sizes = [member.size for member in members if member.isfile()]
    assert len(sizes) == len({member.name for member in members if member.isfile()}) == 2_000
    assert 3_500 < statistics.median(sizes) < 4_700
    assert max(member.name.count("/") for member in members) > 4
