"""A node with the key of the cluster that answers requests for pages wrongly, as a program for a host of its own.

``python -m tests.support.hostile_node KEY HOST SEED SOURCE HOW``: it joins, says that its cache is so large that nearly
everything has its home there, and prints a line for each request for pages. At the end of its input it says good-bye.
"""

from __future__ import annotations

import random
import secrets
import sys
import time

import trio

from luxfuse.core.members import NodeInfo
from luxfuse.core.swim.config import SwimConfig
from luxfuse.core.swim.swim import Swim
from luxfuse.peers.client import Client, checksum
from luxfuse.peers.credentials import Credentials
from luxfuse.peers.join import Seeds
from luxfuse.peers.listening import listen
from luxfuse.peers.membership import PUSH_PULL_PATH, Membership
from luxfuse.peers.provider import Provider
from luxfuse.peers.requests import Request
from luxfuse.peers.server import Server
from luxfuse.peers.wire import LENGTH, META, Outcome, PageAnswer, decode_request, encoded
from luxfuse.types import PAGE_BYTES

WEIGHT = 1_000_000_000
CHUNK = b"x" * 1024
DRIP_S = 0.2


class HostileServer(Server):
    """Answers requests for pages in one of the ways of `WAYS`, everything else as it should be."""

    how = ""

    async def _pages(self, request: Request, provider: Provider) -> None:
        _, lengths = decode_request(await request.read_body())
        print("asked", flush=True)
        send = request.stream.send
        if self.how == "endless-head":
            await send(b"HTTP/1.1 200 \r\n")
            while True:
                await send(b"x-header: " + CHUNK + b"\r\n")
        body = secrets.token_bytes(sum(lengths))
        answers, start = [], 0
        for length in lengths:
            pages = [body[i : min(i + PAGE_BYTES, start + length)] for i in range(start, start + length, PAGE_BYTES)]
            answers.append(PageAnswer(Outcome.OK, tuple(checksum(page) ^ 1 for page in pages)))
            start += length
        meta = encoded(answers)
        headers = [(LENGTH, b"%d" % (len(meta) + len(body))), (META, b"%d" % len(meta))]
        await send(request.head_of_answer(200, headers, meta) + meta)
        if self.how == "slow":
            for byte in body:
                await send(bytes([byte]))
                await trio.sleep(DRIP_S)
        await send(body)
        while self.how == "endless-body":
            await send(CHUNK)
        request.answered = True


WAYS = ("mismatching", "slow", "endless-head", "endless-body")


class Nothing:
    """Provides nothing: `HostileServer` does not ask it."""


async def run(key: str, host: str, seed: str, source: str, how: str) -> None:
    """Take part until the input ends."""
    assert how in WAYS
    name, now_s = secrets.token_hex(8), trio.current_time()
    keys = Credentials.read(key, name=name, stamp_ns=time.time_ns())
    listening = listen(f"{host}:0")
    info = NodeInfo(name, listening.host, listening.port, weight=WEIGHT, sources=(bytes.fromhex(source),))
    rng = random.Random()
    swim = Swim(info, incarnation=1, config=SwimConfig(), rng=rng, now_s=now_s)
    client = Client(keys, tls=True)
    seeds = Seeds([seed], family=listening.family)
    membership = Membership(swim, keys, client, listening.datagrams, info=info, seeds=seeds, rng=rng)
    server = HostileServer(listening.connections, keys, tls=True, provider=Nothing())
    server.how = how
    server.handle(PUSH_PULL_PATH, membership.handle_push_pull)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run)
        await nursery.start(membership.run)
        print(name, flush=True)
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
        await membership.leave()
        nursery.cancel_scope.cancel()
    client.close()


if __name__ == "__main__":
    trio.run(run, *sys.argv[1:])
