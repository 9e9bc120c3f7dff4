"""The status document, which ``luxfuse status --json`` prints and the metrics are made of.

The schema is stable: fields are added, never renamed or removed. Counters run from the mount on. Sizes are in bytes,
times in seconds. A number that is not described here still reaches the metrics, as a gauge.
"""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict

StatusState = Literal["serving", "degraded", "draining"]


class TierStatus(TypedDict):
    """One cache tier. ``capacity_bytes`` None means: bounded by the free-space ratio alone.

    ``state``: ``serving``, ``draining``, or ``degraded`` while it is bypassed because it is full, failing or gone.
    """

    name: str
    path: str
    capacity_bytes: int | None
    used_bytes: int
    state: str


OPENS = {"passthrough": "passthrough", "dataplane": "by the data plane", "copied": "copied"}
"""How files are opened: what is in front of `_opens` in `ReadStatus`, and its words."""


class ReadStatus(TypedDict):
    """Where the bytes that the daemon served came from, and how files were opened.

    Bytes of passthrough reads go from the kernel to the application and are not counted. ``dataplane_bytes`` were read
    from cache files by threads that do not wait for Python; they are in no tier's figure.
    """

    memory_bytes: int
    ssd_bytes: int
    hdd_bytes: int
    peer_bytes: int
    understore_bytes: int
    dataplane_bytes: int
    passthrough_opens: int
    dataplane_opens: int
    copied_opens: int


class UnderstoreStatus(TypedDict):
    """Requests to the bucket, retries included. ``state`` is ``ok`` or ``unreachable``.

    ``outages``: how often it was found to be away; then it is asked nothing but whether it is back, ``probes`` times so
    far, and ``refused`` requests were not made.

    ``timeouts`` ran into their deadline; ``in_flight`` are waited for now. ``puts`` are all requests that make something,
    copies and the steps of multipart uploads among them. ``cost`` is estimated from them with the price table of the
    configuration, in ``currency``, since the mount; both are None where there is no table.
    """

    cost: float | None
    currency: str | None

    gets: int
    heads: int
    lists: int
    puts: int
    deletes: int
    errors: int
    retries: int
    timeouts: int
    outages: int
    probes: int
    refused: int
    in_flight: int
    get_bytes: int
    put_bytes: int
    state: str


class CacheStatus(TypedDict):
    """The page cache. ``in_flight_bytes`` are being fetched, ``buffered_bytes`` kept in memory for a moment.

    ``pinned_bytes`` are never evicted; ``pins`` and ``time_limits`` were made by commands; ``expired`` counts files whose
    time was over; ``moved_up`` and ``moved_down`` count moves between tiers. ``evictions`` are objects removed to make room
    for others, ``evicted_bytes`` their bytes and those of parts of large objects that were taken out to make room;
    objects that `free`, a sweep, a check or a time limit drops count in neither. ``schedules``: programs that have told
    which files they will open; ``scheduled_files`` and ``scheduled_bytes`` were fetched for such.
    """

    objects: int
    pinned_bytes: int
    pins: int
    time_limits: int
    expired: int
    moved_up: int
    moved_down: int
    evictions: int
    evicted_bytes: int
    checksum_failures: int
    write_failures: int
    verified_bytes: int
    files_ahead: int
    schedules: int
    scheduled_files: int
    scheduled_bytes: int
    buffered_bytes: int
    in_flight_bytes: int


class NameStatus(TypedDict):
    """The tree. ``skipped_keys`` cannot be shown as files; ``listings`` are those of directories that were made;
    ``stale_served`` counts answers that may be stale, because the store could not be asked."""

    skipped_keys: int
    listings: int
    stale_served: int


class FuseStatus(TypedDict):
    """Requests from the kernel. ``errors`` failed in a way that luxfuse did not foresee: a mistake in it, told in the log.
    ``refusals`` failed for a reason outside it: the bucket cannot be reached or refuses, there is no room, a disk is sick.
    Everyday answers to programs (ENOENT and the like) are neither. ``waited_opens`` waited ``waited_opens_s`` in all for
    files that were on their way, without Python. ``lanes`` threads take the requests in now, of which
    ``lanes_waiting`` read or write for the data plane. ``overdue`` requests took longer than any should, and ``stalls`` are
    times in which the daemon did not look at requests for 10 s: the log says what they waited for."""

    requests: int
    fast_opens: int
    waited_opens: int
    waited_opens_s: float
    fast_reads: int
    fast_writes: int
    fast_lookups: int
    fast_getattrs: int
    lanes: int
    lanes_waiting: int
    errors: int
    refusals: int
    overdue: int
    stalls: int


