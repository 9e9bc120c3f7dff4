"""Programs that are run for credentials (``credential_process``): botocore waits for one without end, so each gets a limit.

One that hangs, as its own connection died in an outage, would else keep all requests waiting, and no other would be run.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from typing import Any

from luxfuse.errors import StoreUnavailable

LIMIT_S = 120.0
"""Longer than any request waits: what takes long comes late, and is used then."""


class Program(subprocess.Popen[bytes]):
    """A process that ends in time, with those that it has started."""

    def __init__(self, command: Sequence[str], **streams: Any) -> None:
        super().__init__(command, start_new_session=True, **streams)

    def communicate(self, input: bytes | None = None, timeout: float | None = None) -> tuple[bytes, bytes]:
        """Return what it writes. Raises `StoreUnavailable` if it takes too long."""
        try:
            return super().communicate(input, LIMIT_S if timeout is None else timeout)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):  # what holds its pipes may be in another session
                os.killpg(self.pid, signal.SIGKILL)
            self.wait()
            for stream in (self.stdout, self.stderr):
                if stream is not None:
                    stream.close()
            raise StoreUnavailable(f"the program that gives credentials took longer than {LIMIT_S:g} s") from None


def bound_programs() -> None:
    """Have botocore run programs so, from now on."""
    from botocore import credentials as aws  # type: ignore[import-untyped]

    known: Any = aws.ProcessProvider
    if getattr(known, "ends_in_time", False):
        return

    class Provider(known):  # type: ignore[misc]
        ends_in_time = True

        def __init__(self, profile_name: Any, load_config: Any, popen: Any = Program) -> None:
            super().__init__(profile_name, load_config, popen)

    aws.ProcessProvider = Provider
