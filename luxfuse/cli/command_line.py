"""Understands a command line and runs the one command that it asks for; others are not imported."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from luxfuse import __version__
from luxfuse.cli.errors import DONE, USAGE, UsageError, say
from luxfuse.core.units import shown

COMMANDS = {
    "mount": "mount.mount",
    "unmount": "unmount.unmount",
    "upgrade": "upgrade.upgrade",
    "status": "report.status",
    "list": "report.list_",
    "metrics": "report.metrics",
    "refresh": "report.refresh",
    "reload": "report.reload",
    "persist": "report.persist",
    "pin": "retention.pin",
    "unpin": "retention.unpin",
    "ttl": "retention.ttl",
    "replicate": "retention.replicate",
    "attach": "attach.attach",
    "detach": "attach.detach",
    "load": "load.load",
    "free": "cached.free",
    "locate": "cached.locate",
    "check": "check.check",
    "index": "index.app",
    "stats": "stats.stats",
    "trace": "trace.trace",
    "profile": "profile.profile",
    "cluster": "cluster.app",
    "csi": "csi.app",
    "doctor": "doctor.doctor",
}
"""By name: where it is, below this package."""

# typer carries its own copy of click; this is its error for a command line that cannot be understood.
_COMPLETE = "_LUXFUSE_COMPLETE"
"""The variable with which the scripts of typer for shells ask for completions."""

_ALONE = ("--version", "--install-completion", "--show-completion")

_ClickUsageError: type[Any] = typer.BadParameter.__mro__[1]


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"luxfuse {__version__}")
        raise typer.Exit


def _root(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """A cloud bucket as a local directory, at local-disk speed."""


def _app(arguments: Sequence[str]) -> typer.Typer:
    """Return the command line's interpreter, with the command that is asked for, or all where that is not clear."""
    completing = not arguments or arguments[0].startswith("-")
    if completing:
        from luxfuse.cli.completion import mend_zsh

        mend_zsh()
    app = typer.Typer(
        name="luxfuse",
        add_completion=completing,
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    asked = arguments[0] if arguments else _completed()
    for name in [asked] if asked in COMMANDS else COMMANDS:
        module, _, function = COMMANDS[name].partition(".")
        command = getattr(importlib.import_module(f"luxfuse.cli.{module}"), function)
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name)
        else:
            app.command(name)(command)
    return app


def all_commands() -> typer.Typer:
    """Return an interpreter that knows all commands, for those who describe them."""
    return _app([])


def _completed() -> str:
    """Return the command whose arguments a shell wants completed; "" where that is the command itself, or nothing."""
    words = os.environ.get("COMP_WORDS", os.environ.get("_TYPER_COMPLETE_ARGS", "")).split()
    return words[1] if len(words) > 1 and _COMPLETE in os.environ else ""


def _check_alone(arguments: Sequence[str]) -> None:
    """Raise `UsageError` for words beside an option that does all that it does before those are looked at."""
    if len(arguments) > 1 and arguments[0] in _ALONE and not {"-h", "--help"}.intersection(arguments):
        raise UsageError(f"{arguments[0]}: is written alone, without {shown(arguments[1])}; see: luxfuse --help")


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code; errors are raised, but those of the command line's form told."""
    _check_alone(arguments)
    try:
        result = _app(arguments)(args=list(arguments), prog_name="luxfuse", standalone_mode=False)
    except _ClickUsageError as exc:
        _say_usage(exc)
        return USAGE
    except typer.Exit as exc:
        return exc.exit_code
    except typer.Abort:
        raise KeyboardInterrupt from None
    return result if isinstance(result, int) else DONE


def _say_usage(exc: Any) -> None:
    text = exc.format_message()
    if type(exc).__name__ == "NoArgsIsHelpError":
        print(text, file=sys.stderr)
        return
    command = exc.ctx.command_path if exc.ctx is not None else "luxfuse"
    say(f"{text.rstrip('.')}; see: {command} --help")
