"""The one place where the errors of a handler become errnos."""

from __future__ import annotations

import errno
import functools
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

from luxfuse.core.histogram import Histogram
from luxfuse.errors import LuxError, Unforeseen
from luxfuse.fuse.lowlevel import pyfuse3

log = logging.getLogger(__name__)
F = TypeVar("F", bound=Callable[..., Awaitable[Any]])

EXPECTED = frozenset(
    {
        *(errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.EISDIR, errno.EXDEV, errno.ENODATA),
        *(errno.EPERM, errno.EROFS, errno.EINVAL, errno.ENAMETOOLONG, errno.ERANGE, errno.EFBIG, errno.EBUSY),
        *(errno.EOPNOTSUPP, errno.ESTALE, errno.EINTR),
    }
)
"""Errors that programs provoke every day: neither counted nor logged."""
EXPECTED_OF_FILES = frozenset({errno.EOPNOTSUPP, errno.EFBIG})
"""The same for errors of the cache's own file system."""
MISTAKES = frozenset({errno.EBADF, errno.EFAULT, errno.EINVAL, 0})
"""Errors that the cache's own file system gives only for mistakes of ours."""


class Counting(Protocol):
    """A class with handlers as methods. ``latency`` is by handler.

    ``errors`` counts unforeseen errors, ``refusals`` foreseen ones: outages, missing rights, no room, a sick disk.
    """

    errors: int
    refusals: int
    latency: dict[str, Histogram]
    read_only: bool


def _histogram(latency: dict[str, Histogram], name: str) -> Histogram:
    found = latency.get(name)
    if found is None:
        found = latency[name] = Histogram()
    return found


def guarded(handler: F) -> F:
    """Turn every exception of a handler into an errno: any other than FUSEError would end the mount."""

    @functools.wraps(handler)
    async def wrapper(self: Counting, *args: Any, **kwargs: Any) -> Any:
        began_s = time.perf_counter()
        try:
            return await handler(self, *args, **kwargs)
        except pyfuse3.FUSEError:
            raise
        except LuxError as exc:
            if isinstance(exc, Unforeseen):
                self.errors += 1
            elif exc.errno not in EXPECTED:
                self.refusals += 1
            if exc.errno not in EXPECTED:
                log.info("%s: %s", handler.__name__, exc)
            raise pyfuse3.FUSEError(exc.errno) from None
        except OSError as exc:
            if (exc.errno or 0) in MISTAKES:
                self.errors += 1
            elif exc.errno not in EXPECTED_OF_FILES:
                self.refusals += 1
            if exc.errno not in EXPECTED_OF_FILES:
                log.warning("%s: %s", handler.__name__, exc)
            raise pyfuse3.FUSEError(exc.errno or errno.EIO) from None
        except Exception:
            self.errors += 1
            log.exception("%s failed in an unexpected way", handler.__name__)
            raise pyfuse3.FUSEError(errno.EIO) from None
        finally:
            _histogram(self.latency, handler.__name__).observe(time.perf_counter() - began_s)

    return wrapper  # type: ignore[return-value]


def changing(handler: F) -> F:
    """As `guarded`; on a read-only mount the answer is EROFS, even after a remount with other flags."""
    inner = guarded(handler)

    @functools.wraps(handler)
    async def wrapper(self: Counting, *args: Any, **kwargs: Any) -> Any:
        if self.read_only:
            raise pyfuse3.FUSEError(errno.EROFS)
        return await inner(self, *args, **kwargs)

    return wrapper  # type: ignore[return-value]
