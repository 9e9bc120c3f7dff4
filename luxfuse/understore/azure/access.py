"""The identity that asks an Azure container: enough to tell whether other credentials were written, and when they end."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from urllib.parse import parse_qs

_SECRETS = ("account_key", "sas_token", "sas_key", "connection_string", "client_secret", "anon", "skip_signature")
_VARIABLES = ("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_CONNECTION_STRING",
              "AZURE_STORAGE_CLIENT_SECRET", "AZURE_CLIENT_SECRET")  # fmt: skip


class AzureAccess:
    """The credentials that options and variables name."""

    def __init__(self, options: Mapping[str, str], variables: Mapping[str, str]) -> None:
        self._used = {f"the storage option {name}": options[name] for name in _SECRETS if options.get(name)} or {
            f"the variable {name}": variables[name] for name in _VARIABLES if variables.get(name)
        }

    @property
    def secret(self) -> str:
        """What is used first; "" where the machine's identity is."""
        return next(iter(self._used.values()), "")

    def prepare(self) -> object:
        """Return a value that is compared with that of other credentials; None where the machine's identity is used."""
        return tuple(self._used.items()) or None

    @property
    def origin(self) -> str | None:
        """Where the credentials come from, and that they have expired if that can be seen."""
        if not self._used:
            return None
        place, value = next(iter(self._used.items()))
        ends_s = sas_ends_at(value)
        if ends_s is None or ends_s >= time.time():
            return place
        return f"{place}, whose signature expired at {datetime.fromtimestamp(ends_s, UTC).isoformat()}"

    def find_region(self) -> str | None:
        """Azure has no regions to be asked in."""
        return None


def sas_ends_at(text: str) -> float | None:
    """Return when a SAS token, or that in a connection string, expires, in seconds since the epoch; None if it is none."""
    token = text.partition("SharedAccessSignature=")[2].partition(";")[0] or text
    found = parse_qs(token.lstrip("?"))
    if "sig" not in found or "se" not in found:
        return None
    try:
        ends = datetime.fromisoformat(found["se"][0])
    except ValueError:
        return None
    return (ends if ends.tzinfo is not None else ends.replace(tzinfo=UTC)).timestamp()
