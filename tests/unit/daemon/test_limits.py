"""What malloc keeps, in a process of its own: arenas are for ever."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from luxfuse.daemon.limits import ARENAS

USES = """
import ctypes, random, sys, tempfile, threading
import trio
from luxfuse.daemon import limits

def take_and_free(seed):
    # Of all sizes, so that what stays is in the way of what went.
    rng, held = random.Random(seed), []
    together.wait()
    for _ in range(400):
        held.append(ctypes.create_string_buffer(rng.randrange(600, 60_000)))
        if len(held) > 200:
            held.pop(rng.randrange(200))
    kept.append(held[::20])

def resident():
    return int(open("/proc/self/status").read().partition("RssAnon:")[2].split()[0])

def arenas():
    libc = ctypes.CDLL(None)
    libc.fdopen.restype = ctypes.c_void_p
    with tempfile.TemporaryFile() as file:
        stream = ctypes.c_void_p(libc.fdopen(file.fileno(), b"w"))
        libc.malloc_info(0, stream)
        libc.fflush(stream)
        file.seek(0)
        return file.read().count(b"<heap nr")

async def give_back():
    async with trio.open_nursery() as nursery:
        nursery.start_soon(limits.give_memory_back)
        with trio.move_on_after(10):
            while resident() >= most * 0.9:
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()

kept, together = [], threading.Barrier(24)
limits.limit_arenas()
limits.TRIM_EVERY_S = 0.01
threads = [threading.Thread(target=take_and_free, args=[seed]) for seed in range(24)]
for thread in threads: thread.start()
for thread in threads: thread.join()
most = resident()
trio.run(give_back)
print(arenas(), resident() < most * 0.9)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="this is not glibc")
def test_arenas_are_few_and_what_is_idle_in_them_goes_back() -> None:
    done = subprocess.run([sys.executable, "-c", USES], capture_output=True, text=True, timeout=60, check=True)
    arenas, went_back = done.stdout.split()
    assert int(arenas) <= ARENAS
    assert went_back == "True"
