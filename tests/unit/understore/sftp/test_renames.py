"""Renames over a file at SFTP servers that do not know OpenSSH's way, or say only that it failed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip("paramiko")

from luxfuse.understore.generic.writes import TEMPORARY
from luxfuse.understore.sftp.fsspec import _rename


class Ftp:
    """Files by path; those whose content is ``stuck`` cannot be renamed."""

    def __init__(self, stuck: str = "") -> None:
        self.files = {"d/new": "content"}
        self.stuck = stuck
        self.silent = ""
        """The content of a file that is renamed once without an answer."""
        self.breaks = False
        self.connected = True

    def get_channel(self) -> SimpleNamespace:
        return SimpleNamespace(closed=not self.connected)

    def posix_rename(self, old: str, new: str) -> None:
        raise OSError("Failure")

    def rename(self, old: str, new: str) -> None:
        if not self.connected:
            raise EOFError
        if old not in self.files:
            raise FileNotFoundError
        if self.files[old] == self.stuck:
            self.connected = not self.breaks
            raise OSError("Failure")
        if new in self.files:
            raise OSError("Failure")
        self.files[new] = self.files.pop(old)
        if self.files[new] == self.silent:
            self.silent = ""
            raise TimeoutError

    def remove(self, path: str) -> None:
        del self.files[path]

    def stat(self, path: str) -> str:
        if path not in self.files:
            raise FileNotFoundError
        return self.files[path]


@pytest.mark.parametrize("present", [False, True])
def test_a_file_takes_the_place_of_another(present: bool) -> None:
    ftp = Ftp()
    if present:
        ftp.files["d/x"] = "old"
    _rename(ftp, "d/new", "d/x")
    assert ftp.files == {"d/x": "content"}


@pytest.mark.parametrize("breaks", [False, True])
def test_what_cannot_be_renamed_leaves_the_file_that_is_there(breaks: bool) -> None:
    ftp = Ftp("content")
    ftp.files["d/x"], ftp.breaks = "old", breaks
    with pytest.raises(OSError, match="Failure"):
        _rename(ftp, "d/new", "d/x")
    assert sorted(ftp.files.values()) == ["content", "old"]
    (where,) = (path for path, content in ftp.files.items() if content == "old")
    assert where.startswith(f"d/{TEMPORARY}") if breaks else where == "d/x"


@pytest.mark.parametrize("silent", ["old", "content"])
def test_a_step_that_is_made_but_not_answered_leaves_a_file_there(silent: str) -> None:
    ftp = Ftp()
    ftp.files["d/x"], ftp.silent = "old", silent
    with pytest.raises(TimeoutError):
        _rename(ftp, "d/new", "d/x")
    assert ftp.files["d/x"] == silent
    assert sorted(ftp.files.values()) == ["content", "old"]


def test_no_answer_in_time_is_not_taken_for_a_server_that_does_not_know_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    ftp = Ftp()

    def posix_rename(old: str, new: str) -> None:
        raise TimeoutError

    monkeypatch.setattr(ftp, "posix_rename", posix_rename)
    ftp.files["d/x"] = "old"
    with pytest.raises(TimeoutError):
        _rename(ftp, "d/new", "d/x")
    assert ftp.files == {"d/new": "content", "d/x": "old"}
