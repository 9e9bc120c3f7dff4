"""The ``luxfuse`` command. Imports little, so that it starts fast: no trio, no FUSE, no store driver."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from luxfuse import __version__
from luxfuse.cli import cached, cluster, fstab, report, retention
from luxfuse.cli.attach import attach, detach
from luxfuse.cli.check import check
from luxfuse.cli.errors import DONE, FAILED, USAGE, CommandFailed, UsageError, say, say_unexpected
from luxfuse.cli.load import load
from luxfuse.cli.mount import mount
from luxfuse.cli.stats import stats
from luxfuse.cli.unmount import unmount
from luxfuse.config import state_root
from luxfuse.errors import ConfigError, LuxError

app = typer.Typer(
    name="luxfuse",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("mount")(mount)
app.command("unmount")(unmount)
app.command("status")(report.status)
app.command("list")(report.list_)
app.command("metrics")(report.metrics)
app.command("refresh")(report.refresh)
app.command("reload")(report.reload)
app.command("persist")(report.persist)
app.command("pin")(retention.pin)
app.command("unpin")(retention.unpin)
app.command("ttl")(retention.ttl)
app.command("attach")(attach)
app.command("detach")(detach)
app.command("load")(load)
app.command("free")(cached.free)
app.command("locate")(cached.locate)
app.command("check")(check)
app.command("stats")(stats)
app.add_typer(cluster.app, name="cluster")

# typer carries its own copy of click; this is its error for a command line that cannot be understood.
_ClickUsageError: type[Any] = typer.BadParameter.__mro__[1]


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"luxfuse {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """A cloud bucket as a local directory, at local-disk speed."""


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code; errors are raised."""
    if arguments and "://" in arguments[0]:
        return fstab.run(arguments)
    result = app(args=list(arguments), prog_name="luxfuse", standalone_mode=False)
    return result if isinstance(result, int) else DONE


def guard(command: Callable[[], int]) -> int:
    """Run ``command`` and turn its exceptions into one line on stderr and an exit code."""
    code = FAILED
    try:
        code = command()
        sys.stdout.flush()
    except (UsageError, ConfigError) as exc:
        code = USAGE
        say(str(exc))
    except (CommandFailed, LuxError) as exc:
        say(str(exc))
    except _ClickUsageError as exc:
        code = USAGE
        _say_usage(exc)
    except typer.Exit as exc:
        code = exc.exit_code
    except (typer.Abort, KeyboardInterrupt):
        say("interrupted")
    except BrokenPipeError:
        # The reader of our output has gone; keep the interpreter from failing on it once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    except Exception as exc:  # noqa: BLE001 (the last resort, which reports it)
        say_unexpected(exc, state_root())
    return code


def _say_usage(exc: Any) -> None:
    text = exc.format_message()
    if type(exc).__name__ == "NoArgsIsHelpError":
        print(text, file=sys.stderr)
        return
    command = exc.ctx.command_path if exc.ctx is not None else "luxfuse"
    say(f"{text.rstrip('.')}; see: {command} --help")


def main() -> int:
    """Entry point of ``luxfuse``."""
    return guard(lambda: run(sys.argv[1:]))


if __name__ == "__main__":
    sys.exit(main())
