"""Moto's S3 as a program, for which of two writes at once one is the first, as on S3.

By itself Moto asks in one step whether an object is there, as a condition says, and makes it in another: of two that
create the same object at the same moment, both may be told that they did.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

from moto.s3.responses import S3Response
from moto.server import main

WRITES = ("put_object", "copy_object", "delete_object", "_key_response_post")
_one = threading.RLock()


def in_turn(method: Callable[..., Any]) -> Callable[..., Any]:
    """``method``, of which all writes of the server run one after the other; bodies are read before."""

    @functools.wraps(method)
    def alone(*args: Any, **kwargs: Any) -> Any:
        with _one:
            return method(*args, **kwargs)

    return alone


if __name__ == "__main__":
    for name in WRITES:
        setattr(S3Response, name, in_turn(getattr(S3Response, name)))
    main()
