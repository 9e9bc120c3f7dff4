"""``mount.luxfuse SOURCE MOUNTPOINT -o ...``: the helper that mount(8) runs for lines of type fuse.luxfuse.

mount(8) looks for /sbin/mount.fuse.luxfuse, and failing that runs mount.fuse, which runs ``luxfuse SOURCE
MOUNTPOINT -o ...``; `luxfuse.cli.main` sends that here as well.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from luxfuse.cli.errors import UsageError
from luxfuse.core.printing import printable


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; write: mount.luxfuse SOURCE MOUNTPOINT [-sfnv] [-o OPTIONS]")


def run(arguments: Sequence[str]) -> int:
    """Mount as the arguments say and return the exit code. Raises UsageError, LuxError and CommandFailed."""
    from luxfuse.cli import mount
    from luxfuse.cli.options import parse_options

    parser = _Parser(prog="mount.luxfuse", description="Mount a bucket; called by mount(8).")
    parser.add_argument("source")
    parser.add_argument("mountpoint")
    parser.add_argument("-o", dest="options", action="append", default=[], help="settings, separated by commas")
    parser.add_argument("-s", dest="sloppy", action="store_true", help="ignore unknown options")
    parser.add_argument("-f", dest="fake", action="store_true", help="check the arguments, mount nothing")
    parser.add_argument("-n", action="store_true", help="accepted: /etc/mtab is not written anyway")
    parser.add_argument("-v", dest="verbose", action="store_true", help="say what was mounted")
    parser.add_argument("-t", dest="fstype", help="accepted: the type that mount(8) was given")
    try:
        given = parser.parse_args(arguments)
    except SystemExit as exc:  # after --help
        return int(exc.code or 0)
    options = parse_options(given.options, fstab=True, sloppy=given.sloppy)
    if not given.fake:
        code = mount.start({"source": given.source, "mountpoint": given.mountpoint}, options)
        if code != 0:
            return code
    if given.verbose:
        print(printable(f"{given.source} mounted on {given.mountpoint}"))
    return 0


def main() -> int:
    """Entry point of ``mount.luxfuse``."""
    from luxfuse.cli.main import guard

    return guard(lambda: run(sys.argv[1:]))
