"""What a trace is summed up to, and what is advised."""

from __future__ import annotations

from typing import Any

import pytest

from luxfuse.core.profile import Profile
from luxfuse.core.tallies import QUEUE, Tallies, causes_of, names_of, sources_of
from luxfuse.core.whereabouts import DISK, JOURNAL, NODES, ROOM, STORE, TURN, UPLOAD, WORK, waits_for
from tests.unit.control.samples import sample_status


def event(op: str = "open", took_s: float = 0.1, **more: Any) -> dict[str, Any]:
    return {"op": op, "path": "a", "pid": 7, "program": "python", "took_s": took_s, **more}


def status(*, evicted: int = 0, fetched: int = 0, passthrough: bool = True) -> dict[str, Any]:
    document: dict[str, Any] = {**sample_status(), "passthrough": passthrough, "passthrough_reason": "not root"}
    document["understore"] = {**document["understore"], "get_bytes": fetched}
    document["cache"] = {**document["cache"], "evicted_bytes": evicted}
    return document


def advice(events: list[dict[str, Any]], *, after: dict[str, Any] | None = None, dropped: int = 0) -> str:
    profile = Profile()
    profile.dropped = dropped
    for each in events:
        profile.add(each)
    return "\n".join(profile.advice(status(), after or status(), 10.0))


def test_bytes_of_an_open_in_passthrough_are_those_of_the_file() -> None:
    assert sources_of(event(way="passthrough", bytes=100)) == {"kernel": 100}
    assert sources_of(event(way="passthrough", bytes=100, sources={"store": 100})) == {"store": 100}
    assert sources_of(event(way="passthrough", bytes=100, error="EIO")) == {}
    assert sources_of(event(way="dataplane", bytes=100, sources={"store": 100})) == {}
    assert sources_of(event("read", bytes=5, sources={"ssd": 5})) == {"ssd": 5}
    assert sources_of(event("lookup")) == {}


def test_time_goes_to_what_was_seen_and_the_queue() -> None:
    assert causes_of(event(took_s=2.0, waited={STORE: 0.75, DISK: 0.25})) == {STORE: 1.5, DISK: 0.5}
    assert causes_of(event(took_s=2.0, queued_s=1.0, sources={"nodes": 1})) == {NODES: 2.0, QUEUE: 1.0}
    assert causes_of(event(took_s=2.0)) == {WORK: 2.0}


def test_sums_are_by_name_and_the_longest_come_first() -> None:
    tallies = Tallies()
    tallies.add("a", event(took_s=1.0))
    tallies.add("b", event(took_s=3.0, error="EIO"))
    tallies.add("a", event("write", took_s=1.0, bytes=9))
    (first, b), (second, a) = tallies.longest(5)
    assert (first, b.count, b.errors, b.opens) == ("b", 1, 1, 1)
    assert (second, a.count, a.seconds, a.written_bytes) == ("a", 2, 2.0, 9)
    assert names_of(event()) == ("a", "python[7]")
    assert names_of({"op": "read", "path": None}) == ("(no name)", "?[0]")
    odd = {"op": "read", "path": "a\x1b[2J\nb\udcff \u00e4", "program": "x\r", "pid": 1}
    assert names_of(odd) == ("a\\x1b[2J\\nb\\udcff \u00e4", "x\\r[1]")


@pytest.mark.parametrize(
    ("operation", "error", "counts"),
    [
        ("lookup", "ENOENT", (0, 1)),
        ("getxattr", "ENODATA", (0, 1)),
        ("getxattr", "ENOTSUP", (0, 1)),
        ("lookup", "EIO", (1, 0)),
        ("open", "ENOENT", (1, 0)),
        ("setxattr", "ENOTSUP", (1, 0)),
    ],
)
def test_what_is_not_there_is_no_error(operation: str, error: str, counts: tuple[int, int]) -> None:
    tallies = Tallies()
    tallies.add("a", event(operation))
    tallies.add("a", event(operation, error=error))
    ((_, found),) = tallies.longest(1)
    assert (found.errors, found.missing) == counts
    assert found.count == 2


