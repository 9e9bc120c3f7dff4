"""Commands and settings in the documents are understood, with their values, as a user would write them."""

from __future__ import annotations

import functools
import itertools
import re
import shlex
import textwrap
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import typer

from luxfuse.cli import command_line
from luxfuse.cli.flags import written
from luxfuse.cli.options import parse_options
from luxfuse.configuration import building
from luxfuse.core.settings import BY_NAME, SETTINGS
from tests.test_documents import DOCUMENTS, ROOT

NOW = [name for name in DOCUMENTS if name != "CHANGELOG.md"]
"""Those that tell how things are, and not how they were."""
COMMAND = re.compile(r"(?:^ {4,}|`|&& |sudo |-- )luxfuse ([a-z][^`\n]*)", re.MULTILINE)
FORM = re.compile(r"…|\.\.\.|\[|\b[MN]\b")
"""What shows how something is written, with words to be filled in, and is none of it."""
OF_FSTAB = re.compile(r"^ *(\S+) +(/\S+) +(\S*luxfuse\S*) +(\S+) +\d +\d$", re.MULTILINE)
IN_LINE = re.compile(r"`((?:--|-o )?[a-z][a-z_-]*[ =][^`\n]*)`")
BLOCK = re.compile(r"(?:^(?: {4}.*)?\n)+", re.MULTILINE)
OF_TOML = re.compile(r"[a-z_]+ = \S|\[\[?[a-z_]+\]\]?$|#|$")
ELSEWHERE = {"source": "s3://b", "mountpoint": "/mnt"}
"""What an example that is only about something else leaves out."""


def text_of(document: str) -> str:
    return (ROOT / document).read_text()


def commands(text: str) -> list[list[str]]:
    """Return the arguments of the commands of luxfuse in a document, but of those in a form, as with ``[options]``."""
    found = COMMAND.findall(text.replace("\\\n", " "))
    lines = [re.split(r" #|\s[|&>]", line)[0] for line in found if not FORM.search(line)]
    return [words for line in lines if (words := shlex.split(line))]


@functools.cache
def interpreter() -> Any:
    return typer.main.get_command(command_line.all_commands())


def understood(words: list[str]) -> str:
    """Return why a command line is not understood; "" if it is, or is only named and lacks what it needs."""
    command = interpreter()
    context, rest = typer.Context(command, info_name="luxfuse"), words
    try:
        while hasattr(command, "resolve_command") and rest:
            name, command, rest = command.resolve_command(context, rest)
            context = typer.Context(command, parent=context, info_name=name)
        command.parse_args(context, rest)
        check_settings(context.params)
    except Exception as exc:
        return "" if type(exc).__name__ in ("MissingParameter", "NoArgsIsHelpError") else f"{' '.join(words)}: {exc}"
    return ""


def check_settings(params: Mapping[str, Any]) -> None:
    """Raise for settings that the commands which take some would refuse."""
    if "endpoint_url" not in params:
        return
    options = parse_options(params["options"] or [])
    given = {name: value for name, value in params.items() if value not in (None, (), [])}
    flags = written({name: value for name, value in given.items() if name in BY_NAME and "flag" in BY_NAME[name].places})
    places = {name: given[name] for name in ELSEWHERE if name in given}
    if "mountpoint" not in params and "config_file" not in params:  # attach, and index export
        building.check_attachable(flags | options)
    building.build({**ELSEWHERE, **places, **flags}, {}, options=options)


def file_blocks(text: str) -> list[str]:
    """Return the blocks of a document that are TOML files of luxfuse."""
    blocks = [textwrap.dedent(block) for block in BLOCK.findall(text)]
    return [block for block in blocks if block.strip() and all(map(OF_TOML.match, block.splitlines()))]


def refused_file(block: str, directory: Path) -> str:
    file = directory / "luxfuse.toml"
    file.write_text(block)
    try:
        there = tomllib.loads(block)
        building.build({name: text for name, text in ELSEWHERE.items() if name not in there}, {}, file=str(file))
    except Exception as exc:
        return f"{block}: {exc}"
    return ""


def settings_in_line(text: str) -> Iterator[tuple[str, str, Any]]:
    """Yield what stands in backquotes in the words of a document, the setting it is of, and the value it has."""
    flags = {setting.flag: setting for setting in SETTINGS}
    for snippet in IN_LINE.findall(text):
        if FORM.search(snippet):
            continue
        if snippet.startswith("-o "):
            yield from ((snippet, name, value) for name, value in parse_options([snippet.removeprefix("-o ")]).items())
        elif snippet.startswith("--"):
            words = shlex.split(snippet)
            pairs = itertools.pairwise(words)
            yield from ((snippet, flags[flag].name, value) for flag, value in pairs if flag in flags)
        elif (name := re.split(r"[ =]", snippet)[0]) in BY_NAME and re.match(r"\w+( = |=)", snippet):
            value = snippet.removeprefix(name).lstrip(" =")
            yield snippet, name, tomllib.loads(f"it = {value}")["it"] if " = " in snippet else value


