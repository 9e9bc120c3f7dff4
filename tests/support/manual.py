"""The manual page, made of the help of all commands: ``python -m tests.support.manual`` writes it anew."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import typer

from luxfuse import __version__
from luxfuse.cli import command_line

PAGE = Path(__file__).parents[2] / "luxfuse/docs/luxfuse.1"
_BEFORE = """\
.SH DESCRIPTION
luxfuse mounts S3, Azure Blob, Google Cloud Storage, HTTP, SFTP, WebDAV and other stores as a POSIX tree, for programs that
work on plain file paths. It keeps what is read and written in a cache on a local disk. A daemon serves each mount; the
other commands talk to it.
.PP
\\fBluxfuse \\-\\-install\\-completion\\fR lets the shell complete commands and options.
\\fBluxfuse \\-\\-version\\fR prints the version, and \\fBluxfuse\\fR \\fICOMMAND\\fR \\fB\\-\\-help\\fR what is below.
"""
_AFTER = """\
.SH EXIT STATUS
0: done. 1: failed. 2: the command line is not understood. Every error is one line on stderr.
.SH ENVIRONMENT
Each setting of \\fBluxfuse mount\\fR can be given as a variable, as LUXFUSE_WRITE_MODE for \\-\\-write\\-mode.
.TP
LUXFUSE_STATE_DIR
Where mounts keep sockets, logs and indexes, instead of /var/lib/luxfuse, or ~/.local/state/luxfuse for a plain user.
.PP
Credentials are found where the store's own tools find them: AWS_* variables and ~/.aws, AZURE_STORAGE_*,
GOOGLE_APPLICATION_CREDENTIALS, the machine's role.
.SH FILES
.TP
/var/cache/luxfuse, ~/.cache/luxfuse
The cache, unless \\-\\-cache\\-dir names another place.
.TP
/var/lib/luxfuse/mounts/*/daemon.log
The log of each mount.
.TP
/etc/fstab
.nf
s3://bucket /mnt/bucket fuse.luxfuse _netdev,nofail,write_mode=async-through 0 0
.fi
.SH SEE ALSO
.BR mount (8),
.BR fusermount3 (1),
.BR fuse (4)
"""


_MANY = 10


def page() -> str:
    """Return the page as it is to be."""
    group = typer.main.get_command(command_line.all_commands())
    parts = [
        f'.TH LUXFUSE 1 "" "luxfuse {__version__}" "User Commands"\n',
        ".SH NAME\n",
        f"luxfuse \\- {_text(group.help)}\n",
    ]
    parts += [".SH SYNOPSIS\n.B luxfuse\n", "\\fICOMMAND\\fR [\\fIARGUMENT\\fR]...\n", _BEFORE, ".SH COMMANDS\n"]
    of_mount = _records(group.commands["mount"])
    for path, command in _commands(group, ()):
        parts += _command(path, command, [] if path == ("mount",) else of_mount)
    return "".join(parts) + _AFTER


def _commands(group: Any, path: tuple[str, ...]) -> list[tuple[tuple[str, ...], Any]]:
    """Return all commands, those of groups by themselves."""
    found = []
    for name, command in group.commands.items():
        inner = (*path, name)
        found += _commands(command, inner) if hasattr(command, "commands") else [(inner, command)]
    return found


def _command(path: tuple[str, ...], command: Any, of_mount: list[tuple[str, str]]) -> list[str]:
    records = _records(command)
    arguments = [_argument(parameter) for parameter in command.params if _is_argument(parameter)]
    words = [f"luxfuse {' '.join(path)}", *(["[OPTION]..."] if len(records) > len(arguments) else []), *arguments]
    paragraphs = [_text(part) for part in re.split(r"\n\s*\n", inspect.cleandoc(command.help or ""))]
    shared = [record for record in records if record in of_mount]
    shown = [record for record in records if record not in shared] if len(shared) > _MANY else records
    lines = [f".TP\n.B {_text(name)}\n{_text(help_text)}\n" for name, help_text in shown]
    if len(shared) > _MANY:
        names = ", ".join(_text(name.split()[0].rstrip(",")) for name, _ in shared)
        lines.append(f".PP\nOf the options of \\fBluxfuse mount\\fR: {names}\n")
    return [f'.SS "{_text(" ".join(words))}"\n', "\n.PP\n".join(paragraphs) + "\n", *lines]


def _argument(parameter: Any) -> str:
    name = (parameter.metavar or parameter.name.upper()) + ("..." if parameter.nargs == -1 else "")
    return name if parameter.required or name.startswith("[") else f"[{name}]"


def _records(command: Any) -> list[tuple[str, str]]:
    """Return the parameters of a command as its help shows them: how they are written, and what they mean."""
    found = []
    for parameter in command.params:
        record = parameter.get_help_record(_context(command))
        if record is not None and not getattr(parameter, "hidden", False):
            name = _argument(parameter).strip("[]").removesuffix("...") if _is_argument(parameter) else record[0]
            found.append((name, record[1] or ""))
    return found


def _context(command: Any) -> Any:
    return command.make_context(command.name, [], resilient_parsing=True)


def _is_argument(parameter: Any) -> bool:
    return bool(parameter.param_type_name == "argument")


def _text(text: str | None) -> str:
    """Return text on one line, as roff wants it."""
    line = " ".join((text or "").split()).replace("\\", "\\e").replace("-", "\\-")
    return "\\&" + line if line.startswith((".", "'")) else line


if __name__ == "__main__":
    PAGE.write_text(page())
