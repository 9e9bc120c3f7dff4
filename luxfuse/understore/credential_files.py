"""Files with credentials that options and variables name, for stores whose libraries go on without one that is missing.

gcsfs becomes anonymous then, and obstore tells nothing that could be waited for. Where others bring credentials into place
(a volume of secrets, say), a file that is not there now may be there in a moment.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from luxfuse.core.units import YES
from luxfuse.errors import ConfigError, NoCredentials
from luxfuse.understore.azure.access import AzureAccess
from luxfuse.understore.failures import safe_url
from luxfuse.understore.gcs.arguments import TOKENS
from luxfuse.understore.locations import family_of

_OPTIONS = {"gs": ("token", "service_account", "application_credentials"), "az": ("federated_token_file",)}
_VARIABLES = {"gs": ("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT"), "az": ("AZURE_FEDERATED_TOKEN_FILE",)}
_DEFAULT = "google_default"


def require_files(source: str, options: Mapping[str, str], variables: Mapping[str, str]) -> None:
    """Raise `NoCredentials` if what is used for a source is a file that cannot be read.

    Raises `ConfigError` for what is no path, but the content of such a file.
    """
    family = family_of(source)
    if family not in _OPTIONS or _uses_none(family, options, variables):
        return
    named = [(f"the storage option {name}", options[name]) for name in _OPTIONS[family] if options.get(name)]
    found = [each for each in named if each[1] != _DEFAULT] or [
        (f"the variable {name}", variables[name]) for name in _VARIABLES[family] if variables.get(name)
    ]
    for place, path in found[:1]:
        if "{" in path or "\n" in path:
            raise ConfigError(f"{safe_url(source)}: {place} has to be the path of a file, not its content")
        if place.endswith(" token") and not _is_path(path):
            return  # a token itself, or another way to one
        try:
            with Path(path).open("rb") as file:
                file.read(1)
        except (OSError, ValueError) as exc:
            why = exc.strerror if isinstance(exc, OSError) else "it is no path"
            shown = f", {path}," if _is_path(path) else ""  # a secret may have got there
            raise NoCredentials(
                f"{safe_url(source)}: the credentials that {place} names{shown} cannot be read: {why}; put the file "
                "there, or name another one"
            ) from None


def _uses_none(family: str, options: Mapping[str, str], variables: Mapping[str, str]) -> bool:
    """Whether no file is looked at."""
    if any(options.get(name, "").strip().lower() in YES for name in ("anon", "skip_signature", "use_azure_cli")):
        return True
    if family == "az":
        return bool(AzureAccess(options, variables).secret)
    return bool(options.get("service_account_key"))


def _is_path(text: str) -> bool:
    """Whether a text is surely meant as a path: a token may have slashes in it, too."""
    return text not in TOKENS and (text.startswith((os.sep, ".", "~")) or text.endswith(".json"))
