"""The directory of locations: tells the other nodes what is cached here, and learns from them what they have.

Our holdings come in by `held` and `dropped`; a moment later they are written to the table, and real changes go
to the log. The others hear where our log ends (`Members.broadcast`) and pull; so do we. The entries of others are a
hint: a wrong one costs a refusal. While a node is dead its entries are ignored; later they are forgotten.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

import trio

from luxfuse.cluster.exchange import from_log, from_table, question, take
from luxfuse.cluster.members import Members
from luxfuse.core.holding_messages import HEAD, Since, decode_answer, decode_head, decode_request, encode, encode_head
from luxfuse.core.holdings import MOST_RANGES, Follower, Holdings, HoldingsLog, Mark, entry_of
from luxfuse.core.members import NodeInfo
from luxfuse.core.pulls import Pulls, head_interval_s
from luxfuse.errors import LuxError, PeerRefused, Refusal
from luxfuse.index.locations import WRITE_ENTRIES, LocationTable
from luxfuse.peers.client import Rpc

log = logging.getLogger(__name__)

PATH = "/v1/locations"
COMMIT_S = 0.2
"""So long what changes here waits for more."""
RETRY_S = 5.0
PENDING_BOUND = 100_000
"""Changes in memory. Further ones are lost, and `Locations.doubtful` says so."""
TICK_S = 0.1
MOST_PULLS = 4
"""Nodes that are asked at a time."""
MOST_QUESTIONS = 16
"""Of one pull: an answer is 1 MiB at most, and a node can hold millions."""
MOST_ANSWERS = 8
"""Others that are answered at a time; further ones are to ask again."""
ANSWER_S = 10.0
FORGET_S = 600.0
"""The entries of a node that is not there any more are forgotten after this."""
TIDY_S = 60.0
SWEEP_PAUSE_S = 0.01
SLICE = 2_000
"""Entries that `reconcile` compares at a time."""
LOGGED_S = 60.0


@dataclass(frozen=True, slots=True)
class LocationStatistics:
    """``own`` and ``others``: entries now. ``left_out``: entries of others for which there was no room. ``lost``: changes
    of our own that nobody is told. Counters run from the start on.
    """

    own: int
    others: int
    left_out: int
    lost: int
    pulls: int
    failures: int
    answers: int
    file_bytes: int


class Locations:
    """The holdings of the nodes of a cluster, as far as this one knows them."""

    def __init__(self, table: LocationTable, rpc: Rpc, members: Members, log_id: bytes) -> None:
        """``log_id``: 8 random bytes, new ones for each start of the daemon. Takes the table over."""
        self._table = table
        self._rpc = rpc
        self._members = members
        self._holdings = Holdings(HoldingsLog(log_id), table.sums())
        self.doubtful = not table.clean
        """Whether our own entries may be wrong: `reconcile` sets them right."""
        self._pending: dict[bytes, bool] = {}
        self._touched: set[bytes] | None = None
        """While `reconcile` runs: the entries that have changed since."""
        self._changed = trio.Event()
        self._writing = trio.Lock()
        self._news = trio.Event()
        self._news.set()  # the log is a new one
        now_s = trio.current_time()
        self._pulls = Pulls(now_s)
        self._followers: dict[str, Follower] = {}
        self._alive: dict[str, NodeInfo] = {}
        self._gone = dict.fromkeys(table.names(), now_s)
        """When nodes were seen last of which something is known."""
        self._doubted: set[str] = set()
        """Nodes that came back, and were not asked since."""
        self._pulling: set[str] = set()
        self._answering = 0
        self._counts = {"lost": 0, "pulls": 0, "failures": 0, "answers": 0}
        self._logged_s = float("-inf")

    # -- for the event loop

    def holders(self, oid: bytes, range_number: int) -> list[str]:
        """Return the names of the nodes that (may) hold a range of an object and can be asked for it."""
        if range_number >= MOST_RANGES:
            return []
        names = self._table.holders(entry_of(oid, range_number))
        return [name for name in names if name in self._alive and name not in self._doubted]

    def held(self, oid: bytes, range_number: int) -> None:
        """A range is all here from now on."""
        self._change(oid, range_number, True)

    def dropped(self, oid: bytes, range_number: int) -> None:
        """A range is not all here any more."""
        self._change(oid, range_number, False)

    def transition(self, oid: bytes, range_number: int, held: bool) -> None:
        """A range is held, or not any more; for `Objects.on_held`."""
        self._change(oid, range_number, held)

    def _change(self, oid: bytes, range_number: int, held: bool) -> None:
        if range_number >= MOST_RANGES:
            return
        entry = entry_of(oid, range_number)
        if len(self._pending) >= PENDING_BOUND and entry not in self._pending:
            self._counts["lost"] += 1
            self.doubtful = True
            return
        self._pending[entry] = held
        if self._touched is not None:
            self._touched.add(entry)
        self._changed.set()

    def counts(self) -> dict[str, int]:
        """Return how many entries are known of each node."""
        return {name: node.entries for name in self._table.names() if (node := self._table.node(name)) is not None}

    def statistics(self) -> LocationStatistics:
        """Return counts."""
        table = self._table
        return LocationStatistics(
            own=table.own_entries,
            others=sum(self.counts().values()),
            left_out=table.left_out,
            file_bytes=table.file_bytes,
            **self._counts,
        )

    def forget_node(self, name: str) -> None:
        """The entries of a node are of no use any more: ignore them, and forget them soon."""
        self._gone[name] = float("-inf")
        self._doubted.add(name)

    # -- our own

    async def flush(self) -> None:
        """Write the changes here to the table, and to the log. Raises OSError; then the rest is written later."""
        async with self._writing:
            while self._pending:
                part = [(entry, self._pending[entry]) for entry in list(self._pending)[:WRITE_ENTRIES]]
                made = await trio.to_thread.run_sync(self._table.apply_own, part)
                for entry, held in part:
                    if self._pending.get(entry) is held:
                        del self._pending[entry]
                self._holdings.note(made)
                if made:
                    self._news.set()

    async def reconcile(self, held: AsyncGenerator[tuple[bytes, int], None]) -> int:
        """Make our own entries what is ``held``: (object, range), ascending, as it is when that is begun, or later.

        For after an unclean end. Returns how many were wrong. Raises OSError, and ValueError if the order is not kept.
        """
        await self.flush()
        self.doubtful = False
        self._touched = set()
        wrong = 0
        after, part = b"", list[bytes]()
        try:
            async with aclosing(held):
                async for oid, range_number in held:
                    if range_number >= MOST_RANGES:
                        continue
                    entry = entry_of(oid, range_number)
                    if entry < (part[-1] if part else after):
                        raise ValueError("what is held must come in order")
                    part.append(entry)
                    if len(part) >= SLICE:
                        wrong += await self._correct(after, part, entry)
                        after, part = entry, []
            wrong += await self._correct(after, part, b"")
        except BaseException:
            self.doubtful = True
            raise
        finally:
            self._touched = None
        return wrong

    async def _correct(self, after: bytes, really: list[bytes], until: bytes) -> int:
        """Make our own entries after ``after``, up to ``until`` (b"": all), be ``really``, which ascend."""
        wrong = 0
        while True:
            ours = await trio.to_thread.run_sync(self._table.own_after, after, until, SLICE)
            upto = ours[-1] if len(ours) == SLICE else until
            these = {entry for entry in really if entry > after and (not upto or entry <= upto)}
            for entry in these.symmetric_difference(ours) - (self._touched or set()):
                self._pending[entry] = entry in these
                wrong += 1
            if self._touched:
                self._touched = {entry for entry in self._touched if entry > after}
            await self.flush()
            if upto == until:
                return wrong
            after = upto

    async def _write(self) -> None:
        while True:
            await self._changed.wait()
            await trio.sleep(COMMIT_S)
            self._changed = trio.Event()
            try:
                await self.flush()
            except OSError as exc:
                self._failed("what is held here is not told to other nodes", exc)
                await trio.sleep(RETRY_S)
                self._changed.set()

    async def _tell(self) -> None:
        while True:
            await self._news.wait()
            if not self._members.alive():  # nobody would hear it: after a start, until the others are found
                await trio.sleep(TICK_S)
                continue
            self._news = trio.Event()
            own = self._holdings.log
            self._members.broadcast(encode_head(Mark(own.log_id, own.sequence)))
            await trio.sleep(head_interval_s(len(self._alive) + 1))

    async def answer(self, peer: str, body: bytes) -> bytes:
        """Answer another node's request for `PATH`. Raises `PeerRefused`, and ValueError for garbage."""
        request = decode_request(body)
        self._counts["answers"] += 1
        if isinstance(request, Since):
            return encode(from_log(self._holdings, request))
        if self._answering >= MOST_ANSWERS:
            raise PeerRefused(Refusal.BUSY, retry_after_s=1.0)
        self._answering += 1
        try:
            return encode(await trio.to_thread.run_sync(from_table, self._table, self._holdings.log.log_id, request))
        except OSError as exc:
            log.debug("%s cannot be told what is held here: %s", peer, exc)
            raise PeerRefused(Refusal.FAILED, "what is held cannot be read") from exc
        finally:
            self._answering -= 1

    # -- the others

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Tell and learn until cancelled; then call `close`."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write)
            nursery.start_soon(self._tell)
            nursery.start_soon(self._tidy)
            task_status.started()
            while True:
                self._look_around()
                for name in self._pulls.take(trio.current_time(), MOST_PULLS - len(self._pulling)):
                    self._pulling.add(name)
                    nursery.start_soon(self._pull, self._alive[name])
                await trio.sleep(TICK_S)

    async def close(self) -> None:
        """Write the last changes, and close the table. `run` must have ended."""
        try:
            await self.flush()
        except OSError as exc:
            self._failed("what is held here is not kept", exc)
        await trio.to_thread.run_sync(self._table.close)

    def _look_around(self) -> None:
        """Take note of the nodes that are there."""
        alive = {member.info.name: member.info for member in self._members.alive()}
        for name in self._alive.keys() - alive.keys():
            self._gone[name] = trio.current_time()
        for name in alive.keys() - self._alive.keys():
            if self._gone.pop(name, None) is not None:
                self._doubted.add(name)
        self._alive = alive
        self._pulls.members(alive, trio.current_time())

    def heard(self, name: str, payload: bytes) -> None:
        """Take what another node gossips of its log; the rest is for others."""
        if payload.startswith(HEAD):
            try:
                self._pulls.heard(name, decode_head(payload))
            except ValueError as exc:
                self._failed(f"what {name} says of its log is not understood", exc)

    async def _pull(self, info: NodeInfo) -> None:
        """Ask a node for its changes, until all are known."""
        name = info.name
        follower = self._followers.get(name)
        if follower is None:
            node = self._table.node(name)
            follower = self._followers[name] = Follower(node.mark if node is not None else Mark())
        self._counts["pulls"] += 1
        more, questions = True, 0
        try:
            while more and questions < MOST_QUESTIONS:
                questions += 1
                body = encode(question(follower))
                data = await self._rpc.request(info.address, PATH, body, name=name, timeout_s=ANSWER_S)
                answer = decode_answer(data)
                more = await trio.to_thread.run_sync(take, self._table, name, follower, answer)
        except (LuxError, OSError, ValueError) as exc:
            if isinstance(exc, ValueError):
                follower.compare()
            self._failed(f"{info.label or name} does not tell what it holds", exc)
            self._pulls.failed(name, trio.current_time())
        else:
            if not follower.fetching:
                self._doubted.discard(name)
            self._pulls.pulled(name, follower.mark, trio.current_time(), more=more)
        finally:
            self._pulling.discard(name)

    async def _tidy(self) -> None:
        while True:
            await trio.sleep(TIDY_S)
            try:
                await self._forget_gone()
                await self._complete()
            except OSError as exc:
                self._failed("what gone nodes held is not forgotten", exc)

    async def _forget_gone(self) -> None:
        long_ago_s = trio.current_time() - FORGET_S
        for name in [name for name, since_s in self._gone.items() if since_s <= long_ago_s]:
            await trio.to_thread.run_sync(self._table.forget, name)
            self._gone.pop(name, None)
            self._followers.pop(name, None)
            self._doubted.discard(name)
        retired, after = self._table.retired, b""
        while retired:
            next_after = await trio.to_thread.run_sync(self._table.sweep, after, retired)
            if next_after is None:
                break
            after = next_after
            await trio.sleep(SWEEP_PAUSE_S)

    async def _complete(self) -> None:
        """Now that there is room again, ask for the entries that were left out."""
        for name, follower in list(self._followers.items()):
            node = self._table.node(name)
            if node is not None and node.lacking and name not in self._pulling and self._table.room > node.entries // 8:
                follower.compare()
                await trio.to_thread.run_sync(self._table.accept, name)

    def _failed(self, what: str, why: Exception) -> None:
        self._counts["failures"] += 1
        now_s = trio.current_time()
        if now_s - self._logged_s >= LOGGED_S:
            self._logged_s = now_s
            log.info("%s: %s (further such failures are only counted for a minute)", what, why)
