"""Which volume is published where, as it is remembered."""

from __future__ import annotations

from pathlib import Path

import pytest

from luxfuse.csi.publications import Publication, Publications


def published(target: Path) -> Publication:
    return Publication(target=str(target), volume_id="v", key="0" * 16, alone=False, arguments="a")


def test_what_is_of_no_use_is_forgotten_and_what_cannot_be_read_now_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = Publications(tmp_path / "targets")
    kept, gone = published(tmp_path / "pod/mount"), published(tmp_path / "gone/mount")
    (tmp_path / "pod").mkdir()
    known.put(kept)
    known.put(gone)
    (tmp_path / "targets/garbled.json").write_bytes(b"{")
    with monkeypatch.context() as patched:

        def refuse(_path: Path) -> bytes:
            raise OSError(24, "Too many open files")

        patched.setattr(Path, "read_bytes", refuse)
        known.prune()
    assert sorted(known.all(), key=lambda each: each.target) == sorted([kept, gone], key=lambda each: each.target)
    known.prune()
    assert known.all() == [kept]
    assert len(list((tmp_path / "targets").iterdir())) == 1
