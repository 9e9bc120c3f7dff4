"""A driver that is opened again when its credentials or its region are no longer right.

Files and variables are read at opening; so all clients of the driver follow together. A request that
was begun with the old driver ends with it.
"""

from __future__ import annotations

import copy
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from luxfuse.core.vain import Pause
from luxfuse.errors import AccessDenied, LuxError, NoCredentials, StoreError, WrongRegion
from luxfuse.types import ListPage
from luxfuse.understore.base import Abilities, UnderStore
from luxfuse.understore.small_files import Answer, WantedFile, fetch_small, fetches_small
from luxfuse.understore.small_puts import SmallPut, Tell, put_small, puts_small

log = logging.getLogger(__name__)
T = TypeVar("T")
Options = Mapping[str, str]

SECRET_OPTIONS = frozenset({
    "key", "secret", "token", "username", "password", "access_key_id", "secret_access_key", "session_token",
    "aws_access_key_id", "aws_secret_access_key", "aws_session_token", "profile", "web_identity_token_file",
    "account_key", "sas_key", "sas_token", "connection_string", "client_id", "client_secret", "federated_token_file",
    "service_account", "service_account_key", "application_credentials", "passphrase",
})  # fmt: skip
"""The storage options about credentials; the others cannot change while a store is in use."""

PAUSE_S = 3.0
"""After credentials were looked for once, with or without success. With the 2 s between probes: new ones are in use within
5 s."""


def with_secrets(options: Options, new: Options) -> dict[str, str]:
    """Return ``options`` with the secrets of ``new`` in the place of theirs."""
    kept = {name: value for name, value in options.items() if name not in SECRET_OPTIONS}
    return {**kept, **{name: value for name, value in new.items() if name in SECRET_OPTIONS}}


class Access(Protocol):
    """The credentials and the region that a driver was opened with."""

    def prepare(self) -> object:
        """Have valid credentials at hand, in a thread that may wait; returns them, to be compared. Raises `StoreError`.

        None: they cannot be compared, so they may be others when they are read again.
        """

    @property
    def origin(self) -> str | None:
        """Where the credentials come from, in words."""

    def find_region(self) -> str | None:
        """Ask in which region the bucket is."""


class OnlyOptions:
    """The access of stores that are told everything by their options."""

    origin = None

    def prepare(self) -> object:
        """Return the same at any time: other options are noticed without it."""
        return "options"

    def find_region(self) -> None:
        """There are no regions."""


class _Opened:
    """One driver, with its access and options, until nobody uses it any more."""

    def __init__(self, driver: UnderStore, access: Access | None, options: Options) -> None:
        self.driver = driver
        self.access = access
        self.options = options
        self.users = 0
        self.retired = False
        self.explained_s = -PAUSE_S
        self.reason: StoreError | None = None
        """The reason of the last refusal without a body."""

    def prepare(self) -> object:
        """Have credentials at hand; returns them. Raises `StoreError`."""
        return self.access.prepare() if self.access is not None else None

    def has_others_than(self, credentials: object) -> bool:
        """Whether the credentials have been renewed since."""
        try:
            return self.prepare() != credentials
        except StoreError:  # there are none any more
            return True


