"""Every error that crosses a layer. Drivers raise these; the edge (fuse, cli) translates them once more."""

from __future__ import annotations

import enum
import errno


class LuxError(Exception):
    """Base of all expected errors; ``errno`` is what an application sees."""

    errno = errno.EIO


class ConfigError(LuxError):
    """A setting is missing or cannot be used. The text is one line: what, where, what to do."""

    errno = errno.EINVAL


class MountError(LuxError):
    """The mount cannot be made. The text is one line: what, where, what to do."""


class IndexFormatError(LuxError):
    """The index on disk cannot be opened or has an unknown format version."""


class IndexDamaged(IndexFormatError):
    """The index on disk is not what was written."""


class StoreError(LuxError):
    """An under-store request failed. ``retryable`` says whether the same request may succeed later.

    ``unexplained``: the answer had no body that could name the reason, as to a HEAD.
    """

    retryable = False
    unexplained = False
    code = ""
    """The store's own word for it ("NoSuchUpload"), if it gave one."""


class Unforeseen(StoreError):
    """Something that luxfuse did not foresee went wrong in it: a mistake of ours, of which the log has the details."""


class NotFound(StoreError):
    """The store answered that there is no such object (404)."""

    errno = errno.ENOENT


class AccessDenied(StoreError):
    """The store refused the credentials (401 or 403). ``renewable``: other ones might be accepted."""

    errno = errno.EACCES

    def __init__(self, text: str, *, renewable: bool = False) -> None:
        super().__init__(text)
        self.renewable = renewable


class NoCredentials(AccessDenied):
    """There are no credentials now to ask the store with: it was not asked, and may be there or not."""

    def __init__(self, text: str) -> None:
        super().__init__(text, renewable=True)


class VersionChanged(StoreError):
    """The object is no longer the version that was asked for (412, or another ETag came back)."""

    errno = errno.ESTALE


class StoreRejected(StoreError):
    """The store refused the request for good (another 4xx, or a configuration error)."""


class WrongRegion(StoreRejected):
    """The bucket is in another region; ``region`` is empty where the store does not say in which."""

    def __init__(self, text: str, region: str = "") -> None:
        super().__init__(text)
        self.region = region


class Archived(StoreRejected):
    """The object is in an archive, and has to be restored before it can be read."""

    errno = errno.EACCES


class TooLarge(StoreRejected):
    """The store takes no object, or no part, of that size."""

    errno = errno.EFBIG


class ReadOnlyStore(StoreRejected):
    """The store cannot be written to at all, as one on HTTP."""

    errno = errno.EROFS


class QuotaExceeded(StoreError):
    """The store refuses to take more, because a quota of the account or bucket is used up."""

    errno = errno.EDQUOT


class StoreFull(StoreError):
    """The store has no room left (507, or ENOSPC of a file system)."""

    errno = errno.ENOSPC


class StoreUnavailable(StoreError):
    """Throttling, 5xx, reset, time-out, truncated body or no connection: worth another try."""

    retryable = True


class DeadlinePassed(StoreUnavailable):
    """The request used up its whole deadline: its caller has waited long enough."""

    retryable = False


class StoreAway(StoreUnavailable):
    """The store was found to be away, and has not answered again yet: it is not asked.

    ``sent``: the request had been sent before, and may have an effect.
    """

    retryable = False
    sent = False


def may_have_arrived(error: BaseException) -> bool:
    """Whether a write that failed may have, or have yet, its effect in the store."""
    if isinstance(error, StoreAway):
        return error.sent
    return isinstance(error, StoreUnavailable) and not isinstance(error, NotTrusted)


class UploadsForgotten(StoreUnavailable):
    """The store takes all parts of a file, and then knows nothing of the upload: each try sends all of it again."""


class NotTrusted(StoreUnavailable):
    """The endpoint does not prove that it is the one that is meant, by a certificate that is signed by an authority that is
    believed, or a host key that is known: somebody has to do something."""

    retryable = False


class NoStore(StoreUnavailable):
    """Something answered that is no store: a web page, a portal in between, a server's console."""


class BucketMissing(NotFound):
    """The bucket or container itself does not exist."""


class PeerError(LuxError):
    """Another node did not do what it was asked for."""


class Refusal(enum.IntEnum):
    """Why another node did not."""

    NOT_HERE = 1
    """It does not have that, or not any more."""
    CHANGED = 2
    """The object is no longer the version that was asked for, or is gone from the store."""
    BUSY = 3
    """It has enough to do: ask again later, or another one."""
    FAILED = 4
    """It tried and could not."""


class PeerRefused(PeerError):
    """Another node answered that it does not do it; ``reason`` says why. The server of peers raises it, too.

    ``retry_after_s``: when to ask again, if it is busy and says so.
    """

    def __init__(self, reason: Refusal, text: str = "", *, retry_after_s: float | None = None) -> None:
        super().__init__(text or reason.name.lower().replace("_", " "))
        self.reason = reason
        self.retry_after_s = retry_after_s


class PeerFailed(PeerError):
    """Another node could not be asked, or gave no proper answer: network, TLS, deadline, garbage."""


class PeerCorrupt(PeerError):
    """The bytes of another node are not those of its checksums."""


class NotReplicated(PeerError):
    """Too few other nodes hold what was written."""
