"""How commands fail: one line on stderr and an exit code, never a traceback."""

from __future__ import annotations

import sys
import time

from luxfuse.configuration.roots import state_root
from luxfuse.core.printing import printable
from luxfuse.errors import ConfigError

DONE, FAILED, USAGE = 0, 1, 2


class CommandFailed(Exception):
    """A command could not do its work; the text is one line saying what, where and what to do."""


class UsageError(Exception):
    """The command line cannot be understood; the text is one line."""


def say(text: str) -> None:
    """Print one line on stderr, whatever ``text`` holds."""
    print(f"luxfuse: {printable(' '.join(text.split()))}", file=sys.stderr)


def say_unexpected(exc: BaseException) -> None:
    """Report a bug in one line and keep its traceback in the state directory, if that can be written."""
    import traceback

    try:
        log = state_root() / "command-errors.log"
        log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8", errors="backslashreplace") as f:
            log.chmod(0o600)
            f.write(time.strftime("%Y-%m-%dT%H:%M:%S%z\n"))
            traceback.print_exception(exc, file=f)
        where = f"details in {log}"
    except (OSError, ValueError, ConfigError) as failure:
        where = f"details could not be written: {failure}"
    say(f"unexpected {type(exc).__name__}: {exc}: {where}; please report this")
