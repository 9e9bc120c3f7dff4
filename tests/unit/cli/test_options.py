"""``-o`` on the command line and in /etc/fstab."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from luxfuse.cli import fstab, launch, main, mount
from luxfuse.cli.errors import CommandFailed, UsageError
from luxfuse.cli.options import parse_options
from luxfuse.config import Settings
from luxfuse.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("defaults,noauto,user,_netdev,nofail,x-systemd.automount,x-a=b,X-mount.mkdir,comment=x,lazytime", {}),
        ("ro", {"read_only": True}),
        ("ro,rw", {"read_only": False}),
        ("write-mode=async-through,on_conflict=fail", {"write_mode": "async-through", "on_conflict": "fail"}),
        ("metadata-ttl=5m,metadata_ttl=6m", {"metadata_ttl": "6m"}),
        ("allow_other,uid=1000,umask=027", {"allow_other": True, "uid": "1000", "umask": "027"}),
        ("join=a:1,peer_tls=off,join=[::1]:2", {"join": ["a:1", "[::1]:2"], "peer_tls": "off"}),
        ("storage_option=key=a=b,storage-option=k=", {"storage_options": {"key": "a=b", "k": ""}}),
        ("price=get=1,price=put=2", {"prices": {"get": "1", "put": "2"}}),
        ("cache_dir=/a,cache_dir=/b", {"cache_dir": ["/a", "/b"]}),
        ("passthrough=off,log_level=debug", {"passthrough": "off", "log_level": "debug"}),
    ],
)
def test_options(text: str, expected: dict[str, Any]) -> None:
    assert parse_options([text]) == expected
    assert parse_options(text.split(",")) == expected


@pytest.mark.parametrize(
    "text",
    [
        "noexec",
        "novelty",
        "source=x",
        "state_dir=/x",
        "foreground",
        "storage_option=x",
        "path=x",
        "uid",
        "storage_option=a=1,storage_option=a=2",
    ],
)
def test_refused_options(text: str) -> None:
    with pytest.raises((UsageError, ConfigError)):
        parse_options([text])


def test_a_value_with_commas_stands_in_quotes() -> None:
    assert parse_options(['cache_dir="/c,size=1GiB,tier=hdd",ro']) == {
        "cache_dir": ["/c,size=1GiB,tier=hdd"], "read_only": True
    }  # fmt: skip


def test_what_mount_writes_of_itself_is_let_pass(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse_options(["rw,noexec,nosuid,nodev,_netdev,user"], fstab=True) == {}
    assert parse_options(["rw,dev,suid,user=me"], fstab=True) == {}
    assert capsys.readouterr().err.startswith("luxfuse: -o noexec has no effect")
    with pytest.raises(UsageError, match="novelty"):
        parse_options(["novelty"], fstab=True)
    assert parse_options(["novelty"], fstab=True, sloppy=True) == {}


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Settings]:
    for name in ("LUXFUSE_SOURCE", "LUXFUSE_MOUNTPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LUXFUSE_STATE_DIR", str(tmp_path))
    calls: list[Settings] = []
    monkeypatch.setattr(launch, "in_background", calls.append)
    return calls


def test_fstab_helper(started: list[Settings], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "m")
    arguments = ["s3://b", f"{tmp_path}/link", "-n", "-v", "-o", "rw,_netdev,endpoint_url=http://h:1,cache_size=1GiB"]
    assert fstab.run(arguments) == 0
    (settings,) = started
    assert (settings.source, settings.mountpoint) == ("s3://b", str(tmp_path.resolve() / "m"))
    assert settings.endpoint_url == "http://h:1"
    assert settings.cache_dirs[0].size_bytes == 1 << 30
    assert not settings.read_only
    assert fstab.run(["s3://b", "/m", "-o", "ro,write_mode=through"]) == 0
    assert started.pop().read_only
    assert capsys.readouterr().out == f"s3://b mounted on {tmp_path}/link\n"
    assert fstab.run(["s3://b", "/m", "-f"]) == 0
    assert len(started) == 1


def test_flags_win_over_options(started: list[Settings]) -> None:
    mount.start({"source": "s3://b", "mountpoint": "/m", "metadata_ttl": "1s"}, {"metadata_ttl": "2s", "uid": "3"})
    assert started[0].metadata_ttl_s == 1
    assert started[0].uid == 3


@pytest.fixture
def foreground(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Replaces the daemon in this process; returns the settings to run it with."""
    monkeypatch.setenv("LUXFUSE_STATE_DIR", str(tmp_path))
    monkeypatch.setenv("LUXFUSE_KEEPER", "off")
    return monkeypatch


def with_daemon(monkeypatch: pytest.MonkeyPatch, run: Any) -> None:
    import sys
    import types

    import luxfuse

    module = types.ModuleType("luxfuse.daemon.main")
    module.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "luxfuse.daemon.main", module)
    monkeypatch.setattr(luxfuse, "daemon", module, raising=False)


def test_foreground_failure(foreground: pytest.MonkeyPatch) -> None:
    def run(settings: Settings, ready: Any) -> int:
        ready("no such bucket")
        return 1

    with_daemon(foreground, run)
    with pytest.raises(CommandFailed, match="no such bucket"):
        mount.start({"source": "s3://b", "mountpoint": "/m", "foreground": True}, {})


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["/m", "s3://b"], "'s3://b' is a URL, and no directory; write: luxfuse mount SOURCE MOUNTPOINT"),
        (["s3:/b", "/m"], "has one slash after the colon; write PROTOCOL://"),
        (["s3://b", "/m", "--config", ""], "--config: is empty"),
        (["s3://b", "/m", "--config", "/"], "--config /: Is a directory; give a TOML file"),
        (["s3://b", "/m", "--config", "/dev/null/x"], "Not a directory; give a TOML file"),
    ],
)
def test_what_newcomers_write(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.guard(lambda: main.run(["mount", *arguments])) == 2
    assert said in capsys.readouterr().err


def test_help_of_what_mount_runs_is_no_failure(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.guard(lambda: main.run(["s3://b", "--help"])) == 0
    assert "usage: mount.luxfuse" in capsys.readouterr().out
