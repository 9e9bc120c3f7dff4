"""Working trees of git on nodes that have seen nothing of them: nothing in them has changed."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.mount.test_descriptions import describe, said_by_s3fs
from tests.mount.test_program_work import GIT, commit
from tests.mount.test_programs import needs
from tests.support.fast_s3 import FastS3
from tests.support.mounted import PATIENCE_S, Mount, Mounts

__all__ = ["describe"]
MODES = (0o644, 0o755)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """One of two commits, with programs among its files."""
    path = tmp_path / "repository"
    path.mkdir()
    subprocess.run(["git", "init", "-q"], cwd=path, env=os.environ | GIT, check=True, timeout=PATIENCE_S)
    commit(path, 1)
    for number, file in enumerate(sorted((path / "src").rglob("*.txt"))):
        file.chmod(MODES[number % 3 == 0])
    commit(path, 2)
    return path


def assert_unchanged(mount: Mount, tree: str, commits: int = 2) -> None:
    """``git status`` finds nothing, neither by what it knows of the files nor by their content."""
    for arguments in (["status", "--porcelain"], ["diff", "--stat"]):
        command = ["env", *(f"{name}={value}" for name, value in GIT.items()), "git", "-C", f"{mount.path}/{tree}"]
        done = mount.run([*command, *arguments])
        assert (done.returncode, done.stdout) == (0, ""), (arguments, done.stderr)
    assert mount.run([*command, "rev-list", "--count", "HEAD"], check=True).stdout == f"{commits}\n"


@needs("git")
def test_a_tree_that_was_cloned_on_another_node(mounting: Mounts, s3: FastS3, bucket: str, repository: Path) -> None:
    first = mounting(f"s3://{bucket}", endpoint_url=s3.endpoint)
    variables = [f"{name}={value}" for name, value in GIT.items()]
    first.run(["env", *variables, "git", "clone", "-q", "--template=", str(repository), f"{first.path}/clone"], check=True)
    assert_unchanged(first, "clone")
    assert_unchanged(mounting(f"s3://{bucket}", endpoint_url=s3.endpoint), "clone")


@needs("git")
def test_a_tree_that_s3fs_has_written(mounting: Mounts, s3: FastS3, bucket: str, repository: Path, describe) -> None:
    """Symlinks apart, which s3fs keeps in a way of its own."""
    (repository / "link").unlink()
    subprocess.run(
        ["git", "commit", "-qam", "No link"], cwd=repository, env=os.environ | GIT, check=True, timeout=PATIENCE_S
    )
    for path in sorted(repository.rglob("*")):
        mode = path.stat().st_mode & 0o7777
        key = f"tree/{quote(str(path.relative_to(repository)))}"
        if path.is_dir():
            describe(f"{key}/", b"", said_by_s3fs(mode, 0o040000))
        else:
            describe(key, path.read_bytes(), said_by_s3fs(mode))
    assert_unchanged(mounting(f"s3://{bucket}", endpoint_url=s3.endpoint), "tree", commits=3)
