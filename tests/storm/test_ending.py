"""The end of a storm finds what is planted, and nothing else."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.storm.ending import Ending

GIVEN = {"shared/s": b"shared"}
SEEN = {"w0/a": b"content", "common/0": b"checkpoint"}
EVENTS: list[dict[str, Any]] = [
    {"files": {name: hashlib.sha256(data).hexdigest() for name, data in SEEN.items()}, "debris": ["w0/d1"]},
    {"name": "w0/failed", "error": 5},
]


class Shown:
    """A mount that shows ``files``, and lets itself be unmounted."""

    mounted = True

    def __init__(self, base: Path, files: dict[str, bytes]) -> None:
        self.path, self.cache, self.state, self.files = base / "mnt", base / "cache", base / "state", files

    def cli(self, *_: object, timeout_s: float = 0) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], 0, "", "")

    def unmount(self, timeout_s: float = 0) -> subprocess.CompletedProcess[str]:
        return self.cli()

    def mount(self) -> None:
        pass

    def do(self, verb: str, directory: str) -> list[str]:
        above = Path(directory).name
        return [name.partition("/")[2] for name in self.files if name.startswith(f"{above}/")]

    def read(self, name: str) -> list[Any]:
        return [len(self.files[name]), hashlib.sha256(self.files[name]).hexdigest()]


def found(base: Path, in_bucket: dict[str, bytes], shown: dict[str, bytes] | None = None, **how: Any) -> list[str]:
    """What is wrong where the bucket has this, and the next mount shows that."""
    for key, data in in_bucket.items():
        (base / "bucket" / key).parent.mkdir(parents=True, exist_ok=True)
        (base / "bucket" / key).write_bytes(data)
    mount: Any = Shown(base, shown or {})
    how = {"keeper": True, "uploaded": shown is None, "kills": 1} | how
    return list(Ending(mount, base / "bucket", GIVEN, EVENTS, **how).wrong())


def test_all_is_as_it_was_acknowledged(tmp_path: Path) -> None:
    debris = {"w0/d1/file": b"", "w0/d1.rclonelink": b""}
    assert found(tmp_path / "uploaded", GIVEN | SEEN | debris) == []
    assert found(tmp_path / "kept", GIVEN, SEEN | {"w0/d1": b"", "common/first": b""}) == []


@pytest.mark.parametrize(
    ("bucket", "said"),
    [
        ({"w0/a": b"content"}, "the bucket lacks common/0"),
        (SEEN | {"w0/a": b"contens"}, "the bucket has other bytes of w0/a"),
        (SEEN | {"w0/b": b""}, "the bucket has what nobody has: ['w0/b']"),
    ],
)
def test_what_the_bucket_has_wrong_is_found(tmp_path: Path, bucket: dict[str, bytes], said: str) -> None:
    assert found(tmp_path, GIVEN | bucket) == [said]


@pytest.mark.parametrize(
    ("bucket", "shown", "said"),
    [
        (GIVEN | {"w0/a": b"content"}, SEEN, "brought to the bucket: ['w0/a']"),
        ({"shared/s": b"other"}, SEEN, "the bucket's shared/s is not as it was"),
        ({}, SEEN, "the bucket's shared/s is not as it was"),
        (GIVEN, {"w0/a": b"content"}, "after a remount there is no ['common/0']"),
        (GIVEN, SEEN | {"w0/a": b""}, "after a remount w0/a has other bytes"),
        (GIVEN, SEEN | {"w0/b": b""}, "after a remount there is what nobody has: ['w0/b']"),
    ],
)
def test_what_must_cache_has_wrong_is_found(
    tmp_path: Path, bucket: dict[str, bytes], shown: dict[str, bytes], said: str
) -> None:
    assert found(tmp_path, bucket, shown) == [said]


def test_what_is_left_over_or_set_aside_is_found(tmp_path: Path) -> None:
    staged, aside = tmp_path / "cache" / "home" / "staging", tmp_path / "state" / "recovered" / "home"
    for path in (staged / "1f", aside / "w0%2Ffailed.20261130T000000.1", aside / "w0%2Fa.20261130T000000.1"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    kept = "set aside, though no call about it has failed: ['w0%2Fa.20261130T000000.1']"
    assert found(tmp_path, GIVEN | SEEN) == ["staging files are left: ['1f']", kept]
    assert found(tmp_path, GIVEN | SEEN, keeper=False) == ["staging files are left: ['1f']"]
