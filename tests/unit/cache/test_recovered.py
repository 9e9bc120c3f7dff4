"""The directory of recovered files."""

from __future__ import annotations

from pathlib import Path

from luxfuse.cache.recovered import Recovered


def test_files_whose_names_begin_with_a_dot_are_counted(tmp_path: Path) -> None:
    recovered = Recovered(tmp_path / "recovered")
    kept = [recovered.keep_bytes(b"content", key) for key in (".profile", "d/.profile", "plain")]
    assert recovered.count() == 3
    assert all(path.read_bytes() == b"content" for path in kept)
