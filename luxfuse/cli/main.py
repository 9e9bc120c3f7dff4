"""The ``luxfuse`` command. Imports little, so that it starts fast: no trio, no FUSE, no store driver, no other command."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Sequence

from luxfuse.cli.errors import FAILED, USAGE, CommandFailed, UsageError, say, say_unexpected
from luxfuse.errors import ConfigError, LuxError


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code; errors are raised."""
    if arguments and "://" in arguments[0]:
        from luxfuse.cli import fstab

        return fstab.run(arguments)
    if len(arguments) > 1 and arguments[0] == "load" and not any(each.startswith("-") for each in arguments):
        # Only paths: importing what understands options would take longer than many a load.
        from luxfuse.cli.loading import load_and_wait

        return load_and_wait(arguments[1:])
    from luxfuse.cli import command_line

    return command_line.run(arguments)


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
    except KeyboardInterrupt:
        say("interrupted")
    except BrokenPipeError:
        _give_up_output()  # its reader has gone
    except Exception as exc:  # noqa: BLE001 (the last resort, which reports it)
        code = FAILED  # the command may have been done, and its output not
        if isinstance(exc, OSError) and exc.errno == errno.ENOSPC and exc.filename is None:
            say(f"the output cannot be written: {exc.strerror}")
            _give_up_output()
        else:
            say_unexpected(exc)
    return code


def _give_up_output() -> None:
    """Keep the interpreter from failing once more on output that cannot be written, at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def main() -> int:
    """Entry point of ``luxfuse``."""
    return guard(lambda: run(sys.argv[1:]))


if __name__ == "__main__":
    sys.exit(main())
