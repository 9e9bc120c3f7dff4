"""Reads of Azure's blobs in C (`understore.gets`): where a container is, and what opens its door.

That is the same identity that obstore takes, by the same order: the account's key, of which a signature for an hour is made
here, which goes along as one that was given does; else a token, had by azure-identity where that is installed. What obstore
knows beyond these is left to it (`refusal`).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import importlib.util
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, unquote, urlencode

from luxfuse.core.vain import PAUSE_S, Pause
from luxfuse.understore.gets.client import (
    IS_BUILT,
    NOT_BUILT,
    Dialect,
    Door,
    Elsewhere,
    Gets,
    Sent,
    is_plain_url,
)
from luxfuse.understore.locations import Location
from luxfuse.understore.reach import CONNECT_TIMEOUT_S, READ_TIMEOUT_S, Reach

log = logging.getLogger(__name__)

DIALECT = Dialect("az", "x-ms-meta-")
API = "2021-12-02"
PLAIN = (f"x-ms-version: {API}",)
SCOPE = "https://storage.azure.com/.default"

SIGNED_FOR_S = 3600
EARLY_S = 300
"""Signatures and tokens are renewed so long before they end."""
MOST_ASKINGS = 4
"""For a token, at once; all but one hang."""

_KNOWN = frozenset({
    "account_name", "account_key", "sas_key", "endpoint", "skip_signature", "client_id", "client_secret", "tenant_id",
    "authority_host", "federated_token_file", "use_azure_cli", "allow_http", "allow_invalid_certificates", "proxy_url",
    "verify", "use_ssl",
})  # fmt: skip
_FROM_VARIABLES = {
    "AZURE_STORAGE_ACCOUNT_NAME": "account_name", "AZURE_STORAGE_ACCOUNT_KEY": "account_key",
    "AZURE_STORAGE_SAS_TOKEN": "sas_key", "AZURE_CLIENT_ID": "client_id", "AZURE_CLIENT_SECRET": "client_secret",
    "AZURE_TENANT_ID": "tenant_id", "AZURE_FEDERATED_TOKEN_FILE": "federated_token_file",
    "AZURE_AUTHORITY_HOST": "authority_host",
}  # fmt: skip
_OF_OBSTORE = ("AZURE_STORAGE_", "AZURE_USE_", "AZURE_SKIP_", "AZURE_ENDPOINT", "AZURE_MSI_", "AZURE_FABRIC_")
"""So begin the variables that obstore heeds; a connection string is in the settings already."""


def open_gets(
    location: Location, config: Mapping[str, Any], variables: Mapping[str, str], reach: Reach, timeout_s: float, most: int
) -> Gets | None:
    """Open the reads of a container, if they can be made; ``most``: requests at once, 0: they are not wanted.

    ``config`` has the settings by the names of obstore.
    """
    if not most:
        return None
    named = {name: variables[variable] for variable, name in _FROM_VARIABLES.items() if variables.get(variable)}
    settings: dict[str, Any] = {**named, **config}
    endpoint = str(settings.get("endpoint") or f"https://{settings.get('account_name')}.blob.core.windows.net").rstrip("/")
    url = f"{endpoint}/{location.bucket}"
    if reason := refusal(url, settings, variables, reach):
        log.info("files are fetched by obstore: %s", reason)
        return None
    assert reach.trust.bundle is not None
    try:
        door = _door(location.bucket, settings, reach.trust.bundle)
    except Exception as exc:  # noqa: BLE001 (azure-identity says in many ways that it can do nothing with settings)
        log.info("files are fetched by obstore: the settings open nothing here (%s)", type(exc).__name__)
        return None
    return Gets(DIALECT, url, location.prefix, door, bundle=reach.trust.bundle, timeout_s=timeout_s, most=most)


def refusal(url: str, settings: Mapping[str, Any], variables: Mapping[str, str], reach: Reach) -> str | None:  # noqa: PLR0911
    """Say why a container is not read in C, or None if it is."""
    if not IS_BUILT:
        return NOT_BUILT
    if unknown := sorted(settings.keys() - _KNOWN):
        return f"the storage option {unknown[0]}"
    own = {*_FROM_VARIABLES, "AZURE_STORAGE_CONNECTION_STRING"}
    if named := sorted(name for name in variables if name.startswith(_OF_OBSTORE) and name not in own):
        return f"the variable {named[0]}"
    if reach.trust.bundle is None:
        return "certificates are not verified"
    if reach.proxy:
        return "there is a proxy"
    if not is_plain_url(url):
        return "an unusual endpoint, or name of the container"
    by_token = not (settings.get("skip_signature") or settings.get("account_key") or settings.get("sas_key"))
    if by_token and not _has_identity():
        return "azure-identity is not installed, which fetches tokens"
    return None


def _has_identity() -> bool:
    try:
        return importlib.util.find_spec("azure.identity") is not None
    except ImportError:  # there is no ``azure`` at all
        return False


class Given(Door):
    """A signature that was given, or nothing."""

    def __init__(self, query: str | None = None) -> None:
        self._sent = Sent(query, PLAIN)

    def __call__(self) -> Sent:
        return self._sent


class DoorOfKey(Door):
    """Signatures by the account's key, to read in one container."""

    def __init__(self, account: str, key: str, container: str) -> None:
        self._account, self._container = account, container
        self._key = base64.b64decode(key, validate=True)
        self._sent = Sent(None, PLAIN)
        self._renew_s = 0.0
        self._pause = Pause()

    def __call__(self) -> Sent:
        now_s = time.time()
        if self.is_elsewhere:
            raise Elsewhere
        if now_s >= self._renew_s:
            self._sent = Sent(self._signed(now_s + SIGNED_FOR_S), PLAIN)
            self._renew_s = now_s + SIGNED_FOR_S - EARLY_S
        return self._sent

    @property
    def is_elsewhere(self) -> bool:
        return self._pause.is_on(time.monotonic())

    def accepted(self) -> None:
        self._pause.end()

    def refused(self) -> None:
        """Make none for a while: an account may allow requests that are signed by its key, and no such signatures."""
        if self._pause.note(time.monotonic()):
            log.info("signatures that are made of the account's key are refused; files are fetched by obstore for now")

    def _signed(self, ends_s: float) -> str:
        ends = datetime.fromtimestamp(ends_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        resource = f"/blob/{self._account}/{self._container}"
        lines = ["r", "", ends, resource, "", "", "", API, "c", *[""] * 7]
        signature = hmac.digest(self._key, "\n".join(lines).encode(), hashlib.sha256)
        return urlencode({"sv": API, "sr": "c", "sp": "r", "se": ends, "sig": base64.b64encode(signature).decode()})


class DoorOfToken(Door):
    """Tokens, each as long as it holds. While one does, no request waits for the next one, which a thread asks for."""

    def __init__(self, ask: Callable[[], tuple[str, float]]) -> None:
        """``ask`` returns a token and when it ends; it may wait, and raise anything."""
        self._ask = ask
        self._lock = threading.Lock()
        self._sent = Sent(None, PLAIN)
        self._renew_s = self._ends_s = 0.0
        self._again_s = self._blame_s = self._began_s = -math.inf
        self._over = threading.Event()
        """The end of the asking that was begun last."""
        self._over.set()
        self._running = 0

    def __call__(self) -> Sent:
        now_s = time.time()
        if now_s >= self._renew_s:
            over = self._begin()
            if now_s >= self._ends_s:
                if over is not None:
                    over.wait(self._patience_s)
                if time.time() >= self._ends_s:
                    raise Elsewhere
        return self._sent

    @property
    def is_elsewhere(self) -> bool:
        return time.time() >= self._ends_s and time.monotonic() < self._again_s and self._patience_s <= 0

    def refused(self) -> None:
        """Have another token for the next request, but not one for each that is refused."""
        with self._lock:
            now_s = time.monotonic()
            if now_s >= self._blame_s and self._over.is_set():  # else it is being renewed
                self._renew_s, self._ends_s, self._blame_s = 0.0, 0.0, now_s + PAUSE_S

    @property
    def _patience_s(self) -> float:
        """So long the present asking is worth a wait: azure-identity makes several requests for a token."""
        return 0.0 if self._over.is_set() else self._began_s + READ_TIMEOUT_S - time.monotonic()

    def _begin(self) -> threading.Event | None:
        """Ask for another token, in a thread; returns the end of that, or of one under way. None: not now."""
        with self._lock:
            if self._patience_s > 0:
                return self._over
            now_s = time.monotonic()
            if time.time() < self._renew_s or now_s < self._again_s or self._running >= MOST_ASKINGS:
                return None
            over = self._over = threading.Event()
            self._began_s, self._again_s = now_s, now_s + PAUSE_S
            try:
                threading.Thread(target=self._ask_now, args=(over,), name="token", daemon=True).start()
            except RuntimeError:  # there can be no more threads
                over.set()
                return None
            self._running += 1
        return over

    def _ask_now(self, over: threading.Event) -> None:
        try:
            token, ends_s = self._ask()
        except Exception as exc:  # noqa: BLE001 (of a library that has many)
            log.info("no token could be had for now (%s)", type(exc).__name__)
            with self._lock:
                self._running -= 1
        else:
            with self._lock:
                self._running -= 1
                self._sent = Sent(None, (*PLAIN, f"Authorization: Bearer {token}"))
                self._ends_s = ends_s
                self._renew_s = min(ends_s, max(ends_s - EARLY_S, time.time() + PAUSE_S))
                if ends_s > time.time():
                    self._again_s = -math.inf
        finally:
            over.set()


def _door(container: str, settings: Mapping[str, Any], bundle: str) -> Door:
    def get(name: str) -> str:
        return str(settings.get(name) or "")

    if settings.get("skip_signature"):
        return Given()
    if get("account_key"):
        try:
            return DoorOfKey(get("account_name"), get("account_key"), container)
        except ValueError:
            return Given()  # obstore tells that the key is none
    proof = get("federated_token_file") or get("client_secret")
    if get("sas_key") and not (proof and get("client_id") and get("tenant_id")):
        return Given(_encoded(get("sas_key")))
    credential = _credential(get, bundle)

    def ask() -> tuple[str, float]:
        found = credential.get_token(SCOPE)
        return str(found.token), float(found.expires_on)

    return DoorOfToken(ask)


def _encoded(sas: str) -> str:
    """Return a signature as it goes into an address, from one that is encoded or not, as obstore does.

    Raises ValueError if it is none.
    """
    pairs = [pair.strip().partition("=") for pair in unquote(sas.strip(), errors="strict").lstrip("?").split("&")]
    if not all(equals for name, equals, _ in pairs if name):
        raise ValueError("no signature")
    return urlencode([(name, value) for name, _, value in pairs if name], quote_via=quote)


def _credential(get: Callable[[str], str], bundle: str) -> Any:
    from azure import identity  # large

    options: dict[str, Any] = {"connection_verify": bundle, "connection_timeout": CONNECT_TIMEOUT_S, "retry_total": 0,
                               "read_timeout": READ_TIMEOUT_S}  # fmt: skip
    if authority := get("authority_host"):
        options["authority"] = authority
    client, tenant = get("client_id"), get("tenant_id")
    if client and tenant and get("federated_token_file"):
        return identity.WorkloadIdentityCredential(
            tenant_id=tenant, client_id=client, token_file_path=get("federated_token_file"), **options
        )
    if client and tenant and get("client_secret"):
        return identity.ClientSecretCredential(tenant, client, get("client_secret"), **options)
    if get("use_azure_cli") == "True":
        return identity.AzureCliCredential(process_timeout=int(READ_TIMEOUT_S))
    del options["connection_verify"]  # an address of the machine's own
    return identity.ManagedIdentityCredential(client_id=client or None, **options)
