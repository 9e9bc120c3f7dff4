"""Places that a mount cannot use are refused before anything is made there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from luxfuse.configuration.building import build
from luxfuse.errors import ConfigError
from luxfuse.fuse import mountpoint as mounts
from luxfuse.fuse.places import check_places


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With a luxfuse mount, and a disk mounted in it."""
    lines = [f"1 1 0:1 / {path} rw - {fstype} x rw" for path, fstype in (
        ("/", "ext4"), (f"{tmp_path}/lux", mounts.FSTYPE), (f"{tmp_path}/lux/disk", "ext4"),
    )]  # fmt: skip
    monkeypatch.setattr(mounts, "read_mounts", lambda: mounts.parse_mountinfo("\n".join(lines)))
    for name in ("c", "m", "s"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "c")
    return tmp_path


def check(base: Path, **written: Any) -> None:
    plain = {"source": "s3://b", "mountpoint": f"{base}/m", "cache_dir": f"{base}/c", "state_dir": f"{base}/s"}
    values = {name: str(value).replace("BASE", str(base)) for name, value in {**plain, **written}.items()}
    cache_dirs = values["cache_dir"].split(" ")
    check_places(build({**values, "cache_dir": cache_dirs}, {}))


@pytest.mark.parametrize(
    "written",
    [
        {}, {"cache_dir": "BASE/c BASE/c2"}, {"cache_dir": "BASE/lux/disk"}, {"source": "BASE/data"},
        {"source": "file://BASE/lux/x"}, {"log_file": "BASE/c/log"},
    ],
)  # fmt: skip
def test_places_that_do(base: Path, written: dict[str, str]) -> None:
    check(base, **written)


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ({"cache_dir": "BASE/lux/a"}, "cache_dir BASE/lux/a: lies on the luxfuse mount BASE/lux"),
        ({"state_dir": "BASE/lux"}, "state_dir BASE/lux: lies on the luxfuse mount"),
        ({"log_file": "BASE/lux/log"}, "log_file BASE/lux/log: lies on"),
        ({"cluster_key_file": "BASE/m/key"}, "cluster_key_file BASE/m/key: would be hidden"),
        ({"cluster_key_file": "/k", "join": "file:BASE/m/seeds"}, "join BASE/m/seeds: would be hidden"),
        ({"cache_dir": "BASE/m/c"}, "cache_dir BASE/m/c: would be hidden by the mount on BASE/m"),
        ({"cache_dir": "BASE/m"}, "cache_dir BASE/m: would be hidden"),
        ({"mountpoint": "BASE"}, "would be hidden"),
        ({"mountpoint": "BASE/c/m"}, "mountpoint BASE/c/m: lies in the cache directory BASE/c"),
        ({"mountpoint": "BASE/link/m"}, "mountpoint BASE/link/m: lies in the cache directory BASE/c"),
        ({"cache_dir": "BASE/c BASE/link"}, "cache_dir BASE/c: is the same directory as BASE/link"),
        ({"cache_dir": "BASE/c/d BASE/link"}, "cache_dir BASE/c/d: lies in the cache directory BASE/link"),
        ({"source": "BASE"}, "mountpoint BASE/m: lies in the source BASE, so it would be shown in itself"),
        ({"source": "BASE/link", "cache_dir": "BASE/c/d"}, "cache_dir BASE/c/d: lies in the source BASE/link"),
        ({"source": "file://BASE/m/x"}, "source BASE/m/x: lies in the mountpoint BASE/m"),
    ],
)
def test_places_that_do_not(base: Path, written: dict[str, str], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check(base, **written)
    assert text.replace("BASE", str(base)) in str(caught.value)
    assert "; " in str(caught.value)


def test_a_relative_local_source_is_that_of_the_command(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon works in another directory."""
    monkeypatch.chdir(base)
    written = {"mountpoint": "/m", "state_dir": "/s"}
    assert build({**written, "source": "c/d"}, {}).source == f"{base}/c/d"
    assert build({**written, "source": "/c/./d/"}, {}).source == "/c/./d/"
    assert build({**written, "source": "s3://b"}, {}).source == "s3://b"
