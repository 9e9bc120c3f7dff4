"""Real programs on a mount and, for comparison, on the local disk; what they leave is compared down to the bucket.

`Stage` has a directory of each, in which commands run as processes of their own; the test process never touches the
mount. `MANIFEST` is the program that says what is in a tree: kinds, sizes and contents as a listing of the bucket gives
them first, modes, owners and times as the store knows them, which only a request for the one object tells.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.support.fast_s3 import FastS3
from tests.support.mounted import COMMAND_TIMEOUT_S, Mount, Mounts

MARKER = ".fast-s3-directory"
LINK_SUFFIX = ".rclonelink"
SHOWN = 20

MODES: Mapping[str, Sequence[str]] = {
    "async-through": ("--write-mode", "async-through"),
    "cache-through": ("--write-mode", "cache-through"),
    "copying": ("--write-mode", "async-through", "-o", "passthrough=false"),
}

MANIFEST = """
import ctypes, hashlib, json, os, stat, struct, sys
root, found = os.fsencode(sys.argv[1]), {}
libc, buffer = ctypes.CDLL(None, use_errno=True), ctypes.create_string_buffer(256)

def attributes(path):
    # What the store says, not what a listing told: statx with AT_SYMLINK_NOFOLLOW and AT_STATX_FORCE_SYNC.
    if libc.statx(-100, path, 0x2100, 0x7ff, buffer) != 0:
        raise OSError(ctypes.get_errno(), os.fsdecode(path))
    uid, gid, mode = struct.unpack_from("IIH", buffer, 20)
    seconds, nanoseconds = struct.unpack_from("qI", buffer, 112)
    return {"mode": stat.S_IMODE(mode), "owner": [uid, gid], "mtime_ns": seconds * 10**9 + nanoseconds}

for directory, names, files in os.walk(root):
    for name in sorted([*names, *files]):
        path = os.path.join(directory, name)
        st = os.lstat(path)
        entry = {"kind": stat.S_IFMT(st.st_mode)} | attributes(path)
        if stat.S_ISLNK(st.st_mode):
            entry["target"] = os.fsdecode(os.readlink(path))
        elif stat.S_ISREG(st.st_mode):
            with open(path, "rb") as file:
                data = file.read()
            entry["size"], entry["sha256"] = len(data), hashlib.sha256(data).hexdigest()
            if st.st_size != len(data):
                entry["stat_size"] = st.st_size
        found[os.fsdecode(os.path.relpath(path, root))] = entry
