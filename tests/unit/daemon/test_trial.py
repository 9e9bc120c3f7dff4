"""Whether this luxfuse could go on where another one serves."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from luxfuse import __version__
from luxfuse.config import Settings
from luxfuse.core.cache_directory import CacheSetting
from luxfuse.daemon import formats, trial
from luxfuse.daemon.upgrading import chosen
from luxfuse.estate.memory import Estate
from luxfuse.index import journal_file


@pytest.fixture
def estate() -> Iterator[Estate]:
    fd = os.memfd_create("estate", os.MFD_CLOEXEC)
    made = Estate(fd)
    formats.say(made)
    yield made
    os.close(fd)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        source=f"file://{tmp_path}", mountpoint="/mnt", cache_dirs=(CacheSetting("/cache"),), state_dir="/state", umask=0o27
    )


def test_this_one_could(estate: Estate, settings: Settings) -> None:
    assert trial.refusal(chosen(settings), estate.fd) is None


@pytest.mark.parametrize("each", formats.FORMATS, ids=lambda each: each.what)
def test_another_format(estate: Estate, settings: Settings, each: formats.Format) -> None:
    estate.say(each.word, 77)
    said = trial.refusal(chosen(settings), estate.fd)
    assert said is not None
    assert f"the {each.what} of the daemon that runs has format 77, luxfuse {__version__} knows " in said


def test_older_formats_are_gone_on_with(estate: Estate, settings: Settings) -> None:
    """A journal without a log gets one when it is opened."""
    for each in formats.FORMATS:
        for older in each.also_read:
            estate.say(each.word, older)
    assert trial.refusal(chosen(settings), estate.fd) is None
    assert journal_file.LOGLESS_VERSION in {older for each in formats.FORMATS for older in each.also_read}


def test_settings(estate: Estate, settings: Settings) -> None:
    """Those at their defaults need not be known."""
    given = msgspec.json.decode(chosen(settings))
    assert set(given) >= {"source", "mountpoint", "cache_dirs", "state_dir", "umask"}
    assert not {"log_file", "keeper", "read_only"} & set(given)
    unknown = msgspec.json.encode({**given, "shiny": True})
    assert trial.refusal(unknown, estate.fd) == "the mount has settings that this luxfuse does not know: shiny"
    odd = msgspec.json.encode({**given, "read_mode": "sideways"})
    assert "a setting that this luxfuse does not understand: Invalid enum value" in str(trial.refusal(odd, estate.fd))
    elsewhere = msgspec.json.encode({**given, "source": "gopher://host/"})
    assert "gopher" in str(trial.refusal(elsewhere, estate.fd))
