"""The lines of the daemon's log."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import sys
import time
from pathlib import Path

import msgspec
import pytest

from luxfuse.config import Settings
from luxfuse.daemon import logs


def line(message: str, *arguments: object, level: int = logging.INFO, exc_info: bool = False,
         as_json: bool = False, journal: bool = False) -> str:  # fmt: skip
    """The line of a record at a known time."""
    raised = sys.exc_info() if exc_info else None
    record = logging.LogRecord("luxfuse.place", level, "place.py", 1, message, arguments, raised)
    record.created = 1_800_000_000.25
    return logs.Lines(as_json=as_json, journal=journal).format(record)


@pytest.mark.parametrize(
    ("message", "written"),
    [
        ("mounted", "mounted"),
        ("", ""),
        ("two words", '"two words"'),
        ("a=b", '"a=b"'),
        ('say "so"', r'"say \"so\""'),
        ("back\\slash", "back\\slash"),
        ("back\\slash in words", r'"back\\slash in words"'),
        ("two\nlines", r"two\nlines"),
        ("red\x1b[31m", r"red\x1b[31m"),
        ("back\rto the start", r'"back\rto the start"'),
        (os.fsdecode(b"no \xff UTF-8, \xc3\xa9 is"), r'"no \udcff UTF-8, é is"'),
    ],
)
def test_message_is_one_value(message: str, written: str) -> None:
    event = re.escape(written)
    assert re.fullmatch(
        rf"timestamp=2027-01-1[45]T\d\d:00:00.250[+-]\d\d:\d\d level=info logger=luxfuse.place event={event}", line(message)
    )


@pytest.mark.parametrize(("zone", "when"), [
    ("UTC0", "2027-01-15T08:00:00.250+00:00"), ("EST5", "2027-01-15T03:00:00.250-05:00"),
    ("IST-5:30", "2027-01-15T13:30:00.250+05:30"),
])  # fmt: skip
def test_times_are_of_the_machine_with_their_zone(monkeypatch: pytest.MonkeyPatch, zone: str, when: str) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        assert line("x").startswith(f"timestamp={when} ")
    finally:
        monkeypatch.undo()
        time.tzset()


def test_lines_of_json() -> None:
    try:
        raise ValueError("bad\nvalue")
    except ValueError:
        text = line('say "%s"', "so\nit is", exc_info=True, as_json=True)
    assert "\n" not in text
    fields = json.loads(text)
    assert fields["event"] == 'say "so\nit is"'
    assert fields["level"] == "info"
    assert fields["exception"].endswith("ValueError: bad\nvalue")


NO_UTF8 = os.fsdecode(b"a\xff\x1b")


def test_names_of_any_bytes_reach_every_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handler, recent = logs.LogFile(str(tmp_path / "log")), logs.Recent()
    handler.setFormatter(logs.Lines(as_json=True))
    record = logging.LogRecord("luxfuse", logging.WARNING, "", 1, "lookup of %s", (NO_UTF8,), None)
    plain = logging.LogRecord("luxfuse", logging.WARNING, "", 1, "%s", (NO_UTF8,), None)
    try:
        handler.emit(record)
        handler.setFormatter(None)
        handler.emit(plain)
    finally:
        handler.close()
    first, second = (tmp_path / "log").read_text("utf-8").splitlines()
    assert json.loads(first)["event"] == "lookup of a\\udcff\x1b"
    assert second == "a\\udcff\x1b"
    recent.emit(record)
    monkeypatch.setattr(logging.getLogger(), "handlers", [recent])
    assert [each["event"] for each in logs.recent()] == [r"lookup of a\udcff\x1b"]
    msgspec.json.encode(logs.recent())


def test_the_last_warnings_are_kept_the_newest_first_and_shortened(monkeypatch: pytest.MonkeyPatch) -> None:
    recent = logs.Recent()
    monkeypatch.setattr(logging.getLogger(), "handlers", [recent])
    for number in range(logs.RECENT_KEPT + 3):
        recent.handle(logging.LogRecord("luxfuse.place", logging.ERROR, "", 1, f"{number} {'x' * 1000}", (), None))
    kept = logs.recent()
    assert [str(each["event"]).split()[0] for each in kept] == [str(number) for number in range(52, 2, -1)]
    assert {len(str(each["event"])) for each in kept} == {logs.RECENT_CHARACTERS}
    assert (kept[0]["level"], kept[0]["logger"]) == ("error", "luxfuse.place")


@pytest.mark.parametrize(
    ("level", "number"),
    [(logging.DEBUG, 7), (logging.INFO, 6), (logging.WARNING, 4), (logging.ERROR, 3), (logging.CRITICAL, 2)],
)
def test_the_journal_gets_the_severity_and_keeps_the_time(level: int, number: int) -> None:
    name = logging.getLevelName(level).lower()
    assert line("x", level=level, journal=True) == f"<{number}>level={name} logger=luxfuse.place event=x"
    assert line("x", level=level, journal=True, as_json=True).startswith(f'<{number}>{{"level"')


def test_the_journal_is_known_by_its_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "stream").open("w") as stream, (tmp_path / "other").open("w") as other:
        status = os.fstat(stream.fileno())
        assert not logs.is_journal(stream.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        assert logs.is_journal(stream.fileno())
        assert not logs.is_journal(other.fileno())
    assert not logs.is_journal(-1)


def test_arguments_are_filled_in() -> None:
    assert line("%d files", 3, level=logging.WARNING).endswith(' level=warning logger=luxfuse.place event="3 files"')


def test_traceback_is_on_the_same_line() -> None:
    try:
        raise ValueError('a "bad" value')
    except ValueError:
        text = line("failed", exc_info=True)
    before, _, traceback = text.partition(" exception=")
    assert before.endswith("event=failed")
    assert traceback.startswith('"Traceback (most recent call last):\\n  File \\"')
    assert traceback.endswith(r'ValueError: a \"bad\" value"')
    assert "\n" not in text


def test_log_of_a_mount_is_in_its_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    level = root.level
    monkeypatch.setattr(root, "handlers", root.handlers)
    try:
        settings = Settings(
            source="file:///b", mountpoint="/m", cache_dirs=(), state_dir=str(tmp_path), log_level="warning"
        )
        logs.configure(settings, tmp_path)
        logging.getLogger("luxfuse.place").info("not of interest")
        logging.getLogger("luxfuse.place").warning("of interest")
        for error in (errno.ENOENT, errno.EIO):
            logging.getLogger("pyfuse3").error("fuse_release(): fuse_reply_* failed with %s", os.strerror(error))
    finally:
        root.setLevel(level)
        for handler in root.handlers:
            handler.close()
    written = (tmp_path / logs.FILE_NAME).read_text()
    first, second = written.splitlines()
    assert first.endswith(' level=warning logger=luxfuse.place event="of interest"')
    assert second.endswith('Input/output error"'), "of answers that are not waited for nothing is said"


def test_a_file_that_was_moved_away_is_followed_by_a_new_one(tmp_path: Path) -> None:
    path, moved = tmp_path / "log", tmp_path / "log.1"
    handler = logs.LogFile(str(path))
    stderr = os.dup(2)
    try:
        os.dup2(handler.stream.fileno(), 2)
        record = logging.LogRecord("luxfuse", logging.INFO, "", 1, "before", (), None)
        handler.emit(record)
        path.rename(moved)
        record.msg = "between"
        handler.emit(record)
        handler.reopen()
        record.msg = "after"
        handler.emit(record)
        os.write(2, b"by itself\n")
        path.unlink()
        tmp_path.joinpath("log").mkdir()
        with pytest.raises(IsADirectoryError):
            handler.reopen()
        record.msg = "still"
        handler.emit(record)  # goes on in the file that it has
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        handler.close()
    assert moved.read_text() == "before\nbetween\n"


def test_what_comes_after_that_is_in_the_new_file(tmp_path: Path) -> None:
    path = tmp_path / "log"
    handler = logs.LogFile(str(path))
    try:
        path.rename(tmp_path / "log.1")
        handler.reopen()
        handler.emit(logging.LogRecord("luxfuse", logging.INFO, "", 1, "after", (), None))
    finally:
        handler.close()
    assert path.read_text() == "after\n"
