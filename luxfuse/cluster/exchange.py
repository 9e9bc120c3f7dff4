"""One question between two nodes about the holdings of one: what to ask, how to answer, what becomes of the answer.

The protocol is in `luxfuse.core.holdings`. Nothing here waits for the network or the clock; calls that block say so.
"""

from __future__ import annotations

from luxfuse.core.holding_messages import MOST_ENTRIES, Answer, Buckets, Changes, Content, Request, Since, Sums
from luxfuse.core.holdings import BUCKETS, ENTRY_BYTES, Follower, Holdings, Mark, changes_in
from luxfuse.index.location_sums import new_sums
from luxfuse.index.locations import LocationTable


def question(follower: Follower) -> Request:
    """Return what to ask a node next."""
    if follower.fetching:
        return Buckets(follower.buckets, follower.after)
    return Since(follower.mark.log_id, follower.mark.sequence)


def from_log(holdings: Holdings, request: Since) -> Answer:
    """Answer with the changes."""
    log = holdings.log
    changes = log.since(request.sequence, MOST_ENTRIES) if request.log_id == log.log_id else None
    if changes is None:
        return Sums(log.log_id, log.sequence, holdings.sums.encode())
    return Changes(log.log_id, request.sequence + len(changes) // ENTRY_BYTES, log.sequence, holdings.total, changes)


def from_table(table: LocationTable, log_id: bytes, request: Buckets) -> Content:
    """Answer with the entries held. Blocks. Raises OSError."""
    return Content(log_id, *table.content(request.buckets, request.after, MOST_ENTRIES))


def take(table: LocationTable, name: str, follower: Follower, answer: Answer) -> bool:
    """Take in a node's answer to `question`; returns whether there is more to ask it for. Blocks.

    Raises OSError, and ValueError if it is no answer to that.
    """
    table.enrol(name)
    if isinstance(answer, Content):
        return _take_content(table, name, follower, answer)
    if follower.fetching:
        raise ValueError("not the content that was asked for")
    if isinstance(answer, Sums):
        return _take_sums(table, name, follower, answer)
    return _take_changes(table, name, follower, answer)


def _take_changes(table: LocationTable, name: str, follower: Follower, answer: Changes) -> bool:
    mark = Mark(answer.log_id, answer.sequence)
    expected = follower.mark.sequence + len(answer.changes) // ENTRY_BYTES
    if answer.log_id != follower.mark.log_id or not answer.head >= answer.sequence == expected:
        raise ValueError("not the changes that were asked for")
    if mark != follower.mark:
        table.apply(name, list(changes_in(answer.changes)), mark)
        follower.mark = mark
    node = table.enrol(name)
    if mark.sequence == answer.head and node.total != answer.total and not node.lacking:
        follower.compare()
        return True
    return mark.sequence < answer.head


def _take_sums(table: LocationTable, name: str, follower: Follower, answer: Sums) -> bool:
    sums = new_sums(answer.sums)
    differing = table.sums(name).differing(sums)
    if len(differing) > BUCKETS // 2:  # nearly all is to be fetched: then it is quicker not to look for what we have
        table.enrol(name, anew=True)
        differing = new_sums().differing(sums)
    follower.fetch(differing, Mark(answer.log_id, answer.head))
    if not follower.fetching:
        table.apply(name, [], follower.mark)
    return follower.fetching


def _take_content(table: LocationTable, name: str, follower: Follower, answer: Content) -> bool:
    if not follower.fetching or (answer.until and answer.until <= follower.after):
        raise ValueError("not the content that was asked for")
    if follower.expects(answer.log_id):
        table.replace(name, follower.buckets, follower.after, answer.entries, answer.until)
        follower.fetched(answer.until)
        if not follower.fetching:
            table.apply(name, [], follower.mark)
    return True
