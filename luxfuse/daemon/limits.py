"""The limits of the process: how many files it may have open, and how much memory malloc keeps that nobody uses.

malloc gives each thread that meets another in it an *arena* of its own, up to eight for each core, and an arena keeps what
is freed in the middle of it. Buffers of many sizes come and go in dozens of threads here, so what is kept creeps up for
hours: measured, in a mixed load on two cores, from 21 to 53 MiB in nine minutes, while 20 MiB were in use. So there
are few arenas, as many on a machine with 64 cores, and what lies idle in them goes back now and then; so does what drivers
keep for the bodies of answers.
"""

from __future__ import annotations

import contextlib
import ctypes
import resource

import trio

from luxfuse.understore.factory import release_memory

FILES_OPEN = 1 << 20
ARENAS = 8
_M_ARENA_MAX = -8
"""<malloc.h>"""
TRIM_EVERY_S = 30.0


def raise_file_limit() -> None:
    """Files in passthrough and files that are not in the under-store yet stay open."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < FILES_OPEN:
        with contextlib.suppress(ValueError, OSError):  # only root may
            resource.setrlimit(resource.RLIMIT_NOFILE, (FILES_OPEN, FILES_OPEN))
            return
    wanted = FILES_OPEN if hard == resource.RLIM_INFINITY else min(hard, FILES_OPEN)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def limit_arenas() -> None:
    """Before there are threads. Of no effect where the C library is not glibc."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, ARENAS)


async def give_memory_back() -> None:
    """Return what is kept for later to the machine every now and then, in a thread, until cancelled."""
    while True:
        await trio.sleep(TRIM_EVERY_S)
        await trio.to_thread.run_sync(_give_back)


def _give_back() -> None:
    release_memory()
    with contextlib.suppress(AttributeError):  # no glibc
        ctypes.CDLL(None).malloc_trim(0)
