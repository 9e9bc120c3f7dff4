"""Checks of the arguments of `gcsfs.GCSFileSystem`."""

from __future__ import annotations

import os
from collections.abc import Mapping

from luxfuse.errors import ConfigError
from luxfuse.understore.reach import said

TOKENS = ("anon", "google_default", "cloud", "cache", "browser")
"""The words that gcsfs takes for ways to a token."""


def check_token(token: str, reaching: Mapping[str, str]) -> None:
    """Raise `ConfigError` for a token about which gcsfs would ask by another way than the storage options say."""
    if (named := said(reaching)) and token not in TOKENS and not os.access(token, os.F_OK):
        raise ConfigError(f"storage option {named[0]}: gcsfs asks about a token that is given itself without heeding it; "
                          "let token name a file with a key, or set HTTPS_PROXY and REQUESTS_CA_BUNDLE")  # fmt: skip
