"""The orders that the control socket takes: each once, in `ORDERS`. An order that is not understood is refused.

Each path of a ``locate`` has ``path`` and either ``error``, or ``kind``. A ``file`` has ``size``, ``page_bytes`` in bytes,
``state`` (``clean``, ``dirty`` or ``open for writing``), ``missing_pages`` as ``0-15,20``, and ``places``: each a
``tier``, its ``directory``, the ``file`` there, ``pages`` in the same manner (``all``; none for a staging file in parts)
and ``bytes``; and ``nodes``, the others of the cluster that hold ranges of it: each a ``node``, its ``label``, and how
many ``ranges`` it holds ``of`` how many. A ``directory`` has ``tiers``: each a ``tier``, ``directory``, ``files`` and
``bytes`` on disk; and ``whole_files``, ``partial_files`` and ``dirty_files``. Versions that the store has no more are
counted there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from luxfuse.core.replication import MOST_COPIES
from luxfuse.core.units import shown
from luxfuse.core.values import FOREVER_S
from luxfuse.types import TtlAction

PATH_MAX_BYTES = 64 << 10
BODY_MAX_BYTES = 4 << 20
LOAD_MAX_BYTES = 16 << 20
"""A list of paths may be long."""
Command = Annotated[list[Annotated[str, msgspec.Meta(pattern="^[^\\0]+$")]], msgspec.Meta(min_length=1, max_length=64)]
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
    """Whether to mend mistakes that are found."""

    repair: bool = False


class Limit(Paths, frozen=True, kw_only=True):
    """How long the paths are kept, in seconds; None: for ever."""

    seconds: Annotated[float, msgspec.Meta(ge=0, le=FOREVER_S)] | None = None
    action: TtlAction


class Replicate(Paths, frozen=True, kw_only=True):
    """How many nodes hold the paths; ``min`` 0: the rule ends."""

    least: Copies = msgspec.field(name="min")
    most: Copies | None = msgspec.field(name="max", default=None)

    def __post_init__(self) -> None:
        if self.most is not None and self.most < max(1, self.least):
            raise ValueError("max: is smaller than min")


class Trace(Order, frozen=True, kw_only=True):
    """Requests to tell of: those of files at and below ``path``, and of a process."""

    path: str = ""
    pid: int | None = None


class Attach(Order, frozen=True, kw_only=True):
    """The source of an under-store, and the path to attach it at; ``options`` in TOML spelling."""

    source: str
    path: str
    options: dict[str, Any] = {}


class Detach(Order, frozen=True, kw_only=True):
    """The attach point of the under-store to take out of the mount."""

    path: str
    force: bool = False


class Schedule(Order, frozen=True, kw_only=True):
    """A program is about to say which files it will open, all of the under-store of ``path``, relative to the mount.

    ``window_bytes``: fetch ahead at most so much of them.
    """

    path: str
    window_bytes: Annotated[int, msgspec.Meta(ge=1)] | None = None


class Told(Paths, frozen=True, kw_only=True):
    """The names that come next in a schedule, as paths relative to the mount, in the order in which they will be opened.

    ``position``: how many of all names have been handed to the reader; none where what is opened is all that tells of it.
    It is told again before 128 more are handed out.
    """

    schedule: Annotated[int, msgspec.Meta(ge=1)]
    position: Annotated[int, msgspec.Meta(ge=0)] | None = None


class Upgrade(Order, frozen=True, kw_only=True):
    """The commands of the daemon that is to go on, and of its keeper."""

    daemon: Command
    keeper: Command


class Index(Order, frozen=True, kw_only=True):
    """The under-store of ``path``, relative to the mount, and the absolute path of a manifest, as the daemon sees it."""

    path: str
    file: str


class Unmount(Order, frozen=True, kw_only=True):
    """How to end."""

    lazy: bool = False


Answer = Literal["json", "lines", "text"]
"""``lines``: of progress, each an object as JSON, about ten a second, until all is done. The last has ``done``; one that
has ``aborted`` instead says why it is the last. The daemon stops as soon as the client hangs up."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where an order is given. It is a method of its name, with the fields of ``body``, in the daemon's service.

    ``field``: the name of the one field of the answer; without it, the answer is the object that the method returns, or an
    empty one.
    """

    method: Literal["GET", "POST"]
    path: str
    body: type[Order]
    answer: Answer
    field: str = ""
    body_bytes: int = BODY_MAX_BYTES


ORDERS = {
    # the status document, `luxfuse.control.status`
    "status": Endpoint("GET", "/v1/status", Nothing, "json"),
    # the same as Prometheus text
    "metrics": Endpoint("GET", "/v1/metrics", Nothing, "text"),
    # a line for each path that failed
    "refresh": Endpoint("POST", "/v1/refresh", Paths, "json", "errors"),
    # `luxfuse.orders.backlog.Progress`; the last has failures and notes
    "persist": Endpoint("POST", "/v1/persist", Paths, "lines"),
    # `luxfuse.orders.load_progress.LoadProgress`; the last has failures
    "load": Endpoint("POST", "/v1/load", Paths, "lines", body_bytes=LOAD_MAX_BYTES),
    # the number of the job: the same in the background
    "start_load": Endpoint("POST", "/v1/load/start", Paths, "json", "job", body_bytes=LOAD_MAX_BYTES),
    # a line of progress of each: those that run, and the last that ended
    "loads": Endpoint("GET", "/v1/load/jobs", Nothing, "json", "jobs"),
    # how many
    "stop_loads": Endpoint("POST", "/v1/load/stop", Nothing, "json", "stopped"),
    # two lines: ``schedule``, its number, and ``room``, how many names it takes; and at its end ``done``, with ``files``
    # and ``bytes`` that were fetched, and ``failed``. It ends when the client hangs up
    "begin_schedule": Endpoint("POST", "/v1/schedule", Schedule, "lines"),
    # how many names it takes now; 409 if it has ended
    "tell": Endpoint("POST", "/v1/schedule/tell", Told, "json", "room"),
    # `luxfuse.orders.manifest.ManifestProgress`
    "export_index": Endpoint("POST", "/v1/index/export", Index, "lines"),
    "import_index": Endpoint("POST", "/v1/index/import", Index, "lines"),
    # `luxfuse.orders.inventory.FreeProgress`
    "free": Endpoint("POST", "/v1/free", Paths, "lines"),
    # `luxfuse.orders.check.CheckProgress`
    "check": Endpoint("POST", "/v1/check", Check, "lines"),
    # ``events`` (`luxfuse.fuse.tracing.event`), and how many were ``dropped``, until the client hangs up
    "trace": Endpoint("POST", "/v1/trace", Trace, "lines"),
    # see above
    "locate": Endpoint("POST", "/v1/locate", Paths, "json", "paths"),
    # lines: ``failures`` and ``notes``
    "pin": Endpoint("POST", "/v1/pin", Paths, "json"),
    "unpin": Endpoint("POST", "/v1/unpin", Paths, "json"),
    "limit": Endpoint("POST", "/v1/ttl", Limit, "json"),
    "replicate": Endpoint("POST", "/v1/replicate", Replicate, "json"),
    # names of settings; 400 with the reason if the file is refused
    "reload": Endpoint("POST", "/v1/reload", Nothing, "json", "changed"),
    # lines worth knowing, once attached; or 409
    "attach": Endpoint("POST", "/v1/attach", Attach, "json", "notes"),
    # `luxfuse.orders.backlog.Progress`
    "detach": Endpoint("POST", "/v1/detach", Detach, "lines"),
    "drain": Endpoint("POST", "/v1/drain", Nothing, "lines"),
    # steps: "trying", and at last "leaving": then the daemon ends, or says why it stays
    "upgrade": Endpoint("POST", "/v1/upgrade", Upgrade, "lines"),
    # once unmounted; 409 when busy
    "unmount": Endpoint("POST", "/v1/unmount", Unmount, "json"),
}

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
