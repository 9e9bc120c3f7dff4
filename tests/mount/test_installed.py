"""The sdist and the wheel that is built of it: what is in them, and a mount by what is installed of the wheel."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from collections.abc import Mapping
from email.parser import Parser
from pathlib import Path

import pytest

from tests.support.mounted import free

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "luxfuse"
EXTENSIONS = ("luxfuse/fuse/_passthrough", "luxfuse/understore/_crc", "luxfuse/understore/s3/_gets")
TO_BUILD = ("setuptools>=77", "wheel")
LEFT_OUT = (".git", ".venv", "__pycache__", "*.so", "*.egg-info", "build", "dist", ".*_cache", ".hypothesis")
"""What a fresh clone does not have."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def run(*command: str | os.PathLike[str], cwd: Path = Path("/"), env: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist of a fresh clone, and the wheel of what the sdist holds."""
    place = tmp_path_factory.mktemp("built")
    tools, clone = place / "tools", place / "clone"
    pip = (sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check")
    run(*pip, "--target", tools, *TO_BUILD)
    shutil.copytree(ROOT, clone, ignore=shutil.ignore_patterns(*LEFT_OUT))

    def build(kind: str, directory: Path) -> Path:
        text = f"from setuptools import build_meta; print(build_meta.build_{kind}({str(place)!r}))"
        name = run(sys.executable, "-c", text, cwd=directory, env={**os.environ, "PYTHONPATH": str(tools)})
        return place / name.split()[-1]

    sdist = build("sdist", clone)
    with tarfile.open(sdist) as archive:
        archive.extractall(place / "unpacked", filter="data")
    [unpacked] = (place / "unpacked").iterdir()
    return sdist, build("wheel", unpacked)


@pytest.fixture(scope="module")
def installed(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtualenv with the wheel, which sees the packages that are here, but not the repository."""
    place = tmp_path_factory.mktemp("installed")
    venv.create(place, with_pip=False, symlinks=True)
    packages = sysconfig.get_path("purelib", vars={"base": str(place)})
    Path(packages, "here.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    pip = (sys.executable, "-m", "pip", "--python", place / "bin/python", "install", "-q", "--disable-pip-version-check")
    run(*pip, "--no-deps", "--ignore-installed", built[1])
    return place


def test_the_wheel_has_all_that_the_package_needs(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[1]) as archive:
        names = set(archive.namelist())
        [info] = (name for name in names if name.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(info).decode())
        entries = archive.read(info.replace("METADATA", "entry_points.txt")).decode()
    kinds = ("*.py", "*.pyi", "*.md", "*.html", "*.proto", "py.typed")
    wanted = {str(path.relative_to(ROOT)) for kind in kinds for path in PACKAGE.rglob(kind)}
    assert {"luxfuse/control/page.html", "luxfuse/csi/api/csi.proto", "luxfuse/docs/USING.md", "luxfuse/py.typed"} <= wanted
    assert wanted - names == set()
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    assert {f"{extension}{suffix}" for extension in EXTENSIONS} <= names
    assert [name for name in names if name.endswith(".data/data/share/man/man1/luxfuse.1")]
    assert [name for name in names if name.endswith(".dist-info/licenses/LICENSE")]
    assert not [name for name in names if name.startswith(("tests/", "examples/"))]
    assert "luxfuse = luxfuse.cli.main:main" in entries
    assert "mount.luxfuse = luxfuse.cli.fstab:main" in entries
    assert "lux = luxfuse.lux.LuxFileSystem" in entries
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert {"azure", "gcs", "hdfs", "sftp", "csi", "dev"} <= set(metadata.get_all("Provides-Extra"))
    assert metadata.get_payload().startswith("# luxfuse")


def test_what_is_installed_is_found(installed: Path) -> None:
    told = "import luxfuse, importlib as i; [i.import_module(n) for n in NAMES]; print(luxfuse.PACKAGE)"
    names = [extension.replace("/", ".") for extension in EXTENSIONS]
    where = run(installed / "bin/python", "-c", told.replace("NAMES", repr(names))).strip()
    assert where.startswith(str(installed))
    assert run(installed / "bin/luxfuse", "--version").startswith("luxfuse ")
    assert "doctor" in run(installed / "bin/luxfuse", "--help")
    assert (
        run(installed / "bin/mount.luxfuse", "s3://bucket", "/mnt", "-f", "-v", "-o", "ro")
        == "s3://bucket mounted on /mnt\n"
    )
    text = "import fsspec; print(type(fsspec.filesystem('lux')).__module__, fsspec.available_protocols().count('lux'))"
    assert run(installed / "bin/python", "-c", text) == "luxfuse.lux.filesystem 1\n"
    assert (installed / "share/man/man1/luxfuse.1").is_file()


def test_what_is_installed_mounts(installed: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    bucket, mountpoint = tmp_path / "bucket", tmp_path / "mnt"
    for directory in (bucket, mountpoint):
        directory.mkdir()
    (bucket / "file").write_bytes(b"in the store")
    environment = {
        **os.environ,
        "LUXFUSE_STATE_DIR": str(tmp_path / "state"),
        "PATH": f"{installed}/bin:{os.environ['PATH']}",
    }
    environment.pop("PYTHONPATH", None)

    def luxfuse(*words: str | os.PathLike[str]) -> str:
        return run(installed / "bin/luxfuse", *words, env=environment)

    request.addfinalizer(functools.partial(free, str(mountpoint)))
    luxfuse("mount", f"file://{bucket}", mountpoint, "--cache-dir", tmp_path / "cache", "--write-mode", "cache-through")
    assert run("cat", mountpoint / "file") == "in the store"
    run("cp", mountpoint / "file", mountpoint / "copy")
    assert (bucket / "copy").read_bytes() == b"in the store"
    assert "serving" in luxfuse("status", mountpoint)
    luxfuse("unmount", mountpoint)
    assert not os.path.ismount(mountpoint)