print(json.dumps(found))
"""

Tree = dict[str, dict[str, Any]]


REGULAR, DIRECTORY, LINK = 0o100000, 0o040000, 0o120000


def without_times(tree: Tree, *kinds: int) -> Tree:
    """The tree without the modification times of what is of these kinds."""
    return {
        path: {k: v for k, v in entry.items() if k != "mtime_ns" or entry["kind"] not in kinds}
        for path, entry in tree.items()
    }


def difference(seen: Tree, expected: Tree) -> list[str]:
    """What is wrong with a tree, in words."""
    problems = [f"{path}: missing" for path in sorted(expected.keys() - seen.keys())]
    problems += [f"{path}: should not be there" for path in sorted(seen.keys() - expected.keys())]
    for path in sorted(seen.keys() & expected.keys()):
        one, other = seen[path], expected[path]
        if one != other:
            changed = [k for k in sorted(one.keys() | other.keys()) if one.get(k) != other.get(k)]
            problems.append(f"{path}: " + ", ".join(f"{k} {one.get(k)}, expected {other.get(k)}" for k in changed))
    return problems


def assert_same(seen: Tree, expected: Tree, what: str) -> None:
    """Fail with the first differences."""
    problems = difference(seen, expected)
    assert not problems, "\n".join([f"{what}: {len(problems)} of {len(expected)} entries differ", *problems[:SHOWN]])


class Stage:
    """``path`` is a directory of a mount, ``local`` one of the local disk, ``scratch`` another local one."""

    def __init__(self, mounting: Mounts, s3: FastS3, bucket: str, mode: str, tmp_path: Path) -> None:
        self._bucket = s3.bucket_path(bucket)
        self.mount: Mount = mounting(f"s3://{bucket}", *MODES[mode], endpoint_url=s3.endpoint)
        self.path = self.mount.path
        self.local, self.scratch = tmp_path / "local", tmp_path / "scratch"
        self.local.mkdir()
        self.scratch.mkdir()

    def run(self, command: Sequence[str | Path], *, where: Path | None = None, timeout_s: float = 2 * COMMAND_TIMEOUT_S,
            env: Mapping[str, str] | None = None, check: bool = True) -> str:  # fmt: skip
        """Run a command in ``where`` (default: the mount); returns its output."""
        variables = [f"{name}={value}" for name, value in (env or {}).items()]
        prefix = ["env", "-C", str(where or self.path), *variables]
        done = self.mount.run([*prefix, *command], timeout_s=timeout_s)
        if check:
            assert done.returncode == 0, (
                f"{' '.join(map(str, command))}: exit {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
                f"\n{chr(10).join(self.mount.unexpected_logs()[-20:])}"
            )
        return done.stdout

    def both(self, action: Callable[[Path], object]) -> None:
        """Do the same on the local disk and on the mount."""
        action(self.local)
        action(self.path)

    def tree(self, root: Path | None = None) -> Tree:
        """What is below ``root`` (default: the mount)."""
        out = self.run([sys.executable, "-I", "-S", "-c", MANIFEST, root or self.path])
        tree: Tree = json.loads(out)
        return tree

    def compare_with_local(self, *, times: bool = False, ignore: Callable[[str], bool] = lambda _: False) -> None:
        """The mount must hold what the local disk holds; ``times``: those of files too; ``ignore``: by path."""
        kinds = (DIRECTORY,) if times else (REGULAR, DIRECTORY, LINK)
        here, there = (
            {path: entry for path, entry in without_times(self.tree(root), *kinds).items() if not ignore(path)}
            for root in (self.path, self.local)
        )
        assert_same(here, there, "the mount beside the local disk")

    def compare_again(self, *, directory_times: bool = False) -> None:
        """Unmount; the bucket must hold what the mount held; so must a mount that knows nothing before.

        Directories have times of their own in the bucket only if they were set; links show those of their object.
        """
        before = self.tree()
        done = self.mount.unmount()
        assert done.returncode == 0, done.stderr
        self._compare_bucket(before)
        for directory in (self.mount.cache, self.mount.state):
            shutil.rmtree(directory)
        self.mount.mount()
        after = self.tree()
        kinds = (LINK,) if directory_times else (LINK, DIRECTORY)
        assert_same(without_times(after, *kinds), without_times(before, *kinds), "through an empty cache")

    def _compare_bucket(self, tree: Tree) -> None:
        """Plain objects at plain keys and nothing else, as any S3 tool would see them."""
        stored: Tree = json.loads(self.run([sys.executable, "-I", "-S", "-c", MANIFEST, self._bucket], where=Path("/")))
        objects = {path: [e["size"], e["sha256"]] for path, e in stored.items() if "sha256" in e}
        markers = {os.path.dirname(path) for path in objects if os.path.basename(path) == MARKER}
        keys = {path for path in objects if os.path.basename(path) != MARKER}
        files = {path: [e["size"], e["sha256"]] for path, e in tree.items() if "sha256" in e}
        links = {f"{path}{LINK_SUFFIX}": e["target"] for path, e in tree.items() if "target" in e}
        directories = {path for path, e in tree.items() if e["kind"] == DIRECTORY}
        expected = files.keys() | links.keys()
        assert not (problems := sorted(expected - keys)), f"not in the bucket: {problems[:SHOWN]}"
        assert not (problems := sorted(keys - expected)), f"only in the bucket: {problems[:SHOWN]}"
        assert not (problems := sorted(markers - directories - {""})), f"markers of no directory: {problems[:SHOWN]}"
        wrong = [path for path, what in files.items() if objects[path] != what]
        assert not wrong, f"other content in the bucket: {sorted(wrong)[:SHOWN]}"
        for key, target in links.items():
            assert (self._bucket / key).read_bytes() == os.fsencode(target), key
