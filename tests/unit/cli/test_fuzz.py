"""Whatever is written where: an exit code of 0, 1 or 2, and one line if it failed. Never a traceback, never a hang.

The few examples of every run are always the same; ``-m slow`` tries thousands of new ones.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from hypothesis import strategies as st

from luxfuse.cli import command_line, fstab, launch, main, stats, unmount
from luxfuse.config import Settings
from luxfuse.configuration.building import build
from luxfuse.control import registry, server
from luxfuse.control.http import Request
from luxfuse.core.settings import SETTINGS
from luxfuse.errors import ConfigError, LuxError
from luxfuse.understore.factory import open_driver
from tests.support.odd_input import ODD, ORDERS, bodies, fuzz, json_values, words
from tests.unit.cli.fake_daemon import Service

ROOT = Path(__file__).parents[3]
EXAMPLES = [pytest.param(25, id="few"), pytest.param(600, id="many", marks=[pytest.mark.slow, pytest.mark.timeout(3600)])]


def outcome(command: Callable[[], int], *, helped: bool = False) -> int:
    """Run a command in this process; returns its exit code. ``helped``: it may print how it is used."""
    with contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO(), "utf-8")), \
         contextlib.redirect_stderr(io.StringIO()) as errors:  # fmt: skip
        code = main.guard(command)
    said = errors.getvalue()
    assert code in (0, 1, 2)
    assert "luxfuse: unexpected" not in said, said
    assert "Traceback" not in said, said
    assert "internal" not in said, said
    lines = said.split("\n")[:-1]
    if code != 0 and not (helped and said.startswith("Usage: ")):
        assert lines, "failed without a word"
        assert len(lines) == 1 or all(line.count(": ") > 1 for line in lines), said  # a line for each path that failed
    assert all(line.startswith("luxfuse: ") for line in lines) or helped, said
    return code


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A mountpoint with a daemon that mounts nothing, in the working directory."""
    base = tmp_path_factory.mktemp("fuzz")
    where = base / "mnt"
    where.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(base)
        patch.setenv("LUXFUSE_STATE_DIR", str(base / "state"))
        patch.setenv("PYTHONPATH", str(ROOT))
        fake = str(Path(__file__).with_name("fake_daemon.py"))
        patch.setattr(launch, "_command", lambda settings, log, fd: [sys.executable, fake, str(fd)])
        assert main.run(["mount", "fake://busy", str(where)]) == 0
        patch.setattr(launch, "in_background", decodes)
        patch.setattr(launch, "in_foreground", decodes)
        patch.setattr(stats, "INTERVAL_S", 0)
        patch.setattr(unmount, "_force", lambda *_: None)
        yield where
        for record in registry.list_mounts(base / "state"):
            os.kill(record.pid, signal.SIGKILL)


def decodes(chosen: Settings) -> int:
    """What the daemon would get is what was meant."""
    assert msgspec.json.decode(msgspec.json.encode(chosen), type=Settings) == chosen
    return 0


# -- settings


def settings_in(place: str) -> list[Any]:
    return [setting for setting in SETTINGS if place in setting.places]


@pytest.mark.parametrize("examples", EXAMPLES)
def test_settings_as_flags_options_and_variables(place: Path, examples: int) -> None:
    def check(flags: Any, options: Any, variables: Any) -> None:
        arguments = [word for setting, value in flags for word in (setting.flag, value)]
        if options:
            arguments += ["-o", ",".join(f"{setting.option}={value}" for setting, value in options)]
        with pytest.MonkeyPatch.context() as patch:
            for setting, value in variables:
                patch.setenv(setting.variable, value)
            outcome(lambda: main.run(["mount", "s3://b", str(place), *arguments]), helped="-h" in arguments)

    def chosen(where: str) -> st.SearchStrategy[Any]:
        return st.lists(st.tuples(st.sampled_from(settings_in(where)), words), max_size=2)

    fuzz(examples, check, chosen("flag"), chosen("option"), chosen("variable"))