class RenewingDriver:
    """An `UnderStore` that hands everything on to the one that is open now. Thread-safe."""

    def __init__(
        self,
        reach: Callable[[Options], Access | None],
        open_driver: Callable[[Options, Access | None], UnderStore],
        options: Options,
        reread: Callable[[], Options] | None = None,
    ) -> None:
        """``reach`` reads the access that ``open_driver`` opens with; ``reread`` returns the storage options as
        they are written now. Raises the errors of these.
        """
        self._reach = reach
        self._open = open_driver
        self._options = options
        self._reread = reread
        self._region: dict[str, str] = {}
        """The option that says where the bucket is, once the store has named its region."""
        self._not_followed = Pause(PAUSE_S, PAUSE_S)
        """After a region that was named could not be used."""
        self._told = ""
        """What was said of that."""
        self._turn = threading.Lock()
        """Held while a driver is opened."""
        self._count = threading.Lock()
        access = reach(options)
        self._now = _Opened(open_driver(options, access), access, options)
        self._looked_s = self._asked_s = -PAUSE_S
        self._listed = {"list_directory": self._pages("list_directory"), "list_all": self._pages("list_all")}

    @property
    def driver(self) -> str:
        """The kind of driver: "obstore" or "fsspec"."""
        return self._now.driver.driver

    @property
    def abilities(self) -> Abilities:
        """The abilities of the store, as far as is known."""
        return self._now.driver.abilities

    @property
    def fetches_small(self) -> bool:
        """Whether the driver that is open now fetches small files."""
        return fetches_small(self._now.driver)

    def fetch_small(self, files: Sequence[WantedFile], abandoned: bytearray) -> list[Answer]:
        """See `SmallFiles`; another driver may have been opened meanwhile, which does not."""
        return self._run(lambda opened: fetch_small(opened.driver, files, abandoned))

    @property
    def puts_small(self) -> bool:
        """Whether the driver that is open now puts several small objects at once."""
        return puts_small(self._now.driver)

    def put_small(self, puts: Sequence[SmallPut], tell: Tell) -> None:
        """See `PutsSmall`; another driver may have been opened meanwhile, which does not."""
        self._run(lambda opened: put_small(opened.driver, puts, tell))

    def __getattr__(self, name: str) -> Any:
        if name in self.__dict__.get("_listed", ()):
            return self._listed[name]
        if name.startswith("_"):
            raise AttributeError(name)

        def call(*arguments: Any, **named: Any) -> Any:
            return self._run(lambda opened: getattr(opened.driver, name)(*arguments, **named))

        return call

    def _pages(self, name: str) -> Callable[[str], Iterator[ListPage]]:
        def pages(prefix: str) -> Iterator[ListPage]:
            def first(opened: _Opened) -> tuple[_Opened, Iterator[ListPage], ListPage | None]:
                listing = iter(getattr(opened.driver, name)(prefix))
                page = next(listing, None)
                with self._count:
                    opened.users += 1
                return opened, listing, page

            opened, listing, page = self._run(first)
            try:
                while page is not None:
                    yield page
                    page = next(listing, None)
            finally:
                self._leave(opened)

        return pages

    def renew(self, options: Options | None = None) -> bool:
        """Read credentials again, with other storage options if given; returns whether there are others now.

        Raises `ConfigError` or `StoreError` if they cannot be had or the store refuses them; nothing changes then.
        """
        with self._turn:
            return self._replace(self._options if options is None else options, probe=True)

    def close(self) -> None:
        """Free connections. Further calls are errors."""
        with self._turn:
            self._now.driver.close()

    def _run(self, function: Callable[[_Opened], T]) -> T:
        opened = self._enter()
        signed: object = None
        try:
            signed = opened.prepare()
            return function(opened)
        except StoreError as exc:
            error = self._explained(opened, exc)
        finally:
            self._leave(opened)
        if not self._mend(opened, error, signed):
            raise _told(opened, error) from None
        opened = self._enter()
        try:
            opened.prepare()
            return function(opened)
        except StoreError as exc:
            raise _told(opened, exc) from None
        finally:
            self._leave(opened)

    def _enter(self) -> _Opened:
        with self._count:
            self._now.users += 1
            return self._now

    def _leave(self, opened: _Opened) -> None:
        with self._count:
            opened.users -= 1
            over = opened.retired and not opened.users
        if over:
            opened.driver.close()

    def _explained(self, opened: _Opened, error: StoreError) -> StoreError:
        """Find out the reason of a refusal without a body: another request has one, and is made once in a while."""
        if not error.unexplained:
            return error
        now_s = time.monotonic()
        with self._count:
            known = now_s < opened.explained_s + PAUSE_S
            if not known:
                opened.explained_s, opened.reason = now_s, None
        if not known:
            try:
                opened.driver.probe()
            except (AccessDenied, WrongRegion) as exc:
                opened.reason = exc
            except StoreError:
                pass
        return error if opened.reason is None else copy.copy(opened.reason)

    def _mend(self, opened: _Opened, error: StoreError, signed: object) -> bool:
        """Open the driver again if that may help against ``error``; returns whether to try once more.

        ``signed`` are the credentials that the request began with.
        """
        if isinstance(error, WrongRegion):
            return self._follow(opened, error)
        renewable = isinstance(error, AccessDenied) and error.renewable
        if (renewable or error.unexplained) and signed is not None and opened.has_others_than(signed):
            return True  # they expired on the way
        if not renewable:
            return False
        with self._turn:
            if self._now is not opened:
                return True
            return time.monotonic() >= self._looked_s + PAUSE_S and self._look_again()

    def _look_again(self) -> bool:
        """Read credentials again after a refusal; returns whether there are others now."""
        try:
            if not self._replace(self._read_options()):
                return False
        except LuxError as exc:
            log.warning("credentials cannot be read again: %s", exc)
            return False
        finally:
            self._looked_s = time.monotonic()
        log.info("the store refused the credentials; others were found, and are used from now on")
        return True

    def _read_options(self) -> Options:
        return self._options if self._reread is None else self._reread()

    def _follow(self, opened: _Opened, error: WrongRegion) -> bool:
        with self._turn:
            if self._now is not opened:
                return True
            region = error.region or self._ask_region(opened.access)
            if not region or opened.options.get("region") == region or self._not_followed.is_on(time.monotonic()):
                return False
            before, self._region = self._region, {"region": region}
            try:
                self._replace(self._options)
            except LuxError as exc:  # credentials, say, cannot be had now
                self._region = before
                self._not_followed.note(time.monotonic())
                told = f"region {region} cannot be used: {exc}"
                log.log(logging.INFO if told == self._told else logging.WARNING, "%s", told)
                self._told = told
                return False
            self._not_followed.end()
            self._told = ""
            log.info("the bucket is in region %s, and is asked there from now on", region)
            return True

    def _ask_region(self, access: Access | None) -> str | None:
        """Ask where the bucket is, once in a while; None if nobody says it."""
        now_s = time.monotonic()
        if access is None or now_s < self._asked_s + PAUSE_S:
            return None
        self._asked_s = now_s
        return access.find_region()

    def _replace(self, options: Options, *, probe: bool = False) -> bool:
        """Open a driver and use it from now on, if it has other options or credentials than the present one."""
        before, wanted = self._now, {**options, **self._region}
        access = self._reach(wanted)
        credentials = access.prepare() if access is not None else None
        if wanted == before.options and credentials is not None and not before.has_others_than(credentials):
            return False
        fresh = _Opened(self._open(wanted, access), access, wanted)
        if probe:
            try:
                _probe(fresh.driver)
            except AccessDenied:
                fresh.driver.close()
                raise
        with self._count:
            self._now, before.retired = fresh, True
            over = not before.users
        self._options = options
        if over:
            before.driver.close()
        return True


def _probe(driver: UnderStore) -> None:
    """Raise `AccessDenied` if the store refuses the credentials, but not if it does not answer."""
    try:
        driver.probe()
    except AccessDenied:
        raise
    except StoreError as exc:
        log.info("new credentials could not be tried: %s", exc)


def _told(opened: _Opened, error: StoreError) -> StoreError:
    """Add where the credentials in use come from."""
    origin = opened.access.origin if opened.access is not None else None
    if isinstance(error, NoCredentials):
        return error
    if isinstance(error, AccessDenied) and error.renewable and origin and origin not in str(error):
        return AccessDenied(f"{error}; those in use are from {origin}", renewable=True)
    return error