def refused_value(name: str, value: Any) -> str:
    if isinstance(value, str) and re.fullmatch(r"[A-Z_=]+", value):  # a word that says what has to stand there
        return ""
    kind = BY_NAME[name].kind
    try:
        kind.parse(dict([value.split("=", 1)]) if kind.shape == "pairs" and isinstance(value, str) else value)
    except Exception as exc:
        return f"{name}: {exc}"
    return ""


def refused_line(source: str, mountpoint: str, kind: str, options: str) -> str:
    """Return what is wrong with a line of /etc/fstab; "" if it mounts."""
    if kind != "fuse.luxfuse":
        return f"{kind} is no type that mount(8) finds"
    try:
        building.build({"source": source, "mountpoint": mountpoint}, {}, options=parse_options([options], fstab=True))
    except Exception as exc:
        return f"{options}: {exc}"
    return ""


@pytest.mark.parametrize("document", NOW)
def test_commands_in_documents_are_understood(document: str) -> None:
    assert list(filter(None, map(understood, commands(text_of(document))))) == []


@pytest.mark.parametrize("document", NOW)
def test_files_in_documents_are_understood(document: str, tmp_path: Path) -> None:
    assert [why for block in file_blocks(text_of(document)) if (why := refused_file(block, tmp_path))] == []


@pytest.mark.parametrize("document", NOW)
def test_settings_in_documents_have_values_that_can_be(document: str) -> None:
    found = settings_in_line(text_of(document))
    assert [f"{snippet}: {why}" for snippet, name, value in found if (why := refused_value(name, value))] == []


@pytest.mark.parametrize("document", [*NOW, "systemd/fstab.example"])
def test_lines_of_fstab_in_documents_mount(document: str) -> None:
    assert [why for line in OF_FSTAB.findall(text_of(document)) if (why := refused_line(*line))] == []


def test_commands_are_found_in_documents() -> None:
    text = "    luxfuse mount s3://b /mnt \\\n      --read-only  # so\n`luxfuse pin PATH...`, `luxfuse persist`"
    assert commands(text) == [["mount", "s3://b", "/mnt", "--read-only"], ["persist"]]
    assert len([words for name in DOCUMENTS for words in commands(text_of(name))]) > 60


def test_what_is_not_understood_is_found() -> None:
    assert understood(["mount", "s3://b", "/mnt", "--such"]) == "mount s3://b /mnt --such: No such option: --such"
    assert understood(["mounted"])
    assert understood(["status", "/mnt", "more"])
    for command in (["mount", "s3://b", "/mnt"], ["attach", "s3://b", "/mnt/a"], ["doctor", "s3://b"],
                    ["index", "export", "s3://b", "file"]):  # fmt: skip
        assert understood(command) == ""
        assert understood([*command, "--endpoint-url", "http://127.0.0.1:1", "-o", "request_timeout=1m"]) == ""
        assert understood([*command, "--request-timeout", "soon"])
        assert understood([*command, "-o", "request_timeout=soon"])
    assert understood(["attach", "s3://b", "/mnt/a", "-o", "keeper=off"])
    assert understood(["mount", "s3://b", "/mnt", "--cache-dir", "/c,tier=memm"])
    assert understood(["mount", "s3://b", "/mnt", "--join", "node1"]), "settings are looked at together"


def test_files_and_settings_are_found_in_documents(tmp_path: Path) -> None:
    blocks = [block for name in NOW for block in file_blocks(text_of(name))]
    assert len(blocks) >= 3
    assert any("[storage_options]" in block for block in blocks)
    assert sum("[[path]]" in block for block in blocks) >= 2
    assert refused_file('[[path]]\npattern = "a/**"\ntier = "memm"\n', tmp_path)
    assert refused_file('write_mod = "through"\n', tmp_path)
    text = (
        '`--write-mode nonsense`, `-o cache_size=5GiB`, `read_mode = "no-cache"`, `keeper=maybe` `--driver D…` `--device`'
    )
    assert [found[1:] for found in settings_in_line(text)] == [
        ("write_mode", "nonsense"), ("cache_size", "5GiB"), ("read_mode", "no-cache"), ("keeper", "maybe")
    ]  # fmt: skip
    assert [bool(refused_value(*found[1:])) for found in settings_in_line(text)] == [True, False, False, True]
    assert len([found for name in NOW for found in settings_in_line(text_of(name))]) > 30


def test_lines_of_fstab_are_found() -> None:
    assert OF_FSTAB.findall("    s3://b  /mnt/b  luxfuse  ro,x-y  0  0\n") == [("s3://b", "/mnt/b", "luxfuse", "ro,x-y")]
    assert refused_line("s3://b", "/mnt", "luxfuse", "ro")
    assert refused_line("s3://b", "/mnt", "fuse.luxfuse", "_netdev,write_mode=such")
    assert refused_line("s3://b", "/mnt", "fuse.luxfuse", "_netdev,write_mode=through") == ""
    assert OF_FSTAB.findall(text_of("systemd/fstab.example"))
