"""Programs that make hard links, on mounts where these are copies."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.fast_s3 import FastS3
from tests.support.mounted import Mounts

PROGRAMS = r"""
set -e
cd "$1"
mkdir tree; echo one > tree/a; chmod 640 tree/a; ln -s a tree/s; mkfifo tree/p
cp -al tree linked
test "$(cat linked/a)" = one; test "$(stat -c %a linked/a)" = 640; test "$(readlink linked/s)" = a; test -p linked/p
echo two >> linked/a; test "$(cat tree/a)" = one
test "$(stat -c %i tree/a)" != "$(stat -c %i linked/a)"; test "$(stat -c %h linked/a)" = 1
rsync -aH "$2/" synced; cmp "$2/x" synced/x; cmp "$2/x" synced/y
tar xf "$2.tar"; cmp "$2/x" linked-outside/y
git -c user.name=a -c user.email=b -c init.defaultBranch=main init -q repository
cd repository; cp ../tree/a file; git add file; git -c user.name=a -c user.email=b commit -qm first; cd ..
git clone -q --no-hardlinks repository clone; git -C clone fsck --strict 2>&1; cmp repository/file clone/file
# git insists on one inode number.
git clone -q repository other 2> said && exit 7
cat said >&2; grep -q "hardlink different from source" said
ln tree/a tree/a 2> /dev/null && exit 1
ln tree/a linked/a 2> /dev/null && exit 1
! ln tree linked/tree 2> /dev/null
"""


SLOW = pytest.param("cache-through", marks=pytest.mark.slow), pytest.param("must-cache", marks=pytest.mark.slow)


@pytest.mark.parametrize("mode", ["async-through", *SLOW])
def test_programs(mounting: Mounts, s3: FastS3, bucket: str, tmp_path: Path, mode: str) -> None:
    for program in ("git", "rsync", "tar"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    outside = tmp_path / "linked-outside"
    outside.mkdir()
    (outside / "x").write_bytes(b"x" * 100_000)
    (outside / "y").hardlink_to(outside / "x")
    mount = mounting(f"s3://{bucket}", "--hardlinks=copy", f"--write-mode={mode}", endpoint_url=s3.endpoint)
    mount.run(["tar", "-C", tmp_path, "-cf", f"{outside}.tar", outside.name], check=True)
    mount.run(["sh", "-c", PROGRAMS, "sh", mount.path, outside], check=True)
    assert mount.unmount().returncode == 0
    copies = [s3.root / bucket / "synced" / name for name in "xy"]
    assert [path.exists() and path.read_bytes() for path in copies] == [mode != "must-cache" and b"x" * 100_000] * 2


def test_refused_by_default(mounting: Mounts, s3: FastS3, bucket: str) -> None:
    mount = mounting(f"s3://{bucket}", endpoint_url=s3.endpoint)
    done = mount.run(["sh", "-c", 'cd "$1"; echo one > a; ln a b; ln a c', "sh", mount.path])
    assert done.stderr.count("Operation not permitted") == 2
    assert mount.log().count("hardlinks") == 1
