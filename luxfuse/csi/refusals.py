"""Errors that a caller is told of, and the codes of gRPC that they have."""

from __future__ import annotations

import grpc


class Refused(Exception):
    """A call cannot be done. The text is one line, without secrets."""

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(text)
        self.code = code


NOT_FINAL = frozenset({
    grpc.StatusCode.ABORTED, grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE,
})  # fmt: skip
"""After these a kubelet does not know whether the call was done, and undoes it; after all others it does not."""


def invalid(text: str) -> Refused:
    """What the caller has to correct."""
    return Refused(grpc.StatusCode.INVALID_ARGUMENT, text)


def unmet(text: str) -> Refused:
    """What cannot be as things are."""
    return Refused(grpc.StatusCode.FAILED_PRECONDITION, text)
