"""What the entries of ``--join`` stand for."""

from __future__ import annotations

import logging
import socket
import threading
from pathlib import Path

import pytest
import trio

from luxfuse.core.members import Address
from luxfuse.errors import ConfigError
from luxfuse.peers import join
from luxfuse.peers.join import Seeds


class Names:
    """Stands for the resolver of the machine."""

    def __init__(self, **hosts: list[str] | OSError) -> None:
        self.hosts = hosts

    def __call__(self, host: str, port: int) -> list[Address]:
        found = self.hosts.get(host, socket.gaierror(-2, "Name or service not known"))
        if isinstance(found, OSError):
            raise found
        return [(address, port) for address in found]


def seeds(*entries: str, names: Names | None = None) -> Seeds:
    return Seeds(entries, family=socket.AF_INET, lookup=names or Names())


async def test_addresses_names_and_files(tmp_path: Path) -> None:
    file = tmp_path / "nodes"
    file.write_text("# nodes\n10.0.0.7:1\n\nmany:9 # these\n10.0.0.1:7950\n")
    names = Names(many=["10.0.0.1", "10.0.0.2", "fd00::1"])
    found = await seeds("10.0.0.1", "[fd00::2]:5", "many:8", f"file:{file}", names=names).resolve()
    assert found == [
        ("10.0.0.1", 7950), ("fd00::2", 5), ("10.0.0.1", 8), ("10.0.0.2", 8), ("fd00::1", 8), ("10.0.0.7", 1),
        ("10.0.0.1", 9), ("10.0.0.2", 9), ("fd00::1", 9),
    ]  # fmt: skip
    assert not seeds()
    assert await seeds().resolve() == []


async def test_all_is_looked_at_again(tmp_path: Path) -> None:
    file = tmp_path / "nodes"
    file.write_text("10.0.0.1\n")
    names = Names(many=["10.0.0.2"])
    some = seeds("many", f"file:{file}", names=names)
    assert [host for host, _ in await some.resolve()] == ["10.0.0.2", "10.0.0.1"]
    file.write_text("10.0.0.3\n")
    names.hosts["many"] = ["10.0.0.4"]
    assert [host for host, _ in await some.resolve()] == ["10.0.0.4", "10.0.0.3"]


@pytest.mark.parametrize(
    ("content", "text"),
    [(None, "No such file"), ("a\nb:c\n", "line 2: 'b:c'"), ("a:0", "line 1"), (" " * (2 << 20), "longer than")],
)
def test_a_file_that_is_bad_at_the_start_is_refused(tmp_path: Path, content: str | None, text: str) -> None:
    file = tmp_path / "nodes"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=text) as caught:
        seeds(f"file:{file}")
    assert "\n" not in str(caught.value)


@pytest.mark.expected_logs("Name or service not known", "line 1: 'b:c'")
async def test_later_trouble_is_logged_once_until_it_is_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, join.__name__)
    file = tmp_path / "nodes"
    file.write_text("")
    names = Names()
    some = seeds("many:1", "10.0.0.1", f"file:{file}", names=names)

    def lines() -> list[str]:
        found = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return found

    file.write_text("b:c")
    for _ in range(3):
        assert await some.resolve() == [("10.0.0.1", 7950)]
    assert sorted(lines()) == [
        f"--join file:{file}: line 1: 'b:c' is no address; write HOST:PORT, or [IPv6]:PORT; it is tried again",
        "--join many: Name or service not known; it is tried again",
    ]
    names.hosts["many"] = ["10.0.0.2"]
    file.write_text("10.0.0.3")
    for _ in range(2):
        assert len(await some.resolve()) == 3
    assert len(lines()) == 2
    names.hosts.clear()
    await some.resolve()
    assert len(lines()) == 1


@pytest.mark.expected_logs("not resolved within")
async def test_a_resolver_that_hangs_delays_and_does_not_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(join, "DEADLINE_S", 0.05)
    go_on = threading.Event()

    def hang(host: str, port: int) -> list[Address]:
        go_on.wait(120)
        return []

    some = Seeds(["slow", "10.0.0.1"], family=socket.AF_INET, lookup=hang)
    try:
        with trio.fail_after(60):
            # More times than there are threads.
            for _ in range(join.MOST_THREADS + 2):
                assert await some.resolve() == [("10.0.0.1", 7950)]
    finally:
        go_on.set()


async def test_what_is_found_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(join, "MOST_ADDRESSES", 5)
    assert len(await seeds("many", names=Names(many=[f"10.0.0.{n}" for n in range(9)])).resolve()) == 5


async def test_the_system_resolves() -> None:
    some = Seeds(["localhost:5"], family=socket.AF_INET)
    assert await some.resolve() == [("127.0.0.1", 5)]
