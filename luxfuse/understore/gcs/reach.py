"""The way to Google's storage for gcsfs: its own session, and the tokens that google-auth fetches by requests.

By themselves, the former heeds no variables, and the latter believe the certificates of a package.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import requests
from google.auth.exceptions import GoogleAuthError, ResponseError, TimeoutError, TransportError
from google.auth.transport.requests import Request

from luxfuse.errors import NoCredentials, StoreError, StoreUnavailable
from luxfuse.understore.failures import CREDENTIAL_PLACES
from luxfuse.understore.reach import READ_TIMEOUT_S, Reach
from luxfuse.understore.variables import variables

log = logging.getLogger(__name__)

TOKENS = "https://oauth2.googleapis.com"
PLAIN = {"Accept-Encoding": "identity"}
"""Of answers in JSON."""
STORED = {"Accept-Encoding": "gzip"}
"""Of content: Google unpacks what is stored compressed for those who do not say this, and then heeds no Range."""
EARLY_S = 300
"""Tokens are renewed so long before they expire."""
PAUSE_S = 60
"""While one holds yet, another is asked for no more often."""
SPARE = timedelta(seconds=10)
"""A token that ends sooner might not hold until the request arrives."""


def reach_by(filesystem: Any, options: Mapping[str, str]) -> Reach:
    """Make a file system of gcsfs use the certificates and the proxy of options and variables; returns these.

    Raises `ConfigError`.
    """
    reach = Reach.of((filesystem._location, TOKENS), options, variables())
    filesystem._set_session = functools.partial(_set_session, filesystem, reach, reach.trust.ssl_context())
    tokens = filesystem.credentials
    tokens.maybe_refresh = Renewal(tokens, Reach.of((TOKENS,), options, variables(), reach.trust))
    return reach


async def _set_session(filesystem: Any, reach: Reach, context: Any) -> Any:
    if filesystem._session is None:
        named = {"connector": aiohttp.TCPConnector(ssl=context), "proxy": next(iter(reach.proxies().values()), None)}
        given = filesystem.session_kwargs
        # Content comes as it is stored, of which sizes and ranges are; else a compressed object would be unpacked.
        plain = {"auto_decompress": False, "headers": {**PLAIN, **given.get("headers", {})}}
        filesystem.session_kwargs = {**named, **given, **plain}
    return await type(filesystem)._set_session(filesystem)


class _Request(Request):
    """Requests for tokens that wait no longer than others; by themselves, two minutes."""

    def __call__(
        self,
        url: str,
        method: str = "GET",
        body: Any = None,
        headers: Any = None,
        timeout: Any = READ_TIMEOUT_S,
        **more: Any,
    ) -> Any:
        return super().__call__(url, method, body, headers, timeout, **more)  # type: ignore[no-untyped-call]


class Renewal:
    """Does as gcsfs's own ``maybe_refresh``, by a session that goes the right way, and no longer than a request may last.

    While a token holds, no request waits for the next one, which a thread asks for. Thread-safe.
    """

    def __init__(self, tokens: Any, reach: Reach) -> None:
        self._tokens, self._reach = tokens, reach
        self._again_s = 0.0
        self._failure: StoreError | None = None
        self._failed_s = 0.0

    def __call__(self, early_s: int = EARLY_S) -> None:
        """Renew the token if it ends soon. Raises `StoreError` if there is none then."""
        tokens = self._tokens
        if tokens.credentials is None or tokens._credentials_valid(early_s):
            return
        if _holds(tokens.credentials):
            self._renew_beside()
            return
        began_s = time.monotonic()
        with tokens.lock:
            if tokens._credentials_valid(early_s):
                return
            if self._failure is not None and self._failed_s >= began_s:  # as another thread has found, which was waited for
                raise type(self._failure)(str(self._failure))
            self._renew()

    def _renew_beside(self) -> None:
        """Have a thread renew the token, unless one does, or has just tried."""
        now_s = time.monotonic()
        if now_s < self._again_s or not self._tokens.lock.acquire(blocking=False):
            return
        self._again_s = now_s + PAUSE_S

        def renew() -> None:
            try:
                self._renew()
            except StoreError as exc:
                log.info("%s; the one in use holds yet", exc)
            except Exception as exc:  # noqa: BLE001 (a library's; the request that needs another one will meet it)
                log.info("no other token could be had for now (%s)", type(exc).__name__)
            finally:
                self._tokens.lock.release()

        try:
            threading.Thread(target=renew, name="token", daemon=True).start()
        except RuntimeError as exc:
            self._tokens.lock.release()
            log.info("no other token is asked for now (%s)", exc)

    def _renew(self) -> None:
        """Ask for another token. Raises `StoreError`."""
        tokens = self._tokens
        with requests.Session() as session:
            session.trust_env = False
            session.verify, session.proxies = self._reach.trust.verify, self._reach.proxies()
            try:
                tokens.credentials.refresh(_Request(session))
            except GoogleAuthError as exc:
                self._failed_s = time.monotonic()
                self._failure = _failure(exc)
                raise self._failure from None
        tokens.credentials.apply(tokens.heads)


def _holds(credentials: Any) -> bool:
    """Whether Google takes the token; ``valid`` of google-auth denies that already 225 s before it expires."""
    if not credentials.token:
        return False
    ends = credentials.expiry
    return ends is None or bool(datetime.now(UTC) + SPARE < ends.replace(tzinfo=UTC))


def _failure(exc: GoogleAuthError) -> StoreError:
    away = (TransportError, TimeoutError, ResponseError)
    if isinstance(exc, away) or isinstance(exc.__cause__, away) or exc.retryable:
        return StoreUnavailable("no token could be had: the service that gives them does not answer")
    return NoCredentials(f"no token could be had; credentials come from: {CREDENTIAL_PLACES['gs']}")
