"""Notes what slow requests wait for, by looking from time to time where their tasks stand; others are not touched."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import islice
from types import FrameType
from typing import Any

import trio

from luxfuse.core.whereabouts import waits_for
from luxfuse.fuse.operations import Operations

LEAST_S = 0.02
MOST = 100
"""So many requests are looked at, at once: it takes some 10 us for each."""


async def keep_noting(operations: Operations, slow_s: float) -> None:
    """Note it until cancelled, of requests that have taken half of ``slow_s`` or more, four times in that time."""
    every_s = max(LEAST_S, slow_s / 4)
    while True:
        await trio.sleep(every_s)
        note(operations, time.perf_counter() - slow_s / 2, every_s)


def note(operations: Operations, before_s: float, counts_s: float) -> None:
    """Note what requests wait for that began before a moment: where their tasks stand counts for so long."""
    slow = (each for each in operations.running if each.began_s <= before_s and each.task is not None)
    for request in islice(slow, MOST):
        place = waits_for(frame.f_globals.get("__name__", "") for frame in reversed(list(frames_of(request.call))))
        places = request.places = request.places or {}
        places[place] = places.get(place, 0.0) + counts_s


def frames_of(call: Any) -> Iterator[FrameType]:
    """Yield the frames of a coroutine, and of what it awaits, the outermost first.

    Those of its task begin with frames of pyfuse3, compiled ones, at which trio's own function gives up.
    """
    while call is not None:
        frame = getattr(call, "cr_frame", None) or getattr(call, "gi_frame", None)
        if frame is None:
            return
        yield frame
        if getattr(call, "cr_running", False) or getattr(call, "gi_running", False):
            return  # what it awaits must not be looked at while another thread runs it
        call = getattr(call, "cr_await", None) or getattr(call, "gi_yieldfrom", None)