@pytest.mark.parametrize("examples", EXAMPLES)
def test_settings_alone(place: Path, examples: int) -> None:
    """Each by itself, so that one that is refused does not hide another; without a command line, which is faster."""

    def check(setting: Any, value: Any) -> None:
        base = {"source": "s3://b", "mountpoint": "/m"}
        with contextlib.suppress(ConfigError):
            decodes(build({**base, setting.name: value}, {}))

    times = 20 if examples < 100 else 10
    fuzz(times * examples, check, st.sampled_from(SETTINGS), st.one_of(words, st.lists(words, max_size=3), json_values))


@pytest.mark.parametrize("examples", EXAMPLES)
def test_the_words_of_fstab(place: Path, examples: int) -> None:
    known = [*(setting.option for setting in SETTINGS), "rw", "ro", "noexec", "user", "_netdev", "x-systemd.a", "nofail"]
    option = st.one_of(
        words, st.sampled_from(known), st.tuples(st.sampled_from(known), words).map("=".join),
    )  # fmt: skip

    def check(options: list[str], more: list[str]) -> None:
        def command() -> int:
            try:
                return fstab.run(["s3://b", str(place), "-o", ",".join(options), *more])
            except SystemExit as exc:  # -h
                return int(exc.code or 0)

        with contextlib.redirect_stdout(io.StringIO()):
            code = main_of_fstab(command)
        assert code in (0, 1, 2)

    fuzz(examples, check, st.lists(option, max_size=4), st.lists(words, max_size=1))


def main_of_fstab(command: Callable[[], int]) -> int:
    """A noexec without effect is told of besides, so there may be two lines."""
    with contextlib.redirect_stderr(io.StringIO()) as errors:
        code = main.guard(command)
    said = errors.getvalue()
    assert all(line.startswith("luxfuse: ") for line in said.split("\n")[:-1]), said
    assert "luxfuse: unexpected" not in said, said
    assert code == 0 or said
    return code


# -- stores