@pytest.mark.parametrize(
    ("modules", "what"),
    [
        (["trio._sync", "luxfuse.cache.cached", "luxfuse.cache.page_cache", "luxfuse.vfs.files"], STORE),
        (["trio._threads", "luxfuse.cache.page_cache", "luxfuse.vfs.copied"], DISK),
        (["trio._sync", "luxfuse.vfs.shared_answers", "luxfuse.vfs.namespace"], STORE),
        (["trio._sync", "luxfuse.index.journal", "luxfuse.vfs.making"], JOURNAL),
        (["luxfuse.understore.retrying", "luxfuse.vfs.removing"], STORE),
        (["luxfuse.vfs.room", "luxfuse.vfs.writer"], ROOM),
        (["luxfuse.vfs.turns"], TURN),
        (["trio._sync", "luxfuse.vfs.promises"], UPLOAD),
        (["luxfuse.vfs.namespace"], WORK),
        ([], WORK),
    ],
)
def test_what_is_waited_for_is_told_by_the_innermost_module(modules: list[str], what: str) -> None:
    assert waits_for(modules) == what


def test_kinds_are_told_apart_by_the_source_of_their_bytes() -> None:
    profile = Profile()
    profile.add(event(sources={"store": 9}, took_s=1.0))
    profile.add(event(took_s=0.1))
    profile.add(event("read", sources={"ssd": 9, "memory": 1}, took_s=0.2))
    assert {kind: times.sum_s for kind, times in profile.kinds.items()} == {
        "opens from store": 1.0, "opens": 0.1, "reads from ssd": 0.2,
    }  # fmt: skip


def test_advice() -> None:
    cold = [event(sources={"store": 1000}, took_s=0.05) for _ in range(50)]
    assert "50 waits of 50 ms in the mean; luxfuse load PATH" in advice(cold)
    evicting = status(fetched=1000, evicted=340)
    assert "the cache is too small: for 1000 B that were fetched 340 B were evicted, and 49 of 50" in advice(
        cold, after=evicting
    )
    once = [event(sources={"store": 1000}, path=f"f{n}") for n in range(50)]
    assert "the cache is full: for 1000 B" in advice(once, after=evicting)
    assert "if it is read again later" in advice([*once, *once[:9]], after=evicting)
    assert "18 of 68 opens met a file once more" in advice([*once, *once[:18]], after=evicting)
    assert "the cache" not in advice([*once, *once], after=status(fetched=1000, evicted=100))
    copied = [event("read", sources={"ssd": 1 << 20}, bytes=1 << 20, took_s=0.1) for _ in range(50)]
    assert "reads are copied to the kernel (not root): mount as root" in advice(copied, after=status(passthrough=False))
    assert "reads are copied" not in advice(copied)
    assert "100% of the time the cache disk is waited for" in advice(copied)
    small = [event("read", sources={"memory": 4096}, bytes=4096, took_s=1e-5) for _ in range(2000)]
    assert "reads are of 4.0 KiB in the mean" in advice(small, dropped=400_000)
    assert "the mount is not what is waited for" in advice(small, dropped=100_000)
    assert "90% of the time requests wait for the daemon to look at them" in advice([event(took_s=0.5, queued_s=4.5)])
    assert "closes wait for uploads: --write-mode async-through" in advice(
        [event("flush", took_s=4.0, waited={UPLOAD: 1.0})]
    )
    asked = [event("lookup", waited={STORE: 0.02}, took_s=0.02) for _ in range(200)]
    assert "200 names or attributes had to be asked of the store" in advice(asked)
    assert "nothing was asked of the mount" in advice([])


def test_a_job_that_hardly_waits_is_told_to_change_nothing() -> None:
    """Whatever the little time went to that requests took, in 10 s."""
    queued = [event(took_s=0.01, queued_s=0.06, time=n) for n in range(10)]
    assert advice(queued) == (
        "the mount is not what is waited for: in 10.0 s its requests took 0.70 s, those of the busiest process 0.70 s"
    )
    assert "80% of the time requests wait" in advice([event(took_s=0.1, queued_s=0.4, time=n) for n in range(5)])
    eight = [event(sources={"store": 9}, took_s=0.1, pid=pid, time=n) for pid in range(8) for n in range(11)]
    assert "its requests took 8.80 s, those of the busiest process 1.10 s" in advice(eight), "side by side"
    assert "the first read of data" in advice([*eight, event(sources={"store": 9}, took_s=1.5, pid=3, time=5)])
    shell = [event(sources={"store": 9}, took_s=0.1, pid=pid, time=pid / 10) for pid in range(50)]
    assert "the first read of data" in advice(shell), "one process after the other"
    idle = [event("getattr", took_s=1e-4, pid=pid, time=n * 9.9) for pid in range(100, 105) for n in range(2)]
    assert "the first read of data" in advice([*shell[:40], *idle]), "beside others that look now and then"
