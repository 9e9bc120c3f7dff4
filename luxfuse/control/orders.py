"""What the control socket can be asked for: the bodies of its requests. What is not understood is refused."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import msgspec

from luxfuse.core.replication import MOST_COPIES
from luxfuse.core.units import shown
from luxfuse.core.values import FOREVER_S
from luxfuse.types import TtlAction

PATH_MAX_BYTES = 64 << 10
Copies = Annotated[int, msgspec.Meta(ge=0, le=MOST_COPIES)]


class BadRequest(Exception):
    """The request cannot be understood; the text says why, in one line. ``status``: that of HTTP."""

    def __init__(self, text: str, status: int = 400) -> None:
        super().__init__(text)
        self.status = status


class Order(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The body of a request."""


class Nothing(Order, frozen=True, kw_only=True):
    """No body, or an empty object."""


class Paths(Order, frozen=True, kw_only=True):
    """Paths relative to the mount; "" is its root. Some orders take patterns, too."""

    paths: list[str]


class Check(Order, frozen=True, kw_only=True):
    """Whether to mend what is found."""

    repair: bool = False


class Limit(Paths, frozen=True, kw_only=True):
    """How long the paths are kept, in seconds; None: for ever."""

    seconds: Annotated[float, msgspec.Meta(ge=0, le=FOREVER_S)] | None = None
    action: TtlAction


class Replicate(Paths, frozen=True, kw_only=True):
    """How many nodes hold the paths; ``min`` 0: the rule ends."""

    min: Copies
    max: Copies | None = None


class Attach(Order, frozen=True, kw_only=True):
    """What to attach where; ``options`` in TOML spelling."""

    source: str
    path: str
    options: dict[str, Any] = {}


class Detach(Order, frozen=True, kw_only=True):
    """What to take out of the mount."""

    path: str
    force: bool = False


class Unmount(Order, frozen=True, kw_only=True):
    """How to end."""

    lazy: bool = False


T = TypeVar("T", bound=Order)


def order_in(body: bytes, order: type[T]) -> T:
    """Return the order in the body of a request. Raises `BadRequest`."""
    try:
        found = msgspec.json.decode(body or b"{}", type=order)
    except msgspec.ValidationError as exc:
        raise BadRequest(f"the request is not understood: {exc}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise BadRequest(f"the request is not JSON: {exc}") from None
    for path in getattr(found, "paths", None) or [getattr(found, "path", "")]:
        check_path(path)
    return found


def check_path(path: str) -> None:
    """Raise `BadRequest` unless a path, relative to the mount, can be one of a file system."""
    if "\0" in path:
        raise BadRequest(f"{shown(path)}: holds a NUL character, which no name can")
    if len(path.encode(errors="surrogateescape")) > PATH_MAX_BYTES:
        raise BadRequest(f"{shown(path)}: is too long for a path")
    if path and any(part in ("", ".", "..") for part in path.split("/")):
        raise BadRequest(f"{shown(path)}: must be relative to the mount, without empty parts, . and ..")
