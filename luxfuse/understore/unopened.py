"""A driver that is used before it could be opened: each call tries to open it, and fails with the reason if it cannot.

So what an earlier daemon or mount has left is served though the driver needs the network to be opened (it connects then, or
fetches credentials, or asks for a region), or files that are not there for the moment.
"""

from __future__ import annotations

import copy
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from luxfuse.errors import AccessDenied, LuxError, StoreUnavailable
from luxfuse.understore.base import Abilities, UnderStore
from luxfuse.understore.locations import family_of
from luxfuse.understore.renewing import RenewingDriver
from luxfuse.understore.small_files import Answer, WantedFile, fetch_small, fetches_small
from luxfuse.understore.small_puts import SmallPut, Tell, put_small, puts_small

log = logging.getLogger(__name__)

SHARED_S = 1.5
"""A call that comes so soon after the beginning of an attempt waits for that one. Later ones, as probes, which come every
2 s, begin another: it may succeed while the older ones hang."""

PAUSE_S = 1.0
"""After an attempt that failed."""

MOST_ATTEMPTS = 6
"""Attempts at once, most of which hang."""

WAIT_S = 30.0


class _Attempt:
    """``error``: why it failed, once it is over and did."""

    def __init__(self) -> None:
        self.began_s = time.monotonic()
        self.over = threading.Event()
        self.error: LuxError = StoreUnavailable("the under-store's driver is not open yet")


class UnopenedDriver:
    """An `UnderStore` that hands everything on to the driver that ``open_driver`` opens, once it does. Thread-safe."""

    def __init__(self, open_driver: Callable[[], UnderStore], abilities: Abilities) -> None:
        """``open_driver`` raises `LuxError`; ``abilities``: those to count on meanwhile."""
        self._open = open_driver
        self._assumed = abilities
        self._lock = threading.Lock()
        self._opened: UnderStore | None = None
        self._last: _Attempt | None = None
        self._running = 0
        self._failed_s = -math.inf
        self._closed = False

    @property
    def driver(self) -> str:
        """The kind of driver."""
        return "not open yet" if self._opened is None else self._opened.driver

    @property
    def abilities(self) -> Abilities:
        """The abilities of the store, as far as is known."""
        return self._assumed if self._opened is None else self._opened.abilities

    @property
    def fetches_small(self) -> bool:
        """Whether the driver fetches small files."""
        return self._opened is not None and fetches_small(self._opened)

    def fetch_small(self, files: Sequence[WantedFile], abandoned: bytearray) -> list[Answer]:
        """See `SmallFiles`."""
        return fetch_small(self._require(), files, abandoned)

    @property
    def puts_small(self) -> bool:
        """Whether the driver puts several small objects at once."""
        return self._opened is not None and puts_small(self._opened)

    def put_small(self, puts: Sequence[SmallPut], tell: Tell) -> None:
        """See `PutsSmall`."""
        put_small(self._require(), puts, tell)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if self._opened is not None:
            return getattr(self._opened, name)

        def call(*arguments: Any, **named: Any) -> Any:
            return getattr(self._require(), name)(*arguments, **named)

        return call

    def renew(self, options: Mapping[str, str] | None = None) -> bool:
        """See `RenewingDriver.renew`. Raises `StoreError`, too, if the driver cannot be opened."""
        opened: object = self._require()
        return opened.renew(options) if isinstance(opened, RenewingDriver) else False

    def close(self) -> None:
        """Free connections, also of a driver that is being opened. Further calls are errors."""
        with self._lock:
            self._closed = True
        if self._opened is not None:
            self._opened.close()

    def open(self, patience_s: float) -> UnderStore | LuxError:
        """Try to open the driver; returns it, or why it is not open after so long."""
        attempt = self._attempt()
        attempt.over.wait(patience_s)
        return attempt.error if self._opened is None else self._opened

    @property
    def is_open(self) -> bool:
        """Whether the driver is open, so that its abilities are known."""
        return self._opened is not None

    def require_open(self) -> None:
        """Open the driver, if that has not been done. Raises `StoreError`."""
        self._require()

    def _require(self) -> UnderStore:
        opened = self._opened if self._opened is not None else self.open(WAIT_S)
        if not isinstance(opened, LuxError):
            return opened
        # Nothing is known of any object: that the root is missing, say, is no answer to the question for one.
        asked = isinstance(opened, StoreUnavailable | AccessDenied)
        raise copy.copy(opened) if asked else StoreUnavailable(str(opened))

    def _attempt(self) -> _Attempt:
        """Begin an attempt to open the driver, or join the last one."""
        with self._lock:
            now_s, last = time.monotonic(), self._last
            if last is not None:
                fresh = now_s < last.began_s + SHARED_S and not last.over.is_set()
                if fresh or now_s < self._failed_s + PAUSE_S or self._running >= MOST_ATTEMPTS:
                    return last
            attempt = self._last = _Attempt()
            try:
                threading.Thread(target=self._try, args=(attempt,), name="opening", daemon=True).start()
            except RuntimeError as exc:  # there can be no more threads now
                attempt.error, self._failed_s = StoreUnavailable(f"its driver cannot be opened now ({exc})"), now_s
                attempt.over.set()
            else:
                self._running += 1
        return attempt

    def _try(self, attempt: _Attempt) -> None:
        surplus = None
        try:
            surplus = self._open()
        except LuxError as exc:
            attempt.error = exc
        except Exception as exc:
            log.exception("the under-store's driver cannot be opened")
            attempt.error = StoreUnavailable(f"its driver cannot be opened ({type(exc).__name__}); see the log")
        with self._lock:
            self._running -= 1
            if surplus is None:
                self._failed_s = time.monotonic()
            elif self._opened is None and not self._closed:
                self._opened, surplus = surplus, None
        attempt.over.set()
        if surplus is not None:
            surplus.close()


def open_or_wait(
    open_driver: Callable[[], UnderStore],
    abilities: Abilities,
    patience_s: float,
    is_passing: Callable[[LuxError], bool],
) -> UnderStore:
    """Return the driver if it can be opened, else an `UnopenedDriver` if that passes. Raises the other errors."""
    driver = UnopenedDriver(open_driver, abilities)
    opened = driver.open(patience_s)
    if not isinstance(opened, LuxError):
        return opened
    if not is_passing(opened):
        driver.close()
        raise opened
    return cast(UnderStore, driver)


def abilities_of(source: str) -> Abilities:
    """Return the abilities to count on before the driver for ``source`` is open: none that it may turn out not to have, but
    the one by which a write heeds the version that it replaces."""
    buckets = family_of(source) is not None
    local = "://" not in source or source.startswith("file:")
    return Abilities(
        metadata=buckets,
        conditional=buckets or local,
        multipart=False,
        part_copy=False,
        hierarchical=not buckets,
        writable=not source.startswith(("http://", "https://")),
    )
