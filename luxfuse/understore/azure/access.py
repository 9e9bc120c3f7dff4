"""The identity that asks an Azure container: enough to tell whether other credentials were written, and when they end."""

from __future__ import annotations

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

    def prepare(self) -> object:
        """Return a value that is compared with that of other credentials; None where the machine's identity is used."""
        return tuple(self._used.items()) or None

    @property
    def origin(self) -> str | None:
        """Where the credentials come from, and that they have expired if that can be seen."""
        if not self._used:
            return None
        place, value = next(iter(self._used.items()))
        ended = _end_of_sas(value)
        return f"{place}, whose signature expired at {ended}" if ended else place

    def find_region(self) -> str | None:
        """Azure has no regions to be asked in."""
        return None


def _end_of_sas(text: str) -> str | None:
    """Return when a SAS token, or that in a connection string, has expired; None if it has not, or is none."""
    token = text.partition("SharedAccessSignature=")[2].partition(";")[0] or text
    found = parse_qs(token.lstrip("?"))
    if "sig" not in found or "se" not in found:
        return None
    try:
        ends = datetime.fromisoformat(found["se"][0])
    except ValueError:
        return None
    ends = ends if ends.tzinfo is not None else ends.replace(tzinfo=UTC)
    return ends.isoformat() if ends < datetime.now(UTC) else None
