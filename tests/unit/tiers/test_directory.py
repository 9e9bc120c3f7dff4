from __future__ import annotations

import errno
import json
import os
import shutil
import stat
from pathlib import Path

import pytest

from luxfuse import lasting
from luxfuse.errors import ConfigError
from luxfuse.tiers.directory import CacheDirectory, read_exact, write_all
from tests.support.locks import is_locked

OID = bytes(range(16))


def test_two_daemons_get_directories_of_their_own(tmp_path: Path) -> None:
    one, two, three = (CacheDirectory(tmp_path, "s") for _ in range(3))
    assert [d.slot for d in (one, two, three)] == ["s", "s.1", "s.2"]
    assert len({d.identity for d in (one, two, three)}) == 3
    two.close()
    again = CacheDirectory(tmp_path, "s")
    assert again.slot == "s.1"
    assert again.identity == two.identity
    other = CacheDirectory(tmp_path, "t")
    assert other.slot == "t"
    for d in (one, three, again, other):
        d.close()


def test_what_is_set_aside_is_had_by_the_next_that_asks_here(tmp_path: Path) -> None:
    one = CacheDirectory(tmp_path, "s")
    one.set_aside()
    assert is_locked(tmp_path / "s" / "lock")
    two = CacheDirectory(tmp_path, "s")
    assert two.slot == "s"
    two.set_aside()
    lasting.give_back_the_rest()
    assert not is_locked(tmp_path / "s" / "lock")


def test_a_directory_that_fails_as_it_is_claimed_is_claimed_again(tmp_path: Path) -> None:
    CacheDirectory(tmp_path, "s").close()
    (tmp_path / "s" / "cache.json").write_text('{"format": 99}')
    with pytest.raises(ConfigError, match="format 99"):
        CacheDirectory(tmp_path, "s")
    (tmp_path / "s" / "cache.json").unlink()
    again = CacheDirectory(tmp_path, "s")
    assert again.slot == "s"
    again.close()


def test_what_is_made_is_private(tmp_path: Path) -> None:
    d = CacheDirectory(tmp_path / "new" / "deep", "s")
    os.close(d.open(OID, create=True))
    assert stat.S_IMODE(d.path.stat().st_mode) == 0o700
    assert stat.S_IMODE((d.path / "objects").stat().st_mode) == 0o700
    assert stat.S_IMODE(d.file_of(OID).stat().st_mode) == 0o600
    assert stat.S_IMODE(d.file_of(OID).parent.stat().st_mode) == 0o700
    d.close()


def test_what_was_open_to_others_is_closed(tmp_path: Path) -> None:
    slot = tmp_path / "s"
    slot.mkdir()
    slot.chmod(0o755)
    d = CacheDirectory(tmp_path, "s")
    assert stat.S_IMODE(slot.stat().st_mode) == 0o700
    slot.chmod(0o755)
    assert d.probe()
    assert stat.S_IMODE(slot.stat().st_mode) == 0o700
    d.close()


def test_a_directory_that_cannot_be_used_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError) as caught:
        CacheDirectory(tmp_path / "file", "s")
    assert str(tmp_path / "file") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_an_unwritable_directory_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(*_args: object, **_options: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(lasting, "lock", refuse)
    with pytest.raises(ConfigError, match=os.strerror(code)) as caught:
        CacheDirectory(tmp_path, "s")
    assert "can be written" in str(caught.value)


@pytest.mark.parametrize("text", ['{"format": 99, "identity": "x"}', "[]", "null", '{"identity": "x"}'])
def test_an_unknown_format_is_refused(tmp_path: Path, text: str) -> None:
    CacheDirectory(tmp_path, "s").close()
    (tmp_path / "s" / "cache.json").write_text(text)
    with pytest.raises(ConfigError, match="format") as caught:
        CacheDirectory(tmp_path, "s")
    assert "\n" not in str(caught.value)


def test_a_torn_description_makes_the_cache_a_new_one(tmp_path: Path) -> None:
    d = CacheDirectory(tmp_path, "s")
    before = d.identity
    d.close()
    (tmp_path / "s" / "cache.json").write_text('{"form')
    d = CacheDirectory(tmp_path, "s")
    assert d.identity != before
    assert json.loads((tmp_path / "s" / "cache.json").read_text())["identity"] == d.identity
    d.close()


def test_a_probe_tells_whether_the_files_are_still_there(tmp_path: Path) -> None:
    d = CacheDirectory(tmp_path, "s")
    before = d.identity
    assert d.probe()
    assert d.identity == before
    shutil.rmtree(d.path)
    assert not d.probe()
    assert d.identity != before
    assert d.probe()
    os.close(d.open(OID, create=True))
    d.close()


def test_a_directory_made_again_is_locked_again(tmp_path: Path) -> None:
    d = CacheDirectory(tmp_path, "s")
    shutil.rmtree(d.path)
    assert not d.probe()
    other = CacheDirectory(tmp_path, "s")
    assert other.slot == "s.1", "two daemons share a cache directory"
    other.close()
    d.close()
    CacheDirectory(tmp_path, "s").close()


def test_a_directory_that_another_daemon_took_meanwhile_is_left_alone(tmp_path: Path) -> None:
    d = CacheDirectory(tmp_path, "s")
    shutil.rmtree(d.path)
    other = CacheDirectory(tmp_path, "s")
    assert other.slot == "s"
    with pytest.raises(OSError, match="another"):
        d.probe()
    other.close()
    d.close()


def test_another_file_system_in_its_place_is_not_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    d = CacheDirectory(tmp_path / "mnt", "s")
    shutil.rmtree(tmp_path / "mnt")
    d.device += 1
    with pytest.raises(OSError, match="file system is gone"):
        d.probe()
    assert not (tmp_path / "mnt").exists()
    d.close()


def test_files_are_found_removed_and_all_removed(tmp_path: Path) -> None:
    d = CacheDirectory(tmp_path, "s")
    ids = [bytes([number]) * 16 for number in range(5)]
    for oid in ids:
        os.close(d.open(oid, create=True))
    (d.path / "objects" / "stray").write_text("")
    (d.file_of(ids[0]).parent / "not hexadecimal").write_text("")
    assert sorted(d.stored()) == ids
    d.remove(ids[0])
    d.remove(ids[0])
    assert sorted(d.stored()) == ids[1:]
    with pytest.raises(FileNotFoundError):
        d.open(ids[0])
    d.doom_all()
    assert list(d.stored()) == []
    assert len(list(d.path.glob("doomed-*/*/*"))) == 5, "removing takes too long to do it at once"
    d.remove_doomed()
    assert not list(d.path.glob("doomed-*"))
    os.close(d.open(ids[0], create=True))
    d.close()


def test_reading_and_writing_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fd = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: real(fd, data[:3], offset))
    write_all(fd, b"0123456789", 5)
    assert read_exact(fd, 10, 5) == b"0123456789"
    assert read_exact(fd, 100, 10) == b"56789"
    assert read_exact(fd, 5, 100) == b""
    monkeypatch.setattr(os, "pwrite", lambda *_: 0)
    with pytest.raises(OSError, match="No space"):
        write_all(fd, b"x", 0)
    os.close(fd)


def test_space_is_that_of_the_file_system(tmp_path: Path) -> None:
    d = CacheDirectory(tmp_path, "s")
    space = d.space()
    assert 0 <= space.free_bytes <= space.total_bytes
    d.close()