class DirtyStatus(TypedDict):
    """Changes that are not in the bucket yet. Many are not counted anew for each document, but every second or so.

    ``files`` counts directories and symlinks too, ``open_files`` those of them that are open for writing; ``oldest_s`` is
    how long ago the oldest change was made. ``deletes`` are objects still to be removed, ``renames`` those that were
    interrupted and are to be finished. ``failing``: what of these failed when it was tried last; ``error`` says how one of
    them did. ``local_only``: files that never go to the bucket. ``failures`` and ``conflicts`` count failed tries, and
    files that somebody else had written meanwhile.
    """

    files: int
    bytes: int
    oldest_s: float
    open_files: int
    deletes: int
    renames: int
    failing: int
    error: str | None
    local_only: int
    failures: int
    conflicts: int


class RecoveredStatus(TypedDict):
    """Files saved aside in ``path``: after a crash, those being written; after a conflict, the other version."""

    files: int
    path: str


class LatencyStatus(TypedDict):
    """How long requests of one kind took since the mount. ``buckets``: how many took at most each of ``bounds_s`` and
    longer than the bound before; the last, longer than all."""

    count: int
    sum_s: float
    p50_s: float
    p95_s: float
    p99_s: float
    buckets: list[int]


class LatenciesStatus(TypedDict):
    """Requests to the under-store by kind, retries and time-outs included, without waiting for a thread; and those of the
    kernel by operation, but for opens and releases that are answered without the daemon's Python. Only kinds that there
    were."""

    bounds_s: list[float]
    understore: dict[str, LatencyStatus]
    fuse: dict[str, LatencyStatus]


class VolumeStatus(TypedDict):
    """One under-store of the mount. ``path``: where it is attached, relative to the mount; "" for the mount's own.

    ``state``: ``serving``, ``degraded``, ``attaching``, ``detaching``, or ``unreachable`` while it could not be attached
    and its path answers EIO; ``error`` says why. The numbers are parts of the totals in ``dirty``.
    """

    path: str
    source: str
    state: str
    error: str | None
    read_only: bool
    driver: str | None
    dirty_files: int
    dirty_bytes: int
    deletes: int


class PeerStatus(TypedDict):
    """A node of the cluster. ``address``: where it listens, ``host:port``.

    ``state``: ``alive``; ``suspect``, while it does not answer; ``dead``; ``left``, after it said good-bye.
    ``round_trip_s``: smoothed; None before it was measured. ``weight``: the capacity of its cache in GiB. ``sources``: the
    ids of the under-stores that it serves, 16 hexadecimal digits each. ``entries``: how many ranges of objects it is known
    to hold.
    """

    name: str
    label: str
    address: str
    state: str
    version: str
    rack: str
    round_trip_s: float | None
    weight: int
    sources: list[str]
    entries: int


class ClusterStatus(TypedDict):
    """Questions for pages to other nodes (``asked``, of which ``failed``, for damaged ones ``corrupt``), and how often the
    under-store was asked beside a slow node (``hedges``); bytes given to others, and refusals; notices of changes;
    datagrams that did not prove to be of a node, or came again (``datagrams_rejected``; the log says why);
    replicas of writes that others took (``replicas_sent``), or could not, so that the write went to the store at once
    (``replicas_forgone``), and those that are held here for others. ``rules`` of ``luxfuse replicate`` that are known,
    copies that this node ordered of others and was ordered to make, and those that it gave up as one too many.
    """

    asked: int
    failed: int
    corrupt: int
    hedges: int
    provided_bytes: int
    refused: int
    notices_sent: int
    notices_received: int
    datagrams_rejected: int
    replicas_sent: int
    replicas_forgone: int
    replicas_held: int
    replicas_held_bytes: int
    rules: int
    copies_ordered: int
    copies_taken: int
    copies_dropped: int
    copies_accepted: int
    copies_refused: int


class Status(TypedDict):
    """Everything about one mount. ``passthrough_reason`` says why passthrough is off, None where it is on.

    ``keeper``: whether another daemon goes on if this one dies, which ``restarts`` counts; ``keeper_reason``: why not.

    ``hints``: settings that would have served the programs since the mount better.

    ``http``: the address of the web page, None where there is none.

    ``node``: the mount itself as a node of a cluster; None or missing if it is none. ``peers``: the others.
    """

    mountpoint: str
    source: str
    pid: int
    restarts: int
    keeper: bool
    keeper_pid: int | None
    keeper_reason: str | None
    version: str
    state: StatusState
    degraded_reasons: list[str]
    hints: list[str]
    passthrough: bool
    passthrough_reason: str | None
    dataplane: bool
    uptime_s: float
    memory_bytes: int
    driver: str
    tiers: list[TierStatus]
    reads: ReadStatus
    understore: UnderstoreStatus
    cache: CacheStatus
    names: NameStatus
    fuse: FuseStatus
    dirty: DirtyStatus
    recovered: RecoveredStatus
    latency: LatenciesStatus
    volumes: list[VolumeStatus]
    node: NotRequired[PeerStatus | None]
    cluster: NotRequired[ClusterStatus]
    peers: list[PeerStatus]
    http: str | None
