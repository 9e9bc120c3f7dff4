"""A mount as the upper layer of overlayfs, as container runtimes stack it, or do not because a file system cannot do it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.conftest import new_bucket
from tests.support.fast_s3 import FastS3
from tests.support.mounted import COMMAND_TIMEOUT_S, Mount, mounted, wait_for

LOWER = {"file": "lower", "kept": "kept", "dir/a": "a", "dir/b": "b", "tree/deep/c": "c", "tree/d": "d"}


@pytest.fixture(params=["async-through", pytest.param("cache-through", marks=pytest.mark.slow)])
def mount(request: pytest.FixtureRequest, s3: FastS3) -> Iterator[Mount]:
    if "overlay" not in Path("/proc/filesystems").read_text():
        pytest.skip("this kernel has no overlayfs")
    options = {"write_mode": request.param}
    with mounted(f"s3://{new_bucket(s3)}", endpoint_url=s3.endpoint, options=options) as made:
        yield made


class Overlay:
    """An overlay with the mount above a local directory."""

    def __init__(self, mount: Mount) -> None:
        self._mount = mount
        self.upper, self.work = mount.path / "upper", mount.path / "work"
        self.lower, self.merged = mount.base / "lower", mount.base / "merged"
        for name, text in LOWER.items():
            (self.lower / name).parent.mkdir(parents=True, exist_ok=True)
            (self.lower / name).write_text(text)
        self.merged.mkdir()

    def sh(self, script: str) -> str:
        """Run a script in the merged directory, and return what it prints."""
        return self._mount.run(["sh", "-ec", f"cd {self.merged}\n{script}"]).stdout

    def mount(self) -> None:
        """Stack them."""
        self._mount.run(["mkdir", "-p", self.upper, self.work])
        options = f"lowerdir={self.lower},upperdir={self.upper},workdir={self.work}"
        self._mount.run(["mount", "-t", "overlay", "overlay", "-o", options, self.merged])

    def unmount(self) -> None:
        """Take the stack apart."""
        self._mount.run(["umount", self.merged])


@pytest.fixture
def overlay(mount: Mount) -> Iterator[Overlay]:
    made = Overlay(mount)
    made.mount()
    try:
        yield made
    finally:
        subprocess.run(["umount", "-l", made.merged], stderr=subprocess.DEVNULL, timeout=COMMAND_TIMEOUT_S, check=False)


CHANGES = """
rm file                                  # a whiteout
mv dir/a dir/moved                       # copied up, renamed, a whiteout left behind
echo more >> dir/b                       # copied up
rm -r tree; mkdir tree; echo new > tree/new    # an opaque directory
echo made > made.tmp; mv made.tmp made
ln -s made link
mkfifo pipe
chmod 600 kept
"""
LOOK = """
find . -mindepth 1 | sort
cat dir/moved dir/b tree/new made link kept
stat -c '%a %F' kept pipe
"""
SEEN = """./dir
./dir/b
./dir/moved
./kept
./link
./made
./pipe
./tree
./tree/new
abmore
new
made
made
kept600 regular file
644 fifo
"""


def test_changes_above_a_lower_layer_stay(mount: Mount, overlay: Overlay) -> None:
    overlay.sh(CHANGES)
    assert overlay.sh(LOOK) == SEEN
    found = mount.run(["sh", "-c", f"cd {overlay.upper}; stat -c '%n %F %t,%T' file dir/a"])
    assert found.stdout == "file character special file 0,0\ndir/a character special file 0,0\n"
    assert mount.do("getxattr", f"{overlay.upper}/tree", "trusted.overlay.opaque") == "y"
    overlay.unmount()
    wait_for("everything is in the store", lambda: mount.status()["dirty"]["files"] == 0)
    mount.remount()
    overlay.mount()
    assert overlay.sh(LOOK) == SEEN
    assert sorted(path.name for path in overlay.lower.iterdir()) == ["dir", "file", "kept", "tree"]

    overlay.sh("rm -r dir tree; mkdir file; echo x > dir; mv file file2; mv dir file; mv file2 dir; rm file; rmdir dir")
    assert overlay.sh("ls") == "kept\nlink\nmade\npipe\n"
    overlay.sh("echo again > file; mkdir dir; echo a > dir/a")
    assert overlay.sh("cat file dir/a; ls dir") == "again\na\na\n"
