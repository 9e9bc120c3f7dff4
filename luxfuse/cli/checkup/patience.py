"""Checks of disks that may not answer: a process that waits for a dead one cannot be interrupted."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator
from contextlib import closing

from luxfuse.cli.checkup.findings import Finding, fail

PATIENCE_S = 60.0
"""Without a finding. The slowest check of a disk that works takes a third of it."""
TO_CLEAN_UP_S = 5.0


def patiently(
    checks: Generator[Finding, None, None], name: str, advice: str, patience_s: float = PATIENCE_S
) -> Iterator[Finding]:
    """Yield what a thread finds; one that finds nothing for ``patience_s`` is a finding, too, and left to itself."""
    found: queue.SimpleQueue[Finding | BaseException | None] = queue.SimpleQueue()
    given_up = threading.Event()

    def look() -> None:
        try:
            with closing(checks):  # it has made files
                for finding in checks:
                    found.put(finding)
                    if given_up.is_set():
                        break
            found.put(None)
        except BaseException as exc:  # noqa: BLE001 (raised again by the one that waits)
            found.put(exc)

    thread = threading.Thread(target=look, name=name, daemon=True)
    thread.start()
    try:
        while (finding := found.get(timeout=patience_s)) is not None:
            if isinstance(finding, BaseException):
                raise finding
            yield finding
    except queue.Empty:
        yield fail(name, f"no answer within {patience_s:g} s", advice)
    finally:
        given_up.set()
        thread.join(TO_CLEAN_UP_S)
