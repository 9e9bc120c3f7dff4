"""The credentials that all clients of one S3 under-store sign with: found where the AWS tools find them, renewed in time.

Fetching them may ask a metadata service, an STS, or a program, so it happens in a thread of its own: requests
go on with credentials that are valid, and wait only if there are none, for `FETCH_LIMIT_S` at most.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from luxfuse.errors import NoCredentials, StoreError, StoreUnavailable
from luxfuse.understore.failures import CREDENTIAL_PLACES

FETCH_LIMIT_S = 30.0
EARLY_S = 600.0
"""Credentials are renewed so long before they expire, or when three quarters of their time are over if that is later."""

CHECK_S = 60.0
"""botocore is asked at least so often: where there is nothing newer, it says that the old ones hold longer than they do."""

MOST_FETCHES = 32
"""At once, in the whole process: a program that hangs is not started again and again for ever."""

RETRY_S = 5.0
"""After a failure while the old ones still hold."""

URGENT_RETRY_S = 1.0
"""After a failure otherwise."""

_PLACES = {
    "env": "the variables AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, as they were at the start of the mount",
    "shared-credentials-file": "the shared credentials file (~/.aws/credentials)",
    "config-file": "the configuration file of the AWS tools (~/.aws/config)",
    "custom-process": "credential_process",
    "assume-role": "the role that the profile assumes",
    "assume-role-with-web-identity": "the web identity token",
    "container-role": "the container's metadata service",
    "iam-role": "the instance's metadata service",
    "sso": "the single sign-on session",
}
_UNREACHABLE = ("HTTPClientError", "EndpointConnectionError", "ConnectTimeoutError", "ReadTimeoutError",
                "ConnectionClosedError", "ProxyConnectionError", "MetadataRetrievalError")  # fmt: skip

_SPEAKING = ("ProfileNotFound", "InvalidConfigError", "PartialCredentialsError", "UnauthorizedSSOTokenError",
             "SSOTokenLoadError", "ConfigNotFound", "ConfigParseError", "InfiniteLoopConfigError")  # fmt: skip
"""Errors of botocore whose text says what to do and holds no secret."""

_METADATA = ("container-role", "iam-role")
_fetches = threading.BoundedSemaphore(MOST_FETCHES)


class Frozen(NamedTuple):
    """The credentials of one request, with the names of botocore."""

    access_key: str
    secret_key: str
    token: str | None
    account_id: str | None = None


@dataclass(frozen=True, slots=True)
class _Lease:
    frozen: Frozen
    expires_s: float | None
    renew_s: float

    @property
    def valid(self) -> bool:
        return self.expires_s is None or time.time() < self.expires_s


class S3Credentials:
    """A source of credentials that is asked for every request. Thread-safe."""

    def __init__(self, fetch: Callable[[], tuple[Frozen, datetime | None]], origin: str) -> None:
        """``fetch`` returns credentials and when they expire; ``origin`` says in messages where they come from."""
        self.origin = origin
        self._fetch = fetch
        self._changed = threading.Condition()
        self._lease: _Lease | None = None
        self._error: StoreError | None = None
        self._fetching = False
        self._retry_s = 0.0

    @classmethod
    def fixed(cls, key: str, secret: str, token: str | None, origin: str) -> S3Credentials:
        """Return a source of credentials that never change."""
        frozen = Frozen(key, secret, token)
        credentials = cls(lambda: (frozen, None), origin)
        credentials._lease = _lease(frozen, None)
        return credentials

    def current(self) -> Frozen:
        """Return credentials that have not expired; waits if there are none. Raises `NoCredentials`, `StoreUnavailable`."""
        lease = self._lease
        if lease is not None and time.time() < lease.renew_s and lease.valid:
            return lease.frozen
        with self._changed:
            if time.time() >= self._retry_s:
                self._begin_fetch()
            if lease is not None and lease.valid:
                return lease.frozen
            if not self._changed.wait_for(lambda: not self._fetching, FETCH_LIMIT_S):
                raise StoreUnavailable(f"no credentials came within {FETCH_LIMIT_S:g} s from {self.origin}")
            if self._lease is not None and self._lease.valid:
                return self._lease.frozen
            raise self._error or NoCredentials(f"the credentials from {self.origin} have expired")

    @property
    def ready(self) -> bool:
        """Whether `current` answers without waiting."""
        return self._lease is not None and self._lease.valid

    @property
    def expires_s(self) -> float | None:
        """When those at hand expire, in seconds since the epoch; None if they do not, or there are none."""
        return self._lease.expires_s if self._lease is not None else None

    def as_obstore(self) -> dict[str, Any]:
        """Return the answer of a credential provider for obstore, which understands one time zone only."""
        frozen = self.current()
        lease = self._lease
        ends_s = lease.expires_s if lease is not None else None
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": None if ends_s is None else datetime.fromtimestamp(min(ends_s, time.time() + 1.0), UTC),
        }

    def _begin_fetch(self) -> None:
        if self._fetching:
            return
        slots = _fetches
        if not slots.acquire(blocking=False):
            self._error = StoreUnavailable(f"no credentials could be had from {self.origin}: earlier attempts still hang")
            return
        try:
            threading.Thread(target=self._run_fetch, args=(slots,), name="credentials", daemon=True).start()
        except RuntimeError as exc:  # there can be no more threads now
            slots.release()
            self._error = StoreUnavailable(f"no credentials could be had from {self.origin}: {exc}")
            return
        self._fetching = True

    def _run_fetch(self, slots: threading.Semaphore) -> None:
        lease, error = self._lease, None
        try:
            lease = _lease(*self._fetch())
        except Exception as exc:  # noqa: BLE001
            error = self._failure(exc)
        finally:
            slots.release()
        with self._changed:
            self._lease, self._error, self._fetching = lease, error, False
            pause_s = RETRY_S if lease is not None and lease.valid else URGENT_RETRY_S
            self._retry_s = 0.0 if error is None else time.time() + pause_s
            self._changed.notify_all()

    def _failure(self, exc: Exception) -> StoreError:
        if isinstance(exc, StoreError):
            return exc
        # The library's text may hold URLs and the output of a program.
        kinds = {kind.__name__ for kind in type(exc).__mro__}
        reason = str(exc).partition("\n")[0] if kinds & set(_SPEAKING) else type(exc).__name__
        text = f"no credentials could be had from {self.origin} ({reason})"
        no_answer = "CredentialRetrievalError" in kinds and self.origin.startswith(tuple(_PLACES[m] for m in _METADATA))
        if no_answer or kinds & set(_UNREACHABLE):
            return StoreUnavailable(text)
        return NoCredentials(f"{text}; credentials come from: {CREDENTIAL_PLACES['s3']}")


class ObstoreProvider:
    """The function that obstore calls for credentials when those that it has expire within ``refresh_threshold``."""

    refresh_threshold = timedelta(0)

    def __init__(self, credentials: S3Credentials) -> None:
        self._credentials = credentials

    def __call__(self) -> dict[str, Any]:
        return self._credentials.as_obstore()


def place_of(method: str, profile: str | None) -> str:
    """Return where botocore's ``method`` finds credentials, in words."""
    place = _PLACES.get(method, method)
    return f"{place}, profile {profile}" if profile else place


def _lease(frozen: Frozen, expires_at: datetime | None) -> _Lease:
    if expires_at is None:
        return _Lease(frozen, None, float("inf"))
    now_s, expires_s = time.time(), expires_at.timestamp()
    early_s = min(EARLY_S, max(0.0, expires_s - now_s) / 4)
    return _Lease(frozen, expires_s, min(expires_s - early_s, now_s + CHECK_S))
