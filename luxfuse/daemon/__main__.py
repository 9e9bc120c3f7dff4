"""A daemon as a process of its own: settings as JSON on stdin, lines of JSON to the descriptor of --ready-fd.

--device-fd, --estate-fd and --held are what its keeper holds, if it has one, and listens at --keeper-fd (`luxfuse.keeper`).
With --try nothing is served: it says whether it could go on with that estate, and is of the luxfuse in the directory of
--package, which the environment may lead astray. Keepers and daemons of other versions give these arguments, so they must
go on to be understood.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import sys
from collections.abc import Sequence


def main() -> int:
    """Run until unmounted; returns the exit code."""
    parser = argparse.ArgumentParser(prog="luxfuse.daemon")
    parser.add_argument("--ready-fd", type=int)
    parser.add_argument("--try", dest="attempt", action="store_true")
    parser.add_argument("--package", default="")
    parser.add_argument("--device-fd", type=int)
    parser.add_argument("--estate-fd", type=int)
    parser.add_argument("--keeper-fd", type=int)
    parser.add_argument("--held", action="append", default=[])
    arguments = parser.parse_args()
    ready_fd = arguments.ready_fd
    gc.set_threshold(0)  # modules stay: looking for garbage among them takes a sixth of the start; `run` sets it anew

    if arguments.attempt:
        from luxfuse.daemon import trial

        return trial.report(arguments.estate_fd, arguments.package)

    import msgspec

    from luxfuse import lasting
    from luxfuse.config import Settings
    from luxfuse.daemon.main import run
    from luxfuse.keeper import saying

    settings = msgspec.json.decode(sys.stdin.buffer.read(), type=Settings)

    def ready(error: str | None, notes: Sequence[str] = ()) -> None:
        if settings.foreground:
            for line in [*notes, *([error] if error else [])]:
                print(f"luxfuse: {' '.join(line.split())}", file=sys.stderr, flush=True)
        with contextlib.suppress(BrokenPipeError):  # of a successor nobody waits
            os.write(ready_fd, msgspec.json.encode({"error": error, "notes": list(notes)}) + b"\n")
        os.close(ready_fd)

    def waiting(why: str) -> None:
        with contextlib.suppress(BrokenPipeError):  # nobody listens any more, which ready will find out
            os.write(ready_fd, msgspec.json.encode({"waiting": why}) + b"\n")

    held = None if arguments.device_fd is None else (arguments.device_fd, arguments.estate_fd)
    if arguments.keeper_fd is not None:
        saying.connect(arguments.keeper_fd)
        lasting.inherit(arguments.held)
    return run(settings, ready, waiting, held)


if __name__ == "__main__":
    sys.exit(main())