@pytest.mark.parametrize("examples", EXAMPLES)
def test_addresses_of_stores(examples: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A driver is opened, or refused in one line; nothing is asked for."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("luxfuse.understore.s3.access.S3Access.find_region", lambda _self: None)
    place = st.sampled_from(["s3", "az", "gs", "http", "webdav", "file"])
    host = st.sampled_from(["", "h", "[::1]", "[::", "h:9", "h:x", "h:99999", "u:p@h", "h ", "h?x", "\u00e9"]) | words
    url = st.tuples(st.sampled_from(["", "http://", "https://", "ftp://"]), host).map("".join)
    option = st.sampled_from(["endpoint_url", "base_url", "proxy_url", "verify", "anon", "port", "client_kwargs"])
    secrets = {
        "s3": {"key": "k", "secret": "s"}, "gs": {"token": "anon"}, "az": {"account_name": "a", "account_key": "c2Vj"},
    }  # fmt: skip

    def check(protocol: str, where: str, endpoint: str, options: dict[str, str], variable: str) -> None:
        said = "refused or not"
        options = {**secrets.get(protocol, {}), **options}
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL", variable)
            patch.setenv("HTTPS_PROXY", variable)
            try:
                open_driver(f"{protocol}://{where}", endpoint_url=endpoint or None, storage_options=options)
            except LuxError as exc:
                said = str(exc)
        assert said

    fuzz(examples, check, place, host, url | st.just(""), st.dictionaries(option, url, max_size=1), url)


# -- files

toml_values: st.SearchStrategy[Any] = st.recursive(
    st.one_of(
        st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.sampled_from(ODD), st.none(), st.dates(),
        st.sampled_from([10**400, -(10**400), 2**63, 2**64]),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | st.sampled_from(
        ["pattern", "ttl", "write_mode", "max_cached", "bandwidth_limit", "pin", "get", "currency"]
    ), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip


def as_toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(str(name))} = {as_toml(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(as_toml, value))}]"
    return str(value) if not isinstance(value, (str, bool)) else json.dumps(value)


@pytest.mark.parametrize("examples", EXAMPLES)
def test_files(place: Path, examples: int) -> None:
    file = place.parent / "luxfuse.toml"
    names = st.sampled_from([*(setting.name for setting in SETTINGS), "state_dir", "colour"]) | st.text(max_size=5)
    lines = st.tuples(names, toml_values).map(lambda pair: f"{pair[0]} = {as_toml(pair[1])}\n".encode(errors="replace"))
    tables = st.tuples(st.sampled_from(["[path]", "[[path]]", "[prices]", "[storage_options]", "[[", "[uid]"]), lines).map(
        lambda pair: pair[0].encode() + b"\n" + pair[1]
    )
    contents = st.one_of(st.binary(max_size=40), st.lists(lines, max_size=2).map(b"".join), st.lists(tables).map(b"".join))

    def check(content: bytes) -> None:
        file.write_bytes(content)
        outcome(lambda: main.run(["mount", "s3://b", str(place), "--config", str(file)]))

    fuzz(examples, check, contents)


@pytest.mark.parametrize("name", ["\udce9.toml", "a\nb", ".", "/dev/null/x", "x" * 300, ""])
def test_names_of_files(place: Path, name: str) -> None:
    for arguments in (
        ["mount", "s3://b", str(place), "--config", name], ["load", "--from-file", name],
        ["cluster", "init", "--key-file", name], ["mount", "s3://b", str(place), "--log-file", name],
    ):  # fmt: skip
        outcome(lambda arguments=arguments: main.run(arguments))


# -- commands

FLAGS = {
    "load": ["--from-file", "--wait", "--background", "--progress", "--stop"],
    "ttl": ["--action", "--yes", "free", "delete", "1d"],
    "replicate": ["--min", "--max", "--off"], "free": ["--json"], "locate": ["--json"], "check": ["--repair", "--json"],
    "status": ["--json"], "list": ["--json"], "stats": ["--once"], "unmount": ["--lazy", "--force"], "detach": ["--force"],
    "attach": ["-o", "--read-only", "--storage-option", "--write-mode"],
    "cluster": ["init", "status", "--json", "--key-file"],
    "trace": ["--pid", "--op", "--seconds", "--summary", "--json"], "profile": ["--seconds", "--json"],
}  # fmt: skip


@pytest.mark.parametrize("examples", EXAMPLES)
def test_command_lines(place: Path, examples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("a\n"))
    monkeypatch.setattr("luxfuse.peers.keyfile.write_new", lambda _file: None)  # nor anywhere on this machine
    inside = words.map(lambda word: f"{place}/{word}")

    def check(command: str, words_of_it: list[str], mixed: list[int]) -> None:
        flags = FLAGS.get(command, [])
        arguments = list(words_of_it)
        for number in mixed:
            if flags:
                arguments.insert(number % (len(arguments) + 1), flags[number % len(flags)])
        if "--from-file" in arguments and any(word.startswith("/") and "mnt" not in word for word in arguments):
            return  # not /dev/zero and the like
        code = outcome(lambda: main.run([command, *arguments]), helped=True)
        assert code in (0, 1, 2)

    commands = st.sampled_from(sorted(command_line.COMMANDS)) | words
    numbers = st.lists(st.integers(0, 11), max_size=2)
    fuzz(2 * examples, check, commands, st.lists(words | inside | st.just(str(place)), max_size=3), numbers)


# -- the control socket


async def asked(service: Service, method: str, path: str, body: bytes) -> tuple[int, bytes]:
    """Return status and body of the answer to one request."""

    async def receive(_most_bytes: int) -> bytes:
        await trio.lowlevel.checkpoint()
        return body

    with trio.fail_after(60):
        response = await server.answer(service, Request(method, path, "", {}, receive))
        if isinstance(response.content, bytes):
            return response.status, response.content
        return response.status, b"".join([part async for part in response.content])


@pytest.mark.parametrize("examples", EXAMPLES)
def test_control_requests(examples: int) -> None:
    service = Service(build({"source": "fake://ok", "mountpoint": "/m"}, {}), trio.Event())

    def check(method: str, order: str, body: bytes) -> None:
        status, answer = trio.run(asked, service, method, f"/v1/{order}", body)
        assert status in (200, 400, 404, 405, 409), (status, answer)
        if status != 200:
            error = json.loads(answer)["error"]
            assert error
            assert "\n" not in error
        elif order != "metrics":
            for line in answer.splitlines():
                assert "unexpected" not in json.loads(line).get("aborted", "")

    fuzz(5 * examples, check, st.sampled_from(["POST", "POST", "POST", "GET", "PUT"]), st.sampled_from(ORDERS), bodies)
