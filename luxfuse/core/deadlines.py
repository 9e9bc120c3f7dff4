"""For how long requests of the kernel may take, in terms of `request-timeout`, before something must be wrong.

What asks the store for a name or attributes makes a few requests, one after the other, each with that deadline; an outage
ends them all within one (`core.breaker`). What transfers content, lists, or changes names takes as long as its bytes do at
the bandwidth that there is, or waits its turn behind another change: nobody can say how long is too long.
"""

from __future__ import annotations

from enum import Enum

QUESTIONS = frozenset({"lookup", "getattr", "readlink", "getxattr", "listxattr", "access", "statfs"})
QUESTION_TIMES = 5
"""A name of unknown kind takes four requests."""
OTHER_TIMES = 10


class Verdict(Enum):
    """Whether a request is in time."""

    IN_TIME = "in time"
    LATE = "late"
    """It has taken long; it may be that there is much to do."""
    OVERDUE = "overdue"
    """It is to be ended: nothing can come of it any more."""


def judge(name: str, age_s: float, request_timeout_s: float) -> Verdict:
    """Judge a request by the name of its handler and its age."""
    if name in QUESTIONS:
        return Verdict.OVERDUE if age_s >= QUESTION_TIMES * request_timeout_s else Verdict.IN_TIME
    return Verdict.LATE if age_s >= OTHER_TIMES * request_timeout_s else Verdict.IN_TIME
